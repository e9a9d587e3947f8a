"""A plan of cells -> trained and attacked networks -> records, one at a time, each kept as soon as it is finished.

All defences of one framework and seed start from the same natural weights, see the same training points and hold out
the same validation points. A record's key is a digest of all that determines it, so a second start finds what is done.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from art_entropic import __version__
from art_entropic._validate import check_eps, choice, device_word, file_path, flag, is_seed, listed, positive_int, whole_number
from art_entropic.attacks import BATTERIES
from art_entropic.backends import (
    FRAMEWORKS,
    MissingFrameworkError,
    backend_for,
    framework_module,
    installed_frameworks,
    resolve_device,
)
from art_entropic.checks import CHECKS
from art_entropic.defences import DEFENCES, option_defaults
from art_entropic.evaluation import CURVE_BATTERY, EVALUATION_REVISION, check_evaluation, evaluate, join_findings, verdict_on
from art_entropic.files import alone_in, replacing, write_whole
from art_entropic.information import MEASURES
from art_entropic.objective import DECAY
from art_entropic.palette import NATURAL
from art_entropic.problems import CLIP_VALUES, PROBLEMS, Data, Problem, build_classifier, for_framework, load_data
from art_entropic.recipes import AUTOMATIC, LARGE_EPS
from art_entropic.records import (
    SCHEMA,
    AnyRecord,
    ChecksRecord,
    EvaluationRecord,
    Findings,
    MeasurementRecord,
    ProfileRecord,
    Provenance,
    Setting,
    ShardRecord,
    TrainingRecord,
    append_record,
    installed_version,
    read_records,
    read_shard,
    unpack,
    write_shard,
)
from art_entropic.report import OTHER_LOAD, RECORDS, TITLE, ground_of, seat_of

STARTS = (NATURAL, "random")
VALIDATION_SHARE = 0.1
N_GALLERY = 6
SWITCHES = ("mixed_precision", "compile")  # of EntropicTrainer, newer than published trainings
CHECKS_REVISION = 1
PROFILED = (NATURAL, "madry_pgd", "entropic")  # whose information is read: what adversarial training does, and what ours does
N_PROFILED = 1000
PROFILE_REVISION = 2
SHARED_PACKAGES = ("adversarial-robustness-toolbox", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Variant:
    """A further row of a comparison: one of our defences with other options.

    Args:
        name: of the row, behind the title of the defence.
        defence: a name of DEFENCES, of those that EntropicTrainer trains.
        options: keyword arguments of EntropicTrainer in place of the defence's own.
        start: "natural", or "random" for the initial weights of the seed.
        nb_epochs: of the retraining; None takes the plan's.
    """

    name: str
    defence: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str = NATURAL
    nb_epochs: int | None = None


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to compare, and how. None takes the problem's own value, or everything that there is.

    Args:
        problem: a name of PROBLEMS.
        network: a name of the problem's networks.
        frameworks: names of FRAMEWORKS; None takes every installed one.
        defences: names of DEFENCES; None takes the short list of those that are marked as default. Natural training always
            comes along, since all start from it.
        variants: further rows.
        battery: a name of BATTERIES.
        eps: radius of the Linf ball, in the units of the data, which lie in [0, 1].
        seeds: one training of every defence for each; a seed sets the initial weights, the order of the data and the
            held-out points.
        n_examples: how many test points are attacked.
        first_example: number of the first of them, from 0.
        points_per_shard: attack so many points at a time, each shard by itself, with random numbers of its own, and join what
            was found; on an executor the shards of one network run on many workers at once. None attacks all points together.
        n_train: how many training points there are, from the first on, those that are held out among them.
        nb_epochs: epochs of every defence's retraining.
        nb_epochs_natural: epochs of the natural training before it.
        checks: look for symptoms of attacks that fail, and give each network a verdict.
        profile: read where the information goes in the networks of PROFILED, those of the first seed.
        device: "auto" (the first GPU where there is one, else the processor), "cpu", "cuda" or "cuda:i", of the machine that a
            cell runs on; None takes what ART and the framework take by themselves. A finished training is not done again where
            "auto" or "cuda" means another GPU by now: its record says which it was.
        title: of the table.
        source: the file that the plan was read from.
        overrides: what stood beside the file, such as "eps=0.1".
    """

    problem: str = "digits"
    network: str | None = None
    frameworks: tuple[str, ...] | None = None
    defences: tuple[str, ...] | None = None
    variants: tuple[Variant, ...] = ()
    battery: str = "standard"
    eps: float | None = None
    seeds: tuple[int, ...] = (0,)
    n_examples: int | None = None
    first_example: int = 0
    points_per_shard: int | None = None
    n_train: int | None = None
    nb_epochs: int | None = None
    nb_epochs_natural: int | None = None
    checks: bool = True
    profile: bool = True
    device: str | None = None
    title: str | None = None
    source: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """A plan with every value filled in and checked."""

    problem: Problem
    network: str
    frameworks: tuple[str, ...]
    defences: tuple[str, ...]
    variants: tuple[Variant, ...]
    battery: str
    eps: float
    seeds: tuple[int, ...]
    n_examples: int
    first_example: int
    points_per_shard: int | None
    n_train: int | None
    nb_epochs: int
    nb_epochs_natural: int
    checks: bool
    profile: bool
    device: str | None
    title: str | None
    source: str | None
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line that asks for the same, whatever the defaults of another version are."""
        if self.source is not None:
            overrides = "".join(f" --set {shlex.quote(one)}" for one in self.overrides)
            return f"art-entropic benchmark --plan {shlex.quote(self.source)}{overrides}"
        if self.variants:
            return _python_command(self)
        n_train = "" if self.n_train is None else f"--n-train {self.n_train} "
        without = "".join(f" --no-{name}" for name in ("checks", "profile") if not getattr(self, name))
        first = f"--first-example {self.first_example} " if self.first_example else ""
        shards = "" if self.points_per_shard is None else f"--points-per-shard {self.points_per_shard} "
        return (
            f"art-entropic benchmark --problem {self.problem.name} --network {self.network} "
            f"--framework {','.join(self.frameworks)} --defence {','.join(self.defences)} "
            f"--battery {self.battery} --eps {self.eps!r} --seeds {','.join(map(str, self.seeds))} "
            f"--n-examples {self.n_examples} {first}{shards}{n_train}"
            f"--epochs {self.nb_epochs} --epochs-natural {self.nb_epochs_natural}{without}"
            + ("" if self.device is None else f" --device {self.device}")
        )

    def epochs_of(self, defence: str, variant: Variant | None = None) -> int:
        if variant is not None and variant.nb_epochs is not None:
            return variant.nb_epochs
        return self.nb_epochs_natural if defence == NATURAL else self.nb_epochs


def _python_command(settings: Settings) -> str:
    """For variants, which the command line has no words for outside a file."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    plan = BenchmarkPlan(**{**values, "problem": settings.problem.name})
    code = f"from art_entropic.benchmark import BenchmarkPlan, Variant, run_benchmark; run_benchmark({plan!r})"
    return f"python -c {shlex.quote(code)}"


