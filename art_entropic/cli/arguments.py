"""Words and arguments that several subcommands share."""

from __future__ import annotations

import argparse
from typing import Any

PROGRAM = "art-entropic"
DEFAULT_BATTERY = "standard"


def names_of(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


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


def add_device_argument(parser: argparse.ArgumentParser) -> None:
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


def add_norm_argument(parser: argparse.ArgumentParser) -> None:
    from art_entropic._validate import NORMS, norm_name

    parser.add_argument(
        "--norm", choices=[norm_name(norm) for norm in NORMS], default="inf", help="of the perturbations (default: inf)"
    )


def add_estimator_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--estimator", required=True, metavar="MODULE:FACTORY",
        help="a function without arguments that returns a trained ART estimator. Its module is looked for in the "
        "current folder first; this is the only place where code of yours runs",
    )  # fmt: skip
    parser.add_argument("--eps", required=True, type=float, help="radius of the perturbations, in the units of the data")
    add_device_argument(parser)


def as_share(accuracy: Any) -> str:
    return f"{100 * accuracy.value:.1f} % [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
