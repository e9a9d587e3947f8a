"""The cells of a plan, their shards and profiles, and the keys under which their records are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.defences import DEFENCES, option_defaults
from art_entropic.benchmark.plan import Settings, Variant
from art_entropic.benchmark.provenance import package_versions
from art_entropic.choosing import AUTOMATIC, LARGE_EPS
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.evaluation.checks import CHECKS
from art_entropic.evaluation.result import CURVE_BATTERY, EVALUATION_REVISION
from art_entropic.information import MEASURES
from art_entropic.palette import NATURAL
from art_entropic.records import SCHEMA
from art_entropic.schedule import DECAY

VALIDATION_SHARE = 0.1
N_GALLERY = 6
CHECKS_REVISION = 1
PROFILED = (NATURAL, "madry_pgd", "entropic")  # whose information is read: what adversarial training does, and what ours does
N_PROFILED = 1000
PROFILE_REVISION = 2


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
        variant = "" if self.variant is None else f": {self.variant.name}"
        return f"{DEFENCES[self.defence].title}{variant} on {FRAMEWORKS[self.framework].title}, seed {self.seed}"

    @property
    def starts_natural(self) -> bool:
        """Whether it starts from the natural training's weights."""
        return _starts_natural(self.defence, self.variant)

    @property
    def options(self) -> Mapping[str, Any]:
        return {} if self.variant is None else self.variant.options

    @property
    def attacks(self) -> str:
        """Folder inside the run's where what is finished of its evaluation waits for the rest."""
        return f"attacks/{self.evaluation_key[:12]}"

    def weights(self, suffix: str) -> str:
        """File of the weights inside the run's folder."""
        return f"weights/{self.training_key[:12]}-{self.framework}-{self.defence}-seed{self.seed}{suffix}"


def _starts_natural(defence: str, variant: Variant | None) -> bool:
    return defence != NATURAL and (variant is None or variant.start == NATURAL)


def plan_jobs(settings: Settings, data_sha256: str) -> list[Job]:
    """The cells of a plan, natural training first within each framework and seed, variants last."""
    others = [name for name in settings.defences if name != NATURAL]
    rows = [(name, None) for name in (NATURAL, *others)] + [(variant.defence, variant) for variant in settings.variants]
    jobs = []
    for framework in settings.frameworks:
        versions = package_versions((framework,))
        for seed in settings.seeds:
            facts = {"framework": framework, "seed": seed, "data": data_sha256, "versions": versions}
            natural = _training_key(settings, NATURAL, None, start=None, **facts)
            for defence, variant in rows:
                start = natural if _starts_natural(defence, variant) else None
                key = _training_key(settings, defence, variant, start=start, **facts)
                evaluation = _evaluation_key(settings, key)
                checks = _checks_key(evaluation, natural) if settings.checks else None
                jobs.append(Job(framework, seed, defence, key, evaluation, natural, variant, checks))
    return jobs


def _training_key(settings: Settings, defence: str, variant: Variant | None, **facts: Any) -> str:
    problem = settings.problem
    return digest(
        kind="training",
        schema=SCHEMA,
        problem=problem.name,
        network=settings.network,
        architecture=repr(problem.networks[settings.network]),
        n_train=settings.n_train,
        defence=defence,
        variant=None if variant is None else variant.name,
        options=_option_facts(defence, variant),
        eps=settings.eps,
        nb_epochs=settings.epochs_of(defence, variant),
        batch_size=problem.batch_size,
        learning_rate=problem.learning_rate,
        decay=DECAY,
        validation_share=VALIDATION_SHARE,
        revision=DEFENCES[defence].revision,
        # Left out where none is asked for, as before there was a choice: the trainings are the same. One GPU is like another.
        **({} if settings.device is None else {"device": settings.device.partition(":")[0]}),
        **facts,
    )


def _option_facts(defence: str, variant: Variant | None) -> dict[str, str]:
    """All that EntropicTrainer is told, and what it takes where it is told nothing: other defaults are another training."""
    row = DEFENCES[defence]
    if not row.ours:
        return {name: repr(value) for name, value in row.constants.items()}
    options = {**option_defaults(), **row.options, **({} if variant is None else variant.options)}
    measure = options["measure"]
    read = MEASURES if measure is None else {measure: MEASURES[measure]}
    defaults = {
        f"{name}.{key}": value
        for name, one in read.items()
        for key, value in vars(one).items()
        if not callable(value) and key != "passes"
    }
    rule = {"automatic": AUTOMATIC, "large_eps": LARGE_EPS} if measure is None else {}
    return {name: repr(value) for name, value in {**options, **defaults, **rule}.items()}


def _evaluation_key(settings: Settings, training_key: str) -> str:
    return digest(
        kind="evaluation",
        schema=SCHEMA,
        training=training_key,
        battery=settings.battery,
        attacks=repr(BATTERIES[settings.battery]),
        curve_attacks=repr(BATTERIES[CURVE_BATTERY]),
        revision=EVALUATION_REVISION,
        eps=settings.eps,
        n_examples=settings.n_examples,
        # Left out where they change nothing, as they were before there was a choice: the evaluations are the same.
        **({"first_example": settings.first_example} if settings.first_example else {}),
        **({} if settings.points_per_shard is None else {"points_per_shard": settings.points_per_shard}),
        curve_eps=settings.problem.curve_eps,
        n_gallery=N_GALLERY,
    )


def _checks_key(evaluation_key: str, natural_key: str) -> str:
    return digest(
        kind="checks",
        schema=SCHEMA,
        evaluation=evaluation_key,
        source=natural_key,
        checks=repr(list(CHECKS)),
        revision=CHECKS_REVISION,
    )


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
        return int(np.random.SeedSequence([self.job.seed, self.number]).generate_state(1)[0])


def shards_of(settings: Settings, job: Job) -> list[Shard]:
    """The shards of a cell in the order of their points, none where the plan does not split it.

    The plan splits, not the executor: attacks draw their random numbers batch by batch, so other shards are other attacks, and
    the records would depend on who ran them.
    """
    points, size = range(settings.n_examples), settings.points_per_shard
    if size is None:
        return []
    return [Shard(job, number, points[start : start + size]) for number, start in enumerate(points[::size])]


@dataclass(frozen=True)
class ProfileJob:
    """The information profile of several networks of one framework and seed."""

    framework: str
    key: str
    jobs: tuple[Job, ...]  # whose networks are read

    @property
    def title(self) -> str:
        return f"information in the networks on {FRAMEWORKS[self.framework].title}"


def profile_jobs(settings: Settings, jobs: Sequence[Job]) -> list[ProfileJob]:
    """The profiles of a plan, one for each framework; none where it asks for none."""
    found = []
    for framework in settings.frameworks if settings.profile else ():
        here = [job for job in jobs if (job.framework, job.seed, job.variant) == (framework, settings.seeds[0], None)]
        read = tuple(job for job in here if job.defence in PROFILED)
        key = digest(
            kind="profile",
            schema=SCHEMA,
            revision=PROFILE_REVISION,
            trainings=[job.training_key for job in read],
            eps=settings.eps,
            first_example=settings.first_example,
            n=min(settings.n_examples, N_PROFILED),
        )
        found.append(ProfileJob(framework, key, read))
    return found


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
