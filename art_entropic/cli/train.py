"""`art-entropic train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_entropic.measures import Measure
from art_entropic.cli.arguments import add_estimator_arguments, add_norm_argument, add_quiet_argument
from art_entropic.cli.source import Source, source_of
from art_entropic.cli.user_code import (
    CHECKPOINT,
    attacked_points,
    check_folder,
    checked,
    described,
    how_to_load,
    out_folder,
    save,
    validation_split,
)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.measures import MEASURES

    add_estimator_arguments(
        parser,
        "arrays x_train, y_train, x_test, y_test, or x, y (without x_test and y_test a seeded fifth of them becomes the test)",
    )
    add_norm_argument(parser)
    parser.add_argument("--out", type=Path, help="folder for weights and history (default: runs/MODULE-FACTORY or runs/NAME)")
    parser.add_argument(
        "--measure", choices=list(MEASURES), help="measure of the information (default: chosen by the network and eps)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="hyperparameters",
        help="a hyperparameter of --measure, such as beta=0.3 or schedule.ramp=0.2; may be repeated",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the retraining (default: 20)")
    parser.add_argument("--batch-size", type=int, default=128, help="points in a batch (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of splits, shuffling, noise and attacks (default: 0)")
    parser.add_argument(
        "--validation-split", type=float, default=0.1, metavar="SHARE",
        help="share of the training data on which the best epoch is chosen; 0 keeps the last epoch (default: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--n-examples", type=int, default=500, help="number of test points that are attacked before and after (default: 500)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an interrupted retraining in the same folder")
    again.add_argument("--force", action="store_true", help="start over in a folder that holds weights")
    add_quiet_argument(parser)


def train_command(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int, seed_of

    source = source_of(options)
    positive_int("n-examples", options.n_examples)
    seed_of("seed", options.seed)
    out = options.out or Path("runs") / source.name
    # Before the first look: a checkpoint of a run that goes on is no interrupted one.
    with out_folder(out):
        _train_in(out, source, options)


def _measure(options: argparse.Namespace) -> Measure | None:
    """The measure of the command line; None leaves the choice to the network and eps."""
    from art_entropic.fields import read_struct, set_value
    from art_entropic.measures import MEASURES

    if options.measure is None:
        if options.hyperparameters:
            told = ", ".join(options.hyperparameters)
            raise ValueError(f"`--set` changes a hyperparameter of a measure and needs --measure, got {told}")
        return None
    values: dict[str, Any] = {}
    for one in options.hyperparameters:
        set_value(values, one)
    measure: Measure = read_struct(MEASURES[options.measure], values)
    return measure


def _train_in(out: Path, source: Source, options: argparse.Namespace) -> None:
    from art_entropic.backends.registry import backend_for
    from art_entropic.trainer import EntropicTrainer

    measure = _measure(options)
    check_folder(out, resume=options.resume, force=options.force)
    arrays = source.arrays(options.seed)
    estimator = source.classifier()
    backend = backend_for(estimator)
    arrays = checked(arrays, estimator)
    kept, held = validation_split(len(arrays.x_train), options.validation_split, options.seed)
    trainer = EntropicTrainer(estimator, source.eps, measure, norm=source.norm, verbose=not options.quiet)
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
    weights = save(out, backend, history, source.how_to_make)
    checkpoint.unlink(missing_ok=True)
    after = backend.state()
    for title, state in (("before", before), ("after", after)):
        backend.load_state(state)
        print(f"{title + ':':8}{described(attacked_points(estimator, arrays, source.eps, source.norm, options))}")
    print(f"weights: {weights}\n{how_to_load(source.how_to_make, weights)}")
