"""PyTorch: networks described as data, as modules and ART estimators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_entropic.backends.architecture import (
    NORM_EPSILON,
    NORM_MOMENTUM,
    Architecture,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    initial_weights,
)
from art_entropic.backends.torch.devices import on_device
from art_entropic.ops import Array

ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


def build_classifier(
    architecture: Architecture,
    *,
    input_shape: tuple[int, int, int],
    nb_classes: int,
    clip_values: tuple[float, float],
    learning_rate: float,
    seed: int,
    device: str | None = None,
) -> Any:
    """An ART PyTorchClassifier (NCHW, Adam, cross-entropy); see `Framework`. Without `device` ART takes the current GPU."""
    model = _network(architecture, input_shape, initial_weights(architecture, input_shape, seed))
    height, width, channels = input_shape
    with on_device(None if device is None else torch.device(device)) as kind:
        return PyTorchClassifier(
            model=model,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.Adam(model.parameters(), lr=learning_rate),
            input_shape=(channels, height, width),
            nb_classes=nb_classes,
            clip_values=clip_values,
            channels_first=True,
            device_type=kind,
        )


def _network(
    architecture: Architecture, input_shape: tuple[int, int, int], weights: list[tuple[Array, Array]]
) -> nn.Sequential:
    modules: list[nn.Module] = []
    height, width, channels = input_shape
    flattened: tuple[int, int, int] | None = None
    remaining = iter(weights)
    for layer in architecture:
        match layer:
            case Conv():
                kernel, bias = next(remaining)
                modules.append(nn.Conv2d(channels, layer.filters, layer.kernel, layer.stride, layer.padding))
                _fill(modules[-1], kernel.transpose(3, 2, 0, 1), bias)
                if layer.batch_norm:
                    modules.append(nn.BatchNorm2d(layer.filters, NORM_EPSILON, 1 - NORM_MOMENTUM))
                modules.append(ACTIVATIONS[layer.activation]())
                height = (height + 2 * layer.padding - layer.kernel) // layer.stride + 1
                width = (width + 2 * layer.padding - layer.kernel) // layer.stride + 1
                channels = layer.filters
            case MaxPool():
                modules.append(nn.MaxPool2d(layer.size))
                height, width = height // layer.size, width // layer.size
            case Flatten():
                modules.append(nn.Flatten())
                flattened = (height, width, channels)
            case Dense():
                kernel, bias = next(remaining)
                if flattened is not None:
                    # The description flattens (height, width, channel); PyTorch flattens (channel, height, width).
                    kernel = kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                    flattened = None
                modules.append(nn.Linear(*kernel.shape))
                _fill(modules[-1], kernel.T, bias)
                if layer.activation is not None:
                    modules.append(ACTIVATIONS[layer.activation]())
    return nn.Sequential(*modules)


def state_of(architecture: Architecture, input_shape: tuple[int, int, int], arrays: Sequence[Array]) -> dict[str, Array]:
    """See `Framework`."""
    kinds = [kind for layer in architecture for kind in _weighted(layer)]
    if len(arrays) != sum(len(kind) for kind in kinds):
        raise ValueError(f"`arrays` must be the {sum(map(len, kinds))} of the network, got {len(arrays)}")
    remaining = iter(arrays)
    taken = [[next(remaining) for _ in kind] for kind in kinds]
    pairs = [(kernel, bias) for kind, (kernel, bias, *_) in zip(kinds, taken, strict=True) if kind == _PAIR]
    norms = [four for kind, four in zip(kinds, taken, strict=True) if kind == _NORM]
    wish = [(kernel.shape, bias.shape) for kernel, bias in initial_weights(architecture, input_shape, seed=0)]
    got = [(kernel.shape, bias.shape) for kernel, bias in pairs]
    if wish != got:
        raise ValueError(f"kernels and biases must have the shapes {wish}, got {got}")
    network = _network(architecture, input_shape, pairs)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    places = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    for place, values in zip(places, norms, strict=True):
        state |= {f"{place}{name}": value for name, value in zip(_NORM, values, strict=True)}
    return state


_PAIR = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var")  # in the order of Keras: gamma, beta, mean, variance


def _weighted(layer: Any) -> list[tuple[str, ...]]:
    match layer:
        case Conv(batch_norm=True):
            return [_PAIR, _NORM]
        case Conv() | Dense():
            return [_PAIR]
    return []


def _fill(module: nn.Module, kernel: Array, bias: Array) -> None:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))  # type: ignore[operator]
        module.bias.copy_(torch.from_numpy(bias))  # type: ignore[operator]
