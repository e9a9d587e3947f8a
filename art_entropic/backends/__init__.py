"""The seam between the science and the frameworks.

`Ops` is the handful of differentiable operations that the formulas need; `Backend` is one ART estimator seen through the
same glasses whatever its framework; `View` is a network inside one differentiable step. Only the modules of this package name
a framework, and they are imported when an estimator of that framework turns up.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from art_entropic._validate import file_path, file_to_write
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
    def constant(self, values: Sequence[float], like: Tensor) -> Tensor: ...  # (m,), of the precision and on the device of like
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
    weight: Tensor = None  # (n,), of each example in the cross-entropy; None weighs all alike


class OwnLoss(NamedTuple):
    """What the estimator's own loss asks of the cross-entropy of a retraining."""

    class_weights: tuple[float, ...] | None = None  # one for each class, as `torch.nn.CrossEntropyLoss(weight=...)` has them
    label_smoothing: float = 0.0  # share of each label that is spread over all classes, in [0, 1)
    remarks: tuple[str, ...] = ()  # what cannot be honoured, a sentence each


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

    def penalty(self) -> Tensor | None:
        """The network's own regularisation losses after the passes of a training step, a scalar; None where it has none."""


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

    def own_loss(self) -> OwnLoss:
        """What the estimator's own loss asks of the cross-entropy of a retraining."""
        ...

    def logits(self, x: Array, batch_size: int = 256) -> Array:
        """Raw model outputs at x in inference mode, (n, nb_classes), float32; postprocessing is not applied.

        Raises:
            OutputError: the network returns something else than one tensor.
        """

    def predict(self, x: Array) -> Array:
        """What `estimator.predict` says at x; modes, gradients and random generators are as before."""

    def both_logits(self, x: Array, eps: float, *, training: bool) -> tuple[Array, Array]:
        """Logits at x of the ordinary pass and of the joint pass in one mode, with the same random numbers.

        Weights, buffers, modes and generators are as before.

        Raises:
            NoIntervalRuleError: an operation has no rule in this mode.
        """

    def layer_names(self) -> tuple[str, ...]:
        """Names of the measured layers (pre-activations, logits last), as `intervals` and `activations` use them."""

    def curved_operation(self, x: Array) -> str | None:
        """The first operation that is neither linear nor made of straight pieces, on the way from x to the logits, by name.

        Raises:
            NoIntervalRuleError: an operation has no rule, so that nobody can tell.
        """

    def activations(self, x: Array, batch_size: int = 256) -> dict[str, Array]:
        """Values of the measured layers at x in inference mode."""

    def intervals(self, x: Array, eps: float, batch_size: int = 256) -> dict[str, Interval]:
        """Bounds of the measured layers over the ball, in inference mode.

        Raises:
            NoIntervalRuleError: an operation has no rule.
            BoundsMismatchError: the pass that carries bounds gives other logits than the network itself.
        """

    def logit_bounds(self, x: Array, eps: float, batch_size: int = 256) -> Interval:
        """The last of `intervals`, without holding those of the other layers for all points."""
        ...

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

    def remove_softmax(self) -> str:
        """Take the final softmax or log-softmax away, in place, and give the estimator the loss that takes logits.

        Returns:
            Name of the layer that was changed.
        Raises:
            ValueError: there is none that could be taken away; nothing has been changed then.
        """
        ...

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

    def dry_step(
        self, objective: Objective, batch: Batch, controls: Controls, *, mixed_precision: bool = False
    ) -> dict[str, float]:
        """The terms of one training step and "gradient_norm", in training mode; no weight is changed.

        Buffers, modes, gradients and random generators are as before, whether the step works or raises.
        """
        ...

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

    def check_scheduler(self, scheduler: Any, *, validates: bool) -> None:
        """Refuse what is neither None, nor a callable epoch -> learning rate, nor a scheduler of the framework's own.

        Raises:
            TypeError: something else.
            ValueError: it is of another optimizer, or follows a validation loss that there will not be.
        """

    def step_scheduler(self, scheduler: Any, loss: float | None) -> None:
        """Advance a framework's own scheduler object, one that is not callable, at the end of an epoch.

        Args:
            loss: on the validation data, where there are any.
        """

    def scheduler_state(self, scheduler: Any) -> dict[str, Any]:
        """All that such an object remembers."""
        ...

    def load_scheduler_state(self, scheduler: Any, state: Mapping[str, Any]) -> None: ...

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
        self._hint = hint

    @property
    def reason(self) -> str:
        """What is missing, without what to do about it."""
        missing = f"no interval rule for {self.operation} in layer {self.layer!r}"
        return f"{missing} ({self._hint})" if self._hint else missing


