"""What a run says on stderr as it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from art_entropic.records import TrainingRecord


def describe(training: TrainingRecord) -> str:
    if training.status == "done":
        return f"trained in {training.seconds:.1f} s"
    return f"{training.status}: {training.reason}"


class RunProgress:
    """Progress on stderr: what is being done, and a line a finished task; nothing when switched off.

    What is being done stands in a bar on a terminal; anywhere else it is told once a minute.
    """

    def __init__(self, total: int, verbose: bool, *, interval: float = 60.0) -> None:
        self._verbose = verbose
        self._total, self._interval = total, interval
        self._done, self._began, self._over = 0, time.monotonic(), threading.Event()
        self._under_way: dict[str, None] = {}
        self._bar: Any = None
        if verbose:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            if self._console.is_terminal:
                self._bar = Progress(
                    BarColumn(bar_width=20),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TextColumn("{task.description}", markup=False),
                    console=self._console,
                    transient=True,
                )
                self._task = self._bar.add_task("", total=total)

    def start(self) -> None:
        if self._bar is not None:
            self._bar.start()
        elif self._verbose:
            threading.Thread(target=self._tell, daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str) -> None:
        self._under_way[what] = None
        self._show()

    def end(self, what: str) -> None:
        self._under_way.pop(what, None)
        self._show()

    def advance(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=self._doing())

    def _doing(self) -> str:
        """The task that has been begun longest ago, since those behind it may only wait for a worker."""
        first, *others = [*self._under_way] or ["nothing"]
        return f"{first}, {len(others)} more running or waiting" if others else first

    def _tell(self) -> None:
        while not self._over.wait(self._interval):
            minutes = (time.monotonic() - self._began) / 60.0
            self.note(f"{self._done} of {self._total} done after {minutes:.0f} min: {self._doing()}")

    def note(self, line: str) -> None:
        if self._verbose:
            self._console.print(line, soft_wrap=True)


@contextmanager
def progress_bar(total: int, verbose: bool) -> Iterator[RunProgress]:
    progress = RunProgress(total, verbose)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()
