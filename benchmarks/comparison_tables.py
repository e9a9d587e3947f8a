"""The comparisons of docs/benchmarks.md: a headline, one table a plan, ablations, and the figure of robustness against cost."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from published import ALL, COMPARISONS, HEADLINE, PLANS, PRINTED, RESULTS, RIVAL, ROOT, measurements

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.plan import read_plan
from art_entropic.benchmark.problems import PROBLEMS
from art_entropic.evaluation.checks import retold
from art_entropic.palette import NATURAL
from art_entropic.records import Provenance, TrainingRecord, read_records
from art_entropic.report.sections import INK, ComparisonRow, Estimate, Section, busy_note, colour, paired, percent, radius
from art_entropic.report.sentences import summary
from art_entropic.report.table import NOTHING, Entry, markdown, table_of
from art_entropic.report.tables import FRAMEWORK, SHARES, Fact, seconds_cell, table_of_rows

FIGURE = ROOT / "docs" / "results.png"
FBF = "fbf"
MEASURED = "pytorch"  # the framework of `benchmarks/training_cost.py`
PAIRED_TOLD = "Differences are paired, with 95 % intervals over the points: one that holds 0 may be chance."
BETAS = {
    "ablation-channel-cifar10": "CIFAR-10, CNN with SiLU",
    "ablation-channel-gtsrb": "traffic signs, ResNet with BatchNorm",
}
PANELS = ("mnist-0.1", "mnist-0.3", "cifar10-8-255-converged", "breadth-tiny-imagenet10")
# Of a defence and its variant, in the figure.
LABELS = {
    ("entropic", ""): "Entropic",
    ("entropic", "in MadryPGD's time"): "Entropic, longer",
    ("fbf", "in MadryPGD's time"): "FBF, longer",
    (RIVAL, ""): "MadryPGD",
    ("fbf", ""): "FBF",
    ("trades", ""): "TRADES",
}


def named(heading: str) -> Fact:
    """The name of a row, ours in bold."""
    return Fact(heading, lambda row: Entry(row.defence_title, strong=row.ours), number=False)


def shown_rows(section: Section) -> list[ComparisonRow]:
    return [row for row in section.rows if row.robust or row.diverged]


def setting(row: ComparisonRow, name: str) -> str:
    return NOTHING if row.training is None else str(row.training.settings.get(f"trainer.{name}", NOTHING))


def comparison(section: Section) -> str:
    """The generated sentences, the table and its caption."""
    facts = [
        named("defence"),
        *([FRAMEWORK] if len(section.frameworks) > 1 else []),
        *SHARES,
        Fact("robust, points from MadryPGD's", lambda row: Entry(_paired(row, rival_of(section, row)))),
        Fact("seconds", seconds_cell),
        Fact("of MadryPGD's", lambda row: Entry(_ratio(row, rival_of(section, row)))),
        Fact("passes, forward / backward", lambda row: Entry(row.passes or NOTHING)),
    ]
    told = [section.caption, epochs(section), chosen(section), collapsed(section), absent(section), busy_note(section)]
    table = table_of_rows(shown_rows(section), facts, notes=[" ".join(filter(None, told))])
    sentences = "\n".join(f"- {sentence}" for sentence in summary(section))
    return "\n\n".join(filter(None, [sentences, markdown(table), verdicts(section)]))


def verdicts(section: Section) -> str:
    """What the sanity checks say of each network, where they were run."""
    lines = [f"- {row.defence_title}: {row.verdict}" for row in section.rows if row.verdict]
    if not lines:
        return ""
    told = "Sanity checks of these evaluations (docs/evaluation.md), each verdict once for all seeds that share it:"
    return "\n".join([told, "", *lines])


def rival_of(section: Section, row: ComparisonRow) -> ComparisonRow | None:
    return next((one for one in section.rows if one.defence == RIVAL and one.framework == row.framework), None)


def _ratio(row: ComparisonRow, rival: ComparisonRow | None) -> str:
    """Training seconds to those of the rival."""
    times = None if rival is None or row.defence == NATURAL else row.times(rival)
    return NOTHING if times is None else f"{times:.2f}"


def _paired(row: ComparisonRow, rival: ComparisonRow | None) -> str:
    """The difference on the same points, with its 95 % interval."""
    difference = None if rival is None or row is rival else paired(row, rival)
    if difference is None:
        return NOTHING
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def epochs(section: Section) -> str:
    """How long natural training and the defences trained, from their records."""
    trained = [row.training for row in section.rows if row.training is not None and row.training.status == "done"]
    natural = {training.nb_epochs for training in trained if training.defence == NATURAL}
    others = {training.nb_epochs for training in trained if training.defence != NATURAL and not training.variant}
    if len(natural) > 1 or len(others) > 1:
        raise ValueError(f"the rows must share their epochs, got {sorted(natural)} and {sorted(others)}")
    if not natural or not others:
        return ""
    usual = others.pop()
    told = [
        f"{row.defence_title}: {row.training.nb_epochs}"
        for row in section.rows
        if row.training is not None and row.variant and row.training.nb_epochs != usual
    ]
    exceptions = f" ({'; '.join(told)})" if told else ""
    return f"{natural.pop()} epochs of natural training, then {usual} of each defence{exceptions}."


def chosen(section: Section) -> str:
    found = {setting(row, "measure") for row in section.rows if row.defence == "entropic" and row.training is not None}
    return f"`EntropicTrainer` chose the measure `{'`, `'.join(sorted(found))}` by itself (row Entropic)." if found else ""


def collapsed(section: Section) -> str:
    """Rows that do no better than one class for every point: their robustness is that of a constant."""
    chance = 1 / PROBLEMS[section.problem].nb_classes
    titles = [row.defence_title for row in section.rows if row.clean is not None and row.clean.value < 1.5 * chance]
    return f"Collapsed, with a clean accuracy near chance: {', '.join(titles)}." if titles else ""


def absent(section: Section) -> str:
    return " ".join(f"{row.remark}." for row in section.rows if not row.robust and not row.diverged and row.remark)


def origin(*names: str) -> str:
    """Where the numbers of a table come from: record files, machines, data, and software where it is not the usual."""
    sources = [source for name in names for source in _sources(name)]
    machines = dict.fromkeys(_machine(source) for source in sources)
    data = dict.fromkeys(source.data_sha256[:12] for source in sources)
    others = dict.fromkeys(one for source in sources for one in sorted(_software(source) - set(usual_software())))
    told = [
        ", ".join(f"[results/{name}.jsonl](../results/{name}.jsonl)" for name in names),
        " and ".join(machines),
        f"data SHA-256 {', '.join(data)}",
        *([f"with {', '.join(' '.join(one) for one in others)}"] if others else []),
    ]
    return f"Records: {'; '.join(told)}."


@functools.cache
def _sources(name: str) -> list[Provenance]:
    records = read_records(RESULTS / f"{name}.jsonl")
    return [record.provenance for record in records if isinstance(record, TrainingRecord)]


def _machine(source: Provenance) -> str:
    return f"{source.processor} ({source.cores} core{'s' * (source.cores > 1)})"


def _software(source: Provenance) -> set[tuple[str, str]]:
    return {("Python", source.python), *source.versions.items()}


@functools.cache
def usual_software() -> tuple[tuple[str, str], ...]:
    """The version of each package that most of the published trainings ran with, the packages by name."""
    found = Counter(
        one for name in ALL if (RESULTS / f"{name}.jsonl").exists() for source in _sources(name) for one in _software(source)
    )
    most = dict(sorted(found, key=found.__getitem__))
    return tuple(sorted(most.items(), key=lambda one: one[0].lower()))


# ------------------------------------------------------------------------------------------------------------- headline


def headline(tables: dict[str, Section]) -> str:
    """The few lines of the README: ours beside two of ART's trainers under AutoAttack, and what the checks say of ours."""
    lines = []
    for name, title in HEADLINE.items():
        section = tables.get(f"{name}-autoattack")
        rows = {} if section is None else {row.defence: row for row in section.rows if row.robust and not row.variant}
        ours, rival = rows.get("entropic"), rows.get(RIVAL)
        if section is not None and ours is not None and rival is not None:
            verdict = _verdict(tables.get(f"{name}-full")) or NOTHING
            verdict = verdict.replace("no symptom found", "none")
            cost = cost_of(section, ours, rival)
            best = max((row for row in (ours, rival, rows.get(FBF)) if row is not None), key=lambda row: row.robust.value)
            shares = [_shares(row, best) for row in (ours, rival, rows.get(FBF))]
            lines.append([f"{title}, {radius_of(section)}", *shares, value_of(_proved(ours)), cost, verdict])
    headings = ["data, network, ball", "Entropic: clean / robust %", "MadryPGD: clean / robust %", "FBF: clean / robust %",
                "ours, certified %", "ours, time of MadryPGD's", "ours, symptoms found"]  # fmt: skip
    return markdown(table_of(headings, lines, words=["ours, symptoms found"]))


