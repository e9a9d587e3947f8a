"""The tables that answer a reviewer: the strongest attacks, equal time, other data and networks, and certified training."""

from __future__ import annotations

from typing import NamedTuple

from comparison_tables import FBF, cost_of, radius_of, rival_of, setting, value_of
from published import RIVAL, measurements

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.palette import NATURAL
from art_entropic.records import unpack
from art_entropic.report.sections import ComparisonRow, Estimate, Section, paired, percent
from art_entropic.report.table import NOTHING, markdown, table_of

OURS = "entropic"


class Published(NamedTuple):
    """What a paper reports of certified training on MNIST, Linf: errors turned into accuracies in percent."""

    method: str
    network: str
    epochs: str
    eps: float
    clean: float
    certified: float
    source: str


def row_of(section: Section, framework: str, defence: str, variant: str = "") -> ComparisonRow | None:
    rows = (row for row in section.rows if (row.framework, row.defence, row.variant) == (framework, defence, variant))
    return next((row for row in rows if row.robust is not None), None)


def shares(row: ComparisonRow | None, *, certified: bool = False) -> str:
    """Clean / robust, and certified where that is wanted."""
    if row is None:
        return NOTHING
    values = [row.clean, row.robust, *([row.certified] if certified else [])]
    return " / ".join(value_of(value) for value in values)


# ------------------------------------------------------------------------------------------------------------ breadth


def breadth(tables: dict[str, Section]) -> str:
    """One line for each data set and network: equal epochs, default settings, nothing tuned for a line."""
    lines = [line for section in tables.values() for line in _breadth_lines(section)]
    headings = [
        "data, network", "ball", "measure", "natural: clean / robust %", "**entropic**: clean / robust / certified %",
        "MadryPGD: clean / robust %", "FBF: clean / robust %", "robust, points from MadryPGD's", "seconds, of MadryPGD's",
        "verdict on ours",
    ]  # fmt: skip
    words = ["ball", "measure", "verdict on ours"]
    return markdown(table_of(headings, lines, words=words)) if lines else "Not run yet."


def _breadth_lines(section: Section) -> list[list[str]]:
    lines = []
    for framework in section.frameworks:
        natural, ours, fbf = (row_of(section, framework, name) for name in (NATURAL, OURS, FBF))
        if ours is None:
            continue
        rival = rival_of(section, ours)
        difference = None if rival is None else paired(ours, rival)
        lines.append(
            [
                f"{section.title}, {FRAMEWORKS[framework].title}",
                radius_of(section),
                f"`{setting(ours, 'measure')}`",
                shares(natural),
                shares(ours, certified=True),
                shares(rival),
                shares(fbf),
                NOTHING if difference is None else f"{100 * difference.value:+.1f}",
                cost_of(section, ours, rival),
                ours.verdict or NOTHING,
            ]
        )
    return lines


def breadth_sentence(tables: dict[str, Section]) -> str:
    """How often ours is near MadryPGD, and how often above FBF."""
    near = against = above = beside = 0
    for section in tables.values():
        for framework in section.frameworks:
            ours, fbf = row_of(section, framework, OURS), row_of(section, framework, FBF)
            rival = row_of(section, framework, RIVAL)
            if ours is None or ours.robust is None:
                continue
            if rival is not None and rival.robust is not None:
                against += 1
                near += ours.robust.value >= rival.robust.value - 0.03
            if fbf is not None and fbf.robust is not None:
                beside += 1
                above += ours.robust.value > fbf.robust.value
    return (
        f"Entropic retraining is within 3 points of MadryPGD's robust accuracy, or above it, in {near} of {against} lines, and "
        f"above FBF, which costs a little less, in {above} of {beside}."
    )


# -------------------------------------------------------------------------------------------------- strongest attacks


def strongest(under_autoattack: dict[str, Section], under_all: dict[str, Section]) -> str:
    """The networks of the comparisons under AutoAttack, and ours under every attack that we have, on the same points.

    The weights are the same where nothing else is said.
    """
    lines = []
    for name, section in under_autoattack.items():
        for framework in section.frameworks:
            for defence in (OURS, RIVAL, FBF):
                for variant in dict.fromkeys(row.variant for row in section.rows if row.defence == defence):
                    row = row_of(section, framework, defence, variant)
                    if row is None:
                        continue
                    everything = under_all.get(name)
                    lines.append(_under_both(section, row, everything and row_of(everything, framework, defence, variant)))
    headings = [
        "data, network",
        "ball",
        "defence",
        "clean %",
        "AutoAttack %",
        "`standard` %",
        "`full` %",
        "certified %",
        "verdict",
    ]
    return markdown(table_of(headings, lines, words=["ball", "defence", "verdict"])) if lines else "Not run yet."


def _under_both(section: Section, row: ComparisonRow, everything: ComparisonRow | None) -> list[str]:
    again = "" if everything is None or _same_answers(row, everything) else ", for `full` trained again"
    return [
        section.title,
        radius_of(section),
        f"**{row.defence_title}**{again}" if row.ours else row.defence_title,
        value_of(row.clean),
        value_of(row.robust),
        NOTHING if everything is None else _after("standard", everything),
        NOTHING if everything is None else value_of(everything.robust),
        value_of(row.certified),
        NOTHING if everything is None else everything.verdict or NOTHING,
    ]


