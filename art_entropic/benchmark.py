"""A plan of cells -> trained and attacked networks -> records, one at a time, each kept as soon as it is finished.

All defences of one framework and seed start from the same natural weights, see the same training points and hold out
the same validation points. A record's key is a digest of all that determines it, so a second start finds what is done.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from art_entropic import __version__
from art_entropic._validate import check_eps, choice, positive_int
from art_entropic.attacks import BATTERIES
from art_entropic.backends import FRAMEWORKS, MissingFrameworkError, backend_for, framework_module, installed_frameworks
from art_entropic.defences import DEFENCES
from art_entropic.evaluation import evaluate
from art_entropic.problems import CLIP_VALUES, PROBLEMS, Data, Problem, build_classifier, for_framework, load_data
from art_entropic.records import (
    SCHEMA,
    AnyRecord,
    EvaluationRecord,
    Provenance,
    TrainingRecord,
    append_record,
    read_records,
)
from art_entropic.report import OTHER_LOAD, RECORDS

NATURAL = "natural"
VALIDATION_SHARE = 0.1
N_GALLERY = 6
SHARED_PACKAGES = ("adversarial-robustness-toolbox", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to compare, and how. None takes the problem's own value, or everything that there is.

    Args:
        problem: a name of PROBLEMS.
        frameworks: names of FRAMEWORKS; None takes every installed one.
        defences: names of DEFENCES; None takes all. Natural training always comes along, since all start from it.
        battery: a name of BATTERIES.
        eps: radius of the Linf ball, in the units of the data, which lie in [0, 1].
        seeds: one training of every defence for each; a seed sets the initial weights, the order of the data and the
            held-out points.
        n_examples: how many test points are attacked, from the first on.
        nb_epochs: epochs of every defence's retraining.
        nb_epochs_natural: epochs of the natural training before it.
    """

    problem: str = "digits"
    frameworks: tuple[str, ...] | None = None
    defences: tuple[str, ...] | None = None
    battery: str = "standard"
    eps: float | None = None
    seeds: tuple[int, ...] = (0,)
    n_examples: int | None = None
    nb_epochs: int | None = None
    nb_epochs_natural: int | None = None


@dataclass(frozen=True)
class Settings:
    """A plan with every value filled in and checked."""

    problem: Problem
    frameworks: tuple[str, ...]
    defences: tuple[str, ...]
    battery: str
    eps: float
    seeds: tuple[int, ...]
    n_examples: int
    nb_epochs: int
    nb_epochs_natural: int

    @property
    def command(self) -> str:
        """The command line that asks for the same, whatever the defaults of another version are."""
        return (
            f"art-entropic benchmark --problem {self.problem.name} --framework {','.join(self.frameworks)} "
            f"--defence {','.join(self.defences)} --battery {self.battery} --eps {self.eps!r} "
            f"--seeds {','.join(map(str, self.seeds))} --n-examples {self.n_examples} "
            f"--epochs {self.nb_epochs} --epochs-natural {self.nb_epochs_natural}"
        )

    def epochs_of(self, defence: str) -> int:
        return self.nb_epochs_natural if defence == NATURAL else self.nb_epochs


def settings_of(plan: BenchmarkPlan) -> Settings:
    """Check a plan and fill in what it leaves open.

    Raises:
        ValueError: an argument is out of range or names nothing.
        MissingFrameworkError: a framework of the plan, or every one, is not installed.
    """
    problem = PROBLEMS[choice("problem", plan.problem, PROBLEMS)]
    wanted = plan.defences if plan.defences is not None else tuple(DEFENCES)
    named = {choice("defences", name, DEFENCES) for name in wanted} | {NATURAL}
    return Settings(
        problem=problem,
        frameworks=_frameworks(plan.frameworks),
        defences=tuple(name for name in DEFENCES if name in named),
        battery=choice("battery", plan.battery, BATTERIES),
        eps=check_eps(problem.eps if plan.eps is None else plan.eps, CLIP_VALUES),
        seeds=_seeds(plan.seeds),
        n_examples=positive_int("n_examples", problem.n_examples if plan.n_examples is None else plan.n_examples),
        nb_epochs=positive_int("nb_epochs", problem.nb_epochs if plan.nb_epochs is None else plan.nb_epochs),
        nb_epochs_natural=positive_int(
            "nb_epochs_natural",
            problem.nb_epochs_natural if plan.nb_epochs_natural is None else plan.nb_epochs_natural,
        ),
    )


