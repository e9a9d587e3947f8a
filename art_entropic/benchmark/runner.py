"""Trains, attacks, checks and reads the cells of a plan."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from art_entropic.backends.registry import backend_for, framework_module, resolve_device
from art_entropic.benchmark.cells import N_GALLERY, N_PROFILED, Job, ProfileJob, Shard, hold_out, shards_of
from art_entropic.benchmark.data import Data, for_framework
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.keys import VALIDATION_SHARE
from art_entropic.benchmark.plan import ResolvedPlan, Variant, check_points
from art_entropic.benchmark.problems import build_classifier, load_data
from art_entropic.benchmark.progress import Progress, describe
from art_entropic.benchmark.provenance import OTHER_LOAD, Spent, Stopwatch, timestamp
from art_entropic.benchmark.store import Store, file_sha256, titled
from art_entropic.evaluation.evaluate import check_evaluation, evaluate, verdict_on
from art_entropic.evaluation.joining import join_findings
from art_entropic.files import replacing
from art_entropic.measures import MEASURES
from art_entropic.palette import NATURAL
from art_entropic.records import (
    ChecksRecord,
    EvaluationRecord,
    Findings,
    ProfileRecord,
    Provenance,
    Setting,
    ShardRecord,
    TrainingRecord,
    unpack,
    write_shard,
)


def shared_data(plan: ResolvedPlan) -> Data:
    """The data of the problem, cut to the training points that every defence may see."""
    data = load_data(plan.problem)
    check_points(plan, len(data.x_train), len(data.x_test))  # a local copy may hold fewer than were published
    n = plan.n_train
    return dataclasses.replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n])


@dataclass
class Runner:
    plan: ResolvedPlan
    data: Data
    store: Store
    source: Provenance
    warm: set[str] = field(default_factory=set)  # frameworks

    def trains(self, job: Job, jobs: Sequence[Job]) -> bool:
        """Whether a cell's network is still to be trained, for itself or for others."""
        return self._must_train(job) or self._is_awaited(job, jobs)

    def run(self, job: Job, progress: Progress, *, trains: bool) -> None:
        """Whatever of a cell is missing: its training, its evaluation."""
        if trains:
            self.train(job, progress)
        training = self.attackable(job)
        shards = shards_of(self.plan, job)
        if training is not None and shards:
            for shard in shards:
                self.attack(shard, progress)
            self.join(job, progress)
        elif training is not None:
            progress.begin(f"attacking {job.title}")
            self._keep_evaluation(job, self._evaluate(job, training), progress)
        evaluated = self.store.evaluation(job.evaluation_key)
        if job.checks_key is not None and evaluated is not None and self.store.checks(job.checks_key) is None:
            progress.begin(f"checking {job.title}")
            checks = self._check(job, job.checks_key, evaluated)
            self.store.append(checks)
            progress.note(f"{job.title}: {checks.verdict} ({checks.seconds:.1f} s of checks)")

    def train(self, job: Job, progress: Progress) -> None:
        """The training of a cell, whether or not there is one."""
        progress.begin(f"training {job.title}")
        trained = self._train(job)
        self.store.append(trained)
        progress.note(f"{job.title}: {describe(trained)}")

    def attackable(self, job: Job) -> TrainingRecord | None:
        """The training of a cell whose network is there and has not been evaluated."""
        training = self.store.training(job.training_key)
        if training is None or training.status != "done" or self.store.evaluation(job.evaluation_key) is not None:
            return None
        return training

    def attack(self, shard: Shard, progress: Progress) -> None:
        """A shard of a cell, into its file, unless it is finished or there is nothing to attack."""
        training = self.attackable(shard.job)
        if training is None or self.store.shard(shard) is not None:
            return
        first = self.plan.first_example
        title = f"{shard.job.title}, points {first + shard.points[0]} to {first + shard.points[-1]}"
        progress.begin(f"attacking {title}")
        findings = self._findings(shard.job, training, shard.points, shard.seed)
        record = ShardRecord(
            evaluation_key=shard.job.evaluation_key,
            weights_sha256=file_sha256(self.store.home / str(training.weights)),
            number=shard.number,
            findings=findings,
            provenance=self._stamped(shard.job.framework),
        )
        path = self.store.home / shard.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, path.suffix) as temporary:
            write_shard(temporary, record)
        progress.note(f"{title}: robust {findings.robust.value:.1%} ({findings.seconds:.1f} s of attacks)")

    def join(self, job: Job, progress: Progress) -> None:
        """The evaluation of a cell whose shards are all finished; the machine it names is that of the first one."""
        import msgspec

        finished = [self.store.shard(shard) for shard in shards_of(self.plan, job)]
        found = [record for record in finished if record is not None]
        if len(found) < len(finished):
            raise FileNotFoundError(f"a shard of {job.title} is gone from {self.store.home / job.attacks}; start again")
        findings = join_findings([record.findings for record in found], N_GALLERY)
        made = msgspec.structs.replace(found[0].provenance, created=timestamp())
        self._keep_evaluation(job, self._evaluation(job, findings, made), progress)

    def _keep_evaluation(self, job: Job, evaluation: EvaluationRecord, progress: Progress) -> None:
        self.store.append(evaluation)
        shutil.rmtree(self._attacks_of(job), ignore_errors=True)
        progress.note(
            f"{job.title}: clean {evaluation.clean.value:.1%}, robust {evaluation.robust.value:.1%} "
            f"({evaluation.seconds:.1f} s of attacks)"
        )

    def profile(self, profile: ProfileJob, progress: Progress) -> None:
        """Where the information goes in the networks of a framework that have been trained; nothing where there is none."""
        trainings = {job: self.store.training(job.training_key) for job in profile.jobs}
        trained = {job: training for job, training in trainings.items() if training is not None and training.status == "done"}
        if self.store.has(profile.key) or not trained:
            return
        absent = [job.title for job, training in trained.items() if training.weights is None]
        if absent:
            progress.note(f"no {profile.title}: the weights of {', '.join(absent)} are not in {self.store.home}")
            return
        progress.begin(profile.title)
        found = self._profile(profile, {job: self._trained(job, training) for job, training in trained.items()})
        self.store.append(found)
        progress.note(f"{profile.title}: {found.seconds:.1f} s")

    def _profile(self, profile: ProfileJob, classifiers: Mapping[Job, Any]) -> ProfileRecord:
        from art_entropic.analysis.profile import information_profile

        x, y = self._test_points(profile.jobs[0])
        found = information_profile(
            {job.defence: classifier for job, classifier in classifiers.items()},
            x[:N_PROFILED],
            y[:N_PROFILED],
            eps=self.plan.eps,
            verbose=False,
        )
        return ProfileRecord(
            key=profile.key,
            training_keys={job.defence: job.training_key for job in classifiers},
            first_example=self.plan.first_example,
            n=found.n,
            resolution=found.resolution,
            copies=found.copies,
            notes=found.notes,
            rows=list(found.rows),
            seconds=found.seconds,
            provenance=self._stamped(profile.framework),
            **{**self._cell(profile.jobs[0]), "defence": ""},
        )

    def _must_train(self, job: Job) -> bool:
        return not self.store.is_done(job) and self.store.lacks_weights(job.training_key)

    def _is_awaited(self, job: Job, jobs: Sequence[Job]) -> bool:
        """Whether another cell needs the weights of this natural training, which came without them."""
        if job.defence != NATURAL or not self.store.lacks_weights(job.training_key):
            return False
        return any(other.starts_natural and other.natural_key == job.training_key and self._must_train(other) for other in jobs)

    def _train(self, job: Job) -> TrainingRecord:
        from art_entropic.trainer import TrainingDivergedError

        reason = DEFENCES[job.defence].unavailable(job.framework)
        start = self.store.training(job.natural_key) if job.starts_natural else None
        if job.starts_natural and start is None:
            raise FileNotFoundError(
                f"the natural weights that {job.title} starts from are gone from {self.store.home}; start again"
            )
        if reason is None and start is not None and start.status != "done":
            reason = f"the natural training it starts from has no weights: {start.reason}"
        if reason is not None:
            return self._training_record(job, "unavailable", Spent(0.0, None), reason=reason)
        self._warm_up(job)
        problem = self.plan.problem_spec
        estimator = self._build(job)
        if start is not None:
            backend_for(estimator).load_weights(self.store.home / str(start.weights))
        x = for_framework(self.data.x_train, job.framework)
        kept, held = hold_out(len(x), VALIDATION_SHARE, job.seed)
        y = self.data.y_train
        watch = Stopwatch()
        try:
            trained = DEFENCES[job.defence].train(
                estimator,
                x[kept],
                y[kept],
                eps=self.plan.eps,
                nb_epochs=self.plan.epochs_of(job.defence, job.variant),
                batch_size=problem.batch_size,
                seed=job.seed,
                learning_rate=problem.learning_rate,
                verbose=False,
                validation_data=(x[held], y[held]),
                measure=job.measure,
            )
        except TrainingDivergedError as error:
            return self._training_record(job, "diverged", watch.stop(), reason=str(error), n_train=len(kept))
        spent = watch.stop()
        facts: dict[str, Any] = {
            "n_train": len(kept),
            "notes": trained.notes,
            "history": trained.history,
            "told": trained.settings,
            "forward_passes": trained.passes.forward,
            "backward_passes": trained.passes.backward,
        }
        if not _has_finite_weights(trained.estimator):
            return self._training_record(job, "diverged", spent, reason="weights are NaN or infinite after training", **facts)
        return self._training_record(job, "done", spent, weights=self._save(job, trained.estimator), **facts)

    def _warm_up(self, job: Job) -> None:
        """One batch of natural training on a network that is thrown away.

        Without it the first training of a framework, which is the natural one, would pay for loading it.
        """
        if job.framework in self.warm:
            return
        problem = self.plan.problem_spec
        size = problem.batch_size
        DEFENCES[NATURAL].train(
            self._build(job),
            for_framework(self.data.x_train[:size], job.framework),
            self.data.y_train[:size],
            eps=self.plan.eps,
            nb_epochs=1,
            batch_size=size,
            seed=job.seed,
            learning_rate=problem.learning_rate,
            verbose=False,
        )
        self.warm.add(job.framework)

    def _build(self, job: Job) -> Any:
        plan = self.plan
        return build_classifier(plan.problem_spec, job.framework, job.seed, plan.network, device=plan.device)

    def _save(self, job: Job, estimator: Any) -> str:
        backend = backend_for(estimator)
        name = job.weights(backend.weights_suffix)
        path = self.store.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, backend.weights_suffix) as temporary:
            backend.save_weights(temporary)
        return name

    def _trained(self, job: Job, training: TrainingRecord) -> Any:
        """The network of a cell, from the file: an interrupted and an uninterrupted run attack the same bits."""
        estimator = self._build(job)
        DEFENCES[job.defence].adapt_network(estimator)
        backend_for(estimator).load_weights(self.store.home / str(training.weights))
        return estimator

    def _attacks_of(self, job: Job) -> Path:
        """Where the finished attacks and shards of an evaluation wait for the others."""
        return self.store.home / job.attacks

    def _test_points(self, job: Job, points: range | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Those of a shard, by their numbers among the attacked ones; None takes all of them."""
        first, chosen = self.plan.first_example, range(self.plan.n_examples) if points is None else points
        attacked = slice(first + chosen.start, first + chosen.stop)
        return for_framework(self.data.x_test[attacked], job.framework), self.data.y_test[attacked]

    def _check(self, job: Job, key: str, evaluation: EvaluationRecord) -> ChecksRecord:
        training, natural = self.store.training(job.training_key), self.store.training(job.natural_key)
        if training is None or training.weights is None:
            raise FileNotFoundError(f"the weights of {job.title} are gone from {self.store.home}; start again")
        if evaluation.points is None:
            raise ValueError(f"the evaluation of {job.title} must know what became of each point to be checked, got none")
        sources = {}
        if job.defence != NATURAL and natural is not None and natural.weights is not None:
            sources[NATURAL] = self._build(job)
            backend_for(sources[NATURAL]).load_weights(self.store.home / natural.weights)
        x, y = self._test_points(job)
        began = time.perf_counter()
        checks = check_evaluation(
            self._trained(job, training),
            x,
            y,
            unpack(evaluation.points.robust, evaluation.robust.n),
            self.plan.eps,
            battery=self.plan.battery,
            seed=job.seed,
            transfer_from=sources,
        )
        return ChecksRecord(
            key=key,
            evaluation_key=evaluation.key,
            verdict=verdict_on(evaluation.robust, self.plan.problem_spec.nb_classes, evaluation.attacks, checks),
            checks=checks,
            seconds=time.perf_counter() - began,
            provenance=self._stamped(job.framework),
            **self._cell(job),
        )

    def _evaluate(self, job: Job, training: TrainingRecord) -> EvaluationRecord:
        findings = self._findings(job, training, range(self.plan.n_examples), job.seed)
        return self._evaluation(job, findings, self._stamped(job.framework))

    def _findings(self, job: Job, training: TrainingRecord, points: range, seed: int) -> Findings:
        x, y = self._test_points(job, points)
        return evaluate(
            self._trained(job, training),
            x,
            y,
            eps=self.plan.eps,
            norm="inf",
            battery=self.plan.battery,
            seeds=seed,
            checks=False,
            curve_eps=self.plan.problem_spec.curve_eps,
            n_gallery=N_GALLERY,
            measure=_measure_of(training),
            folder=self._attacks_of(job),
            verbose=False,
        ).findings()

    def _evaluation(self, job: Job, findings: Findings, made: Provenance) -> EvaluationRecord:
        import msgspec

        first = self.plan.first_example
        return EvaluationRecord(
            key=job.evaluation_key,
            training_key=job.training_key,
            first_example=first,
            battery=self.plan.battery,
            clean=findings.clean,
            robust=findings.robust,
            certified=findings.certified,
            certified_reason=findings.certified_reason,
            attacks=findings.attacks,
            curve=findings.curve,
            points=findings.points,
            examples=[msgspec.structs.replace(example, index=first + example.index) for example in findings.examples],
            seconds=findings.seconds,
            provenance=made,
            **self._cell(job),
        )

    def _stamped(self, framework: str) -> Provenance:
        """Where this process runs, now, and the device of its networks."""
        import msgspec

        device = self.plan.device
        place = None if device is None else resolve_device(framework, device)
        return msgspec.structs.replace(self.source, created=timestamp(), device=framework_module(framework).device_title(place))

    def _cell(self, job: Job) -> dict[str, Any]:
        """What names the cell of a job, in its training's and in its evaluation's record."""
        return {
            "problem": self.plan.problem,
            "framework": job.framework,
            "defence": job.defence,
            "seed": job.seed,
            "eps": self.plan.eps,
            "network": self.plan.network,
            "variant": job.variant_name,
            "n_train_limit": self.plan.n_train,
        }

    def _training_record(
        self, job: Job, status: Any, spent: Spent, *, told: Mapping[str, Setting] | None = None, **facts: Any
    ) -> TrainingRecord:
        settings: dict[str, Setting] = {
            "data": self.data.title,
            "learning_rate": self.plan.problem_spec.learning_rate,
            "validation_share": VALIDATION_SHARE,
            OTHER_LOAD: spent.other_load,
            **({} if job.variant is None else variant_settings(job.variant)),
            **(told or {}),
        }
        return TrainingRecord(
            key=job.training_key,
            status=status,
            nb_epochs=self.plan.epochs_of(job.defence, job.variant),
            batch_size=self.plan.problem_spec.batch_size,
            seconds=spent.seconds,
            settings=titled(settings, self.plan.title),
            provenance=self._stamped(job.framework),
            **self._cell(job),
            **{"n_train": 0, **facts},
        )


def _measure_of(training: TrainingRecord) -> str | None:
    """The information measure that a network was retrained with, for an attack that knows it."""
    measure = training.settings.get("trainer.measure")
    return measure if isinstance(measure, str) and measure in MEASURES else None


def variant_settings(variant: Variant) -> dict[str, Setting]:
    """What a record says of the variant that it belongs to."""
    import msgspec

    told = {} if variant.measure is None else _flat("measure", msgspec.to_builtins(variant.measure))
    return {"start": variant.start, **told}


def _flat(name: str, value: Any) -> dict[str, Setting]:
    """A table as settings, each named by its way through the table."""
    if isinstance(value, Mapping):
        return {key: one for part, inner in value.items() for key, one in _flat(f"{name}.{part}", inner).items()}
    return {name: value if isinstance(value, (str, float, int, bool)) else json.dumps(value)}


def _has_finite_weights(estimator: Any) -> bool:
    return all(bool(np.isfinite(array).all()) for array in backend_for(estimator).state().values())
