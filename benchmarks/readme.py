"""Run the two snippets at the top of README.md as they stand, on MNIST, and keep what they print.

    python benchmarks/readme.py adversarial
    python benchmarks/readme.py entropic

Both start from the published network mnist-0.1-natural, in one thread; the first 1,000 test points are attacked.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import shlex
from typing import Any

import torch
from art.defences.trainer import AdversarialTrainerMadryPGD
from measuring import RESULTS

from art_entropic import EntropicTrainer, evaluate, load_network
from art_entropic.benchmark.data import for_framework
from art_entropic.benchmark.keys import digest
from art_entropic.benchmark.problems import load_data
from art_entropic.benchmark.provenance import machine_provenance
from art_entropic.records import MeasurementRecord, append_record

START, POINTS = "mnist-0.1-natural", 1000


def adversarial(classifier: Any, x_train: Any, y_train: Any) -> Any:
    trainer = AdversarialTrainerMadryPGD(classifier, nb_epochs=6, eps=0.1, eps_step=0.025)
    trainer.fit(x_train, y_train)
    return trainer


def entropic(classifier: Any, x_train: Any, y_train: Any) -> Any:
    trainer = EntropicTrainer(classifier, eps=0.1)
    trainer.fit(x_train, y_train, nb_epochs=24)
    return trainer


SNIPPETS = {"adversarial": adversarial, "entropic": entropic}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("snippet", choices=SNIPPETS)
    name = parser.parse_args().snippet
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_data("mnist")
    x_train, x_test = (for_framework(x, "pytorch") for x in (data.x_train, data.x_test[:POINTS]))
    trainer = SNIPPETS[name](load_network(START), x_train, data.y_train)
    result = evaluate(trainer.get_classifier(), x_test, data.y_test[:POINTS], eps=0.1)
    record = MeasurementRecord(
        key=digest(name="readme", snippet=name),
        name="readme",
        values={"points": POINTS},
        settings={"snippet": name, "network": START, "printed": str(result)},
        provenance=machine_provenance(shlex.join(["python", "benchmarks/readme.py", name]), ["pytorch"], data.sha256),
    )
    append_record(RESULTS / "readme.jsonl", record)
    print(result)


if __name__ == "__main__":
    main()
