"""What a run says on stderr as it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from art_entropic.records import TrainingRecord


def describe(training: TrainingRecord) -> str:
    if training.status == "done":
        return f"trained in {training.seconds:.1f} s"
    return f"{training.status}: {training.reason}"


class RunProgress:
    """Progress on stderr: a bar on a terminal, a line a finished cell anywhere else, nothing when switched off."""

    def __init__(self, total: int, verbose: bool) -> None:
        self._verbose = verbose
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

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

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