def _verdict(section: Section | None) -> str | None:
    rows = () if section is None else section.rows
    return next((row.verdict for row in rows if row.defence == "entropic" and not row.variant), None)


def printed() -> str:
    """What the two snippets of the README printed."""
    found = {str(record.settings["snippet"]): record for record in measurements("readme")}
    lines = ["```"]
    for snippet, title in PRINTED.items():
        if snippet in found:
            lines += [f"# {title}", retold(str(found[snippet].settings["printed"]), [])]
    return "\n".join([*lines, "```"])


def overview(tables: dict[str, Section]) -> str:
    """One line a comparison: ours by its own choice of measure, ART's MadryPGD, and what came out most robust of all."""
    rows = [line for name in COMPARISONS if name in tables for line in _headlines(tables[name])]
    ours, rival = "**entropic**: clean / robust / certified %", "MadryPGD: clean / robust %"
    rest = ["FBF: clean / robust %", "seconds, of MadryPGD's", "most robust of the table"]
    headings = ["data, network", "ball", "measure", ours, rival, *rest]
    return markdown(table_of(headings, rows))


def _headlines(section: Section) -> list[list[str]]:
    rows = {(row.framework, row.defence): row for row in section.rows if not row.variant and row.robust}
    lines = []
    for framework in section.frameworks:
        ours, rival = rows.get((framework, "entropic")), rows.get((framework, RIVAL))
        if ours is None:
            continue
        where = f"{section.title}, {FRAMEWORKS[framework].title}{fresh(section)}"
        best = max((row for place, row in rows.items() if place[0] == framework), key=lambda row: row.robust.value)
        winner = NOTHING if rival is None else f"{best.defence_title}, {value_of(best.robust)} %"
        measure = f"`{setting(ours, 'measure')}`"
        fbf, cost = rows.get((framework, FBF)), cost_of(section, ours, rival)
        lines.append([where, radius_of(section), measure, _three(ours), _two(rival), _two(fbf), cost, winner])
    return lines


