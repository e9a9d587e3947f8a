"""The way that a training by one of ART's trainers takes: radius and learning rate, epochs, and which of them is kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from art_entropic.backends.protocol import Backend
from art_entropic.backends.registry import backend_for, framework_module, framework_of
from art_entropic.benchmark.augmentation import Augment, augmented
from art_entropic.checkpoint import (
    Retraining,
    Snapshot,
    read_checkpoint,
    refuse_other_classifier,
    refuse_other_settings,
    write_checkpoint,
)
from art_entropic.evaluation.target import numpy_seeded
from art_entropic.history import History
from art_entropic.measures import Measure
from art_entropic.ops import Array
from art_entropic.records import Epoch
from art_entropic.schedule import DECAY, falling_rate

PGD_STEPS = 7
PGD_STEP_SHARE = 0.25  # a step, in shares of eps
# Share of the training over which the radius of ART's trainers grows, and where it begins, in shares of eps.
RAMP, SMALLEST = 0.5, 0.01
# Which epoch ART's trainers keep; ours always keeps the best, by its own loss.
LAST, BEST = KEPT_EPOCHS = ("last", "best")
# Held-out points on which the epochs of ART's trainers are compared, and steps of the PGD that does it.
N_COMPARED, COMPARING_STEPS = 500, 10
_LAST_EPOCH = "the held-out points are not looked at: the last epoch is kept"


def pgd_step(eps: float) -> float:
    return PGD_STEP_SHARE * eps


class Outcome(NamedTuple):
    """What a training tells: what could not be made equal; history and settings where the trainer keeps them."""

    notes: tuple[str, ...]
    history: tuple[Epoch, ...] = ()
    settings: Mapping[str, Any] = {}
    earlier: float = 0.0  # seconds before an interruption

    def told(self, *notes: str) -> Outcome:
        """The same with further notes before its own."""
        return self._replace(notes=(*notes, *self.notes))


class Conditions(NamedTuple):
    """What every defence is given, checked."""

    eps: float
    norm: float
    nb_epochs: int
    batch_size: int
    seed: int
    verbose: bool
    validation_data: tuple[Array, Array] | None
    measure: Measure | None
    augment: Augment | None
    keep: str
    checkpoint: Path | None = None
    on_epoch: Callable[[int], object] | None = None  # told the number of finished epochs, of the start too


Fit = Callable[..., Any]  # `fit` of ART, with x, y, batch_size and nb_epochs


@dataclass
class Course:
    """What changes from step to step of a training by one of ART's trainers, as it does in ours."""

    twin: Any
    given: Conditions
    eps: float  # that its epochs are compared for
    steps: int  # of an epoch
    taken: int = 0
    radius: Callable[[float], Any] | None = None  # gives the trainer another radius

    def begin(self, radius: Callable[[float], Any]) -> None:
        self.radius = radius
        self.at(0.0)

    def eps_at(self, progress: float) -> float:
        """The radius of the points that a step is made with.

        At the full radius from the start, PGD training does not leave chance level at MNIST 0.3 in six epochs.
        """
        return self.eps * min(1.0, max(progress / RAMP, SMALLEST))

    def at(self, progress: float) -> None:
        if self.radius is not None:
            self.radius(self.eps_at(progress))

    def follow(self, fit: Fit, x: Array, y: Array, *, change: Callable[[Array, int], Array] | None = None) -> Outcome:
        """Train: as ART does, or epoch by epoch where the points change in between or the best epoch is looked for."""
        given = self.given
        if given.augment is None and change is None and given.keep == LAST:
            fit(x, y, batch_size=given.batch_size, nb_epochs=given.nb_epochs)
            return Outcome((_LAST_EPOCH,))
        epochs = _Epochs(self)
        for epoch in range(epochs.finished, given.nb_epochs):
            began = time.perf_counter()
            points = augmented(x, given.augment, given.seed, epoch)
            with _seeded(backend_for(self.twin), given.seed, epoch):
                points = points if change is None else change(points, epoch)
                fit(points, y, batch_size=given.batch_size, nb_epochs=1)
            epochs.add(began)
        return epochs.outcome()


@contextlib.contextmanager
def _seeded(backend: Backend, seed: int, epoch: int) -> Iterator[None]:
    """All generators that ART draws from, so that a training that goes on draws what an uninterrupted one does."""
    own = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] >> 1)  # 31 bits
    with numpy_seeded(own), backend.training(own):
        yield


