"""What a network may be refused for, and the comparison that refuses it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from art_entropic.extras import MissingPackageError
from art_entropic.ops import Array


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
    """The computed bounds do not hold for the network that predicts."""

    def __init__(self, layer: str, reason: str) -> None:
        NotImplementedError.__init__(
            self,
            f"the bounds of layer {layer!r} do not hold for this network: {reason}; no certificate can be given. "
            'Use `measure="channel"`, which needs no bounds',
        )
        self.layer = layer
        self.operation = reason

    @property
    def reason(self) -> str:
        return f"the bounds of layer {self.layer!r} do not hold for this network: {self.operation}"


class OutputError(TypeError):
    """A network does not return one tensor of logits."""


# Of two ways to compute the same logits, relative to the largest one of the batch. Where the rules are right they agree to the
# last digits, compiled and fused kernels to about 1e-6.
SAME_LOGITS = 1e-4
NOT_DIFFERENTIABLE = (
    "`classifier` must be differentiable in its input, got logits whose gradient does not reach the input: an embedding of "
    "indices or an operation on integers may block it"
)
# Behind the name of a softmax, which has no rule wherever it stands.
FINAL_SOFTMAX = "bounds need logits; art_entropic.to_logits(classifier) removes a final softmax"


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
            f"the pass that computes bounds and the network itself give different logits (they differ by {difference:.3g}, the "
            f"largest is {scale:.3g}); a network that draws random numbers or changes tensors in place can cause this",
        )


class MissingFrameworkError(MissingPackageError):
    """A framework is not installed; the message is one line with the command that installs it."""
