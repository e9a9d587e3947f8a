"""What is published: the plans whose records lie in results/, in the order of their tables, and how those records are read."""

from __future__ import annotations

from pathlib import Path

from art_entropic.palette import NATURAL
from art_entropic.records import MeasurementRecord, ProfileRecord, TrainingRecord, read_records
from art_entropic.report.sections import Section, sections

ROOT = Path(__file__).parent.parent
RESULTS, PLANS = ROOT / "results", ROOT / "benchmarks" / "plans"
RIVAL = "madry_pgd"
MODELS = (NATURAL, RIVAL, "entropic")  # whose information is read
# The rows of the README's table, at most six: what the method is good for and what it is not.
HEADLINE = {
    "mnist-0.1-silu": "MNIST, CNN with SiLU",
    "mnist-0.1": "MNIST, CNN with ReLU",
    "mnist-0.3-large": "MNIST, larger CNN with ReLU",
    "cifar10-8-255-converged": "CIFAR-10 (JPEG copy), CNN with SiLU, 30 epochs",
    "cifar10-8-255-resnet": "CIFAR-10 (JPEG copy), ResNet with SiLU and BatchNorm, 30 epochs",
    "cifar10-2-255-converged": "CIFAR-10 (JPEG copy), CNN with SiLU, 30 epochs",
}
# The snippets of `benchmarks/readme.py`.
PRINTED = {"adversarial": "AdversarialTrainerMadryPGD, 6 epochs", "entropic": "EntropicTrainer, 24 epochs"}
FRESH = "The same networks as above, on held-out test points: nobody looked at them while choosing settings."
LONGER = "Four times the epochs, to see what each defence reaches with them. One seed."
# In this order, each with what a reader should know before the numbers.
COMPARISONS = {
    "mnist-0.3": (
        "MNIST at the large radius. In two of three seeds the checks call our own network suspicious. Few gradients are left "
        "there: of 200 points Square breaks 4.0 and 4.5 % more than PGD, and random noise breaks 1.5 % that PGD does not. The "
        "battery contains Square, and the certificate is a proof. So the true robust accuracy lies between the columns "
        "certified and robust."
    ),
    "mnist-0.2": "MNIST at the middle radius.",
    "mnist-0.1": "MNIST at the small radius.",
    "mnist-0.1-silu": "MNIST at the small radius with a smooth network. Here `EntropicTrainer` chooses `channel`.",
    "mnist-0.3-large": "A larger network at the large radius.",
    "mnist-0.3-tensorflow": "The same comparison on TensorFlow, with the same initial weights and the same order of the data.",
    "cifar10-8-255": "Colour images at the usual radius. The network is small and the images few: what two cores can train.",
    "cifar10-2-255": "The same at a small radius.",
    "mnist-0.3-converged": LONGER,
    "mnist-0.2-converged": LONGER,
    "mnist-0.1-converged": LONGER,
    "cifar10-8-255-converged": (
        "All images of CIFAR-10, mirrored and moved, 30 epochs. Each defence keeps the epoch that was best on held-out points. "
        "Our validation loss still falls a little at the end."
    ),
    "cifar10-2-255-converged": "The same at the small radius.",
    "cifar10-8-255-resnet": "The same with a residual network with BatchNorm.",
    "mnist-l2": "An L2 ball, for which `EntropicTrainer` chooses `channel`.",
    "cifar10-l2": "An L2 ball on colour images, after few epochs of few images.",
    "mnist-0.3-fresh": FRESH,
    "mnist-0.1-silu-fresh": FRESH,
    "cifar10-8-255-fresh": FRESH,
    "digits": "The data that come with the package: minutes on any machine, both frameworks, three seeds.",
}
CLAIM = "cifar10-8-255-six-dense"
CLAIM_L2 = "cifar10-l2-six-dense"
# Ours at equal epochs and at equal seconds.
EQUAL_TIME = ("mnist-0.1", "mnist-0.1-converged", "mnist-0.2", "mnist-0.2-converged", "mnist-0.3", "mnist-0.3-converged",
              "mnist-0.3-large", "mnist-0.1-silu", "cifar10-8-255-converged", "cifar10-2-255-converged")  # fmt: skip