def radius_of(section: Section) -> str:
    """The ball, such as Linf 8/255."""
    return f"L{section.norm} {radius(section.eps)}"


def value_of(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else percent(estimate.value)


def _three(row: ComparisonRow) -> str:
    return f"{value_of(row.clean)} / {value_of(row.robust)} / {value_of(_proved(row))}"


def _proved(row: ComparisonRow) -> Estimate | None:
    return row.certified if row.certified is not None and row.certified.value > 0 else None


def _shares(row: ComparisonRow | None, best: ComparisonRow) -> str:
    """As `_two`, in bold the most robust and what these points cannot tell from it."""
    difference = None if row is None or row is best else paired(row, best)
    level = row is best or (difference is not None and difference.sign >= 0)
    return f"{value_of(row.clean)} / **{value_of(row.robust)}**" if row is not None and level else _two(row)


def _two(row: ComparisonRow | None) -> str:
    return "not run" if row is None else f"{value_of(row.clean)} / {value_of(row.robust)}"


def cost_of(section: Section, row: ComparisonRow | None, rival: ComparisonRow | None) -> str:
    """`times_of` in words, and how far to trust it."""
    if row is None or rival is None or not row.seconds or not rival.seconds:
        return NOTHING
    times = times_of(section, row, rival)
    if times is None:
        return f"{NOTHING} (other machine)" if row.machines != rival.machines else f"{NOTHING} (machine too busy)"
    unsure = _measured_times(section, row, rival) is None and (row.busy or rival.busy)
    return f"{times:.2f}" + (" (machine busy)" if unsure else "")


def times_of(section: Section, row: ComparisonRow, rival: ComparisonRow) -> float | None:
    """Seconds of a row in those of its rival: from the quiet measurement of both where there is one, None where unknown."""
    quiet = _measured_times(section, row, rival)
    return row.times(rival) if quiet is None else quiet


def _measured_times(section: Section, row: ComparisonRow, rival: ComparisonRow) -> float | None:
    """By `benchmarks/training_cost.py`, scaled to the epochs of both."""
    if row.framework != MEASURED or row.training is None or rival.training is None:
        return None
    place = {"problem": section.problem, "network": section.network}
    if row.ours:
        place["measure"] = setting(row, "measure")
    costs = [f"{one.defence}_ms" for one in (row, rival)]
    for record in measurements("training_cost"):
        if place.items() <= record.settings.items() and record.values.keys() >= set(costs):
            ours, theirs = (record.values[cost] for cost in costs)
            return row.training.nb_epochs * ours / (rival.training.nb_epochs * theirs)
    return None


# ------------------------------------------------------------------------------------------------------------- ablation


def ablation(section: Section) -> str:
    """Each row with its difference to the row of default settings, on the same points."""
    default = next((row for row in section.rows if row.defence == _default_of(section) and not row.variant), None)
    facts = [
        named("row"),
        *SHARES,
        Fact("robust, points from the default", lambda row: Entry(_paired(row, default))),
        Fact("seconds", seconds_cell),
    ]
    told = [section.caption, PAIRED_TOLD, epochs(section), busy_note(section)]
    return markdown(table_of_rows(shown_rows(section), facts, notes=[" ".join(filter(None, told))]))


def betas(tables: dict[str, Section]) -> str:
    """Clean / robust accuracy of `channel` by its beta, one line for each data set of BETAS."""
    lines = []
    for name, title in BETAS.items():
        rows = {row.variant: row for row in tables[name].rows if row.defence == "entropic_channel"} if name in tables else {}
        found = [rows.get(variant) for variant in ("beta 0", "beta 0.2", "", "beta 1")]
        lines.append([f"{title}, {radius_of(tables[name])}", *map(_two, found)] if rows else [title, *["not run"] * len(found)])
    return markdown(table_of(["data, network, ball", "beta 0", "beta 0.2", "beta 0.5, the default", "beta 1"], lines))


def _default_of(section: Section) -> str | None:
    """The defence that the variants change; None where there are none."""
    return next((row.defence for row in section.rows if row.variant), None)


# ------------------------------------------------------------------------------------------------------ around a table


def heading(section: Section) -> str:
    frameworks = " and ".join(FRAMEWORKS[framework].title for framework in section.frameworks)
    return f"{section.title}, {radius_of(section)}, {frameworks}{fresh(section)}"


def fresh(section: Section) -> str:
    return f", test points from number {section.first_example} on" if section.first_example else ""


def unrun(name: str, section: Section) -> list[str]:
    """What the plan asks for and no record holds yet, as a paragraph; none where all is there."""
    plan = read_plan(PLANS / f"{name}.toml")
    done = {(row.framework, row.defence, row.variant) for row in section.rows if _is_finished(row)}
    rows = [(defence, "") for defence in plan.defences or ()] + [(variant.defence, variant.name) for variant in plan.variants]
    frameworks = plan.frameworks or ()
    titles = [
        ": ".join(filter(None, (DEFENCES[defence].title, variant)))
        + (f" on {FRAMEWORKS[framework].title}" if len(frameworks) > 1 else "")
        for framework in frameworks
        for defence, variant in rows
        if (framework, defence, variant) not in done
    ]
    seeds = [str(seed) for seed in plan.seeds if seed not in section.seeds]
    parts = [f"rows {', '.join(titles)}"] * bool(titles) + [f"seeds {', '.join(seeds)}"] * bool(seeds)
    return [f"**Not run yet:** {'; '.join(parts)}."] if parts else []


def _is_finished(row: ComparisonRow) -> bool:
    """Whether nothing more is to come: attacked, or with a reason why it never will be."""
    return row.robust is not None or (row.training is not None and row.training.status != "done")


# --------------------------------------------------------------------------------------------------------------- figure


def figure(tables: dict[str, Section]) -> None:
    """Robust accuracy against training time, one panel a comparison: ours beside ART's trainers, each with its name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    panels = [tables[name] for name in PANELS if name in tables]
    canvas = Figure(figsize=(3.2 * len(panels), 3.3), layout="constrained", facecolor="white")
    for axes, section in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = _priced(section)
        lows, highs = ([100 * getattr(row.robust, end) for row, _ in shown] for end in ("low", "high"))
        room = 0.08 * (max(highs) - min(lows))
        heights = _apart([(times, 100 * row.robust.value) for row, times in shown], 1.6 * room)
        for (row, times), low, high, height in zip(shown, lows, highs, heights, strict=True):
            value, tint = 100 * row.robust.value, colour(row.defence).replace(INK, "#000000")
            # Where a bound is the value itself, rounding must not make the bar negative.
            axes.errorbar(times, value, yerr=[[max(0.0, value - low)], [max(0.0, high - value)]], color=tint, lw=0.8)
            axes.scatter(times, value, s=70 if row.ours else 36, color=tint, marker="*" if row.ours else "o")
            weight = "bold" if row.ours else "normal"
            # On the right of FBF, which is a little faster, stands our own bar.
            place, side = (times / 1.16, "right") if row.defence == FBF else (1.16 * times, "left")
            axes.text(
                place, height, LABELS[row.defence, row.variant], fontsize=8.5, color=tint, weight=weight, va="center", ha=side
            )
        axes.set_title(f"{section.name or section.problem}\n{radius_of(section)}", fontsize=10)
        axes.set(xlabel="training time, in MadryPGD's", xscale="log", xlim=(0.1, 5.0))
        axes.set_ylim(min(lows) - room, max(highs) + 2 * room)
        axes.xaxis.set_major_locator(FixedLocator([0.2, 0.5, 1, 2]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.annotate(
            "better", (0.64, 0.19), (0.78, 0.07), xycoords="axes fraction", fontsize=8.5, color="#777777", va="center",
            arrowprops={"arrowstyle": "->", "color": "#777777"},
        )  # fmt: skip
    canvas.axes[0].set_ylabel("robust accuracy, %")
    FIGURE.parent.mkdir(exist_ok=True)
    canvas.savefig(FIGURE, dpi=110, metadata={"Software": None})


def _apart(points: Sequence[tuple[float, float]], gap: float) -> list[float]:
    """Heights of the labels beside some points (times, value), so that those of points of about one time do not overlap."""
    heights = np.array([value for _, value in points])
    slow = np.array([times > 0.6 for times, _ in points])
    for column in (np.flatnonzero(slow), np.flatnonzero(~slow)):
        upwards = column[np.argsort(heights[column], kind="stable")]
        pushed = heights.copy()
        for below, above in itertools.pairwise(upwards):
            pushed[above] = max(pushed[above], pushed[below] + gap)
        if len(column):
            heights[column] = pushed[column] - np.mean(pushed[column] - heights[column])
    return [float(height) for height in heights]


def _priced(section: Section) -> list[tuple[ComparisonRow, float]]:
    """The rows of LABELS of a section's first framework with their training times, in those of the rival."""
    rows = [row for row in section.rows if row.framework == section.frameworks[0] and (row.defence, row.variant) in LABELS]
    found = []
    for row in rows:
        rival = rival_of(section, row)
        times = None if rival is None or row.robust is None else 1.0 if row is rival else times_of(section, row, rival)
        if times is not None:
            found.append((row, times))
    return found
