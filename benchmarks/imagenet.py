"""What entropic retraining costs at the scale of ImageNet: ResNet-50, 224 x 224, 1000 classes; and the retraining itself.

    python benchmarks/imagenet.py cost                  # seconds an image of each kind of step, on random images
    torchrun --nproc_per_node=8 benchmarks/imagenet.py retrain train/ val/ --eps 0.0157

`cost` appends one record to results/imagenet.jsonl. `retrain` takes torchvision's pretrained weights, reads ImageNet from two
folders of one folder a class, and writes resnet50-entropic.pt. It has been run on a few images, never on ImageNet:
docs/growth.md says what that would cost, and on what grounds.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import NATURAL, entropic, keep, timed
from torch import distributed, nn
from zoo.packages import torchvision

from art_entropic.backends.protocol import Batch
from art_entropic.backends.registry import backend_for
from art_entropic.benchmark.provenance import available_cores
from art_entropic.objective import natural_objective

SIDE, CLASSES, EPS = 224, 1000, 4 / 255
MEAN, STD = ([[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]])  # torchvision's, of ImageNet in [0, 1]
PGD_STEPS = 7
TURNS = 3


def classifier(weights: str | None) -> Any:
    """ResNet-50 behind ART, raw pixels in [0, 1]."""
    from art.estimators.classification import PyTorchClassifier

    model = torchvision().models.resnet50(weights=weights)
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4),
        input_shape=(3, SIDE, SIDE),
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        preprocessing=tuple(np.array(values, np.float32) for values in (MEAN, STD)),
    )


# ------------------------------------------------------------------------------------------------------------------ cost


def cost(batch_size: int) -> dict[str, float]:
    """Seconds an image, medians over turns in which the kinds follow each other, and their ratio to a natural step.

    The bounds of `interval` leave float32 in a network as deep as this, so that its step ends before the optimizer's; the
    arithmetic until there is that of any interval step.
    """
    estimator = classifier(None)
    backend = backend_for(estimator)
    rng = np.random.default_rng(0)
    shape = (batch_size, 3, SIDE, SIDE)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, batch_size)]
    noise = rng.random(shape, np.float32) * 2 - 1
    batch = Batch(rng.random(shape, np.float32), y, noise, rng.random(batch_size, np.float32))
    acts: dict[str, Callable[[], object]] = {}
    with backend.training(0):
        natural = backend.training_step(natural_objective)
        acts["natural"] = partial(natural, batch, NATURAL)
        for name in ("channel", "interval"):
            objective, controls = entropic(name, EPS)
            acts[name] = partial(backend.training_step(objective), batch, controls)
        acts["madry_pgd"] = lambda: natural(batch._replace(x=adversarial(estimator, batch)), NATURAL)
        turns = [{name: timed(act) for name, act in acts.items()} for _ in range(TURNS + 1)][1:]
    medians = {name: float(np.median([turn[name] for turn in turns])) for name in acts}
    values = {f"{name}_s_an_image": spent / batch_size for name, spent in medians.items()}
    values |= {f"{name}_ratio": spent / medians["natural"] for name, spent in medians.items() if name != "natural"}
    return values | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def adversarial(estimator: Any, batch: Batch) -> np.ndarray:
    """The inner loop of ART's MadryPGD."""
    from art.attacks.evasion import ProjectedGradientDescent

    attack = ProjectedGradientDescent(
        estimator,
        eps=EPS,
        eps_step=EPS / 4,
        max_iter=PGD_STEPS,
        num_random_init=1,
        batch_size=len(batch.x),
        verbose=False,
    )
    found: np.ndarray = attack.generate(batch.x, batch.y)
    estimator.model.train()  # ART leaves it in inference mode
    return found


def record(batch_size: int) -> None:
    values = cost(batch_size)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    settings = {"network": "resnet50", "batch_size": batch_size, "side": SIDE, "eps": EPS, "device": device}
    command = "python benchmarks/imagenet.py cost"
    keep("imagenet", values, settings, command=command, frameworks=("pytorch",), digits=4)


# -------------------------------------------------------------------------------------------------------------- retrain


class Images:
    """An ART DataGenerator over a folder of images. Every process reads the same batches in the same order."""

    def __init__(self, folder: str, batch_size: int, seed: int = 0) -> None:
        from art.data_generators import PyTorchDataGenerator

        transforms = torchvision().transforms
        steps = [transforms.Resize(256), transforms.CenterCrop(SIDE), transforms.ToTensor()]
        self.data = torchvision().datasets.ImageFolder(folder, transforms.Compose(steps))
        loader = torch.utils.data.DataLoader(
            self.data,
            batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            num_workers=min(4, available_cores()),
        )
        self.generator = PyTorchDataGenerator(loader, size=len(self.data), batch_size=batch_size)


def retrain(arguments: argparse.Namespace) -> None:
    """Retrain the pretrained network; under torchrun, every process takes its share of each batch."""
    from art_entropic import EntropicTrainer, evaluate

    together = distributed.is_torchelastic_launched()
    if together:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if together else 0)
    estimator = classifier(arguments.weights or None)
    first = not together or distributed.get_rank() == 0
    trainer = EntropicTrainer(estimator, arguments.eps, verbose=first)
    trainer.fit_generator(
        Images(arguments.train, arguments.batch_size).generator,
        nb_epochs=arguments.nb_epochs,
        seed=0,
        checkpoint="resnet50-entropic.checkpoint.npz" if first else None,
    )
    if first:
        torch.save(estimator.model.state_dict(), "resnet50-entropic.pt")
        x, y = Images(arguments.test, arguments.n_examples).generator.get_batch()
        print(evaluate(trainer.get_classifier(), np.asarray(x), np.asarray(y), eps=arguments.eps, battery=arguments.battery))
    if together:
        distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    costing = commands.add_parser("cost")
    costing.add_argument("--batch-size", type=int, default=8)
    training = commands.add_parser("retrain")
    training.add_argument("train")
    training.add_argument("test")
    training.add_argument("--eps", type=float, default=EPS)
    training.add_argument("--nb-epochs", type=int, default=10)
    training.add_argument("--batch-size", type=int, default=512)
    training.add_argument("--n-examples", type=int, default=1000)
    training.add_argument("--battery", default="standard")
    training.add_argument("--weights", default="IMAGENET1K_V2", help="of torchvision; '' for none")
    arguments = parser.parse_args()
    if arguments.command == "cost":
        record(arguments.batch_size)
    else:
        retrain(arguments)


if __name__ == "__main__":
    main()
