"""The command line: `art-entropic` and its subcommands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from art_entropic import __version__
from art_entropic.cli.analyse import add_analyse_arguments, analyse_command
from art_entropic.cli.arguments import PROGRAM
from art_entropic.cli.benchmark import add_benchmark_arguments, add_report_arguments, benchmark_command, report_command
from art_entropic.cli.compare import add_compare_arguments, compare_command
from art_entropic.cli.demo import add_demo_arguments, demo_command
from art_entropic.cli.evaluate import add_evaluate_arguments, evaluate_command
from art_entropic.cli.train import add_train_arguments, train_command


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=_Formatter)

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
    from art_entropic.backends.errors import NoIntervalRuleError
    from art_entropic.extras import MissingPackageError

    if isinstance(error, (ValueError, TypeError, OSError, MemoryError, MissingPackageError, NoIntervalRuleError)):
        return True
    # Raised only by what is loaded.
    known = (("art_entropic.history", "TrainingDivergedError"), ("art_entropic.evaluation.result", "BatteryError"))
    return any(isinstance(error, getattr(sys.modules[module], name)) for module, name in known if module in sys.modules)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Entropic retraining for ART: robust neural networks without adversarial training.",
        epilog=_examples([f"{PROGRAM} demo"]),
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        epilog = _examples(command.examples)
        sub = commands.add_parser(name, help=command.summary, description=command.description, epilog=epilog)
        if name in words:  # only the command in use reads the tables
            command.add_arguments(sub)
    return parser


def _examples(commands: Sequence[str]) -> str:
    return "\n  ".join(["examples:" if len(commands) > 1 else "example:", *commands])


class _Command(NamedTuple):
    summary: str
    description: str
    examples: tuple[str, ...]  # which run as they stand, in their order
    again: str  # how to go on after Ctrl-C
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]  # exit code, None for 0


_COMMANDS: dict[str, _Command] = {
    "demo": _Command(
        "see it work in less than a minute",
        "Trains a small network on the embedded digits, retrains it with EntropicTrainer, attacks both and writes a report. "
        "Given again, the command shows the same result without doing the work again.",
        ("art-entropic demo", "art-entropic demo --framework tensorflow --out runs/demo-tensorflow"),
        "The same command goes on where it was.",
        add_demo_arguments,
        demo_command,
    ),
    "benchmark": _Command(
        "train and attack entropic retraining beside ART's trainers",
        "Trains every defence from the same natural weights, attacks each and writes records, table and report into "
        "one folder. Interrupted, the same command goes on where it was.",
        (
            "art-entropic benchmark --dry-run",
            "art-entropic benchmark",
            "art-entropic benchmark --framework pytorch --defence entropic,trades --eps 0.1 --seeds 0,1 --out runs/digits-0.1",
        ),
        "The same command goes on where it was.",
        add_benchmark_arguments,
        benchmark_command,
    ),
    "train": _Command(
        "retrain your own ART estimator on your own data",
        "Retrains the estimator that a function of yours returns, or a published network. Saves its weights in the framework's "
        "own safe format and prints clean, robust (quick attack) and certified accuracy before and after.",
        (
            "art-entropic train --network digits-natural --out runs/retrained",
            "art-entropic train --network digits-natural --measure interval --set beta=0.3 --epochs 40 --out runs/interval",
        ),
        "The same command with --resume goes on after the last finished epoch.",
        add_train_arguments,
        train_command,
    ),
    "evaluate": _Command(
        "attack your own ART estimator, and look for reasons not to believe the result",
        "Attacks the estimator that a function of yours returns, or a published network, with a battery of ART's attacks. "
        "Certifies it where its layers allow, runs sanity checks and prints a verdict. Interrupted, the same command goes on "
        "with the next attack.",
        (
            "art-entropic evaluate --network digits-entropic",
            "art-entropic evaluate --network digits-natural --battery quick --n-examples 100 --no-checks --curve 0,0.1,0.2",
        ),
        "The same command goes on with the next attack.",
        add_evaluate_arguments,
        evaluate_command,
    ),
    "analyse": _Command(
        "see, layer by layer, where the information goes in your own ART estimators",
        "Reads what perturbations, data and labels leave in each layer of the estimators that functions of yours return, or of "
        "published networks. Writes table, records and figure into one folder.",
        (
            "art-entropic analyse --network digits-natural --network digits-entropic",
            "art-entropic analyse --network digits-entropic-tensorflow --measures interval,noise --out runs/tensorflow",
        ),
        "The same command does it again.",
        add_analyse_arguments,
        analyse_command,
    ),
    "compare": _Command(
        "see what changed between two benchmarks",
        "Compares robust accuracies cell by cell, paired by test point, and can fail a CI job where one fell.",
        (
            "art-entropic benchmark --framework pytorch --defence entropic --out runs/before",
            "art-entropic benchmark --framework pytorch --defence entropic --epochs 20 --out runs/after",
            "art-entropic compare runs/before runs/after --fail",
        ),
        "The same command does it again.",
        add_compare_arguments,
        compare_command,
    ),
    "report": _Command(
        "rebuild the report of a folder from its records",
        "Writes report.md and report.html from records.jsonl alone, without a model or a framework.",
        ("art-entropic demo --out runs/demo", "art-entropic report runs/demo"),
        "The same command does it again.",
        add_report_arguments,
        report_command,
    ),
}
