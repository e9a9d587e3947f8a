"""The command line: results go to stdout, progress and errors to stderr; exit code 2 is bad input, 130 is Ctrl-C.

Nothing heavy is imported before the arguments are known, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import sysconfig
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from art_entropic import __version__

if TYPE_CHECKING:
    import numpy as np

    from art_entropic.analysis import InformationProfile
    from art_entropic.benchmark import BenchmarkPlan, Outlook
    from art_entropic.evaluation import Evaluation
    from art_entropic.records import ProfileRow
    from art_entropic.trainer import History

PROGRAM = "art-entropic"
# Those of BenchmarkPlan, whose module help has no time to import.
DEFAULT_PROBLEM, DEFAULT_BATTERY = "digits", "standard"
# Option of the command line -> field of BenchmarkPlan.
PLAN_OPTIONS = {
    "problem": "problem", "network": "network", "framework": "frameworks", "defence": "defences", "battery": "battery",
    "eps": "eps", "seeds": "seeds", "n_examples": "n_examples", "first_example": "first_example",
    "points_per_shard": "points_per_shard", "n_train": "n_train",
    "epochs": "nb_epochs", "epochs_natural": "nb_epochs_natural", "checks": "checks", "profile": "profile",
    "device": "device",
}  # fmt: skip
WEIGHTS = "weights"
CHECKPOINT = "checkpoint.npz"
HISTORY = "history.jsonl"
README = "README.txt"
EVALUATION = "evaluation.json"
POINTS = "points.csv"
PROFILE = "profile.json"
LAYERS = "layers.csv"
FIGURE = "information.svg"
TEST_SHARE = 0.2  # held out of `x`, `y` where a file has no test data of its own


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    options = _parser(words).parse_args(words)
    try:
        return _COMMANDS[options.command].run(options) or 0
    except KeyboardInterrupt:
        again = _COMMANDS[options.command].again
        print(f"\n{PROGRAM}: interrupted; what is finished is kept. {again}", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_for_user(error):
            raise
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _is_for_user(error: Exception) -> bool:
    """Errors whose message is all that the user needs. Any other is a defect and shows its traceback."""
    from art_entropic.backends import MissingFrameworkError, NoIntervalRuleError

    if isinstance(error, (ValueError, TypeError, OSError, MemoryError, MissingFrameworkError, NoIntervalRuleError)):
        return True
    # Raised only by what is loaded.
    known = (("art_entropic.trainer", "TrainingDivergedError"), ("art_entropic.evaluation", "BatteryError"))
    return any(isinstance(error, getattr(sys.modules[module], name)) for module, name in known if module in sys.modules)


# ------------------------------------------------------------------------------------------------------------- parsing


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Entropic retraining for ART: robust neural networks without adversarial training.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.summary, description=command.description)
        if name in words:  # only the command in use reads the tables
            command.add_arguments(sub)
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 0,1,2, got {text!r}") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(name) for name in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 0,0.1,0.2, got {text!r}") from None


def _resources(text: str) -> dict[str, float]:
    """Names and amounts of worker resources; whether the amounts make sense is for the cluster to say."""
    found = {}
    for part in _names(text):
        name, separator, amount = (word.strip() for word in part.partition("="))
        try:
            found[name] = float(amount)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise argparse.ArgumentTypeError(f"must be NAME=NUMBER, such as GPU=1 or GPU=1,MEMORY=2e9, got {text!r}")
    if not found:
        raise argparse.ArgumentTypeError(f"must be NAME=NUMBER, such as GPU=1, got {text!r}")
    return found


def _add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.attacks import BATTERIES
    from art_entropic.backends import FRAMEWORKS
    from art_entropic.defences import DEFENCES
    from art_entropic.problems import PROBLEMS

    parser.add_argument(
        "--plan", type=Path, metavar="FILE.toml",
        help="file that says what to compare, in place of the options that say so here",
    )  # fmt: skip
    parser.add_argument(
        "--problem", choices=list(PROBLEMS), help=f"data set (default: {DEFAULT_PROBLEM}, which needs no download)"
    )
    networks = "; ".join(f"{name}: {', '.join(problem.networks)}" for name, problem in PROBLEMS.items())
    parser.add_argument("--network", metavar="NAME", help=f"network of the problem (default: its first). {networks}")
    parser.add_argument(
        "--framework", action="append", type=_names, metavar="NAMES",
        help=f"some of {', '.join(FRAMEWORKS)}; repeat it or use commas (default: every installed one)",
    )  # fmt: skip
    short = ", ".join(name for name, row in DEFENCES.items() if row.default)
    parser.add_argument(
        "--defence", action="append", type=_names, metavar="NAMES",
        help=f"some of {', '.join(DEFENCES)}; natural always comes along (default: {short})",
    )  # fmt: skip
    parser.add_argument("--battery", choices=list(BATTERIES), help=f"attacks (default: {DEFAULT_BATTERY})")
    parser.add_argument("--eps", type=float, help="Linf radius, the data lie in [0, 1] (default: the problem's own)")
    parser.add_argument(
        "--seeds", action="append", type=_whole_numbers, metavar="SEEDS",
        help="seeds such as 0,1,2: every defence is trained once for each (default: 0)",
    )  # fmt: skip
    parser.add_argument("--n-examples", type=int, help="how many test points are attacked (default: the problem's own)")
    parser.add_argument("--first-example", type=int, help="number of the first of them (default: 0)")
    parser.add_argument(
        "--points-per-shard", type=int, metavar="N",
        help="attack N test points at a time, so that the attacks on one network run on many workers (default: all together)",
    )  # fmt: skip
    parser.add_argument("--n-train", type=int, help="only the first so many training points (default: all)")
    parser.add_argument("--epochs", type=int, help="epochs of each retraining (default: the problem's own)")
    parser.add_argument("--epochs-natural", type=int, help="epochs of natural training (default: the problem's own)")
    _add_device_argument(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="a value in place of the plan file's, such as eps=0.1 or variants.0.nb_epochs=3; repeat it",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show the cells and what is missing of them, and do nothing")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, metavar="N", help="run cells in N processes, each with cores of its own")
    where.add_argument("--scheduler", metavar="ADDRESS", help="run cells on a Dask cluster, such as tcp://host:8786")
    parser.add_argument(
        "--resources", action="append", type=_resources, metavar="NAME=NUMBER",
        help="what each cell takes of its worker's resources on the Dask cluster, such as GPU=1; repeat it or use commas",
    )  # fmt: skip
    parser.add_argument(
        "--no-checks", dest="checks", action="store_false", default=None, help="leave out the sanity checks and the verdicts"
    )
    parser.add_argument(
        "--no-profile", dest="profile", action="store_false", default=None, help="leave out where the information goes"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for records, weights and report (default: runs/PROBLEM, or runs/ and the plan's name)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE.jsonl",
        help="file that gets the records when all is done; what it holds already is not done again",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=_device, metavar="DEVICE",
        help="auto (the first GPU where there is one, else the processor), cpu, cuda or cuda:1 (default: the framework's own)",
    )  # fmt: skip


def _device(text: str) -> str:
    from art_entropic._validate import device_word

    try:
        return device_word(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.information import MEASURES

    _add_estimator_arguments(parser)
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE.npz",
        help="arrays x_train, y_train, x_test, y_test, or x, y (then a seeded fifth is held out for the test)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for weights and history (default: runs/FACTORY)")
    parser.add_argument("--measure", choices=list(MEASURES), help="default: chosen by the network and eps")
    parser.add_argument("--beta", type=float, help="weight of the information (default: the measure's own)")
    parser.add_argument("--k", type=float, help="weight of the worst-case cross-entropy (default: the measure's own)")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--batch-size", type=int, default=128, help="default: 128")
    parser.add_argument("--seed", type=int, default=0, help="of splits, shuffling, noise and attacks (default: 0)")
    parser.add_argument(
        "--validation-split", type=float, default=0.1, metavar="SHARE",
        help="share of the training data on which the best epoch is chosen; 0 keeps the last epoch (default: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--n-examples", type=int, default=500, help="test points of the before/after line (default: the first 500)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an interrupted retraining in the same folder")
    again.add_argument("--force", action="store_true", help="start over in a folder that holds weights")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_estimator_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--estimator", required=True, metavar="MODULE:FACTORY",
        help="a function without arguments that returns a trained ART estimator. Its module is looked for in the "
        "current folder first; this is the only place where code of yours runs",
    )  # fmt: skip
    parser.add_argument("--eps", required=True, type=float, help="radius of the perturbations, in the units of the data")
    _add_device_argument(parser)


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.attacks import BATTERIES
    from art_entropic.information import MEASURES

    _add_estimator_arguments(parser)
    parser.add_argument("--data", required=True, type=Path, metavar="FILE.npz", help="arrays x_test and y_test, or x and y")
    parser.add_argument("--norm", choices=["inf", "2", "1"], default="inf", help="default: inf")
    parser.add_argument("--battery", choices=list(BATTERIES), default=DEFAULT_BATTERY, help=f"default: {DEFAULT_BATTERY}")
    parser.add_argument(
        "--seeds", type=_whole_numbers, default=[0], metavar="SEEDS",
        help="of the attacks' random numbers, such as 0,1,2; a point has to survive all (default: 0)",
    )  # fmt: skip
    parser.add_argument("--measure", choices=list(MEASURES), help="that it was retrained with, for the attack on it in `full`")
    parser.add_argument(
        "--transfer-from", action="append", default=[], metavar="MODULE:FACTORY",
        help="another classifier, such as the natural or an adversarially trained twin; its adversarial examples are tried too",
    )  # fmt: skip
    parser.add_argument(
        "--curve", type=_numbers, default=[], metavar="RADII", help="radii of the security curve, such as 0,0.1,0.2,0.3"
    )
    parser.add_argument("--n-examples", type=int, default=1000, help="test points (default: the first 1000)")
    parser.add_argument("--no-checks", action="store_true", help="leave the sanity checks out")
    parser.add_argument("--no-cascade", action="store_true", help="every attack on every point, at a multiple of the time")
    parser.add_argument("--out", type=Path, help="folder for the result (default: runs/FACTORY-evaluation)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_analyse_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.analysis import PROFILE_MEASURES

    parser.add_argument(
        "--estimator", required=True, action="append", metavar="NAME=MODULE:FACTORY",
        help="a function without arguments that returns a trained ART estimator, and a name for it; repeat it to compare "
        "several, such as natural=models:make and entropic=models:load. Its module is looked for in the current folder "
        "first; this is the only place where code of yours runs",
    )  # fmt: skip
    parser.add_argument("--eps", required=True, type=float, help="radius of the perturbations, in the units of the data")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE.npz", help="arrays x_test and y_test, or x and y")
    parser.add_argument(
        "--measures", type=_names, metavar="NAMES", help=f"some of {', '.join(PROFILE_MEASURES)} (default: all)"
    )
    parser.add_argument("--layers", type=_names, metavar="NAMES", help="names of layers, or input (default: all)")
    parser.add_argument(
        "--resolution", type=float, default=0.1, help="of the reading, in shares of a layer's spread (default: 0.1)"
    )
    parser.add_argument("--n-examples", type=int, default=1000, help="test points (default: the first 1000)")
    parser.add_argument("--batch-size", type=int, default=256, help="what memory grows with (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the perturbations (default: 0)")
    _add_device_argument(parser)
    parser.add_argument("--out", type=Path, help="folder for records and figure (default: runs/analysis)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("old", "new"):
        parser.add_argument(name, type=Path, help=f"folder of the {name} benchmark, or a file of its records")
    parser.add_argument("--fail", action="store_true", help="exit with 1 if a robust accuracy fell beyond its 95 %% interval")


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder of a benchmark")


# ------------------------------------------------------------------------------------------------------------ commands


def _benchmark(options: argparse.Namespace) -> None:
    from art_entropic.benchmark import default_folder, outlook, run_benchmark
    from art_entropic.report import print_table, write_report

    if options.resources and options.scheduler is None:
        raise ValueError(f"`--resources` are those of a Dask cluster's workers and need --scheduler, got {options.resources!r}")
    plan = _plan(options)
    out = options.out or default_folder(plan)
    if options.dry_run:
        _print_outlook(outlook(plan, out, options.results))
        return
    with _executor(options) as executor:
        records = run_benchmark(plan, out, results=options.results, executor=executor, verbose=not options.quiet)
    _, page = write_report(out)
    print_table(records, sys.stdout)
    if not options.quiet:
        print(f"report: {page}", file=sys.stderr)


def _plan(options: argparse.Namespace) -> BenchmarkPlan:
    from art_entropic.benchmark import BenchmarkPlan, read_plan

    given = {name: getattr(options, name) for name in PLAN_OPTIONS if getattr(options, name) is not None}
    if options.plan is not None:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"`--plan` must stand alone, since its file says what to compare, got {names} beside it")
        return read_plan(options.plan, options.overrides)
    if options.overrides:
        raise ValueError(f"`--set` changes a value of a plan file and needs --plan, got {', '.join(options.overrides)}")
    for name in ("framework", "defence", "seeds"):
        if name in given:
            given[name] = tuple(item for items in given[name] for item in items)
    return BenchmarkPlan(**{PLAN_OPTIONS[name]: value for name, value in given.items()})


def _print_outlook(cells: Sequence[Outlook]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("cell", "to do", "seconds, about", box=None, pad_edge=False)
    for cell in cells:
        seconds = "" if cell.state == "done" else "unknown" if cell.seconds is None else f"{cell.seconds:.0f}"
        table.add_row(cell.title, "-" if cell.state == "done" else cell.state, seconds)
    Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True).print(table)
    left = [cell for cell in cells if cell.state != "done"]
    known = [cell.seconds for cell in left if cell.seconds is not None]
    unknown = len(left) - len(known)
    print(
        f"{len(left)} of {len(cells)} cells to do, about {sum(known):.0f} s"
        + (f" and {unknown} of unknown length" * bool(unknown))
    )


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from art_entropic.comparison import compare_runs
    from art_entropic.records import read_records

    changes = compare_runs(*(read_records(_records_file(path)) for path in (options.old, options.new)))
    table = Table("cell", "n", "old %", "new %", "points [95 % interval]", "", box=None, pad_edge=False)
    for change in changes.cells:
        one = change.difference
        interval = "" if one is None else f" [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        shares = (f"{100 * share.value:.1f}" for share in (change.old, change.new))
        table.add_row(change.title, str(change.new.n), *shares, f"{change.points:+.1f}{interval}", change.verdict)
    Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True).print(table)
    for name, missing in (("old", changes.only_old), ("new", changes.only_new)):
        if missing:
            print(f"only in the {name} run: {'; '.join(missing)}")
    print(f"robust accuracy fell in {len(changes.fell)} of {len(changes.cells)} cells")
    return 1 if options.fail and changes.fell else 0


def _records_file(path: Path) -> Path:
    """The records of a folder of a benchmark, or a file of records."""
    from art_entropic.report import RECORDS

    file = path / RECORDS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"`old` and `new` must be folders of a benchmark or files of records, got {path}")
    return file


@contextmanager
def _executor(options: argparse.Namespace) -> Iterator[Any]:
    """Where the cells run; None is this process."""
    if options.jobs is None and options.scheduler is None:
        yield None
        return
    from art_entropic.distribution import dask_cluster, process_pool

    if options.scheduler is None:
        with process_pool(options.jobs) as executor:
            yield executor
        return
    resources = {name: amount for given in options.resources or () for name, amount in given.items()}
    with dask_cluster(options.scheduler, resources=resources) as executor:
        yield executor


def _report(options: argparse.Namespace) -> None:
    from art_entropic.report import write_report

    for path in write_report(options.out):
        print(path)


def _train(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int

    module, factory = _factory_names(options.estimator)
    positive_int("n-examples", options.n_examples)
    if not 0 <= options.seed < 2**31:
        raise ValueError(f"`seed` must be a whole number in [0, 2**31), got {options.seed}")
    out = options.out or Path("runs") / factory
    # Before the first look: a checkpoint of a run that goes on is no interrupted one.
    with _folder(out):
        _train_in(out, module, factory, options)


def _train_in(out: Path, module: str, factory: str, options: argparse.Namespace) -> None:
    from art_entropic.backends import backend_for
    from art_entropic.trainer import EntropicTrainer

    _check_folder(out, resume=options.resume, force=options.force)
    arrays = load_arrays(options.data, options.seed)
    estimator = _made(module, factory, options.device)
    backend = backend_for(estimator)
    arrays = _checked(arrays, estimator)
    kept, held = _validation_split(len(arrays.x_train), options.validation_split, options.seed)
    trainer = EntropicTrainer(
        estimator, options.eps, measure=options.measure, beta=options.beta, k=options.k, verbose=not options.quiet
    )
    checkpoint = out / CHECKPOINT
    if options.resume:
        trainer.resume(checkpoint)
    before = backend.state()
    history = trainer.fit(
        arrays.x_train[kept],
        arrays.y_train[kept],
        batch_size=options.batch_size,
        nb_epochs=options.epochs,
        validation_data=(arrays.x_train[held], arrays.y_train[held]) if len(held) else None,
        seed=options.seed,
        checkpoint=checkpoint,
    )
    weights = _save(out, backend, history, options.estimator)
    checkpoint.unlink(missing_ok=True)
    after = backend.state()
    for title, state in (("before", before), ("after", after)):
        backend.load_state(state)
        print(f"{title + ':':8}{_described(_attacked(estimator, arrays, options))}")
    print(f"weights: {weights}\n{_how_to_load(options.estimator, weights)}")


def _evaluate(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int
    from art_entropic.evaluation import evaluate
    from art_entropic.files import write_whole

    module, factory = _factory_names(options.estimator)
    others = {text: _factory_names(text, "transfer-from") for text in options.transfer_from}
    n = positive_int("n-examples", options.n_examples)
    out = options.out or Path("runs") / f"{factory}-evaluation"
    x, y = load_test_arrays(options.data)
    estimator = _made(module, factory, options.device)
    with _folder(out):
        result = evaluate(
            estimator,
            x[:n],
            y[:n],
            options.eps,
            norm=options.norm,
            battery=options.battery,
            seeds=options.seeds,
            checks=not options.no_checks,
            cascade=not options.no_cascade,
            measure=options.measure,
            transfer_from={text: _made(*names, options.device, "transfer-from") for text, names in others.items()},
            curve_eps=options.curve,
            folder=out / "attacks",
            verbose=not options.quiet,
        )
        write_whole(out / POINTS, result.to_frame().to_csv(index=False).encode())
        write_whole(out / EVALUATION, _indented_json(result.summary()))
    _print_evaluation(result)
    if not options.quiet:
        print(f"result: {out / EVALUATION}, one row for each point and attack: {out / POINTS}", file=sys.stderr)


def _analyse(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int
    from art_entropic.analysis import information_profile
    from art_entropic.files import write_whole

    named = dict(_named_factory(text) for text in options.estimator)
    if len(named) < len(options.estimator):
        raise ValueError(f"`estimator` must have another name each time, got {', '.join(options.estimator)}")
    n = positive_int("n-examples", options.n_examples)
    out = options.out or Path("runs") / "analysis"
    x, y = load_test_arrays(options.data)
    estimators = {name: _made(*names, options.device) for name, names in named.items()}
    with _folder(out):
        profile = information_profile(
            estimators,
            x[:n],
            y[:n],
            eps=options.eps,
            measures=options.measures,
            layers=options.layers,
            resolution=options.resolution,
            batch_size=options.batch_size,
            seed=options.seed,
            verbose=not options.quiet,
        )
        write_whole(out / PROFILE, _indented_json(profile.summary()))
        written = [out / PROFILE, *_profile_files(profile, out)]
    _print_profile(profile)
    if not options.quiet:
        print(f"result: {', '.join(map(str, written))}", file=sys.stderr)


def _indented_json(summary: object) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"


def _profile_files(profile: InformationProfile, out: Path) -> list[Path]:
    """Table and figure, as far as pandas and matplotlib are installed."""
    import importlib.util

    from art_entropic.analysis import PROFILE_MEASURES
    from art_entropic.files import replacing, write_whole

    written = []
    if importlib.util.find_spec("pandas") is not None:
        write_whole(out / LAYERS, profile.to_frame().to_csv(index=False).encode())
        written.append(out / LAYERS)
    drawn = [name for name in profile.drawable if PROFILE_MEASURES[name].transmitted]
    if drawn and importlib.util.find_spec("matplotlib") is not None:
        with replacing(out / FIGURE, Path(FIGURE).suffix) as temporary:
            profile.plot(drawn).savefig(temporary)
        written.append(out / FIGURE)
    if len(written) < 1 + bool(drawn):
        print(f"{PROGRAM}: table and figure need pandas and matplotlib: pip install 'art-entropic[plot]'", file=sys.stderr)
    return written


def _print_profile(profile: InformationProfile) -> None:
    """One table a measure: layers down, networks across."""
    from rich.console import Console
    from rich.table import Table

    from art_entropic.analysis import PROFILE_MEASURES

    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    for name, measure in PROFILE_MEASURES.items():
        rows = [row for row in profile.rows if row.measure == name]
        if not rows:
            continue
        where = " per unit" if measure.by_unit and not measure.of_network else ""
        table = Table(title=f"{measure.title} [{measure.unit}{where}]", title_justify="left", box=None, pad_edge=False)
        table.add_column("layer")
        for model in profile.models:
            table.add_column(model, justify="right")
        places = dict.fromkeys((row.position, row.layer) for row in rows)
        for position, layer in sorted(places):
            here = {row.model: row for row in rows if (row.position, row.layer) == (position, layer)}
            table.add_row(layer or "network", *(_reading(here.get(model), measure.by_unit) for model in profile.models))
        console.print(table)
        for reason in dict.fromkeys(row.reason for row in rows if row.reason):
            console.print(f"  -: {reason}")
        console.print()
    for note in profile.notes:
        console.print(note)


def _reading(row: ProfileRow | None, by_unit: bool) -> str:
    if row is None or row.value is None:
        return "-"
    units = (row.units or 1) if by_unit else 1
    ends = [f"{float(end) / units:.4g}" for end in (row.low, row.high) if end is not None]
    return f"{float(row.value) / units:.4g}" + (f" [{', '.join(ends)}]" if ends else "")


def _named_factory(text: str) -> tuple[str, tuple[str, str]]:
    name, separator, names = text.rpartition("=")
    module, factory = _factory_names(names)
    return (name if separator else factory), (module, factory)


def _print_evaluation(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    attacks = Table("attack", "points", "broken", "seconds", "remark", box=None, pad_edge=False)
    for one in result.attacks:
        attacks.add_row(one.attack, str(one.attacked), str(one.broken), f"{one.seconds:.1f}", one.error or one.skipped or "")
    console.print(attacks)
    if result.checks:
        checks = Table("check", "status", "value", "threshold", "n", "remark", box=None, pad_edge=False)
        for check in result.checks:
            numbers = ["" if one is None else f"{one:.3g}" for one in (check.value, check.threshold)]
            remark = check.reason or (f"{check.meaning}: {check.advice}" if check.advice else "")
            checks.add_row(check.title, check.status, *numbers, str(check.n), remark)
        console.print()
        console.print(checks)
    for point in result.curve:
        print(f"eps {point.eps:g}: robust {_share(point.robust)}")
    print()
    print(result)


class _Command(NamedTuple):
    summary: str
    description: str
    again: str  # how to go on after Ctrl-C
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]  # exit code, None for 0


_COMMANDS: dict[str, _Command] = {
    "benchmark": _Command(
        "train and attack entropic retraining beside ART's trainers",
        "Trains every defence from the same natural weights, attacks each and writes records, table and report into "
        "one folder. Interrupted, the same command goes on where it was.",
        "The same command goes on where it was.",
        _add_benchmark_arguments,
        _benchmark,
    ),
    "train": _Command(
        "retrain your own ART estimator on your own data",
        "Retrains the estimator that a function of yours returns, saves its weights in the framework's own safe "
        "format and prints clean, robust (quick attack) and certified accuracy before and after.",
        "The same command with --resume goes on after the last finished epoch.",
        _add_train_arguments,
        _train,
    ),
    "evaluate": _Command(
        "attack your own ART estimator, and look for reasons not to believe the result",
        "Attacks the estimator that a function of yours returns with a battery of ART's attacks, certifies it where its layers "
        "allow, runs sanity checks and prints a verdict. Interrupted, the same command goes on with the next attack.",
        "The same command goes on with the next attack.",
        _add_evaluate_arguments,
        _evaluate,
    ),
    "analyse": _Command(
        "see, layer by layer, where the information goes in your own ART estimators",
        "Reads what perturbations, data and labels leave in each layer of the estimators that functions of yours return, and "
        "writes table, records and figure into one folder.",
        "The same command does it again.",
        _add_analyse_arguments,
        _analyse,
    ),
    "compare": _Command(
        "see what changed between two benchmarks",
        "Compares robust accuracies cell by cell, paired by test point, and can fail a CI job where one fell.",
        "The same command does it again.",
        _add_compare_arguments,
        _compare,
    ),
    "report": _Command(
        "rebuild the report of a folder from its records",
        "Writes report.md and report.html from records.jsonl alone, without a model or a framework.",
        "The same command does it again.",
        _add_report_arguments,
        _report,
    ),
}


# --------------------------------------------------------------------------------------------------------------- train


class Arrays(NamedTuple):
    """A user's data: inputs in the estimator's own layout and units, labels."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_arrays(path: Path, seed: int) -> Arrays:
    """Arrays of an .npz file: x_train, y_train, x_test, y_test, or x, y with a seeded fifth as test data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an .npz of plain arrays, or an array is missing.
    """
    from art_entropic.benchmark import hold_out

    found = _plain_arrays(path)
    if set(Arrays._fields) <= set(found):
        return Arrays(**{name: found[name] for name in Arrays._fields})
    x, y = _labelled(path, found, ("x", "y"), "x_train, y_train, x_test, y_test, or x and y")
    train, test = hold_out(len(x), TEST_SHARE, seed)
    return Arrays(x[train], y[train], x[test], y[test])


