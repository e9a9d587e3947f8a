"""What a section says, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.palette import NATURAL
from art_entropic.report.sections import ComparisonRow, Section, duration, paired, percent, title_of
from art_entropic.statistics import Difference


def summary(section: Section) -> list[str]:
    """One sentence a framework: who is ahead in robust accuracy, by how much, at what cost. Defeats come first."""
    behind: list[str] = []
    others: list[str] = []
    for framework in section.frameworks:
        rows = [row for row in section.rows if row.framework == framework and row.robust is not None]
        if not rows:
            others.append(f"{title_of(FRAMEWORKS, framework)}: nothing has been attacked yet.")
            continue
        for lost, sentence in _verdicts(rows):
            (behind if lost else others).append(f"{rows[0].framework_title}: {sentence}")
    return behind + others


def _verdicts(rows: Sequence[ComparisonRow]) -> list[tuple[bool, str]]:
    """For each of our own defences, variants only where there is nothing else: whether it lost, and the sentence."""
    ours = [row for row in rows if row.ours and not row.variant] or [row for row in rows if row.ours]
    rivals = [row for row in rows if not row.ours]
    if not ours or not rivals:
        best = max(rows, key=robustness_of)
        return [(False, f"{best.defence_title} has the highest robust accuracy, {percent(robustness_of(best))} %.")]
    return [_verdict(row, rivals) for row in ours]


def _verdict(entropic: ComparisonRow, rivals: Sequence[ComparisonRow]) -> tuple[bool, str]:
    rival = max(rivals, key=robustness_of)
    points = 100 * (robustness_of(entropic) - robustness_of(rival))
    figures = f"{percent(robustness_of(entropic))} % against {percent(robustness_of(rival))} % for {rival.defence_title}"
    if abs(points) < 0.05:
        names = f"{entropic.defence_title} and {rival.defence_title}"
        return False, f"{names} are level in robust accuracy, {figures}{_cost(entropic, rival)}."
    place = "ahead" if points > 0 else "behind"
    return points < 0, (
        f"{entropic.defence_title} is {place} in robust accuracy by {abs(points):.1f} points, {figures}"
        f"{_chance(entropic, rival)}{_cost(entropic, rival)}.{_cheaper(entropic, rivals)}{_without_gain(entropic, rivals)}"
    )


def _cheaper(entropic: ComparisonRow, rivals: Sequence[ComparisonRow]) -> str:
    """Rivals that took less time and are not clearly less robust: a reader would choose them."""
    found = [
        f"{rival.defence_title} ({percent(robustness_of(rival))} % in {duration(rival.seconds)} s)"
        for rival in rivals
        if rival.seconds and (rival.times(entropic) or math.inf) < 1 and _may_be_level(entropic, rival)
    ]
    return f" Cheaper and not clearly less robust: {', '.join(found)}." if found else ""


def _without_gain(entropic: ComparisonRow, rivals: Sequence[ComparisonRow]) -> str:
    natural = next((row for row in rivals if row.defence == NATURAL), None)
    if natural is None or robustness_of(entropic) > robustness_of(natural):
        return ""
    return f" It is not above natural training either, which has {percent(robustness_of(natural))} %."


def robustness_of(row: ComparisonRow) -> float:
    return -1.0 if row.robust is None else row.robust.value


def _difference(entropic: ComparisonRow, rival: ComparisonRow) -> Difference | None:
    """Paired, of one seed: over several the trainings differ more than the points."""
    one_seed = entropic.robust is not None and entropic.robust.n_seeds == 1
    return paired(entropic, rival) if one_seed else None


def _may_be_level(entropic: ComparisonRow, rival: ComparisonRow) -> bool:
    """Whether the rival is not clearly less robust."""
    if entropic.robust is None or rival.robust is None:
        return False
    difference = _difference(entropic, rival)
    return rival.robust.high >= entropic.robust.low if difference is None else difference.low <= 0


def _chance(entropic: ComparisonRow, rival: ComparisonRow) -> str:
    if entropic.robust is None or rival.robust is None:
        return ""
    difference = _difference(entropic, rival)
    if difference is not None:
        if difference.low > 0 or difference.high < 0:
            return ""
        ends = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
        return f" (95 % interval of the paired difference {ends}, so this may be chance)"
    if not entropic.robust.overlaps(rival.robust):
        return ""
    kind = "their 95 % intervals overlap" if entropic.robust.n_seeds == 1 else "their ranges over the seeds overlap"
    return f" ({kind}, so this may be chance)"


def _cost(entropic: ComparisonRow, rival: ComparisonRow) -> str:
    parts = []
    if entropic.seconds and rival.seconds:
        seconds = f"{duration(entropic.seconds)} s against {duration(rival.seconds)} s"
        unsure = ", unsure: the machine was busy" if entropic.busy or rival.busy else ""
        times = entropic.times(rival)
        if times is not None:
            parts.append(f"it took {_times(times)} the training time ({seconds}{unsure})")
        elif entropic.machines != rival.machines:
            parts.append(f"its training took {seconds}, on another machine")
        else:
            parts.append(f"its training took {seconds}, on a machine too busy to compare them")
    if entropic.clean is not None and rival.clean is not None:
        points = 100 * (entropic.clean.value - rival.clean.value)
        parts.append(f"its clean accuracy is {_compared(points)}")
    return "; " + " and ".join(parts) if parts else ""


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def _compared(points: float) -> str:
    if abs(points) < 0.05:
        return "the same"
    return f"{abs(points):.1f} points {'higher' if points > 0 else 'lower'}"
