"""Settings of a retraining that fit the problem at hand, so that nobody has to tune them; their ablation: benchmarks/plans/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from art_entropic._validate import check_eps, choice, finite, non_negative
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.protocol import Backend
from art_entropic.backends.registry import backend_for
from art_entropic.guards import data_range
from art_entropic.information import MEASURES, Layers
from art_entropic.objective import EntropicObjective
from art_entropic.ops import Array
from art_entropic.schedule import Schedule

AUTOMATIC = ("interval", "channel")
# Between CIFAR-10's 8/255, where the worst case costs too much clean accuracy, and MNIST's 0.1, where it is the better one.
LARGE_EPS = 0.05
# So near that few units of a piecewise linear network change their side, in shares of the range of the data.
_NEARBY = 1e-5
# Of eps, about where the ramp of a long retraining begins.
_BEGINNING = 1e-3
# Of the entries of a gradient. Networks of ReLU and max pooling have 0.33 and more (a tie in a constant background counts as a
# change), those of SiLU and GELU 0.03 at most.
_EQUAL_SHARE = 0.15


@dataclass(frozen=True)
class Wishes:
    """What the caller asked for; None where the measure's own default shall hold."""

    eps: float
    clip_values: Any
    beta: float | None = None
    k: float | None = None
    resolution: float | None = None
    relative: bool = False
    layers: Layers = "all"
    eps_factor: float | None = None
    read_share: float | None = None
    warmup: float = 0.0
    ramp: float | None = None
    pure: float | None = None
    pure_beta: float | None = None

    def settle(self, measure: str) -> tuple[Schedule, EntropicObjective]:
        """Schedule and objective for a measure.

        Raises:
            TypeError, ValueError: a wish is out of its range, or not to be had with this measure.
        """
        row = MEASURES[choice("measure", measure, MEASURES)]
        eps = check_eps(self.eps, self.clip_values)
        ramp = row.ramp if self.ramp is None else finite("ramp", self.ramp)
        schedule = Schedule(
            eps=self._scaled(eps, row.eps_factor),
            k=row.k if self.k is None else _weight_of_worst_case(self.k, measure),
            beta=row.beta if self.beta is None else _weight_of_information(self.beta, measure),
            warmup=self.warmup,
            ramp=ramp,
            # A ramp that is shorter than the measure's own pure phase is all pure.
            pure=min(row.pure, ramp) if self.pure is None else self.pure,
            pure_beta=row.pure_beta if self.pure_beta is None else self.pure_beta,
        )
        resolution = row.resolution if self.resolution is None else self.resolution
        read_share = row.read_share if self.read_share is None else self.read_share
        return schedule, EntropicObjective(measure, resolution, self.layers, self.relative, read_share)

    def _scaled(self, eps: float, default: float) -> float:
        factor = default if self.eps_factor is None else finite("eps_factor", self.eps_factor)
        if factor <= 0:
            raise ValueError(f"`eps_factor` must be positive, got {factor!r}")
        try:
            return check_eps(eps * factor, self.clip_values)
        except ValueError as error:
            raise ValueError(f"`eps_factor` {factor!r} takes `eps` {eps!r} too far: {error}") from error

    def settle_either(self) -> None:
        """Check that each measure that may be chosen later could be told this: it must not wait for the data to fail.

        Raises:
            TypeError, ValueError: as for `settle`; the message says which measure to ask for.
        """
        refused: dict[str, ValueError] = {}
        for measure in AUTOMATIC:
            try:
                self.settle(measure)
            except ValueError as error:
                refused[measure] = error
        if len({str(error) for error in refused.values()}) == 1 and len(refused) == len(AUTOMATIC):
            raise refused[AUTOMATIC[0]]  # nothing that another measure would help
        for measure, reason in refused.items():
            able = [name for name in MEASURES if name != measure]
            raise ValueError(f"{reason}; `measure` is None, which may choose it: name another, of {able}") from reason


def _weight_of_worst_case(k: Any, measure: str) -> float:
    value = non_negative("k", k)
    if value > 1:
        raise ValueError(f"`k` must be in [0, 1], got {k!r}")
    if value > 0 and not MEASURES[measure].worst_case:
        able = ", ".join(repr(name) for name, other in MEASURES.items() if other.worst_case)
        raise ValueError(f"`k` > 0 needs a measure with worst-case logits ({able}), got k={k!r} with {measure!r}")
    return value


def _weight_of_information(beta: Any, measure: str) -> float:
    return finite("beta", beta) if MEASURES[measure].signed else non_negative("beta", beta)


class Choice(NamedTuple):
    """A measure, and why it was chosen."""

    measure: str
    reason: str


