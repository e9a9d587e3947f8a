"""What may listen to a retraining, epoch by epoch."""

from __future__ import annotations

import os
import time
from typing import Any

from art_entropic.extras import optional
from art_entropic.records import Epoch


class TensorBoard:
    """Writes each epoch's terms, schedule and validation for TensorBoard, by TensorBoard's own writer.

    Give it to `EntropicTrainer.fit` as one of `callbacks`, and close it, or use it as a context manager::

        with TensorBoard("runs/a") as board:
            trainer.fit(x, y, callbacks=[board])

    Args:
        folder: where the event file goes; made if it is not there.
    Raises:
        MissingPackageError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        writers = optional("tensorboard.summary.writer.event_file_writer")
        self._writer: Any = writers.EventFileWriter(os.fspath(folder))

    def __call__(self, record: Epoch) -> None:
        """Write one epoch; its number is the step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        groups = {
            "training": record.terms,
            "validation": record.validation or {},
            "schedule": {name: getattr(record, name) for name in ("eps", "k", "beta", "learning_rate")},
            "cost": {"seconds": record.seconds},
        }
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for group, numbers in groups.items()
            for name, value in numbers.items()
        ]
        self._writer.add_event(Event(wall_time=time.time(), step=record.epoch, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["TensorBoard"]
