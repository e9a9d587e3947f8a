"""PyTorch: a user's own network, loss and optimizer: what they ask for, and how the network leaves as it came."""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from art_entropic.backends.protocol import OwnLoss
from art_entropic.backends.switches import HeldSwitch
from art_entropic.backends.torch.devices import kept_generators
from art_entropic.backends.torch.precision import without_cudnn


def uncompiled(name: str) -> str:
    """The name of a module or a weight without what `torch.compile` adds to it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


_locks: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def lock_of(model: nn.Module) -> Any:
    """The lock of a network: modules have one mode, so threads take their passes one after another."""
    return _locks.setdefault(model, threading.RLock())


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Inside, a network runs as its forward methods say: not compiled, and without checkpoints of activations.

    Compiled code knows nothing of bounds and of second derivatives. A checkpoint computes a part of the network again in the
    backward pass, where its mode, and what watches it, are others than they were.
    """
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing has been compiled, and importing it takes seconds
            stack.enter_context(_uncompiled)
        stack.enter_context(_without_checkpoints)
        yield


def _turn(context: Callable[[], contextlib.AbstractContextManager[Any]]) -> HeldSwitch:
    """A switch of PyTorch's, of the process though it comes as a context, so that threads share it."""

    def turn() -> Callable[[], None]:
        stack = contextlib.ExitStack()
        stack.enter_context(context())
        return stack.close

    return HeldSwitch(turn)


_uncompiled = _turn(lambda: torch.compiler.set_stance("force_eager"))
_plain_attention = _turn(lambda: sdpa_kernel(SDPBackend.MATH))


class _PlainFunction:
    """In place of `CheckpointFunction`: the function itself."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _plain_generator(*_: Any, **__: Any) -> Iterator[None]:
    """In place of the generator around a call that is checkpointed."""
    yield


# PyTorch has no switch for it. `checkpoint` looks these up where they are, however a network has imported it.
_PLAIN_CHECKPOINTS: dict[str, Any] = {
    "CheckpointFunction": _PlainFunction,
    "_checkpoint_without_reentrant_generator": _plain_generator,
}


def _take_checkpoints_away() -> Callable[[], None]:
    own = {name: getattr(checkpoint, name) for name in _PLAIN_CHECKPOINTS}
    vars(checkpoint).update(_PLAIN_CHECKPOINTS)
    return lambda: vars(checkpoint).update(own)


_without_checkpoints = HeldSwitch(_take_checkpoints_away)


@contextlib.contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside, a network computes in the form that can be differentiated twice: fused attention and cuDNN's LSTMs cannot be."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_written())
        stack.enter_context(_plain_attention)
        if torch.backends.cudnn.is_available() and any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(without_cudnn)
        yield


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no weight asks for a gradient, so that a graph leads to the input alone."""
    # One made in inference mode could not be told to ask again; no graph leads to it anyway.
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad and not parameter.is_inference()]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def own_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, modules read copies of their buffers: a gradient that is taken later must not see what later passes make of them.

    Running statistics and the vectors of a spectral norm are changed in place by each pass in training mode.
    """
    changed = [module._buffers for module in model.modules() if module._buffers and isinstance(module._buffers, dict)]
    before = [dict(buffers) for buffers in changed]
    for buffers in changed:
        buffers.update({name: tensor if tensor is None else tensor.clone() for name, tensor in buffers.items()})
    try:
        yield
    finally:
        for buffers, tensors in zip(changed, before, strict=True):
            buffers.update(tensors)


@contextlib.contextmanager
def unchanged(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Inside everything random starts from a seed. On leaving the network is as it came, whatever its passes have done.

    Weights, buffers, gradients, modes, and the generators of PyTorch, NumPy and Python. For one thread at a time.
    """
    with lock_of(model), _put_back(model, device):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


@contextlib.contextmanager
def _put_back(model: nn.Module, device: torch.device) -> Iterator[None]:
    # Modes, and what a module notes of them for itself: that its weights are merged, say.
    notes = [(module, _plain_notes(module)) for module in model.modules()]
    # A forward method may put another tensor in the place of a buffer; those of TorchScript cannot.
    registered = [(module, dict(module._buffers)) for module in model.modules() if isinstance(module._buffers, dict)]
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers())]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with torch.no_grad():
        values = [tensor.detach().clone() for tensor in tensors]
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with kept_generators(device):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
            for module, buffers in registered:
                module._buffers.clear()
                module._buffers.update(buffers)
            for tensor, value in zip(tensors, values, strict=True):
                tensor.data.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, note in notes:
                vars(module).update(note)


