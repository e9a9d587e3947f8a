"""PyTorch: the state of an optimizer as arrays, and an optimizer that follows its parameters to another device."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from art_entropic.ops import Array
from art_entropic.states import plain_state, restored_state


def array_of(tensor: torch.Tensor) -> Array:
    """A copy of a tensor; NumPy has no bfloat16, and float32 holds all of its values."""
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
    return array


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    """Copies of all that an optimizer remembers and of what a scheduler may have changed, by names that say what they are."""
    state = optimizer.state_dict()
    arrays: dict[str, Array] = {"class": np.array(type(optimizer).__name__)}
    for index, slots in state["state"].items():
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor):
                arrays[f"tensor/{index}/{slot}"] = array_of(value)
            elif isinstance(value, (dict, list, tuple)):
                tensors: list[torch.Tensor] = []
                told = plain_state(_without_tensors(value, tensors), f"optimizer.state[{index}][{slot!r}]")
                arrays[f"nested/{index}/{slot}"] = np.array(json.dumps(told))
                arrays |= {f"nested-tensor/{index}/{slot}/{n}": array_of(one) for n, one in enumerate(tensors)}
            elif value is not None:
                arrays[f"number/{index}/{slot}"] = np.array(value)
    for index, group in enumerate(state["param_groups"]):
        arrays[f"lr/{index}"] = np.array(float(group["lr"]))
        arrays |= {f"group/{index}/{name}": np.array(value) for name, value in group.items() if _is_cycled(name, value)}
    return arrays


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Array]) -> None:
    """Give an optimizer what `optimizer_state` has copied.

    Raises:
        ValueError: it is of an optimizer of another class, or of other parameters.
    """
    saved, own = str(state["class"]), type(optimizer).__name__
    if saved != own:
        raise ValueError(f"`state` must be that of a {own}, got that of a {saved}")
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    result = copy.deepcopy(optimizer.state_dict())
    result["state"] = {}
    for key, array in state.items():
        kind, _, rest = key.partition("/")
        if kind in ("tensor", "number"):
            index, _, slot = rest.partition("/")
            value = torch.as_tensor(np.array(array)) if kind == "tensor" else array.item()
            _check_slot(f"{index}/{slot}", value, held[int(index)])
            result["state"].setdefault(int(index), {})[slot] = value
        elif kind == "nested":
            index, _, slot = rest.partition("/")
            value = _with_tensors(restored_state(json.loads(array.item())), f"nested-tensor/{rest}", state)
            result["state"].setdefault(int(index), {})[slot] = value
        elif kind == "lr":
            group = result["param_groups"][int(rest)]
            rate = float(array)
            group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], torch.Tensor) else rate
        elif kind == "group":
            index, _, name = rest.partition("/")
            if name in result["param_groups"][int(index)]:
                result["param_groups"][int(index)][name] = tuple(array.tolist()) if array.ndim else array.item()
    optimizer.load_state_dict(result)


def _is_cycled(name: str, value: Any) -> bool:
    """Whether a setting of an optimizer is a number, or some, that a scheduler may have changed: momenta go in cycles too."""
    numbers = value if isinstance(value, (list, tuple)) and value else [value]
    return name not in ("params", "lr") and all(type(number) in (int, float) for number in numbers)


_TENSOR = "a tensor of this number"


def _without_tensors(value: Any, found: list[torch.Tensor]) -> Any:
    """A nested value with a number in the place of each tensor, which is appended to those found."""
    if isinstance(value, torch.Tensor):
        found.append(value)
        return {_TENSOR: len(found) - 1}
    if isinstance(value, dict):
        return {key: _without_tensors(one, found) for key, one in value.items()}
    return type(value)(_without_tensors(one, found) for one in value) if isinstance(value, (list, tuple)) else value


def _with_tensors(value: Any, path: str, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return torch.as_tensor(np.array(arrays[f"{path}/{value[_TENSOR]}"]))
        return {key: _with_tensors(one, path, arrays) for key, one in value.items()}
    return type(value)(_with_tensors(one, path, arrays) for one in value) if isinstance(value, (list, tuple)) else value


def _check_slot(name: str, value: Any, parameter: nn.Parameter) -> None:
    """What an optimizer remembers of a parameter has its shape, or is less, as the factors of a matrix are."""
    if isinstance(value, torch.Tensor) and value.shape != parameter.shape and value.numel() >= max(2, parameter.numel()):
        shapes = f"{tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}"
        raise ValueError(f"`state` must fit its parameter, got {name} of shape {shapes}")


def follow(optimizer: torch.optim.Optimizer, moved: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Give an optimizer the parameters that have been moved, and its state to where they are."""
    state = optimizer.state_dict()
    for group in optimizer.param_groups:
        group["params"] = [moved.get(parameter, parameter) for parameter in group["params"]]
    optimizer.state.clear()
    # Loading leaves on the processor what the optimizer wants there.
    optimizer.load_state_dict(state)
