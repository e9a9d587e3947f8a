"""Choose the measure and the network that fit a problem, so that nobody has to tune them (ablations: benchmarks/plans/)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.protocol import Backend
from art_entropic.backends.registry import backend_for
from art_entropic.guards import data_range
from art_entropic.ops import Array
from art_entropic.perturbations import unit_ball

# Between them chooses who names no measure.
AUTOMATIC = ("interval", "channel")
# Between CIFAR-10's 8/255, where the worst case costs too much clean accuracy, and MNIST's 0.1, where it is the better one.
LARGE_EPS = 0.05
# Of the gradients of the margin at two random points of the ball, their cosine. From here on the first order tells what happens
# in all of it: natural networks have 0.99 on CIFAR-10 at 8/255 and 0.97 on digits at 0.15, where `channel` is the better one,
# and on MNIST 0.78 at 0.1 and 0.66 at 0.3, where `interval` is.
AGREEMENT = 0.9
# So near that few units of a piecewise linear network change their side, in shares of the range of the data.
_NEARBY = 1e-5
# Of eps, about where the ramp of a long retraining begins.
_BEGINNING = 1e-3
# Of the entries of a gradient. Networks of ReLU and max pooling have 0.33 and more (a tie in a constant background counts as a
# change), those of SiLU and GELU 0.03 at most.
_EQUAL_SHARE = 0.15


class Choice(NamedTuple):
    """A measure, and why it was chosen."""

    measure: str
    reason: str


def measure_for(backend: Backend, x: Array, eps: float, norm: float = math.inf) -> Choice:
    """Choose the measure that fits a network and a radius.

    `interval` sees the whole ball at once, through bounds that are exact unit by unit on piecewise linear networks. It is worth
    its cost where a first-order approximation fails: where the gradient of the margin turns within the ball. Everything else
    gets `channel`, which is first order and works best with a smooth network and a small radius. So does every L2 ball:
    interval bounds let each unit use the whole radius, which no single perturbation can.

    Args:
        x: some points of the data, (n, ...), float32, raw units.
        eps: radius, in the units of x.
        norm: of the ball, infinity or 2.
    Returns:
        A name of AUTOMATIC, with the reason. A dry step must show whether it works.
    """
    if not math.isinf(norm):
        return Choice("channel", "in an L2 ball interval bounds let each unit spend the whole radius")
    if eps < LARGE_EPS * data_range(backend, x):
        return Choice("channel", f"eps is below {100 * LARGE_EPS:g} % of the range of the data")
    if not piecewise_linear(backend, x):
        return Choice("channel", "the network is not piecewise linear")
    agreement = first_order_agreement(backend, x, eps)
    if agreement >= AGREEMENT:
        return Choice("channel", f"the gradient of the margin hardly turns within the ball (cosine {agreement:.2f})")
    return Choice(
        "interval",
        f"the network is piecewise linear, eps {100 * LARGE_EPS:g} % of the range of the data or more, and the gradient of the "
        f"margin turns within the ball (cosine {agreement:.2f})",
    )


def first_order_agreement(backend: Backend, x: Array, eps: float) -> float:
    """How far the first order holds in the ball: mean cosine of the margin's gradients at two random points of each ball.

    Args:
        x: some points of the data, (n, ...), float32, raw units.
        eps: Linf radius, in the units of x.
    Returns:
        In [-1, 1]; 0 where the network has no gradients.
    """
    rng, clip = np.random.default_rng(0), backend.estimator.clip_values
    best, second = np.argsort(-backend.logits(x), axis=1)[:, :2].T
    rows = np.arange(len(x))
    v = np.zeros((len(x), backend.estimator.nb_classes), np.float32)
    v[rows, best], v[rows, second] = 1.0, -1.0

    def gradient() -> Array:
        point = x + np.float32(eps) * unit_ball(rng, x.shape, math.inf)
        inside = point if clip is None else np.clip(point, *clip).astype(np.float32)
        flat: Array = backend.input_gradient(inside, v).reshape(len(x), -1).astype(np.float64)
        unit: Array = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
        return unit

    return float(np.mean(np.sum(gradient() * gradient(), axis=1)))


def overflowing_layer(backend: Backend, x: Array, eps: float, norm: float = math.inf) -> str | None:
    """The first layer whose bounds leave float32 before training has narrowed anything, at the beginning of the ramp.

    Widths grow by a factor with each layer of a network that nobody prepared. Where float32 ends on the way, the information is
    infinite and its gradient is not a number: ResNet-50 overflows after some forty of its layers even at a radius of 1e-8.

    Args:
        x: some points of the data, (n, ...), float32, raw units; one is looked at.
        eps: radius of the retraining, in the units of x.
        norm: of its ball, infinity or 2.
    Returns:
        The layer's name; None where all bounds are finite.
    Raises:
        NoIntervalRuleError: an operation has no rule.
    """
    for name, box in backend.intervals(x[:1], _BEGINNING * eps, norm=norm).items():
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
    """Replace each ReLU of a trained network by SiLU, in place; the weights stay.

    The predictions change, so a retraining must follow. EntropicTrainer then chooses `channel`, which looks at gradients: they
    say more about a smooth network. It is for small radii (at MNIST 0.3 it collapses) and gives no certificates. A file of
    weights does not record the change: call this function again before you load the weights into a network with ReLU.

    Args:
        classifier: ART PyTorchClassifier (modules nn.ReLU are replaced), TensorFlowV2Classifier or KerasClassifier (the
            argument `activation` of layers and keras.layers.Activation). Calls such as `torch.relu` in a forward method stay
            as they are, and functions that you compiled around the network keep the old activation.
    Returns:
        Names of the layers that were changed.
    Raises:
        TypeError: `classifier` is not a supported estimator.
        ValueError: there is no ReLU that can be replaced, or there is a keras.layers.ReLU, which cannot; the classifier is
            unchanged.
    """
    changed = backend_for(classifier).replace_activations("relu", "silu")
    if not changed:
        raise ValueError(
            "`classifier` must have layers with ReLU that can be replaced, got none; if its forward method calls ReLU itself, "
            "change it there"
        )
    return changed


def to_logits(classifier: Any) -> Any:
    """Remove the final softmax of a classifier, in place: retraining, attacks and bounds work on logits.

    The predicted classes stay the same. A loss that takes probabilities is replaced by the same loss of logits.

    Args:
        classifier: ART PyTorchClassifier whose network ends in a module nn.Softmax or nn.LogSoftmax, TensorFlowV2Classifier or
            KerasClassifier whose model ends in the activation softmax.
    Returns:
        The classifier, the same object.
    Raises:
        TypeError: `classifier` is not a supported estimator.
        ValueError: the network does not end in a softmax that can be removed; the classifier is unchanged.
    """
    backend_for(classifier).remove_softmax()
    return classifier
