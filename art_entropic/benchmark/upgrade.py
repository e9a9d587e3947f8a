"""``python -m art_entropic.benchmark.upgrade FILE...`` rewrites records of schema 1 in the schema of this version, in place.

Keys of schema 1 held titles and signatures of the code that made them. The new ones are those that the plan asks for which each
record's own command names, with the package versions that the record tells: nothing is trained or attacked again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from art_entropic.benchmark.cells import Job, plan_jobs, profiles_of
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.plan import ResolvedPlan, plan_of, plan_options, read_plan, resolved
from art_entropic.benchmark.runner import variant_settings
from art_entropic.files import write_whole
from art_entropic.records import SCHEMA, decode_record

_OLD = 1
_Line = dict[str, Any]


def upgrade(path: Path) -> int:
    """Rewrite a file of records, whole or not at all.

    Returns:
        How many records were of schema 1.
    Raises:
        ValueError: a line is no record, or its command does not lead to a plan that has its cell.
    """
    for cached in (_plan, _jobs):
        cached.cache_clear()  # files of plans may have changed since
    content = path.read_bytes().splitlines()
    lines = [(number, _read(path, number, line)) for number, line in enumerate(content, start=1) if line.strip()]
    keys = _Keys()
    rewritten = [_rewritten(keys, path, number, line) for number, line in lines]
    encoded = [msgspec.json.encode(line) for line in rewritten]
    for number, line in enumerate(encoded, start=1):
        _check(path, number, line)
    count = len([line for _, line in lines if line["schema"] == _OLD])
    if count:
        write_whole(path, b"".join(line + b"\n" for line in encoded))
    return count


def _rewritten(keys: _Keys, path: Path, number: int, line: _Line) -> _Line:
    try:
        return keys.rewritten(line) if line["schema"] == _OLD else line
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}:{number}: not a record of a benchmark, {type(error).__name__}: {error}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}:{number}: {error}") from error


def _check(path: Path, number: int, line: bytes) -> None:
    try:
        decode_record(line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}:{number}: not a record of this package: {error}; the file is unchanged") from error


def _read(path: Path, number: int, line: bytes) -> _Line:
    try:
        found = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}:{number}: not a record: {error}") from error
    if type(found.get("schema")) is not int or found["schema"] not in (_OLD, SCHEMA) or "kind" not in found:
        raise ValueError(f"{path}:{number}: must be a record of schema {_OLD} or {SCHEMA}, got schema {found.get('schema')!r}")
    return found


@dataclass
class _Keys:
    """Old keys of one file -> new ones, as its records come: a training before its evaluation, that before its checks."""

    new: dict[str, str] = field(default_factory=dict)

    def new_of(self, key: str) -> str:
        if key not in self.new:
            raise ValueError(f"a record must come after the training or evaluation {key!r} that it refers to, got none before")
        return self.new[key]

    def rewritten(self, line: _Line) -> _Line:
        kind, changed = line["kind"], {**line, "schema": SCHEMA}
        if kind in ("training", "evaluation", "checks"):
            job = _job_of(line)
            key = {"training": job.training_key, "evaluation": job.evaluation_key, "checks": job.checks_key}[kind]
            self.new[line["key"]] = changed["key"] = str(key)
            if kind == "training" and job.variant is not None:
                rest = {name: value for name, value in line["settings"].items() if not name.startswith("option.")}
                changed["settings"] = {**rest, **variant_settings(job.variant)}
        if kind == "profile":
            changed["key"] = _profile_key(line)
            changed["training_keys"] = {model: self.new_of(key) for model, key in line["training_keys"].items()}
        for name in ("training_key", "evaluation_key"):
            if line.get(name):
                changed[name] = self.new_of(line[name])
        return changed


def _job_of(line: _Line) -> Job:
    wanted = (line["framework"], line["seed"], line["defence"], line.get("variant", ""))
    for job in _jobs(*_asked(line)):
        if (job.framework, job.seed, job.defence, job.variant_name) == wanted:
            _refuse_another(line, _plan(line["provenance"]["command"]), job)
            return job
    raise ValueError(f"`{line['provenance']['command']}` has no cell {wanted}, but there is a record of it")


def _refuse_another(line: _Line, plan: ResolvedPlan, job: Job) -> None:
    """Refuse a record of something else than its plan asks for by now: it would be found as what it is not."""
    asked = {"problem": plan.problem, "network": plan.network, "eps": plan.eps, "n_train_limit": plan.n_train}
    told = {name: line.get(name) for name in asked}
    asked["norm"], told["norm"] = plan.norm, line.get("norm", "inf")
    if line["kind"] == "training":
        measure = DEFENCES[job.defence].measure if job.measure is None else job.measure
        asked |= {"nb_epochs": plan.epochs_of(job.defence, job.variant), "batch_size": plan.problem_spec.batch_size}
        told |= {name: line[name] for name in ("nb_epochs", "batch_size")}
        controls = {} if measure is None else measure.controls(plan.eps)._asdict()
        known = {name: line["settings"].get(f"trainer.{name}") for name in ("eps", "k", "beta", "ramp", "warmup")}
        for name in (name for name in controls if known.get(name) is not None):
            asked[name], told[name] = round(controls[name], 9), round(known[name], 9)
    if line["kind"] == "evaluation":
        asked |= {"battery": plan.battery, "n": plan.n_examples, "first_example": plan.first_example}
        told |= {"battery": line["battery"], "n": line["clean"]["n"], "first_example": line.get("first_example", 0)}
    other = [f"{name} {told[name]!r} (plan: {asked[name]!r})" for name in asked if told[name] != asked[name]]
    if other:
        command = line["provenance"]["command"]
        raise ValueError(f"the record differs from the plan that {command!r} asks for now: {', '.join(other)}")


def _profile_key(line: _Line) -> str:
    command, data_sha256, versions = _asked(line)
    profiles = profiles_of(_plan(command), _jobs(command, data_sha256, versions))
    found = [profile.key for profile in profiles if profile.framework == line["framework"]]
    if not found:
        raise ValueError(f"`{command}` has no profile on {line['framework']!r}, but there is a record of it")
    return found[0]


def _asked(line: _Line) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    source = line["provenance"]
    return source["command"], source["data_sha256"], tuple(source["versions"].items())


@cache
def _jobs(command: str, data_sha256: str, versions: tuple[tuple[str, str], ...]) -> list[Job]:
    return plan_jobs(_plan(command), data_sha256, dict(versions))


@cache
def _plan(command: str) -> ResolvedPlan:
    """The plan that a recorded command asks for."""
    words = shlex.split(command)
    if words[:2] != ["art-entropic", "benchmark"]:
        raise ValueError(f"a record must come from `art-entropic benchmark` to be rewritten, got {command!r}: run it again")
    given = dict(_pairs(words[2:]))
    if "--plan" in given:
        overrides = [value for name, value in _pairs(words[2:]) if name == "--set"]
        return resolved(read_plan(given["--plan"], overrides))
    fields = {str(spec.option): name for name, spec in plan_options().items()}
    return resolved(plan_of({fields[name]: value for name, value in given.items()}))


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Options and their values; that of a switch such as --no-checks is "false"."""
    found, left = [], list(words)
    while left:
        name = left.pop(0)
        if not name.startswith("--no-") and not left:
            raise ValueError(f"a recorded command must give {name} a value, got none")
        found.append((name, "false" if name.startswith("--no-") else left.pop(0)))
    return found


def main(paths: Sequence[str]) -> int:
    if not paths:
        print("usage: python -m art_entropic.benchmark.upgrade FILE...", file=sys.stderr)
        return 2
    for path in map(Path, paths):
        try:
            print(f"{path}: {upgrade(path)} records rewritten")
        except (ValueError, OSError) as error:
            print(f"left unchanged: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
