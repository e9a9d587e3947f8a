"""Put networks of a finished run among those that `load_network` gives.

    python benchmarks/publish_network.py results/digits-networks.jsonl runs/digits-networks \
        digits-natural=pytorch:natural digits-entropic=pytorch:entropic digits-entropic-tensorflow=tensorflow:entropic

The records are those of `art-entropic benchmark --plan PLAN --results RESULTS`, to be committed; the folder has the weights.
Each network is written NAME=FRAMEWORK:DEFENCE, or NAME=FRAMEWORK:DEFENCE:VARIANT, and is of --seed. Its numbers go to
art_entropic/networks/index.jsonl. Its weights go there too where they are small, and so become part of the package, else to
results/networks. A name that is there already is replaced.

Before anything is written, each network is loaded and must be right on as many test points as its record says.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from published import RESULTS

from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.problems import load_data
from art_entropic.benchmark.published_networks import INDEX, PACKAGED, NetworkRecord, built, read_index, write_index
from art_entropic.benchmark.store import Store, as_published, file_sha256
from art_entropic.evaluation.checks import retold
from art_entropic.records import AnyRecord, ChecksRecord, EvaluationRecord, TrainingRecord, read_records

LARGE = RESULTS / "networks"
MOST_PACKAGED = 1_500_000  # bytes of a file that is part of the package


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="file of the published records, under results/")
    parser.add_argument("run", type=Path, help="folder of the run, with the weights")
    parser.add_argument("networks", nargs="+", metavar="NAME=FRAMEWORK:DEFENCE[:VARIANT]")
    parser.add_argument("--checks", type=Path, help="file of published records that has the checks of the same trainings")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    options = parser.parse_args(words)
    records, store = list(read_records(options.results)), Store(options.run)
    checked = verdicts(records if options.checks is None else list(read_records(options.checks)))
    found = [chosen(records, store, text, options.seed, options.results.stem, checked) for text in options.networks]
    for record, weights in found:
        check(record, weights)
    for record, weights in found:
        publish(record, weights)
        print(record)


def verdicts(records: list[AnyRecord]) -> dict[str, ChecksRecord]:
    """Key of a training -> the checks of its network."""
    checks = {one.evaluation_key: one for one in records if isinstance(one, ChecksRecord)}
    evaluations = [one for one in records if isinstance(one, EvaluationRecord)]
    return {one.training_key: checks[one.key] for one in evaluations if one.key in checks}


def chosen(
    records: list[AnyRecord], store: Store, text: str, seed: int, results: str, checked: dict[str, ChecksRecord]
) -> tuple[NetworkRecord, Path]:
    """The record of a network to be published, and the file of its weights."""
    name, _, cell = text.partition("=")
    framework, defence, variant = (*cell.split(":"), "", "")[:3]
    wanted = (framework, defence, variant, seed)
    here = [
        one
        for one in records
        if isinstance(one, (TrainingRecord, EvaluationRecord)) and (one.framework, one.defence, one.variant, one.seed) == wanted
    ]
    trainings = [one for one in here if isinstance(one, TrainingRecord) and one.status == "done"]
    evaluations = [one for one in here if isinstance(one, EvaluationRecord)]
    if not name or len(trainings) != 1 or len(evaluations) != 1:
        raise ValueError(f"{text!r} must be NAME=FRAMEWORK:DEFENCE[:VARIANT] with one training and one evaluation in {results}")
    (training,), (evaluation,) = trainings, evaluations
    own = store.training(training.key)
    # A training that was done again has other weights than those that the evaluation is about.
    if own is None or own.weights is None or as_published(own) != training:
        raise ValueError(
            f"{store.home} must hold the weights of the very training in {results}, which it does not for {text!r}"
        )
    weights, checks = store.home / own.weights, checked.get(training.key)
    record = NetworkRecord(
        name=name,
        file=name + ".".join(["", *weights.name.split(".")[1:]]),
        size=weights.stat().st_size,
        sha256=file_sha256(weights),
        results=results,
        training_key=training.key,
        evaluation_key=evaluation.key,
        checks_key=checks.key if checks else None,
        problem=training.problem,
        network=training.network,
        framework=framework,
        defence=defence,
        variant=variant,
        seed=seed,
        eps=training.eps,
        norm=training.norm,
        nb_epochs=training.nb_epochs,
        batch_size=training.batch_size,
        n_train=training.n_train,
        settings=training.settings,
        battery=evaluation.battery,
        first_example=evaluation.first_example,
        clean=evaluation.clean,
        robust=evaluation.robust,
        certified=evaluation.certified,
        certified_reason=evaluation.certified_reason,
        verdict=retold(checks.verdict, checks.checks) if checks else None,
        provenance=training.provenance,
    )
    return record, weights


def check(record: NetworkRecord, weights: Path) -> None:
    """Whether the weights are right on as many points as the record says."""
    data, first = load_data(record.problem), record.first_example
    attacked = slice(first, first + record.clean.n)
    logits = backend_for(built(record, weights)).logits(for_framework(data.x_test[attacked], record.framework))
    right = int((logits.argmax(axis=1) == data.y_test[attacked]).sum())
    if right != record.clean.correct:
        raise ValueError(f"{weights} must be right on {record.clean.correct} of {record.clean.n} points, got {right}")


def publish(record: NetworkRecord, weights: Path) -> None:
    """Put the weights where they belong, and the record into the index."""
    others = [one for one in read_index(PACKAGED / INDEX) if one.name != record.name]
    homes = (PACKAGED, LARGE) if record.size <= MOST_PACKAGED else (LARGE, PACKAGED)
    homes[0].mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, homes[0] / record.file)
    (homes[1] / record.file).unlink(missing_ok=True)
    write_index(PACKAGED / INDEX, [*others, record])


if __name__ == "__main__":
    main(sys.argv[1:])
