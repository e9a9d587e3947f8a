"""Writes the tables and the figure of README.md from the committed records under results/. Runs no model.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from art_entropic.backends import FRAMEWORKS
from art_entropic.information import MEASURES
from art_entropic.records import MeasurementRecord, read_records
from art_entropic.report import INK, NATURAL, Row, Section, colour, sections, summary

ROOT = Path(__file__).parent.parent
RESULTS, README, FIGURE = ROOT / "results", ROOT / "README.md", ROOT / "docs" / "digits.png"
MARKERS = {"pytorch": "o", "tensorflow": "s"}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all but the first two columns to the right."""
    lines = [headings, ["---" if column < 2 else "---:" for column in range(len(headings))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(section: Section) -> str:
    table = markdown(
        ["framework", "defence", "clean %", "robust %", "certified %", "training seconds"],
        [result(row) for row in section.rows if row.robust is not None],
    )
    missing = " ".join(f"{row.remark}." for row in section.rows if row.robust is None and row.remark)
    sentences = "\n".join(f"- {sentence}" for sentence in summary(section))
    told = f"{section.title}, {section.radius}, {epochs(section)}, in the words of the generated report:"
    return f"{told}\n\n{sentences}\n\n{table}\n\n{section.caption} {missing}".rstrip() + "\n"


def picture(section: Section) -> str:
    return f"![{section.title}: robust accuracy against eps, and against training seconds]({FIGURE.relative_to(ROOT)})\n\n"


def epochs(section: Section) -> str:
    """How long natural training and the defences trained, from their records."""
    trained = [row.training for row in section.rows if row.training is not None and row.training.status == "done"]
    natural = {training.nb_epochs for training in trained if training.defence == NATURAL}
    others = {training.nb_epochs for training in trained if training.defence != NATURAL}
    if len(natural) != 1 or len(others) != 1:
        raise ValueError(f"the rows must share their epochs, got {sorted(natural)} and {sorted(others)}")
    return f"{natural.pop()} epochs of natural training, then {others.pop()} of each defence"


def result(row: Row) -> list[str]:
    numbers = [str(estimate) if estimate else "-" for estimate in (row.clean, row.robust, row.certified)]
    name = f"**{row.defence_title}**" if row.ours else row.defence_title
    return [row.framework_title, name, *numbers, f"{row.seconds:.1f}" if row.seconds else "-"]


def figure(section: Section) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11.5, 3.6), layout="constrained", facecolor="white")
    panels = canvas.subplots(1, len(section.frameworks) + 1)
    for axes, framework in zip(panels, section.frameworks, strict=False):
        for row in section.rows:
            if row.framework == framework and row.curve:
                radii, values = [eps for eps, _ in row.curve], [100 * estimate.value for _, estimate in row.curve]
                axes.plot(radii, values, marker=MARKERS[framework], ms=4, color=shade(row), label=row.defence_title)
        axes.axvline(section.eps, color="0.6", lw=0.8, ls=":")
        axes.set(title=FRAMEWORKS[framework].title, xlabel="Linf eps", ylabel="robust accuracy, %", ylim=(-3, 103))
    cost = panels[-1]
    for row in section.rows:
        if row.robust is not None and row.seconds:
            cost.plot(row.seconds, 100 * row.robust.value, MARKERS[row.framework], color=shade(row))
    cost.set(
        title=f"cost, eps {section.eps:g}", xlabel="training seconds", ylabel="robust accuracy, %", xscale="log", ylim=(-3, 103)
    )
    for axes in panels:
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    FIGURE.parent.mkdir(exist_ok=True)
    canvas.savefig(FIGURE, dpi=110, metadata={"Software": None})


def shade(row: Row) -> str:
    return colour(row.defence).replace(INK, "#000000")


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
    ]
    headings = ["framework", "measure", "natural step, ms", "entropic step, ms", "ratio", "peak memory of an MNIST epoch, GiB"]
    return markdown(headings, rows) + "\n"


def measurements(name: str) -> list[MeasurementRecord]:
    """The records of a cost benchmark; where it was run again, the last."""
    found = {record.key: record for record in read_records(RESULTS / f"{name}.jsonl") if isinstance(record, MeasurementRecord)}
    return list(found.values())


def fill(text: str, block: str, content: str) -> str:
    pattern = rf"(<!-- results:{block} -->\n).*?(<!-- /results:{block} -->)"
    filled, count = re.subn(pattern, lambda found: f"{found[1]}{content}{found[2]}", text, flags=re.S)
    if count != 1:
        raise ValueError(f"README.md must have one block results:{block}, got {count}")
    return filled


def compared(name: str) -> Section:
    (section,) = sections(read_records(RESULTS / f"{name}.jsonl"))
    return section


def main() -> None:
    digits = compared("digits")
    figure(digits)
    blocks = {"digits": picture(digits) + comparison(digits), "mnist": comparison(compared("mnist")), "costs": costs()}
    text = README.read_text()
    for block, content in blocks.items():
        text = fill(text, block, content)
    README.write_text(text)
    print(f"README.md and {FIGURE.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