def measure_for(backend: Backend, x: Array, eps: float) -> Choice:
    """The measure that fits a network and a radius.

    `interval` sees the whole ball at once, through bounds that on piecewise linear networks are exact unit by unit, and is
    worth its price where the first order no longer tells what happens. Everything else gets the first order, which is at its
    best with a smooth network and a small radius.

    Args:
        x: some points of the data, (n, ...), float32, raw units.
        eps: Linf radius, in the units of x.
    Returns:
        A name of AUTOMATIC. Whether a step with it works, a dry step tells.
    """
    if eps < LARGE_EPS * data_range(backend, x):
        return Choice("channel", f"eps is below {100 * LARGE_EPS:g} % of the range of the data")
    if not piecewise_linear(backend, x):
        return Choice("channel", "the network is not piecewise linear")
    return Choice(
        "interval", f"the network is piecewise linear, and eps {100 * LARGE_EPS:g} % of the range of the data or more"
    )


def overflowing_layer(backend: Backend, x: Array, eps: float) -> str | None:
    """The first layer whose bounds leave float32 before training has narrowed anything, at the beginning of the ramp.

    Widths grow by a factor with each layer of a network that nobody prepared. Where float32 ends on the way, the information is
    infinite and its gradient is not a number: ResNet-50 overflows after some forty of its layers even at a radius of 1e-8.

    Args:
        x: some points of the data, (n, ...), float32, raw units; one is looked at.
        eps: Linf radius of the retraining, in the units of x.
    Returns:
        The layer's name; None where all bounds are finite.
    Raises:
        NoIntervalRuleError: an operation has no rule.
    """
    for name, box in backend.intervals(x[:1], _BEGINNING * eps).items():
        if not (np.isfinite(box.lower).all() and np.isfinite(box.upper).all()):
            return name
    return None


def piecewise_linear(backend: Backend, x: Array) -> bool:
    """Whether the logits are piecewise linear in x.

    Args:
        x: some points of the data, (n, ...), float32, raw units.
    """
    try:
        return backend.curved_operation(x[:1]) is None
    except NoIntervalRuleError:
        pass
    try:
        return _has_pieces(backend, x)
    except Exception as error:
        # A network that cannot be differentiated so is one for which the dry step says why.
        if backend.is_out_of_memory(error):
            raise
        return False


def _has_pieces(backend: Backend, x: Array) -> bool:
    """The same of any network: the gradients at two points of one piece agree in every digit.

    Not so where a GPU sums in another order each time. A network without rules for all operations gets no `interval` anyway.
    """
    rng = np.random.default_rng(0)
    # A step below the rounding of x would be none.
    rounding = float(np.spacing(np.max(np.abs(x), initial=1e-30).astype(np.float32)))
    step = np.float32(max(_NEARBY * data_range(backend, x), 8 * rounding))
    nearby = x + step * rng.choice(np.array([-1, 1], np.float32), x.shape)
    weights = rng.normal(size=backend.logits(x).shape).astype(np.float32)
    here, there = (backend.input_gradient(points, weights) for points in (x, nearby))
    # Inputs that the network does not look at say nothing.
    used = (here != 0) | (there != 0)
    return bool(np.mean(here == there, where=used) > _EQUAL_SHARE) if used.any() else True


def smooth_activations(classifier: Any) -> tuple[str, ...]:
    """Give a trained network its smooth twin: SiLU in place of each ReLU, in place, with the weights that it has.

    What it predicts changes, so a retraining must follow. `channel`, the measure that EntropicTrainer then takes, looks at
    gradients, which tell more of a smooth network. It is for small radii (at MNIST 0.3 it collapses) and gives no
    certificates. The weights' file does not tell of the change: make it before you load them into a network with ReLU.

    Args:
        classifier: ART PyTorchClassifier (modules nn.ReLU are replaced), TensorFlowV2Classifier or KerasClassifier (the
            argument `activation` of layers and keras.layers.Activation). What applies ReLU in code of its own, as
            `torch.relu` in a forward method does, stays as it is, and what you compiled around the network keeps the old one.
    Returns:
        Names of the layers that were changed.
    Raises:
        TypeError: not an estimator of a supported kind.
        ValueError: there is no ReLU that could be replaced, or a keras.layers.ReLU, which cannot be; nothing has been changed
            then.
    """
    changed = backend_for(classifier).replace_activations("relu", "silu")
    if not changed:
        raise ValueError(
            "`classifier` must have layers with ReLU to get smooth ones, got none; a ReLU that a forward method calls must be "
            "changed there"
        )
    return changed


def to_logits(classifier: Any) -> Any:
    """Let a classifier that ends in a softmax return logits, in place: what is trained, attacked and bounded here are logits.

    The classes that it predicts stay. A loss that takes probabilities becomes the same one from logits.

    Args:
        classifier: ART PyTorchClassifier whose network ends in a module nn.Softmax or nn.LogSoftmax, TensorFlowV2Classifier or
            KerasClassifier whose model ends in the activation softmax.
    Returns:
        The classifier, the same object.
    Raises:
        TypeError: not an estimator of a supported kind.
        ValueError: the network does not end in a softmax that could be taken away; nothing has been changed then.
    """
    backend_for(classifier).remove_softmax()
    return classifier
