"""What to compare: a plan, from Python, a TOML file or the command line, and the same with every value filled in."""

from __future__ import annotations

import codecs
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

from art_entropic._validate import DEVICE_WISH, NORMS, check_radius, choice, device_word, norm_name, norm_of
from art_entropic.backends.errors import MissingFrameworkError
from art_entropic.backends.registry import FRAMEWORKS, resolve_device
from art_entropic.benchmark.augmentation import AUGMENTATIONS, NO_AUGMENTATION
from art_entropic.benchmark.course import KEPT_EPOCHS
from art_entropic.benchmark.data import CLIP_VALUES
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.problems import PROBLEMS, Problem
from art_entropic.benchmark.tools import TOOLS, Tools
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.extras import install_command
from art_entropic.fields import FieldSpec, checked, field_specs, fields_described, read_struct, set_value
from art_entropic.measures import AnyMeasure
from art_entropic.palette import NATURAL

STARTS = (NATURAL, "random")
_RETRAINED = [name for name in DEFENCES if name != NATURAL]
_SHORT_LIST = ", ".join(name for name, row in DEFENCES.items() if row.default)
_NETWORKS = "; ".join(f"{name}: {', '.join(problem.networks)}" for name, problem in PROBLEMS.items())


def _radius(text: str) -> float:
    # A fraction is exact in any size, so that an exponent of nine digits would be written out.
    return float(Fraction(text)) if "/" in text else float(text)


def _norm(given: Any) -> str:
    return norm_name(norm_of(given, NORMS))


