"""Defences, each trained from the estimator's present weights under the same conditions as the others.

ART's own trainers get what they need to run as their papers mean them; what could not be made equal is said in the notes."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from art_entropic._validate import NORMS, check_callable, check_points, check_radius, choice, norm_name, norm_of, positive_int
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_of
from art_entropic.benchmark.augmentation import AUGMENTATIONS, NO_AUGMENTATION, generator_of
from art_entropic.benchmark.course import (
    BEST,
    KEPT_EPOCHS,
    LAST,
    PGD_STEP_SHARE,
    PGD_STEPS,
    RAMP,
    SMALLEST,
    Conditions,
    Outcome,
    pgd_step,
    trainee,
)
from art_entropic.choosing import smooth_activations
from art_entropic.evaluation.target import numpy_seeded
from art_entropic.information import check_layer_names
from art_entropic.measures import MEASURES, Activation, Channel, Coding, Interval, Linear, Measure
from art_entropic.ops import Array
from art_entropic.perturbations import unit_ball
from art_entropic.records import Epoch, Setting

# Of the training points, held out for trainers that choose their best epoch.
VALIDATION_SHARE = 0.1
# The authors' own: 1 on MNIST, 6 on CIFAR-10. With 6, TRADES loses 19 points of robust accuracy on digits.
TRADES_BETA_GREY, TRADES_BETA_COLOUR = 1.0, 6.0
_RAMPED = "eps grows from almost 0 over the first half, as ours does; ART starts at full eps, from which it may not learn"
_UNCOUNTED = "without the two forward passes a batch with which ART counts successful examples for its log"


class Passes(NamedTuple):
    """Passes of one batch through the network."""

    forward: int
    backward: int

    def times(self, n: int) -> Passes:
        return Passes(self.forward * n, self.backward * n)


class Trained(NamedTuple):
    """A trained estimator and how it was trained.

    Attributes:
        notes: what could not be made equal.
        history: where the trainer keeps one.
        settings: of EntropicTrainer, named ``trainer.<name>``; empty for the others.
        passes: of one batch through the network, over all training steps; what a trainer looks at between its epochs, such as
            validation points, is not counted.
        earlier: seconds that it had taken before it was interrupted and gone on with.
    """

    estimator: Any
    notes: tuple[str, ...]
    history: list[Epoch]
    settings: dict[str, Setting]
    passes: Passes
    earlier: float = 0.0


class TrainingFunction(Protocol):
    """Trains the estimator on x (n, ...) and one-hot y (n, nb_classes), both float32."""

    def __call__(self, estimator: Any, x: Array, y: Array, given: Conditions) -> Outcome: ...


@dataclass(frozen=True)
class Defence:
    """One row of DEFENCES.

    Attributes:
        obstacles: framework -> why not there.
        norms: of the balls that it can be trained for.
        passes: per batch; None for ours, where the measure decides.
        ours: trained by EntropicTrainer.
        measure: of ours; None lets EntropicTrainer choose.
        adapt: changes the network in place before the training; whoever loads the trained weights does the same first.
        default: part of a comparison that names no defences.
        constants: numbers of this module that determine what the training yields, part of the key of its records.
        revision: raised with every change of the code that changes what the training yields, so that old records are not taken
            for new ones.
    """

    title: str
    run: TrainingFunction
    obstacles: dict[str, str]
    source: str
    norms: tuple[float, ...] = NORMS
    passes: Passes | None = None
    ours: bool = False
    measure: Measure | None = None
    adapt: Callable[[Any], Any] | None = None
    default: bool = False
    constants: Mapping[str, float] = field(default_factory=dict)
    revision: int = 1

    def unavailable(self, framework: str) -> str | None:
        """Why the defence cannot run on a framework, None where it can."""
        return self.obstacles.get(framework)

    def adapt_network(self, estimator: Any) -> None:
        """Change the network of a fresh estimator to the one that the defence trains; most leave it as it is.

        Raises:
            ValueError: the network is not one that can be changed so.
        """
        if self.adapt is not None:
            self.adapt(estimator)

    def train(
        self,
        estimator: Any,
        x: Any,
        y: Any,
        *,
        eps: float,
        norm: float | str = math.inf,
        nb_epochs: int,
        batch_size: int,
        seed: int,
        learning_rate: float,
        verbose: bool = True,
        validation_data: tuple[Any, Any] | None = None,
        measure: Measure | None = None,
        augmentation: str = NO_AUGMENTATION,
        keep: str = LAST,
        checkpoint: Path | None = None,
        on_epoch: Callable[[int], object] | None = None,
    ) -> Trained:
        """Train from the estimator's present weights, with its optimizer, the network that `adapt_network` makes of it.

        Args:
            estimator: an ART classifier of a supported framework, returning logits.
            x: (n, *input_shape), raw units.
            y: classes (n,) or one-hot rows.
            eps: radius, in the units of x; natural training ignores it.
            norm: of the ball, infinity or 2.
            seed: of NumPy's and the framework's generators; both are afterwards as they were.
            learning_rate: falls linearly to 0 over the last share DECAY of the training, for every defence.
            validation_data: held-out points, used only by a trainer that chooses its best epoch.
            measure: of ours, in place of the row's own.
            augmentation: a name of AUGMENTATIONS, for points (n, h, w, c) or (n, c, h, w).
            keep: "last", or "best": ART's trainers keep the epoch that is best on the held-out points too.
            checkpoint: file that is rewritten after each epoch and gone on from where it is there, by ours, and by ART's
                trainers where they train epoch by epoch.
            on_epoch: told the number of finished epochs, first at the start. Ours tells the end too.
        Raises:
            ValueError: an argument is out of its range, or the defence cannot run on the estimator's framework or for the norm.
        """
        self._check_class(measure)
        exponent = self.check_norm(norm)
        reason = self.unavailable(framework_of(estimator))
        if reason is not None:
            raise ValueError(f"`defence` must run on {FRAMEWORKS[framework_of(estimator)].title}, got {self.title}: {reason}")
        channels_first = FRAMEWORKS[framework_of(estimator)].channels_first
        given = Conditions(
            eps=check_radius(eps, exponent, estimator.clip_values, tuple(estimator.input_shape)),
            norm=exponent,
            nb_epochs=positive_int("nb_epochs", nb_epochs),
            batch_size=positive_int("batch_size", batch_size),
            seed=seed,
            verbose=verbose,
            validation_data=None if validation_data is None else _checked(estimator, *validation_data),
            measure=self.measure if measure is None else measure,
            augment=AUGMENTATIONS[choice("augmentation", augmentation, AUGMENTATIONS)].of(channels_first),
            keep=choice("keep", keep, KEPT_EPOCHS),
            checkpoint=checkpoint,
            on_epoch=None if on_epoch is None else check_callable("on_epoch", on_epoch),
        )
        if given.keep == BEST and given.validation_data is None:
            raise ValueError("`validation_data` must be given to keep the best epoch, got None")
        x, y = _checked(estimator, x, y)
        backend = backend_for(estimator)
        backend.check_trainable()
        # With the first training of all, which nobody times, so that the first of ours does not pay for it.
        importlib.import_module("art_entropic.trainer")
        self.adapt_network(estimator)
        backend.learning_rate = learning_rate
        with numpy_seeded(seed), backend.training(seed):
            outcome = self.run(estimator, x, y, given)
        history, settings = list(outcome.history), _named_settings(outcome.settings)
        passes = self._all_passes(outcome, len(x), given)
        return Trained(estimator, outcome.notes, history, settings, passes, outcome.earlier)

    def check_norm(self, norm: Any) -> float:
        """The norm as a number.

        Raises:
            ValueError: no norm, or one that the defence cannot be trained for.
        """
        exponent = norm_of(norm, NORMS)
        if exponent not in self.norms:
            known = " and ".join(f"L{norm_name(one)}" for one in self.norms)
            raise ValueError(f"`norm` must be one that {self.title} can be trained for, only {known}, got {norm!r}")
        return exponent

    def _check_class(self, measure: Measure | None) -> None:
        if measure is None:
            return
        if not self.ours:
            raise ValueError(f"`measure` must be None for {self.title}, which EntropicTrainer does not train, got {measure!r}")
        if self.measure is not None and type(measure) is not type(self.measure):
            raise ValueError(f"`measure` must be of type {self.measure.name!r} for {self.title}, got {measure!r}")

    def check_measure(self, estimator: Any, eps: float, measure: Measure, norm: float | str = math.inf) -> None:
        """Refuse a measure that EntropicTrainer would refuse; trains nothing.

        Raises:
            ValueError, TypeError: it is not one for this defence, takes eps too far, or names a layer that there is not.
        """
        from art_entropic.trainer import EntropicTrainer

        self._check_class(measure)
        if MEASURES.get(measure.name) is not type(measure):
            raise ValueError(f"`measure` must be of a class in MEASURES, since records are found by its name, got {measure!r}")
        EntropicTrainer(estimator, eps, measure, norm=norm, verbose=False)
        check_layer_names(measure.layers_read, backend_for(estimator).layer_names())

    def _all_passes(self, outcome: Outcome, n: int, given: Conditions) -> Passes:
        # An early stop leaves epochs out; a trainer without a history runs them all.
        epochs = len(outcome.history) or given.nb_epochs
        steps = epochs * math.ceil(n / given.batch_size)
        if self.passes is not None:
            return self.passes.times(steps)
        # One of each is the natural one, of the whole batch.
        share, passes = outcome.settings["read_share"], MEASURES[outcome.settings["measure"]].passes
        return Passes(*(round(steps * (1 + share * (number - 1))) for number in passes))


def _named_settings(settings: Mapping[str, Any]) -> dict[str, Setting]:
    plain = (str, float, int, bool, type(None))
    return {f"trainer.{name}": value if isinstance(value, plain) else json.dumps(value) for name, value in settings.items()}


def _checked(estimator: Any, x: Any, y: Any) -> tuple[Array, Array]:
    x, labels = check_points(estimator, x, y)
    return x, np.eye(int(estimator.nb_classes), dtype=np.float32)[labels]


def _natural(estimator: Any, x: Array, y: Array, given: Conditions) -> Outcome:
    return _plain(estimator, x, y, given)


def _plain(
    estimator: Any, x: Array, y: Array, given: Conditions, change: Callable[[Array, int], Array] | None = None
) -> Outcome:
    with trainee(estimator, len(x), given, radius=0.0) as (twin, course):
        return course.follow(partial(twin.fit, verbose=given.verbose), x, y, change=change)


def _uniform_noise(estimator: Any, x: Array, y: Array, given: Conditions) -> Outcome:
    def noisy(points: Array, epoch: int) -> Array:
        # In place: a data set can be large.
        result = unit_ball(np.random.default_rng([given.seed, epoch]), x.shape, given.norm)
        result *= given.eps
        result += points
        if estimator.clip_values is not None:
            low, high = estimator.clip_values
            result.clip(low, high, out=result)
        return result

    return _plain(estimator, x, y, given, change=noisy)


def _entropic(estimator: Any, x: Array, y: Array, given: Conditions) -> Outcome:
    from art_entropic.trainer import EntropicTrainer

    trainer = EntropicTrainer(estimator, given.eps, given.measure, norm=given.norm, verbose=given.verbose)
    if given.checkpoint is not None and given.checkpoint.exists():
        trainer.resume(given.checkpoint)
    # In a history that is gone on with, the epochs of before the interruption are counted.
    earlier, finished = (0.0, 0) if trainer.history is None else (trainer.history.seconds, len(trainer.history.epochs))
    usual: dict[str, Any] = {
        "nb_epochs": given.nb_epochs,
        "validation_data": given.validation_data,
        "seed": given.seed,
        "checkpoint": given.checkpoint,
    }
    if given.on_epoch is not None:
        usual["callbacks"] = [_counting(given.on_epoch)]
        given.on_epoch(finished)
    if given.augment is None:
        history = trainer.fit(x, y, batch_size=given.batch_size, **usual)
    else:
        batches = generator_of(x, y, given.augment, given.batch_size, given.seed, first_epoch=finished)
        history = trainer.fit_generator(batches, **usual)
    chosen = () if given.validation_data is None else (f"epoch {history.best_epoch} was chosen on the held-out points",)
    return Outcome(chosen, tuple(history.epochs), history.settings, earlier)


def _counting(told: Callable[[int], object]) -> Callable[[Epoch], None]:
    def count(epoch: Epoch) -> None:
        told(epoch.epoch)  # and returns nothing: True would end the training

    return count


def _madry_pgd(estimator: Any, x: Array, y: Array, given: Conditions) -> Outcome:
    from art.defences.trainer import AdversarialTrainerMadryPGD

    with trainee(estimator, len(x), given) as (twin, course):
        trainer = AdversarialTrainerMadryPGD(
            twin,
            nb_epochs=given.nb_epochs,
            batch_size=given.batch_size,
            eps=given.eps,
            eps_step=pgd_step(given.eps),
            max_iter=PGD_STEPS,
            num_random_init=1,
        )
        # ART's trainer leaves its attack in the Linf ball, and at batches of 32, whatever the training's batch size.
        trainer.attack.set_params(norm=given.norm, batch_size=given.batch_size)
        course.begin(_radius_of(trainer.attack))
        with _art_bars("adversarial_trainer", given.verbose), _uncounted(trainer.attack):
            outcome = course.follow(trainer.fit, x, y)
    told = f"PGD with {PGD_STEPS} steps of eps/4, the paper's number for CIFAR-10 (40 steps on MNIST)"
    return outcome.told(told, _RAMPED, _UNCOUNTED, *twin.remarks)


def _fbf(estimator: Any, x: Array, y: Array, given: Conditions) -> Outcome:
    from art.defences.trainer import AdversarialTrainerFBFPyTorch

    with trainee(estimator, len(x), given) as (twin, course):
        trainer = AdversarialTrainerFBFPyTorch(twin, eps=given.eps)
        course.begin(partial(setattr, trainer, "_eps"))
        with _art_bars("adversarial_trainer_fbf_pytorch", given.verbose):
            outcome = course.follow(trainer.fit, x, y)
    return outcome.told(
        "the shared learning rate in place of ART's own schedule (up to 0.21, for SGD)",
        _RAMPED,
        "training mode in every step, where ART leaves the network in evaluation mode",
        "ART clips the norm of the gradient to 0.5, which cannot be switched off",
    )


def _trades(estimator: Any, x: Array, y: Array, given: Conditions) -> Outcome:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch

    with trainee(estimator, len(x), given) as (twin, course):
        attack = ProjectedGradientDescent(
            twin,
            norm=given.norm,
            eps=given.eps,
            eps_step=pgd_step(given.eps),
            max_iter=PGD_STEPS,
            num_random_init=1,
            batch_size=given.batch_size,
            verbose=False,
        )
        colour = estimator.input_shape[0 if estimator.channels_first else -1] == 3
        beta = TRADES_BETA_COLOUR if colour else TRADES_BETA_GREY
        trainer = AdversarialTrainerTRADESPyTorch(twin, attack, beta=beta)
        course.begin(_radius_of(attack))
        with _art_bars("adversarial_trainer_trades_pytorch", given.verbose), _uncounted(attack):
            outcome = course.follow(trainer.fit, x, y)
    return outcome.told(
        f"beta {beta:g}, PGD with {PGD_STEPS} steps of eps/4",
        "ART's inner step climbs cross-entropy, the paper's climbs the KL divergence",
        _RAMPED,
        _UNCOUNTED,
    )


def _radius_of(attack: Any) -> Callable[[float], Any]:
    return lambda eps: attack.set_params(eps=eps, eps_step=pgd_step(eps))


def _art_bars(module: str, verbose: bool) -> contextlib.AbstractContextManager[None]:
    """Progress bars of an ART trainer, which has no switch for them."""
    home = importlib.import_module(f"art.defences.trainer.{module}")
    bars = {name: getattr(home, name) for name in ("tqdm", "trange") if name in vars(home)}
    return _replaced(home, {name: partial(bar, disable=not verbose) for name, bar in bars.items()})


def _uncounted(attack: Any) -> contextlib.AbstractContextManager[None]:
    """ART's PGD predicts each batch twice more, only to log how many examples succeeded: a rival should not wait for that."""
    return _replaced(sys.modules[type(attack._attack).__module__], {"compute_success": lambda *_, **__: math.nan})


