"""What the cost benchmarks share: a clock, the steps that they compare, and the record that they leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from art_entropic.backends.protocol import Controls
from art_entropic.benchmark.keys import digest
from art_entropic.benchmark.provenance import machine_provenance
from art_entropic.measures import measure_of
from art_entropic.objective import EntropicObjective
from art_entropic.ops import Array
from art_entropic.records import MeasurementRecord, append_record

RESULTS = Path(__file__).parent.parent / "results"
RANDOM_IMAGES = "random images, seed 0"
NATURAL = Controls(0.0, 0.0, 0.0)


def timed(act: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def in_turns(kinds: Mapping[str, Callable[[int], object]], n: int, warm_up: int, turns: int = 3) -> dict[str, Array]:
    """Seconds of each kind on n images, (turns,), after a turn on a few: a change in the machine's speed meets all alike."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for act in kinds.values():
        act(warm_up)
    for _ in range(turns):
        for kind, act in kinds.items():
            seconds[kind].append(timed(lambda act=act: act(n)))
    return {kind: np.array(spent) for kind, spent in seconds.items()}


def entropic(measure: str, eps: float) -> tuple[EntropicObjective, Controls]:
    """A step of a measure with its own settings, at full strength."""
    one = measure_of(measure)
    return EntropicObjective(one), one.controls(eps).full()


def keep(
    name: str,
    values: dict[str, float],
    settings: dict[str, Any],
    *,
    command: str,
    frameworks: Sequence[str],
    data: str = RANDOM_IMAGES,
    digits: int = 3,
) -> None:
    """Append a record of what was measured to results/<name>.jsonl and print its values."""
    record = MeasurementRecord(
        key=digest(name=name, **settings),
        name=name,
        values={key: round(value, digits) for key, value in values.items()},
        settings=settings,
        provenance=machine_provenance(command, frameworks, data),
    )
    append_record(RESULTS / f"{name}.jsonl", record)
    print(*settings.values(), record.values)
