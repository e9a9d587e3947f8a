"""Frozen records of what was trained and measured, and their JSON Lines form.

One line of a ``records.jsonl`` file is one record. ``SCHEMA`` numbers the form: a reader refuses a number that it does not
know instead of guessing."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

SCHEMA = 2
Status = Literal["done", "diverged", "unavailable"]
Setting = str | float | int | bool | None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record: immutable, keyword-only, unknown fields refused."""


class Provenance(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Where a number comes from: enough to make it again."""

    created: str  # UTC, ISO 8601
    command: str
    python: str
    platform: str
    processor: str
    cores: int
    versions: dict[str, str]
    data_sha256: str
    device: str | None = None  # where the network ran; not known of records from before it was asked


def installed_version(package: str) -> str:
    """Version of a distribution, "not installed" where there is none; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # a build for another processor has another name, such as <package>-cpu
        builds = importlib.metadata.packages_distributions().get(package, ())
        return ", ".join(f"{build} {importlib.metadata.version(build)}" for build in builds) or "not installed"


class Accuracy(Record, frozen=True, kw_only=True):
    """A share of `n` points with its Wilson 95 % interval."""

    correct: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.correct / self.n


class Epoch(Record, frozen=True, kw_only=True):
    """One epoch of a retraining: the schedule's values, the mean terms of the loss, what validation data showed."""

    epoch: int
    eps: float
    k: float
    beta: float
    learning_rate: float
    seconds: float
    terms: dict[str, float]
    validation: dict[str, float] | None = None


class PointsRecord(Record, frozen=True, kw_only=True):
    """What became of each test point, in their order: one bit a point, as `pack` writes them.

    With it, defences can be compared point by point, and attacks joined, without attacking again.
    """

    clean: str  # right without an attack
    robust: str  # right under every attack
    certified: str | None = None  # None where no bounds could be had
    certified_by: dict[str, str] = {}  # name of a method -> the points that it proved first
    broken_by: dict[str, str] = {}  # name of an attack -> the points that fell to it


def pack(points: np.ndarray) -> str:
    """One bit a point, bool (n,): eight to a byte, the first one highest, in base 64.

    >>> pack(np.array([True] * 8 + [False]))
    '/wA='
    """
    return base64.b64encode(np.packbits(points).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> np.ndarray:
    """The n points of `pack`, bool (n,).

    Raises:
        ValueError: not the bits of n points.

    >>> unpack("/wA=", 9).tolist()
    [True, True, True, True, True, True, True, True, False]
    """
    try:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8))
    except ValueError as error:
        raise ValueError(f"`text` must be bits in base 64, got {text!r}: {error}") from error
    if len(bits) != -(-n // 8) * 8 or bits[n:].any():
        raise ValueError(f"`text` must hold the bits of {n} points, got {len(bits)}: {text!r}")
    return bits[:n].astype(bool)


class AttackOutcome(Record, frozen=True, kw_only=True):
    """One attack of a battery. `attacked` points were still standing when it began, `broken` of them fell to it.

    Behind the first attack of a battery, points with a certificate are not attacked.
    """

    attack: str
    attacked: int
    broken: int
    seconds: float
    queries: int = 0  # points sent through the network; 0 where they were not counted
    error: str | None = None  # why it failed
    skipped: str | None = None  # why it had nothing to work with
    distance: float | None = None  # median distance of the adversarial examples it found, inside the ball or not

    @property
    def not_run(self) -> str | None:
        """Why it did not run to its end; None where it did."""
        return self.error or self.skipped


CheckStatus = Literal["pass", "flag", "fail", "skipped"]


class CheckOutcome(Record, frozen=True, kw_only=True):
    """One sanity check of an evaluation."""

    check: str  # a name of CHECKS
    title: str
    status: CheckStatus
    value: float | None = None
    threshold: float | None = None
    n: int = 0
    seconds: float = 0.0
    meaning: str  # what was asked, and what the answer says
    advice: str  # what to do about it; empty where it passed
    reason: str | None = None  # why it was skipped


class CurvePoint(Record, frozen=True, kw_only=True):
    """One point of a security curve: robust accuracy at a radius."""

    eps: float
    robust: Accuracy


class AttackedExample(Record, frozen=True, kw_only=True):
    """One test point beside an adversarial example that broke it; pixels row by row in [0, 1], shape (h, w, c)."""

    index: int
    label: int
    clean_prediction: int
    attacked_prediction: int
    shape: tuple[int, ...]
    clean: list[float]
    attacked: list[float]


class Findings(Record, frozen=True, kw_only=True):
    """What an evaluation found, with all that joining it with the findings on other points takes."""

    clean: Accuracy
    robust: Accuracy
    certified: Accuracy | None = None
    certified_reason: str | None = None  # why there is no certificate, also where one was tried and nothing proved
    attacks: list[AttackOutcome]
    distances: list[list[float]]  # for each of `attacks`, of the adversarial examples that it found: a median needs them all
    curve: list[CurvePoint] = []
    points: PointsRecord
    examples: list[AttackedExample] = []
    seconds: float

    def recorded(self) -> dict[str, Any]:
        """The fields that an `EvaluationRecord` repeats, since a struct has one base: all but the distances."""
        return {name: getattr(self, name) for name in Findings.__struct_fields__ if name != "distances"}


class ShardRecord(Record, frozen=True, kw_only=True):
    """One shard of the points of an evaluation, which waits for the others: a file of its own, never a line among records."""

    schema: int = SCHEMA
    evaluation_key: str  # key of the evaluation that it is a shard of
    weights_sha256: str  # of the file of the weights that were attacked
    number: int  # from 0, in the order of the points
    findings: Findings
    provenance: Provenance


class Cell(Record, frozen=True, kw_only=True):
    """What names a cell of a benchmark: shared by its training and its evaluation."""

    schema: int = SCHEMA
    key: str
    problem: str
    framework: str
    defence: str
    seed: int
    eps: float
    norm: str = "inf"
    network: str = ""  # a name of the problem's networks; empty in records from before there were several
    variant: str = ""  # name of the variant of the defence, empty for the defence itself
    n_train_limit: int | None = None  # only the first so many training points were used, None for all


class TrainingRecord(Cell, frozen=True, kw_only=True, tag="training", tag_field="kind"):
    """One training of one network by one defence."""

    status: Status
    reason: str | None = None
    nb_epochs: int
    batch_size: int
    n_train: int
    seconds: float
    forward_passes: int = 0  # of one batch through the network, over all training steps; 0 where they were not counted
    backward_passes: int = 0
    notes: tuple[str, ...] = ()
    settings: dict[str, Setting] = {}
    history: list[Epoch] = []
    weights: str | None = None  # file name inside the run's folder
    provenance: Provenance


class EvaluationRecord(Cell, frozen=True, kw_only=True, tag="evaluation", tag_field="kind"):
    """One trained network under one battery of attacks: `Findings`, laid flat."""

    training_key: str = ""  # key of the training whose network was attacked
    first_example: int = 0  # number of the first test point; the others follow it
    battery: str
    clean: Accuracy
    robust: Accuracy
    certified: Accuracy | None = None
    certified_reason: str | None = None  # why there is no certificate, also where one was tried and nothing proved
    attacks: list[AttackOutcome]
    curve: list[CurvePoint] = []
    points: PointsRecord | None = None
    examples: list[AttackedExample] = []
    seconds: float
    provenance: Provenance


class ChecksRecord(Cell, frozen=True, kw_only=True, tag="checks", tag_field="kind"):
    """The sanity checks of one evaluation, and what they amount to."""

    evaluation_key: str  # key of the evaluation that was checked
    verdict: str
    checks: list[CheckOutcome]
    seconds: float
    provenance: Provenance


Number = float | Literal["-inf", "inf"] | None


def number(value: float) -> Number:
    """A float as a `Number`; NaN is None."""
    if np.isnan(value):
        return None
    return float(value) if np.isfinite(value) else ("inf" if value > 0 else "-inf")


class ProfileRow(Record, frozen=True, kw_only=True):
    """One measure of one layer of one network, or of the network as a whole."""

    model: str
    layer: str = ""  # empty for the network as a whole
    label: str = ""  # what a reader calls the layer; empty in older records
    position: int = 0  # of the layer, from 0 at the input
    depth: float = 0.0  # the same as a share, 1 at the logits
    units: int = 0
    measure: str  # a name of PROFILE_MEASURES
    value: Number  # nats, the mean over the points; for `gradient` a ratio and the median
    low: Number = None  # 95 % bootstrap interval
    high: Number = None
    loss: Number = None  # of the perturbation's information between the layer before and this one, in nats
    loss_low: Number = None
    loss_high: Number = None
    n: int = 0  # points, or blocks of points, that the value was taken of
    reason: str | None = None  # why there is no value


class ProfileRecord(Cell, frozen=True, kw_only=True, tag="profile", tag_field="kind"):
    """Where the information goes in several networks, on the same points; its `defence` is empty."""

    training_keys: dict[str, str] = {}  # model -> key of the training that made it
    first_example: int = 0  # number of the first point
    n: int
    resolution: float
    copies: int
    notes: tuple[str, ...] = ()
    rows: list[ProfileRow]
    seconds: float
    provenance: Provenance


class MeasurementRecord(Record, frozen=True, kw_only=True, tag="measurement", tag_field="kind"):
    """A cost measured by a script under ``benchmarks/``: seconds, bytes, ratios; the unit is part of each value's name."""

    schema: int = SCHEMA
    key: str
    name: str
    values: dict[str, float]
    settings: dict[str, Setting] = {}
    provenance: Provenance


CellRecord = TrainingRecord | EvaluationRecord | ChecksRecord | ProfileRecord
AnyRecord = CellRecord | MeasurementRecord
_decoder = msgspec.json.Decoder(AnyRecord)


class AnotherSchemaError(ValueError):
    """A record of a schema that this version does not read."""


def write_shard(path: Path, shard: ShardRecord) -> None:
    """Write a shard to a file of its own; the caller sees to it that nobody reads half of one."""
    path.write_bytes(msgspec.json.encode(shard))


def read_shard(path: Path) -> ShardRecord:
    """Read the file of a shard.

    Raises:
        ValueError: not a shard of this schema; the message names the file.
    """
    try:
        shard = msgspec.json.decode(path.read_bytes(), type=ShardRecord)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: not a shard of an evaluation, remove it to evaluate these points again: {error}") from error
    if shard.schema != SCHEMA:
        raise AnotherSchemaError(f"{path}: shard of schema {shard.schema!r}, this version reads schema {SCHEMA}")
    return shard


def _what_to_do(schema: object, path: Path) -> str:
    known = f"this version reads schema {SCHEMA}"
    return f"{known}: python -m art_entropic.benchmark.upgrade {path} rewrites it" if schema == SCHEMA - 1 else known


def append_record(path: Path, record: AnyRecord) -> None:
    """Append one record to a JSON Lines file and force it to disk, so that a kill right after loses nothing."""
    line = msgspec.json.encode(record) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def decode_record(line: bytes) -> AnyRecord:
    """One record from its line.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    record: AnyRecord = _decoder.decode(line)
    return record


def read_records(path: Path) -> Iterator[AnyRecord]:
    """Read the records of a JSON Lines file, in order. A torn last line (a killed run) is skipped with a warning.

    Raises:
        ValueError: a line is not a record of this schema; the message names file and line.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            schema = found.get("schema") if isinstance(found, dict) else None
            if isinstance(found, dict) and schema != SCHEMA:
                raise AnotherSchemaError(f"{path}:{number}: record of schema {schema!r}, {_what_to_do(schema, path)}")
            yield decode_record(line)
        except AnotherSchemaError:
            raise
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            if number == len(lines):
                warnings.warn(f"{path}:{number}: unfinished last line skipped ({error})", RuntimeWarning, stacklevel=2)
                continue
            raise ValueError(f"{path}:{number}: not a record: {error}") from error


class ComparisonKey(NamedTuple):
    """What all rows of a comparison share."""

    problem: str
    network: str
    n_train_limit: int | None
    eps: float
    norm: str


class CellKey(NamedTuple):
    """The place of a cell in its comparison."""

    framework: str
    defence: str
    variant: str
    seed: int


def current(records: Iterable[AnyRecord]) -> list[AnyRecord]:
    """Without what a record was called before: a variant that is renamed leaves lines under its old name."""
    lines = list(records)
    names = {one.key: cell_of(one) for one in lines if not isinstance(one, MeasurementRecord)}
    return [one for one in lines if isinstance(one, MeasurementRecord) or cell_of(one) == names[one.key]]


def comparison_of(record: Cell) -> ComparisonKey:
    """The comparison that a record belongs to."""
    return ComparisonKey(record.problem, record.network, record.n_train_limit, record.eps, record.norm)


def cell_of(record: Cell) -> CellKey:
    """Its place there."""
    return CellKey(record.framework, record.defence, record.variant, record.seed)
