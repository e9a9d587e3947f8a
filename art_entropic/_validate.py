"""Checks that return the clean value, or say which argument, what is wanted and what came."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import numpy as np

ClipValues = tuple[Any, Any] | None
NORMS = (math.inf, 2.0)  # of the balls that measures and bounds know; attacks know L1 too


def finite(name: str, value: Any) -> float:
    """A finite real number.

    Raises:
        TypeError: not a real number.
        ValueError: NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"`{name}` must be finite, got a number too large for a float") from error
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite, got {value!r}")
    return number


def non_negative(name: str, value: Any) -> float:
    """A finite real number >= 0."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"`{name}` must not be negative, got {value!r}")
    return number


def whole_number(name: str, value: Any) -> int:
    """A whole number of at least 0, as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"`{name}` must be a whole number of at least 0, got {value!r}")
    return int(value)


def positive_int(name: str, value: Any) -> int:
    """An integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be a whole number of at least 1, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value!r}")
    return int(value)


def seed_of(name: str, value: Any) -> int:
    """A whole number in [0, 2**31), which NumPy and every framework take as a seed."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= int(value) < 2**31:
        raise ValueError(f"`{name}` must be a whole number in [0, 2**31), got {value!r}")
    return int(value)


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the names in `choices`."""
    allowed = list(choices)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def flag(name: str, value: Any) -> bool:
    """True or False, as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {value!r}")
    return bool(value)


def listed(name: str, value: Any, members: str = "values") -> tuple[Any, ...]:
    """The members of a list or of another collection, a text and a mapping not being one.

    Args:
        members: what they are, in the plural, for the error.
    """
    try:
        if isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping)):
            return tuple(value)
    except TypeError:  # an array of no dimension
        pass
    raise TypeError(f"`{name}` must be a sequence of {members}, got {value!r}")


def check_callable(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"`{name}` must be callable, got {value!r} of type {type(value).__name__}")
    return cast(Callable[..., Any], value)


