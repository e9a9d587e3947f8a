"""The seam between the science and the frameworks.

`Backend` is one ART estimator seen through the same glasses whatever its framework, `View` is a network inside one
differentiable step, and `Framework` is what there is besides estimators. Only the modules of this wing name a framework, and
they are imported when an estimator of it turns up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from art_entropic.backends.architecture import Activation, Architecture, Shape
from art_entropic.linear_bounds import Plane
from art_entropic.ops import Array, Box, Ops, Tensor


class LayerInterval(NamedTuple):
    """The box around one layer's pre-activations."""

    name: str
    box: Box
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
    box: Box  # around the logits, (n, nb_classes)
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
    """What one step sees. Random numbers come from outside, so that every framework sees the same ones; None is not drawn."""

    x: Tensor  # (n, ...), raw units
    y: Tensor  # (n, nb_classes), one-hot
    ball_noise: Tensor = None  # (n, ...), uniform in the ball |d|_norm <= 1: for Linf on [-1, 1]
    class_noise: Tensor = None  # (n,), uniform on [0, 1)
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


# Of weights v (n, nb_classes) a number (n,) and a gradient (n, ...) of raw x: sum(v * logits) is at least number + gradient . d
# wherever d moves x within the ball. Both are differentiable, in the weights of the network too; v is taken as constant.
LinearBound = Callable[[Tensor], tuple[Tensor, Tensor]]


