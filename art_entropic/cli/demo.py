"""`art-entropic demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from art_entropic.benchmark.plan import BenchmarkPlan
from art_entropic.cli.arguments import PROGRAM, add_quiet_argument
from art_entropic.cli.benchmark import run_and_report

BEFOREHAND = (
    "Trains a small network on the embedded digits, retrains it with EntropicTrainer, attacks both and writes a report: less "
    "than a minute on two free cores."
)
NEXT = f"""next: {PROGRAM} benchmark       # ART's adversarial trainers beside it, under stronger attacks
      {PROGRAM} train --help    # the same for your own network and data"""


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.backends.registry import FRAMEWORKS

    parser.add_argument(
        "--framework", choices=list(FRAMEWORKS), help="framework of the networks (default: the first one that is installed)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / "demo", help="folder of the report (default: runs/demo)")
    add_quiet_argument(parser)


def demo_command(options: argparse.Namespace) -> None:
    plan = demo_plan(options.framework)
    if not options.quiet:
        print(BEFOREHAND, file=sys.stderr)
    page = run_and_report(plan, options.out, quiet=options.quiet)
    print(f"report: {page}")
    if not options.quiet:
        print(NEXT, file=sys.stderr)


def demo_plan(framework: str | None) -> BenchmarkPlan:
    """A benchmark small enough to be waited for, in that framework; None takes the first one that is installed."""
    from art_entropic.backends.registry import installed_frameworks
    from art_entropic.benchmark.plan import BenchmarkPlan
    from art_entropic.palette import NATURAL

    chosen = installed_frameworks()[:1] if framework is None else (framework,)
    return BenchmarkPlan(
        frameworks=chosen or None, defences=(NATURAL, "entropic"), battery="quick", n_examples=200, checks=False
    )
