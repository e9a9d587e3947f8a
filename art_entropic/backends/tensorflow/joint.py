"""TensorFlow: a tensor with a box around it, and one operation of the graph called on such tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

import keras
import numpy as np
import tensorflow as tf

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.ops import Box

# In which boxes can be computed.
PRECISIONS = ("float32", "float64")


@dataclass(frozen=True, eq=False)
class Joint:
    """One tensor of the network: at the data, and a box around it where bounds are wanted."""

    value: tf.Tensor
    box: Box | None
    source: str  # name of the operation that computed it
    batch_axis: int | None = 0  # which tells the points of a batch apart, None where nobody knows
    # r, of the tensor's shape, where the tensor is its value + r d for a d with |d|_2 <= 1: an L2 ball of inputs of which each
    # feature was at most moved, shifted and scaled.
    spread: tf.Tensor | None = None


def box_of(x: Joint) -> Box:
    if x.box is None:
        raise TypeError(f"the tensor of {x.source!r} has no bounds")
    return x.box


def lower_of(x: Joint) -> tf.Tensor:
    return box_of(x).lower


def upper_of(x: Joint) -> tf.Tensor:
    return box_of(x).upper


def in_precision(box: Box, like: tf.Tensor) -> Box:
    return Box(*(tf.cast(end, like.dtype) for end in box))


class Moments(NamedTuple):
    """Mean and variance of each channel over a batch."""

    mean: tf.Tensor
    variance: tf.Tensor


class Pass(Protocol):
    """What a rule asks of the pass through the model that it is part of."""

    @property
    def training(self) -> bool: ...

    @property
    def relu(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """How to compute the plain ReLU."""

    def run(self, operation: str, operands: int) -> None:
        """Note that an operation runs, and how many of its arguments depend on the input."""

    def standardised(self, result: tf.Tensor, x: tf.Tensor, gain: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """`result`, which is x * gain + shift, where both were taken from the batch."""

    def keep_statistics(self, layer: Any, statistics: Moments) -> None:
        """Note by what a batch norm standardises the batch, for a pass that is to do so too."""

    def given_statistics(self, layer: Any) -> Moments | None:
        """By what a batch norm is to standardise instead of by its own, None where nothing was given."""

    def enter(self, x: Joint) -> None:
        """Remember a tensor that enters a nonlinearity."""

    def activated(self, call: Call, f: Callable[[tf.Tensor], tf.Tensor], x: Joint, bound: Callable[[Joint], Joint]) -> Joint:
        """What an element-wise nonlinearity f makes of x; `bound` is its rule."""

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation with its arguments, `Joint` where they depend on the input."""


class Call:
    """One operation of the graph with its arguments, `Joint` where the graph has a tensor."""

    def __init__(self, walk: Pass, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.walk, self.operation = walk, operation
        self._arguments = (args, kwargs)
        self.leaves = keras.tree.flatten(self._arguments)
        self.joints = [leaf for leaf in self.leaves if isinstance(leaf, Joint)]
        self.bounded = any(x.box is not None for x in self.joints)
        self.name: str = operation.name

    @property
    def only(self) -> Joint:
        if len(self.joints) != 1:
            self.refuse(f"{len(self.joints)} of its arguments depend on the input, the rule allows one")
        return self.joints[0]

    @property
    def first(self) -> Any:
        """The first argument, with its structure."""
        args, kwargs = self._arguments
        return args[0] if args else next(iter(kwargs.values()))

    def option(self, name: str) -> Any:
        """A keyword of this one call."""
        return self._arguments[1].get(name)

    def setting(self, name: str) -> float | None:
        """A number that the operation was made with."""
        value = getattr(self.operation, name)
        if value is not None and (np.ndim(value) or not np.isfinite(value)):
            self.refuse(f"{name}={value!r} is not a finite number")
        return None if value is None else float(value)

    def refuse(self, hint: str) -> NoReturn:
        raise NoIntervalRuleError(self.name, type(self.operation).__name__, hint)

    def on(self, tensors: Sequence[tf.Tensor], **options: Any) -> Any:
        """The operation itself with these tensors in the places of the joints."""
        tensor = iter(tensors)
        leaves = [next(tensor) if isinstance(leaf, Joint) else leaf for leaf in self.leaves]
        args, kwargs = keras.tree.pack_sequence_as(self._arguments, leaves)
        return self.operation(*args, **{**kwargs, **options})

    def one(self, x: tf.Tensor) -> tf.Tensor:
        """The operation itself on one tensor."""
        return self.on([x])

    def plain(self) -> Any:
        """The operation on the values alone."""
        # A layer whose own call takes no mode still hands it on to the layers inside it.
        mode = {"training": self.walk.training} if isinstance(self.operation, keras.Layer) else {}
        value = self.on([x.value for x in self.joints], **mode)
        return keras.tree.map_structure(lambda v: Joint(v, None, self.name), value)

    def through(self, value: Callable[[tf.Tensor], tf.Tensor], box: Callable[[Box], Box]) -> Joint:
        """The only joint sent through a map of the value and a map of the box."""
        x = self.only
        result = value(x.value)
        return Joint(result, None if x.box is None else in_precision(box(x.box), result), self.name)


Rule = Callable[[Call], Any]
