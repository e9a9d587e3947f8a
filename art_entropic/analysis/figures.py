"""Profiles as a table of pandas and as a figure of matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from art_entropic.analysis.reader import as_float
from art_entropic.analysis.readings import PROFILE_MEASURES
from art_entropic.palette import colours as palette
from art_entropic.records import ProfileRow


def plot_layers(axes: Any, rows: Sequence[ProfileRow], measure: str, colours: Mapping[str, str] | None = None) -> None:
    """One measure through the layers, in nats per unit, into matplotlib axes; see `draw`."""
    shown = [row for row in rows if row.measure == measure and math.isfinite(as_float(row.value))]
    if not shown:
        reasons = "; ".join(dict.fromkeys(row.reason for row in rows if row.measure == measure and row.reason))
        why = f": {reasons}" if reasons else ""
        raise ValueError(f"`measures` must name measures with values to plot, got {measure!r} without any{why}")
    models = tuple(dict.fromkeys(row.model for row in rows))
    shades = {**palette(models), **(colours or {})}
    for model in models:
        line = [row for row in shown if row.model == model]
        depth = [row.depth for row in line]
        by_unit = PROFILE_MEASURES[measure].by_unit
        low, value, high = (
            [as_float(getattr(row, end)) / (row.units if by_unit else 1) for row in line] for end in ("low", "value", "high")
        )
        axes.fill_between(depth, low, high, color=shades[model], alpha=0.2, linewidth=0)
        axes.plot(depth, value, marker="o", color=shades[model], label=model, markersize=4.5, linewidth=1.8)
    _name_layers(axes, shown)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_ylabel("nats per unit" if PROFILE_MEASURES[measure].by_unit else "nats")


def _name_layers(axes: Any, shown: Sequence[ProfileRow]) -> None:
    models = {row.model for row in shown}
    names = {tuple((label_of(row), row.depth) for row in shown if row.model == model) for model in models}
    if len(names) > 1:
        axes.set_xlabel("relative depth (0 input, 1 logits)")
        return
    layers = names.pop()
    axes.set_xticks([depth for _, depth in layers], [layer for layer, _ in layers], rotation=30, ha="right")


def label_of(row: ProfileRow) -> str:
    """What a reader calls the layer of a row."""
    return row.label or row.layer


def layers_of(rows: Sequence[ProfileRow], model: str) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row.layer, row.units) for row in rows if row.model == model and row.layer))


def deepest_layers(rows: Sequence[ProfileRow], model: str) -> str:
    found = [row for row in rows if row.model == model and row.layer]
    return max(found, key=lambda row: row.position).layer if found else ""
