"""A training step's loss and gradients as one compiled graph.

`torch.compile` alone cannot have them: its tracer breaks at every operation of the joint pass, which lives in a tensor subclass
and in hooks, and it has no double backward pass, which `channel` needs. So the step is run once on copies of the weights, every
operation that it comes down to is recorded, those of the gradients included, and that flat graph is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from art_entropic.backends.protocol import Batch, Controls
from art_entropic.backends.torch.devices import kept_generators

Terms = Callable[[Batch, Controls], Mapping[str, torch.Tensor]]


def check_compiler() -> None:
    """Refuse `compile` where PyTorch finds no C++ compiler.

    Raises:
        ValueError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # the public API tells only in the middle of compiling
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "`compile` must be False on a machine without a C++ compiler, such as g++ or the one that the environment variable "
            "CXX names, got True"
        ) from error


def _identities(model: nn.Module) -> tuple[int, ...]:
    return tuple(map(id, (*model.parameters(), *model.buffers())))


def _check_hooks(model: nn.Module) -> None:
    """Refuse hooks on gradients, which a recorded step would skip without a word.

    Raises:
        ValueError: a parameter has one.
    """
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(f"the gradient of {name!r} has hooks, which would be skipped")


class _Whole(nn.Module):
    """The network and a computation that calls it, as one module whose weights can be exchanged for a call."""

    def __init__(self, model: nn.Module, terms: Terms) -> None:
        super().__init__()
        self.model, self._terms = model, terms

    def forward(self, *inputs: Any) -> dict[str, torch.Tensor]:
        n, before = len(inputs) - len(Controls._fields), _identities(self.model)
        terms = dict(self._terms(Batch(*inputs[:n]), Controls(*inputs[n:])))
        if _identities(self.model) != before:
            raise ValueError("a forward method puts another tensor in the place of a buffer, which would be lost")
        return terms


class _Graph:
    """One recorded step: weights, batch and controls in, gradients and terms out."""

    def __init__(self, whole: _Whole, inputs: list[torch.Tensor]) -> None:
        _check_hooks(whole.model)
        tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        self._tensors = list(tensors.values())
        self._names: tuple[str, ...] = ()
        self._used: list[int] = []  # places of the tensors that have a gradient

        def step(tensors_: list[torch.Tensor], inputs_: list[torch.Tensor]) -> list[torch.Tensor]:
            terms = torch.func.functional_call(whole, dict(zip(tensors, tensors_, strict=True)), tuple(inputs_))
            places = [place for place, tensor in enumerate(tensors_) if tensor.requires_grad]
            found = torch.autograd.grad(terms["loss"], [tensors_[place] for place in places], allow_unused=True)
            pairs = [(place, gradient) for place, gradient in zip(places, found, strict=True) if gradient is not None]
            self._names, self._used = tuple(terms), [place for place, _ in pairs]
            return [gradient for _, gradient in pairs] + [value.detach() for value in terms.values()]

        copies = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in self._tensors]
        with kept_generators(inputs[0].device):  # recording draws dropout masks that nobody sees
            recorded = make_fx(step)(copies, inputs)
        self._compiled = compiled(_with_free_layouts(recorded))

    def run(self, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The terms; the gradients go where a backward pass puts them."""
        with torch.no_grad():
            results = self._compiled([tensor.detach() for tensor in self._tensors], inputs)
        for place, gradient in zip(self._used, results, strict=False):
            self._tensors[place].grad = gradient
        return dict(zip(self._names, results[len(self._used) :], strict=True))


def _with_free_layouts(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph without views that hold only for the memory layouts of the recording: compiled convolutions choose others."""
    for node in graph.graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    graph.recompile()
    return graph


def compiled(graph: torch.fx.GraphModule) -> Callable[..., list[torch.Tensor]]:
    """A recorded graph as machine code; dropout draws as it does without compiling."""
    result: Callable[..., list[torch.Tensor]] = torch.compile(
        graph, fullgraph=True, dynamic=False, options={"fallback_random": True}
    )
    return result


class Gradients:
    """Terms of a step, and the gradients of its loss left in the parameters."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def __call__(self, batch: Batch, controls: Controls) -> dict[str, torch.Tensor]:
        terms = dict(self.terms(batch, controls))
        terms["loss"].backward()
        return terms


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """Always with the same strides: NumPy has several for an axis of length 1, and each would be compiled anew."""
    return x.reshape(-1).view(x.shape)


class CompiledGradients(Gradients):
    """The same compiled. Batches of another length than the first, such as the last ones, are not compiled.

    A step is recorded again when a module changes its mode or a parameter is frozen or exchanged. What else a forward method
    decides in Python is decided once.

    Args:
        plain: the step as it is without compiling.
        is_out_of_memory: tells errors that are no fault of the network's.
    """

    def __init__(self, model: nn.Module, plain: Gradients, is_out_of_memory: Callable[[Exception], bool]) -> None:
        super().__init__(plain.terms)
        self._whole, self._is_out_of_memory = _Whole(model, plain.terms), is_out_of_memory
        self._shapes: list[torch.Size] | None = None
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, batch: Batch, controls: Controls) -> dict[str, torch.Tensor]:
        parts = [part for part in batch if part is not None]
        shapes = [part.shape for part in parts]
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:
            return super().__call__(batch, controls)
        # As tensors, since numbers would be part of the graph.
        inputs = [*map(_laid_out, parts), *torch.tensor(controls, dtype=torch.float32, device=batch.x.device).unbind()]
        model = self._whole.model
        modes = (*(module.training for module in model.modules()), *(one.requires_grad for one in model.parameters()))
        kind = (*modes, *_identities(model))
        if kind in self._graphs:
            return self._graphs[kind].run(inputs)
        try:
            graph = _Graph(self._whole, inputs)
            terms = graph.run(inputs)
            self._graphs[kind] = graph
            return terms
        except Exception as error:
            if self._is_out_of_memory(error):
                raise
            # The second line has the reason where the first one has PyTorch's name for the stage.
            reason = " ".join(str(error).split("\n")[:2]) or type(error).__name__
            raise ValueError(
                f"`compile` must be False for this network and this objective, whose step cannot be compiled: {reason}"
            ) from error
