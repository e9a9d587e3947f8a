"""A retraining on disk, without pickle."""

from __future__ import annotations

import json
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from art_entropic.backends.protocol import Backend
from art_entropic.files import replacing
from art_entropic.history import Callback, History
from art_entropic.ops import Array
from art_entropic.records import Epoch

CHECKPOINT_SCHEMA = 2
# What NumPy, zip and JSON raise for a damaged file, depending on the place.
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, SyntaxError, tokenize.TokenError, MemoryError)
# Of the largest logit: two machines may differ by so much in the answers of one network.
SAME_ANSWERS = 1e-3


class Snapshot(NamedTuple):
    """Everything needed to go on after an epoch."""

    epoch: int  # epochs finished
    weights: dict[str, Array]
    optimizer: dict[str, Array]
    scheduler: Any = None  # what a framework's own scheduler remembers, as JSON can say it
    answers: Array | None = None  # logits of a few points

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
class Retraining:
    """What of a retraining survives an interruption."""

    history: History
    fixed: dict[str, Any]  # what must not change between the two halves
    last: Snapshot
    best_weights: dict[str, Array] | None = None
    best_loss: float = math.inf
    stale: int = 0  # epochs since the best one
    probed: Array | None = None  # the points that `Snapshot.answers` belong to


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


def write_checkpoint(path: Path, retraining: Retraining) -> None:
    """Write a retraining as it stood after its last finished epoch, whole or not at all. No pickle inside."""
    last = retraining.last
    probe = {} if retraining.probed is None or last.answers is None else {"points": retraining.probed, "logits": last.answers}
    parts = {"weights": last.weights, "optimizer": last.optimizer, "best": retraining.best_weights or {}, "probe": probe}
    arrays = {f"{part}/{name}": array for part, values in parts.items() for name, array in values.items()}
    history = {**asdict(retraining.history), "epochs": msgspec.to_builtins(retraining.history.epochs)}
    about = {
        "schema": CHECKPOINT_SCHEMA,
        "plan": retraining.fixed,
        "epoch": last.epoch,
        "history": history,
        "best_loss": retraining.best_loss,
        "stale": retraining.stale,
        "scheduler": last.scheduler,
    }
    with replacing(path, path.suffix) as partial, partial.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> Retraining:
    """The retraining that a checkpoint holds; no code of the file runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint of this version, or a damaged one.
    """
    parts: dict[str, dict[str, Array]] = {"weights": {}, "optimizer": {}, "best": {}, "probe": {}}
    if path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged, or not a checkpoint of EntropicTrainer")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
        # Python's JSON knows infinity, which the best loss is before there was one.
        about = json.loads(str(held.pop("about"))) if "about" in held else None
    except DAMAGES as error:
        raise ValueError(f"{path} is damaged, or not a checkpoint of EntropicTrainer: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path} is not a checkpoint of EntropicTrainer")
    if about.get("schema") != CHECKPOINT_SCHEMA:
        raise ValueError(f"{path} is a checkpoint of schema {about.get('schema')!r}, this version reads {CHECKPOINT_SCHEMA}")
    for key, array in held.items():
        part, _, name = key.partition("/")
        if part in parts:
            parts[part][name] = array
    try:
        return _retraining(msgspec.convert(about, _About), parts)
    except (KeyError, msgspec.ValidationError) as error:
        raise ValueError(f"{path} is damaged, or not a checkpoint of EntropicTrainer: {error}") from error


def _retraining(about: _About, parts: Mapping[str, dict[str, Array]]) -> Retraining:
    return Retraining(
        history=History(**msgspec.structs.asdict(about.history)),
        fixed=about.plan,
        last=Snapshot(about.epoch, parts["weights"], parts["optimizer"], about.scheduler, parts["probe"].get("logits")),
        best_weights=parts["best"] or None,
        best_loss=about.best_loss,
        stale=about.stale,
        probed=parts["probe"].get("points"),
    )


def refuse_other_settings(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with other settings than a retraining began with.

    Raises:
        ValueError: one differs.
    """
    for name, value in now.items():
        there = saved.get(name)
        if there != value:
            raise ValueError(f"`{name}` must be as {where}: {there!r}, got {value!r}")


def refuse_other_classifier(backend: Backend, saved: Retraining, path: Path) -> None:
    """Refuse weights of another network and the state of another optimizer; the classifier is afterwards as it was.

    Raises:
        ValueError: they are not those of this classifier, or with these weights it answers otherwise than the one that was
            saved.
    """
    here = {name: array.shape for name, array in backend.state().items()}
    for weights in filter(None, (saved.last.weights, saved.best_weights)):
        if here != {name: array.shape for name, array in weights.items()}:
            raise ValueError(f"{path} holds weights that do not fit the network of `classifier`")
    before = backend.optimizer_state()
    try:
        backend.load_optimizer_state(saved.last.optimizer)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} holds a state that does not fit the optimizer of `classifier`: {error}") from error
    finally:
        backend.load_optimizer_state(before)
    _refuse_other_answers(backend, saved, path)


def _refuse_other_answers(backend: Backend, saved: Retraining, path: Path) -> None:
    """Names and shapes of weights do not tell activations apart, or what is done to the inputs."""
    there = saved.last.answers
    if saved.probed is None or there is None:
        return
    weights = backend.state()
    backend.load_state(saved.last.weights)
    try:
        here = backend.logits(saved.probed)
    finally:
        backend.load_state(weights)
    if here.shape != there.shape or not np.allclose(here, there, 0.0, SAME_ANSWERS * np.max(np.abs(there)), equal_nan=True):
        raise ValueError(
            f"{path} holds weights of a network that answers otherwise than that of `classifier` does with them: it has other "
            "activations, other layers without weights or another `preprocessing`; was `smooth_activations` called before?"
        )