def _frameworks(names: Sequence[str] | None) -> tuple[str, ...]:
    installed = installed_frameworks()
    if names is not None:
        named = {choice("frameworks", name, FRAMEWORKS) for name in names}
        if not named:
            raise ValueError(f"`frameworks` must name at least one of {', '.join(FRAMEWORKS)}, got {names!r}")
        for name in sorted(named.difference(installed)):
            framework_module(name)  # raises MissingFrameworkError with the command that installs it
        return tuple(name for name in FRAMEWORKS if name in named)
    if not installed:
        commands = " or ".join(f"pip install 'art-entropic[{row.package}]'" for row in FRAMEWORKS.values())
        raise MissingFrameworkError(f"no framework is installed: {commands}")
    return installed


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise ValueError(f"`seeds` must be whole numbers from 0 to 2**31 - 1, got {seed!r}")
    if not seeds:
        raise ValueError(f"`seeds` must name at least one seed, got {seeds!r}")
    return tuple(dict.fromkeys(seeds))


# --------------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Job:
    """One cell: one network of one framework and seed, trained by one defence, then attacked."""

    framework: str
    seed: int
    defence: str
    training_key: str
    evaluation_key: str
    natural_key: str

    @property
    def title(self) -> str:
        return f"{DEFENCES[self.defence].title} on {FRAMEWORKS[self.framework].title}, seed {self.seed}"

    def weights(self, suffix: str, key: str | None = None, defence: str | None = None) -> str:
        """File of the weights inside the run's folder."""
        prefix = (key or self.training_key)[:12]
        return f"weights/{prefix}-{self.framework}-{defence or self.defence}-seed{self.seed}{suffix}"


def plan_jobs(settings: Settings, data_sha256: str) -> list[Job]:
    """The cells of a plan, natural training first within each framework and seed."""
    jobs = []
    for framework in settings.frameworks:
        versions = package_versions((framework,))
        for seed in settings.seeds:
            natural_key = _training_key(settings, framework, seed, NATURAL, data_sha256, versions, start=None)
            for defence in sorted(settings.defences, key=lambda name: name != NATURAL):
                start = None if defence == NATURAL else natural_key
                key = _training_key(settings, framework, seed, defence, data_sha256, versions, start)
                jobs.append(Job(framework, seed, defence, key, _evaluation_key(settings, key), natural_key))
    return jobs


def _training_key(
    settings: Settings,
    framework: str,
    seed: int,
    defence: str,
    data_sha256: str,
    versions: dict[str, str],
    start: str | None,
) -> str:
    problem = settings.problem
    return digest(
        kind="training",
        schema=SCHEMA,
        problem=problem.name,
        architecture=repr(problem.architecture),
        framework=framework,
        seed=seed,
        defence=defence,
        eps=settings.eps,
        nb_epochs=settings.epochs_of(defence),
        batch_size=problem.batch_size,
        learning_rate=problem.learning_rate,
        validation_share=VALIDATION_SHARE,
        data=data_sha256,
        versions=versions,
        start=start,
    )


def _evaluation_key(settings: Settings, training_key: str) -> str:
    return digest(
        kind="evaluation",
        schema=SCHEMA,
        training=training_key,
        battery=settings.battery,
        eps=settings.eps,
        n_examples=settings.n_examples,
        curve_eps=settings.problem.curve_eps,
        n_gallery=N_GALLERY,
    )


def digest(**facts: Any) -> str:
    """SHA-256 of named facts, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def hold_out(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out) of a seeded split of n points; both in ascending order, at least one point each."""
    if n < 2:
        raise ValueError(f"a split needs at least 2 points, got {n}")
    held = min(max(round(n * share), 1), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[held:]), np.sort(order[:held])


# -------------------------------------------------------------------------------------------------------------- runner


