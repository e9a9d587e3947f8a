"""`art-entropic evaluate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from art_entropic.benchmark.published_networks import NetworkRecord
    from art_entropic.evaluation.result import Evaluation
    from art_entropic.records import Accuracy
from art_entropic.cli.arguments import (
    DEFAULT_BATTERY,
    PROGRAM,
    TEST_ARRAYS,
    add_estimator_arguments,
    add_norm_argument,
    add_quiet_argument,
    as_share,
    numbers_of,
    whole_numbers,
)
from art_entropic.cli.source import source_of
from art_entropic.cli.user_code import EVALUATION, POINTS, factory_names, indented_json, made_by, out_folder
from art_entropic.report.table import NOTHING, print_on, table_of

N_EXAMPLES = 1000


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.evaluation.attacks import BATTERIES
    from art_entropic.measures import MEASURES

    add_estimator_arguments(parser, TEST_ARRAYS)
    add_norm_argument(parser, more=["1"])
    parser.add_argument(
        "--battery", choices=list(BATTERIES),
        help=f"battery of attacks (default: {DEFAULT_BATTERY}, or the battery that the network was published with)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole_numbers, metavar="SEEDS",
        help="seeds of the attacks, such as 0,1,2; a point has to survive all of them (default: 0, or the published seed)",
    )  # fmt: skip
    parser.add_argument(
        "--measure", choices=list(MEASURES), help="measure that the network was retrained with, which `full` attacks too"
    )
    parser.add_argument(
        "--transfer-from", action="append", default=[], metavar="MODULE:FACTORY",
        help="another classifier, such as the natural or an adversarially trained twin, whose adversarial examples are tried; "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--curve", type=numbers_of, default=[], metavar="RADII", help="radii of the security curve, such as 0,0.1,0.2,0.3"
    )
    parser.add_argument(
        "--n-examples",
        type=int,
        help=f"number of test points (default: {N_EXAMPLES}, or as many as the published numbers are of)",
    )
    parser.add_argument("--no-checks", action="store_true", help="leave the sanity checks out")
    parser.add_argument(
        "--no-cascade", action="store_true", help="send every attack to every point, which takes a multiple of the time"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the result (default: runs/MODULE-FACTORY-evaluation or runs/NAME-evaluation)"
    )
    add_quiet_argument(parser)


def evaluate_command(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int
    from art_entropic.backends.registry import framework_of
    from art_entropic.benchmark.provenance import machine_provenance
    from art_entropic.evaluation.curve import security_curve
    from art_entropic.evaluation.evaluate import evaluate
    from art_entropic.extras import MissingPackageError
    from art_entropic.files import write_whole

    source = source_of(options)
    record = source.published
    others = {text: factory_names(text, "transfer-from") for text in options.transfer_from}
    wanted = options.n_examples if options.n_examples is not None else record.clean.n if record else N_EXAMPLES
    n = positive_int("n-examples", wanted)
    seeds = options.seeds or [record.seed if record else 0]
    out = options.out or Path("runs") / f"{source.name}-evaluation"
    x, y = source.test_points()
    estimator = source.classifier()
    with out_folder(out):
        result = evaluate(
            estimator,
            x[:n],
            y[:n],
            source.eps,
            norm=source.norm,
            battery=options.battery or (record.battery if record else DEFAULT_BATTERY),
            seeds=seeds,
            checks=not options.no_checks,
            cascade=not options.no_cascade,
            measure=options.measure or (record.measure if record else None),
            transfer_from={text: made_by(*names, options.device, "transfer-from") for text, names in others.items()},
            folder=out / "attacks",
            verbose=not options.quiet,
        )
        if options.curve:
            curve = security_curve(
                estimator, x[:n], y[:n], options.curve, source.norm, seed=seeds[0], evaluation=result, verbose=not options.quiet
            )
            result = result.with_curve(curve)
        where = machine_provenance("; ".join(source.how_to_make), [framework_of(estimator)], result.points_sha256)
        write_whole(out / EVALUATION, indented_json({**result.summary(), "provenance": where}))
        written = f"{out / EVALUATION}"
        try:
            write_whole(out / POINTS, result.to_frame().to_csv(index=False).encode())
            written += f", one row for each point and attack: {out / POINTS}"
        except MissingPackageError as error:  # after all the attacks, their result matters more than a table of it
            print(f"{PROGRAM}: no {POINTS}: {error}", file=sys.stderr)
    _print_evaluation(result)
    if record is not None:
        _print_published(record, result)
    if not options.quiet:
        print(f"result: {written}", file=sys.stderr)


def _print_published(record: NetworkRecord, result: Evaluation) -> None:
    """The published numbers beside the new ones, with all that may differ between them."""
    rows = [
        [
            title,
            battery,
            ",".join(map(str, seeds)),
            str(found.clean.n),
            *map(_share, (found.clean, found.robust, found.certified)),
        ]
        for title, battery, seeds, found in (
            ("published", record.battery, [record.seed], record),
            ("now", result.battery, result.seeds, result),
        )
    ]
    headings = ["", "battery", "seeds", "points", "clean", "robust", "certified"]
    print()
    print_on(sys.stdout, table_of(headings, rows, words=["battery"], title=f"{record.name}, L{record.norm} eps {record.eps:g}"))


def _share(accuracy: Accuracy | None) -> str:
    return NOTHING if accuracy is None else as_share(accuracy)


def _print_evaluation(result: Evaluation) -> None:
    attacks = [
        [one.attack, str(one.attacked), str(one.broken), f"{one.seconds:.1f}", one.not_run or ""] for one in result.attacks
    ]
    print_on(sys.stdout, table_of(["attack", "points", "broken", "seconds", "remark"], attacks, words=["remark"]))
    if result.checks:
        checks = []
        for check in result.checks:
            numbers = ["" if one is None else f"{one:.3g}" for one in (check.value, check.threshold)]
            remark = check.reason or (f"{check.meaning}: {check.advice}" if check.advice else "")
            checks.append([check.title, check.status, *numbers, str(check.n), remark])
        print()
        headings = ["check", "status", "value", "threshold", "n", "remark"]
        print_on(sys.stdout, table_of(headings, checks, words=["status", "remark"]))
    if result.curve:
        from art_entropic.evaluation.result import CURVE_BATTERY

        beyond = f"from eps {result.eps:g} on without what fell to {result.battery!r}"
        print(f"\nsecurity curve, battery {CURVE_BATTERY!r}, {beyond}")
    for point in result.curve:
        print(f"eps {point.eps:g}: robust {as_share(point.robust)}")
    print()
    print(result)
