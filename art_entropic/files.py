"""Files that are there whole or not at all, and folders that one run at a time writes into."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def replacing(path: Path, suffix: str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not."""
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # two writers of one file must not meet, threads neither
    temporary = path.with_name(f".{own}-{path.name.removesuffix(suffix)}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    with replacing(path, path.suffix) as temporary:
        temporary.write_bytes(content)


@contextmanager
def alone_in(home: Path) -> Iterator[None]:
    """Hold a folder: two runs in one would do the same work twice, and one could cut off what the other is writing.

    Raises:
        ValueError: another run holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"`out` {home} is in use by another run: wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()
