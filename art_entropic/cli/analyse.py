"""`art-entropic analyse`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from art_entropic.analysis.profile import InformationProfile
    from art_entropic.records import ProfileRow
from art_entropic.cli.arguments import (
    PROGRAM,
    TEST_ARRAYS,
    add_data_arguments,
    add_device_argument,
    add_norm_argument,
    add_quiet_argument,
    names_of,
)
from art_entropic.cli.source import Source, of_one_kind, own, published
from art_entropic.cli.user_code import FIGURE, LAYERS, PROFILE, indented_json, named_factory, out_folder
from art_entropic.report.table import NOTHING, Table, print_on, table_of


def add_analyse_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.analysis.readings import PROFILE_MEASURES
    from art_entropic.benchmark.published_networks import list_networks

    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--estimator", action="append", metavar="NAME=MODULE:FACTORY",
        help="a function without arguments that returns a trained ART estimator, and a name for it; may be repeated to "
        "compare several, such as natural=models:make and entropic=models:load. Its module is looked for in the current folder "
        "first; this is the only place where your own code runs",
    )  # fmt: skip
    which.add_argument(
        "--network", action="append", metavar="NAME",
        help="a published network, with its own data, eps and norm; may be repeated to compare several: "
        f"{', '.join(list_networks())}",
    )  # fmt: skip
    add_data_arguments(parser, TEST_ARRAYS)
    add_norm_argument(parser)
    parser.add_argument(
        "--measures", type=names_of, metavar="NAMES", help=f"some of {', '.join(PROFILE_MEASURES)} (default: all)"
    )
    parser.add_argument(
        "--layers", type=names_of, metavar="NAMES", help="names of layers, or input, separated by commas (default: all)"
    )
    parser.add_argument(
        "--resolution", type=float, default=0.1, help="resolution of the reading, as a share of a layer's spread (default: 0.1)"
    )
    parser.add_argument("--n-examples", type=int, default=1000, help="number of test points (default: 1000)")
    parser.add_argument("--batch-size", type=int, default=256, help="points in a batch; memory grows with it (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the perturbations (default: 0)")
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, help="folder for records and figure (default: runs/analysis)")
    add_quiet_argument(parser)


def analyse_command(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int
    from art_entropic.analysis.profile import information_profile
    from art_entropic.files import write_whole

    named = _sources(options)
    first = next(iter(named.values()))
    n = positive_int("n-examples", options.n_examples)
    out = options.out or Path("runs") / "analysis"
    x, y = first.test_points()
    estimators = {name: source.classifier() for name, source in named.items()}
    with out_folder(out):
        profile = information_profile(
            estimators,
            x[:n],
            y[:n],
            eps=first.eps,
            norm=first.norm,
            measures=options.measures,
            layers=options.layers,
            resolution=options.resolution,
            batch_size=options.batch_size,
            seed=options.seed,
            verbose=not options.quiet,
        )
        write_whole(out / PROFILE, indented_json(profile.summary()))
        written = [out / PROFILE, *_profile_files(profile, out)]
    _print_profile(profile)
    if not options.quiet:
        print(f"result: {', '.join(map(str, written))}", file=sys.stderr)


def _sources(options: argparse.Namespace) -> dict[str, Source]:
    """The networks to compare, each under its name; all of the same data and the same ball.

    Raises:
        ValueError: a name comes twice, or the networks are not of one kind.
    """
    if options.network is not None:
        networks = [published(name, options) for name in dict.fromkeys(options.network)]
        of_one_kind(networks)
        return {network.name: network for network in networks}
    named: dict[str, Source] = {}
    for text in options.estimator:
        name, (module, factory) = named_factory(text)
        if name in named:
            raise ValueError(f"`estimator` must have a different name each time, got {', '.join(options.estimator)}")
        named[name] = own(f"{module}:{factory}", options)
    return named


def _profile_files(profile: InformationProfile, out: Path) -> list[Path]:
    """Table and figure, as far as pandas and matplotlib are installed."""
    import importlib.util

    from art_entropic.analysis.readings import PROFILE_MEASURES
    from art_entropic.extras import install_command
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
        print(f"{PROGRAM}: table and figure need pandas and matplotlib: {install_command('plot')}", file=sys.stderr)
    return written


def _print_profile(profile: InformationProfile) -> None:
    """One table a measure: layers down, networks across."""
    from art_entropic.analysis.readings import PROFILE_MEASURES

    for name in PROFILE_MEASURES:
        rows = [row for row in profile.rows if row.measure == name]
        if rows:
            print_on(sys.stdout, _measured(name, rows, profile.models))
            print()
    for note in profile.notes:
        print(note)


def _measured(name: str, rows: Sequence[ProfileRow], models: Sequence[str]) -> Table:
    """What a measure reads: layers down, networks across."""
    from art_entropic.analysis.figures import label_of
    from art_entropic.analysis.readings import PROFILE_MEASURES

    measure = PROFILE_MEASURES[name]
    where = " per unit" if measure.by_unit and not measure.of_network else ""
    found = {(row.position, label_of(row), row.model): row for row in rows}
    lines = [
        [layer or "network", *(_reading(found.get((position, layer, model)), measure.by_unit) for model in models)]
        for position, layer in sorted({(row.position, label_of(row)) for row in rows})
    ]
    reasons = dict.fromkeys(f"{NOTHING}: {row.reason}" for row in rows if row.reason)
    return table_of(["layer", *models], lines, title=f"{measure.title} [{measure.unit}{where}]", notes=reasons)


def _reading(row: ProfileRow | None, by_unit: bool) -> str:
    if row is None or row.value is None:
        return NOTHING
    units = (row.units or 1) if by_unit else 1
    ends = [f"{float(end) / units:.4g}" for end in (row.low, row.high) if end is not None]
    return f"{float(row.value) / units:.4g}" + (f" [{', '.join(ends)}]" if ends else "")
