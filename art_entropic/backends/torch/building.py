"""PyTorch: networks described as data, as modules and ART estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
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
    Encoder,
    Flatten,
    GlobalAverage,
    Layer,
    MaxPool,
    OneHot,
    Patches,
    Residual,
    Shape,
    TokenMean,
    initial_weights,
    shape_after,
    with_shapes,
)
from art_entropic.backends.torch.devices import on_device
from art_entropic.ops import Array

ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
_CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv1d, 3: nn.Conv2d}  # by the rank of what enters
_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm2d}
_MAX_POOLS: dict[int, type[nn.Module]] = {2: nn.MaxPool1d, 3: nn.MaxPool2d}


def build_classifier(
    architecture: Architecture,
    *,
    input_shape: Shape,
    nb_classes: int,
    clip_values: tuple[float, float],
    learning_rate: float,
    seed: int,
    device: str | None = None,
) -> Any:
    """An ART PyTorchClassifier (NCHW, Adam, cross-entropy); see `Framework`. Without `device` ART takes the current GPU."""
    model = _network(architecture, input_shape, initial_weights(architecture, input_shape, seed))
    *lengths, channels = input_shape
    with on_device(None if device is None else torch.device(device)) as kind:
        return PyTorchClassifier(
            model=model,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.Adam(model.parameters(), lr=learning_rate),
            input_shape=(channels, *lengths),
            nb_classes=nb_classes,
            clip_values=clip_values,
            channels_first=True,
            device_type=kind,
        )


def _network(architecture: Architecture, input_shape: Shape, weights: Sequence[Array]) -> nn.Sequential:
    modules: list[nn.Module] = []
    flattened: Shape | None = None
    remaining = iter(weights)
    for layer, shape in with_shapes(architecture, input_shape):
        if isinstance(layer, Flatten):
            flattened = shape
        modules += _modules(layer, shape, remaining, flattened)
        if isinstance(layer, Dense):
            flattened = None
    return nn.Sequential(*modules)


def _modules(layer: Layer, shape: Shape, weights: Iterator[Array], flattened: Shape | None) -> list[nn.Module]:
    """The modules of a layer, with the next weights.

    Args:
        flattened: what a Dense gets flattened from; None where nothing was flattened since the last one.
    """
    match layer:
        case Conv():
            return _convolution(layer, shape, list(islice(weights, 6 if layer.batch_norm else 2)))
        case Residual():
            return [_Residual(layer, shape, weights), ACTIVATIONS[layer.activation]()]
        case MaxPool():
            return [_MAX_POOLS[len(shape)](layer.size)]
        case GlobalAverage():
            return [_GlobalAverage()]
        case Flatten():
            return [nn.Flatten()]
        case Dense():
            kernel, bias = islice(weights, 2)
            if flattened is not None:
                # The description flattens (..., channel); PyTorch flattens (channel, ...).
                kernel = np.moveaxis(kernel.reshape(*flattened, -1), -2, 0).reshape(kernel.shape)
            linear = nn.Linear(*kernel.shape)
            _fill(linear, weight=kernel.T, bias=bias)
            return [linear] if layer.activation is None else [linear, ACTIVATIONS[layer.activation]()]
        case OneHot():
            return [_OneHot(layer.first)]
        case Patches():
            return [_Patches(layer, shape, list(islice(weights, 3)))]
        case Encoder():
            return [_encoder(layer, shape[-1], list(islice(weights, 16)))]
        case TokenMean():
            return [_norm(shape[-1], islice(weights, 2)), _TokenMean()]


def _convolution(layer: Conv, shape: Shape, weights: list[Array]) -> list[nn.Module]:
    kernel, bias, *norm = weights
    convolution = _CONVOLUTIONS[len(shape)](shape[-1], layer.filters, layer.kernel, layer.stride, layer.padding)
    # Keras has (..., in, out), PyTorch (out, in, ...).
    _fill(convolution, weight=np.moveaxis(kernel, (-1, -2), (0, 1)), bias=bias)
    modules = [convolution]
    if norm:
        modules.append(_NORMS[len(shape)](layer.filters, NORM_EPSILON, 1 - NORM_MOMENTUM))
        _fill(modules[-1], **dict(zip(("weight", "bias", "running_mean", "running_var"), norm, strict=True)))
    if layer.activation is not None:
        modules.append(ACTIVATIONS[layer.activation]())
    return modules


class _Residual(nn.Module):
    """A basic block up to its last activation. It takes the next weights, in the order of `beside`."""

    def __init__(self, layer: Residual, shape: Shape, weights: Iterator[Array]) -> None:
        super().__init__()
        (first, second), shortcut = layer.body, layer.shortcut(shape)
        entering = list(islice(weights, 6))
        pair, other = list(islice(weights, 2)), list(islice(weights, 0 if shortcut is None else 2))
        pair += islice(weights, 4)
        other += islice(weights, 0 if shortcut is None else 4)
        inner = _convolution(second, shape_after(first, shape), pair)
        self.body = nn.Sequential(*_convolution(first, shape, entering), *inner)
        self.shortcut = nn.Identity() if shortcut is None else nn.Sequential(*_convolution(shortcut, shape, other))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x) + self.shortcut(x)
        return result


class _GlobalAverage(nn.Module):
    """The mean of each channel, (n, c, ...) to (n, c)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2)


