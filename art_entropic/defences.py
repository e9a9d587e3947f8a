"""Defences, each trained from the estimator's present weights under the same conditions as the others.

ART's own trainers get what they need to run as their papers mean them; what could not be made equal is said in the notes.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from art_entropic._validate import check_eps, check_inputs, check_labels, positive_int
from art_entropic.attacks import numpy_seeded
from art_entropic.backends import FRAMEWORKS, Array, backend_for, framework_module, framework_of
from art_entropic.records import Epoch

PGD_STEPS = 7
# The authors' own: 1 on MNIST, 6 on CIFAR-10. With 6, TRADES loses 19 points of robust accuracy on digits.
TRADES_BETA_GREY, TRADES_BETA_COLOUR = 1.0, 6.0

_LAST_EPOCH = "the held-out points are not looked at: the last epoch is kept"


class Trained(NamedTuple):
    """A trained estimator, what could not be made equal, and the history where the trainer keeps one."""

    estimator: Any
    notes: tuple[str, ...]
    history: list[Epoch]


class Plan(NamedTuple):
    """What every defence is given, checked."""

    eps: float
    nb_epochs: int
    batch_size: int
    seed: int
    verbose: bool
    validation_data: tuple[Array, Array] | None

    @property
    def eps_step(self) -> float:
        return self.eps / 4


class Training(Protocol):
    """Trains the estimator on x (n, ...) and one-hot y (n, nb_classes), both float32; returns notes and history."""

    def __call__(self, estimator: Any, x: Array, y: Array, plan: Plan) -> tuple[tuple[str, ...], list[Epoch]]: ...


@dataclass(frozen=True)
class Defence:
    """One row of DEFENCES."""

    title: str
    run: Training
    obstacles: dict[str, str]  # framework -> why not there
    source: str
    ours: bool = False

    def unavailable(self, framework: str) -> str | None:
        """Why the defence cannot run on a framework, None where it can."""
        return self.obstacles.get(framework)

    def train(
        self,
        estimator: Any,
        x: Any,
        y: Any,
        *,
        eps: float,
        nb_epochs: int,
        batch_size: int,
        seed: int,
        learning_rate: float,
        verbose: bool = True,
        validation_data: tuple[Any, Any] | None = None,
    ) -> Trained:
        """Train from the estimator's present weights, with its optimizer.

        Args:
            estimator: an ART classifier of a supported framework, returning logits.
            x: (n, *input_shape), raw units.
            y: classes (n,) or one-hot rows.
            eps: Linf radius, in the units of x; natural training ignores it.
            seed: of NumPy's and the framework's generators; both are afterwards as they were.
            learning_rate: constant over the training.
            validation_data: held-out points, used only by a trainer that chooses its best epoch.
        Raises:
            ValueError: an argument is out of its range, or the defence cannot run on the estimator's framework.
        """
        reason = self.unavailable(framework_of(estimator))
        if reason is not None:
            raise ValueError(f"`defence` must run on {FRAMEWORKS[framework_of(estimator)].title}, got {self.title}: {reason}")
        plan = Plan(
            eps=check_eps(eps, estimator.clip_values),
            nb_epochs=positive_int("nb_epochs", nb_epochs),
            batch_size=positive_int("batch_size", batch_size),
            seed=seed,
            verbose=verbose,
            validation_data=None if validation_data is None else _checked(estimator, *validation_data),
        )
        x, y = _checked(estimator, x, y)
        backend = backend_for(estimator)
        backend.check_trainable()
        backend.learning_rate = learning_rate
        with numpy_seeded(seed), backend.training(seed):
            notes, history = self.run(estimator, x, y, plan)
        return Trained(estimator, notes, history)


def _checked(estimator: Any, x: Any, y: Any) -> tuple[Array, Array]:
    x = check_inputs(x, input_shape=tuple(estimator.input_shape), clip_values=estimator.clip_values)
    labels = check_labels(y, n=len(x), nb_classes=int(estimator.nb_classes))
    return x, np.eye(int(estimator.nb_classes), dtype=np.float32)[labels]


def _natural(estimator: Any, x: Array, y: Array, plan: Plan) -> tuple[tuple[str, ...], list[Epoch]]:
    _for_art_trainers(estimator).fit(x, y, batch_size=plan.batch_size, nb_epochs=plan.nb_epochs, verbose=plan.verbose)
    return (_LAST_EPOCH,), []


def _entropic(measure: str) -> Training:
    def train(estimator: Any, x: Array, y: Array, plan: Plan) -> tuple[tuple[str, ...], list[Epoch]]:
        from art_entropic.trainer import EntropicTrainer

        history = EntropicTrainer(estimator, plan.eps, measure=measure, verbose=plan.verbose).fit(
            x,
            y,
            batch_size=plan.batch_size,
            nb_epochs=plan.nb_epochs,
            validation_data=plan.validation_data,
            seed=plan.seed,
        )
        chosen = () if plan.validation_data is None else (f"epoch {history.best_epoch} was chosen on the held-out points",)
        return chosen, history.epochs

    return train


def _madry_pgd(estimator: Any, x: Array, y: Array, plan: Plan) -> tuple[tuple[str, ...], list[Epoch]]:
    from art.defences.trainer import AdversarialTrainerMadryPGD

    twin = _for_art_trainers(estimator)
    trainer = AdversarialTrainerMadryPGD(
        twin,
        nb_epochs=plan.nb_epochs,
        batch_size=plan.batch_size,
        eps=plan.eps,
        eps_step=plan.eps_step,
        max_iter=PGD_STEPS,
        num_random_init=1,
    )
    # ART's trainer leaves its attack at batches of 32, whatever the training's batch size.
    trainer.attack.set_params(batch_size=plan.batch_size)
    with _art_bars("adversarial_trainer", plan.verbose):
        trainer.fit(x, y)
    return (f"PGD with {PGD_STEPS} steps of eps/4, as in the paper", *twin.remarks, _LAST_EPOCH), []


def _fbf(estimator: Any, x: Array, y: Array, plan: Plan) -> tuple[tuple[str, ...], list[Epoch]]:
    from art.defences.trainer import AdversarialTrainerFBFPyTorch

    learning_rate = backend_for(estimator).learning_rate

    class ConstantRate(AdversarialTrainerFBFPyTorch):  # type: ignore[misc]
        """ART's schedule climbs to a learning rate of 0.21, which is made for SGD and not for the shared optimizer."""

        def _batch_process(self, x_batch: Array, y_batch: Array, l_r: float) -> tuple[float, float, float]:
            outcome: tuple[float, float, float] = super()._batch_process(x_batch, y_batch, learning_rate)
            return outcome

    trainer = ConstantRate(_for_art_trainers(estimator), eps=plan.eps)
    with _art_bars("adversarial_trainer_fbf_pytorch", plan.verbose):
        trainer.fit(x, y, batch_size=plan.batch_size, nb_epochs=plan.nb_epochs)
    return (
        "the shared learning rate in place of ART's own schedule (up to 0.21, for SGD)",
        "training mode in every step, where ART leaves the network in evaluation mode",
        "ART clips the norm of the gradient to 0.5, which cannot be switched off",
        _LAST_EPOCH,
    ), []