def load_test_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test points of an .npz file: x_test and y_test, or x and y.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an .npz of plain arrays, or an array is missing.
    """
    found = _plain_arrays(path)
    names = ("x_test", "y_test") if "x_test" in found else ("x", "y")
    return _labelled(path, found, names, "x_test and y_test, or x and y")


def _plain_arrays(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"`data` must be an .npz file, got {path}, which does not exist")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"`data` must be an .npz file with named arrays, got {path}, which is none")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    # NumPy's ValueError asks to trust pickles: refused. Zip files know more compressions than Python does.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError) as error:
        reason = str(error).partition(".")[0]
        raise ValueError(f"`data` must hold plain arrays of numbers, got {path}: {reason}") from error
    for name, array in found.items():  # NumPy hands what is no array on as bytes
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise ValueError(f"`data` must hold arrays with one row for each example, got {name} in {path}, which is none")
    return found


def _labelled(path: Path, found: dict[str, np.ndarray], names: tuple[str, str], wish: str) -> tuple[np.ndarray, np.ndarray]:
    if not set(names) <= set(found):
        raise ValueError(f"`data` must hold {wish}; {path} has {', '.join(found) or 'nothing'}")
    x, y = (found[name] for name in names)
    if len(x) != len(y):
        raise ValueError(f"`data` must hold one label for each example, got {names[0]} {x.shape} and {names[1]} {y.shape}")
    return x, y


def _checked(arrays: Arrays, estimator: Any) -> Arrays:
    from art_entropic._validate import check_inputs, check_labels

    def inputs(name: str) -> np.ndarray:
        return check_inputs(
            getattr(arrays, name), input_shape=estimator.input_shape, clip_values=estimator.clip_values, name=name
        )

    def labels(name: str, n: int) -> np.ndarray:
        return check_labels(getattr(arrays, name), n=n, nb_classes=estimator.nb_classes, name=name)

    x_train, x_test = inputs("x_train"), inputs("x_test")
    return Arrays(x_train, labels("y_train", len(x_train)), x_test, labels("y_test", len(x_test)))


def _validation_split(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    from art_entropic.benchmark import hold_out

    if not 0 <= share < 1:
        raise ValueError(f"`validation-split` must be a share from 0 to below 1, got {share!r}")
    return (np.arange(n), np.arange(0)) if share == 0 else hold_out(n, share, seed)


def _factory_names(text: str, option: str = "estimator") -> tuple[str, str]:
    module, separator, factory = text.partition(":")
    if module.endswith(".py") or "/" in module:
        name = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"`{option}` must name a module and not its file: write {name}:{factory or 'FACTORY'}, got {text!r}")
    if not (module and separator and factory) or module.startswith("."):
        raise ValueError(f"`{option}` must be module:factory, such as mypkg.models:make_classifier, got {text!r}")
    return module, factory


def _made(module: str, factory: str, device: str | None = None, option: str = "estimator") -> Any:
    """The user's estimator on that device, None where it is. The current folder is searched first, as by ``python -m``.

    Raises:
        ValueError: module or function is not there, or either fails or leaves; the message says how, and where.
    """
    from art_entropic.backends import move_to

    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), factory, None)
    except (Exception, SystemExit) as error:  # a script that ends by `sys.exit` would end this command as if all were well
        raise ValueError(f"`{option}` {module}:{factory} could not be imported: {_told(error)}") from error
    if not callable(function):
        raise ValueError(f"`{option}` must name a function of {module}, got {factory!r}, which it has not")
    try:
        estimator = function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"`{option}` {module}:{factory}() failed with {_told(error)}") from error
    return estimator if device is None else move_to(estimator, device)


def _told(error: BaseException) -> str:
    """Type, message and place of an error of the user's own code, in one line."""
    message = " ".join(str(error).split())
    return type(error).__name__ + (f": {message}" if message else "") + _place(error)


