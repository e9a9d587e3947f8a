"""`art-entropic benchmark` and `report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_entropic.benchmark.plan import BenchmarkPlan
    from art_entropic.benchmark.run import Outlook
from art_entropic.cli.arguments import DEFAULT_BATTERY, DEFAULT_PROBLEM, add_device_argument, names_of, whole_numbers

# Option of the command line -> field of BenchmarkPlan.
PLAN_OPTIONS = {
    "problem": "problem", "network": "network", "framework": "frameworks", "defence": "defences", "battery": "battery",
    "eps": "eps", "seeds": "seeds", "n_examples": "n_examples", "first_example": "first_example",
    "points_per_shard": "points_per_shard", "n_train": "n_train",
    "epochs": "nb_epochs", "epochs_natural": "nb_epochs_natural", "checks": "checks", "profile": "profile",
    "device": "device",
}  # fmt: skip


def _resources(text: str) -> dict[str, float]:
    """Names and amounts of worker resources; whether the amounts make sense is for the cluster to say."""
    found = {}
    for part in names_of(text):
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


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.backends.registry import FRAMEWORKS
    from art_entropic.benchmark.defences import DEFENCES
    from art_entropic.benchmark.problems import PROBLEMS
    from art_entropic.evaluation.attacks import BATTERIES

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
        "--framework", action="append", type=names_of, metavar="NAMES",
        help=f"some of {', '.join(FRAMEWORKS)}; repeat it or use commas (default: every installed one)",
    )  # fmt: skip
    short = ", ".join(name for name, row in DEFENCES.items() if row.default)
    parser.add_argument(
        "--defence", action="append", type=names_of, metavar="NAMES",
        help=f"some of {', '.join(DEFENCES)}; natural always comes along (default: {short})",
    )  # fmt: skip
    parser.add_argument("--battery", choices=list(BATTERIES), help=f"attacks (default: {DEFAULT_BATTERY})")
    parser.add_argument("--eps", type=float, help="Linf radius, the data lie in [0, 1] (default: the problem's own)")
    parser.add_argument(
        "--seeds", action="append", type=whole_numbers, metavar="SEEDS",
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
    add_device_argument(parser)
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


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder of a benchmark")


def benchmark_command(options: argparse.Namespace) -> None:
    from art_entropic.benchmark.plan import default_folder
    from art_entropic.benchmark.run import outlook, run_benchmark
    from art_entropic.report.page import write_report
    from art_entropic.report.tables import print_table

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
    from art_entropic.benchmark.plan import BenchmarkPlan, read_plan

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


@contextmanager
def _executor(options: argparse.Namespace) -> Iterator[Any]:
    """Where the cells run; None is this process."""
    if options.jobs is None and options.scheduler is None:
        yield None
        return
    from art_entropic.benchmark.executors import dask_cluster, process_pool

    if options.scheduler is None:
        with process_pool(options.jobs) as executor:
            yield executor
        return
    resources = {name: amount for given in options.resources or () for name, amount in given.items()}
    with dask_cluster(options.scheduler, resources=resources) as executor:
        yield executor


def report_command(options: argparse.Namespace) -> None:
    from art_entropic.report.page import write_report

    for path in write_report(options.out):
        print(path)