def run_benchmark(
    plan: BenchmarkPlan | None = None, out: str | os.PathLike[str] | None = None, *, verbose: bool = True
) -> list[AnyRecord]:
    """Train and attack every cell of a plan that `out` does not hold yet.

    Each training and each evaluation is appended to ``records.jsonl`` as it finishes; weights go to ``weights/``. An
    interrupted run loses the cell in progress, no more.

    Args:
        plan: what to compare; None compares all defences on the embedded digits.
        out: folder of the run; None takes ``runs/<problem>``.
        verbose: progress on stderr.
    Returns:
        The records of the plan, those of earlier starts included.
    Raises:
        ValueError: an argument of the plan is out of range or names nothing.
        MissingFrameworkError: a framework is not installed.
    """
    settings = settings_of(plan or BenchmarkPlan())
    home = Path(out) if out is not None else Path("runs") / settings.problem.name
    data = load_data(settings.problem.name)
    if settings.n_examples > len(data.x_test):
        raise ValueError(f"`n_examples` must be at most the {len(data.x_test)} test points, got {settings.n_examples}")
    jobs = plan_jobs(settings, data.sha256)
    store = Store(home)
    store.bring_up([job.evaluation_key for job in jobs])
    runner = _Runner(settings, data, store, provenance(settings, data.sha256))
    with _progress(len(jobs), verbose) as progress:
        done = sum(store.is_done(job) for job in jobs)
        if done:
            progress.note(f"resuming in {home}: {done} of {len(jobs)} cells are done")
        for job in jobs:
            if not store.is_done(job):
                runner.run(job, progress)
            progress.advance()
    return store.of(jobs)


class Store:
    """The finished records of a run's folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / RECORDS
        _drop_torn_tail(self.path)
        self._records: dict[str, AnyRecord] = {}
        for record in read_records(self.path):
            self._keep(record)

    def append(self, record: AnyRecord) -> None:
        append_record(self.path, record)
        self._keep(record)

    def _keep(self, record: AnyRecord) -> None:
        self._records.pop(record.key, None)  # a dict keeps the place of a key's first arrival, the file its last
        self._records[record.key] = record

    def training(self, key: str) -> TrainingRecord | None:
        """A finished training. One whose weights are gone does not count."""
        record = self._records.get(key)
        if not isinstance(record, TrainingRecord):
            return None
        if record.weights is not None and not (self.home / record.weights).exists():
            return None
        return record

    def evaluation(self, key: str) -> EvaluationRecord | None:
        record = self._records.get(key)
        return record if isinstance(record, EvaluationRecord) else None

    def is_done(self, job: Job) -> bool:
        training = self.training(job.training_key)
        if training is None:
            return False
        return training.status != "done" or self.evaluation(job.evaluation_key) is not None

    def of(self, jobs: Sequence[Job]) -> list[AnyRecord]:
        keys = (key for job in jobs for key in (job.training_key, job.evaluation_key))
        return [self._records[key] for key in keys if key in self._records]

    def bring_up(self, evaluation_keys: Sequence[str]) -> None:
        """Append again each evaluation of this plan that one with other settings has followed.

        A report shows the latest evaluation of a cell: going back to earlier settings must show theirs.
        """
        wanted = set(evaluation_keys)
        latest = {
            (r.problem, r.framework, r.defence, r.seed, r.eps, r.norm, r.battery, r.clean.n): r.key
            for r in self._records.values()
            if isinstance(r, EvaluationRecord)
        }
        overtaken = [key for key in self._records if key in wanted and key not in latest.values()]
        for key in overtaken:
            self.append(self._records[key])


def _drop_torn_tail(path: Path) -> None:
    """Cut an unfinished last line, which a killed run leaves; a record appended to it would be lost with it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        print(f"{path}: an unfinished last record was dropped, its cell will be done again", file=sys.stderr)
        with path.open("r+b") as file:
            file.truncate(whole)