# One line each in one table; they have no table of their own.
BREADTH = (
    "breadth-digits-mlp", "breadth-fashion-mnist", "breadth-fashion-mnist-tensorflow", "breadth-gtsrb",
    "breadth-tiny-imagenet10", "breadth-nsl-kdd", "breadth-fsdd", "breadth-vit",
)  # fmt: skip
LONG = ("mnist-0.1-long", "mnist-0.3-long")
# The networks of the comparisons at seed 0, under AutoAttack and, ours, under the battery `full`.
STRONG = ("mnist-0.1", "mnist-0.1-silu", "mnist-0.3-large", "cifar10-8-255-converged", "cifar10-2-255-converged",
          "cifar10-8-255-resnet", "cifar10-8-255", "breadth-gtsrb")  # fmt: skip
AUTOATTACK, FULL = (tuple(f"{name}-{battery}" for name in STRONG) for battery in ("autoattack", "full"))
ABLATIONS = {
    "ablation-term": "What the entropic term adds to interval training alone (IBP mixed with the clean loss), and when.",
    "ablation": "The worst-case measure on a ReLU network, Linf 0.3. `beta 0` keeps the pure phase at the beginning.",
    "ablation-linear": "Linear bounds against one sampled wrong class, and interval bounds alone, where data are few.",
    "ablation-linear-0.1": "The same at the small radius, and `interval` trained with a larger radius than that of the test.",
    "ablation-silu": "The same with SiLU in place of ReLU.",
    "ablation-batchnorm": "The same with BatchNorm after each convolution.",
    "ablation-channel": "The first-order measure where it works best, SiLU and Linf 0.1.",
    "ablation-channel-cifar10": "What the information term adds to the first-order worst case, on colour images.",
    "ablation-channel-cifar10-2-255": "The weight of the first-order worst case at the small radius.",
    "ablation-channel-gtsrb": "The first-order measure on a residual network with BatchNorm and 43 classes, after five epochs.",
    "ablation-channel-relu": "Both measures on a ReLU network, Linf 0.1.",
    "ablation-cifar10-relu": "Both measures, the smooth twin (SiLU for ReLU) and MadryPGD: colour images, a ReLU network.",
}
# The networks of `load_network` that no other plan has trained.
NETWORKS = ("digits-networks",)
ALL = (*COMPARISONS, CLAIM, CLAIM_L2, *BREADTH, *AUTOATTACK, *FULL, *LONG, *ABLATIONS, *NETWORKS)


def load() -> dict[str, Section]:
    """Every plan that has records."""
    tables = {}
    for name in ALL:
        path = RESULTS / f"{name}.jsonl"
        if path.exists():
            (tables[name],) = sections(read_records(path))
    return tables


def measurements(name: str) -> list[MeasurementRecord]:
    """The records of a cost benchmark; where it was run again, the last."""
    found = {record.key: record for record in read_records(RESULTS / f"{name}.jsonl") if isinstance(record, MeasurementRecord)}
    return list(found.values())


def profiles() -> dict[tuple[str, str], ProfileRecord]:
    """(plan, framework) -> where the information goes in its networks; where it was read again, the last."""
    found = {}
    for name in (*COMPARISONS, CLAIM):
        path = RESULTS / f"{name}.jsonl"
        for record in read_records(path) if path.exists() else ():
            if isinstance(record, ProfileRecord):
                found[name, record.framework] = record
    return found


def measure_of(name: str, framework: str) -> str:
    """What `EntropicTrainer` chose in a table."""
    records = (record for record in read_records(RESULTS / f"{name}.jsonl") if isinstance(record, TrainingRecord))
    chosen = {
        str(record.settings["trainer.measure"])
        for record in records
        if (record.defence, record.variant, record.framework) == ("entropic", "", framework) and record.status == "done"
    }
    return " ".join(f"`{measure}`" for measure in sorted(chosen))
