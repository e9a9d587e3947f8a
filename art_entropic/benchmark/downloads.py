"""Files from their source into a cache, checked by their hash, and why one is not at hand."""

from __future__ import annotations

import os
from pathlib import Path


class NotReachedError(OSError):
    """The cache has no copy of a file, and its source could not be reached; the message says both."""


def folder_state(variable: str) -> str:
    """Why the folder that an environment variable names did not help: it has no such file, or it is not set."""
    folder = os.environ.get(variable)
    return f"names folder {folder!r}, which has no such file" if folder else "is not set"


def fetched(url: str, sha256: str, name: str) -> Path:
    """The file at an address, in the cache under that name.

    Raises:
        NotReachedError: it is neither in the cache nor to be had.
        ValueError: it has another hash.
        ImportError: pooch is not installed.
    """
    import pooch

    cache = pooch.os_cache("art-entropic")
    try:
        return Path(pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=cache))
    except OSError as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise NotReachedError(f"{cache} has no copy, and {url} could not be reached ({reason})") from error
