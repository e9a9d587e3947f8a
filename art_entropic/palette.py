"""Colours of all figures: told apart by colour-blind readers, on white paper and on dark screens."""

from __future__ import annotations

from collections.abc import Iterable

NATURAL = "natural"

# Okabe & Ito 2008, "Color Universal Design", without yellow and black, which vanish on white and on dark paper; then five
# of middle lightness for long tables.
PALETTE = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#999933",
    "#8B7BC7",
    "#9C6B4A",
    "#7F8C8D",
    "#3FA7A0",
    "#A3485B",
)
GREY = "#4D4D4D"


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: grey for natural training, the palette in order for the others."""
    named = list(dict.fromkeys(names))
    others = [name for name in named if name != NATURAL]
    return {name: PALETTE[others.index(name) % len(PALETTE)] if name in others else GREY for name in named}


__all__ = ["GREY", "NATURAL", "PALETTE", "colours"]
