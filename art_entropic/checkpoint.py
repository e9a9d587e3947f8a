"""A retraining on disk, without pickle."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from art_entropic.history import Callback, History
from art_entropic.ops import Array
from art_entropic.records import Epoch

CHECKPOINT_SCHEMA = 1
# What held for checkpoints from before there was a choice, which do not mention it.
BEFORE = {"label_smoothing": 0.0}


class Snapshot(NamedTuple):
    """Everything needed to go on after an epoch."""

    epoch: int  # epochs finished
    weights: dict[str, Array]
    optimizer: dict[str, Array]
    scheduler: Any = None  # what a framework's own scheduler remembers, as JSON can say it

    @property
    def title(self) -> str:
        return f"epoch {self.epoch}" if self.epoch else "the start"


@dataclass(frozen=True)
class Options:
    """What `fit` and `fit_generator` were asked for, checked."""

    nb_epochs: int
    validation: tuple[Array, Array] | None
    seed: int
    scheduler: Any
    decay: float
    callbacks: tuple[Callback, ...]
    early_stopping: int | None
    checkpoint: Path | None
    verbose: bool

    @property
    def framework_scheduler(self) -> Any:
        """A scheduler object that is stepped, None where there is none or a callable."""
        return None if callable(self.scheduler) else self.scheduler


@dataclass
class Progress:
    """The part of a retraining that survives an interruption."""

    history: History
    plan: dict[str, Any]  # what must not change between the two halves
    last: Snapshot
    best_weights: dict[str, Array] | None = None
    best_loss: float = math.inf
    stale: int = 0  # epochs since the best one


class _AboutHistory(msgspec.Struct, forbid_unknown_fields=True):
    """`History` as a checkpoint has it."""

    epochs: list[Epoch]
    best_epoch: int | None
    seconds: float
    seed: int
    stopped_early: bool
    settings: dict[str, Any]


class _About(msgspec.Struct):
    """What a checkpoint says of itself."""

    schema: int
    plan: dict[str, Any]
    epoch: int
    history: _AboutHistory
    best_loss: float
    stale: int
    scheduler: Any = None

    def __post_init__(self) -> None:
        planned = self.plan.get("nb_epochs", 0)
        if self.epoch != len(self.history.epochs) or not 0 < self.epoch <= planned or self.stale < 0:
            raise ValueError(
                f"`epoch` must be the number of finished epochs, {len(self.history.epochs)}, and from 1 to `nb_epochs` "
                f"{planned}, got {self.epoch}"
            )


def read_checkpoint(path: Path) -> tuple[_About, dict[str, dict[str, Array]]]:
    """What a checkpoint says of itself, and its arrays by part; no code of the file runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint of this version, or a damaged one.
    """
    parts: dict[str, dict[str, Array]] = {"weights": {}, "optimizer": {}, "best": {}}
    if path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged, or no checkpoint of EntropicTrainer")
    try:
        with np.load(path, allow_pickle=False) as file:
            if "about" not in file:
                raise ValueError(f"{path} is not a checkpoint of EntropicTrainer")
            about = json.loads(str(file["about"]))
            if about.get("schema") != CHECKPOINT_SCHEMA:
                raise ValueError(
                    f"{path} is a checkpoint of schema {about.get('schema')!r}, this version reads {CHECKPOINT_SCHEMA}"
                )
            for key in file.files:
                part, _, name = key.partition("/")
                if part in parts:
                    parts[part][name] = file[key]
        # Python's JSON knows infinity, which the best loss is before there was one.
        return msgspec.convert(about, _About), parts
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, json.JSONDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint of EntropicTrainer: {error}") from error


def as_tuple(layers: Any) -> Any:
    return tuple(layers) if isinstance(layers, list) else layers