def _plain_notes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if value is None or isinstance(value, (bool, int, float, str))}


def main_output(outputs: Any) -> Any:
    """The logits of what a network returns in training: the field of that name, else the first member."""
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs


def own_loss(loss: Any, nb_classes: int) -> OwnLoss:
    """What `torch.nn.CrossEntropyLoss` asks for; any other loss is replaced by it, and the remarks say so."""
    if loss is F.cross_entropy:
        return OwnLoss()
    kind = type(loss)
    if kind not in (nn.CrossEntropyLoss, nn.NLLLoss):
        name = kind.__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", kind.__name__)
        return OwnLoss(remarks=(f"its loss is {name}; the retraining minimises the cross-entropy of the logits",))
    remarks = []
    if loss.reduction != "mean":
        remarks.append(f"its loss has reduction={loss.reduction!r}; the retraining takes the mean over each batch")
    weights = [1.0] * nb_classes if loss.weight is None else [float(value) for value in loss.weight]
    if 0 <= loss.ignore_index < nb_classes:
        weights[loss.ignore_index] = 0.0
    plain = all(value == 1.0 for value in weights)
    return OwnLoss(None if plain else tuple(weights), float(getattr(loss, "label_smoothing", 0.0)), tuple(remarks))


_SOFTMAX = (nn.Softmax, nn.LogSoftmax)


def remove_softmax(estimator: Any) -> str:
    """See `Backend`: the module nn.Softmax or nn.LogSoftmax that makes the output becomes nn.Identity."""
    model: nn.Module = estimator.model
    found = [
        (parent, name, f"{path}.{name}".lstrip("."), child)
        for path, parent in model.named_modules()
        for name, child in parent._modules.items()
        if type(child) in _SOFTMAX
    ]
    x = torch.rand((2, *estimator.input_shape), generator=torch.Generator().manual_seed(0)).to(estimator.device)
    for parent, name, path, child in reversed(found):
        of_output = F.log_softmax if isinstance(child, nn.LogSoftmax) else F.softmax
        with unchanged(model, estimator.device, seed=0), torch.no_grad():
            model.eval()
            before = model(x.clone())
            parent._modules[name] = nn.Identity()
            after = model(x.clone())
        same = before.shape == after.shape and torch.allclose(before, of_output(after, 1), rtol=1e-4, atol=1e-6)
        if same and not torch.equal(before, after):
            if isinstance(child, nn.LogSoftmax) and type(estimator.loss) is nn.NLLLoss:
                estimator._loss = _from_logits(estimator.loss)
            return str(path)
        parent._modules[name] = child
    raise ValueError(
        "`classifier` must end in a module nn.Softmax or nn.LogSoftmax, which can be removed, got a network that does not; "
        "if its forward method calls softmax itself, change it there"
    )


def _from_logits(loss: nn.NLLLoss) -> nn.CrossEntropyLoss:
    """The same loss for logits."""
    return nn.CrossEntropyLoss(loss.weight, ignore_index=loss.ignore_index, reduction=loss.reduction)


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Refuse an optimizer that would train nothing of the network, or that cannot be stepped from outside.

    Raises:
        ValueError: it is of another network, everything is frozen, or it needs a closure.
    """
    kind = type(optimizer).__name__
    own = {id(parameter): parameter for parameter in model.parameters()}
    if not any(parameter.requires_grad for parameter in own.values()):
        raise ValueError(
            "`classifier` must have parameters that require a gradient, got a network whose parameters are all frozen"
        )
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    here = [parameter for parameter in held if id(parameter) in own]
    if not here:
        raise ValueError(
            f"the optimizer of `classifier` must hold parameters of its network, got {kind} over those of another network, "
            "perhaps a copy: it would train nothing"
        )
    if not any(parameter.requires_grad for parameter in here):
        raise ValueError(
            f"the optimizer of `classifier` must hold parameters that are not frozen, got {kind} over frozen parameters only"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(f"the optimizer of `classifier` must take dense gradients, got {kind}")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"the optimizer of `classifier` must step without a closure, got {kind}, which evaluates the loss itself"
        )