@dataclass
class _Runner:
    settings: Settings
    data: Data
    store: Store
    source: Provenance
    warm: set[str] = field(default_factory=set)  # frameworks

    def run(self, job: Job, progress: _Progress) -> None:
        """Whatever of a cell is missing: its training, its evaluation."""
        training = self.store.training(job.training_key)
        if training is None:
            progress.begin(f"training {job.title}")
            training = self._train(job)
            self.store.append(training)
            progress.note(f"{job.title}: {_told(training)}")
        if training.status == "done" and self.store.evaluation(job.evaluation_key) is None:
            progress.begin(f"attacking {job.title}")
            evaluation = self._evaluate(job, training)
            self.store.append(evaluation)
            progress.note(
                f"{job.title}: clean {evaluation.clean.value:.1%}, robust {evaluation.robust.value:.1%} "
                f"({evaluation.seconds:.1f} s of attacks)"
            )

    def _train(self, job: Job) -> TrainingRecord:
        from art_entropic.trainer import TrainingDivergedError

        reason = DEFENCES[job.defence].unavailable(job.framework)
        start = None if job.defence == NATURAL else self.store.training(job.natural_key)
        if reason is None and start is not None and start.status != "done":
            reason = f"the natural training it starts from has no weights: {start.reason}"
        if reason is not None:
            return self._training_record(job, "unavailable", Spent(0.0, None), reason=reason)
        self._warm_up(job)
        problem = self.settings.problem
        estimator = self._build(job)
        if start is not None and start.weights is not None:
            backend_for(estimator).load_weights(self.store.home / start.weights)
        x = for_framework(self.data.x_train, job.framework)
        kept, held = hold_out(len(x), VALIDATION_SHARE, job.seed)
        y = self.data.y_train
        watch = Stopwatch()
        try:
            trained, notes, history = DEFENCES[job.defence].train(
                estimator,
                x[kept],
                y[kept],
                eps=self.settings.eps,
                nb_epochs=self.settings.epochs_of(job.defence),
                batch_size=problem.batch_size,
                seed=job.seed,
                learning_rate=problem.learning_rate,
                verbose=False,
                validation_data=(x[held], y[held]),
            )
        except TrainingDivergedError as error:
            return self._training_record(job, "diverged", watch.stop(), reason=str(error), n_train=len(kept))
        spent = watch.stop()
        weights = self._save(job, trained)
        return self._training_record(
            job, "done", spent, weights=weights, notes=tuple(notes), history=list(history), n_train=len(kept)
        )

    def _warm_up(self, job: Job) -> None:
        """One batch of natural training on a network that is thrown away.

        Without it the first training of a framework, which is the natural one, would pay for loading it.
        """
        if job.framework in self.warm:
            return
        problem = self.settings.problem
        size = problem.batch_size
        DEFENCES[NATURAL].train(
            self._build(job),
            for_framework(self.data.x_train[:size], job.framework),
            self.data.y_train[:size],
            eps=self.settings.eps,
            nb_epochs=1,
            batch_size=size,
            seed=job.seed,
            learning_rate=problem.learning_rate,
            verbose=False,
        )
        self.warm.add(job.framework)

    def _build(self, job: Job) -> Any:
        return build_classifier(self.settings.problem, job.framework, job.seed)

    def _save(self, job: Job, estimator: Any) -> str:
        backend = backend_for(estimator)
        name = job.weights(backend.weights_suffix)
        path = self.store.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, backend.weights_suffix) as temporary:
            backend.save_weights(temporary)
        return name

    def _evaluate(self, job: Job, training: TrainingRecord) -> EvaluationRecord:
        # From the file, not from memory: an interrupted and an uninterrupted run attack the same bits.
        estimator = self._build(job)
        backend_for(estimator).load_weights(self.store.home / str(training.weights))
        n = self.settings.n_examples
        result = evaluate(
            estimator,
            for_framework(self.data.x_test[:n], job.framework),
            self.data.y_test[:n],
            eps=self.settings.eps,
            norm="inf",
            battery=self.settings.battery,
            seed=job.seed,
            curve_eps=self.settings.problem.curve_eps,
            n_gallery=N_GALLERY,
            verbose=False,
        )
        return EvaluationRecord(
            key=job.evaluation_key,
            training_key=job.training_key,
            problem=self.settings.problem.name,
            framework=job.framework,
            defence=job.defence,
            seed=job.seed,
            eps=self.settings.eps,
            battery=self.settings.battery,
            clean=result.clean,
            robust=result.robust,
            certified=result.certified,
            certified_reason=result.certified_reason,
            attacks=list(result.attacks),
            curve=list(result.curve),
            examples=list(result.examples),
            seconds=result.seconds,
            provenance=_stamped(self.source),
        )

    def _training_record(self, job: Job, status: Any, spent: Spent, **facts: Any) -> TrainingRecord:
        return TrainingRecord(
            key=job.training_key,
            problem=self.settings.problem.name,
            framework=job.framework,
            defence=job.defence,
            seed=job.seed,
            eps=self.settings.eps,
            status=status,
            nb_epochs=self.settings.epochs_of(job.defence),
            batch_size=self.settings.problem.batch_size,
            seconds=spent.seconds,
            settings={
                "data": self.data.title,
                "learning_rate": self.settings.problem.learning_rate,
                "validation_share": VALIDATION_SHARE,
                OTHER_LOAD: spent.other_load,
            },
            provenance=_stamped(self.source),
            **{"n_train": 0, **facts},
        )


