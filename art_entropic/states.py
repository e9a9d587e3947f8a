"""State as JSON can say it: of schedulers, whose dictionaries hold numbers as keys, counters, tuples and infinities."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_TAG = "kind"


def plain_state(value: Any, name: str = "scheduler") -> Any:
    """A state of plain values as JSON can say it and `restored_state` reads it.

    Raises:
        ValueError: it holds something that is no plain value, such as a function.

    >>> restored_state(plain_state({2: (0.1, float("inf"))}))
    {2: (0.1, inf)}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else {_TAG: "float", "value": repr(number)}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {_TAG: kind, "value": [[plain_state(key), plain_state(one, f"{name}.{key}")] for key, one in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [plain_state(one, f"{name}[{index}]") for index, one in enumerate(value)]
        return items if isinstance(value, list) else {_TAG: "tuple", "value": items}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain_state(value.item(), name)
    raise ValueError(f"`{name}` must hold plain values to be kept in a checkpoint, got {type(value).__name__}")


def restored_state(value: Any) -> Any:
    """What `plain_state` was given."""
    if isinstance(value, list):
        return [restored_state(one) for one in value]
    if not isinstance(value, dict):
        return value
    kind, content = value[_TAG], value["value"]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(map(restored_state, content))
    pairs = {restored_state(key): restored_state(one) for key, one in content}
    return Counter(pairs) if kind == "counter" else pairs


@contextlib.contextmanager
def kept_numpy_generator() -> Iterator[None]:
    """NumPy's global generator is afterwards where it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
