"""A row of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

CLASSES = 5
SEED = 0

Change = Callable[[Any], Any]
"""Maps a network to the one that is used in its place, such as the compiled one."""


@dataclass(frozen=True)
class Network:
    """A network as users get it.

    Attributes:
        title: package and name, as a reader would look them up.
        framework: name of its row of FRAMEWORKS.
        make: builds the ART classifier of five classes over it, with the same weights each time.
        packages: distributions beside the framework that its numbers depend on.
        without_rule: the first operation that has no interval rule; None where all have one.
        overflows: whether the bounds leave float32 when `interval` trains it from random weights on batches of four.
        warns: what the retraining must warn of.
        in_sample: whether every run of the tests takes it, for its family.
    """

    title: str
    framework: str
    make: Callable[[Change], Any]
    packages: tuple[str, ...] = ()
    without_rule: str | None = None
    overflows: bool = False
    warns: str | None = None
    in_sample: bool = False

    def build(self, change: Change = lambda network: network) -> Any:
        """The ART classifier, untrained; where asked for, over a changed network."""
        return self.make(change)


def points(classifier: Any, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs in the range of a classifier, float32, and labels of every class."""
    rng = np.random.default_rng(0)
    x = rng.random((n, *classifier.input_shape), np.float32) * top(classifier)
    return x, np.arange(n) % CLASSES


def top(classifier: Any) -> float:
    """The upper end of its inputs, which begin at 0."""
    return float(np.max(classifier.clip_values[1]))
