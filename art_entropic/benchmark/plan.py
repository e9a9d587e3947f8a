"""What to compare: a plan, from Python, a TOML file or the command line, and the settings that it stands for."""

from __future__ import annotations

import codecs
import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from art_entropic._validate import check_eps, choice, device_word, flag, is_seed, listed, positive_int, whole_number
from art_entropic.backends.errors import MissingFrameworkError
from art_entropic.backends.registry import FRAMEWORKS, framework_module, installed_frameworks, resolve_device
from art_entropic.benchmark.data import CLIP_VALUES
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.problems import PROBLEMS, Problem, build_classifier
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.palette import NATURAL

STARTS = (NATURAL, "random")


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
    code = f"from art_entropic import BenchmarkPlan, Variant, run_benchmark; run_benchmark({plan!r})"
    return f"python -c {shlex.quote(code)}"


def settings_of(plan: BenchmarkPlan) -> Settings:
    """Check a plan and fill in what it leaves open.

    Raises:
        ValueError, TypeError: an argument is out of range or names nothing; always a ValueError that names the file where
            the plan came from one.
        MissingFrameworkError: a framework of the plan, or every one, is not installed.
    """
    with naming(plan.source):
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
        check_points(settings, problem.n_train, problem.n_test)
        _check_defences(settings)
        _check_variants(settings)
    return settings


@contextmanager
def naming(source: str | None) -> Iterator[None]:
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
    with naming(source):
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


def check_points(settings: Settings, n_train: int, n_test: int) -> None:
    """Refuse to ask for more points than there are."""
    left = n_test - settings.first_example
    if left < 1:
        raise ValueError(f"`first_example` must be below the {n_test} test points, got {settings.first_example}")
    if settings.n_examples > left:
        behind = f" from number {settings.first_example} on" if settings.first_example else ""
        raise ValueError(f"`n_examples` must be at most the {left} test points{behind}, got {settings.n_examples}")
    if settings.n_train is not None and settings.n_train > n_train:
        raise ValueError(f"`n_train` must be at most the {n_train} training points, got {settings.n_train}")