class BoundsMismatchError(NoIntervalRuleError):
    """The bounds at hand are those of another network than the one that predicts."""

    def __init__(self, layer: str, reason: str) -> None:
        NotImplementedError.__init__(
            self,
            f"the bounds of layer {layer!r} are not those of this network: {reason}; no certificate can be given. "
            'Use `measure="channel"`, which needs no bounds',
        )
        self.layer = layer
        self.operation = reason

    @property
    def reason(self) -> str:
        return f"the bounds of layer {self.layer!r} are not those of this network: {self.operation}"


class OutputError(TypeError):
    """A network returns something else than one tensor of logits."""


# Of two ways to compute the same logits, relative to the largest one of the batch. Where the rules are right they agree to the
# last digits, compiled and fused kernels to about 1e-6.
SAME_LOGITS = 1e-4

# Behind the name of a softmax, which has no rule wherever it stands.
FINAL_SOFTMAX = "bounds need logits: art_entropic.to_logits(classifier) takes a final softmax away"


def concatenated(parts: Sequence[Interval]) -> Interval:
    """The boxes of batches as those of all points."""
    return Interval(np.concatenate([part.lower for part in parts]), np.concatenate([part.upper for part in parts]))


def check_joint_pass(plain: Array, joint: Array, layer: Callable[[], str]) -> None:
    """Refuse bounds whose pass gives other logits than the network itself.

    Args:
        plain, joint: logits of the ordinary pass and of the pass that carries bounds, (n, nb_classes).
        layer: finds the first layer that differs, for the message; asked only where they do.
    Raises:
        BoundsMismatchError: they differ by more than rounding.
    """
    scale = float(np.max(np.abs(plain), initial=0.0))
    difference = float(np.max(np.abs(plain - joint), initial=0.0)) if plain.shape == joint.shape else float("inf")
    if not difference <= SAME_LOGITS * scale:
        raise BoundsMismatchError(
            layer(),
            f"the pass that carries bounds gives other logits than the network (they differ by {difference:.3g}, the largest "
            f"is {scale:.3g}), as it happens where a network draws random numbers or works in place behind the rules' back",
        )


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


def save_weights(classifier: Any, path: str | os.PathLike[str]) -> Path:
    """Write the weights of an ART classifier in the framework's own format, which loads without running code.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier.
        path: a file that ends in ".pt" (PyTorch) or ".weights.h5" (Keras), in a folder that is there.
    Returns:
        The file.
    Raises:
        TypeError: not an estimator of a supported kind, or `path` is no path.
        ValueError: `path` ends otherwise, or is not in a folder that is there.
    """
    backend, file = backend_for(classifier), file_to_write("path", path)
    if not file.name.endswith(backend.weights_suffix):
        raise ValueError(f"`path` must end in {backend.weights_suffix!r} for a {type(classifier).__name__}, got {path!r}")
    backend.save_weights(file)
    return file


def load_weights(classifier: Any, path: str | os.PathLike[str]) -> Any:
    """Give an ART classifier weights that `save_weights` or `art-entropic train` has written, in place.

    Args:
        classifier: of the network that they were saved from; compiled or not, on whichever device.
    Returns:
        The classifier.
    Raises:
        TypeError: not an estimator of a supported kind, or `path` is no path.
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold the weights of this network; nothing has been changed then.
    """
    backend, file = backend_for(classifier), file_path("path", path)
    if not file.is_file():
        raise FileNotFoundError(f"`path` must be a file of weights, got {path!r}, which is none")
    before = backend.state()
    try:
        backend.load_weights(file)
    except Exception as error:
        backend.load_state(before)
        reason = " ".join(str(error).split())
        raise ValueError(f"`path` must hold the weights of this network, got {path!r}: {reason}") from error
    return classifier


__all__ = [
    "FRAMEWORKS",
    "Activations",
    "Array",
    "Ascent",
    "AttackObjective",
    "Backend",
    "Batch",
    "BoundsMismatchError",
    "Controls",
    "Framework",
    "Interval",
    "LayerActivation",
    "LayerInterval",
    "MissingFrameworkError",
    "NoIntervalRuleError",
    "Objective",
    "Ops",
    "OutputError",
    "OwnLoss",
    "Propagation",
    "Sequence",
    "Step",
    "Tensor",
    "View",
    "backend_for",
    "check_joint_pass",
    "framework_module",
    "framework_of",
    "installed_frameworks",
    "load_weights",
    "move_to",
    "resolve_device",
    "save_weights",
]  # fmt: skip
