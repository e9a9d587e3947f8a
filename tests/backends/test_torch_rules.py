"""PyTorch's table of interval rules: what each function was proved for holds, and what it was not proved for is refused.

Every function of the table stands in `ROWS` below, with its settings. A setting is a call in which `B` stands for a tensor with
a box around it and `C` for a constant one. In float64, points of the box and its corners must give results inside the bounds.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.torch.bounds import RULES, Trace
from art_entropic.backends.torch.tensor import Bounds, BoundTensor
from art_entropic.ops import Box

RADII, POINTS = (0.0, 0.1, 0.5, 1.0, 3.0), 50  # so 200 points and more of each setting, one in two a corner
# Relative to the value, and to 1 where it is smaller: rounding takes 1e-12, the jump of softplus where it becomes a line 1e-10.
ALLOWANCE = 1e-9


class B:
    """A bound tensor of this shape with values between low and high; `whole` takes the box all the way from low to high."""

    def __init__(self, *shape, low=-2.0, high=2.0, whole=False):
        self.shape, self.low, self.high, self.whole = shape, low, high, whole

    def box(self, radius):
        low, high = (torch.full(self.shape, end, dtype=torch.float64) for end in (self.low, self.high))
        if self.whole:
            return Box(low, high)
        centre = low + torch.rand_like(low) * (high - low)
        return Box(*(torch.clamp(centre + sign * radius * torch.rand_like(low), low, high) for sign in (-1, 1)))


class C(B):
    """A constant tensor."""

    def box(self, radius):
        return super().box(0.0)


class Setting(NamedTuple):
    args: tuple
    kwargs: dict
    training: bool = False

    def parts(self):
        return {part: None for part in leaves((self.args, self.kwargs)) if isinstance(part, B)}


def call(*args, **kwargs):
    return Setting(args, kwargs)


def training(*args, **kwargs):
    """A call in a module that is in training mode."""
    return Setting(args, kwargs, True)


class Row(NamedTuple):
    functions: str
    names: str  # of the arguments, to give all of them by name too
    proved: Sequence[Setting]
    refused: Sequence[Setting] = ()


def leaves(tree):
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        yield from leaves(tuple(tree.values()))
    else:
        yield tree


def replaced(tree, values):
    """The call's arguments with a tensor in the place of each `B` and `C`; fresh ones, since some functions work in place."""
    if isinstance(tree, B):
        return values[tree]
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, (list, tuple)):
        return type(tree)(replaced(item, values) for item in tree)
    if isinstance(tree, dict):
        return {key: replaced(value, values) for key, value in tree.items()}
    return tree


IMAGE = B(2, 4, 6, 6)
SAME = B(5)
POSITIVE, NEGATIVE, HOLDS_0 = B(5, low=0.3, high=4), B(5, low=-4, high=-0.3), B(5, low=-1, high=1, whole=True)
INT, FLOAT = torch.int64, torch.float32
INDEX = torch.tensor([2, 0, 1])
MASK = torch.tensor([True, False, True, True, False])
ALL = [call(B(2, 3, 4))]
VALUES = [call(B(7)), call(B(7, low=-8, high=8))]
BY_SLOPE = [call(B(7), 0.3), call(B(7), 0), call(B(7), 2.5), call(B(7))]
BOTH = [call(B(3, 4), C(4)), call(C(3, 4), B(4)), call(B(3, 4), B(4)), call(SAME, SAME)]
REDUCED = [call(B(2, 3, 4)), call(B(2, 3, 4), 1), call(B(2, 3, 4), (1, 2), True), call(B(2, 3, 4), axis=-1)]
POOLED = [call(IMAGE, 2), call(IMAGE, 3, 2, 1), call(IMAGE, (2, 3), (1, 2), (1, 1), 2, True)]
CONVOLVED = [
    call(IMAGE, C(6, 4, 3, 3)),
    call(IMAGE, C(6, 4, 3, 3), C(6), 2, 1),
    call(IMAGE, C(6, 2, 2, 3), C(6), (1, 2), "valid", 2, 2),
    call(IMAGE, C(4, 1, 3, 3), None, 1, "same", 2, 4),
    call(B(4, 6, 6), C(2, 4, 3, 3), padding=1),
]
LIKE = [call(B(2, 6), B(3, 4)), call(B(2, 6), C(3, 4))]