class _Epochs:
    """The epochs of one of ART's trainers: kept in a checkpoint, and compared where the best one is wanted.

    They are compared on the held-out points by robust accuracy, then by clean accuracy.
    """

    def __init__(self, course: Course) -> None:
        self._course, self._twin, given = course, course.twin, course.given
        self._backend = backend_for(self._twin)
        x, y = given.validation_data or (np.zeros(0), np.zeros(0))
        self._x, self._y = x[:N_COMPARED], y[:N_COMPARED]
        self._attack = None if given.keep == LAST or not course.eps else self._pgd(course.eps)
        fixed = {"nb_epochs": given.nb_epochs, "seed": given.seed, "keep": given.keep, "eps": given.eps}
        start = Snapshot(0, self._backend.state(), self._backend.optimizer_state())
        self._done = Retraining(History(seed=given.seed), fixed, start)
        self.earlier = 0.0
        if given.checkpoint is not None and given.checkpoint.exists():
            self._go_on(given.checkpoint)

    def _pgd(self, eps: float) -> Any:
        from art.attacks.evasion import ProjectedGradientDescent

        return ProjectedGradientDescent(
            self._twin,
            norm=self._course.given.norm,
            eps=eps,
            eps_step=pgd_step(eps),
            max_iter=COMPARING_STEPS,
            batch_size=N_COMPARED,
            verbose=False,
        )

    def _go_on(self, path: Path) -> None:
        saved = read_checkpoint(path)
        refuse_other_settings(saved.fixed, self._done.fixed, f"in the checkpoint {path}")
        refuse_other_classifier(self._backend, saved, path)
        self._backend.load_state(saved.last.weights)
        self._backend.load_optimizer_state(saved.last.optimizer)
        self._done, self.earlier = saved, saved.history.seconds
        self._course.taken = saved.last.epoch * self._course.steps
        self._course.at(self._course.taken / (self._course.steps * self._course.given.nb_epochs))

    @property
    def finished(self) -> int:
        return self._done.last.epoch

    def add(self, began: float) -> None:
        """One more epoch is over, which began at that time."""
        given, history, number = self._course.given, self._done.history, self.finished + 1
        shown = self._compare(number) if given.keep == BEST else None
        seconds = time.perf_counter() - began
        history.epochs.append(
            Epoch(
                epoch=number, eps=self._course.eps_at(number / given.nb_epochs), k=0.0, beta=0.0,
                learning_rate=self._backend.learning_rate, seconds=seconds, terms={}, validation=shown,
            )
        )  # fmt: skip
        history.seconds += seconds
        self._done.last = Snapshot(number, self._backend.state(), self._backend.optimizer_state())
        if given.checkpoint is not None:
            write_checkpoint(given.checkpoint, self._done)

    def _compare(self, number: int) -> dict[str, float]:
        """Accuracies of an epoch; one before the full radius is told and not kept."""
        attacked = self._x if self._attack is None else self._attack.generate(self._x, self._y)
        robust, clean = (self._accuracy(x) for x in (attacked, self._x))
        done = self._done
        is_better = (-robust, -clean) < (done.best_loss, -self._best_clean())
        if (self._attack is None or number / self._course.given.nb_epochs >= RAMP) and is_better:
            done.best_loss, done.history.best_epoch = -robust, number
            done.best_weights = self._backend.state()
        return {"accuracy": clean, "robust_accuracy": robust}

    def _best_clean(self) -> float:
        history = self._done.history
        validation = None if history.best_epoch is None else history.epochs[history.best_epoch - 1].validation
        return -1.0 if validation is None else validation["accuracy"]

    def _accuracy(self, x: Array) -> float:
        return float(np.mean(self._twin.predict(x).argmax(axis=1) == self._y.argmax(axis=1)))

    def outcome(self) -> Outcome:
        """What came of them; the best epoch's weights are loaded where it is wanted."""
        history = self._done.history
        if self._done.best_weights is None:
            return Outcome((_LAST_EPOCH,), earlier=self.earlier)
        self._backend.load_state(self._done.best_weights)
        by = "accuracy" if self._attack is None else f"robust accuracy under PGD-{COMPARING_STEPS} at the full radius"
        told = f"epoch {history.best_epoch} was chosen on {len(self._x)} held-out points, by {by}"
        return Outcome((told,), tuple(history.epochs), earlier=self.earlier)


@contextlib.contextmanager
def trainee(estimator: Any, n: int, given: Conditions, radius: float | None = None) -> Iterator[tuple[Any, Course]]:
    """The estimator as ART's trainers take it; its learning rate falls and its radius grows as those of EntropicTrainer do.

    Args:
        radius: that its epochs are compared for, in place of eps.
    """
    module = framework_module(framework_of(estimator))
    twin = module.for_art_trainers(estimator)
    course = Course(twin, given, given.eps if radius is None else radius, math.ceil(n / given.batch_size))
    steps = given.nb_epochs * course.steps
    # Some of ART's trainers set a rate of their own.
    with falling_rate(backend_for(estimator), DECAY, insists=True) as set_rates:

        def before_step() -> None:
            if given.on_epoch is not None and course.taken % course.steps == 0:
                given.on_epoch(course.taken // course.steps)
            set_rates(course.taken / steps)
            course.taken += 1
            # This step's points are made already.
            course.at(course.taken / steps)

        with module.before_each_step(twin, before_step):
            yield twin, course
