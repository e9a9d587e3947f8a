"""The cells of a plan, their shards and profiles, and the keys under which their records are found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.keys import checks_key, evaluation_key, profile_key, training_key
from art_entropic.benchmark.plan import ResolvedPlan, Variant
from art_entropic.benchmark.provenance import package_versions
from art_entropic.measures import Measure
from art_entropic.palette import NATURAL

N_GALLERY = 6
PROFILED = (NATURAL, "madry_pgd", "entropic")  # whose information is read: what adversarial training does, and what ours does
N_PROFILED = 1000


@dataclass(frozen=True)
class Job:
    """One cell: one network of one framework and seed, trained by one defence, then attacked."""

    framework: str
    seed: int
    defence: str
    training_key: str
    evaluation_key: str
    natural_key: str
    variant: Variant | None = None
    checks_key: str | None = None  # None where no checks are asked for

    @property
    def title(self) -> str:
        variant = f": {self.variant_name}" if self.variant_name else ""
        return f"{DEFENCES[self.defence].title}{variant} on {FRAMEWORKS[self.framework].title}, seed {self.seed}"

    @property
    def starts_natural(self) -> bool:
        """Whether it starts from the natural training's weights."""
        return starts_natural(self.defence, self.variant)

    @property
    def variant_name(self) -> str:
        """Empty for the defence itself."""
        return "" if self.variant is None else self.variant.name

    @property
    def measure(self) -> Measure | None:
        """In place of the defence's own, which None takes."""
        return None if self.variant is None else self.variant.measure

    @property
    def attacks(self) -> str:
        """Folder inside the run's where what is finished of its evaluation waits for the rest."""
        return f"attacks/{self.evaluation_key[:12]}"

    @property
    def checkpoint(self) -> str:
        """File inside the run's folder where its training stands after each epoch, until it is done."""
        return f"training/{self.training_key[:12]}.npz"

    def weights(self, suffix: str) -> str:
        """File of the weights inside the run's folder."""
        return f"weights/{self.training_key[:12]}-{self.framework}-{self.defence}-seed{self.seed}{suffix}"


def starts_natural(defence: str, variant: Variant | None) -> bool:
    """Whether a row starts from the natural training's weights."""
    return defence != NATURAL and (variant is None or variant.start == NATURAL)


def plan_jobs(plan: ResolvedPlan, data_sha256: str, versions: Mapping[str, str] | None = None) -> list[Job]:
    """The cells of a plan, natural training first within each framework and seed, variants last.

    Args:
        versions: of the packages that compute; None takes those that are installed.
    Raises:
        ValueError: a variant asks for the same training as another row.
    """
    versions = package_versions(plan.frameworks) if versions is None else versions
    others = [name for name in plan.defences if name != NATURAL]
    rows = [(name, None) for name in (NATURAL, *others)] + [(variant.defence, variant) for variant in plan.variants]
    jobs: list[Job] = []
    for framework in plan.frameworks:
        for seed in plan.seeds:
            natural = training_key(plan, framework, seed, (NATURAL, None), data_sha256, None, versions)
            for defence, variant in rows:
                start = natural if starts_natural(defence, variant) else None
                key = training_key(plan, framework, seed, (defence, variant), data_sha256, start, versions)
                evaluation = evaluation_key(plan, key)
                checks = checks_key(evaluation, natural) if plan.checks else None
                jobs.append(Job(framework, seed, defence, key, evaluation, natural, variant, checks))
    _refuse_twins(jobs)
    return jobs


def _refuse_twins(jobs: Sequence[Job]) -> None:
    """Two rows of one training would be one record with two names."""
    first: dict[str, Job] = {}
    for job in jobs:
        other = first.setdefault(job.training_key, job)
        if other is not job:
            raise ValueError(f"`variants` must differ from all other rows, got {job.title}, which is the same as {other.title}")


@dataclass(frozen=True)
class Shard:
    """Some points of a cell, attacked by themselves.

    Finished, it waits for the others in a file of its own, written by whoever attacked it, so that a kill of the process that
    keeps the records costs nothing. It lies beside the finished attacks and goes with them once the evaluation is there: among
    the records it would stay for good, pictures and all, and every reader of records would have to pass it over.

    Attributes:
        number: from 0, in the order of the points.
        points: numbers of its points among the attacked ones.
    """

    job: Job
    number: int
    points: range

    @property
    def file(self) -> str:
        """Inside the run's folder."""
        return f"{self.job.attacks}/shard-{self.number}.json"

    @property
    def seed(self) -> int:
        """Of its attacks: the cell's own for the first shard, one drawn from it for each of the others."""
        if self.number == 0:
            return self.job.seed
        return int(np.random.SeedSequence([self.job.seed, self.number]).generate_state(1)[0] >> 1)  # 31 bits