def _place(error: BaseException) -> str:
    """The innermost line of the user's own, since the ones below it are the inside of a package."""
    if isinstance(error, SyntaxError):  # its text names the place, and the frames are Python's own
        return ""
    importing = ("<frozen ", importlib.__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if not frame.filename.startswith(importing)]
    packages = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib"))
    own = [frame for frame in frames if not frame.filename.startswith(packages)]
    return next((f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in reversed(own or frames)), "")


def _check_folder(out: Path, *, resume: bool, force: bool) -> None:
    checkpoint = out / CHECKPOINT
    if resume:
        if not checkpoint.exists():
            raise ValueError(f"`--resume` needs an interrupted retraining, {out} has no {CHECKPOINT}")
        return
    if force:
        return
    if checkpoint.exists():
        raise ValueError(f"`out` {out} holds an interrupted retraining: --resume goes on with it, --force starts over")
    if any(out.glob(f"{WEIGHTS}.*")):
        raise ValueError(f"`out` {out} holds weights already: choose another folder, or --force to replace them")


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make a folder and hold it, and take it away again where an error leaves it empty."""
    from art_entropic.files import LOCK, alone_in

    if out.exists() and not out.is_dir():
        raise ValueError(f"`out` must be a folder, got the file {out}")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with alone_in(out):
            yield
    finally:
        if made and [file.name for file in out.iterdir()] == [LOCK]:
            (out / LOCK).unlink()
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def _save(out: Path, backend: Any, history: History, estimator: str) -> Path:
    import msgspec

    from art_entropic.files import replacing, write_whole

    out.mkdir(parents=True, exist_ok=True)
    weights = out / f"{WEIGHTS}{backend.weights_suffix}"
    with replacing(weights, backend.weights_suffix) as temporary:
        backend.save_weights(temporary)
    lines = b"".join(msgspec.json.encode(epoch) + b"\n" for epoch in history.epochs)
    write_whole(out / HISTORY, lines)
    write_whole(out / README, f"{_how_to_load(estimator, weights)}\n".encode())
    return weights


def _how_to_load(estimator: str, weights: Path) -> str:
    module, factory = _factory_names(estimator)
    return (
        f"load:    from {module} import {factory}; from art_entropic import load_weights; "
        f"classifier = load_weights({factory}(), {str(weights)!r})"
    )


def _attacked(estimator: Any, arrays: Arrays, options: argparse.Namespace) -> Evaluation:
    from art_entropic.evaluation import evaluate

    n = options.n_examples
    return evaluate(
        estimator,
        arrays.x_test[:n],
        arrays.y_test[:n],
        options.eps,
        battery="quick",
        seeds=options.seed,
        checks=False,
        verbose=not options.quiet,
    )


def _share(accuracy: Any) -> str:
    return f"{100 * accuracy.value:.1f} % [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _described(result: Evaluation) -> str:
    certified = f"none ({result.certified_reason})" if result.certified is None else _share(result.certified)
    return (
        f"clean {_share(result.clean)}, robust {_share(result.robust)} (quick battery, an upper bound), "
        f"certified {certified}, n = {result.clean.n}"
    )


if __name__ == "__main__":
    sys.exit(main())