class View(Protocol):
    """The network inside one differentiable step: raw inputs in, logits out, preprocessing included."""

    @property
    def ops(self) -> Ops: ...

    def logits(self, x: Tensor) -> Tensor:
        """Logits at x, (n, nb_classes), in the step's own mode (dropout and batch statistics active in training)."""

    def ball(self, x: Tensor, eps: Tensor) -> Box:
        """The ball |d|_inf <= eps around raw x, cut at clip_values; it holds the other balls of that radius."""

    def propagate(self, x: Tensor, eps: Tensor, norm: float = math.inf) -> Propagation:
        """The data and the ball |d|_norm <= eps, cut at clip_values, through the network in one pass and one mode.

        Dropout masks and batch statistics of the data are applied to the ball too.

        Args:
            norm: infinity or 2; of an L2 ball the first layer has its exact range in each unit, and all later ones intervals.
        """

    def relaxed(self, x: Tensor, eps: Tensor, norm: float = math.inf) -> tuple[Propagation, LinearBound]:
        """`propagate`, and backward linear bounds by lines on its boxes (`art_entropic.linear_bounds`)."""

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

    def linearised(self, x: Tensor, point: Tensor, direction: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at x as `logits` gives them, and `input_gradient` at a point beside it: logits, logits there, gradient there.

        Where the pass of x standardises by the statistics of its batch, batch norm at the point standardises by the same ones:
        both are one network, and the gradient is that of one example, which moves no statistics. The weights' gradients go
        through the statistics.
        """

    def penalty(self) -> Tensor | None:
        """The network's own regularisation losses after the passes of a training step, a scalar; None where it has none."""


# How nonlinearities are bounded: by their boxes, by lines on interval boxes, or by lines on boxes that linear bounds cut first.
Relaxation = Literal["boxes", "lines", "tightened"]


class Relaxed(Protocol):
    """One pass of some points whose backward pass gives linear bounds of any combination of the logits."""

    logits: Array  # (n, nb_classes), float64
    box: Box  # around the logits
    leading: frozenset[int]  # lengths of the first axes of what was relaxed: n alone where they tell the examples apart
    elements: int  # numbers that the pass holds
    work: Array  # (n,), multiplications that "tightened" would take

    def below(self, v: Array) -> Plane:
        """A linear bound of sum(v * logits), with v (n, nb_classes)."""
        ...


Objective = Callable[[View, Batch, Controls], Mapping[str, Tensor]]
Step = Callable[[Batch, Controls], dict[str, float]]
AttackObjective = Callable[[View, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


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

    def both_logits(self, x: Array, eps: float, *, training: bool, norm: float = math.inf) -> tuple[Array, Array]:
        """Logits at x of the ordinary pass and of the joint pass in one mode, with the same random numbers.

        Weights, buffers, modes and generators are as before.

        Raises:
            NoIntervalRuleError: an operation has no rule in this mode.
        """

    def layer_names(self) -> tuple[str, ...]:
        """Names of the measured layers (pre-activations, logits last), as `intervals` and `activations` use them."""

    def layer_labels(self, names: Sequence[str]) -> dict[str, str]:
        """What a reader calls each of the measured layers, given by name in their order; see `labels`."""
        ...

    def curved_operation(self, x: Array) -> str | None:
        """The first operation that is neither linear nor made of straight pieces, on the way from x to the logits, by name.

        Raises:
            NoIntervalRuleError: an operation has no rule, so that nobody can tell.
        """

    def activations(self, x: Array, batch_size: int = 256) -> dict[str, Array]:
        """Values of the measured layers at x in inference mode."""

    def intervals(self, x: Array, eps: float, batch_size: int = 256, norm: float = math.inf) -> dict[str, Box]:
        """Bounds of the measured layers over the ball of `View.propagate`, in inference mode.

        Raises:
            NoIntervalRuleError: an operation has no rule.
            BoundsMismatchError: the pass that carries bounds gives other logits than the network itself.
        """

    def logit_bounds(self, x: Array, eps: float, batch_size: int = 256, norm: float = math.inf) -> Box:
        """The last of `intervals`, without holding those of the other layers for all points."""
        ...

    def relaxed(self, x: Array, eps: float, norm: float, relaxation: Relaxation, copies: int = 1) -> Relaxed:
        """The points and the ball around them through the network in inference mode, ready for linear bounds.

        Args:
            copies: so many points, one behind the other, are the same one, and share the work of "tightened".
        Raises:
            NoIntervalRuleError: an operation has no rule.
            BoundsMismatchError: the pass that carries bounds gives other logits than the network itself.
        """
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

    def kept_generators(self) -> AbstractContextManager[None]:
        """Whatever draws random numbers inside, the training draws the same ones afterwards."""

    def hold(self, x: Array) -> Any:
        """`x` where batches are taken from it: on an accelerator once for all, where it fits, else as it came.

        What is returned has `shape` and `len`, and gives batches for arrays of indices; steps take them in place of arrays.
        """

    def training_step(self, objective: Objective) -> Step:
        """A step that descends on objective's ``loss`` with the estimator's own optimizer.

        The step leaves the weights alone and still returns the terms where the loss or a gradient is not finite.
        """

    def dry_step(self, objective: Objective, batch: Batch, controls: Controls) -> dict[str, float]:
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


class Framework(Protocol):
    """What there is of a framework besides its estimators. The module `framework` of each backend is one."""

    def estimator_backend(self, estimator: Any) -> Backend:
        """The backend of an ART estimator of this framework.

        Raises:
            TypeError: its network is of no supported kind.
            ValueError: it has preprocessing that has no rule.
        """
        ...

    def accelerators(self) -> tuple[str, ...]:
        """Names "cuda:i" of the GPUs that the framework sees."""
        ...

    def device_title(self, device: str | None) -> str:
        """What a record says of a device that `resolve_device` has named; None is the one that is taken by itself."""
        ...

    def build_classifier(
        self,
        architecture: Architecture,
        *,
        input_shape: Shape,
        nb_classes: int,
        clip_values: tuple[float, float],
        learning_rate: float,
        seed: int,
        device: str | None = None,
    ) -> Any:
        """An ART estimator (Adam, cross-entropy) of a network described as data.

        Args:
            input_shape: (height, width, channels), (time, bands) or (features,), whatever the framework's own order.
            seed: of the initial weights, which are the same numbers in every framework.
            device: "cpu" or "cuda:i"; None takes what ART and the framework take by themselves.
        Raises:
            ValueError: the framework cannot build there.
        """

    def state_of(self, architecture: Architecture, input_shape: Shape, arrays: Sequence[Array]) -> dict[str, Array]:
        """The `Backend.state` of `build_classifier`'s network from the arrays of the same network in Keras, in their order.

        Raises:
            ValueError: the arrays have other shapes than the network's, or there are more or fewer.
        """
        ...

    def untouched(self, estimator: Any, seed: int) -> AbstractContextManager[None]:
        """The network leaves as it came, as do the framework's generators, which are seeded inside."""
        ...

    def for_art_trainers(self, estimator: Any) -> Any:
        """A second ART estimator around the same network and optimizer, on which all of ART's trainers run as meant.

        Its `remarks` say what differs from ART's own way in a manner that a comparison should mention.
        """

    def before_each_step(self, twin: Any, act: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `act` before each optimizer step of an estimator of `for_art_trainers`, whichever trainer takes it."""
        ...

    @property
    def reference_attack(self) -> ReferenceAttack | None:
        """None where torchattacks does not know the framework."""
        ...


class ReferenceAttack(Protocol):
    """AutoAttack, standard version, as the independent package torchattacks has it, with ART's `generate`."""

    def __call__(self, estimator: Any, eps: float, norm: float, seed: int) -> Any:
        """The attack on an ART estimator whose raw inputs lie in [0, 1].

        Raises:
            ImportError: torchattacks is not installed.
        """
