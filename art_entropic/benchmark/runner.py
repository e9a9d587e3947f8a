"""Does one task of a plan: trains, attacks, checks or reads a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from art_entropic.backends.registry import resolve_device
from art_entropic.benchmark.augmentation import NO_AUGMENTATION
from art_entropic.benchmark.cells import (
    N_GALLERY,
    N_PROFILED,
    AttackTask,
    CheckTask,
    Job,
    ProfileTask,
    Shard,
    Task,
    TrainTask,
    hold_out,
    notice_of,
    shards_of,
)
from art_entropic.benchmark.course import LAST
from art_entropic.benchmark.data import Data, for_framework
from art_entropic.benchmark.defences import VALIDATION_SHARE
from art_entropic.benchmark.plan import ResolvedPlan, Variant, check_counts
from art_entropic.benchmark.progress import EpochNotice, Notice, describe
from art_entropic.benchmark.provenance import OTHER_LOAD, Spent, Stopwatch, timestamp
from art_entropic.benchmark.store import Store, file_sha256, titled
from art_entropic.benchmark.tools import Tools
from art_entropic.evaluation.evaluate import verdict_on
from art_entropic.evaluation.joining import join_findings
from art_entropic.fields import beyond_defaults
from art_entropic.files import replacing
from art_entropic.history import TrainingDivergedError
from art_entropic.measures import MEASURES, Measure
from art_entropic.palette import NATURAL
from art_entropic.records import (
    AnyRecord,
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


def shared_data(plan: ResolvedPlan, tools: Tools) -> Data:
    """The data of the problem, cut to the training points that every defence may see."""
    data = tools.load_data(plan.problem)
    check_counts(plan, len(data.x_train), len(data.x_test))  # a local copy may hold fewer than were published
    return data.with_first(plan.n_train)


class Done(NamedTuple):
    """What came of a task: the record to keep, where there is one, and a line for whoever waits."""

    record: AnyRecord | None
    note: str


# Frameworks whose first training in this process is behind us.
_warm: set[str] = set()


@dataclass
class Runner:
    """Does the tasks of a plan, with what the store of its folder knows, and writes no record itself."""

    plan: ResolvedPlan
    data: Data
    store: Store
    source: Provenance
    tools: Tools

    def do(self, task: Task) -> Done:
        """Do a task, whether or not it has been done."""
        notice = self.notice(task)
        try:
            return self._do(task, notice)
        finally:
            notice.remove()

    def notice(self, task: Task) -> Notice:
        """Where the task tells where it stands."""
        return Notice(self.store.home / notice_of(task))

    def _do(self, task: Task, notice: Notice) -> Done:
        if isinstance(task, TrainTask):
            trained = self._train(task.job, notice)
            return Done(trained, f"{task.job.title}: {describe(trained)}")
        if isinstance(task, AttackTask):
            return self._attack(task.job, notice) if task.shard is None else self._attack_shard(task.shard, notice)
        if isinstance(task, CheckTask):
            checks = self._check(task.job, notice)
            return Done(checks, f"{task.job.title}: {checks.verdict}, in {checks.seconds:.1f} s of checks")
        return self._read_profile(task)

    def _attack(self, job: Job, notice: Notice) -> Done:
        training = self._trained_cell(job)
        findings = self._findings(job, training, range(self.plan.n_examples), job.seed, notice)
        return _evaluated(job, self._evaluation(job, findings, self._stamped(job.framework)))

    def _attack_shard(self, shard: Shard, notice: Notice) -> Done:
        """A shard of a cell, into its file."""
        training = self._trained_cell(shard.job)
        findings = self._findings(shard.job, training, shard.points, shard.seed, notice)
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
        first = self.plan.first_example
        points = f"points {first + shard.points[0]} to {first + shard.points[-1]}"
        shown = f"robust {findings.robust.value:.1%} ({findings.seconds:.1f} s of attacks)"
        return Done(None, f"{shard.job.title}, {points}: {shown}")

    def join(self, job: Job) -> Done:
        """The evaluation of a cell whose shards are all finished; the machine it names is that of the first one."""
        finished = [self.store.shard(shard) for shard in shards_of(self.plan, job)]
        found = [record for record in finished if record is not None]
        if len(found) < len(finished):
            raise FileNotFoundError(f"a shard of {job.title} is gone from {self.store.home / job.attacks}; start again")
        findings = join_findings([record.findings for record in found], N_GALLERY)
        made = msgspec.structs.replace(found[0].provenance, created=timestamp())
        return _evaluated(job, self._evaluation(job, findings, made))

    def _trained_cell(self, job: Job) -> TrainingRecord:
        training = self.store.training(job.training_key)
        if training is None or training.weights is None:
            raise FileNotFoundError(f"the weights of {job.title} are gone from {self.store.home}; start again")
        return training

    def _read_profile(self, profile: ProfileTask) -> Done:
        trainings = {job: self.store.training(job.training_key) for job in profile.jobs}
        trained = {job: one for job, one in trainings.items() if one is not None and one.status == "done"}
        absent = [job.title for job, training in trained.items() if training.weights is None]
        if absent:
            return Done(None, f"no {profile.title}: the weights of {', '.join(absent)} are not in {self.store.home}")
        found = self._profile(profile, {job: self._network_of(job, training) for job, training in trained.items()})
        return Done(found, f"{profile.title}: {found.seconds:.1f} s")

    def _profile(self, profile: ProfileTask, classifiers: Mapping[Job, Any]) -> ProfileRecord:
        x, y = self._test_points(profile.jobs[0])
        found = self.tools.information_profile(
            {job.defence: classifier for job, classifier in classifiers.items()},
            x[:N_PROFILED],
            y[:N_PROFILED],
            eps=self.plan.eps,
            norm=self.plan.norm,
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

    def _train(self, job: Job, notice: Notice) -> TrainingRecord:
        reason = self.tools.defences[job.defence].unavailable(job.framework)
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
            self.tools.backend_for(estimator).load_weights(self.store.home / str(start.weights))
        x = for_framework(self.data.x_train, job.framework)
        kept, held = hold_out(len(x), VALIDATION_SHARE, job.seed, self.data.groups_train)
        y = self.data.y_train
        checkpoint = self.store.home / job.checkpoint
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        nb_epochs = self.plan.epochs_of(job.defence, job.variant)
        watch = Stopwatch()
        try:
            trained = self.tools.defences[job.defence].train(
                estimator,
                x[kept],
                y[kept],
                eps=self.plan.eps,
                norm=self.plan.norm,
                nb_epochs=nb_epochs,
                batch_size=problem.batch_size,
                seed=job.seed,
                learning_rate=problem.learning_rate,
                verbose=False,
                validation_data=(x[held], y[held]),
                measure=job.measure,
                augmentation=self.plan.augmentation,
                keep=self.plan.keep,
                checkpoint=checkpoint,
                on_epoch=EpochNotice(notice, nb_epochs),
            )
        except TrainingDivergedError as error:
            return self._training_record(job, "diverged", watch.stop(), reason=str(error), n_train=len(kept))
        spent = watch.stop()
        spent = spent._replace(seconds=spent.seconds + trained.earlier)
        facts: dict[str, Any] = {
            "n_train": len(kept),
            "notes": trained.notes,
            "history": trained.history,
            "own": trained.settings,
            "forward_passes": trained.passes.forward,
            "backward_passes": trained.passes.backward,
        }
        if not self._has_finite_weights(trained.estimator):
            return self._training_record(job, "diverged", spent, reason="weights are NaN or infinite after training", **facts)
        record = self._training_record(job, "done", spent, weights=self._save(job, trained.estimator), **facts)
        checkpoint.unlink(missing_ok=True)
        return record

    def _warm_up(self, job: Job) -> None:
        """One batch of natural training on a network that is thrown away.

        Without it the first training of a framework, which is the natural one, would pay for loading it.
        """
        if job.framework in _warm:
            return
        problem = self.plan.problem_spec
        size = problem.batch_size
        self.tools.defences[NATURAL].train(
            self._build(job),
            for_framework(self.data.x_train[:size], job.framework),
            self.data.y_train[:size],
            eps=self.plan.eps,
            norm=self.plan.norm,
            nb_epochs=1,
            batch_size=size,
            seed=job.seed,
            learning_rate=problem.learning_rate,
            verbose=False,
        )
        _warm.add(job.framework)

    def _measure_of(self, job: Job, training: TrainingRecord) -> Measure | None:
        """The measure that a network was retrained with, for an attack that knows it."""
        asked = self.tools.defences[job.defence].measure if job.measure is None else job.measure
        chosen = training.settings.get("trainer.measure")
        return MEASURES[chosen]() if asked is None and chosen in MEASURES else asked

    def _has_finite_weights(self, estimator: Any) -> bool:
        return all(bool(np.isfinite(array).all()) for array in self.tools.backend_for(estimator).state().values())

    def _build(self, job: Job) -> Any:
        plan = self.plan
        return self.tools.build_classifier(plan.problem_spec, job.framework, job.seed, plan.network, device=plan.device)

    def _save(self, job: Job, estimator: Any) -> str:
        backend = self.tools.backend_for(estimator)
        name = job.weights(backend.weights_suffix)
        path = self.store.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, backend.weights_suffix) as temporary:
            backend.save_weights(temporary)
        return name

    def _network_of(self, job: Job, training: TrainingRecord) -> Any:
        """The network of a cell, from the file: an interrupted and an uninterrupted run attack the same bits."""
        estimator = self._build(job)
        self.tools.defences[job.defence].adapt_network(estimator)
        self.tools.backend_for(estimator).load_weights(self.store.home / str(training.weights))
        return estimator

    def _test_points(self, job: Job, points: range | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Those of a shard, by their numbers among the attacked ones; None takes all of them."""
        first, chosen = self.plan.first_example, range(self.plan.n_examples) if points is None else points
        attacked = slice(first + chosen.start, first + chosen.stop)
        return for_framework(self.data.x_test[attacked], job.framework), self.data.y_test[attacked]

    def _check(self, job: Job, notice: Notice) -> ChecksRecord:
        training, natural = self._trained_cell(job), self.store.training(job.natural_key)
        evaluation = self.store.evaluation(job.evaluation_key)
        if evaluation is None or evaluation.points is None or job.checks_key is None:
            raise ValueError(f"the evaluation of {job.title} must know what became of each point to be checked, got none")
        sources = {}
        if job.defence != NATURAL and natural is not None and natural.status == "done":
            if natural.weights is None:
                raise FileNotFoundError(f"the natural weights that attacks transfer from are gone from {self.store.home}")
            sources[NATURAL] = self._build(job)
            self.tools.backend_for(sources[NATURAL]).load_weights(self.store.home / natural.weights)
        x, y = self._test_points(job)
        began = self.tools.clock()
        checks = self.tools.check_evaluation(
            self._network_of(job, training),
            x,
            y,
            unpack(evaluation.points.robust, evaluation.robust.n),
            self.plan.eps,
            norm=self.plan.norm,
            battery=self.plan.battery,
            seed=job.seed,
            transfer_from=sources,
            progress=notice.write,
        )
        return ChecksRecord(
            key=job.checks_key,
            evaluation_key=evaluation.key,
            verdict=verdict_on(evaluation.robust, self.plan.problem_spec.nb_classes, evaluation.attacks, checks),
            checks=checks,
            seconds=self.tools.clock() - began,
            provenance=self._stamped(job.framework),
            **self._cell(job),
        )

    def _findings(self, job: Job, training: TrainingRecord, points: range, seed: int, notice: Notice) -> Findings:
        x, y = self._test_points(job, points)
        classifier = self._network_of(job, training)
        found = self.tools.evaluate(
            classifier,
            x,
            y,
            eps=self.plan.eps,
            norm=self.plan.norm,
            battery=self.plan.battery,
            seeds=seed,
            checks=False,
            measure=self._measure_of(job, training),
            folder=self.store.home / job.attacks,
            verbose=False,
            progress=notice.write,
        )
        began = self.tools.clock()
        notice.write("security curve")
        curve = self.tools.security_curve(classifier, x, y, self.plan.curve_eps, self.plan.norm, seed=seed, verbose=False)
        examples = self.tools.attacked_examples(classifier, x, y, found, N_GALLERY)
        seconds = found.seconds + self.tools.clock() - began
        return msgspec.structs.replace(found.findings(), curve=curve, examples=examples, seconds=seconds)

    def _evaluation(self, job: Job, findings: Findings, made: Provenance) -> EvaluationRecord:
        first = self.plan.first_example
        examples = [msgspec.structs.replace(example, index=first + example.index) for example in findings.examples]
        return EvaluationRecord(
            key=job.evaluation_key,
            training_key=job.training_key,
            first_example=first,
            battery=self.plan.battery,
            provenance=made,
            **self._cell(job),
            **msgspec.structs.replace(findings, examples=examples).recorded(),
        )

    def _stamped(self, framework: str) -> Provenance:
        """Where this process runs, now, and the device of its networks."""
        device = self.plan.device
        place = None if device is None else resolve_device(framework, device)
        title = self.tools.framework_module(framework).device_title(place)
        return msgspec.structs.replace(self.source, created=timestamp(), device=title)

    def _cell(self, job: Job) -> dict[str, Any]:
        """What names the cell of a job, in its training's and in its evaluation's record."""
        return {
            "problem": self.plan.problem,
            "framework": job.framework,
            "defence": job.defence,
            "seed": job.seed,
            "eps": self.plan.eps,
            "norm": self.plan.norm,
            "network": self.plan.network,
            "variant": job.variant_name,
            "n_train_limit": self.plan.n_train,
        }

    def _training_record(
        self, job: Job, status: Any, spent: Spent, *, own: Mapping[str, Setting] | None = None, **facts: Any
    ) -> TrainingRecord:
        settings: dict[str, Setting] = {
            "data": self.data.title,
            "learning_rate": self.plan.problem_spec.learning_rate,
            "validation_share": VALIDATION_SHARE,
            **({} if self.plan.augmentation == NO_AUGMENTATION else {"augmentation": self.plan.augmentation}),
            **({} if self.plan.keep == LAST else {"keep": self.plan.keep}),
            OTHER_LOAD: spent.other_load,
            **({} if job.variant is None else variant_settings(job.variant)),
            **(own or {}),
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


def _evaluated(job: Job, evaluation: EvaluationRecord) -> Done:
    shown = f"clean {evaluation.clean.value:.1%}, robust {evaluation.robust.value:.1%}"
    return Done(evaluation, f"{job.title}: {shown} ({evaluation.seconds:.1f} s of attacks)")


def variant_settings(variant: Variant) -> dict[str, Setting]:
    """What a record says of the variant that it belongs to."""
    told = {} if variant.measure is None else {"type": variant.measure.name, **beyond_defaults(variant.measure)}
    return {"start": variant.start, **_flat("measure", told)}


def _flat(name: str, value: Any) -> dict[str, Setting]:
    """A table as settings, each named by its way through the table."""
    if isinstance(value, Mapping):
        return {key: one for part, inner in value.items() for key, one in _flat(f"{name}.{part}", inner).items()}
    return {name: value if isinstance(value, (str, float, int, bool)) else json.dumps(value)}