def _trades(estimator: Any, x: Array, y: Array, plan: Plan) -> tuple[tuple[str, ...], list[Epoch]]:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch

    twin = _for_art_trainers(estimator)
    attack = ProjectedGradientDescent(
        twin,
        eps=plan.eps,
        eps_step=plan.eps_step,
        max_iter=PGD_STEPS,
        num_random_init=1,
        batch_size=plan.batch_size,
        verbose=False,
    )
    colour = estimator.input_shape[0 if estimator.channels_first else -1] == 3
    beta = TRADES_BETA_COLOUR if colour else TRADES_BETA_GREY
    trainer = AdversarialTrainerTRADESPyTorch(twin, attack, beta=beta)
    with _art_bars("adversarial_trainer_trades_pytorch", plan.verbose):
        trainer.fit(x, y, batch_size=plan.batch_size, nb_epochs=plan.nb_epochs)
    return (
        f"beta {beta:g}, PGD with {PGD_STEPS} steps of eps/4",
        "ART's inner step climbs cross-entropy, the paper's climbs the KL divergence",
        _LAST_EPOCH,
    ), []


def _for_art_trainers(estimator: Any) -> Any:
    return framework_module(framework_of(estimator)).for_art_trainers(estimator)


@contextlib.contextmanager
def _art_bars(module: str, verbose: bool) -> Iterator[None]:
    """Progress bars of an ART trainer, which has no switch for them."""
    home = importlib.import_module(f"art.defences.trainer.{module}")
    bars: dict[str, Callable[..., Any]] = {name: getattr(home, name) for name in ("tqdm", "trange") if name in vars(home)}
    try:
        for name, bar in bars.items():
            setattr(home, name, partial(bar, disable=not verbose))
        yield
    finally:
        for name, bar in bars.items():
            setattr(home, name, bar)


def _absent(method: str, frameworks: Sequence[str] = ("tensorflow",)) -> dict[str, str]:
    return {name: f"ART 1.20.1 has no {method} for {FRAMEWORKS[name].title}" for name in frameworks}


_SPERL = "inspired by Sperl & Böttinger 2020, arXiv 2008.03072"

DEFENCES: dict[str, Defence] = {
    "natural": Defence("Natural", _natural, {}, "empirical risk minimisation"),
    "entropic": Defence("Entropic, interval", _entropic("interval"), {}, _SPERL, ours=True),
    "entropic_channel": Defence("Entropic, channel", _entropic("channel"), {}, _SPERL, ours=True),
    "madry_pgd": Defence("MadryPGD (ART)", _madry_pgd, {}, "Madry et al. 2018, arXiv 1706.06083"),
    "fbf": Defence("FBF (ART)", _fbf, _absent("FBF"), "Wong et al. 2020, arXiv 2001.03994"),
    "trades": Defence("TRADES (ART)", _trades, _absent("TRADES"), "Zhang et al. 2019, arXiv 1901.08573"),
}
