"""What TensorFlow's C++ code says of every start, kept off the screen."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_OF_CPP = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d|[IWE]0000 \d+\.|\d{4}-\d\d-\d\d .*: [IWE] |WARNING: All log messages before absl::InitializeLog"
    rb"|To enable the following instructions"
)


def import_quietly() -> None:
    """Import TensorFlow without the words of its C++ code, and let that be silent afterwards.

    A log level comes too late for the first lines, which are written before it is read. All else that reaches the standard
    error meanwhile, such as Python's warnings, comes out once the import is over. Whoever sets TF_CPP_MIN_LOG_LEVEL, or
    imports TensorFlow first, has it as it is.
    """
    if LEVEL in os.environ or "tensorflow" in sys.modules:
        return
    os.environ[LEVEL] = "3"
    with _without_cpp_lines():
        importlib.import_module("tensorflow")


@contextlib.contextmanager
def _without_cpp_lines() -> Iterator[None]:
    try:
        screen = os.dup(2)
    except OSError:  # a process without a standard error has nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if not _OF_CPP.match(line)))
