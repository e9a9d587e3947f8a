"""Schedules of a retraining: eps, the weights of the loss, and the learning rate."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta, Struct

from art_entropic.backends.protocol import Backend, Controls
from art_entropic.fields import fields_described, settle

_ShareOfRetraining = Annotated[float, Meta(ge=0, le=1, extra={"wish": "a share of the retraining in [0, 1]"})]


@fields_described
class Schedule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, repr_omit_defaults=True):
    """Lengths of the phases of a retraining, as shares of all its epochs."""

    warmup: Annotated[_ShareOfRetraining, Meta(description="share before the ramp, with the natural cross-entropy alone")] = 0.0
    ramp: Annotated[
        _ShareOfRetraining | None,
        Meta(description="share over which eps, k and beta grow to their full values; None takes the measure's default"),
    ] = None
    decay: Annotated[
        _ShareOfRetraining | None,
        Meta(
            description="share at the end over which the learning rate falls linearly to 0; None takes half of the retraining, "
            "or 0 if `fit` is given a scheduler or the optimizer has a learning rate schedule"
        ),
    ] = None

    def __post_init__(self) -> None:
        settle(self)


class ControlSchedule(NamedTuple):
    """Schedule of eps, k and beta over a retraining.

    All three are 0 for the share `warmup`. Then, over the first part of the ramp, the loss has its pure form: eps grows to its
    full value and beta to `pure_beta`, while k stays 0. Over the rest of the ramp k grows to its full value and beta moves to
    its own. Without a pure phase all three grow together over the ramp. After the ramp all have their full values.

    Attributes:
        eps, k, beta: full values.
        warmup: share of the retraining that stays at 0, in [0, 1].
        ramp: share of the retraining after it until full strength, in [0, 1 - warmup].
        pure_phase: share of the retraining, at the beginning of the ramp, in the pure form, in [0, ramp].
        pure_beta: beta at the end of the pure phase.
    """

    eps: float
    k: float
    beta: float
    ramp: float
    warmup: float = 0.0
    pure_phase: float = 0.0
    pure_beta: float = 0.0

    def is_full(self, progress: float) -> bool:
        """Whether eps, k and beta have their full values at `progress` in [0, 1] of the retraining."""
        # The end of the ramp is reached up to rounding, so that an epoch that ends there counts as one at full strength.
        return progress >= self.warmup + self.ramp - 1e-9

    def at(self, progress: float) -> Controls:
        """Controls at `progress` in [0, 1] of the retraining."""
        if self.is_full(progress):
            return self.full()
        if self.pure_phase == 0.0:
            strength = _share(progress, self.warmup, self.ramp)
            return Controls(self.eps * strength, self.k * strength, self.beta * strength)
        first = _share(progress, self.warmup, self.pure_phase)
        second = _share(progress, self.warmup + self.pure_phase, self.ramp - self.pure_phase)
        beta = self.pure_beta * first + (self.beta - self.pure_beta) * second
        return Controls(self.eps * first, self.k * second, beta)

    def full(self) -> Controls:
        return Controls(self.eps, self.k, self.beta)


def _share(progress: float, start: float, length: float) -> float:
    """How much of a stretch of the retraining is over, in [0, 1]."""
    if length <= 0.0:
        return float(progress >= start)
    return min(1.0, max(0.0, (progress - start) / length))


DECAY = 0.5


@contextlib.contextmanager
def falling_rate(backend: Backend, decay: float, *, insists: bool = False) -> Iterator[Callable[[float], None]]:
    """Give a function that sets the learning rates for a progress in [0, 1]; restore the rates on leaving.

    With a decay of 0 the rates are not touched: the optimizer may have a learning rate schedule.

    Args:
        insists: set the rates also where somebody else has set them in between; else a warning says so, and they are let be.
    """
    if not decay:
        yield lambda progress: None
        return
    rates = backend.learning_rates
    set_last: tuple[float, ...] | None = None
    is_ours = True

    def set_rates(progress: float) -> None:
        nonlocal set_last, is_ours
        if not insists and is_ours and set_last is not None and not np.allclose(backend.learning_rates, set_last, 1e-5, 0.0):
            is_ours = False
            warnings.warn(
                f"the learning rate was set to {backend.learning_rates[0]:g} from outside, so the retraining lets it be from "
                "here on: give a schedule as `scheduler`",
                stacklevel=2,
            )
        if is_ours:
            factor = decayed(progress, decay)
            backend.learning_rates = set_last = tuple(rate * factor for rate in rates)

    try:
        yield set_rates
    finally:
        if is_ours:
            backend.learning_rates = rates


def decayed(progress: float, decay: float) -> float:
    """Factor of the learning rate at `progress` in [0, 1]: 1, then falling linearly to 0 over the last share `decay`.

    >>> [decayed(progress, 0.5) for progress in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return 1.0 if decay <= 0 or progress <= 1.0 - decay else max(0.0, (1.0 - progress) / decay)
