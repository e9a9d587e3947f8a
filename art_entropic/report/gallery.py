"""Attacked examples, as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.palette import NATURAL
from art_entropic.records import AttackedExample, EvaluationRecord
from art_entropic.report.sections import Section, title_of

GALLERY_DEFENCES = (NATURAL, "entropic", "entropic_channel", "madry_pgd")
GALLERY_COLUMNS = 8


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery."""

    source: str  # data URI
    alt: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """The examples of one defence: clean pictures, and below each what an attack made of it."""

    title: str
    clean: tuple[Tile, ...]
    attacked: tuple[Tile, ...]


@dataclass(frozen=True)
class Gallery:
    """The strips of one framework."""

    framework: str
    strips: tuple[Strip, ...]


def galleries(section: Section) -> list[Gallery]:
    """One gallery a framework whose evaluations kept examples."""
    found = []
    for framework in section.frameworks:
        rows = [row for row in section.rows if row.framework == framework and row.shown and row.shown.examples]
        chosen = [row for row in rows if row.defence in GALLERY_DEFENCES and not row.variant] or rows
        if chosen:
            strips = tuple(_strip(row.defence_title, row.shown) for row in chosen if row.shown is not None)
            found.append(Gallery(title_of(FRAMEWORKS, framework), strips))
    return found


def _strip(defence: str, evaluation: EvaluationRecord) -> Strip:
    robust = evaluation.robust
    examples = evaluation.examples[:GALLERY_COLUMNS]
    return Strip(
        f"{defence}: {robust.n - robust.correct} of {robust.n} points are wrong under attack",
        tuple(_clean_tile(example) for example in examples),
        tuple(_attacked_tile(defence, example) for example in examples),
    )


def _clean_tile(example: AttackedExample) -> Tile:
    alt = f"test point {example.index}, label {example.label}, clean"
    return Tile(png(example.clean, example.shape), alt, _said(example.clean_prediction, example.label))


def _attacked_tile(defence: str, example: AttackedExample) -> Tile:
    alt = (
        f"test point {example.index}, label {example.label}, attacked: {defence} says {example.clean_prediction} "
        f"on the clean point and {example.attacked_prediction} on this one"
    )
    return Tile(png(example.attacked, example.shape), alt, _said(example.attacked_prediction, example.label))


def _said(prediction: int, label: int) -> str:
    return f"{prediction} {'✓' if prediction == label else '✗'}"


def png(pixels: Sequence[float], shape: Sequence[int]) -> str:
    """A picture as a PNG data URI.

    Args:
        pixels: row by row in [0, 1].
        shape: (height, width, channels), 1 or 3 channels.
    Raises:
        ValueError: another number of channels.
    """
    from PIL import Image

    if shape[-1] not in (1, 3):
        raise ValueError(f"`shape` must end in 1 or 3 channels, got {tuple(shape)!r}")
    levels = np.rint(255 * np.clip(np.asarray(pixels, dtype=np.float64), 0, 1)).astype(np.uint8).reshape(shape)
    buffer = io.BytesIO()
    Image.fromarray(levels[..., 0] if shape[-1] == 1 else levels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
