"""Where information goes in the networks of a section."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from art_entropic.analysis.figures import label_of, plot_layers
from art_entropic.analysis.network import INPUT
from art_entropic.analysis.readings import PROFILE_MEASURES
from art_entropic.backends.labels import labels_of
from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.problems import PROBLEMS
from art_entropic.records import AnyRecord, ComparisonKey, ProfileRecord, ProfileRow, comparison_of
from art_entropic.report.figures import Figure, axes_of, inline_svg
from art_entropic.report.sections import INK, Section, colour, title_of
from art_entropic.report.table import NOTHING, Table, table_of

SHOWN_MEASURES = ("interval", "rivals")


@dataclass(frozen=True)
class LayerSection:
    """Where the information goes in the networks of one framework: a table and its figures."""

    table: Table
    sentence: str
    figures: tuple[Figure, ...]


def information(section: Section, records: Iterable[AnyRecord], *, salt: str, drawing: bool) -> list[LayerSection]:
    """The latest profile of each framework on the comparison of a section.

    Args:
        salt: makes the SVG identifiers of several sections on one page differ.
        drawing: whether there is matplotlib.
    """
    comparison = ComparisonKey(section.problem, section.network, section.n_train_limit, section.eps, section.norm)
    latest = {
        record.framework: record
        for record in records
        if isinstance(record, ProfileRecord)
        and (comparison_of(record), record.first_example) == (comparison, section.first_example)
        and record.n <= section.n
    }
    return [
        _section_of(labelled(latest[framework]), salt=f"{salt}-{framework}-information", drawing=drawing)
        for framework in section.frameworks
        if framework in latest
    ]


def labelled(record: ProfileRecord) -> ProfileRecord:
    """With labels of the layers, also where an older record has none: they follow from the network of the problem."""
    problem = PROBLEMS.get(record.problem)
    architecture = None if problem is None else problem.networks.get(record.network or problem.network)
    known = None if architecture is None else labels_of(architecture)
    layers = list(dict.fromkeys(row.layer for row in sorted(record.rows, key=lambda row: row.position) if row.layer))
    if known is None or len(layers) != 1 + len(known) or any(row.label for row in record.rows):
        return record
    found = dict(zip(layers, (INPUT, *known), strict=True))
    rows = [msgspec.structs.replace(row, label=found.get(row.layer, "")) for row in record.rows]
    return msgspec.structs.replace(record, rows=rows)


def _section_of(record: ProfileRecord, *, salt: str, drawing: bool) -> LayerSection:
    models = tuple(dict.fromkeys(row.model for row in record.rows))
    measures = tuple(name for name in SHOWN_MEASURES if any(_is_layer(row, name) for row in record.rows))
    places = dict.fromkeys((row.position, row.layer, label_of(row)) for row in record.rows if row.layer)
    framework = title_of(FRAMEWORKS, record.framework)
    return LayerSection(
        table=table_of(
            [
                "layer",
                *(f"{PROFILE_MEASURES[name].title}: {title_of(DEFENCES, model)}" for name in measures for model in models),
            ],
            [
                [label, *(_reading(record, model, layer, measure) for measure in measures for model in models)]
                for _, layer, label in sorted(places)
            ],
            title=f"Where the information goes, {framework}",
            notes=[
                "Information of a perturbation in each layer, in nats per unit, read at "
                f"{record.resolution} of the layer's spread between points; n = {record.n}. "
                "Less of it is better as long as the label gets through.",
                *record.notes,
            ],
        ),
        sentence=_said_of_layers(record, models),
        figures=tuple(_profile_figure(record, name, framework, salt=f"{salt}-{name}") for name in measures if drawing),
    )


def _is_layer(row: ProfileRow, measure: str) -> bool:
    return row.measure == measure and bool(row.layer) and row.value is not None and math.isfinite(float(row.value))


def _per_unit(row: ProfileRow) -> float:
    return math.nan if row.value is None else float(row.value) / row.units


def _reading(record: ProfileRecord, model: str, layer: str, measure: str) -> str:
    found = [row for row in record.rows if (row.model, row.layer, row.measure) == (model, layer, measure)]
    return f"{_per_unit(found[0]):.3g}" if found and found[0].value is not None else NOTHING


def _said_of_layers(record: ProfileRecord, models: Sequence[str]) -> str:
    """What reaches the decision, in one sentence."""
    parts = []
    for model in models:
        rows = [row for row in record.rows if row.model == model and _is_layer(row, SHOWN_MEASURES[-1])]
        if rows:
            deepest = max(rows, key=lambda row: row.position)
            parts.append(f"{title_of(DEFENCES, model)} {float(deepest.value or 0):.3g}")
    said = "Nats of a perturbation aimed at the rival classes that reach the logits, read as a Gaussian of the same covariance"
    return f"{said}: {', '.join(parts)}." if parts else ""


def _profile_figure(record: ProfileRecord, measure: str, framework: str, *, salt: str) -> Figure:
    axes, figure = axes_of()
    models = tuple(dict.fromkeys(row.model for row in record.rows))
    plot_layers(axes, record.rows, measure, {model: colour(model) for model in models})
    axes.set_title(f"{framework}: {PROFILE_MEASURES[measure].title}", loc="left", fontsize=10, color=INK)
    caption = f"{PROFILE_MEASURES[measure].title}, nats per unit through the layers, {framework}"
    lines = []
    for model in models:
        rows = [row for row in record.rows if row.model == model and _is_layer(row, measure)]
        lines.append(f"{title_of(DEFENCES, model)} " + ", ".join(f"{_per_unit(row):.3g} in {label_of(row)}" for row in rows))
    return Figure(caption, inline_svg(figure, f"{caption}: {'; '.join(lines)}", salt))
