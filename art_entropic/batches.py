"""Where the batches of a retraining come from: the user's arrays, or a DataGenerator of ART with its own order."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from art_entropic._validate import positive_int
from art_entropic.ops import Array


class LabelledBatch(NamedTuple):
    """Some examples with their classes, and weights where the user gives them."""

    x: Any  # (n, ...)
    labels: Array  # class indices, (n,)
    weight: Array | None = None  # (n,), >= 0


class Source(Protocol):
    """Batches of one epoch after another."""

    steps: int  # of an epoch, as far as it can be known

    def batches(self, epoch: int) -> Iterator[LabelledBatch]: ...


class Arrays:
    """Shuffled batches; the order depends on seed and epoch only, so that a resumed run sees the same.

    Args:
        x: what `Backend.hold` gave out.
    """

    def __init__(self, x: Any, labels: Array, batch_size: int, seed: int) -> None:
        self._x, self._labels, self._seed = x, labels, seed
        edges = [*range(0, len(x), batch_size), len(x)]
        # Batch statistics of a single example do not exist: it joins the batch before it.
        if len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]
        self._edges = edges
        self.steps = len(edges) - 1

    def batches(self, epoch: int) -> Iterator[LabelledBatch]:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._x))
        for start, stop in zip(self._edges, self._edges[1:], strict=False):
            index = order[start:stop]
            yield LabelledBatch(self._x[index], self._labels[index])


Check = Callable[[Any, Any], tuple[Array, Array]]


class Generated:
    """Batches of an ART DataGenerator, checked one by one, each epoch as ART's own `fit_generator` takes them.

    What has a length (a DataLoader, a tf.data.Dataset, a keras.utils.PyDataset) begins anew with each epoch, which is all of
    it. What has none goes on where it stood, `size / batch_size` batches an epoch, and begins anew at its end where it can.

    Args:
        check: raises for what is no batch of this classifier.
    Raises:
        TypeError: not a DataGenerator of ART.
        ValueError: it has no size.
    """

    def __init__(self, generator: Any, check: Check) -> None:
        if not callable(getattr(generator, "get_batch", None)):
            raise TypeError(
                "`generator` must be a DataGenerator of ART, such as PyTorchDataGenerator(loader, size, batch_size), "
                f"KerasDataGenerator or TensorFlowV2DataGenerator, got {type(generator).__name__}"
            )
        if generator.size is None or generator.batch_size is None:
            raise ValueError("`generator` must have a size and a batch_size, got None")
        self._generator, self._check = generator, check
        length = _length_of(generator)
        self._begins_anew = length is not None
        self.steps = length or math.ceil(positive_int("generator.size", generator.size) / generator.batch_size)
        self._endless: Iterator[Any] | None = None

    def first(self) -> LabelledBatch:
        """The first batch, which training will see nevertheless."""
        if self._begins_anew:
            return self._checked(next(iter(self._from_the_beginning()), None))
        batch = next(self._going_on(), None)
        self._endless = chain([batch], self._going_on())
        return self._checked(batch)

    def batches(self, epoch: int) -> Iterator[LabelledBatch]:
        raw = self._from_the_beginning() if self._begins_anew else islice(self._going_on(), self.steps)
        batch = next(raw, None)
        if batch is None:
            raise ValueError(
                f"`generator` must give batches in every epoch, got none in epoch {epoch + 1}: an iterator cannot start again "
                "once it has ended; give a loader that can, or an iterator that never ends"
            )
        yield self._checked(batch)
        yield from map(self._checked, raw)

    def _from_the_beginning(self) -> Iterator[Any]:
        batches = self._generator.iterator
        if not _is_indexed(batches):
            yield from iter(batches)
            return
        for index in range(len(batches)):
            yield batches[index]
        batches.on_epoch_end()

    def _going_on(self) -> Iterator[Any]:
        if self._endless is None:
            batches = _iterator_of(self._generator)
            own = callable(batches) or not hasattr(batches, "__iter__")
            self._endless = (
                iter(self._generator.get_batch, None) if batches is None else _round_and_round(batches() if own else batches)
            )
        return self._endless

    def _checked(self, batch: Any) -> LabelledBatch:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise ValueError(
                "`generator` must give batches (x, y) or (x, y, sample_weight), "
                f"got {'none' if batch is None else f'a {type(batch).__name__}'}"
                f"{f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''}"
            )
        x, y, *weight = map(_as_array, batch)
        x, labels = self._check(x, y)
        return LabelledBatch(x, labels, _check_weight(weight[0], len(x)) if weight else None)


def _round_and_round(batches: Iterable[Any]) -> Iterator[Any]:
    """As ART goes on at the end of what can begin anew, such as a DataLoader of unknown length."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty or isinstance(batches, Iterator):
            return


def _iterator_of(generator: Any) -> Any:
    """What an ART generator wraps; None where a subclass of the user's makes its batches itself."""
    by_art = type(generator).get_batch.__module__.startswith("art.")
    return generator.iterator if by_art else None


def _length_of(generator: Any) -> int | None:
    """Number of batches of one pass over what begins anew; None where it does not, or where nobody knows."""
    batches = _iterator_of(generator)
    if batches is None or inspect.isgeneratorfunction(batches):
        return None
    if batches is generator:  # ART's NumpyDataGenerator
        return int(generator.batches_per_epoch)
    if isinstance(batches, Iterator) and not _is_indexed(batches):
        return None
    try:
        return len(batches) or None
    except TypeError:  # endless, or of unknown length
        return None


def _is_indexed(batches: Any) -> bool:
    """Whether it is a keras.utils.PyDataset, which is asked for its batches by number."""
    return all(hasattr(batches, name) for name in ("__getitem__", "__len__", "on_epoch_end"))


def _as_array(value: Any) -> Any:
    """A tensor of any framework as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def _check_weight(weight: Array, n: int) -> Array:
    weight = np.asarray(weight)
    if weight.shape not in ((n,), (n, 1)) or not np.issubdtype(weight.dtype, np.number):
        raise ValueError(f"`generator` must give one sample weight for each of {n} examples, got shape {weight.shape}")
    weight = np.asarray(weight, np.float32).reshape(n)
    if not np.isfinite(weight).all() or np.any(weight < 0) or not weight.any():
        raise ValueError(
            "`generator` must give sample weights that are finite, >= 0 and not all 0, "
            f"got values from {weight.min():g} to {weight.max():g}"
        )
    return weight


__all__ = ["Arrays", "Generated", "LabelledBatch", "Source"]
