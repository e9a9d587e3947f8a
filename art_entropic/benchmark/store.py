"""The folder of a run: its records, weights and finished attacks."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from art_entropic.benchmark.cells import Job, ProfileTask, Shard
from art_entropic.files import write_whole
from art_entropic.records import (
    AnyRecord,
    ChecksRecord,
    EvaluationRecord,
    Setting,
    ShardRecord,
    TrainingRecord,
    append_record,
    cell_of,
    comparison_of,
    read_records,
    read_shard,
)


def write_results(path: Path, records: Iterable[AnyRecord]) -> None:
    """Replace a file of records by these, without what only the folder of the run is for: pictures, names of weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, b"".join(msgspec.json.encode(as_published(record)) + b"\n" for record in records))


def as_published(record: AnyRecord) -> AnyRecord:
    if isinstance(record, TrainingRecord):
        return msgspec.structs.replace(record, weights=None)
    if isinstance(record, EvaluationRecord):
        return msgspec.structs.replace(record, examples=[])
    return record


class Store:
    """The finished records of a run's folder."""

    def __init__(self, home: Path, known: Iterable[AnyRecord] | None = None) -> None:
        """Reads the folder's file and cuts off a torn end; with `known` in its place, neither."""
        self.home = home
        self.path = home / RECORDS
        if known is None:
            _drop_torn_tail(self.path)
            known = read_records(self.path)
        self._records: dict[str, AnyRecord] = {}
        for record in known:
            self._keep(record)

    def append(self, record: AnyRecord) -> None:
        append_record(self.path, record)
        self._keep(record)

    def _keep(self, record: AnyRecord) -> None:
        self._records.pop(record.key, None)  # a dict keeps the place of a key's first arrival, the file its last
        self._records[record.key] = record

    def training(self, key: str) -> TrainingRecord | None:
        """A finished training. One whose weights are gone does not count, one that came without weights does."""
        record = self._records.get(key)
        if not isinstance(record, TrainingRecord):
            return None
        if record.weights is not None and not (self.home / record.weights).exists():
            return None
        return record

    def evaluation(self, key: str) -> EvaluationRecord | None:
        record = self._records.get(key)
        return record if isinstance(record, EvaluationRecord) else None

    def shard(self, shard: Shard) -> ShardRecord | None:
        """A finished shard of an evaluation. One of weights that have been trained again since does not count.

        Raises:
            ValueError: its file is damaged.
        """
        training, path = self.training(shard.job.training_key), self.home / shard.file
        if training is None or training.weights is None or not path.exists():
            return None
        record = read_shard(path)
        attacked = (shard.job.evaluation_key, shard.number, file_sha256(self.home / training.weights))
        return record if (record.evaluation_key, record.number, record.weights_sha256) == attacked else None

    def checks(self, key: str) -> ChecksRecord | None:
        record = self._records.get(key)
        return record if isinstance(record, ChecksRecord) else None

    def has(self, key: str) -> bool:
        """Whether there is a record of this key, of whichever kind."""
        return key in self._records

    def is_done(self, job: Job) -> bool:
        training = self.training(job.training_key)
        if training is None:
            return False
        if training.status != "done":
            return True
        checked = job.checks_key is None or self.checks(job.checks_key) is not None
        return checked and self.evaluation(job.evaluation_key) is not None

    def is_trained(self, job: Job) -> bool:
        """Whether there is a network of a cell that could be trained, with or without its weights."""
        training = self.training(job.training_key)
        return training is not None and training.status == "done"

    def lacks_weights(self, key: str) -> bool:
        """Whether a training must run, now or again, before anything can be done with its network."""
        training = self.training(key)
        return training is None or (training.status == "done" and training.weights is None)

    def records(self, keys: Iterable[str]) -> list[AnyRecord]:
        """Those that there are of these keys, each once."""
        return [self._records[key] for key in dict.fromkeys(keys) if key in self._records]

    def of(self, jobs: Sequence[Job], profiles: Sequence[ProfileTask] = ()) -> list[AnyRecord]:
        keys = [key for job in jobs for key in (job.training_key, job.evaluation_key, job.checks_key)]
        return self.records([key for key in keys if key is not None] + [profile.key for profile in profiles])

    def adopt(self, records: Iterable[AnyRecord], jobs: Sequence[Job], profile_keys: Sequence[str] = ()) -> None:
        """Take over the cells that these records finish and this folder does not; their weights are not here."""
        found = {record.key: as_published(record) for record in records}
        for job in jobs:
            training, evaluation = found.get(job.training_key), found.get(job.evaluation_key)
            failed = isinstance(training, TrainingRecord) and training.status != "done"
            if self.is_done(job) or training is None or (evaluation is None and not failed):
                continue
            if self.training(job.training_key) is None:
                self.append(training)
            if evaluation is not None:
                self.append(evaluation)
            checks = found.get(job.checks_key or "")
            if checks is not None:
                self.append(checks)
        for key in profile_keys:
            if key in found and not self.has(key):
                self.append(found[key])

    def retitle(self, jobs: Sequence[Job], title: str | None) -> None:
        """Append again what has another name by now: of the table, or of a variant."""
        for job in jobs:
            training = self.training(job.training_key)
            if training is not None and training.settings.get(TITLE) != title:
                self.append(msgspec.structs.replace(training, settings=titled(training.settings, title)))
            for record in self._about(job):
                if record.variant != job.variant_name:
                    self.append(msgspec.structs.replace(record, variant=job.variant_name))

    def _about(self, job: Job) -> list[TrainingRecord | EvaluationRecord | ChecksRecord]:
        """The training of a cell, and all that was ever found of its network, under other settings too."""
        evaluated = {
            one.key
            for one in self._records.values()
            if isinstance(one, EvaluationRecord) and one.training_key == job.training_key
        }
        return [
            one
            for one in self._records.values()
            if (isinstance(one, (TrainingRecord, EvaluationRecord)) and one.key in {job.training_key, *evaluated})
            or (isinstance(one, ChecksRecord) and one.evaluation_key in evaluated)
        ]

    def reappend_overtaken(self, evaluation_keys: Sequence[str]) -> None:
        """Append again each evaluation of this plan that one with other settings has followed.

        A report shows the latest evaluation of a cell: going back to earlier settings must show theirs.
        """
        wanted = set(evaluation_keys)
        evaluations = [record for record in self._records.values() if isinstance(record, EvaluationRecord)]
        latest = {
            (comparison_of(one), cell_of(one), one.battery, one.clean.n, one.first_example): one.key for one in evaluations
        }
        overtaken = [key for key in self._records if key in wanted and key not in latest.values()]
        for key in overtaken:
            self.append(self._records[key])


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def titled(settings: Mapping[str, Setting], title: str | None) -> dict[str, Setting]:
    rest = {name: value for name, value in settings.items() if name != TITLE}
    return rest if title is None else {TITLE: title, **rest}


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


RECORDS = "records.jsonl"
# Another: the title of the table.
TITLE = "title"