@fields_described
class Variant(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, repr_omit_defaults=True):
    """A further row of a comparison: a defence with another start or length, and one of ours with another measure.

    Its name is for people: renamed, it finds its records again.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {
        "options": 'hyperparameters belong to a measure, as in measure = { type = "interval", beta = 0.0 }, and `warmup`, '
        "`ramp` and `decay` to its schedule, as in schedule = { ramp = 0.2 }"
    }

    name: Annotated[str, Meta(description="of the row, behind the title of the defence")]
    defence: Annotated[
        str,
        Meta(
            description="a name of DEFENCES, but for natural training, which all start from",
            extra={"choices": _RETRAINED, "wish": "the name of a defence"},
        ),
    ]
    measure: Annotated[
        AnyMeasure | None,
        Meta(
            description="of one of our defences, in place of its own, which None takes",
            extra={"wish": 'a measure, or a table such as { type = "interval", beta = 0.0 }'},
        ),
    ] = None
    start: Annotated[
        str, Meta(description='"natural", or "random" for the initial weights of the seed', extra={"choices": STARTS})
    ] = NATURAL
    nb_epochs: Annotated[int | None, Meta(ge=1, description="of the retraining; None takes the plan's")] = None


@fields_described
class BenchmarkPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """What to compare, and how. None takes the problem's own value, or everything that there is."""

    title: Annotated[str | None, Meta(description="of the table", extra={"option": None})] = None
    problem: Annotated[
        str, Meta(description="data set; digits is embedded and needs no download", extra={"choices": PROBLEMS})
    ] = "digits"
    network: Annotated[
        str | None,
        Meta(
            description=f"network of the problem (default: its first). {_NETWORKS}",
            extra={"wish": "the name of one of the problem's networks"},
        ),
    ] = None
    frameworks: Annotated[
        tuple[str, ...] | None,
        Meta(
            description=f"some of {', '.join(FRAMEWORKS)} (default: every installed one)",
            extra={"choices": FRAMEWORKS, "option": "--framework"},
        ),
    ] = None
    defences: Annotated[
        tuple[str, ...] | None,
        Meta(
            description=f"some of {', '.join(DEFENCES)}; natural always comes along, since all start from it (default: "
            f"{_SHORT_LIST})",
            extra={"choices": DEFENCES, "option": "--defence"},
        ),
    ] = None
    variants: Annotated[
        tuple[Variant, ...], Meta(description="further rows", extra={"wish": "tables [[variants]]", "option": None})
    ] = ()
    battery: Annotated[str, Meta(description="battery of attacks", extra={"choices": BATTERIES})] = "standard"
    eps: Annotated[
        float | None,
        Meta(
            description="radius of the perturbations, such as 0.1 or 8/255; the data lie in [0, 1] (default: the problem's "
            "own, for norm inf)",
            extra={"parse": _radius, "wish": 'a number, or a fraction such as "8/255"'},
        ),
    ] = None
    norm: Annotated[
        str,
        Meta(
            description="norm of the perturbations, inf or 2, in training and attacks alike",
            extra={"convert": _norm, "choices": tuple(map(norm_name, NORMS))},
        ),
    ] = "inf"
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...],
        Meta(
            description="seeds such as 0,1,2; every defence is trained once for each seed, which sets the initial weights, the "
            "order of the data and the held-out points",
            extra={"wish": "whole numbers from 0 to 2**31 - 1, such as 0,1,2"},
        ),
    ] = (0,)
    n_examples: Annotated[
        int | None, Meta(ge=1, description="number of test points to attack (default: the problem's own)")
    ] = None
    first_example: Annotated[int, Meta(ge=0, description="position of the first of them in the test data, from 0")] = 0
    points_per_shard: Annotated[
        int | None,
        Meta(
            ge=1,
            description="number of points in a shard. Each shard is attacked by itself, with its own random numbers, so that "
            "the attacks on one network can run on many workers at once (default: all points together)",
        ),
    ] = None
    n_train: Annotated[
        int | None,
        Meta(
            ge=2,
            description="number of training points, counted from the first one and with the held-out ones (default: all)",
            extra={"wish": "a whole number of at least 2, one point to train on and one to hold out"},
        ),
    ] = None
    nb_epochs: Annotated[
        int | None,
        Meta(ge=1, description="epochs of every defence (default: the problem's own)", extra={"option": "--epochs"}),
    ] = None
    nb_epochs_natural: Annotated[
        int | None,
        Meta(
            ge=1,
            description="epochs of the natural training that every defence starts from (default: the problem's own)",
            extra={"option": "--epochs-natural"},
        ),
    ] = None
    augmentation: Annotated[
        str,
        Meta(
            description="how training points are changed, anew in every epoch and alike for every defence. "
            + "; ".join(f"{name}: {row.description}" for name, row in AUGMENTATIONS.items()),
            extra={"choices": AUGMENTATIONS},
        ),
    ] = NO_AUGMENTATION
    keep: Annotated[
        str,
        Meta(
            description="epoch that natural training and ART's trainers keep: the last one, or the best one on the held-out "
            "points, by accuracy for natural training and by robust accuracy for the others. EntropicTrainer always keeps its "
            "best one, by its own loss",
            extra={"choices": KEPT_EPOCHS},
        ),
    ] = KEPT_EPOCHS[0]
    checks: Annotated[bool, Meta(description="the sanity checks and the verdicts")] = True
    profile: Annotated[bool, Meta(description="the information profile of the networks of the first seed")] = True
    device: Annotated[
        str | None,
        Meta(
            description="device of the machine that a cell runs on: auto (the first GPU where there is one, else the "
            "processor), cpu, cuda or cuda:1 (default: the framework's own). A finished training is not done again where auto "
            "or cuda means another GPU by now; its record says which one it was",
            extra={"wish": DEVICE_WISH},
        ),
    ] = None
    source: Annotated[str | None, Meta(description="the file that the plan was read from", extra={"option": None})] = None
    overrides: Annotated[
        tuple[str, ...], Meta(description='what stood beside the file, such as "eps=0.1"', extra={"option": None})
    ] = ()


_NOT_IN_FILES = ("source", "overrides")


def plan_options() -> dict[str, FieldSpec]:
    """Fields of a plan that the command line has an option for, by name."""
    return {name: spec for name, spec in field_specs(BenchmarkPlan).items() if spec.option is not None}


_CURVE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


class ResolvedPlan(BenchmarkPlan, frozen=True, kw_only=True):
    """A plan with every value filled in and checked."""

    network: str
    frameworks: tuple[str, ...]
    defences: tuple[str, ...]
    eps: float
    n_examples: int
    nb_epochs: int
    nb_epochs_natural: int

    @property
    def problem_spec(self) -> Problem:
        return PROBLEMS[self.problem]

    @property
    def curve_eps(self) -> tuple[float, ...]:
        """Radii of the security curve: the problem's own for Linf, shares of eps for L2."""
        return self.problem_spec.curve_eps if self.norm == "inf" else tuple(share * self.eps for share in _CURVE_SHARES)

    @property
    def command(self) -> str:
        """The command line that asks for the same, whatever the defaults of another version are."""
        if self.source is not None:
            overrides = "".join(f" --set {shlex.quote(one)}" for one in self.overrides)
            place = f"./{self.source}" if self.source.startswith("-") else self.source
            return f"art-entropic benchmark --plan {shlex.quote(place)}{overrides}"
        if self.variants or self.title is not None:
            return _python_command(self)
        words = (_option_words(spec, getattr(self, name)) for name, spec in plan_options().items())
        return " ".join(["art-entropic benchmark", *filter(None, words)])

    def epochs_of(self, defence: str, variant: Variant | None = None) -> int:
        if variant is not None and variant.nb_epochs is not None:
            return variant.nb_epochs
        return self.nb_epochs_natural if defence == NATURAL else self.nb_epochs


