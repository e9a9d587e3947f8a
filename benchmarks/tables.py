"""Writes BENCHMARKS.md, and the tables and the figure of README.md and docs/, from the committed records. Runs no model.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from art_entropic.backends import FRAMEWORKS
from art_entropic.benchmark import BenchmarkPlan, read_plan
from art_entropic.information import MEASURES
from art_entropic.records import MeasurementRecord, TrainingRecord, read_records
from art_entropic.report import INK, NATURAL, Row, Section, busy_note, duration, percent, sections, summary

ROOT = Path(__file__).parent.parent
RESULTS, PLANS, FIGURE = ROOT / "results", ROOT / "benchmarks" / "plans", ROOT / "docs" / "results.png"
RIVAL = "madry_pgd"
# In this order, each with what a reader should know before the numbers.
COMPARISONS = {
    "mnist-0.3": "MNIST at the large radius.",
    "mnist-0.2": "MNIST at the middle radius.",
    "mnist-0.1": "MNIST at the small radius.",
    "mnist-0.3-large": "A larger network at the large radius.",
    "mnist-0.3-tensorflow": "The same comparison on TensorFlow, from the same initial weights, in the same order of the data.",
    "cifar10-8-255": "Colour images at the usual radius, a small network and few images: what two cores can train.",
    "cifar10-2-255": "The same at a small radius.",
    "digits": "The embedded data: minutes on any machine, both frameworks, three seeds.",
}
CLAIM = "cifar10-8-255-six-dense"
ABLATIONS = {
    "ablation": "The worst-case measure on a ReLU network, Linf 0.3.",
    "ablation-silu": "The same with SiLU in place of ReLU.",
    "ablation-batchnorm": "The same with BatchNorm after each convolution.",
    "ablation-channel": "The first-order measure where it is at home, SiLU and Linf 0.1.",
    "ablation-channel-relu": "The first-order measure on a ReLU network, Linf 0.1.",
}
PANELS = ("mnist-0.3", "mnist-0.1", "cifar10-8-255", "digits")
DEFAULT_ROWS = ("entropic_interval", "entropic_channel")


class Table(NamedTuple):
    """One comparison with its plan."""

    plan: BenchmarkPlan
    section: Section


# ------------------------------------------------------------------------------------------------------------ markdown


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table, all but the first `left` columns to the right."""
    lines = [headings, ["---" if column < left else "---:" for column in range(len(headings))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def name_of(row: Row) -> str:
    return f"**{row.defence_title}**" if row.ours else row.defence_title


def shown(estimate: object) -> str:
    return "-" if estimate is None else str(estimate)


def setting(row: Row, name: str) -> str:
    return "-" if row.training is None else str(row.training.settings.get(f"trainer.{name}", "-"))


def comparison(table: Table) -> str:
    """The generated sentences, the table and its caption."""
    section = table.section
    rival = next((row for row in section.rows if row.defence == RIVAL), None)
    headings = ["defence", "clean %", "robust %", "certified %", "seconds", "of MadryPGD's", "passes, forward / backward"]
    rows = [result(row, rivals_seconds(section, row, rival)) for row in section.rows if row.robust or row.diverged]
    several = len(section.frameworks) > 1
    if several:
        headings.insert(1, "framework")
        kept = [row for row in section.rows if row.robust or row.diverged]
        rows = [[line[0], row.framework_title, *line[1:]] for line, row in zip(rows, kept, strict=True)]
    parts = [
        "\n".join(f"- {sentence}" for sentence in summary(section)),
        markdown(headings, rows, left=1 + several),
        " ".join(filter(None, [section.caption, epochs(section), chosen(section), absent(section), busy_note(section)])),
    ]
    return "\n\n".join(parts)


def rivals_seconds(section: Section, row: Row, rival: Row | None) -> float | None:
    same = (one for one in section.rows if one.defence == RIVAL and one.framework == row.framework)
    found = next(same, rival)
    return None if found is None else found.seconds


def result(row: Row, rival_seconds: float | None) -> list[str]:
    if row.diverged:
        return [name_of(row), row.remark or "diverged", "-", "-", "-", "-", "-"]
    ratio = f"{row.seconds / rival_seconds:.2f}" if row.seconds and rival_seconds and row.defence != NATURAL else "-"
    seconds = duration(row.seconds) if row.seconds else "-"
    return [name_of(row), shown(row.clean), shown(row.robust), shown(row.certified), seconds, ratio, row.passes or "-"]


def epochs(section: Section) -> str:
    """How long natural training and the defences trained, from their records."""
    trained = [row.training for row in section.rows if row.training is not None and row.training.status == "done"]
    natural = {training.nb_epochs for training in trained if training.defence == NATURAL}
    others = {training.nb_epochs for training in trained if training.defence != NATURAL}
    if len(natural) != 1 or len(others) != 1:
        raise ValueError(f"the rows must share their epochs, got {sorted(natural)} and {sorted(others)}")
    return f"{natural.pop()} epochs of natural training, then {others.pop()} of each defence."


def chosen(section: Section) -> str:
    found = {setting(row, "measure") for row in section.rows if row.defence == "entropic" and row.training is not None}
    return f"`EntropicTrainer` chose the measure `{'`, `'.join(sorted(found))}` by itself (row Entropic)." if found else ""


def absent(section: Section) -> str:
    return " ".join(f"{row.remark}." for row in section.rows if not row.robust and not row.diverged and row.remark)


def origin(name: str) -> str:
    """Where the numbers of a table come from."""
    records = [record for record in read_records(RESULTS / f"{name}.jsonl") if isinstance(record, TrainingRecord)]
    source = records[0].provenance
    versions = ", ".join(f"{package} {version}" for package, version in source.versions.items())
    return (
        f"Records: [results/{name}.jsonl](results/{name}.jsonl), {source.created[:10]}, {source.processor}, "
        f"Python {source.python}, {versions}, data SHA-256 {source.data_sha256[:12]}. Again: "
        f"`art-entropic benchmark --plan benchmarks/plans/{name}.toml --results results/{name}.jsonl`"
    )


# ------------------------------------------------------------------------------------------------------------- headline


def headline(tables: dict[str, Table]) -> str:
    """One line a comparison: ours by its own choice of measure against ART's MadryPGD."""
    rows = [line for name in COMPARISONS if name in tables for line in _headlines(tables[name].section)]
    headings = [
        "data, network", "Linf eps", "measure", "**entropic**: clean / robust / certified %", "MadryPGD: clean / robust %", "seconds, entropic : MadryPGD",
    ]  # fmt: skip
    return markdown(headings, rows)


def _headlines(section: Section) -> list[list[str]]:
    rows = {(row.framework, row.defence): row for row in section.rows if not row.variant and row.robust}
    lines = []
    for framework in section.frameworks:
        ours, rival = rows.get((framework, "entropic")), rows.get((framework, RIVAL))
        if ours is None:
            continue
        where = f"{section.title}, {FRAMEWORKS[framework].title}"
        lines.append(
            [where, radius(section.eps), f"`{setting(ours, 'measure')}`", _three(ours), _two(rival), _seconds(ours, rival)]
        )
    return lines


def radius(eps: float) -> str:
    """0.3, or 8/255 where that is what it is."""
    pixels = eps * 255
    return f"{eps:g}" if abs(eps * 100 - round(eps * 100)) < 1e-9 else f"{pixels:g}/255"


def _value(estimate: object) -> str:
    return "-" if estimate is None else percent(estimate.value)  # type: ignore[attr-defined]


def _three(row: Row) -> str:
    certified = row.certified if row.certified is not None and row.certified.value > 0 else None
    return f"{_value(row.clean)} / **{_value(row.robust)}** / {_value(certified)}"


def _two(row: Row | None) -> str:
    return "not run" if row is None else f"{_value(row.clean)} / {_value(row.robust)}"


def _seconds(ours: Row, rival: Row | None) -> str:
    if rival is None or not rival.seconds or not ours.seconds:
        return duration(ours.seconds) if ours.seconds else "-"
    return f"{duration(ours.seconds)} : {duration(rival.seconds)} = {ours.seconds / rival.seconds:.2f}"


# ------------------------------------------------------------------------------------------------------------- ablation


def ablation(table: Table) -> str:
    """Each row with its difference to the row of default settings, on the same points."""
    section = table.section
    default = next((row for row in section.rows if row.defence == _default_of(section) and not row.variant), None)
    rows = []
    for row in section.rows:
        if row.diverged:
            rows.append([name_of(row), row.remark or "diverged", *["-"] * 4])
        elif row.robust is not None:
            seconds = duration(row.seconds) if row.seconds else "-"
            rows.append(
                [name_of(row), shown(row.clean), shown(row.robust), shown(row.certified), _difference(row, default), seconds]
            )
    told = " ".join(filter(None, [section.caption, epochs(section), busy_note(section)]))
    headings = ["row", "clean %", "robust %", "certified %", "robust, points from the default", "seconds"]
    return f"{markdown(headings, rows)}\n\n{told}"


def _default_of(section: Section) -> str:
    with_variants = [row.defence for row in section.rows if row.variant]
    return with_variants[0] if with_variants else next((row.defence for row in section.rows if row.defence in DEFAULT_ROWS), "")


def _difference(row: Row, default: Row | None) -> str:
    if default is None or default.robust is None or row.robust is None or row is default:
        return "-"
    return f"{100 * (row.robust.value - default.robust.value):+.1f}"


# --------------------------------------------------------------------------------------------------------------- figure


def figure(tables: dict[str, Table]) -> None:
    """Robust accuracy against training seconds, one panel a comparison, every defence a point."""
    from matplotlib.figure import Figure

    panels = [tables[name].section for name in PANELS if name in tables]
    canvas = Figure(figsize=(3.4 * len(panels), 3.7), layout="constrained", facecolor="white")
    handles: dict[str, object] = {}
    for axes, section in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for row in section.rows:
            if row.framework != section.frameworks[0] or row.variant or not row.robust or not row.seconds:
                continue
            value = row.robust
            axes.errorbar(
                row.seconds, 100 * value.value, yerr=[[100 * (value.value - value.low)], [100 * (value.high - value.value)]],
                color=shade(row), lw=0.8,
            )  # fmt: skip
            size = 70 if row.ours else 36
            handles[row.defence_title] = axes.scatter(
                row.seconds,
                100 * value.value,
                s=size,
                color=shade(row),
                marker="*" if row.ours else "o",
                label=row.defence_title,
            )
        axes.set(
            title=f"{section.name or section.problem}, Linf {radius(section.eps)}", xlabel="training seconds", xscale="log"
        )
        axes.set(ylim=(-3, 103))
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    canvas.axes[0].set_ylabel("robust accuracy, %")
    canvas.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(len(handles), 5),
        frameon=False,
        fontsize=8.5,
    )
    FIGURE.parent.mkdir(exist_ok=True)
    canvas.savefig(FIGURE, dpi=110, metadata={"Software": None})


def shade(row: Row) -> str:
    return row.colour.replace(INK, "#000000")


# ---------------------------------------------------------------------------------------------------------------- costs


def costs() -> str:
    steps = {str(r.settings["framework"]): r.values for r in measurements("step_cost")}
    memory = {(str(r.settings["framework"]), str(r.settings["measure"])): r.values for r in measurements("memory")}
    rows = [
        [
            FRAMEWORKS[framework].title,
            f"`{measure}`",
            f"{values['natural_ms']:.1f}",
            f"{values[f'{measure}_ms']:.1f}",
            f"{values[f'{measure}_ratio']:.2f}",
            f"{memory[framework, measure]['peak_gib']:.2f}" if (framework, measure) in memory else "-",
        ]
        for framework, values in steps.items()
        for measure in MEASURES
        if f"{measure}_ms" in values
    ]
    headings = ["framework", "measure", "natural step, ms", "entropic step, ms", "ratio", "peak memory of an MNIST epoch, GiB"]
    return markdown(headings, rows, left=2)


def measurements(name: str) -> list[MeasurementRecord]:
    """The records of a cost benchmark; where it was run again, the last."""
    found = {record.key: record for record in read_records(RESULTS / f"{name}.jsonl") if isinstance(record, MeasurementRecord)}
    return list(found.values())


# ---------------------------------------------------------------------------------------------------------------- pages


def load() -> dict[str, Table]:
    """Every plan that has records."""
    tables = {}
    for name in (*COMPARISONS, CLAIM, *ABLATIONS):
        path = RESULTS / f"{name}.jsonl"
        if path.exists():
            (section,) = sections(read_records(path))
            tables[name] = Table(read_plan(PLANS / f"{name}.toml"), section)
    return tables


def heading(name: str, table: Table) -> str:
    section = table.section
    return f"{section.title}, Linf {radius(section.eps)}{'' if len(section.frameworks) > 1 else ', ' + section.rows[0].framework_title}"


def benchmarks(tables: dict[str, Table]) -> str:
    """The whole of BENCHMARKS.md."""
    parts = [
        "# Benchmarks",
        "Generated by `python benchmarks/tables.py` from the records under [results/](results); do not edit. One plan file a table under "
        "[benchmarks/plans/](benchmarks/plans), one command a plan, resumable at any cell. Robust accuracy is the share of points that "
        "survive every attack of the battery, an upper bound: a better attack may do better.",
        "All defences of a table share network, natural starting weights, training points, batch size, optimizer (Adam) and learning rate, "
        "which falls linearly to 0 over the last half for every one of them; what could not be made equal is in the notes of each record. "
        "Seconds are of the training alone, one thread on one core.",
        "## At a glance",
        headline(tables),
        f"![Robust accuracy against training seconds]({FIGURE.relative_to(ROOT)})",
    ]
    for name, told in COMPARISONS.items():
        if name in tables:
            parts += [f"## {heading(name, tables[name])}", told, comparison(tables[name]), origin(name)]
    if CLAIM in tables:
        parts += [
            f"## {heading(CLAIM, tables[CLAIM])}",
            "See [docs/claim.md](docs/claim.md).",
            comparison(tables[CLAIM]),
            origin(CLAIM),
        ]
    parts += ["## Ablation", "One change at a time from the settings that `EntropicTrainer` takes by itself."]
    for name, told in ABLATIONS.items():
        if name in tables:
            parts += [f"### {heading(name, tables[name])}", told, ablation(tables[name]), origin(name)]
    missing = [name for name in (*COMPARISONS, CLAIM, *ABLATIONS) if name not in tables]
    if missing:
        parts += ["## Not run yet", "There are plans but no records: " + ", ".join(f"`{name}`" for name in missing) + "."]
    return "\n\n".join(parts) + "\n"


def fill(path: Path, blocks: dict[str, str]) -> None:
    """Replace the named blocks of a page, each between its two comments."""
    text = path.read_text(encoding="utf-8")
    for block, content in blocks.items():
        pattern = rf"(<!-- results:{block} -->\n).*?(<!-- /results:{block} -->)"
        text, count = re.subn(pattern, lambda found, new=content: f"{found[1]}{new}\n{found[2]}", text, flags=re.S)
        if count != 1:
            raise ValueError(f"{path.name} must have one block results:{block}, got {count}")
    path.write_text(text, encoding="utf-8")


def main() -> None:
    tables = load()
    figure(tables)
    picture = f"![Robust accuracy against training seconds]({FIGURE.relative_to(ROOT)})"
    fill(ROOT / "README.md", {"headline": f"{picture}\n\n{headline(tables)}", "costs": costs()})
    if CLAIM in tables:
        fill(ROOT / "docs" / "claim.md", {"claim": comparison(tables[CLAIM])})
    (ROOT / "BENCHMARKS.md").write_text(benchmarks(tables), encoding="utf-8")
    print(f"BENCHMARKS.md, README.md, docs/claim.md and {FIGURE.relative_to(ROOT)} written from {len(tables)} tables")


if __name__ == "__main__":
    main()