# fmt: off
ROWS = [
    # -- arithmetic
    Row("torch.add T.add T.__add__ T.__radd__", "input other",
        [*BOTH, call(B(5), 2.0), call(B(5), C(5), alpha=-0.5), call(B(5), B(5), alpha=-2), call(C(5), B(5), alpha=-2),
         call(B(5), B(5), alpha=torch.tensor(-3.0))],
        [call(B(5), C(5), alpha=B()), call(B(5), 2, B(5))]),
    Row("torch.sub torch.subtract T.sub T.subtract T.__sub__", "input other",
        [*BOTH, call(B(5), 2.0), call(B(5), C(5), alpha=-0.5), call(B(5), B(5), alpha=-2), call(C(5), B(5), alpha=-2)],
        [call(B(5), C(5), alpha=B())]),
    Row("torch.sub T.sub", "", [], [call(B(5), 2, B(5)), call(B(5), 2, C(5))]),
    Row("torch.rsub", "input other",
        [*BOTH, call(B(5), 2.0), call(B(5), C(5), alpha=-0.5), call(B(5), B(5), alpha=-2), call(B(5), 3.0, alpha=2)],
        [call(B(5), 3.0, 2)]),
    Row("T.__rsub__", "", [*BOTH, call(B(5), 2.0)]),
    Row("torch.mul torch.multiply T.mul T.multiply T.__mul__ T.__rmul__", "input other",
        [*BOTH, call(B(5), -2.0), call(B(5), 3), call(B(5), MASK)]),
    Row("torch.div torch.divide T.div T.divide", "input other",
        [call(B(5), -2.0), call(B(3, 5), C(5, low=0.4)), call(B(3, 5), C(5, low=-2, high=-0.4), rounding_mode=None),
         call(B(3, 5), POSITIVE), call(B(3, 5), NEGATIVE), call(C(3, 5), NEGATIVE), call(POSITIVE, POSITIVE)],
        [call(B(5), 2.0, rounding_mode="floor"), call(B(5), 2.0, rounding_mode="trunc"), call(B(5), HOLDS_0)]),
    Row("torch.true_divide T.true_divide T.__truediv__", "input other",
        [call(B(5), -2.0), call(B(3, 5), POSITIVE), call(C(3, 5), NEGATIVE)],
        [call(C(5), HOLDS_0)]),
    Row("T.__rdiv__", "", [call(POSITIVE, -2.0), call(NEGATIVE, C(3, 5)), call(C(5, low=0.4), B(5))], [call(HOLDS_0, 2.0)]),
    Row("torch.neg torch.negative T.neg T.negative T.__neg__", "input", ALL),
    Row("torch.positive T.positive T.__pos__", "input", ALL),

    # -- affine layers
    Row("F.linear", "input weight bias",
        [call(B(3, 6), C(5, 6)), call(B(6), C(5, 6), C(5)), call(B(2, 3, 6), C(5, 6), C(5)), call(B(2, 6), C(6))],
        [call(B(3, 6), B(5, 6)), call(C(3, 6), B(5, 6)), call(B(3, 6), C(5, 6), B(5))]),
    Row("F.conv1d torch.conv1d", "input weight bias stride padding dilation groups",
        [call(B(2, 4, 7), C(6, 4, 3)), call(B(2, 4, 7), C(6, 2, 2), C(6), 2, 1, 2, 2),
         call(B(4, 7), C(6, 4, 3), None, 1, "same")],
        [call(B(2, 4, 7), B(6, 4, 3)), call(C(2, 4, 7), B(6, 4, 3)), call(B(2, 4, 7), C(6, 4, 3), B(6))]),
    Row("F.conv2d torch.conv2d", "input weight bias stride padding dilation groups", CONVOLVED, [call(IMAGE, B(6, 4, 3, 3))]),
    Row("F.conv3d torch.conv3d", "input weight bias stride padding dilation groups",
        [call(B(1, 2, 4, 4, 4), C(4, 1, 2, 2, 3), C(4), (1, 2, 1), 1, 1, 2)], [call(B(1, 2, 3, 3, 3), B(2, 2, 2, 2, 2))]),
    Row("F.conv_transpose1d torch.conv_transpose1d", "input weight bias stride padding output_padding groups dilation",
        [call(B(2, 4, 5), C(4, 3, 3)), call(B(2, 4, 5), C(4, 2, 3), C(4), 2, 1, 1, 2, 2)], [call(B(2, 4, 5), B(4, 3, 3))]),
    Row("F.conv_transpose2d torch.conv_transpose2d", "input weight bias stride padding output_padding groups dilation",
        [call(B(2, 4, 4, 4), C(4, 3, 3, 3)), call(B(2, 4, 4, 4), C(4, 2, 3, 2), C(4), (2, 3), 1, (1, 2), 2, 1)],
        [call(B(2, 4, 4, 4), B(4, 3, 3, 3)), call(C(2, 4, 4, 4), B(4, 3, 3, 3))]),
    Row("F.conv_transpose3d torch.conv_transpose3d", "input weight bias stride padding output_padding groups dilation",
        [call(B(1, 2, 3, 3, 3), C(2, 2, 2, 2, 2), C(4), 2, 1, 1, 2)], [call(B(1, 2, 3, 3, 3), B(2, 2, 2, 2, 2))]),
    Row("torch.convolution", "input weight bias stride padding dilation transposed output_padding groups",
        [call(IMAGE, C(6, 4, 3, 3), C(6), [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
         call(IMAGE, C(4, 2, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 2)],
        [call(IMAGE, B(6, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)]),
    Row("torch.matmul T.matmul T.__matmul__", "input other",
        [call(B(3, 4), C(4, 2)), call(C(3, 4), B(4, 2)), call(B(4), C(4)), call(C(4), B(4)), call(B(4), C(4, 2)),
         call(B(3, 4), C(4)), call(B(2, 3, 4), C(4, 5)), call(C(3, 4), B(2, 4, 5)), call(B(2, 1, 3, 4), C(3, 4, 5))],
        [call(B(3, 4), B(4, 2)), call(B(3, 4), B(4))]),
    Row("T.__rmatmul__", "", [call(B(3, 4), C(2, 3)), call(B(4), C(3, 4)), call(C(3, 4), B(2, 3))], [call(B(3, 4), B(2, 3))]),
    Row("torch.mm T.mm", "input mat2", [call(B(3, 4), C(4, 2)), call(C(3, 4), B(4, 2))], [call(B(3, 4), B(4, 2))]),
    Row("torch.bmm T.bmm", "input mat2", [call(B(2, 3, 4), C(2, 4, 2)), call(C(2, 3, 4), B(2, 4, 2))],
        [call(B(2, 3, 4), B(2, 4, 2))]),
    Row("torch.mv T.mv", "input vec", [call(B(3, 4), C(4)), call(C(3, 4), B(4))], [call(B(3, 4), B(4))]),
    Row("torch.addmm T.addmm", "input mat1 mat2",
        [call(C(2), B(3, 4), C(4, 2)), call(C(2), C(3, 4), B(4, 2), beta=-2, alpha=-0.5),
         call(B(3, 2), B(3, 4), C(4, 2), alpha=-1),
         call(B(2), C(3, 4), C(4, 2), beta=-1.5), call(B(2), C(3, 4), B(4, 2), beta=0), call(B(2), B(3, 4), C(4, 2), alpha=0)],
        [call(C(2), B(3, 4), B(4, 2)), call(C(2), B(3, 4), C(4, 2), alpha=B())]),
    Row("torch.addmm", "", [], [call(2, C(2), 3, B(3, 4), C(4, 2))]),
    Row("torch.baddbmm T.baddbmm", "input batch1 batch2",
        [call(C(2), B(2, 3, 4), C(2, 4, 2)), call(B(2), C(2, 3, 4), B(2, 4, 2), beta=-2, alpha=-0.5),
         call(B(2), C(2, 3, 4), C(2, 4, 2), beta=-2)],
        [call(C(2), B(2, 3, 4), B(2, 4, 2))]),
    Row("torch.addcmul T.addcmul", "input tensor1 tensor2",
        [call(C(3, 4), B(4), C(4)), call(B(4), C(3, 4), B(4), value=-2), call(B(4), B(3, 4), B(4)),
         call(B(4), C(4), C(4), value=-2)],
        [call(B(4), C(4), C(4), value=B()), call(B(4), 2, C(4), C(4))]),
    Row("torch.einsum", "",
        [call("bi,oi->bo", B(3, 4), C(5, 4)), call("oi,bi", C(5, 4), B(3, 4)), call("bij->bji", B(2, 3, 4)),
         call("ii->i", B(3, 3)), call("bi,ij,jk->bk", B(2, 3), C(3, 4), C(4, 2)), call("nchw,c->nhw", [B(2, 3, 2, 2), C(3)]),
         call("...i,i->...", B(2, 3), C(3)), call(B(3, 4), [0, 1], C(4, 2), [1, 2], [0, 2])],
        [call("bi,bi->b", B(3, 4), B(3, 4)), call("bi,bi->b", [SAME, SAME])]),

    # -- normalisation
    Row("F.batch_norm", "input running_mean running_var weight bias training momentum eps",
        [call(B(5, 3), C(3), C(3, low=0.3)), call(B(2, 3, 4), C(3), C(3, low=0.3), C(3), C(3), False, 0.3, 1e-3),
         call(B(2, 3, 2, 2), C(3), C(3, low=0.3), C(3)), call(B(2, 3, 2, 2), C(3), C(3, low=0.3), None, C(3)),
         training(B(2, 3, 2, 2, 2), C(3), C(3, low=0.3), C(3), C(3))],  # frozen in training
        [call(B(5, 3), None, None, training=True), call(B(5, 3), C(3), C(3, low=0.3), training=True),
         call(B(5, 3), C(3), C(3, low=0.3), B(3)), call(B(5, 3), B(3), C(3, low=0.3)),
         call(C(5, 3), C(3), C(3, low=0.3), B(3))]),
    Row("F.layer_norm torch.layer_norm", "input normalized_shape weight bias eps",
        [call(B(5, 6), [6]), call(B(2, 3, 4), (4,), C(4), C(4), 1e-2), call(B(2, 3, 4), (3, 4), C(3, 4)),
         call(B(5, 6), [6], None, C(6)), call(B(5, 1), [1])],
        [call(B(5, 6), [6], None, None, 0.0), call(B(5, 6), [6], None, None, -1e-5), call(B(5, 6), [6], B(6)),
         call(C(5, 6), [6], B(6))]),
    Row("F.rms_norm torch.rms_norm", "input normalized_shape weight eps",
        [call(B(5, 6), [6]), call(B(2, 3, 4), (3, 4), C(3, 4), 1e-2), call(B(5, 6, low=0.5), [6], C(6)), call(B(5, 1), [1])],
        [call(B(5, 6), [6], None, 0.0), call(B(5, 6), [6], B(6))]),
    Row("F.group_norm torch.group_norm", "input num_groups weight bias eps",
        [call(B(2, 4, 3), 2), call(B(2, 4, 3, 3), 4, C(4), C(4), 1e-2), call(B(2, 4), 1, C(4)),
         call(B(2, 4, 3), 2, None, C(4))],
        [call(B(2, 4, 3), 2, None, None, 0.0), call(B(2, 4, 3), 2, B(4)), call(B(2, 4, 3), 2, C(4), B(4))]),
    Row("F.instance_norm", "input running_mean running_var weight bias use_input_stats momentum eps",
        [call(B(2, 3, 4)), call(B(2, 3, 3, 3), None, None, C(3), C(3), True, 0.1, 1e-2),
         call(B(2, 3, 4), C(3), C(3, low=0.3), C(3), C(3), False), training(B(2, 3, 4), C(3), C(3, low=0.3), None, C(3), True)],
        [call(B(2, 3, 4), eps=0.0), call(B(2, 3, 4), weight=B(3))]),
    Row("F.normalize", "input p dim eps",
        [call(B(3, 4)), call(B(3, 4), 1, 0), call(B(2, 3, 4), 3.5, (1, 2)), call(B(3, 4), float("inf")),
         call(B(3, 4), 2, 1, 5.0), call(B(3, 4, low=0.2)), call(B(2, 4, low=-1, high=1, whole=True))],
        [call(B(3, 4), 0), call(B(3, 4), -1.0), call(B(3, 4), eps=0.0), call(B(3, 4), p=B())]),
    Row("linalg.vector_norm", "x ord dim keepdim",
        [call(B(3, 4)), call(B(3, 4), 1, 0), call(B(2, 3, 4), 2.5, (1, 2), True), call(B(3, 4), float("inf"))],
        [call(B(3, 4), 0), call(B(3, 4), -2), call(B(3, 4), float("-inf"))]),
    Row("torch.norm T.norm", "input p dim keepdim",
        [call(B(3, 4)), call(B(3, 4), "fro", 1), call(B(2, 3, 4), 2.5, (1, 2), True), call(B(3, 4), 1, -1)],
        [call(B(3, 4), "nuc"), call(B(3, 4), 0), call(B(3, 4), -1)]),

    # -- dropout
    Row("F.dropout", "input p training",
        [call(B(5), 0.5, False), call(B(5), 0.0), training(B(50)), training(B(50), 0.9, True), training(B(5), 1.0)],
        [call(B(5)), call(B(5), 0.5), call(B(5), 0.5, True), call(B(5), p=0.1)]),
    Row("F.dropout1d", "input p training", [call(B(2, 3, 2), 0.5, False), training(B(2, 30, 2))], [call(B(2, 3, 2))]),
    Row("F.dropout2d", "input p training", [call(B(2, 3, 2, 2), 0.5, False), training(B(2, 30, 2, 2))], [call(B(2, 3, 2, 2))]),
    Row("F.dropout3d", "input p training", [call(B(2, 3, 2, 2, 2), 0.5, False), training(B(2, 30, 2, 2, 2))],
        [call(B(2, 3, 2, 2, 2))]),
    Row("torch.dropout torch.feature_dropout", "input p train",
        [call(B(4, 5), 0.5, False), call(B(4, 5), 0.0, True), training(B(40, 5), 0.5, True)], [call(B(4, 5), 0.5, True)]),
    Row("F.alpha_dropout F.feature_alpha_dropout", "input p training",
        [call(B(4, 5)), training(B(4, 5), 0.5, False)], [call(B(4, 5), 0.5, True), training(B(4, 5), 0.5, True)]),
    Row("torch.alpha_dropout torch.feature_alpha_dropout", "input p train",
        [call(B(4, 5), 0.5, False)], [call(B(4, 5), 0.5, True), training(B(4, 5), 0.5, True)]),

    # -- element by element
    Row("""F.relu torch.relu T.relu F.relu6 F.sigmoid torch.sigmoid T.sigmoid F.tanh torch.tanh T.tanh F.softsign F.logsigmoid
           F.hardsigmoid F.selu torch.selu F.tanhshrink torch.exp T.exp torch.expm1 T.expm1 torch.erf T.erf torch.atan T.atan
           torch.arctan T.arctan F.silu F.mish F.hardswish torch.abs T.abs T.__abs__ torch.absolute T.absolute
           torch.square T.square""", "input", VALUES),
    Row("F.gelu", "input", [*VALUES, call(B(7), approximate="tanh"), call(B(7, low=-8, high=8), approximate="none")]),
    Row("F.hardtanh", "input min_val max_val", [call(B(7)), call(B(7), -0.5, 1.5)], [call(B(7), B())]),
    Row("F.softplus", "input beta threshold",
        [call(B(7)), call(B(7), 2), call(B(7, low=-30, high=30)), call(B(7, low=-30, high=30), 0.5, 40)],
        [call(B(7), 1, 0.5), call(B(7), 1, 19.9), call(B(7), -1), call(B(7), 0), call(B(7), float("nan")), call(B(7), 1, -20),
         call(B(7), B())]),
    Row("F.leaky_relu", "input negative_slope", BY_SLOPE, [call(B(7), -0.1), call(B(7), float("nan")), call(B(7), B())]),
    Row("F.elu", "input alpha", BY_SLOPE, [call(B(7), -0.1), call(B(7), B())]),
    Row("F.celu torch.celu", "input alpha",
        [call(B(7), 0.3), call(B(7), 2.5), call(B(7))], [call(B(7), -0.1), call(B(7), B())]),
    Row("F.softshrink F.hardshrink torch.hardshrink T.hardshrink", "input lambd",
        [call(B(7)), call(B(7), 0), call(B(7), 1.3)], [call(B(7), -0.5), call(B(7), B())]),
    Row("F.rrelu torch.rrelu", "input lower upper training",
        [call(B(7)), call(B(7), 0.5, 2.0), call(B(7), -0.5, 1.0, False), training(B(7), 0.1, 0.2, False)],
        [call(B(7), -1.0, 0.5), call(B(7), 0.1, 0.3, True), training(B(7), 0.1, 0.3, True), call(B(7), B())]),
    Row("F.prelu torch.prelu T.prelu", "input weight",
        [call(B(3, 4, 5), C(4)), call(B(7), C(1, low=0)), call(B(7), C(1, high=0)), call(B(3, 4), C(4, low=1, high=3))],
        [call(B(3, 4), B(4)), call(C(3, 4), B(4))]),
    Row("F.threshold torch.threshold", "input threshold value",
        [call(B(7), 0, 0), call(B(7), 0.5, -1), call(B(7), -0.3, -0.3)],
        [call(B(7), 0, 1), call(B(7), 0.1, 0.2), call(B(7), float("nan"), 0), call(B(7), 0, B())]),
    Row("F.glu", "input dim", [call(B(3, 4)), call(B(2, 4, 3), 1), call(B(4, 3), -2)], [call(B(3, 4), B())]),
    Row("torch.pow T.pow T.__pow__", "input exponent",
        [*(call(B(7), e) for e in (1, 2, 3, 4.0, 5)), *(call(POSITIVE, e) for e in (0.5, 1.7, -0.5, -2, 0))],
        [call(HOLDS_0, 0.5), call(HOLDS_0, -1), call(B(7), 1.5), call(B(5), C(5)), call(B(5), B(5)), call(C(5), B(5)),
         call(B(5), torch.tensor(2.0)), call(B(7), float("nan"))]),
    Row("torch.sqrt T.sqrt torch.log T.log torch.rsqrt T.rsqrt", "input",
        [call(POSITIVE)], [call(HOLDS_0), call(NEGATIVE), call(B(3, low=0, high=1, whole=True))]),
    Row("torch.log1p T.log1p", "input", [call(POSITIVE), call(B(7, low=-0.9))], [call(B(7, low=-1, whole=True))]),
    Row("torch.reciprocal T.reciprocal", "input",
        [call(POSITIVE), call(NEGATIVE)], [call(HOLDS_0), call(B(3, low=0, whole=True))]),
    Row("torch.clamp T.clamp torch.clip T.clip", "input min max",
        [call(B(7), -0.5, 0.7), call(B(7), min=0), call(B(7), max=0.5), call(B(7), 1.0, -1.0), call(B(7), C(7), B(7)),
         call(C(7), B(7), C(7)), call(C(7), max=B(7))]),
    Row("torch.clamp_min T.clamp_min", "input min", [call(B(7), 0.3), call(B(7), B(7)), call(C(7), B(7))]),
    Row("torch.clamp_max T.clamp_max", "input max", [call(B(7), 0.3), call(B(7), B(7)), call(C(7), B(7))]),
    Row("torch.maximum torch.minimum T.maximum T.minimum", "input other", BOTH),

    # -- pools and other sizes
    Row("torch.max_pool2d F.max_pool2d", "input kernel_size stride padding dilation ceil_mode", POOLED),
    Row("torch.max_pool1d F.max_pool1d", "input kernel_size stride padding dilation ceil_mode",
        [call(B(2, 4, 7), 2), call(B(2, 4, 7), 3, 2, 1, 2, True)]),
    Row("torch.max_pool3d F.max_pool3d", "input kernel_size stride padding dilation ceil_mode",
        [call(B(1, 2, 4, 4, 4), 2, 1, 1)]),
    Row("F.max_pool2d_with_indices F.adaptive_max_pool2d F.adaptive_max_pool2d_with_indices", "", [call(IMAGE, 2)]),
    Row("F.max_pool1d_with_indices torch.max_pool1d_with_indices torch.adaptive_max_pool1d F.adaptive_max_pool1d "
        "F.adaptive_max_pool1d_with_indices", "", [call(B(2, 4, 7), 3)]),
    Row("F.max_pool3d_with_indices F.adaptive_max_pool3d F.adaptive_max_pool3d_with_indices", "", [call(B(1, 2, 4, 4, 4), 2)]),
    Row("F.avg_pool1d", "input kernel_size stride padding ceil_mode count_include_pad",
        [call(B(2, 4, 7), 2), call(B(2, 4, 7), 3, 2, 1, True, False)]),
    Row("F.avg_pool2d", "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
        [call(IMAGE, 2), call(IMAGE, 3, 2, 1, True, False), call(IMAGE, 2, None, 0, False, True, 3),
         call(IMAGE, 2, divisor_override=None)],
        [call(IMAGE, 2, divisor_override=-3), call(IMAGE, 2, None, 0, False, True, -1), call(IMAGE, 2, divisor_override=0)]),
    Row("F.avg_pool3d", "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
        [call(B(1, 2, 4, 5, 6), 3, 2, 1, True, False), call(B(1, 2, 4, 5, 6), 2, None, 0, False, True, 3)],
        [call(B(1, 2, 4, 4, 4), 2, divisor_override=-3), call(B(1, 2, 4, 4, 4), 2, None, 0, False, True, -1)]),
    Row("F.adaptive_avg_pool1d torch.adaptive_avg_pool1d", "input output_size", [call(B(2, 4, 7), 3)]),
    Row("F.adaptive_avg_pool2d", "input output_size", [call(IMAGE, 4), call(IMAGE, (1, None))]),
    Row("F.adaptive_avg_pool3d", "input output_size", [call(B(1, 2, 4, 4, 4), 3)]),
    Row("F.interpolate F.upsample", "input size scale_factor mode align_corners",
        [call(IMAGE, scale_factor=2), call(IMAGE, (9, 4)), call(IMAGE, (9, 4), None, "bilinear", True),
         call(IMAGE, (9, 4), mode="area"), call(IMAGE, None, 1.7, "bilinear", False), call(IMAGE, 4, mode="nearest-exact"),
         call(B(2, 3, 5), 8, mode="linear"), call(B(1, 2, 3, 3, 3), 5, mode="trilinear")],
        [call(IMAGE, 9, None, "bicubic"), call(IMAGE, 9, mode="lanczos")]),
    Row("F.interpolate", "",
        [call(IMAGE, (3, 9), mode="bilinear", antialias=True),
         call(IMAGE, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True)],
        [call(IMAGE, (3, 9), mode="bicubic", antialias=True)]),
    Row("F.pad", "input pad mode value",
        [call(IMAGE, (1, 2, 0, 1)), call(IMAGE, (1, -2), "constant", -3.0),
         *(call(IMAGE, (1, 2, 0, 1), mode) for mode in ("reflect", "replicate", "circular"))],
        [call(IMAGE, (1, 1), "constant", B())]),
    Row("torch.constant_pad_nd", "input pad value", [call(B(3, 4), [1, 2]), call(B(3, 4), [1, -2], -3.0)]),
    Row("F.unfold", "input kernel_size dilation padding stride", [call(IMAGE, 2), call(IMAGE, (3, 2), 2, 1, 2)]),
    Row("F.fold", "input output_size kernel_size dilation padding stride",
        [call(B(2, 8, 9), (4, 4), 2), call(B(2, 8, 9), 4, 2, 1, 1, 2)]),
    Row("F.pixel_shuffle", "input upscale_factor", [call(IMAGE, 2)]),
    Row("F.pixel_unshuffle", "input downscale_factor", [call(IMAGE, 2)]),
    Row("F.channel_shuffle", "input groups", [call(IMAGE, 2)]),

    # -- reductions
    Row("torch.mean T.mean torch.sum T.sum torch.amax T.amax torch.amin T.amin", "input dim keepdim", REDUCED),
    Row("torch.mean torch.sum T.sum torch.cumsum", "input dim", [call(B(3, 4), 1, dtype=torch.float64)],
        [call(B(3, 4), 1, dtype=torch.float16), call(B(3, 4), 1, dtype=torch.bfloat16)]),
    Row("torch.sum T.sum T.cumsum", "input dim", [], [call(B(3, 4), 1, dtype=INT)]),
    Row("torch.cumsum T.cumsum", "input dim", [call(B(3, 4), 1), call(B(3, 4), -2)]),
    Row("torch.logsumexp T.logsumexp", "input dim keepdim", [call(B(3, 4), 1), call(B(2, 3, 4), (0, 2), True)]),
    Row("torch.max T.max torch.min T.min", "input", [call(B(3, 4)), call(B(3, 4), dim=1), call(B(3, 4), axis=0, keepdim=True)]),
    Row("torch.max T.max torch.min T.min", "input other", BOTH),
    Row("torch.max T.max torch.min T.min", "input dim keepdim", [call(B(3, 4), -1), call(B(3, 4), 0, True)]),

    # -- shapes and parts
    Row("torch.flatten T.flatten", "input start_dim end_dim", [*ALL, call(B(2, 3, 4), 1), call(B(2, 3, 4), 0, 1)]),
    Row("torch.ravel T.ravel T.contiguous torch.clone T.clone torch.squeeze T.squeeze torch.unbind T.unbind T.cpu T.double",
        "input", ALL),
    Row("torch.tril T.tril torch.triu T.triu", "input diagonal", [*ALL, call(B(3, 4), -1)]),
    Row("T.float", "", [call(B(3))]),
    Row("T.cuda", "", []),  # a device that is not here
    Row("torch.reshape T.reshape", "input shape", [call(B(2, 3, 4), (4, -1))]),
    Row("T.reshape T.view", "", [call(B(2, 3, 4), 4, -1)]),
    Row("T.view", "", [call(B(2, 3, 4), (6, 4)), call(B(2, 3, 4), size=(6, 4))],
        [call(B(2, 4), INT), call(B(2, 4), torch.float64), call(B(2, 4), dtype=torch.float64), call(B(2, 4), FLOAT)]),
    Row("T.reshape_as T.view_as", "input other", [*LIKE, call(C(2, 6), B(3, 4))]),
    Row("T.expand_as", "input other", [call(B(4), B(3, 4)), call(B(4), C(3, 4)), call(C(4), B(3, 4))]),
    Row("T.type_as", "input other", [*LIKE, call(C(2), B(2))], [call(B(2), torch.zeros(2, dtype=INT))]),
    Row("T.to", "", [*LIKE, call(C(2), B(2)), call(B(3), torch.float64), call(B(3), "cpu"), call(B(3), dtype=torch.float32)],
        [call(B(3), dtype=INT),
         *(call(B(3), dtype) for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.bool, torch.complex128))]),
    Row("torch.unflatten T.unflatten", "input dim sizes", [call(B(2, 6), 1, (2, 3))]),
    Row("torch.permute T.permute", "input dims", [call(B(2, 3, 4), (2, 0, 1))]),
    Row("T.permute T.tile", "", [call(B(2, 3, 4), 2, 0, 1)]),
    Row("torch.transpose T.transpose torch.swapdims T.swapdims", "input dim0 dim1", [call(B(2, 3, 4), 0, -1)]),
    Row("torch.swapaxes T.swapaxes", "input axis0 axis1", [call(B(2, 3, 4), 0, -1)]),
    Row("torch.movedim T.movedim torch.moveaxis T.moveaxis", "input source destination",
        [call(B(2, 3, 4), 0, -1), call(B(2, 3, 4), (0, 1), (1, 2))]),
    Row("torch.t T.t T.T T.mT", "", [call(B(2, 3))]),
    Row("torch.squeeze T.squeeze torch.unsqueeze T.unsqueeze torch.unbind T.unbind", "input dim", [call(B(2, 1, 4), 1)]),
    Row("T.expand", "", [call(B(2, 1), 2, 3), call(B(2, 1), (4, -1, 3))]),
    Row("torch.broadcast_to T.broadcast_to", "input size", [call(B(2, 1), (4, 2, 3))]),
    Row("T.repeat", "", [call(B(2, 1), 2, 3), call(B(2, 1), (4, 2, 3))]),
    Row("torch.tile T.tile", "input dims", [call(B(2, 3), (2, 2))]),
    Row("torch.repeat_interleave T.repeat_interleave", "input repeats dim", [call(B(2, 3), 2), call(B(2, 3), INDEX, 1)]),
    Row("torch.chunk T.chunk", "input chunks dim", [call(B(4, 5), 2), call(B(4, 5), 3, 1)]),
    Row("torch.split", "tensor split_size_or_sections dim", [call(B(4, 5), 2), call(B(4, 5), [1, 4], 1)]),
    Row("T.split", "input split_size dim", [call(B(4, 5), 2), call(B(4, 5), [1, 4], 1)]),
    Row("torch.tensor_split T.tensor_split", "", [call(B(4, 5), 3), call(B(4, 5), (1, 2), 1)]),
    Row("T.__getitem__", "",
        [*(call(B(3, 4), index) for index in (0, slice(1, None), (Ellipsis, 0), INDEX, [0, 2], (slice(None, None, 2), 1))),
         call(B(3, 4), (None, slice(None), INDEX)), call(B(5), MASK), call(B(3, 4), torch.ones(3, 4, dtype=torch.bool))],
        [call(C(3, 4), B(3)), call(B(3, 4), B(3)), call(B(3, 4), (0, B(3)))]),
    Row("torch.select T.select", "input dim index", [call(B(3, 4), 1, -1)]),
    Row("torch.narrow T.narrow", "input dim start length", [call(B(3, 4), 1, 1, 2), call(B(3, 4), 1, torch.tensor(1), 2)],
        [call(B(3, 4), 1, B(), 2)]),
    Row("torch.index_select T.index_select", "input dim index",
        [call(B(3, 4), 1, INDEX)], [call(B(3, 4), 1, B(2)), call(C(3, 4), 1, B(2))]),
    Row("torch.gather T.gather", "input dim index", [call(B(3, 4), 1, INDEX[:, None])], [call(B(3, 4), 1, B(2, 2))]),
    Row("torch.masked_fill T.masked_fill", "input mask value",
        [call(B(5), MASK, -3.0), call(B(2, 5), MASK, torch.tensor(9.0))], [call(B(5), MASK, B()), call(B(5), B(5), 1.0)]),
    Row("torch.where", "condition input other",
        [call(MASK, B(5), 1.0), call(MASK, C(5), B(2, 5)), call(MASK, B(5), B(5)), call(MASK, SAME, SAME)],
        [call(B(5), B(5), 1.0)]),
    Row("T.where", "input condition other", [call(B(5), MASK, 1.0), call(C(5), MASK, B(2, 5)), call(B(5), MASK, B(5))],
        [call(B(5), B(5), 1.0)]),
    Row("torch.diagonal T.diagonal", "input offset dim1 dim2", [call(B(3, 4)), call(B(2, 3, 4), 1, 1, 2)]),
    Row("T.unfold", "", [call(B(3, 7), 1, 3, 2)]),
    Row("torch.roll T.roll", "input shifts dims", [call(B(3, 4), 1), call(B(3, 4), (1, -1), (0, 1))]),
    Row("torch.flip T.flip", "input dims", [call(B(3, 4), (0, 1))]),
    Row("torch.cat torch.concat torch.concatenate", "tensors dim",
        [call([B(2, 3), B(2, 3)]), call((B(2, 3), C(2, 1)), 1), call([SAME, SAME]), call([B(2, 3), C(2, 1)], axis=-1)]),
    Row("torch.stack", "tensors dim", [call([B(2, 3), B(2, 3)]), call((B(2, 3), C(2, 3)), 1)]),
    Row("torch.hstack torch.vstack torch.dstack", "tensors", [call([B(2, 3), C(2, 3)])]),

    # -- in place
    Row("T.add_ T.__iadd__ T.sub_ T.__isub__", "input other", [call(B(5), 2.0), call(B(5), C(5), alpha=-2),
         call(B(5), B(5), alpha=-2)],
        [call(B(5), 2.0, alpha=B())]),
    Row("T.mul_ T.__imul__", "input other", [call(B(5), -2.0), call(B(3, 5), B(5))]),
    Row("T.div_ T.__itruediv__", "input other", [call(B(5), -2.0), call(B(3, 5), POSITIVE)], [call(B(5), HOLDS_0)]),
    Row("torch.relu_ T.relu_ F.relu_ torch.sigmoid_ T.sigmoid_ torch.tanh_ T.tanh_", "", [call(B(5))]),
]
# fmt: on

HOMES = {"torch": torch, "F": F, "T": torch.Tensor, "linalg": torch.linalg}


def resolved(name):
    home, _, attribute = name.partition(".")
    function = getattr(HOMES[home], attribute)
    return function if callable(function) else function.__get__


FUNCTIONS = {
    name: [row for row in ROWS if name in row.functions.split()]
    for name in dict.fromkeys(" ".join(r.functions for r in ROWS).split())
}


def spellings(name, names, setting):
    """The call as it stands, and with as much as possible by name; a method takes its own tensor by place."""
    yield setting
    keywords, first = names.split(), int(name.startswith("T."))
    if len(keywords) >= len(setting.args) > first:
        by_name = dict(zip(keywords[first:], setting.args[first:], strict=False))
        yield setting._replace(args=setting.args[:first], kwargs={**by_name, **setting.kwargs})


def bound(setting, boxes, points):
    """What stands for each part of a call: a bound tensor of its own, since some functions work in place, or a constant."""
    trace = Trace(nn.Identity().train(setting.training))
    return {
        part: points[part].clone() if isinstance(part, C) else BoundTensor(points[part].clone(), Box(*box), "input", trace)
        for part, box in boxes.items()
    }


def ran(function, setting, values):
    torch.default_generator.manual_seed(0)  # the same dropout mask
    result = function(*replaced(setting.args, values), **replaced(setting.kwargs, values))
    return result if isinstance(result, (list, tuple)) else (result,)


def ends(result):
    """(value, lower, upper) of what a function returned; a constant is its own box, the places of values have none."""
    for one in result:
        if isinstance(one, BoundTensor):
            yield one.value, *one.box
        elif type(one) is torch.Tensor:
            yield one, one, one


def assert_between(lower, values, upper, said):
    allowance = ALLOWANCE * values.abs().clamp(min=1)
    allowance = allowance if values.dtype == torch.float64 else 1e3 * allowance
    assert torch.all(values >= lower - allowance) and torch.all(values <= upper + allowance), said


def points_of(box):
    """Points of a box, one in two a corner of it; shape (n, ...)."""
    shares = torch.rand(POINTS, *box.lower.shape, dtype=torch.float64)
    shares[::2].round_()
    return box.lower + shares * (box.upper - box.lower)


class Sample(NamedTuple):
    """Boxes of a setting, points of them, and what the function itself makes of each point."""

    boxes: dict
    points: dict
    truths: list  # one tensor for each result, shape (n, ...)


SAMPLES = {}


def sample(name, setting, radius):
    key = name.rpartition(".")[2], id(setting), radius  # torch.relu, F.relu and the method are one function
    if key not in SAMPLES:
        torch.default_generator.manual_seed(int(100 * radius))
        boxes = {part: part.box(radius) for part in setting.parts()}
        points = {part: points_of(box) for part, box in boxes.items()}
        results = [
            ran(resolved(name), setting, {part: tensor[place].clone() for part, tensor in points.items()})
            for place in range(POINTS if radius else 2)
        ]
        SAMPLES[key] = Sample(boxes, points, [torch.stack(parts) for parts in zip(*results, strict=True)])
    return SAMPLES[key]


@pytest.mark.filterwarnings("ignore:dropout2d:UserWarning", "ignore:.*nn.functional.upsample.*:UserWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_point_of_the_box_is_within_the_bounds_and_the_value_is_the_function_itself(name):
    for names, setting in ((row.names, setting) for row in FUNCTIONS[name] for setting in row.proved):
        said = f"{name} {setting}"
        for radius in RADII:
            boxes, points, truths = sample(name, setting, radius)
            middle = {part: tensor[1] for part, tensor in points.items()}
            for spelled in spellings(name, names, setting):
                found = list(ends(ran(resolved(name), spelled, bound(setting, boxes, middle))))
                assert found, said
                for (value, lower, upper), truth in zip(found, truths, strict=False):
                    torch.testing.assert_close(value, truth[1], rtol=1e-9, atol=1e-9, msg=said)
                    assert_between(lower, truth, upper, said)
                    if radius == 0 and not any(part.whole for part in boxes):  # no wider than it must be
                        assert_between(value, lower, value, said)
                        assert_between(value, upper, value, said)


REFUSED = [name for name, rows in FUNCTIONS.items() if any(row.refused for row in rows)]


@pytest.mark.filterwarnings("ignore:.*nn.functional.upsample.*:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_have_no_proof_are_refused(name):
    for row in FUNCTIONS[name]:
        for setting in row.refused:
            for spelled in spellings(name, row.names, setting):
                boxes = {part: part.box(1.0) for part in setting.parts()}
                values = bound(setting, boxes, {part: points_of(box)[1] for part, box in boxes.items()})
                with pytest.raises(NoIntervalRuleError, match="channel"):
                    ran(resolved(name), spelled, values)


# What makes new tensors of the shape of a bound one, which say nothing of it; a fill value must not say anything either.
T = torch.Tensor
CONSTANTS = {
    torch.zeros_like: (), torch.ones_like: (), torch.empty_like: (), torch.full_like: (2.0,), T.new_zeros: ((2,),),
    T.new_ones: ((2,),), T.new_empty: ((2,),), T.new_full: ((2,), 3.0), T.new_tensor: ([1.0, 2.0],),
}  # fmt: skip
RANDOM = {torch.rand_like, torch.randn_like}


@pytest.mark.parametrize("function", [*CONSTANTS, *RANDOM], ids=lambda function: function.__name__)
def test_a_new_tensor_of_the_same_kind_has_no_bounds(function):
    x = bounds_of([0.0, 1.0], [1.0, 2.0], training=True)
    made = function(x, *CONSTANTS.get(function, ()))
    assert type(made) is torch.Tensor and made.shape == (2,) and made.dtype == torch.float64


@pytest.mark.parametrize("function", RANDOM, ids=lambda function: function.__name__)
def test_noise_is_refused_in_inference(function):
    with pytest.raises(NoIntervalRuleError, match="random in inference mode"):
        function(bounds_of([0.0], [1.0]))


def test_a_new_tensor_filled_with_what_has_bounds_is_refused():
    x = bounds_of([0.0], [1.0])
    for make in (lambda: torch.full_like(x, x[0]), lambda: x.new_full((2,), x[0])):
        with pytest.raises(NoIntervalRuleError):
            make()


def test_every_function_with_a_rule_is_in_this_table():
    missing = set(RULES) - {resolved(name) for name in FUNCTIONS} - set(CONSTANTS) - RANDOM
    assert not missing, sorted(getattr(function, "__qualname__", str(function)) for function in missing)


# ------------------------------------------------------------------------------------------------------------- by hand


def bounds_of(*ends, training=False):
    """A bound tensor whose value is the middle of the box."""
    lower, upper = (torch.tensor(end, dtype=torch.float64) for end in ends)
    return BoundTensor((lower + upper) / 2, Box(lower, upper), "input", Trace(nn.Identity().train(training)))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def normalised_by_running_statistics(x):
    mean, variance, weight = double(1.0), double(4.0), double(-1.0)
    return F.instance_norm(x[None, None], mean, variance, weight, use_input_stats=False, eps=1e-30).flatten()


# fmt: off
BY_HAND = {
    "square_of_itself": (lambda x: x * x, [-1.0, 1.0, -3.0], [2.0, 2.0, -1.0], [0.0, 1.0, 1.0], [4.0, 4.0, 9.0]),
    "power": (lambda x: x**2, [-1.0, 1.0, -3.0], [2.0, 2.0, -1.0], [0.0, 1.0, 1.0], [4.0, 4.0, 9.0]),
    "cube": (lambda x: x**3, [-1.0], [2.0], [-1.0], [8.0]),
    "negative_prelu": (lambda x: F.prelu(x, double(-0.5)), [-2.0, -4.0], [0.5, -2.0], [0.0, 1.0], [1.0, 2.0]),
    "quotient": (lambda x: 4 / x, [1.0, -4.0], [2.0, -2.0], [2.0, -2.0], [4.0, -1.0]),
    "negative_alpha": (lambda x: torch.add(x[:1], x[1:], alpha=-2), [1.0, 3.0], [2.0, 5.0], [-9.0], [-4.0]),
    "swapped_matmul": (lambda x: x.__rmatmul__(double(1.0, -2.0)[None]), [1.0, 3.0], [2.0, 5.0], [-9.0], [-4.0]),
    "gate": (lambda x: F.glu(x), [-2.0, 0.0], [2.0, 0.0], [-1.0], [1.0]),
    "running_statistics": (normalised_by_running_statistics, [3.0, 1.0], [5.0, 1.0], [-2.0, 0.0], [-1.0, 0.0]),
    "length": (lambda x: torch.linalg.vector_norm(x, keepdim=True), [-3.0, 1.0], [2.0, 4.0], [1.0], [5.0]),
}
# fmt: on


@pytest.mark.parametrize("case", BY_HAND)
def test_bounds_by_hand(case):
    function, low, high, lower, upper = BY_HAND[case]
    result = function(bounds_of(low, high))
    torch.testing.assert_close(result.box, Box(*(torch.tensor(end).double() for end in (lower, upper))))


def test_batch_norm_in_training_bounds_every_point_at_the_statistics_of_the_data():
    torch.manual_seed(0)
    box, weight, bias = B(6, 3).box(1.0), torch.tensor([2.0, -1.0, 0.5]).double(), torch.rand(3).double()
    data = bounds_of(*(end.tolist() for end in box), training=True)
    result = F.batch_norm(data, None, None, weight, bias, training=True)
    mean, variance = data.value.mean(0), data.value.var(0, correction=0)
    values = weight * (points_of(box) - mean) / torch.sqrt(variance + 1e-5) + bias
    assert_between(result.box.lower, values, result.box.upper, "batch norm")
    torch.testing.assert_close(result.value, weight * (data.value - mean) / torch.sqrt(variance + 1e-5) + bias)


# ------------------------------------------------------------------------------------------- what has no bounds, or no end

USES = {
    "unpool": lambda x, places: F.max_unpool1d(x[..., ::2], places, 2),
    "index": lambda x, places: torch.ones(4)[places],
    "gather": lambda x, places: x.gather(-1, places),
    "number": lambda x, places: places.sum().item(),
    "precision": lambda x, places: places.double() + x[..., :2],
    "operator": lambda x, places: torch.ops.aten.mul(places, 2),
}


@pytest.mark.parametrize("use", USES)
def test_places_of_maxima_may_be_dropped_and_any_use_of_them_is_refused(use):
    x = bounds_of([[[1.0, 2.0, 3.0, 1.0]]], [[[2.0, 5.0, 4.0, 1.0]]])
    values, places = F.max_pool1d(x, 2, return_indices=True)
    assert values.box.upper.tolist() == [[[5.0, 4.0]]] and places.shape == (1, 1, 2)
    with pytest.raises(NoIntervalRuleError, match="channel"):
        USES[use](x, places)


# Of a tensor these make one in which other numbers stand beside its own.
FILLED = ("conv_transpose", "pad", "unfold", "tril", "triu", "masked_fill", "where", "cat", "stack", "_as")


@pytest.mark.filterwarnings("ignore:.*nn.functional.upsample.*:UserWarning")
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not any(part in name for part in FILLED)])
def test_a_bound_that_has_overflowed_to_nan_stays_so(name):
    """So that no certificate comes out of it."""
    for setting in itertools.chain.from_iterable(row.proved for row in FUNCTIONS[name]):
        torch.manual_seed(0)
        boxes = {part: part.box(0.5) for part in setting.parts()}
        middle = {part: points_of(box)[1] for part, box in boxes.items()}
        nans = {part: Box(*(end * torch.nan for end in box)) for part, box in boxes.items()}
        try:
            results = ran(resolved(name), setting, bound(setting, {**nans, **constants(boxes)}, middle))
        except NoIntervalRuleError:
            continue
        for one in results:
            if isinstance(one, BoundTensor):
                assert one.box.lower.isnan().all() and one.box.upper.isnan().all(), f"{name} {setting}"


def constants(boxes):
    return {part: box for part, box in boxes.items() if isinstance(part, C)}


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: F.dropout(x, 0.5), "random in inference"),
        (lambda x: F.dropout2d(x[None, ..., None]), "random in inference"),
        (lambda x: F.softplus(x, 1, threshold=0.5), "discontinuous"),
        (lambda x: F.avg_pool2d(x[None], 1, divisor_override=-3), "divisor_override"),
        (lambda x: x.to(torch.uint8), "uint8"),
        (lambda x: torch.log(x - 9), "reach 0 or less"),
        (lambda x: 1 / (x - x), "divisor contain 0"),
    ],
)
def test_a_refusal_names_the_layer_and_the_reason(function, reason):
    model = nn.Sequential(nn.Linear(4, 4), Applied(function)).double().eval()
    trace, x = Trace(model), torch.rand(3, 4).double()
    with pytest.raises(NoIntervalRuleError, match=f"layer '1'.*{reason}"), trace.following(model):
        model(BoundTensor(x, Box(x - 0.1, x + 0.1), "input", trace))