class _OneHot(nn.Module):
    """See `OneHot`."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, : self.first], (2.0 * x[:, self.first :] - 0.5).clamp(0.0, 1.0)], dim=1)


class _Patches(nn.Module):
    """See `Patches`; (n, c, h, w) to (n, tokens, width)."""

    def __init__(self, layer: Patches, shape: Shape, weights: list[Array]) -> None:
        super().__init__()
        (self.embedding,) = _convolution(layer.embedding, shape, weights[:2])
        self.positions = nn.Parameter(torch.from_numpy(np.array(weights[2])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.embedding(x).flatten(2).transpose(1, 2) + self.positions
        return result


def _encoder(layer: Encoder, width: int, weights: list[Array]) -> nn.Module:
    block = nn.TransformerEncoderLayer(
        width, layer.heads, layer.hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    kernels, biases = weights[2:8:2], weights[3:8:2]
    _fill(
        block.self_attn,
        in_proj_weight=np.concatenate([kernel.reshape(width, width).T for kernel in kernels]),
        in_proj_bias=np.concatenate([bias.reshape(width) for bias in biases]),
    )
    _fill(block.self_attn.out_proj, weight=weights[8].reshape(width, width).T, bias=weights[9])
    block.norm1, block.norm2 = _norm(width, weights[:2]), _norm(width, weights[10:12])
    _fill(block.linear1, weight=weights[12].T, bias=weights[13])
    _fill(block.linear2, weight=weights[14].T, bias=weights[15])
    return block


def _norm(width: int, weights: Iterable[Array]) -> nn.LayerNorm:
    norm, (scale, shift) = nn.LayerNorm(width, NORM_EPSILON), weights
    _fill(norm, weight=scale, bias=shift)
    return norm


class _TokenMean(nn.Module):
    """(n, tokens, width) to (n, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def state_of(architecture: Architecture, input_shape: Shape, arrays: Sequence[Array]) -> dict[str, Array]:
    """See `Framework`."""
    wish = [array.shape for array in initial_weights(architecture, input_shape, seed=0)]
    if len(arrays) != len(wish):
        raise ValueError(f"`arrays` must hold the {len(wish)} arrays of the network, got {len(arrays)}")
    got = [array.shape for array in arrays]
    if wish != got:
        raise ValueError(f"`arrays` must have the shapes {wish}, got {got}")
    return {name: tensor.numpy() for name, tensor in _network(architecture, input_shape, arrays).state_dict().items()}


def _fill(module: nn.Module, **arrays: Array) -> None:
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))