def settings_of(plan: BenchmarkPlan) -> Settings:
    """Check a plan and fill in what it leaves open.

    Raises:
        ValueError, TypeError: an argument is out of range or names nothing; always a ValueError that names the file where
            the plan came from one.
        MissingFrameworkError: a framework of the plan, or every one, is not installed.
    """
    with _naming(plan.source):
        _check_names(plan)
        problem = PROBLEMS[plan.problem]
        n_examples = positive_int("n_examples", problem.n_examples if plan.n_examples is None else plan.n_examples)
        settings = Settings(
            problem=problem,
            network=plan.network or problem.default_network,
            frameworks=_frameworks(plan.frameworks),
            defences=_defences(plan.defences),
            variants=plan.variants,
            battery=plan.battery,
            eps=check_eps(problem.eps if plan.eps is None else plan.eps, CLIP_VALUES),
            seeds=_seeds(plan.seeds),
            n_examples=n_examples,
            first_example=whole_number("first_example", plan.first_example),
            points_per_shard=_points_per_shard(plan.points_per_shard, n_examples),
            n_train=_n_train(plan.n_train),
            nb_epochs=positive_int("nb_epochs", problem.nb_epochs if plan.nb_epochs is None else plan.nb_epochs),
            nb_epochs_natural=positive_int(
                "nb_epochs_natural",
                problem.nb_epochs_natural if plan.nb_epochs_natural is None else plan.nb_epochs_natural,
            ),
            checks=flag("checks", plan.checks),
            profile=flag("profile", plan.profile),
            device=plan.device,
            title=plan.title,
            source=plan.source,
            overrides=plan.overrides,
        )
        _check_points(settings, problem.n_train, problem.n_test)
        _check_defences(settings)
        _check_variants(settings)
    return settings


