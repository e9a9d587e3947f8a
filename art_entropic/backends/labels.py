"""What a reader calls the layers of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from art_entropic.backends.architecture import Architecture, Conv, Dense, Flatten, GlobalAverage, MaxPool

LOGITS = "logits"
Kind = Literal["conv", "norm", "dense"]


class Measured(NamedTuple):
    """A measured layer.

    Attributes:
        name: of `Backend.layer_names`.
        kind: None for an operation that is no layer of these kinds, which keeps its name.
        width: units of a dense layer.
    """

    name: str
    kind: Kind | None
    width: int = 0


def labels(layers: Sequence[Measured]) -> dict[str, str]:
    """A label for each name, no two the same: convolutions by number, dense layers by width, the last one is the logits.

    >>> labels([Measured("0", "conv"), Measured("2", "conv"), Measured("5", "dense", 128), Measured("7", "dense", 10)])
    {'0': 'conv1', '2': 'conv2', '5': 'dense 128', '7': 'logits'}
    """
    seen: Counter[str] = Counter()
    found: dict[str, str] = {}
    for layer in layers:
        seen[layer.kind or ""] += 1
        usual = {"conv": f"conv{seen['conv']}", "norm": f"norm{seen['norm']}", "dense": f"dense {layer.width}"}
        found[layer.name] = layer.name if layer.kind is None else usual[layer.kind]
    if layers:
        found[layers[-1].name] = LOGITS
    return dict(zip(found, _unique(found.values()), strict=True))


def _unique(names: Iterable[str]) -> list[str]:
    count: Counter[str] = Counter()
    result = []
    for name in names:
        count[name] += 1
        result.append(name if count[name] == 1 else f"{name} ({count[name]})")
    return result


def labels_of(architecture: Architecture) -> tuple[str, ...] | None:
    """The labels of the measured layers of a network described as data; None where a kind of layer measures inside itself.

    >>> labels_of((Conv(16, 3), Flatten(), Dense(64), Dense(10, None)))
    ('conv1', 'dense 64', 'logits')
    """
    measured = []
    for number, layer in enumerate(architecture):
        match layer:
            case Conv():
                measured.append(Measured(str(number), "norm" if layer.batch_norm else "conv"))
            case Dense():
                measured.append(Measured(str(number), "dense", layer.units))
            case MaxPool() | Flatten() | GlobalAverage():
                pass
            case _:
                return None
    return tuple(labels(measured).values())
