"""A world in which a benchmark takes no time: it stands in for data, networks, defences and attacks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.data import Data
from art_entropic.benchmark.defences import DEFENCES, Defence, Passes, Trained
from art_entropic.benchmark.plan import BenchmarkPlan, Variant
from art_entropic.benchmark.run import CellStatus, run_with, status_with
from art_entropic.benchmark.tools import Tools
from art_entropic.measures import Interval, Measure, Schedule
from art_entropic.records import Accuracy, AttackedExample, CheckOutcome, Findings, PointsRecord, ProfileRow, pack

N_TRAIN, N_TEST = 50, 20
PICTURE = AttackedExample(
    index=0, label=0, clean_prediction=0, attacked_prediction=1, shape=(1, 1, 1), clean=[0.0], attacked=[0.1]
)
SMALL = BenchmarkPlan(
    defences=("entropic", "trades"),
    n_examples=10,
    nb_epochs=3,
    nb_epochs_natural=2,
    battery="quick",
    checks=False,
    profile=False,
)
ABLATION = msgspec.structs.replace(
    SMALL,
    frameworks=("pytorch",),
    defences=("entropic",),
    variants=(
        Variant("no information", "entropic", Interval(beta=0.0, layers=("a", "b"), schedule=Schedule(ramp=0.2))),
        Variant("from scratch", "entropic_channel", start="random", nb_epochs=9),
    ),
)


class FakeEstimator:
    """Its weights are the list of what has happened to it."""

    def __init__(self, framework: str, seed: int) -> None:
        self.framework, self.weights, self.adapted = framework, [f"init-{seed}"], False


class FakeBackend:
    weights_suffix = ".fake"

    def __init__(self, estimator: FakeEstimator) -> None:
        self.estimator = estimator

    def save_weights(self, path: Path) -> None:
        assert path.name.endswith(self.weights_suffix)
        path.write_text(json.dumps(self.estimator.weights))

    def load_weights(self, path: Path) -> None:
        self.estimator.weights = json.loads(path.read_text())

    def state(self) -> dict[str, np.ndarray]:
        return {"kernel": np.array([np.nan if "broken" in self.estimator.weights else 1.0])}


class FakeDefence:
    """A row of DEFENCES that notes its name in the weights."""

    def __init__(self, world: World, name: str, row: Defence) -> None:
        self.world, self.name, self.ours, self.adapt, self.measure = world, name, row.ours, row.adapt, row.measure

    def unavailable(self, framework: str) -> str | None:
        return f"no {self.name} here" if (self.name, framework) == ("trades", "tensorflow") else None

    def adapt_network(self, estimator: FakeEstimator) -> None:
        estimator.adapted = self.adapt is not None

    def check_measure(self, estimator: FakeEstimator, eps: float, measure: Measure, norm: str = "inf") -> None:
        if isinstance(measure, Interval) and measure.eps_factor > 9:
            raise ValueError("`eps_factor` takes `eps` too far")

    def train(self, estimator: FakeEstimator, x: np.ndarray, y: np.ndarray, **options: Any) -> Trained:
        settings = {"trainer.measure": "chosen"} if self.ours else {}
        trained = Trained(estimator, (f"a note of {self.name}",), [], settings, Passes(20, 30))
        if options.get("validation_data") is None:  # the warm-up
            return trained
        if self.name in self.world.failure:
            raise self.world.failure[self.name]
        told = (self.name, estimator.framework, list(estimator.weights), {"x": x, "y": y, **options})
        self.world.trained.append(told)
        estimator.weights += [self.name, *(["broken"] if self.name in self.world.breaks else [])]
        return trained


class World(Tools):
    """Keeps what was asked of it.

    Attributes:
        failure: what a defence, "evaluate" or "check" raises.
        breaks: defences whose networks have weights that are not finite.
        stops_after: so many evaluations.
        n_pictures: attacked examples of each evaluation.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.random((N_TRAIN + N_TEST, 8, 8, 1), np.float32)
        y = rng.integers(0, 10, N_TRAIN + N_TEST)
        self.data = Data(x[:N_TRAIN], y[:N_TRAIN], x[N_TRAIN:], y[N_TRAIN:], "feed", "nowhere", "Noise")
        self.defences = {name: FakeDefence(self, name, row) for name, row in DEFENCES.items()}
        self.trained: list[tuple[str, str, list[str], dict[str, Any]]] = []
        self.evaluated: list[tuple[list[str], np.ndarray, dict[str, Any]]] = []
        self.adapted: list[bool] = []
        self.networks: list[Any] = []
        self.checked: list[tuple[list[str], np.ndarray, float, dict[str, list[str]]]] = []
        self.profiled: list[tuple[dict[str, list[str]], int, float]] = []
        self.failure: dict[str, BaseException] = {}
        self.breaks: set[str] = set()
        self.stops_after: int | None = None
        self.n_pictures = 0

    def run(self, folder: Path | str, plan: BenchmarkPlan = SMALL, *, verbose: bool = False, **options: Any) -> list[Any]:
        return run_with(self, plan, folder, verbose=verbose, **options)

    def status(self, folder: Path, plan: BenchmarkPlan, results: Path | None = None) -> list[CellStatus]:
        return status_with(self, plan, folder, results)

    def forget(self) -> None:
        """What has been trained and evaluated so far."""
        self.trained.clear()
        self.evaluated.clear()

    # -- the tools

    backend_for = FakeBackend

    def installed_frameworks(self) -> tuple[str, ...]:
        return tuple(FRAMEWORKS)

    def framework_module(self, framework: str) -> Any:
        return SimpleNamespace(device_title=lambda place: "no device")

    def load_data(self, problem: str) -> Data:
        return self.data

    def build_classifier(self, problem: Any, framework: str, seed: int, network: str, device: Any = None) -> FakeEstimator:
        self.networks.append(problem.networks[network])
        return FakeEstimator(framework, seed)

    def evaluate(self, estimator: FakeEstimator, x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
        self.evaluated.append((list(estimator.weights), x, options))
        self.adapted.append(estimator.adapted)
        if "evaluate" in self.failure:
            raise self.failure["evaluate"]
        if self.stops_after is not None and len(self.evaluated) > self.stops_after:
            raise KeyboardInterrupt
        robust = np.arange(len(x)) < 5
        points = PointsRecord(clean=pack(np.ones(len(x), bool)), robust=pack(robust))
        share = Accuracy(correct=int(robust.sum()), n=len(x), low=0.1, high=0.5)
        found = Findings(
            clean=share, robust=share, certified_reason="none here", attacks=[], distances=[], points=points, seconds=0.5
        )
        return SimpleNamespace(findings=lambda: found, seconds=found.seconds)

    def security_curve(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def attacked_examples(self, *_: Any) -> list[AttackedExample]:
        return [PICTURE] * self.n_pictures

    def check_evaluation(
        self, estimator: FakeEstimator, x: np.ndarray, y: np.ndarray, survived: np.ndarray, eps: float, **options: Any
    ) -> list[CheckOutcome]:
        sources = {name: list(source.weights) for name, source in options["transfer_from"].items()}
        self.checked.append((list(estimator.weights), survived, eps, sources))
        if "check" in self.failure:
            raise self.failure["check"]
        return [CheckOutcome(check="one_step", title="Many steps beat one", status="flag", meaning="m", advice="a")]

    def information_profile(self, estimators: dict[str, FakeEstimator], x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
        self.profiled.append(({name: list(one.weights) for name, one in estimators.items()}, len(x), options["eps"]))
        rows = (ProfileRow(model="natural", measure="label", value=1.0),)
        return SimpleNamespace(n=len(x), resolution=0.1, copies=16, notes=(), rows=rows, seconds=0.1)

    def clock(self) -> float:
        return 0.0
