"""PyTorch: a tensor that carries a box through a network's own code, and the path that it takes there."""

from __future__ import annotations

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from art_entropic.backends.curvature import bends
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.torch.devices import is_out_of_memory
from art_entropic.backends.torch.network import uncompiled
from art_entropic.ops import Box


class Bounds:
    """The box around a tensor, as it is recorded: one object for each state of a tensor that a network changes in place.

    Args:
        radius: half its width, where it is at hand.
        spread: r, of the tensor's shape, where the tensor is its value + r d for a d with |d|_2 <= 1: an L2 ball of inputs of
            which each feature was at most moved, shifted and scaled.
    """

    def __init__(self, box: Box, radius: torch.Tensor | None = None, spread: torch.Tensor | None = None) -> None:
        self.box, self.radius, self.spread = box, radius, spread


def _make_plain(holder: dict[Any, Any] | list[Any]) -> None:
    """Put the plain value in the place of each bound tensor of a dictionary or list, and of those within."""
    for key, held in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        if type(held) is BoundTensor:
            holder[key] = held.value
        elif type(held) in (dict, list):
            _make_plain(held)


class Path(ABC):
    """The module that is running, the pre-activations met so far, and the bound tensors that live."""

    def __init__(self, model: nn.Module) -> None:
        self._stack: list[tuple[str, nn.Module]] = [("", model)]
        self.layers: list[tuple[str, Any]] = []
        self.curved: str | None = None  # the first operation that bends
        self.differentiates = torch.is_grad_enabled()
        self._last = self._stack[0]
        self._living: list[weakref.ref[BoundTensor]] = []
        self._severed: list[list[weakref.ref[BoundTensor]]] = []

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[Path]:
        """Know the running module by forward hooks, which are removed on leaving."""
        handles = []

        def enter(module: nn.Module, _: Any) -> None:
            self._last = (names[module], module)
            self._stack.append(self._last)

        def leave(*_: Any) -> None:
            self._stack.pop()

        names = {module: uncompiled(name) for name, module in model.named_modules() if uncompiled(name)}
        try:
            for module in names:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for module in model.modules():
                # A module that keeps what it saw keeps the plain value, as it would have.
                _make_plain(vars(module))

    @contextlib.contextmanager
    def refusing(self, model: nn.Module) -> Iterator[Path]:
        """`following`, where whatever fails but memory says that this network cannot be looked into.

        Raises:
            NoIntervalRuleError: with the error that the network's own code raises on what is not quite a tensor.
        """
        try:
            with self.following(model):
                yield self
        except NoIntervalRuleError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            name, module = self._last
            kind = type(module).__name__
            raise NoIntervalRuleError(
                name or kind, kind, f"following it with bounds fails with {type(error).__name__}: {error}"
            ) from error

    def source(self, function: str) -> str:
        """Name of what is being computed: the leaf module's path, else the enclosing module's path and the function."""
        name, module = self._stack[-1]
        if name and next(module.children(), None) is None:
            return name
        return f"{name}.{function}" if name else function

    def running(self, function: str) -> tuple[str, str]:
        """(path, class or function) for an error message."""
        name, module = self._stack[-1]
        leaf = next(module.children(), None) is None
        return name or type(module).__name__, type(module).__name__ if leaf and name else f"torch function {function!r}"

    @property
    def training(self) -> bool:
        """Mode of the running module."""
        return self._stack[-1][1].training

    def live(self, bound: BoundTensor) -> None:
        """Know a bound tensor for as long as the network holds it."""
        self._living.append(weakref.ref(bound))

    def aliases(self, bound: BoundTensor) -> list[BoundTensor]:
        """The other living bound tensors that share its memory, as views and no-op conversions do."""
        self._living = [reference for reference in self._living if reference() is not None]
        others = (reference() for reference in self._living)
        return [other for other in others if other is not None and other is not bound and _share_memory(other, bound)]

    def sever(self, bounds: Iterable[BoundTensor]) -> None:
        """Note that these share memory in the network and share it no more here."""
        self._severed.append([weakref.ref(bound) for bound in bounds])

    def is_severed(self, bound: BoundTensor) -> bool:
        """Whether a tensor that lives shares memory with this one in the network, but not here."""
        for group in self._severed:
            living = [member for member in (reference() for reference in group) if member is not None]
            together = [_share_memory(member, bound) for member in living]
            if any(together) and not all(together):
                return True
        return False

    def run(self, function: str, operands: int) -> None:
        """Note that a function runs, and how many of its arguments depend on the input."""
        if self.curved is None and bends(function, operands):
            self.curved = function

    def standardised(self, result: torch.Tensor, value: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """`result`, which is value * gain + shift, where both were taken from the batch."""
        return result

    def record(self, source: str, value: Any) -> None:
        if all(value is not seen for _, seen in self.layers):
            self.layers.append((source, value))

    def finish(self, source: str, logits: Any) -> None:
        """The logits come last, even where they entered a nonlinearity on the way."""
        self.layers = [(name, seen) for name, seen in self.layers if seen is not logits] + [(source, logits)]

    def named(self) -> list[tuple[str, Any]]:
        """The pre-activations with unique names."""
        count: dict[str, int] = {}
        result = []
        for name, value in self.layers:
            count[name] = count.get(name, 0) + 1
            result.append((name if count[name] == 1 else f"{name}#{count[name]}", value))
        return result

    @abstractmethod
    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a torch function returns that is called with bound tensors.

        Raises:
            NoIntervalRuleError: it has no rule.
        """


class BoundTensor(torch.Tensor):
    """A value and the box around it, standing in for a tensor inside a forward method. It has no storage of its own."""

    value: torch.Tensor
    bounds: Bounds
    source: str
    path: Path

    @staticmethod
    def __new__(cls, value: torch.Tensor, box: Box | Bounds, source: str, path: Path) -> BoundTensor:
        bound: BoundTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=value.device,
        )
        bound.value, bound.source, bound.path = value, source, path
        bound.bounds = box if isinstance(box, Bounds) else Bounds(box)
        path.live(bound)
        return bound

    @property
    def box(self) -> Box:
        return self.bounds.box

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return next(bounds_in((args, kwargs))).path.answer(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        # Reached only by code that goes round torch functions (compiled or scripted); there is no storage to compute with.
        bound = next(bounds_in((args, kwargs)))
        raise NoIntervalRuleError(*bound.path.running(name_of(func)), hint="it bypasses torch functions, as compiled code does")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"BoundTensor(shape={tuple(self.value.shape)}, source={self.source!r})"


def name_of(func: Any) -> str:
    """Of a torch function."""
    # A property comes as the method of a descriptor, which knows the property's name.
    of = getattr(func, "__self__", None) if getattr(func, "__name__", "") in ("__get__", "__set__") else None
    return getattr(func if of is None else of, "__name__", str(func)).strip("_")


def bounds_in(tree: Any) -> Iterator[BoundTensor]:
    """The bound tensors among arguments, whatever lists and dictionaries they are in."""
    if isinstance(tree, BoundTensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from bounds_in(item)
    elif isinstance(tree, dict):
        yield from bounds_in(tuple(tree.values()))


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors among arguments or results."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()))


def replaced(tree: Any, part: Callable[[BoundTensor], torch.Tensor]) -> Any:
    """Arguments with one part of each bound tensor in its place."""
    if isinstance(tree, BoundTensor):
        return part(tree)
    if isinstance(tree, (list, tuple)):
        items = [replaced(item, part) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        return {key: replaced(value, part) for key, value in tree.items()}
    return tree


def _share_memory(one: BoundTensor, other: BoundTensor) -> bool:
    here = one.value.untyped_storage()
    return here.nbytes() > 0 and here.data_ptr() == other.value.untyped_storage().data_ptr()


_T = torch.Tensor


def getters(*names: str) -> list[Any]:
    """Reading these properties reaches `__torch_function__` as the property's own getter."""
    return [getattr(torch.Tensor, name).__get__ for name in names]


# What can be asked of a bound tensor without a rule.
# fmt: off
METADATA = {
    *getters("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse", "is_quantized", "is_meta",
             "requires_grad", "itemsize", "is_mps", "is_nested", "is_mkldnn"),
    _T.size, _T.dim, _T.numel, _T.ndimension, _T.nelement, _T.__len__, _T.is_floating_point, _T.is_complex,
    _T.is_contiguous, _T.stride, _T.element_size, _T.get_device, torch.is_floating_point, torch.numel, torch.is_complex,
}
# fmt: on