@contextlib.contextmanager
def _replaced(module: Any, names: Mapping[str, Any]) -> Iterator[None]:
    """Other values for names of a module of ART, for the time of the block."""
    before = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _absent(method: str, frameworks: Sequence[str] = ("tensorflow",)) -> dict[str, str]:
    return {name: f"ART 1.20.1 has no {method} for {FRAMEWORKS[name].title}" for name in frameworks}


_RAMP = {"ramp": RAMP, "smallest": SMALLEST}
_PGD = {"steps": PGD_STEPS, "step_share": PGD_STEP_SHARE}
_SPERL = "inspired by Sperl & Böttinger 2020, arXiv 2008.03072"


def _ours(
    title: str, measure: Measure | None = None, *, adapt: Callable[[Any], Any] | None = None, default: bool = False
) -> Defence:
    return Defence(title, _entropic, {}, _SPERL, ours=True, measure=measure, adapt=adapt, default=default)


DEFENCES: dict[str, Defence] = {
    "natural": Defence("Natural", _natural, {}, "empirical risk minimisation", passes=Passes(1, 1), default=True),
    "uniform_noise": Defence("Uniform noise", _uniform_noise, {}, "data augmentation baseline", passes=Passes(1, 1)),
    "entropic": _ours("Entropic", default=True),
    "entropic_smooth": _ours("Entropic, SiLU for ReLU", adapt=smooth_activations),
    "entropic_interval": _ours("Entropic, interval", Interval()),
    "entropic_linear": _ours("Entropic, linear", Linear()),
    "entropic_pure": _ours("Entropic, pure (k = 0)", Interval(k=0.0, beta=1.0)),
    "entropic_channel": _ours("Entropic, channel", Channel()),
    "entropic_activation": _ours("Entropic, activation (control)", Activation()),
    "entropic_coding": _ours("Entropic, coding", Coding()),
    "madry_pgd": Defence(
        "MadryPGD (ART)",
        _madry_pgd,
        {},
        "Madry et al. 2018, arXiv 1706.06083",
        passes=Passes(PGD_STEPS + 1, PGD_STEPS + 1),
        default=True,
        constants={**_RAMP, **_PGD},
    ),
    "fbf": Defence(
        "FBF (ART)",
        _fbf,
        _absent("FBF"),
        "Wong et al. 2020, arXiv 2001.03994",
        norms=(math.inf,),
        passes=Passes(2, 2),
        default=True,
        constants=_RAMP,
    ),
    "trades": Defence(
        "TRADES (ART)",
        _trades,
        _absent("TRADES"),
        "Zhang et al. 2019, arXiv 1901.08573",
        passes=Passes(PGD_STEPS + 2, PGD_STEPS + 2),
        default=True,
        constants={**_RAMP, **_PGD, "beta_grey": TRADES_BETA_GREY, "beta_colour": TRADES_BETA_COLOUR},
    ),
}
