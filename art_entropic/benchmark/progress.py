"""What a run says on stderr as it goes on, and what its tasks tell it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_entropic.records import TrainingRecord

_REFRESH = 1.0  # seconds between two looks at the notices, for a bar


def describe(training: TrainingRecord) -> str:
    if training.status == "done":
        return f"trained in {training.seconds:.1f} s"
    return f"{training.status}: {training.reason}"


@dataclass(frozen=True)
class Notice:
    """Where a task stands, in a file of the run's folder, which is all that its worker shares with the run."""

    path: Path

    def write(self, text: str) -> None:
        """Where that fails a line says so: the task goes on."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"{self.path} could not be written ({error}): progress is not shown", file=sys.stderr)

    def read(self) -> str:
        """Empty where the task has told nothing, and while its file is not whole."""
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def remove(self) -> None:
        # Windows removes no file that is being read; what is left over is overwritten.
        with suppress(OSError):
            self.path.unlink()


class EpochNotice:
    """Says in a notice which epoch a training is in, and how long it goes on if epochs take as long as so far.

    That is from the beginning of the epoch on: nothing counts down within it.
    """

    def __init__(self, notice: Notice, nb_epochs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._notice, self._total, self._clock = notice, nb_epochs, clock
        self._first: tuple[int, float] | None = None  # epochs that were finished when it began, after an interruption

    def __call__(self, finished: int) -> None:
        """So many epochs are finished; to be told of the start too."""
        now = self._clock()
        first, began = self._first = self._first or (finished, now)
        if finished >= self._total:
            return
        text = f"epoch {finished + 1} of {self._total}"
        if finished > first:
            seconds = (now - began) / (finished - first)
            text += f", about {_duration(seconds * (self._total - finished))} left"
        self._notice.write(text)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class RunProgress:
    """Progress on stderr: what is being done, and a line a finished task; nothing when switched off.

    What is being done stands in a bar on a terminal; anywhere else it is told once a minute.
    """

    def __init__(self, total: int, verbose: bool, *, interval: float = 60.0) -> None:
        self._verbose = verbose
        self._total, self._interval = total, interval
        self._done, self._began, self._over = 0, time.monotonic(), threading.Event()
        self._under_way: dict[str, Notice] = {}
        self._bar: Any = None
        if verbose:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            if self._console.is_terminal:
                self._bar = Progress(
                    BarColumn(bar_width=20, table_column=Column(min_width=20)),
                    MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=len(f"{total}/{total}"))),
                    TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=len("0:00:00"))),
                    TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
                    console=self._console,
                    transient=True,
                )
                self._task = self._bar.add_task("", total=total)

    def start(self) -> None:
        if self._bar is not None:
            self._bar.start()
            threading.Thread(target=self._follow, daemon=True).start()
        elif self._verbose:
            threading.Thread(target=self._tell, daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, notice: Notice) -> None:
        self._under_way[what] = notice
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
        under_way = list(self._under_way.items())
        if not under_way:
            return "nothing"
        (first, notice), *others = under_way
        stands = notice.read()
        told = f"{first}: {stands}" if stands else first
        return f"{told} ({len(others)} more running or waiting)" if others else told

    def _follow(self) -> None:
        while not self._over.wait(_REFRESH):
            self._show()

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