@contextmanager
def _naming(source: str | None) -> Iterator[None]:
    """Errors of a plan that came from a file name the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if source is None:
            raise
        raise ValueError(f"{source}: {error}") from error


def _check_names(plan: BenchmarkPlan) -> None:
    problem = PROBLEMS[choice("problem", plan.problem, PROBLEMS)]
    choice("battery", plan.battery, BATTERIES)
    if plan.device is not None:
        device_word(plan.device)
    if plan.network is not None:
        choice("network", plan.network, problem.networks)
    for name in () if plan.frameworks is None else listed("frameworks", plan.frameworks, "names"):
        choice("frameworks", name, FRAMEWORKS)
    for name in () if plan.defences is None else listed("defences", plan.defences, "names"):
        choice("defences", name, DEFENCES)
    ours = [name for name, row in DEFENCES.items() if row.ours]
    for number, variant in enumerate(listed("variants", plan.variants, "Variants")):
        where = f"variants[{number}]"
        if not isinstance(variant, Variant):
            raise TypeError(f"`{where}` must be a Variant, got {variant!r} of type {type(variant).__name__}")
        choice(f"{where}.defence", variant.defence, ours)
        choice(f"{where}.start", variant.start, STARTS)
        if variant.nb_epochs is not None:
            positive_int(f"{where}.nb_epochs", variant.nb_epochs)
        if not variant.name.strip():
            raise ValueError(f"`{where}.name` must not be empty, got {variant.name!r}")
        if (variant.defence, variant.name) in {(other.defence, other.name) for other in plan.variants[:number]}:
            raise ValueError(f"`{where}.name` must be one that no other variant of its defence has, got {variant.name!r}")


def _check_defences(settings: Settings) -> None:
    """Whether those that change the network can change this one."""
    for name in {*settings.defences, *(variant.defence for variant in settings.variants)}:
        if DEFENCES[name].adapt is None:
            continue
        for framework in settings.frameworks:
            try:
                DEFENCES[name].adapt_network(_network(settings, framework))
            except ValueError as error:
                raise ValueError(f"`defences`, {name!r} on the network {settings.network!r}: {error}") from error


def check_device(settings: Settings) -> None:
    """Whether the device of a plan is on this machine, which must be asked where the cells run.

    Raises:
        ValueError: it is not.
    """
    if settings.device is not None:
        for framework in settings.frameworks:
            resolve_device(framework, settings.device)


def _network(settings: Settings, framework: str) -> Any:
    return build_classifier(settings.problem, framework, settings.seeds[0], settings.network)


def _check_variants(settings: Settings) -> None:
    """Every option, name and value, as EntropicTrainer will judge it: a mistake must not show after hours of training."""
    for variant in settings.variants:
        for framework in settings.frameworks:
            estimator = _network(settings, framework)
            try:
                DEFENCES[variant.defence].check_options(estimator, settings.eps, variant.options)
            except (ValueError, TypeError) as error:
                raise ValueError(f"`variants`, options of {variant.name!r}: {error}") from error


def _defences(names: Sequence[str] | None) -> tuple[str, ...]:
    wanted = [name for name, row in DEFENCES.items() if row.default] if names is None else names
    return tuple(name for name in DEFENCES if name in {*wanted, NATURAL})


def _frameworks(names: Sequence[str] | None) -> tuple[str, ...]:
    installed = installed_frameworks()
    if names is not None:
        if not names:
            raise ValueError(f"`frameworks` must name at least one of {', '.join(FRAMEWORKS)}, got {names!r}")
        for name in sorted(set(names).difference(installed)):
            framework_module(name)  # raises MissingFrameworkError with the command that installs it
        return tuple(name for name in FRAMEWORKS if name in names)
    if not installed:
        commands = " or ".join(f"pip install 'art-entropic[{row.package}]'" for row in FRAMEWORKS.values())
        raise MissingFrameworkError(f"no framework is installed: {commands}")
    return installed


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    for seed in listed("seeds", seeds, "whole numbers"):
        if not is_seed(seed):
            raise ValueError(f"`seeds` must be whole numbers from 0 to 2**31 - 1, got {seed!r}")
    if not len(seeds):
        raise ValueError(f"`seeds` must name at least one seed, got {seeds!r}")
    return tuple(dict.fromkeys(map(int, seeds)))


def _points_per_shard(size: int | None, n_examples: int) -> int | None:
    """None where one shard holds all points: that is the evaluation without shards, and keeps its key."""
    return None if size is None or positive_int("points_per_shard", size) >= n_examples else size


def _n_train(n_train: int | None) -> int | None:
    if n_train is not None and positive_int("n_train", n_train) < 2:
        raise ValueError(f"`n_train` must be at least 2, one point to train on and one to hold out, got {n_train!r}")
    return n_train


# --------------------------------------------------------------------------------------------------------------- files

# Key of a plan file -> its type and, in words, what it must be.
_PLAN_KEYS: dict[str, tuple[Any, str]] = {
    "title": (str, "a text"),
    "problem": (str, f"one of {', '.join(map(repr, PROBLEMS))}"),
    "network": (str, "the name of one of the problem's networks"),
    "frameworks": (tuple[str, ...], f"a list of some of {', '.join(map(repr, FRAMEWORKS))}"),
    "defences": (tuple[str, ...], f"a list of some of {', '.join(map(repr, DEFENCES))}"),
    "battery": (str, f"one of {', '.join(map(repr, BATTERIES))}"),
    "eps": (float | str, 'a number, or a fraction such as "8/255"'),
    "seeds": (tuple[int, ...], "a list of whole numbers"),
    "n_examples": (int, "a whole number"),
    "first_example": (int, "a whole number"),
    "points_per_shard": (int, "a whole number"),
    "n_train": (int, "a whole number"),
    "nb_epochs": (int, "a whole number"),
    "nb_epochs_natural": (int, "a whole number"),
    "checks": (bool, "true or false"),
    "profile": (bool, "true or false"),
    "device": (str, "'auto', 'cpu' or 'cuda[:i]'"),
    "variants": (list[dict[str, Any]], "tables [[variants]]"),
}
_VARIANT_KEYS: dict[str, tuple[Any, str]] = {
    "name": (str, "a text"),
    "defence": (str, "the name of one of our defences"),
    "options": (dict[str, Any], "a table of keyword arguments of EntropicTrainer"),
    "start": (str, f"one of {', '.join(map(repr, STARTS))}"),
    "nb_epochs": (int, "a whole number"),
}


def read_plan(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> BenchmarkPlan:
    """The plan of a TOML file, whose keys are the fields of BenchmarkPlan, with a table [[variants]] for each variant.

    Args:
        overrides: values in place of those of the file, each as "key=value" with a value in TOML, or a text without quotes;
            dots lead into tables and lists: "variants.0.options.beta=0.5".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not TOML, an unknown key, a value of the wrong type, or an unknown name; the message names file and key.
    """
    import msgspec

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"`plan` must be a TOML file, got {file}, which does not exist")
    source = Path(os.path.relpath(file)).as_posix()
    with _naming(source):
        try:
            # Editors of some systems begin a file with a mark that TOML does not know.
            content = msgspec.toml.decode(file.read_bytes().removeprefix(codecs.BOM_UTF8))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"a plan must be written in TOML: {error}") from error
        for override in overrides:
            _override(content, override)
        plan = BenchmarkPlan(**_plan_values(content), source=source, overrides=tuple(overrides))
        _check_names(plan)
    return plan


def _override(content: dict[str, Any], override: str) -> None:
    """Set one value, in place."""
    import msgspec

    key, separator, text = override.partition("=")
    *path, last = key.strip().split(".")
    if not separator or not last:
        raise ValueError(f"`set` must be KEY=VALUE such as eps=0.1 or variants.0.nb_epochs=3, got {override!r}")
    try:
        value = msgspec.toml.decode(f"value = {text}")["value"]
    except msgspec.DecodeError:
        value = text.strip()
    place: Any = content
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"`set` {override!r} leads nowhere in the plan: {error}") from error


def _plan_values(content: Mapping[str, Any]) -> dict[str, Any]:
    values = _typed(content, _PLAN_KEYS, "")
    if "eps" in values:
        values["eps"] = _radius(values["eps"])
    variants = enumerate(values.get("variants", ()))
    return {**values, "variants": tuple(_variant(table, f"variants[{number}].") for number, table in variants)}


def _variant(table: Mapping[str, Any], where: str) -> Variant:
    values = _typed(table, _VARIANT_KEYS, where)
    for key in ("name", "defence"):
        if key not in values:
            raise ValueError(f"`{where}{key}` must be {_VARIANT_KEYS[key][1]}, got nothing")
    return Variant(**values)


def _typed(values: Mapping[str, Any], keys: Mapping[str, tuple[Any, str]], where: str) -> dict[str, Any]:
    import msgspec

    typed = {}
    for key, value in values.items():
        if key not in keys:
            raise ValueError(f"`{where}{key}` is unknown: a key must be one of {', '.join(keys)}, got {key!r}")
        kind, wish = keys[key]
        try:
            typed[key] = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ValueError(f"`{where}{key}` must be {wish}, got {value!r}") from error
    return typed


def _radius(value: float | str) -> float:
    try:
        if not isinstance(value, str):
            return value
        # A fraction is exact in any size, so that an exponent of nine digits would be written out.
        return float(Fraction(value)) if "/" in value else float(value)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"`eps` must be {_PLAN_KEYS['eps'][1]}, got {value!r}") from error


def default_folder(plan: BenchmarkPlan) -> Path:
    """Where a run goes when nobody says where."""
    return Path("runs") / (plan.problem if plan.source is None else Path(plan.source).stem)


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
    # Left out where they are off, as before there was a choice: the trainings are the same.
    options = {name: value for name, value in options.items() if not (name in SWITCHES and value is False)}
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


# -------------------------------------------------------------------------------------------------------------- runner


def run_benchmark(
    plan: BenchmarkPlan | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    results: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    verbose: bool = True,
) -> list[AnyRecord]:
    """Train and attack every cell of a plan that neither `out` nor `results` holds yet.

    Each training and each evaluation is appended to ``records.jsonl`` as it finishes; weights go to ``weights/``. An
    interrupted run loses the cell in progress, no more; of a plan with `points_per_shard`, the shards in progress.

    Args:
        plan: what to compare; None compares the default defences on the embedded digits.
        out: folder of the run; None takes ``runs/<stem of the plan's file>``, or ``runs/<problem>`` without a file.
        results: file of the records of an earlier, finished run of the plan, maybe on another machine. Cells that it holds are
            not done again. After the run it holds the plan's records, in the plan's order, without example pictures.
        executor: of `concurrent.futures`, on whose workers the cells run: a process pool, or `Client.get_executor()` of Dask.
            They must see the folder `out` under the same path. None runs the cells one after another in this process.
        verbose: progress on stderr.
    Returns:
        The records of the plan, those of earlier starts included.
    Raises:
        ValueError, TypeError: an argument of the plan is out of range or names nothing.
        MissingFrameworkError: a framework is not installed.
    """
    plan = plan or BenchmarkPlan()
    settings = settings_of(plan)
    home = file_path("out", out) if out is not None else default_folder(plan)
    published = None if results is None else file_path("results", results)
    with _naming(settings.source):
        data = shared_data(settings)
    earlier = [] if published is None else _replaceable(published, settings, home)
    if executor is None:
        with _naming(settings.source):
            check_device(settings)
    jobs = plan_jobs(settings, data.sha256)
    profiles = profile_jobs(settings, jobs)
    with alone_in(home):
        store = Store(home)
        store.adopt(earlier, jobs, [profile.key for profile in profiles])
        store.retitle(jobs, settings.title)
        store.bring_up([job.evaluation_key for job in jobs])
        Runner(settings, data, store, provenance(settings, data.sha256)).run_all(jobs, profiles, verbose, executor)
        records = store.of(jobs, profiles)
        if published is not None:
            write_results(published, records)
    return records


@dataclass(frozen=True)
class Outlook:
    """What is left to do of one cell.

    Attributes:
        state: "done", "train", "attack" or "check", the first thing that is missing.
        seconds: an estimate from like cells that have been done; None where there is none.
    """

    title: str
    state: str
    seconds: float | None


def outlook(
    plan: BenchmarkPlan | None = None, out: str | os.PathLike[str] | None = None, results: str | os.PathLike[str] | None = None
) -> list[Outlook]:
    """What `run_benchmark` would do, without doing or writing anything.

    The estimate takes the mean seconds of the trainings and the evaluations that the folder and `results` know of the same
    problem, network, framework and defence, by epoch and training point, and by attacked point. Machines differ.

    Raises:
        As `run_benchmark`.
    """
    plan = plan or BenchmarkPlan()
    settings = settings_of(plan)
    home = Path(out) if out is not None else default_folder(plan)
    with _naming(settings.source):
        data = shared_data(settings)
    known = [*read_records(home / RECORDS), *([] if results is None else read_records(Path(results)))]
    store = Store(home, known)
    return [_outlook(settings, data, store, known, job) for job in plan_jobs(settings, data.sha256)]


def _outlook(settings: Settings, data: Data, store: Store, known: Sequence[AnyRecord], job: Job) -> Outlook:
    if store.is_done(job):
        return Outlook(job.title, "done", 0.0)
    like = [
        record
        for record in known
        if isinstance(record, (TrainingRecord, EvaluationRecord))
        and (record.problem, record.network, record.framework, record.defence)
        == (settings.problem.name, settings.network, job.framework, job.defence)
    ]
    trained = [record for record in like if isinstance(record, TrainingRecord) and record.status == "done"]
    attacked = [record for record in like if isinstance(record, EvaluationRecord) and record.battery == settings.battery]
    steps = settings.epochs_of(job.defence, job.variant) * len(data.x_train)
    training = [one.seconds * steps / (one.nb_epochs * max(1, one.n_train)) for one in trained]
    finished = sum(len(shard.points) for shard in shards_of(settings, job) if store.shard(shard) is not None)
    attack = [one.seconds * (settings.n_examples - finished) / one.clean.n for one in attacked]
    state, needed = _missing(store, job, training, attack)
    known_all = all(needed)
    return Outlook(job.title, state, sum(sum(one) / len(one) for one in needed) if known_all else None)


def _missing(store: Store, job: Job, training: list[float], attack: list[float]) -> tuple[str, tuple[list[float], ...]]:
    """The first thing that a cell lacks, and the seconds of like cells for all that it lacks."""
    if store.lacks_weights(job.training_key) and store.evaluation(job.evaluation_key) is None:
        return "train", (training, attack)
    if store.evaluation(job.evaluation_key) is None:
        return "attack", (attack,)
    return "check", ([],)


def shared_data(settings: Settings) -> Data:
    """The data of the problem, cut to the training points that every defence may see."""
    data = load_data(settings.problem.name)
    _check_points(settings, len(data.x_train), len(data.x_test))  # a local copy may hold fewer than were published
    n = settings.n_train
    return dataclasses.replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n])


def _check_points(settings: Settings, n_train: int, n_test: int) -> None:
    """Refuse to ask for more points than there are."""
    left = n_test - settings.first_example
    if left < 1:
        raise ValueError(f"`first_example` must be below the {n_test} test points, got {settings.first_example}")
    if settings.n_examples > left:
        behind = f" from number {settings.first_example} on" if settings.first_example else ""
        raise ValueError(f"`n_examples` must be at most the {left} test points{behind}, got {settings.n_examples}")
    if settings.n_train is not None and settings.n_train > n_train:
        raise ValueError(f"`n_train` must be at most the {n_train} training points, got {settings.n_train}")


def _replaceable(path: Path, settings: Settings, home: Path) -> list[AnyRecord]:
    """The records of a results file that this plan may replace.

    Raises:
        ValueError: it is the run's own file, or holds records of another comparison, which would be lost.
    """
    if path.resolve() == (home / RECORDS).resolve():
        raise ValueError(
            f"`results` must be another file than the run's own {home / RECORDS}, which would lose weights and pictures"
        )
    records = list(read_records(path))
    own = (settings.problem.name, settings.network, settings.n_train, settings.eps)
    for record in records:
        if isinstance(record, MeasurementRecord):
            raise ValueError(f"`results` must hold the records of a plan, got a measurement ({record.name}) in {path}")
        found = (record.problem, record.network, record.n_train_limit, record.eps)
        if found != own:
            raise ValueError(
                f"`results` must be new or hold records of this plan's problem, network, n_train and eps {own}, "
                f"got {found} in {path}; they would be lost"
            )
    return records


def write_results(path: Path, records: Iterable[AnyRecord]) -> None:
    """Replace a file of records by these, without what only the folder of the run is for: pictures, names of weights."""
    import msgspec

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, b"".join(msgspec.json.encode(_published(record)) + b"\n" for record in records))


def _published(record: AnyRecord) -> AnyRecord:
    import msgspec

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
        attacked = (shard.job.evaluation_key, shard.number, _file_sha256(self.home / training.weights))
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

    def lacks_weights(self, key: str) -> bool:
        """Whether a training must run, now or again, before anything can be done with its network."""
        training = self.training(key)
        return training is None or (training.status == "done" and training.weights is None)

    def records(self, keys: Iterable[str]) -> list[AnyRecord]:
        """Those that there are of these keys, each once."""
        return [self._records[key] for key in dict.fromkeys(keys) if key in self._records]

    def of(self, jobs: Sequence[Job], profiles: Sequence[ProfileJob] = ()) -> list[AnyRecord]:
        keys = [key for job in jobs for key in (job.training_key, job.evaluation_key, job.checks_key)]
        return self.records([key for key in keys if key is not None] + [profile.key for profile in profiles])

    def adopt(self, records: Iterable[AnyRecord], jobs: Sequence[Job], profile_keys: Sequence[str] = ()) -> None:
        """Take over the cells that these records finish and this folder does not; their weights are not here."""
        found = {record.key: _published(record) for record in records}
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
        """Append again each training whose table has another title by now."""
        import msgspec

        for job in jobs:
            training = self.training(job.training_key)
            if training is not None and training.settings.get(TITLE) != title:
                self.append(msgspec.structs.replace(training, settings=_titled(training.settings, title)))

    def bring_up(self, evaluation_keys: Sequence[str]) -> None:
        """Append again each evaluation of this plan that one with other settings has followed.

        A report shows the latest evaluation of a cell: going back to earlier settings must show theirs.
        """
        wanted = set(evaluation_keys)
        evaluations = [record for record in self._records.values() if isinstance(record, EvaluationRecord)]
        latest = {(ground_of(one), seat_of(one), one.battery, one.clean.n, one.first_example): one.key for one in evaluations}
        overtaken = [key for key in self._records if key in wanted and key not in latest.values()]
        for key in overtaken:
            self.append(self._records[key])


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _titled(settings: Mapping[str, Setting], title: str | None) -> dict[str, Setting]:
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


@dataclass
class Runner:
    settings: Settings
    data: Data
    store: Store
    source: Provenance
    warm: set[str] = field(default_factory=set)  # frameworks

    def run_all(
        self, jobs: Sequence[Job], profiles: Sequence[ProfileJob], verbose: bool, executor: Executor | None = None
    ) -> None:
        done = sum(self.store.is_done(job) for job in jobs)
        with _progress(len(jobs) + len(profiles), verbose) as progress:
            if done:
                progress.note(f"resuming in {self.store.home}: {done} of {len(jobs)} cells are done")
            if executor is not None:
                from art_entropic.distribution import run_on

                run_on(executor, self, jobs, profiles, progress)
                return
            for job in jobs:
                self.run(job, progress, trains=self.trains(job, jobs))
                progress.advance()
            for profile in profiles:
                self.profile(profile, progress)
                progress.advance()

    def trains(self, job: Job, jobs: Sequence[Job]) -> bool:
        """Whether a cell's network is still to be trained, for itself or for others."""
        return self._must_train(job) or self._is_awaited(job, jobs)

    def run(self, job: Job, progress: Progress, *, trains: bool) -> None:
        """Whatever of a cell is missing: its training, its evaluation."""
        if trains:
            self.train(job, progress)
        training = self.attackable(job)
        shards = shards_of(self.settings, job)
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
        progress.note(f"{job.title}: {_told(trained)}")

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
        first = self.settings.first_example
        title = f"{shard.job.title}, points {first + shard.points[0]} to {first + shard.points[-1]}"
        progress.begin(f"attacking {title}")
        findings = self._findings(shard.job, training, shard.points, shard.seed)
        record = ShardRecord(
            evaluation_key=shard.job.evaluation_key,
            weights_sha256=_file_sha256(self.store.home / str(training.weights)),
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

        finished = [self.store.shard(shard) for shard in shards_of(self.settings, job)]
        found = [record for record in finished if record is not None]
        if len(found) < len(finished):
            raise FileNotFoundError(f"a shard of {job.title} is gone from {self.store.home / job.attacks}; start again")
        findings = join_findings([record.findings for record in found], N_GALLERY)
        made = msgspec.structs.replace(found[0].provenance, created=_now())
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
        from art_entropic.analysis import information_profile

        x, y = self._test_points(profile.jobs[0])
        found = information_profile(
            {job.defence: classifier for job, classifier in classifiers.items()},
            x[:N_PROFILED],
            y[:N_PROFILED],
            eps=self.settings.eps,
            verbose=False,
        )
        return ProfileRecord(
            key=profile.key,
            training_keys={job.defence: job.training_key for job in classifiers},
            first_example=self.settings.first_example,
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
        problem = self.settings.problem
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
                eps=self.settings.eps,
                nb_epochs=self.settings.epochs_of(job.defence, job.variant),
                batch_size=problem.batch_size,
                seed=job.seed,
                learning_rate=problem.learning_rate,
                verbose=False,
                validation_data=(x[held], y[held]),
                options=job.options,
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
        settings = self.settings
        return build_classifier(settings.problem, job.framework, job.seed, settings.network, device=settings.device)

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
        first, chosen = self.settings.first_example, range(self.settings.n_examples) if points is None else points
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
            self.settings.eps,
            battery=self.settings.battery,
            seed=job.seed,
            transfer_from=sources,
        )
        return ChecksRecord(
            key=key,
            evaluation_key=evaluation.key,
            verdict=verdict_on(evaluation.robust, self.settings.problem.nb_classes, evaluation.attacks, checks),
            checks=checks,
            seconds=time.perf_counter() - began,
            provenance=self._stamped(job.framework),
            **self._cell(job),
        )

    def _evaluate(self, job: Job, training: TrainingRecord) -> EvaluationRecord:
        findings = self._findings(job, training, range(self.settings.n_examples), job.seed)
        return self._evaluation(job, findings, self._stamped(job.framework))

    def _findings(self, job: Job, training: TrainingRecord, points: range, seed: int) -> Findings:
        x, y = self._test_points(job, points)
        return evaluate(
            self._trained(job, training),
            x,
            y,
            eps=self.settings.eps,
            norm="inf",
            battery=self.settings.battery,
            seeds=seed,
            checks=False,
            curve_eps=self.settings.problem.curve_eps,
            n_gallery=N_GALLERY,
            measure=_measure_of(training),
            folder=self._attacks_of(job),
            verbose=False,
        ).findings()

    def _evaluation(self, job: Job, findings: Findings, made: Provenance) -> EvaluationRecord:
        import msgspec

        first = self.settings.first_example
        return EvaluationRecord(
            key=job.evaluation_key,
            training_key=job.training_key,
            first_example=first,
            battery=self.settings.battery,
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

        device = self.settings.device
        place = None if device is None else resolve_device(framework, device)
        return msgspec.structs.replace(self.source, created=_now(), device=framework_module(framework).device_title(place))

    def _cell(self, job: Job) -> dict[str, Any]:
        """What names the cell of a job, in its training's and in its evaluation's record."""
        return {
            "problem": self.settings.problem.name,
            "framework": job.framework,
            "defence": job.defence,
            "seed": job.seed,
            "eps": self.settings.eps,
            "network": self.settings.network,
            "variant": "" if job.variant is None else job.variant.name,
            "n_train_limit": self.settings.n_train,
        }

    def _training_record(
        self, job: Job, status: Any, spent: Spent, *, told: Mapping[str, Setting] | None = None, **facts: Any
    ) -> TrainingRecord:
        settings: dict[str, Setting] = {
            "data": self.data.title,
            "learning_rate": self.settings.problem.learning_rate,
            "validation_share": VALIDATION_SHARE,
            OTHER_LOAD: spent.other_load,
            **({} if job.variant is None else _variant_settings(job.variant)),
            **(told or {}),
        }
        return TrainingRecord(
            key=job.training_key,
            status=status,
            nb_epochs=self.settings.epochs_of(job.defence, job.variant),
            batch_size=self.settings.problem.batch_size,
            seconds=spent.seconds,
            settings=_titled(settings, self.settings.title),
            provenance=self._stamped(job.framework),
            **self._cell(job),
            **{"n_train": 0, **facts},
        )


def _measure_of(training: TrainingRecord) -> str | None:
    """The information measure that a network was retrained with, for an attack that knows it."""
    measure = training.settings.get("trainer.measure")
    return measure if isinstance(measure, str) and measure in MEASURES else None


def _variant_settings(variant: Variant) -> dict[str, Setting]:
    plain = (str, float, int, bool, type(None))
    options = {name: value if isinstance(value, plain) else json.dumps(value) for name, value in variant.options.items()}
    return {"start": variant.start, **{f"option.{name}": value for name, value in options.items()}}


def _has_finite_weights(estimator: Any) -> bool:
    return all(bool(np.isfinite(array).all()) for array in backend_for(estimator).state().values())


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
    return {"art-entropic": __version__} | {package: installed_version(package) for package in packages}


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


# ------------------------------------------------------------------------------------------------------------ progress


class Progress:
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
def _progress(total: int, verbose: bool) -> Iterator[Progress]:
    progress = Progress(total, verbose)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()


__all__ = ["BenchmarkPlan", "Variant", "read_plan", "run_benchmark", "settings_of"]
