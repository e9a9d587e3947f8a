"""What a retraining tells: terms of each epoch, which epoch was taken, how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from art_entropic.extras import optional
from art_entropic.palette import GREY, colours
from art_entropic.records import Epoch
from art_entropic.schedule import ControlSchedule

# Of the data, on which the line at the end shows the clean accuracy before and after.
SHOWN_POINTS = 512
# Steps of the ramp below which eps grows faster than a network follows.
LEAST_RAMP = 100
# Points of clean accuracy that a retraining may cost before the closing line says what helps.
LARGE_LOSS = 0.05
REMEDIES = {
    "interval": "more epochs, a wider network or a smaller eps help, or smooth_activations(classifier) and measure='channel'",
    "channel": "more epochs or a smaller eps help; with ReLU, smooth_activations(classifier) before retraining",
}
Callback = Callable[[Epoch], Any]
LOSS_TERMS = ("loss", "cross_entropy", "worst_case_cross_entropy", "information")
SHARES = ("accuracy", "certified_accuracy")


class TrainingDivergedError(RuntimeError):
    """A step's loss or gradient was not finite; the weights are those of the last finished epoch."""

    def __init__(self, epoch: int, step: int, terms: Mapping[str, float], restored: str) -> None:
        bad = ", ".join(f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value))
        super().__init__(
            f"training diverged in epoch {epoch}, step {step}: {bad}; the weights were reset to those of {restored}. "
            "Try a smaller learning rate, a longer ramp (schedule=Schedule(ramp=...)), or a measure with a smaller `beta`"
        )
        self.epoch = epoch
        self.step = step


@dataclass
class History:
    """What a retraining did, epoch by epoch.

    Attributes:
        epochs: one record per finished epoch.
        best_epoch: number of the epoch whose weights the classifier holds now; None before the first.
        seconds: wall-clock time of training, validation included.
        seed: that reproduces the run.
        stopped_early: whether early stopping or a callback ended it.
        settings: eps, beta, k and all else that determined the loss.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int | None = None
    seconds: float = 0.0
    seed: int = 0
    stopped_early: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def terms(self, name: str) -> list[float]:
        """One term of the loss over the epochs.

        Raises:
            KeyError: there is no such term; the message lists those that are.
        """
        known = sorted({term for epoch in self.epochs for term in epoch.terms})
        if self.epochs and name not in known:
            raise KeyError(f"no term {name!r} in this history, its terms are {', '.join(known)}")
        return [epoch.terms[name] for epoch in self.epochs]

    def plot(self) -> Any:
        """Terms of the loss, and what is right and what is certified, over the epochs; validation dashed.

        Returns:
            A matplotlib figure.
        Raises:
            MissingPackageError: matplotlib is not installed.
            ValueError: no epoch has finished.
        """
        if not self.epochs:
            raise ValueError("`history` must have at least one finished epoch to plot, got none")
        figure = optional("matplotlib.figure").Figure(figsize=(9.2, 3.4), layout="constrained")
        for axes, names, unit in zip(figure.subplots(1, 2), (LOSS_TERMS, SHARES), ("nats", "%"), strict=True):
            shown = [name for name in names if name in self.epochs[0].terms]
            for name, shade in colours(shown).items():
                for line, validation in (("-", False), ("--", True)):
                    at, values = self._series(name, validation=validation)
                    told = {} if validation else {"label": name.replace("_", " ")}
                    scaled = [100 * value for value in values] if unit == "%" else values
                    axes.plot(at, scaled, line, marker=".", color=shade, **told)
            if self.best_epoch is not None:
                axes.axvline(self.best_epoch, color=GREY, alpha=0.5, linewidth=0.8, linestyle=":")
            axes.set_xlabel("epoch (dotted: the best one; dashed: validation)")
            axes.set_ylabel(unit)
            axes.legend(frameon=False, fontsize=9)
            axes.grid(alpha=0.2)
        return figure

    def _series(self, name: str, *, validation: bool) -> tuple[list[int], list[float]]:
        """Epochs that have a term, and its values."""
        sides = [(one.epoch, (one.validation or {}) if validation else one.terms) for one in self.epochs]
        return [epoch for epoch, side in sides if name in side], [side[name] for _, side in sides if name in side]


def closing_line(history: History, schedule: ControlSchedule, steps: int, accuracy: tuple[float, float], where: str) -> str:
    """What became of a retraining in one line, and what to do about what stood in the way.

    Args:
        steps: of an epoch.
        accuracy: clean accuracy before and after.
        where: the points on which it was measured, in words.
    """
    before, after = accuracy
    last, settings = history.epochs[-1], history.settings
    parts = [
        f"entropic retraining: {len(history.epochs)} epochs in {history.seconds:.1f} s with measure "
        f"{settings['measure']!r}; clean accuracy on {where} {100 * before:.1f} % -> {100 * after:.1f} %"
    ]
    kept = history.epochs[(history.best_epoch or last.epoch) - 1]
    share = (kept.validation or kept.terms).get("certified_accuracy")
    if share is not None:
        parts[0] += f", certified {100 * share:.1f} % at eps {kept.eps:g}" + ("" if kept.validation else " (training batches)")
    if before - after > LARGE_LOSS and settings["measure"] in REMEDIES:
        parts.append(f"it cost {100 * (before - after):.1f} points of clean accuracy: {REMEDIES[settings['measure']]}")
    if not schedule.is_full(last.epoch / settings["nb_epochs"]):
        parts.append("it ended before eps reached its full value: train longer")
    ramp = schedule.ramp * settings["nb_epochs"] * steps
    if 0 < ramp < LEAST_RAMP:
        enough = math.ceil(LEAST_RAMP / (schedule.ramp * steps))
        parts.append(f"eps grew over only {math.ceil(ramp)} steps, which is fast: train for {enough} epochs or more")
    if last.validation is None:
        parts.append("the last epoch's weights were kept: give `validation_data` to keep the best epoch's")
    return "; ".join(parts)
