"""PyTorch: what a pass of plain tensors does besides: differentiable twice, or watched."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from art_entropic.backends.torch.bounds import NONLINEARITIES
from art_entropic.backends.torch.rules import gain_and_shift
from art_entropic.backends.torch.tensor import Path, name_of, tensors_in

_T = torch.Tensor


class _StraightReLU(torch.autograd.Function):
    """ReLU whose gradient does not depend on its input where it is differentiated again; under `torch.vmap` too.

    PyTorch's own sends that second derivative, which is zero, back through the whole network.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0] > 0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        active: torch.Tensor = ctx.saved_tensors[0]
        return gradient * active


def _hard_sigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """PyTorch's own has no second derivative."""
    result = F.hardtanh(input / 6.0 + 0.5, 0.0, 1.0)
    return input.copy_(result) if inplace else result


class TwiceDifferentiated(TorchFunctionMode):
    """Inside, ReLUs are ready for a second differentiation at no needless cost, and hard sigmoids at all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return _hard_sigmoid(*args, **(kwargs or {}))
        if func in (F.relu, torch.relu, _T.relu) and not (kwargs or {}).get("inplace", False) and len(args) == 1:
            return _StraightReLU.apply(args[0])
        return func(*args, **(kwargs or {}))


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


class BatchStatistics(TorchFunctionMode):
    """Inside, keeps mean and variance by which batch norm standardises a batch, in the graph of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._uses = _Uses()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            asked = _asked(args, kwargs)
            use, x = self._uses.of(asked), asked["input"]
            if asked.get("training", False):
                axes = [axis for axis in range(x.ndim) if axis != 1]
                variance, mean = torch.var_mean(x.float(), axes, correction=0)
                self._kept[use] = mean, variance
        return func(*args, **(kwargs or {}))

    def again(self) -> TorchFunctionMode:
        """Inside, batch norm standardises another pass of the same network by them, as far as there are any."""
        return _Standardised(self._kept)


class _Standardised(TorchFunctionMode):
    def __init__(self, statistics: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self._statistics, self._uses = statistics, _Uses()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            asked = _asked(args, kwargs)
            statistics = self._statistics.get(self._uses.of(asked))
            if statistics is not None:
                asked |= {"running_mean": statistics[0], "running_var": statistics[1], "training": False}
                return _standardised(**asked)
        return func(*args, **(kwargs or {}))


def _asked(args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of `F.batch_norm` by name."""
    return dict(zip(_BATCH_NORM, args, strict=False)) | (kwargs or {})


class _Uses:
    """Tells the calls of batch norm in one pass apart, in a way that holds for the next pass too."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()

    def of(self, asked: dict[str, Any]) -> tuple[int, int]:
        # Buffers are other tensors in a pass that must not change them; those without weights are told apart by their order.
        weight = asked.get("weight")
        layer = 0 if weight is None else id(weight)
        self._seen[layer] += 1
        return layer, self._seen[layer]


def _standardised(
    input: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.batch_norm` by given statistics, through which gradients flow: PyTorch's own has none for them."""
    gain, shift = gain_and_shift(running_mean, running_var, weight, bias, eps, input.ndim)
    return (input * gain + shift).to(input.dtype)


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    """Names what a living tensor holds until it is changed in place."""
    return id(tensor), tensor._version


class Recorder(TorchFunctionMode):
    """Watches plain tensors enter nonlinearities; works for networks without interval rules too."""

    def __init__(self, trace: Path, model: nn.Module) -> None:
        super().__init__()
        self._trace = trace
        self._sources: dict[int, str] = {}
        self._kept: dict[tuple[int, int], torch.Tensor] = {}
        self._alive: list[torch.Tensor] = []  # an id names a tensor only while the tensor lives
        self._weights = {_state(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input")
        # A gate that is computed from weights alone says nothing of the input, and has no box either.
        if func in NONLINEARITIES and isinstance(first, torch.Tensor) and _state(first) not in self._weights:
            self._trace.record(self._sources.get(id(first), "input"), self.kept(first))
        of_weights = all(_state(tensor) in self._weights for tensor in tensors_in((args, kwargs)))
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._alive.append(tensor)
            self._sources[id(tensor)] = self._trace.source(name_of(func))
            if of_weights:
                self._weights.add(_state(tensor))
        return result

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy, one for each state of the tensor: the network may work in place."""
        state = _state(tensor)
        if state not in self._kept:
            self._alive.append(tensor)
            self._kept[state] = tensor.clone()
        return self._kept[state]

    def source(self, tensor: torch.Tensor) -> str:
        return self._sources.get(id(tensor), "output")
