"""What a section says, in words."""

from __future__ import annotations

from collections.abc import Sequence

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.palette import NATURAL
from art_entropic.report.sections import ComparisonRow, Estimate, Section, paired, percent, pool, title_of

RIVAL = "madry_pgd"
OURS = "entropic"


def summary(section: Section) -> list[str]:
    """One sentence a framework: entropic retraining against the most robust rival, and MadryPGD where that is another one."""
    several = len(section.frameworks) > 1
    sentences = []
    for framework in section.frameworks:
        said = _said([row for row in section.main_rows if row.framework == framework])
        sentences.append(f"{title_of(FRAMEWORKS, framework)}: {said}" if several else said)
    return sentences


def _said(rows: Sequence[ComparisonRow]) -> str:
    attacked = [row for row in rows if row.robust is not None]
    if not attacked:
        return "Nothing has been attacked yet."
    ours = next((row for row in attacked if row.defence == OURS), next((row for row in attacked if row.ours), None))
    rivals = [row for row in attacked if not row.ours]
    if ours is None or not rivals:
        best = max(attacked, key=robustness_of)
        return f"{short_title(best)} has the highest robust accuracy, {percent(robustness_of(best))} %."
    compared = [_against(ours, rival) for rival in _compared(ours, rivals)]
    warning = " Its checks found symptoms, see its verdict." if "suspicious" in (ours.verdict or "") else ""
    return f"{short_title(ours)} is {', and '.join(compared)}.{warning}"


def _compared(ours: ComparisonRow, rivals: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The most robust one, MadryPGD, and natural training where nothing was gained on it."""
    best = max(rivals, key=lambda row: -_standing(ours, row)[1])
    others = [row for row in rivals if row is not best]
    found = [best, *(row for row in others if row.defence == RIVAL)]
    return found + [row for row in others if row.defence == NATURAL and _standing(ours, row)[0] <= 0]


def short_title(row: ComparisonRow) -> str:
    """Without the library that it comes from."""
    return row.defence_title.replace(" (ART)", "")


def robustness_of(row: ComparisonRow) -> float:
    return -1.0 if row.robust is None else row.robust.value


def _standing(row: ComparisonRow, rival: ComparisonRow) -> tuple[int, float]:
    """1 for the row, -1 for its rival, 0 where they are level, see `Difference.sign`; and the difference.

    The difference is paired, over the seeds that both have. Where records do not tell what became of each point, the intervals
    of both must lie apart.
    """
    difference = paired(row, rival)
    if difference is not None:
        return difference.sign, difference.value
    one, other = _shared(row, rival)
    if one is None or other is None:
        return 0, robustness_of(row) - robustness_of(rival)
    value = one.value - other.value
    return 0 if one.overlaps(other) else 1 if value > 0 else -1, value


def _shared(row: ComparisonRow, rival: ComparisonRow) -> tuple[Estimate | None, Estimate | None]:
    """Robust accuracy of both over the seeds that both have."""
    seeds = row.attacked_seeds & rival.attacked_seeds
    one, other = (pool([test.robust for test in of.tests if test.seed in seeds]) for of in (row, rival))
    return one, other


def _against(ours: ComparisonRow, rival: ComparisonRow) -> str:
    name, (place, difference) = short_title(rival), _standing(ours, rival)
    points = f"{100 * abs(difference):.1f} points"
    said = {0: f"level with {name}", 1: f"ahead of {name} by {points}", -1: f"behind {name} by {points}"}[place]
    one, other = _shared(ours, rival)
    if one is None or other is None:
        return f"not compared with {name}, with which it has no seed in common"
    shares = f"{percent(one.value)} and {percent(other.value)} % robust{_seeds(ours, rival)}"
    return f"{said} ({shares}{_spread(one, other, place)}){_time(ours, rival)}"


def _seeds(ours: ComparisonRow, rival: ComparisonRow) -> str:
    """Which seeds are compared, where they are not all."""
    shared = ours.attacked_seeds & rival.attacked_seeds
    if shared == ours.attacked_seeds | rival.attacked_seeds:
        return ""
    return f" over seed{'s' * (len(shared) > 1)} {', '.join(map(str, sorted(shared)))}, which both have"


def _spread(ours: Estimate, rival: Estimate, place: int) -> str:
    """Over several seeds the trainings may differ more than the points, of which the interval is."""
    return "; their seeds overlap" if place and ours.n_seeds > 1 and ours.overlaps(rival) else ""


def _time(ours: ComparisonRow, rival: ComparisonRow) -> str:
    """Training seconds in those of the rival, where they may be compared."""
    times = ours.times(rival)
    if times is None or rival.defence == NATURAL:
        return ""
    about = "about " if ours.busy or rival.busy else ""
    return f", at {about}{times:.2f} {'of' if times < 1 else 'times'} its time"