class Spent(NamedTuple):
    """What a training took: wall-clock seconds, and the share of this process's cores that others kept busy meanwhile."""

    seconds: float
    other_load: float | None  # None where the system does not tell


class Stopwatch:
    """Times a block, and watches whether the machine was free for it.

    Two processes on the same cores can slow each other tenfold, so that seconds alone would compare the neighbours.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._began = _busy_seconds(), time.process_time(), time.perf_counter()

    def stop(self) -> Spent:
        seconds = time.perf_counter() - self._began
        busy, own = _busy_seconds(), time.process_time() - self._own
        if busy is None or self._busy is None or seconds <= 0:
            return Spent(seconds, None)
        others = (busy - self._busy - own) / (seconds * available_cores())
        return Spent(seconds, round(min(max(others, 0.0), 1.0), 3))


def _busy_seconds() -> float | None:
    """CPU seconds that the cores of this process have worked since boot, for whomever. Source: proc_stat(5)."""
    stat = Path("/proc/stat")
    if not (stat.exists() and hasattr(os, "sched_getaffinity")):
        return None
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in stat.read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _told(training: TrainingRecord) -> str:
    if training.status == "done":
        return f"trained in {training.seconds:.1f} s"
    return f"{training.status}: {training.reason}"


@contextmanager
def replacing(path: Path, suffix: str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f".{os.getpid()}-{path.name.removesuffix(suffix)}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- provenance


def provenance(settings: Settings, data_sha256: str) -> Provenance:
    """Where and with what this process runs."""
    return machine_provenance(settings.command, settings.frameworks, data_sha256)


def machine_provenance(command: str, frameworks: Sequence[str], data_sha256: str) -> Provenance:
    """Where and with what this process runs, for a command over data of that digest."""
    return Provenance(
        created=_now(),
        command=command,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor_name(),
        cores=available_cores(),
        versions=package_versions(frameworks),
        data_sha256=data_sha256,
    )


def package_versions(frameworks: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that numbers depend on; nothing is imported."""
    rows = [FRAMEWORKS[framework] for framework in frameworks]
    packages = SHARED_PACKAGES + tuple(name for row in rows for name in (row.package, *row.companions))
    return {"art-entropic": __version__} | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # a build for another processor has another name, such as <package>-cpu
        builds = importlib.metadata.packages_distributions().get(package, ())
        return ", ".join(f"{build} {importlib.metadata.version(build)}" for build in builds) or "not installed"


def processor_name() -> str:
    """The processor as the operating system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _stamped(source: Provenance) -> Provenance:
    import msgspec

    return msgspec.structs.replace(source, created=_now())


# ------------------------------------------------------------------------------------------------------------ progress


class _Progress:
    """Progress on stderr: a bar on a terminal, a line a finished cell anywhere else, nothing when switched off."""

    def __init__(self, total: int, verbose: bool) -> None:
        self._verbose = verbose
        self._bar: Any = None
        if verbose:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            if self._console.is_terminal:
                self._bar = Progress(
                    BarColumn(bar_width=20),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TextColumn("{task.description}", markup=False),
                    console=self._console,
                    transient=True,
                )
                self._task = self._bar.add_task("", total=total)

    def start(self) -> None:
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def note(self, line: str) -> None:
        if self._verbose:
            self._console.print(line, soft_wrap=True)


@contextmanager
def _progress(total: int, verbose: bool) -> Iterator[_Progress]:
    progress = _Progress(total, verbose)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()


__all__ = ["BenchmarkPlan", "run_benchmark"]