_SAID_WHERE_OTHER = ("first_example", "norm", "augmentation", "keep")  # than the default, which no version will change


def _option_words(spec: FieldSpec, value: Any) -> str:
    """A value as the command line says it; nothing where that is what it takes by itself."""
    if value is None or value is True or (spec.name in _SAID_WHERE_OTHER and value == spec.default):
        return ""
    if value is False:
        return str(spec.option)
    return f"{spec.option} {','.join(map(str, value)) if spec.member else value}"


def _python_command(plan: ResolvedPlan) -> str:
    """For variants and titles, which the command line has no words for outside a file."""
    same = BenchmarkPlan(**msgspec.structs.asdict(plan))
    code = (
        "from art_entropic import Activation, BenchmarkPlan, Channel, Coding, Interval, Linear, Schedule, "
        "Variant, run_benchmark; "
        f"run_benchmark({same!r})"
    )
    return f"python -c {shlex.quote(code)}"


def resolved(plan: BenchmarkPlan, tools: Tools = TOOLS) -> ResolvedPlan:
    """Check a plan and fill in what it leaves open.

    Raises:
        ValueError, TypeError: an argument is out of range or names nothing; always a ValueError that names the file where
            the plan came from one.
        MissingFrameworkError: a framework of the plan, or every one, is not installed.
    """
    with naming(plan.source):
        given = _checked(plan)
        problem = PROBLEMS[plan.problem]
        own = {name: getattr(problem, name) for name in ("network", "eps", "n_examples", "nb_epochs", "nb_epochs_natural")}
        values: dict[str, Any] = {name: own[name] if value is None and name in own else value for name, value in given.items()}
        values["frameworks"] = _frameworks(values["frameworks"], tools)
        values["defences"] = _defences(values["defences"], norm_of(values["norm"]))
        if given["eps"] is None and values["norm"] != "inf":
            raise ValueError(
                f"`eps` must be given with norm {values['norm']}, since that of {plan.problem} is an Linf radius, got None"
            )
        values["eps"] = check_radius(values["eps"], norm_of(values["norm"]), CLIP_VALUES, problem.input_shape)
        values["seeds"] = tuple(dict.fromkeys(values["seeds"]))
        # One shard that holds all points is the evaluation without shards, and keeps its key.
        if values["points_per_shard"] is not None and values["points_per_shard"] >= values["n_examples"]:
            values["points_per_shard"] = None
        if values["augmentation"] != NO_AUGMENTATION and len(problem.input_shape) != 3:
            raise ValueError(
                f"`augmentation` must be {NO_AUGMENTATION!r} for {plan.problem}, whose points are not images, got "
                f"{values['augmentation']!r}"
            )
        full = ResolvedPlan(**values)
        check_counts(full, problem.n_train, problem.n_test)
        _check_defences(full, tools)
        _check_measures(full, tools)
    return full