# ------------------------------------------------------------------------------------------- the first layer over an L2 ball

KERNEL, MATRIX = (
    torch.linspace(-1, 1, 3 * 2 * 9).reshape(3, 2, 3, 3).double().sin(),
    torch.linspace(-3, 3, 5 * 72).double().cos(),
)
SCALES = torch.tensor([0.5, -2.0]).double().reshape(1, 2, 1, 1)
WIDE = torch.linspace(-1, 1, 10).double()


def dense(x):
    return x.flatten(1) @ MATRIX.reshape(72, 5)


def convolved(x, **options):
    return F.conv2d(x, KERNEL, WIDE[:3], **options)


def in_place(x):
    return convolved(x.clone().sub_(0.3).div_(SCALES))


# Of images (n, 2, 6, 6): what is exact in every unit alone, and what may not be, since a number takes part twice.
EXACT = {
    "linear": lambda x: F.linear(x.reshape(len(x), -1), MATRIX.reshape(5, 72), WIDE[:5]),
    "matmul": dense,
    "matmul from the left": lambda x: MATRIX[:24].reshape(4, 6) @ x,
    "convolution": lambda x: convolved(x, padding=1, stride=2),
    "transposed convolution": lambda x: F.conv_transpose2d(x, KERNEL.transpose(0, 1), WIDE[:3], stride=2),
    "groups": lambda x: F.conv2d(x, KERNEL[:2, :1], groups=2),
    "normalised": lambda x: convolved((x - SCALES) / SCALES),
    "normalised in place": in_place,
    "from a constant": lambda x: convolved(0.5 - 2.0 * x),
    "batch norm": lambda x: convolved(F.batch_norm(x, WIDE[:2], WIDE[8:], WIDE[3:5], WIDE[:2])),
    "padded by a constant": lambda x: convolved(F.pad(x, (1, 2, 0, 1), value=0.7)),
    "permuted and cut": lambda x: convolved(x.permute(0, 1, 3, 2)[:, :, 1:, ::2]),
    "flipped channels": lambda x: convolved(x.flip(1).unsqueeze(2).squeeze(2)),
    "shuffled": lambda x: dense(F.pixel_unshuffle(x, 2)),
    "another shape and kind": lambda x: dense(x.view_as(torch.zeros(len(x), 72)).to(torch.float64)),
}
REPEATED = {
    "repeated by a product": lambda x: convolved(x[:, :1] * SCALES),
    "repeated by a sum": lambda x: convolved(x[:, :1] + SCALES),
    "expanded": lambda x: convolved(x[:, :1].expand(-1, 2, -1, -1)),
    "expanded alike": lambda x: convolved(x[:, :1].expand_as(torch.zeros(len(x), 2, 6, 6))),
    "reflected": lambda x: convolved(F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "chosen twice": lambda x: convolved(x[:, [0, 0]]),
    "joined with itself": lambda x: convolved(torch.cat([x[:, :1], x[:, :1]], 1)),
    "added to itself": lambda x: convolved(x + x),
    "added to its mirror image": lambda x: convolved(x + x.flip(1)),
    "unfolded": lambda x: F.unfold(x, 3).transpose(1, 2) @ MATRIX[:90].reshape(18, 5),
    "pooled": lambda x: convolved(F.avg_pool2d(x, 2, 1)),
    "summed in einsum": lambda x: torch.einsum("ncij,k->nc", x, WIDE),
}


def over_l2_ball(f, x, eps):
    path = Trace(nn.Identity().eval())
    spread = torch.full_like(x[:1], eps).expand(x.shape)
    with path.following(nn.Identity()):
        return f(BoundTensor(x, Bounds(Box(x - eps, x + eps), spread=spread), "input", path))


@pytest.mark.parametrize("name", [*EXACT, *REPEATED])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), eps=st.floats(0.0, 3.0))
def test_an_l2_ball_stays_inside_the_first_layer_and_reaches_its_ends(name, seed, eps):
    torch.manual_seed(seed)
    f, x = {**EXACT, **REPEATED}[name], torch.randn(2, 2, 6, 6, dtype=torch.float64)
    got = over_l2_ball(f, x, eps)
    value, (lower, upper) = f(x), got.box
    rows = torch.autograd.functional.jacobian(lambda one: f(one[None])[0].flatten(), x[0])
    # The worst points of each unit, and random ones on the sphere.
    worst = F.normalize(torch.cat([rows, -rows, torch.randn(50, *x[0].shape, dtype=x.dtype)]).flatten(1)).reshape(
        -1, *x[0].shape
    )
    there = f(x[0] + eps * worst)
    assert (there >= lower[0] - 1e-9).all() and (there <= upper[0] + 1e-9).all()
    if name in EXACT:
        reach = eps * rows.flatten(1).norm(dim=1)
        torch.testing.assert_close(lower[0].flatten(), value[0].flatten() - reach, rtol=0, atol=1e-9)
        torch.testing.assert_close(upper[0].flatten(), value[0].flatten() + reach, rtol=0, atol=1e-9)


def test_a_layer_of_zeros_has_a_finite_gradient_over_an_l2_ball():
    weight = torch.zeros(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    box = over_l2_ball(lambda x: F.conv2d(x, weight), torch.rand(2, 2, 6, 6, dtype=torch.float64), 0.5).box
    (box.upper - box.lower).sum().backward()
    assert weight.grad.isfinite().all()