def _same_answers(row: ComparisonRow, other: ComparisonRow) -> bool:
    """Whether two networks are right on the same points without an attack, as one network under two batteries is."""
    (one,), (two,) = row.tests, other.tests
    return one.points is not None and two.points is not None and one.points.clean == two.points.clean


def _after(battery: str, row: ComparisonRow) -> str:
    """Percent that a battery left standing of a larger one that begins with it."""
    (test,) = row.tests
    if test.points is None:
        return NOTHING
    standing = unpack(test.points.clean, test.clean.n)
    for attack in BATTERIES[battery]:
        standing &= ~unpack(test.points.broken_by[attack], test.clean.n)
    return percent(float(standing.mean()))


# --------------------------------------------------------------------------------------------------------- equal time


def equal_time(tables: dict[str, Section]) -> str:
    """Ours at equal epochs and at equal seconds, beside MadryPGD and FBF."""
    lines = []
    for section in tables.values():
        for framework in section.frameworks:
            rival = row_of(section, framework, RIVAL)
            for row in section.rows:
                if row.framework != framework or row.robust is None or row.training is None or not _is_compared(row):
                    continue
                lines.append(
                    [
                        f"{section.title}, {len(section.seeds)} seed{'s' * (len(section.seeds) > 1)}",
                        radius_of(section),
                        f"**{row.defence_title}**" if row.ours else row.defence_title,
                        str(row.training.nb_epochs),
                        shares(row, certified=True),
                        _spread(row.robust),
                        "1.00" if row is rival else cost_of(section, row, rival),
                    ]
                )
    headings = [
        "data, network",
        "ball",
        "defence",
        "epochs",
        "clean / robust / certified %",
        "robust, seeds",
        "of MadryPGD's seconds",
    ]
    return markdown(table_of(headings, lines, words=["ball", "defence", "robust, seeds"])) if lines else "Not run yet."


def training_costs() -> str:
    """What `benchmarks/training_cost.py` found, with nothing else running: ours beside the others, an image."""
    lines = []
    for record in measurements("training_cost"):
        found, told = record.values, record.settings
        spent = [f"{found[f'{kind}_ms']:.2f}" for kind in ("natural", OURS, FBF, RIVAL, "trades", "pgd_loop")]
        ratios = [f"{found[f'{OURS}_ms'] / found[f'{kind}_ms']:.2f}" for kind in (FBF, RIVAL, "pgd_loop")]
        lines.append([f"{told['problem']}, network {told['network']}", f"`{told['measure']}`", *spent, *ratios])
    headings = [
        "data, network", "measure", "natural, ms", "ours", "FBF", "MadryPGD", "TRADES", "plain PGD loop", "ours to FBF",
        "ours to MadryPGD", "ours to the plain loop",
    ]  # fmt: skip
    return markdown(table_of(headings, lines, words=["measure"]))


def _is_compared(row: ComparisonRow) -> bool:
    return row.defence in (OURS, RIVAL, FBF)


def _spread(estimate: Estimate) -> str:
    return f"{percent(estimate.low)} to {percent(estimate.high)}" if estimate.n_seeds > 1 else "one"


# ------------------------------------------------------------------------------------------ published certified training

_GOWAL = "Gowal et al. 2018, the networks that they released"
_ZHANG = "Zhang et al. 2020, arXiv 1906.06316"
_DE_PALMA = "De Palma et al. 2023, arXiv 2305.13991, table 1"
PUBLISHED = (
    Published("IBP", "their medium CNN, trained for 0.2", "100", 0.1, 98.94, 97.08, _GOWAL),
    Published("CROWN-IBP", "their large CNN", "200", 0.1, 98.83, 97.76, _ZHANG),
    Published("MTL-IBP", "CNN7 with BatchNorm, trained for 0.2", "70", 0.1, 99.25, 98.38, _DE_PALMA),
    Published("IBP", "their large CNN, trained for 0.4", "200", 0.3, 98.34, 91.79, _GOWAL),
    Published("CROWN-IBP", "their large CNN, trained for 0.4", "200", 0.3, 98.18, 92.98, _ZHANG),
    Published("MTL-IBP", "CNN7 with BatchNorm, trained for 0.4", "70", 0.3, 98.80, 93.62, _DE_PALMA),
)


def certified_training(tables: dict[str, Section]) -> str:
    """Our longest runs of `interval` beside what papers on certified training report, radius by radius."""
    lines = []
    for eps in sorted({one.eps for one in PUBLISHED}):
        for section in tables.values():
            for row in section.rows:
                if section.eps == eps and row.ours and row.training is not None and row.clean is not None:
                    values = [value_of(row.clean), value_of(row.certified)]
                    told = [f"{eps:g}", f"**{row.defence_title}**", f"{section.network}, {section.n} points"]
                    lines.append([*told, str(row.training.nb_epochs), *values, "this page"])
        for one in (one for one in PUBLISHED if one.eps == eps):
            lines.append([f"{eps:g}", one.method, one.network, one.epochs, f"{one.clean:g}", f"{one.certified:g}", one.source])
    headings = ["Linf eps", "method", "network", "epochs", "clean %", "certified %", "source"]
    return markdown(table_of(headings, lines, words=["method", "network", "source"]))