def shards_of(plan: ResolvedPlan, job: Job) -> list[Shard]:
    """The shards of a cell in the order of their points, none where the plan does not split it.

    The plan splits, not the executor: attacks draw their random numbers batch by batch, so other shards are other attacks, and
    the records would depend on who ran them.
    """
    points, size = range(plan.n_examples), plan.points_per_shard
    if size is None:
        return []
    return [Shard(job, number, points[start : start + size]) for number, start in enumerate(points[::size])]


@dataclass(frozen=True)
class TrainTask:
    """Train the network of a cell."""

    job: Job

    @property
    def title(self) -> str:
        return f"training {self.job.title}"


@dataclass(frozen=True)
class AttackTask:
    """Attack the trained network of a cell, all points of the plan or one shard of them."""

    job: Job
    shard: Shard | None = None

    @property
    def title(self) -> str:
        shard = "" if self.shard is None else f", shard {self.shard.number}"
        return f"attacking {self.job.title}{shard}"


@dataclass(frozen=True)
class CheckTask:
    """Look for symptoms in the evaluation of a cell."""

    job: Job

    @property
    def title(self) -> str:
        return f"checking {self.job.title}"


@dataclass(frozen=True)
class ProfileTask:
    """Read where the information goes in several networks of one framework and seed."""

    framework: str
    key: str
    jobs: tuple[Job, ...]  # whose networks are read

    @property
    def title(self) -> str:
        return f"information in the networks on {FRAMEWORKS[self.framework].title}"


Task = TrainTask | AttackTask | CheckTask | ProfileTask


def notice_of(task: Task) -> str:
    """File inside the run's folder where its worker tells where it stands."""
    return f"progress/{hashlib.sha256(task.title.encode()).hexdigest()[:12]}.txt"


def jobs_of(task: Task) -> tuple[Job, ...]:
    """The cells that a task is about."""
    return task.jobs if isinstance(task, ProfileTask) else (task.job,)


def profiles_of(plan: ResolvedPlan, jobs: Sequence[Job]) -> list[ProfileTask]:
    """The profiles of a plan, one for each framework; none where it asks for none."""
    found = []
    for framework in plan.frameworks if plan.profile else ():
        here = [job for job in jobs if (job.framework, job.seed, job.variant) == (framework, plan.seeds[0], None)]
        read = tuple(job for job in here if job.defence in PROFILED)
        key = profile_key(plan, [job.training_key for job in read], min(plan.n_examples, N_PROFILED))
        found.append(ProfileTask(framework, key, read))
    return found


def hold_out(n: int, share: float, seed: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out) of a seeded split of n points; both in ascending order, at least one point each.

    Args:
        groups: (n,), the group of each point. A group stays together: groups are held out until the share is reached, as long
            as one is left.
    Raises:
        ValueError: there are too few points, or groups, to be split.

    >>> kept, held = hold_out(10, 0.2, seed=0)
    >>> len(kept), len(held), sorted({*kept.tolist(), *held.tolist()}) == list(range(10))
    (8, 2, True)
    >>> hold_out(4, 0.5, seed=0, groups=np.array([7, 5, 5, 7]))
    (array([0, 3]), array([1, 2]))
    """
    if n < 2:
        raise ValueError(f"`n` must be at least 2 points to be split, got {n}")
    held, rng = min(max(round(n * share), 1), n - 1), np.random.default_rng(seed)
    if groups is None:
        order = rng.permutation(n)
        return np.sort(order[held:]), np.sort(order[:held])
    numbers, counts = np.unique(groups, return_counts=True)
    if len(groups) != n or len(numbers) < 2:
        raise ValueError(f"`groups` must split {n} points into at least 2 groups, got {len(numbers)} of {len(groups)}")
    order = rng.permutation(len(numbers))
    enough = int(np.searchsorted(np.cumsum(counts[order]), held)) + 1
    out = np.isin(groups, numbers[order[: min(enough, len(numbers) - 1)]])
    return np.flatnonzero(~out), np.flatnonzero(out)