@contextmanager
def naming(source: str | None) -> Iterator[None]:
    """Errors of a plan that came from a file name the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if source is None:
            raise
        raise ValueError(f"{source}: {error}") from error


def _checked(plan: BenchmarkPlan) -> dict[str, Any]:
    """The values of a plan, each checked by itself and beside the others."""
    values = checked(plan)
    if values["device"] is not None:
        device_word(values["device"])
    if values["network"] is not None:
        choice("network", values["network"], PROBLEMS[plan.problem].networks)
    for name, whole in (("seeds", "one seed"), ("frameworks", f"one of {', '.join(FRAMEWORKS)}")):
        if values[name] == ():
            raise ValueError(f"`{name}` must name at least {whole}, got none")
    _check_names(values["variants"])
    return values


def _check_names(variants: Sequence[Variant]) -> None:
    for number, variant in enumerate(variants):
        if not variant.name.strip():
            raise ValueError(f"`variants[{number}].name` must not be empty, got {variant.name!r}")
        if (variant.defence, variant.name) in {(other.defence, other.name) for other in variants[:number]}:
            raise ValueError(
                f"`variants[{number}].name` must differ from those of the defence's other variants, got {variant.name!r} again"
            )


def _check_defences(plan: ResolvedPlan, tools: Tools) -> None:
    """Whether all know the norm, and those that change the network can change this one."""
    for name in {*plan.defences, *(variant.defence for variant in plan.variants)}:
        DEFENCES[name].check_norm(plan.norm)
        if DEFENCES[name].adapt is None:
            continue
        for framework in plan.frameworks:
            try:
                tools.defences[name].adapt_network(_network(plan, framework, tools))
            except ValueError as error:
                raise ValueError(f"`defences`, {name!r} on the network {plan.network!r}: {error}") from error


def check_device(plan: ResolvedPlan) -> None:
    """Whether the device of a plan is on this machine, which must be asked where the cells run.

    Raises:
        ValueError: it is not.
    """
    if plan.device is not None:
        for framework in plan.frameworks:
            resolve_device(framework, plan.device)


def _network(plan: ResolvedPlan, framework: str, tools: Tools) -> Any:
    return tools.build_classifier(plan.problem_spec, framework, plan.seeds[0], plan.network)


def _check_measures(plan: ResolvedPlan, tools: Tools) -> None:
    """Every measure as EntropicTrainer will judge it: a mistake must not show after hours of training."""
    for number, variant in enumerate(plan.variants):
        if variant.measure is None:
            continue
        for framework in plan.frameworks:
            try:
                network = _network(plan, framework, tools)
                tools.defences[variant.defence].check_measure(network, plan.eps, variant.measure, plan.norm)
            except (ValueError, TypeError) as error:
                raise ValueError(f"`variants[{number}].measure`, of {variant.name!r}: {error}") from error


def _defences(names: Sequence[str] | None, norm: float) -> tuple[str, ...]:
    wanted = [name for name, row in DEFENCES.items() if row.default and norm in row.norms] if names is None else names
    return tuple(name for name in DEFENCES if name in {*wanted, NATURAL})


def _frameworks(names: Sequence[str] | None, tools: Tools) -> tuple[str, ...]:
    installed = tools.installed_frameworks()
    if names is not None:
        for name in sorted(set(names).difference(installed)):
            tools.framework_module(name)  # raises MissingFrameworkError with the command that installs it
        return tuple(name for name in FRAMEWORKS if name in names)
    if not installed:
        commands = " or ".join(install_command(row.package) for row in FRAMEWORKS.values())
        raise MissingFrameworkError(f"no framework is installed: {commands}")
    return installed


def read_plan(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> BenchmarkPlan:
    """The plan of a TOML file, whose keys are the fields of BenchmarkPlan, with a table [[variants]] for each variant.

    Args:
        overrides: values in place of those of the file, each as "key=value" with a value in TOML, or a text without quotes;
            dots lead into tables and lists: "variants.0.measure.beta=0.5".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not TOML, an unknown key, a value of the wrong type, or an unknown name; the message names file and key.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"`plan` must be a TOML file, got {file}, which does not exist")
    source = Path(os.path.relpath(file)).as_posix()
    with naming(source):
        content = _toml(file.read_bytes())
        for override in overrides:
            set_value(content, override)
        plan = read_struct(BenchmarkPlan, content, left_out=_NOT_IN_FILES)
        plan = msgspec.structs.replace(plan, source=source, overrides=tuple(overrides))
        _checked(plan)
    return plan


def _toml(content: bytes) -> dict[str, Any]:
    try:
        # Editors of some systems begin a file with a mark that TOML does not know.
        found: dict[str, Any] = msgspec.toml.decode(content.removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"a plan must be written in TOML: {error}") from error
    return found


def plan_of(values: Mapping[str, str]) -> BenchmarkPlan:
    """The plan of the words of a command line, by field.

    Raises:
        TypeError, ValueError: a word is not what its field wants.
    """
    specs = plan_options()
    return BenchmarkPlan(**{name: specs[name].from_text(word) for name, word in values.items()})


def default_folder(plan: BenchmarkPlan) -> Path:
    """Where a run goes when nobody says where."""
    return Path("runs") / (plan.problem if plan.source is None else Path(plan.source).stem)


def check_counts(plan: ResolvedPlan, n_train: int, n_test: int) -> None:
    """Refuse to ask for more points than there are."""
    left = n_test - plan.first_example
    if left < 1:
        raise ValueError(f"`first_example` must be below the {n_test} test points, got {plan.first_example}")
    if plan.n_examples > left:
        behind = f" from number {plan.first_example} on" if plan.first_example else ""
        raise ValueError(f"`n_examples` must be at most the {left} test points{behind}, got {plan.n_examples}")
    if plan.n_train is not None and plan.n_train > n_train:
        raise ValueError(f"`n_train` must be at most the {n_train} training points, got {plan.n_train}")
