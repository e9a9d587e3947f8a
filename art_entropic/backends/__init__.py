"""The seam between the science and the frameworks.

`Ops` is the handful of differentiable operations that the formulas need; `Backend` is one ART estimator seen through the
same glasses whatever its framework; `View` is a network inside one differentiable step. Only the modules of this package name
a framework, and they are imported when an estimator of that framework turns up.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from art_entropic.backends.architecture import Activation

Tensor = Any  # a tensor of whichever framework is in play: np.ndarray, torch.Tensor or tf.Tensor
Array = np.ndarray


class Ops(Protocol):
    """Differentiable operations over one framework's tensors. Operators (+ - * / < >= @) come with the tensors."""

    def abs(self, x: Tensor) -> Tensor: ...
    def log1p(self, x: Tensor) -> Tensor: ...
    def sqrt(self, x: Tensor) -> Tensor: ...
    def minimum(self, x: Tensor, y: Tensor) -> Tensor: ...
    def maximum(self, x: Tensor, y: Tensor) -> Tensor: ...
    def where(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor: ...
    def sum(self, x: Tensor, axis: int | None = None) -> Tensor: ...
    def mean(self, x: Tensor, axis: int | None = None) -> Tensor: ...
    def max(self, x: Tensor, axis: int) -> Tensor: ...
    def largest(self, x: Tensor, k: int) -> Tensor: ...  # the k largest of each row, in descending order
    def cumsum(self, x: Tensor, axis: int) -> Tensor: ...
    def one_hot(self, index: Tensor, depth: int) -> Tensor: ...  # index: whole numbers of any dtype
    def softmax(self, x: Tensor) -> Tensor: ...
    def log_softmax(self, x: Tensor) -> Tensor: ...
    def flatten(self, x: Tensor) -> Tensor: ...  # (n, ...) -> (n, m)
    def reshape_like(self, x: Tensor, like: Tensor) -> Tensor: ...
    def cast_like(self, x: Tensor, like: Tensor) -> Tensor: ...  # also booleans, to 0.0 and 1.0
    def concatenate(self, x: Tensor, y: Tensor) -> Tensor: ...  # along the first axis
    def parts(self, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The first rows, `share` of all in (0, 1), and the others, two rows or more each, so that both have batch statistics.

        Fewer than four rows are not divided: then both parts are all of them.
        """

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]: ...  # of the first axis, of even length
    def gram(self, x: Tensor, axis: int) -> Tensor: ...  # (n, m): x x^T / n (axis 0) or x^T x / n (axis 1), in float64
    def logdet1p(self, x: Tensor) -> Tensor: ...  # log det(I + x) of a Gram matrix; NaN, not an error, if x is not finite


def division(n: int, share: float) -> tuple[int, int]:
    """Where the first of the two parts of `Ops.parts` ends and the other one begins, for n rows of known number."""
    if n < 4:
        return n, 0
    place = min(max(round(share * n), 2), n - 2)
    return place, place


class Interval(NamedTuple):
    """An axis-aligned box around a tensor: lower <= value <= upper for every input of the ball."""

    lower: Tensor
    upper: Tensor


class LayerInterval(NamedTuple):
    """The box around one layer's pre-activations."""

    name: str
    box: Interval
    radius: Tensor | None = None  # half the width, where it is at hand: cheaper to differentiate than upper - lower

    @property
    def half_width(self) -> Tensor:
        """Half the range of each unit, >= 0."""
        return (self.box.upper - self.box.lower) * 0.5 if self.radius is None else self.radius

    @property
    def shape(self) -> Any:
        """(n, ...); where a framework does not know n yet, None stands for it."""
        return self.box.lower.shape


class Propagation(NamedTuple):
    """One joint pass of the data and of the ball around it."""

    logits: Tensor  # (n, nb_classes), at the data itself
    box: Interval  # around the logits, (n, nb_classes)
    layers: tuple[LayerInterval, ...]  # every pre-activation in the order of computation, the logits last


class LayerActivation(NamedTuple):
    """One layer's pre-activations at the data."""

    name: str
    value: Tensor  # (n, ...)

    @property
    def shape(self) -> Any:
        """(n, ...); where a framework does not know n yet, None stands for it."""
        return self.value.shape


class Activations(NamedTuple):
    """One ordinary pass of the data."""

    logits: Tensor  # (n, nb_classes)
    layers: tuple[LayerActivation, ...]  # those of `Propagation`: same names, same order, the logits last


class Batch(NamedTuple):
    """What one step sees. Random numbers come from outside, so that every framework sees the same ones."""

    x: Tensor  # (n, ...), raw units
    y: Tensor  # (n, nb_classes), one-hot
    ball_noise: Tensor  # (n, ...), uniform on [-1, 1]
    class_noise: Tensor  # (n,), uniform on [0, 1)


class Controls(NamedTuple):
    """The scheduled scalars of equation (2)."""

    eps: Tensor
    k: Tensor
    beta: Tensor


class View(Protocol):
    """The network inside one differentiable step: raw inputs in, logits out, preprocessing included."""

    @property
    def ops(self) -> Ops: ...

    def logits(self, x: Tensor) -> Tensor:
        """Logits at x, (n, nb_classes), in the step's own mode (dropout and batch statistics active in training)."""

    def ball(self, x: Tensor, eps: Tensor) -> Interval:
        """The ball |d|_inf <= eps around raw x, cut at clip_values."""

    def propagate(self, x: Tensor, eps: Tensor) -> Propagation:
        """The data and the ball |d|_inf <= eps, cut at clip_values, through the network in one pass and one mode.

        Dropout masks and batch statistics of the data are applied to the ball too.
        """

    def activations(self, x: Tensor) -> Activations:
        """Logits and the measured layers at x in one ordinary pass in the step's own mode, differentiable.

        Raises:
            NoIntervalRuleError: the backend cannot look inside the network.
        """

    def input_gradient(self, x: Tensor, direction: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits z(x) and the gradient of sum(direction(z) * z) with respect to raw x, itself differentiable.

        Taken in inference mode (running statistics, no dropout): it is the deployed network that an adversary sees.
        `direction` maps logits (n, nb_classes) to weights of the same shape; no gradient flows through it.
        """


Objective = Callable[[View, Batch, Controls], Mapping[str, Tensor]]
"""Maps a step to its named scalar terms; the one called ``loss`` is minimised."""

Step = Callable[[Batch, Controls], dict[str, float]]
"""Takes NumPy arrays, or what `Backend.hold` gave out, and floats; returns the value of each term."""

AttackObjective = Callable[[View, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps raw inputs (n, ...), one-hot labels and whatever else the attack knows of each point, (n, m), to the logits
(n, nb_classes) and to what the attack climbs, (n,)."""


class Ascent(NamedTuple):
    """What an attack learns from one query."""

    logits: Array  # (n, nb_classes)
    values: Array  # (n,), of the objective
    gradient: Array  # (n, ...), of the sum of the values with respect to raw x


class Backend(Protocol):
    """One ART estimator. Everything outside `training_step` takes and returns NumPy arrays."""

    framework: str
    ops: Ops

    @property
    def estimator(self) -> Any: ...

    def place(self, device: str) -> None:
        """Put the estimator and all that trains it on a device that `resolve_device` has named, in place.

        Raises:
            ValueError: the framework cannot move what has been built.
        """

    def check_trainable(self) -> None:
        """Raise ValueError where the estimator lacks an optimizer or a loss, or has preprocessing that has no rule."""

    def logits(self, x: Array, batch_size: int = 256) -> Array:
        """Raw model outputs at x in inference mode, (n, nb_classes); postprocessing is not applied."""

    def layer_names(self) -> tuple[str, ...]:
        """Names of the measured layers (pre-activations, logits last), as `intervals` and `activations` use them."""

    def activations(self, x: Array, batch_size: int = 256) -> dict[str, Array]:
        """Values of the measured layers at x in inference mode."""

    def intervals(self, x: Array, eps: float, batch_size: int = 256) -> dict[str, Interval]:
        """Bounds of the measured layers over the ball, in inference mode.

        Raises:
            NoIntervalRuleError: an operation has no rule.
        """

    def input_gradient(self, x: Array, v: Array, batch_size: int = 256) -> Array:
        """Gradient of sum(v * logits(x)) with respect to raw x, in inference mode."""

    def ascent(self, objective: AttackObjective, nb_classes: int) -> Callable[[Array, Array, Array], Ascent]:
        """What an attack that climbs `objective` asks at (x, y, more): one pass forward and one back, in inference mode."""

    @property
    def is_accelerated(self) -> bool:
        """Whether the network runs on an accelerator, which wants large batches, and not on the processor's cores."""
        ...

    def replace_activations(self, there: Activation, then: Activation) -> tuple[str, ...]:
        """Give every layer that applies one activation another one, in place.

        Returns:
            Names of the layers that were changed; those that apply it in code of their own are not found.
        Raises:
            ValueError: a layer applies it and cannot be given another one; nothing has been changed then.
        """

    def training(self, seed: int | None) -> AbstractContextManager[None]:
        """Training mode and seeded framework randomness inside; on leaving, mode, gradients and generators are as before."""

    def hold(self, x: Array) -> Any:
        """`x` where batches are taken from it: on an accelerator once for all, where it fits, else as it came.

        What is returned has `shape` and `len`, and gives batches for arrays of indices; steps take them in place of arrays.
        """

    def check_step(self, *, compile: bool = False, mixed_precision: bool = False) -> None:
        """Raise ValueError where `training_step` cannot have what is asked for."""

    def training_step(self, objective: Objective, *, compile: bool = False, mixed_precision: bool = False) -> Step:
        """A step that descends on objective's ``loss`` with the estimator's own optimizer.

        The step leaves the weights alone and still returns the terms where the loss or a gradient is not finite.

        Args:
            compile: loss and gradients become machine code in the first step, which raises ValueError where that cannot be.
            mixed_precision: `View.logits` computes in bfloat16 where that is safe, and returns float32. Bounds and input
                gradients are always computed in the network's own precision.
        """

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether an error of a step says that memory, of the device or of the machine, was too small."""

    def measuring_step(self, objective: Objective) -> Step:
        """The same terms in inference mode, without a change of the weights."""

    def state(self) -> dict[str, Array]:
        """Copies of all weights and buffers."""

    def load_state(self, state: Mapping[str, Array]) -> None: ...

    def optimizer_state(self) -> dict[str, Array]:
        """Copies of the optimizer's own state, and of the framework's generators, so that training can resume exactly."""

    def load_optimizer_state(self, state: Mapping[str, Array]) -> None: ...

    @property
    def rate_is_settable(self) -> bool:
        """False where the optimizer follows a schedule of its own."""
        ...

    @property
    def learning_rate(self) -> float: ...

    @learning_rate.setter
    def learning_rate(self, value: float) -> None: ...

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """One for each parameter group of the optimizer; `learning_rate` is the first, and setting it sets all."""
        ...

    @learning_rates.setter
    def learning_rates(self, values: tuple[float, ...]) -> None: ...

    def check_scheduler(self, scheduler: Any) -> None:
        """TypeError where `scheduler` is neither None, nor a callable epoch -> learning rate, nor the framework's own."""

    def step_scheduler(self, scheduler: Any, epoch: int) -> None:
        """Advance a framework's own scheduler object, one that is not callable, at the end of an epoch."""

    weights_suffix: str

    def save_weights(self, path: Path) -> None:
        """Write the weights in the framework's own format that loads without running code."""

    def load_weights(self, path: Path) -> None: ...


class NoIntervalRuleError(NotImplementedError):
    """An operation of the network has no interval rule; the message names layer, class and the measures that would serve."""

    def __init__(self, layer: str, operation: str, hint: str = "") -> None:
        super().__init__(
            f"no interval rule for {operation} in layer {layer!r}{': ' + hint if hint else ''}; "
            'use `measure="channel"`, which works on any differentiable network'
        )
        self.layer = layer
        self.operation = operation


class MissingFrameworkError(ImportError):
    """A framework is not installed; the message is one line with the command that installs it."""


@dataclass(frozen=True)
class Framework:
    """One row of FRAMEWORKS."""

    title: str
    package: str  # the distribution's import name
    module: str  # the backend's module
    estimators: tuple[str, ...]  # ART classes, by name, looked for along an estimator's MRO
    channels_first: bool
    companions: tuple[str, ...] = ()  # further distributions that its numbers depend on


FRAMEWORKS: dict[str, Framework] = {
    "pytorch": Framework("PyTorch", "torch", "art_entropic.backends.torch", ("PyTorchClassifier",), True),
    "tensorflow": Framework(
        "TensorFlow",
        "tensorflow",
        "art_entropic.backends.tensorflow",
        ("TensorFlowV2Classifier", "KerasClassifier"),
        False,
        ("keras",),
    ),
}


def installed_frameworks() -> tuple[str, ...]:
    """Names of the frameworks that can be imported here; nothing is imported."""
    return tuple(name for name, row in FRAMEWORKS.items() if importlib.util.find_spec(row.package) is not None)


def framework_module(name: str) -> Any:
    """The backend module of a framework.

    Raises:
        MissingFrameworkError: the framework is not installed.
    """
    row = FRAMEWORKS[name]
    if row.package not in sys.modules and importlib.util.find_spec(row.package) is None:
        extra = row.package if row.package != "torch" else "torch"
        raise MissingFrameworkError(f"{row.title} is not installed: pip install 'art-entropic[{extra}]'")
    return importlib.import_module(row.module)


def framework_of(estimator: Any) -> str:
    """Name of the framework of an ART estimator.

    Raises:
        TypeError: not an estimator of a supported kind.
    """
    names = {base.__name__ for base in type(estimator).__mro__ if base.__module__.partition(".")[0] == "art"}
    for framework, row in FRAMEWORKS.items():
        if names.intersection(row.estimators):
            return framework
    wanted = ", ".join(kind for row in FRAMEWORKS.values() for kind in row.estimators)
    raise TypeError(f"`classifier` must be an ART estimator of kind {wanted}, got {type(estimator).__name__}")


def backend_for(estimator: Any) -> Backend:
    """The backend of an ART estimator.

    Raises:
        TypeError: not an estimator of a supported kind.
    """
    backend: Backend = framework_module(framework_of(estimator)).estimator_backend(estimator)
    return backend


def resolve_device(framework: str, device: str) -> str:
    """The device that a word stands for on this machine.

    Args:
        device: "auto" (the first GPU where there is one, else the processor), "cpu", "cuda" (the first GPU) or "cuda:i".
    Returns:
        "cpu" or "cuda:i".
    Raises:
        ValueError: another word, or a GPU that the framework does not see here; the message lists those that it sees.
        MissingFrameworkError: the framework is not installed.
    """
    here = framework_module(framework).accelerators()
    if device == "auto":
        return here[0] if here else "cpu"
    name = "cuda:0" if device == "cuda" else device
    if name != "cpu" and name not in here:
        gpus = ", ".join(here) or "none"
        raise ValueError(f"`device` must be 'auto', 'cpu' or 'cuda[:i]' with a GPU that is here ({gpus}), got {device!r}")
    return name


def move_to(classifier: Any, device: str) -> Any:
    """Put an ART classifier on a device, in place: its network, the state of its optimizer, its preprocessing.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier.
        device: "auto" (the first GPU where there is one, else the processor), "cpu", "cuda" (the first GPU) or "cuda:i". On
            TensorFlow "cuda:i" is its GPU:i.
    Returns:
        The classifier.
    Raises:
        TypeError: not an estimator of a supported kind.
        ValueError: the device is unknown or not here, or a Keras model is elsewhere: it stays where it was built.
    """
    framework = framework_of(classifier)
    name = resolve_device(framework, device)
    backend_for(classifier).place(name)
    return classifier


__all__ = [
    "FRAMEWORKS",
    "Activations",
    "Array",
    "Ascent",
    "AttackObjective",
    "Backend",
    "Batch",
    "Controls",
    "Framework",
    "Interval",
    "LayerActivation",
    "LayerInterval",
    "MissingFrameworkError",
    "NoIntervalRuleError",
    "Objective",
    "Ops",
    "Propagation",
    "Sequence",
    "Step",
    "Tensor",
    "View",
    "backend_for",
    "framework_module",
    "framework_of",
    "installed_frameworks",
    "move_to",
    "resolve_device",
]  # fmt: skip
