"""The measures of information as values: each has the hyperparameters that apply to it.

>>> Interval(beta=0.3, layers="dense", schedule=Schedule(ramp=0.2)).beta
0.3
>>> Coding(k=0.5)  # the average case has no worst-case logits, so there is no weight k for them
Traceback (most recent call last):
TypeError: Unexpected keyword argument 'k'
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

from art_entropic import information
from art_entropic._validate import choice
from art_entropic.backends.protocol import Batch, View
from art_entropic.fields import fields_described, settle
from art_entropic.information import LAYER_CHOICES, Layers, Reading
from art_entropic.ops import Tensor
from art_entropic.schedule import DECAY, ControlSchedule, Schedule

_Weight = Annotated[float, Meta(ge=0)]
_Beta = Annotated[_Weight, Meta(description="weight of the information, per nat")]
_WorstCaseWeight = Annotated[float, Meta(ge=0, le=1, description="weight of the worst-case cross-entropy; 0 is the pure form")]
_EpsFactor = Annotated[float, Meta(gt=0, description="factor: the retraining uses eps times this")]
_ReadShare = Annotated[
    float,
    Meta(
        gt=0,
        le=1,
        description="share of each batch on which the information and the worst case are computed; the cross-entropy always "
        "takes the whole batch. A smaller share is cheaper",
    ),
]
_ShareOfRamp = Annotated[
    float,
    Meta(
        ge=0,
        le=1,
        description="share of the ramp, at its beginning, in the pure form: eps grows to its full value and beta to "
        "`pure_beta`, while k stays 0. Over the rest of the ramp k grows and beta moves to its own value. With 0 all three "
        "grow together",
        extra={"wish": "a share of the ramp in [0, 1]"},
    ),
]
_PureBeta = Annotated[_Weight, Meta(description="beta at the end of the pure phase")]
_LAYERS_WISH = f"one of {', '.join(map(repr, LAYER_CHOICES))}, or a tuple of at least one layer's name"
_Layers = Annotated[
    Layers,
    Meta(
        description='layers in which the information is measured: "all", "dense" (one axis per example), "logits" (the last), '
        "or names of layers",
        extra={"wish": _LAYERS_WISH},
    ),
]


class Measure(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, repr_omit_defaults=True, tag_field="type"
):
    """A way to measure the information, with its hyperparameters of equation (2)."""

    title: ClassVar[str]
    passes: ClassVar[tuple[int, int]]  # forward and backward passes of a batch in one step that reads all of it
    pointwise: ClassVar[bool] = False  # each point is read by itself, so that an attack can climb it
    reads_noise: ClassVar[bool] = True  # of the batch, of either kind; where it does not, none is drawn
    default_ramp: ClassVar[float] = 0.5

    beta: _Beta
    resolution: Annotated[float, Meta(gt=0, description="tau, the width of the read-out noise")] = 1.0
    read_share: _ReadShare = 1.0
    schedule: Annotated[Schedule, Meta(description="how long each phase lasts", extra={"wish": "a Schedule"})] = Schedule()

    def __post_init__(self) -> None:
        settle(self)
        if self.schedule.warmup + self.ramp > 1.0:
            own = " (the measure's default)" if self.schedule.ramp is None else ""
            raise ValueError(f"`warmup` + `ramp` must not exceed 1, got {self.schedule.warmup!r} + {self.ramp!r}{own}")
        layers = self.layers_read
        if not layers or (isinstance(layers, str) and layers not in LAYER_CHOICES):
            raise ValueError(f"`layers` must be {_LAYERS_WISH}, got {layers!r}")

    @property
    def name(self) -> str:
        """Its name in MEASURES."""
        return str(self.__struct_config__.tag)

    @property
    def ramp(self) -> float:
        return self.default_ramp if self.schedule.ramp is None else self.schedule.ramp

    @property
    def decay(self) -> float:
        return DECAY if self.schedule.decay is None else self.schedule.decay

    @property
    def layers_read(self) -> Layers:
        """The layers in which the information is measured; "all" for a measure of the decision alone."""
        return "all"

    def read(self, view: View, batch: Batch, eps: Tensor, norm: float = math.inf) -> Reading:
        """Measure the information of a batch (n, ...) in nats per example, and the worst-case logits if the measure has them.

        Args:
            norm: norm of the ball, infinity or 2; the noise of the batch must have the same norm.
        """
        raise NotImplementedError

    def controls(self, eps: float) -> ControlSchedule:
        """Schedule of eps, k and beta over a retraining with this radius."""
        return ControlSchedule(eps=eps, k=0.0, beta=self.beta, warmup=self.schedule.warmup, ramp=self.ramp)

    def facts(self) -> dict[str, Any]:
        """The settings that a history records beside eps, k, beta and the schedule."""
        return {
            "measure": self.name,
            "resolution": self.resolution,
            "layers": self.layers_read,
            "relative": False,
            "read_share": self.read_share,
        }


class _WithPurePhase(Measure, frozen=True, kw_only=True):
    """Measures that know worst-case logits, whose weight may wait until the radius has grown."""

    pointwise: ClassVar[bool] = True

    k: _WorstCaseWeight = 0.5
    eps_factor: _EpsFactor = 1.0
    pure: _ShareOfRamp = 0.0
    pure_beta: _PureBeta = 0.0

    def controls(self, eps: float) -> ControlSchedule:
        plain = super().controls(self.eps_factor * eps)
        return plain._replace(k=self.k, pure_phase=self.pure * self.ramp, pure_beta=self.pure_beta)


@fields_described
class Interval(_WithPurePhase, frozen=True, kw_only=True, tag="interval"):
    """Measures the worst case over the ball, by interval propagation: equation (1).

    It gives certificates, needs a rule for every operation of the network, and works best with ReLU.
    """

    title: ClassVar[str] = "worst case, by interval propagation"
    passes: ClassVar[tuple[int, int]] = (3, 3)  # value, centre and radius
    reads_noise: ClassVar[bool] = False
    default_ramp: ClassVar[float] = 0.6

    beta: _Beta = 0.1
    layers: _Layers = "all"
    relative: Annotated[
        bool, Meta(description="tau is a share of each unit's standard deviation over the batch, not in the scale of the unit")
    ] = False
    read_share: _ReadShare = 0.5
    pure: _ShareOfRamp = 0.5
    pure_beta: _PureBeta = 0.3

    @property
    def layers_read(self) -> Layers:
        return self.layers

    def read(self, view: View, batch: Batch, eps: Tensor, norm: float = math.inf) -> Reading:
        return information.interval(
            view, batch, eps, norm, resolution=self.resolution, layers=self.layers, relative=self.relative
        )

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "relative": self.relative}


@fields_described
class Linear(Interval, frozen=True, kw_only=True, tag="linear"):
    """`Interval` with a tighter worst case: linear bounds on the margin against one randomly drawn rival class.

    The worst case holds for that rival; the others are raised by the same amount. It needs what `Interval` needs, and more
    time.
    """

    title: ClassVar[str] = "worst case, by linear bounds to one rival"
    passes: ClassVar[tuple[int, int]] = (4, 5)  # those of `Interval`, one back, one more for the gradient of each
    reads_noise: ClassVar[bool] = True

    def read(self, view: View, batch: Batch, eps: Tensor, norm: float = math.inf) -> Reading:
        return information.linear(
            view, batch, eps, norm, resolution=self.resolution, layers=self.layers, relative=self.relative
        )


@fields_described
class Channel(_WithPurePhase, frozen=True, kw_only=True, tag="channel"):
    """Measures the first-order channel into the decision: equation (1) linearised, tau in the scale of the margin.

    It works on any differentiable network, best with smooth activations or a small eps, and gives no certificates.
    """

    title: ClassVar[str] = "first-order channel into the decision"
    passes: ClassVar[tuple[int, int]] = (2, 4)  # the double backward pass is worth two
    default_ramp: ClassVar[float] = 0.2

    beta: _Beta = 0.5
    read_share: _ReadShare = 0.5

    def read(self, view: View, batch: Batch, eps: Tensor, norm: float = math.inf) -> Reading:
        return information.channel(view, batch, eps, norm, resolution=self.resolution)


@fields_described
class Coding(Measure, frozen=True, kw_only=True, tag="coding"):
    """Measures the average case: the coding rate of the shifts that random perturbations cause.

    Tau is in standard deviations of a layer. It does not help against attacks: use it for study only.
    """

    title: ClassVar[str] = "average case, by the coding rate of random shifts"
    passes: ClassVar[tuple[int, int]] = (2, 2)

    beta: _Beta = 1.0
    layers: _Layers = "all"
    eps_factor: _EpsFactor = 1.0

    @property
    def layers_read(self) -> Layers:
        return self.layers

    def read(self, view: View, batch: Batch, eps: Tensor, norm: float = math.inf) -> Reading:
        return information.coding(view, batch, eps, resolution=self.resolution, layers=self.layers)

    def controls(self, eps: float) -> ControlSchedule:
        return super().controls(self.eps_factor * eps)


@fields_described
class Activation(Measure, frozen=True, kw_only=True, tag="activation"):
    """Measures the information about the natural input. It does not help against attacks: it is the negative control."""

    title: ClassVar[str] = "information about the natural input, a control"
    passes: ClassVar[tuple[int, int]] = (1, 1)
    reads_noise: ClassVar[bool] = False

    # More information is a wish that makes sense too.
    beta: Annotated[float, Meta(description="weight of the information, per nat; a negative one asks for more of it")] = 0.1
    layers: _Layers = "all"

    @property
    def layers_read(self) -> Layers:
        return self.layers

    def read(self, view: View, batch: Batch, eps: Tensor, norm: float = math.inf) -> Reading:
        return information.activation(view, batch, resolution=self.resolution, layers=self.layers)


AnyMeasure = Interval | Linear | Channel | Coding | Activation
MEASURES: dict[str, type[AnyMeasure]] = {
    "interval": Interval,
    "linear": Linear,
    "channel": Channel,
    "coding": Coding,
    "activation": Activation,
}


def measure_of(given: Any) -> Measure:
    """Return the measure of this name with its defaults, or a given measure itself.

    Raises:
        TypeError, ValueError: `given` is neither.
    """
    if isinstance(given, Measure) and type(given).read is not Measure.read:
        return given
    if isinstance(given, type) and issubclass(given, Measure):
        raise TypeError(f"`measure` must be a measure, not its class: write {given.__name__}(), got {given!r}")
    if isinstance(given, str):
        return MEASURES[choice("measure", given, MEASURES)]()
    classes = ", ".join(f"{one.__name__}()" for one in MEASURES.values())
    raise TypeError(f"`measure` must be None, one of {', '.join(map(repr, MEASURES))}, or one of {classes}, got {given!r}")
