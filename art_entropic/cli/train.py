"""`art-entropic train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_entropic.measures import Measure
from art_entropic.cli.arguments import add_estimator_arguments, add_norm_argument
from art_entropic.cli.user_code import (
    CHECKPOINT,
    attacked_points,
    check_folder,
    checked,
    described,
    factory_names,
    how_to_load,
    load_arrays,
    made_by,
    out_folder,
    save,
    validation_split,
)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    from art_entropic.measures import MEASURES

    add_estimator_arguments(parser)
    add_norm_argument(parser)
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE.npz",
        help="arrays x_train, y_train, x_test, y_test, or x, y (then a seeded fifth is held out for the test)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for weights and history (default: runs/FACTORY)")
    parser.add_argument("--measure", choices=list(MEASURES), help="default: chosen by the network and eps")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="hyperparameters",
        help="a hyperparameter of --measure, such as beta=0.3 or schedule.ramp=0.2; repeat it",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--batch-size", type=int, default=128, help="default: 128")
    parser.add_argument("--seed", type=int, default=0, help="of splits, shuffling, noise and attacks (default: 0)")
    parser.add_argument(
        "--validation-split", type=float, default=0.1, metavar="SHARE",
        help="share of the training data on which the best epoch is chosen; 0 keeps the last epoch (default: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--n-examples", type=int, default=500, help="test points of the before/after line (default: the first 500)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an interrupted retraining in the same folder")
    again.add_argument("--force", action="store_true", help="start over in a folder that holds weights")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def train_command(options: argparse.Namespace) -> None:
    from art_entropic._validate import positive_int, seed_of

    module, factory = factory_names(options.estimator)
    positive_int("n-examples", options.n_examples)
    seed_of("seed", options.seed)
    out = options.out or Path("runs") / factory
    # Before the first look: a checkpoint of a run that goes on is no interrupted one.
    with out_folder(out):
        _train_in(out, module, factory, options)


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


def _train_in(out: Path, module: str, factory: str, options: argparse.Namespace) -> None:
    from art_entropic.backends.registry import backend_for
    from art_entropic.trainer import EntropicTrainer

    measure = _measure(options)
    check_folder(out, resume=options.resume, force=options.force)
    arrays = load_arrays(options.data, options.seed)
    estimator = made_by(module, factory, options.device)
    backend = backend_for(estimator)
    arrays = checked(arrays, estimator)
    kept, held = validation_split(len(arrays.x_train), options.validation_split, options.seed)
    trainer = EntropicTrainer(estimator, options.eps, measure, norm=options.norm, verbose=not options.quiet)
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
    weights = save(out, backend, history, options.estimator)
    checkpoint.unlink(missing_ok=True)
    after = backend.state()
    for title, state in (("before", before), ("after", after)):
        backend.load_state(state)
        print(f"{title + ':':8}{described(attacked_points(estimator, arrays, options))}")
    print(f"weights: {weights}\n{how_to_load(options.estimator, weights)}")
