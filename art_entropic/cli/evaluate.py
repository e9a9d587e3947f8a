"""`art-entropic evaluate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from art_entropic.evaluation.result import Evaluation
from art_entropic.cli.arguments import DEFAULT_BATTERY, add_estimator_arguments, as_share, numbers_of, whole_numbers
from art_entropic.cli.user_code import EVALUATION, POINTS, factory_names, indented_json, load_test_arrays, made_by, out_folder
from art_entropic.report.table import print_on, table_of


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.evaluation.attacks import BATTERIES
    from art_entropic.measures import MEASURES

    add_estimator_arguments(parser)
    parser.add_argument("--data", required=True, type=Path, metavar="FILE.npz", help="arrays x_test and y_test, or x and y")
    parser.add_argument("--norm", choices=["inf", "2", "1"], default="inf", help="default: inf")
    parser.add_argument("--battery", choices=list(BATTERIES), default=DEFAULT_BATTERY, help=f"default: {DEFAULT_BATTERY}")
    parser.add_argument(
        "--seeds", type=whole_numbers, default=[0], metavar="SEEDS",
        help="of the attacks' random numbers, such as 0,1,2; a point has to survive all (default: 0)",
    )  # fmt: skip
    parser.add_argument("--measure", choices=list(MEASURES), help="that it was retrained with, for the attack on it in `full`")
    parser.add_argument(
        "--transfer-from", action="append", default=[], metavar="MODULE:FACTORY",
        help="another classifier, such as the natural or an adversarially trained twin; its adversarial examples are tried too",
    )  # fmt: skip
    parser.add_argument(
        "--curve", type=numbers_of, default=[], metavar="RADII", help="radii of the security curve, such as 0,0.1,0.2,0.3"
    )
    parser.add_argument("--n-examples", type=int, default=1000, help="test points (default: the first 1000)")
    parser.add_argument("--no-checks", action="store_true", help="leave the sanity checks out")
    parser.add_argument("--no-cascade", action="store_true", help="every attack on every point, at a multiple of the time")
    parser.add_argument("--out", type=Path, help="folder for the result (default: runs/FACTORY-evaluation)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def evaluate_command(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int
    from art_entropic.evaluation.curve import security_curve
    from art_entropic.evaluation.evaluate import evaluate
    from art_entropic.files import write_whole

    module, factory = factory_names(options.estimator)
    others = {text: factory_names(text, "transfer-from") for text in options.transfer_from}
    n = positive_int("n-examples", options.n_examples)
    out = options.out or Path("runs") / f"{factory}-evaluation"
    x, y = load_test_arrays(options.data)
    estimator = made_by(module, factory, options.device)
    with out_folder(out):
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
            transfer_from={text: made_by(*names, options.device, "transfer-from") for text, names in others.items()},
            folder=out / "attacks",
            verbose=not options.quiet,
        )
        if options.curve:
            curve = security_curve(
                estimator, x[:n], y[:n], options.curve, options.norm, seed=options.seeds[0], verbose=not options.quiet
            )
            result = result.with_curve(curve)
        write_whole(out / POINTS, result.to_frame().to_csv(index=False).encode())
        write_whole(out / EVALUATION, indented_json(result.summary()))
    _print_evaluation(result)
    if not options.quiet:
        print(f"result: {out / EVALUATION}, one row for each point and attack: {out / POINTS}", file=sys.stderr)


def _print_evaluation(result: Evaluation) -> None:
    attacks = [
        [one.attack, str(one.attacked), str(one.broken), f"{one.seconds:.1f}", one.error or one.skipped or ""]
        for one in result.attacks
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
    for point in result.curve:
        print(f"eps {point.eps:g}: robust {as_share(point.robust)}")
    print()
    print(result)
