"""Switches of a framework that hold for a whole process, turned for as long as somebody needs them so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any


class HeldSwitch(ContextDecorator):
    """A context, or a decorator, inside which a switch is turned; threads share it, and the last one out turns it back.

    Args:
        turn: turns the switch and returns what turns it back.
    """

    def __init__(self, turn: Callable[[], Callable[[], None]]) -> None:
        self._turn = turn
        self._lock, self._inside = threading.Lock(), 0
        self._back: Callable[[], None] = lambda: None

    def __enter__(self) -> HeldSwitch:
        with self._lock:
            if self._inside == 0:
                self._back = self._turn()
            self._inside += 1
        return self

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._back()
