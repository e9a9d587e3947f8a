"""`art-entropic benchmark` and `report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from art_entropic.benchmark.costs import Costs
    from art_entropic.benchmark.plan import BenchmarkPlan
    from art_entropic.benchmark.run import CellStatus
    from art_entropic.fields import FieldSpec
from art_entropic.cli.arguments import add_quiet_argument, names_of
from art_entropic.report.table import NOTHING, print_on, table_of


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


# Options of a plan's fields; every field that is not named here says what to compare.
_ATTACK = {"battery", "n_examples", "first_example", "points_per_shard", "checks", "profile"}
_WHERE = {"device"}


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.benchmark.plan import plan_options

    compared, attack, where, output = map(
        parser.add_argument_group, ("what to compare", "how to attack", "where to run", "output")
    )
    compared.add_argument("--plan", type=Path, metavar="FILE.toml", help="read what to compare from a file, not from options")
    compared.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a value of the plan file, such as eps=0.1 or variants.0.nb_epochs=3; may be repeated",
    )  # fmt: skip
    for name, spec in plan_options().items():
        _add_option(attack if name in _ATTACK else where if name in _WHERE else compared, name, spec)
    workers = where.add_mutually_exclusive_group()
    workers.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="run cells in N processes, each with its own cores (default: one process for each framework)",
    )
    workers.add_argument("--scheduler", metavar="ADDRESS", help="run cells on a Dask cluster, such as tcp://host:8786")
    where.add_argument(
        "--resources", action="append", type=_resources, metavar="NAME=NUMBER",
        help="reserve resources of a worker of the Dask cluster for each cell, such as GPU=1; may be repeated, or separated by "
        "commas",
    )  # fmt: skip
    output.add_argument(
        "--out", type=Path, help="write records, weights and report to this folder (default: runs/PROBLEM or runs/PLAN)"
    )
    output.add_argument(
        "--results", type=Path, metavar="FILE.jsonl",
        help="write the records to this file too, when all is done; what it holds already is not done again, and its other "
        "rows stay",
    )  # fmt: skip
    output.add_argument("--dry-run", action="store_true", help="list the cells and what is left to do, and do nothing")
    add_quiet_argument(output)


def _add_option(parser: argparse._ActionsContainer, name: str, spec: FieldSpec) -> None:
    """The option of a field of BenchmarkPlan; whether a value is a good one, its spec says when the plan is made."""
    option = str(spec.option)
    if spec.annotation is bool:
        parser.add_argument(option, dest=name, action="store_const", const="false", help=f"leave out {spec.description}")
        return
    choices = None if spec.member or spec.choices is None else list(spec.choices)
    known = "" if spec.is_optional else f" (default: {','.join(map(str, spec.default)) if spec.member else spec.default})"
    parser.add_argument(
        option, dest=name, action="append" if spec.member else "store", choices=choices,
        metavar=None if choices else name.upper(),
        help=f"{spec.description}{known}{'; may be repeated, or separated by commas' if spec.member else ''}",
    )  # fmt: skip


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder of a benchmark")


def benchmark_command(options: argparse.Namespace) -> None:
    from art_entropic.benchmark.costs import costs_like
    from art_entropic.benchmark.plan import check_device, default_folder, resolved
    from art_entropic.benchmark.run import cell_status

    if options.resources and options.scheduler is None:
        raise ValueError(f"`--resources` needs --scheduler, the address of a Dask cluster, got {options.resources!r} alone")
    plan = _plan(options)
    out = options.out or default_folder(plan)
    if options.dry_run:
        _print_status(cell_status(plan, out, options.results), _n_processes(options, plan), costs_like(resolved(plan)))
        return
    with _executor(options, plan) as executor:
        if executor is None:
            check_device(resolved(plan))
        Path(out).mkdir(parents=True, exist_ok=True)  # where that fails, nothing need be told
        if not options.quiet:
            cells = cell_status(plan, out, options.results)
            _tell_beforehand(cells, _n_processes(options, plan), costs_like(resolved(plan)))
        page = run_and_report(plan, out, results=options.results, executor=executor, quiet=options.quiet)
    if not options.quiet:
        print(f"report: {page}", file=sys.stderr)


def run_and_report(
    plan: BenchmarkPlan, out: Path, *, results: Path | None = None, executor: Executor | None = None, quiet: bool
) -> Path:
    """Run a benchmark, print its tables and write its report; returns the HTML page."""
    from art_entropic.benchmark.run import run_benchmark
    from art_entropic.report.page import write_report
    from art_entropic.report.tables import print_table

    records = run_benchmark(plan, out, results=results, executor=executor, verbose=not quiet)
    _, page = write_report(out)
    print_table(records, sys.stdout)
    return page


def _plan(options: argparse.Namespace) -> BenchmarkPlan:
    from art_entropic.benchmark.plan import plan_of, plan_options, read_plan

    given = {name: value for name in plan_options() if (value := getattr(options, name)) is not None}
    if options.plan is not None:
        if given:
            names = ", ".join(str(plan_options()[name].option) for name in given)
            raise ValueError(f"`--plan` must be given alone, since its file says what to compare, got {names} with it")
        return read_plan(options.plan, options.overrides)
    if options.overrides:
        raise ValueError(f"`--set` changes a value of a plan file and needs --plan, got {', '.join(options.overrides)}")
    return plan_of({name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()})


def _side_by_side(options: argparse.Namespace, plan: BenchmarkPlan) -> Sequence[str]:
    """The frameworks that run in a process each, where nothing else was asked for and each can have a core."""
    from art_entropic.benchmark.plan import resolved
    from art_entropic.benchmark.provenance import available_cores

    if options.jobs is not None or options.scheduler is not None:
        return ()
    frameworks = resolved(plan).frameworks
    return frameworks if 1 < len(frameworks) <= available_cores() else ()


def _n_processes(options: argparse.Namespace, plan: BenchmarkPlan) -> int:
    return options.jobs or max(1, len(_side_by_side(options, plan)))


def _tell_beforehand(cells: Sequence[CellStatus], n_processes: int, costs: Costs | None) -> None:
    if any(cell.is_left for cell in cells):
        print(_expected(cells, n_processes, costs), file=sys.stderr)


def _expected(cells: Sequence[CellStatus], n_processes: int, costs: Costs | None) -> str:
    """How much is left, and how long it takes: as long as the framework that takes longest, or a fair share of all."""
    left = [cell for cell in cells if cell.is_left]
    known = [(cell.framework, cell.seconds) for cell in left if cell.seconds is not None]
    each = [sum(seconds for framework, seconds in known if framework == one) for one in {cell.framework for cell in left}]
    total = sum(each)
    seconds = max(total / n_processes, max(each, default=0.0) if n_processes == len(each) else 0.0)
    unknown = len(left) - len(known)
    told = f"{len(left)} of {len(cells)} cells to do"
    if known:
        told += f", about {lasting(seconds)}" + f" and {unknown} of unknown length" * bool(unknown)
    else:
        told += "; how long they take is not known" * bool(left)
    if n_processes > 1:
        told += f" in {n_processes} processes"
    if not total or costs is None:
        return told
    return f"{told} (for what this folder has no times of: as on one core of {costs.processor}, {costs.created[:10]})"


def lasting(seconds: float) -> str:
    """A length of time in the units in which one waits.

    >>> lasting(99.6), lasting(1500.0), lasting(9000.0)
    ('100 s', '25 min', '2 h 30 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _print_status(cells: Sequence[CellStatus], n_processes: int, costs: Costs | None) -> None:
    rows = []
    for cell in cells:
        seconds = "" if not cell.is_left else "unknown" if cell.seconds is None else lasting(cell.seconds)
        rows.append([cell.title, NOTHING if cell.state == "done" else cell.state, seconds])
    print_on(sys.stdout, table_of(["cell", "to do", "takes about"], rows, words=["to do"]))
    print(_expected(cells, n_processes, costs))


@contextmanager
def _executor(options: argparse.Namespace, plan: BenchmarkPlan) -> Iterator[Any]:
    """Where the cells run; None is this process."""
    from art_entropic.benchmark.executors import dask_cluster, process_pool, side_by_side

    frameworks = _side_by_side(options, plan)
    if frameworks:
        with side_by_side(frameworks) as executor:
            yield executor
        return
    if options.jobs is None and options.scheduler is None:
        yield None
        return
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
