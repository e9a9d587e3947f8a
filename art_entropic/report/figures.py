"""Figures of a section, as SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.evaluation.result import CURVE_BATTERY
from art_entropic.extras import optional
from art_entropic.report.sections import INK, ComparisonRow, Section, duration, percent, rank, title_of
from art_entropic.report.sentences import robustness_of

STROKES = (("-", "o"), ("--", "s"), (":", "^"))  # line and marker of a framework, in the order of FRAMEWORKS


@dataclass(frozen=True)
class Figure:
    """A picture as inline SVG, in the page's own text colour."""

    caption: str
    svg: str


def stroke(framework: str) -> tuple[str, str]:
    return STROKES[min(rank(FRAMEWORKS, framework)[0], len(STROKES) - 1)]


def figures(section: Section, *, salt: str) -> list[Figure]:
    """Security curves of the defences that are compared, one panel a framework, and their robustness against cost.

    Needs matplotlib.

    Args:
        salt: makes the SVG identifiers of several sections on one page differ.
    """
    panels = [
        _curve_figure(section, framework, rows, salt=f"{salt}-{framework}")
        for framework in section.frameworks
        if (rows := [row for row in section.main_rows if row.framework == framework and row.curve])
    ]
    priced = [row for row in section.main_rows if row.seconds and row.robust is not None]
    if len(priced) > 1:
        panels.append(_cost_figure(section, priced, salt=f"{salt}-cost"))
    return panels


def _curve_figure(section: Section, framework: str, rows: Sequence[ComparisonRow], *, salt: str) -> Figure:
    axes, figure = axes_of()
    style, marker = stroke(framework)
    for row in rows:
        radii = [eps for eps, _ in row.curve]
        axes.fill_between(
            radii,
            [100 * estimate.low for _, estimate in row.curve],
            [100 * estimate.high for _, estimate in row.curve],
            color=row.colour, alpha=0.16, linewidth=0,
        )  # fmt: skip
        values = [100 * estimate.value for _, estimate in row.curve]
        axes.plot(radii, values, style, marker=marker, color=row.colour, markersize=4.5, linewidth=1.8)
    axes.axvline(section.eps, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_ylim(-3, 103)
    axes.set_xlabel(f"L{section.norm} eps (dotted: the eps of the table)")
    axes.set_ylabel("robust accuracy, %")
    title = title_of(FRAMEWORKS, framework)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    said = "; ".join(
        f"{row.defence_title} " + ", ".join(f"{percent(estimate.value)} % at {eps:g}" for eps, estimate in row.curve)
        for row in rows
    )
    attacks = "" if section.battery == CURVE_BATTERY else f" (battery {CURVE_BATTERY}, weaker than the table's)"
    alt = f"{title}, robust accuracy: {said}"
    return Figure(f"Robust accuracy against eps{attacks}, {title}", inline_svg(figure, alt, salt))


def _cost_figure(section: Section, rows: Sequence[ComparisonRow], *, salt: str) -> Figure:
    axes, figure = axes_of()
    for row in rows:
        if row.robust is None or row.seconds is None:
            continue
        value = 100 * row.robust.value
        reach = [[value - 100 * row.robust.low], [100 * row.robust.high - value]]
        marker = stroke(row.framework)[1]
        axes.errorbar(
            row.seconds, value, yerr=reach, fmt=marker, color=row.colour,
            markersize=6.5, capsize=3, linewidth=1.2,
        )  # fmt: skip
    seconds = [row.seconds for row in rows if row.seconds]
    if max(seconds) > 8 * min(seconds):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if _leads_with(value, (2, 5)) else "")
    else:
        axes.set_xlim(0, 1.08 * max(seconds))
    axes.set_ylim(-3, 103)
    axes.set_xlabel("training seconds")
    axes.set_ylabel(f"robust accuracy at eps {section.eps:g}, %")
    axes.set_title("What robustness costs", loc="left", fontsize=11, color=INK)
    said = "; ".join(
        f"{row.defence_title} on {row.framework_title} {percent(robustness_of(row))} % for {duration(row.seconds or 0)} s"
        for row in rows
    )
    return Figure("Robust accuracy against training seconds", inline_svg(figure, f"Robustness and cost: {said}", salt))


def _leads_with(value: float, digits: tuple[int, ...]) -> bool:
    return round(value / 10 ** math.floor(math.log10(value))) in digits


def axes_of() -> tuple[Any, Any]:
    figure = optional("matplotlib.figure").Figure(figsize=(4.9, 3.5), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(color=INK, alpha=0.14, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, which="both", labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return axes, figure


def inline_svg(figure: Any, alt: str, salt: str) -> str:
    """A matplotlib figure as an <svg> element that takes colour and font from the page it stands in."""
    buffer = io.StringIO()
    with optional("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # figure_1 and the like would repeat from figure to figure
    svg = re.sub(r"font(?:-family)?: ?([^;\"]*?)'[^;\"]*", lambda hit: _font(hit.group(1)), svg)
    svg = svg.replace(INK, "currentColor")
    size = re.search(r'viewBox="([^"]*)"', svg)
    if size is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    body = svg[svg.index(">") + 1 :]
    return f'<svg role="img" viewBox="{size.group(1)}"><title>{_escaped(alt)}</title>{body}'


def _font(shorthand: str) -> str:
    size = re.search(r"[\d.]+px", shorthand)
    return f"font-size: {size.group()}" if size else "font-family: inherit"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