def file_path(name: str, value: Any) -> Path:
    """A place in the file system."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"`{name}` must be a path, got {value!r} of type {type(value).__name__}")
    return Path(value)


def file_to_write(name: str, value: Any) -> Path:
    """A file that is there or may be made, in a folder that is there."""
    path = file_path(name, value)
    if "\0" in str(path) or not path.name or path.is_dir():
        raise ValueError(f"`{name}` must be the path of a file, got {value!r}")
    if not path.parent.is_dir():
        raise ValueError(f"`{name}` must be in a folder that exists, got {value!r}")
    return path


def folder_to_write(name: str, value: Any) -> Path:
    """A folder that is there, or is made now, in which files can be written."""
    path = file_path(name, value)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # a ValueError for a null byte
        raise ValueError(f"`{name}` must be a folder that can be written, got {value!r} ({error})") from error
    return path


DEVICE_WISH = "'auto', 'cpu' or 'cuda[:i]'"


def device_word(value: Any) -> str:
    """A word that may name a device: "auto", "cpu", "cuda" or "cuda:i". Whether it is here, a framework knows."""
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"`device` must be {DEVICE_WISH}, got {value!r}")
    return value


def check_eps(eps: Any, clip_values: ClipValues) -> float:
    """A perturbation radius in the units of the raw input.

    Raises:
        TypeError: not a number.
        ValueError: not positive and finite, larger than the clip range, or (as a hint) in 0-255 units on 0-1 data.
    """
    radius = finite("eps", eps)
    if radius <= 0:
        raise ValueError(f"`eps` must be positive and in the units of `clip_values` {_shown(clip_values)}, got {eps!r}")
    if clip_values is not None:
        span = float(np.max(np.asarray(clip_values[1]) - np.asarray(clip_values[0])))
        if radius > span:
            hint = f"; did you mean {radius:g}/255 = {radius / 255:.4f}?" if span <= 1 and radius <= 255 else ""
            raise ValueError(
                f"`eps` must not exceed the range {span:g} of `clip_values` {_shown(clip_values)}, got {eps!r}{hint}"
            )
    return radius


def norm_of(norm: Any, known: tuple[float, ...] = (math.inf, 2.0, 1.0)) -> float:
    """The norm of a perturbation as a number, from what ART takes: infinity or "inf", 2, 1.

    Args:
        known: those that the caller can do.
    Raises:
        ValueError: none of them.
    """
    words = {"inf": math.inf, "2": 2.0, "1": 1.0}
    given = words.get(norm) if isinstance(norm, str) else norm
    if isinstance(given, Real) and not isinstance(given, bool) and given in known:
        return float(given)
    *others, last = ["'inf', np.inf" if math.isinf(one) else f"{one:g}" for one in known]
    raise ValueError(f"`norm` must be {', '.join(others)} or {last}, got {norm!r}")


def norm_name(norm: float) -> str:
    """As it is written behind an L."""
    return "inf" if math.isinf(norm) else f"{norm:g}"


def largest_distance(clip_values: Any, shape: tuple[int | None, ...], norm: float) -> float:
    """Of two inputs of that shape within clip_values; infinite where a length is open."""
    span = float(np.max(np.asarray(clip_values[1]) - np.asarray(clip_values[0])))
    if math.isinf(norm):
        return span
    return math.inf if None in shape else span * float(math.prod(map(int, filter(None, shape))) ** (1 / norm))


def check_radius(eps: Any, norm: float, clip_values: ClipValues, shape: tuple[int | None, ...]) -> float:
    """A radius of the ball of that norm, in the units of the raw input of that shape.

    Raises:
        TypeError: not a number.
        ValueError: not positive and finite, or larger than the distance of the farthest points in clip_values.
    """
    if math.isinf(norm) or clip_values is None:
        return check_eps(eps, clip_values)
    radius, largest = check_eps(eps, None), largest_distance(clip_values, shape, norm)
    if radius > largest:
        raise ValueError(
            f"`eps` must not exceed {largest:g}, the largest L{norm_name(norm)} distance between two points within "
            f"`clip_values`, got {eps!r}"
        )
    return radius


def check_points(classifier: Any, x: Any, y: Any, *, names: tuple[str, str] = ("x", "y")) -> tuple[np.ndarray, np.ndarray]:
    """Data of an ART classifier: `check_inputs` and `check_labels` with the shape, range and classes that it states.

    Args:
        names: of x and y, for an error.
    Returns:
        Inputs, float32 (n, *input_shape), and class indices, int64 (n,).
    """
    inputs = check_inputs(x, input_shape=tuple(classifier.input_shape), clip_values=classifier.clip_values, name=names[0])
    return inputs, check_labels(y, n=len(inputs), nb_classes=int(classifier.nb_classes), name=names[1])


def check_inputs(x: Any, *, input_shape: tuple[int, ...], clip_values: ClipValues, name: str = "x") -> np.ndarray:
    """Inputs as a float32 array of shape (n, *input_shape).

    Raises:
        TypeError: not an array of real numbers.
        ValueError: empty, wrong rank or shape, NaN or infinite, outside clip_values.
    """
    array = _as_array(name, x)
    if array.dtype == object or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"`{name}` must be an array of real numbers, got dtype {array.dtype}")
    if np.issubdtype(array.dtype, np.complexfloating):
        raise TypeError(f"`{name}` must be an array of real numbers, got dtype {array.dtype}")
    wanted = ("n", *input_shape)
    if array.ndim != len(wanted) or any(w not in (None, have) for w, have in zip(input_shape, array.shape[1:], strict=True)):
        raise ValueError(f"`{name}` must have shape ({', '.join(map(str, wanted))}), got {array.shape}")
    if len(array) == 0:
        raise ValueError(f"`{name}` must hold at least one example, got shape {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    # Reduced over the points first: a comparison point by point would take memory that grows with the data.
    lowest, highest = array.min(axis=0), array.max(axis=0)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        bad = ~np.isfinite(array)
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"`{name}` must be finite, got {int(bad.sum())} NaN or infinite values, the first at index {first}")
    if clip_values is not None:
        low, high = (np.asarray(value, dtype=np.float32) for value in clip_values)
        # Float rounding of data that was scaled in another precision is no error.
        slack = 1e-6 * np.abs(high - low)
        if np.any(lowest < low - slack) or np.any(highest > high + slack):
            hint = "; scale it, or give the estimator the clip_values of your data" if array.max() > 1 else ""
            raise ValueError(
                f"`{name}` must lie within `clip_values` {_shown(clip_values)}, "
                f"got values in [{array.min():g}, {array.max():g}]{hint}"
            )
        if np.any(lowest < low) or np.any(highest > high):  # else there would be a second copy of the data for nothing
            array = np.clip(array, low, high)
    return array


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # whatever an array of another library raises, such as a tensor that wants a gradient
        problem = f"{type(error).__name__}: {error}"
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__} that NumPy cannot read: {problem}") from error


def check_labels(y: Any, *, n: int, nb_classes: int, name: str = "y") -> np.ndarray:
    """Labels as class indices, int64, shape (n,), from indices (n,) or (n, 1) or one-hot rows (n, nb_classes).

    Raises:
        TypeError: not numbers.
        ValueError: wrong length or shape, a class out of range, soft labels.
    """
    array = _as_array(name, y)
    if array.dtype == object or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"`{name}` must be an array of class indices or one-hot rows, got dtype {array.dtype}")
    if array.ndim == 0 or len(array) != n:
        raise ValueError(f"`{name}` must hold one label for each of the {n} examples, got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] == nb_classes and nb_classes > 1:
        return _from_one_hot(array, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"`{name}` must have shape ({n},) or ({n}, {nb_classes}), got {array.shape}")
    index = array.astype(np.int64)
    if not np.array_equal(index, array):
        raise ValueError(f"`{name}` must hold whole class indices, got {array[index != array][0]!r}: soft labels do not work")
    wrong = (index < 0) | (index >= nb_classes)
    if wrong.any():
        raise ValueError(
            f"`{name}` must hold classes 0 to {nb_classes - 1}, got {int(index[wrong][0])} at index {int(np.argmax(wrong))}"
        )
    return index


def check_logits(logits: np.ndarray, nb_classes: int) -> None:
    """Refuse outputs of `classifier` that are not one finite logit per class, (n, nb_classes).

    Raises:
        ValueError: another shape, fewer than 2 classes, NaN or infinite, or probabilities (rows in [0, 1] that sum to 1).
    """
    if logits.ndim != 2 or logits.shape[1] != nb_classes or nb_classes < 2:
        raise ValueError(
            f"`classifier` must return one logit per class, shape (n, {nb_classes}) with at least 2 classes, got {logits.shape}"
        )
    if not np.all(np.isfinite(logits)):
        raise ValueError("`classifier` must return finite logits, got NaN or infinite values on `x`: is it trained?")
    if np.all(logits >= 0) and np.allclose(logits.sum(axis=1), 1.0, atol=1e-4):
        raise ValueError(
            "`classifier` must return logits, got probabilities (rows in [0, 1] that sum to 1): "
            "the bounds and the attacks need logits; art_entropic.to_logits(classifier) removes the final softmax"
        )


def _from_one_hot(array: np.ndarray, name: str) -> np.ndarray:
    if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
        row = int(np.argmax(~(np.isin(array, (0, 1)).all(axis=1) & (array.sum(axis=1) == 1))))
        raise ValueError(
            f"`{name}` must be one-hot, row {row} is {array[row]}: soft labels are not supported, "
            "entropic retraining needs the class of each example"
        )
    index: np.ndarray = np.argmax(array, axis=1).astype(np.int64)
    return index


def _shown(clip_values: ClipValues) -> str:
    if clip_values is None:
        return "(none set)"
    low, high = (np.asarray(value) for value in clip_values)
    return f"({low.min():g}, {high.max():g})"
