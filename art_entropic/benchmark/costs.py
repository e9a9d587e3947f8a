"""What comparisons cost where they were measured: small tables that come with the package.

`benchmarks/first_command.py` writes that of the default comparison: CPU seconds of one thread, which are those that go by where
nothing else runs. `benchmarks/tables.py` writes the others: seconds of the published records."""

from __future__ import annotations

import functools
import importlib.resources

import msgspec

from art_entropic.benchmark.plan import ResolvedPlan

FILE = "costs.json"


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each task of the comparisons of one network under one battery, on one core.

    Attributes:
        n_train: points that were trained on, without those that are held out.
        epochs: of each defence.
        seconds: see `cost_key`; an import of the framework belongs to its first task.
    """

    created: str
    processor: str
    problem: str
    network: str
    battery: str
    n_train: int
    n_examples: int
    epochs: dict[str, int]
    seconds: dict[str, float]

    @property
    def place(self) -> tuple[str, str, str]:
        return self.problem, self.network, self.battery

    def of(self, plan: ResolvedPlan, framework: str, defence: str, kind: str, epochs: int, n_train: int) -> float | None:
        """Seconds of one task of a like plan, in proportion to its epochs and points; None where it was not measured."""
        seconds = self.seconds.get(cost_key(framework, defence, kind))
        if seconds is None:
            return None
        if kind == "train":
            return seconds * epochs * n_train / (self.epochs[defence] * self.n_train)
        return seconds * plan.n_examples / self.n_examples


def cost_key(framework: str, defence: str, kind: str) -> str:
    """Under which the seconds of a task are found; kind is "train", "attack", "check", or "profile" of no defence."""
    return f"{framework} {defence} {kind}"


@functools.cache
def recorded_costs() -> tuple[Costs, ...]:
    """The tables that come with the package."""
    return msgspec.json.decode(importlib.resources.files(__package__).joinpath(FILE).read_bytes(), type=tuple[Costs, ...])


def costs_like(plan: ResolvedPlan) -> Costs | None:
    """The table of a plan's problem, network and battery; None where nothing like it was measured."""
    for costs in recorded_costs():
        if costs.place == (plan.problem, plan.network, plan.battery):
            return costs
    return None
