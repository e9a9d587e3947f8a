"""Words and arguments that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = "art-entropic"
DEFAULT_BATTERY = "standard"
DEFAULT_NORM = "inf"
TEST_ARRAYS = "arrays x_test and y_test, or x and y"


def names_of(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"must name at least one, got {text!r}")
    return names


def whole_numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in names_of(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 0,1,2, got {text!r}") from None


def numbers_of(text: str) -> list[float]:
    try:
        return [float(name) for name in names_of(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 0,0.1,0.2, got {text!r}") from None


def add_device_argument(parser: argparse._ActionsContainer) -> None:
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


def add_norm_argument(parser: argparse.ArgumentParser, more: Sequence[str] = ()) -> None:
    """The norms of every measure, and those that only attacks know."""
    from art_entropic._validate import NORMS, norm_name

    names = [*(norm_name(norm) for norm in NORMS), *more]
    parser.add_argument("--norm", choices=names, help=f"norm of the perturbations (default: {DEFAULT_NORM})")


def add_estimator_arguments(parser: argparse.ArgumentParser, data: str) -> None:
    """What a command is about: the user's own estimator with --data, --eps and --norm, or a published network.

    Args:
        data: which arrays the file has to hold.
    """
    from art_entropic.benchmark.published_networks import list_networks

    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--estimator", metavar="MODULE:FACTORY",
        help="a function without arguments that returns a trained ART estimator. Its module is looked for in the "
        "current folder first; this is the only place where your own code runs",
    )  # fmt: skip
    which.add_argument(
        "--network", metavar="NAME",
        help=f"a published network, with its own data, eps and norm: {', '.join(list_networks())}",
    )  # fmt: skip
    add_data_arguments(parser, data)
    add_device_argument(parser)


def add_data_arguments(parser: argparse.ArgumentParser, data: str) -> None:
    """The data of the user's own estimator, and the radius.

    Args:
        data: which arrays the file has to hold.
    """
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help=f"{data}; goes with --estimator")
    parser.add_argument(
        "--eps", type=float, help="radius of the perturbations, in the units of the data; goes with --estimator"
    )


def add_quiet_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def as_share(accuracy: Any) -> str:
    return f"{100 * accuracy.value:.1f} % [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
