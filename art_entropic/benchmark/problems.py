"""Problems to compare defences on: data, networks and the settings of their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from art_entropic._validate import choice
from art_entropic.backends.architecture import (
    Activation,
    Architecture,
    Conv,
    Dense,
    Encoder,
    Flatten,
    GlobalAverage,
    MaxPool,
    OneHot,
    Patches,
    Residual,
    Shape,
    TokenMean,
)
from art_entropic.backends.registry import backend_for, framework_module, resolve_device
from art_entropic.benchmark.data import (
    CLIP_VALUES,
    DIGITS_TEST,
    NSL_KDD_NUMBERS,
    Data,
    read_cifar10,
    read_digits,
    read_fashion_mnist,
    read_fsdd,
    read_gtsrb,
    read_mnist,
    read_nsl_kdd,
    read_tiny_imagenet10,
)


@dataclass(frozen=True)
class Problem:
    """One row of PROBLEMS.

    Attributes:
        input_shape: (height, width, channels), (time, bands) or (features,), whatever the framework's own order.
        eps: Linf radius on the [0, 1] range, of a plan that names none.
        curve_eps: radii of the security curve.
        networks: by name; the first one is the default.
        nb_epochs_natural: epochs of natural training, from which every defence starts.
        nb_epochs: epochs of each defence.
        n_train, n_test: points of the data set as published.
        n_examples: test points that are attacked when nothing else is asked for.
        load: reads the data.
    """

    name: str
    title: str
    input_shape: Shape
    nb_classes: int
    eps: float
    curve_eps: tuple[float, ...]
    networks: dict[str, Architecture]
    nb_epochs_natural: int
    nb_epochs: int
    batch_size: int
    learning_rate: float
    n_train: int
    n_test: int
    n_examples: int
    load: Callable[[], Data]

    @property
    def network(self) -> str:
        """The default one."""
        return next(iter(self.networks))


def load_data(name: str) -> Data:
    """The data of a problem: from the folder that ART_ENTROPIC_DATA names, else from pooch's cache or the source.

    Raises:
        DataNotFoundError: neither is available.
        ValueError: the name is unknown, or a local file does not hold what it should.
    """
    return PROBLEMS[choice("problem", name, PROBLEMS)].load()


def build_classifier(
    problem: Problem, framework: str, seed: int, network: str | None = None, *, device: str | None = None
) -> Any:
    """A network of the problem as an ART estimator: initial weights of that seed, the same numbers in every framework.

    Args:
        network: a name of the problem's networks; None takes the default.
        device: "auto" (the first GPU where there is one, else the processor), "cpu", "cuda" or "cuda:i"; None takes what ART
            and the framework take by themselves.
    Raises:
        ValueError: the problem has no network of that name, or the device is unknown or not here.
    """
    place = None if device is None else resolve_device(framework, device)
    name = problem.network if network is None else choice("network", network, problem.networks)
    return framework_module(framework).build_classifier(
        problem.networks[name],
        input_shape=problem.input_shape,
        nb_classes=problem.nb_classes,
        clip_values=CLIP_VALUES,
        learning_rate=problem.learning_rate,
        seed=seed,
        device=place,
    )


def to_pytorch(classifier: Any, problem: Problem, network: str | None = None) -> Any:
    """The same network in PyTorch, with the weights that a TensorFlow classifier of `build_classifier` has now.

    For tools that know PyTorch alone, such as the battery `reference`. Logits agree up to rounding; inputs change their axes,
    see `for_framework`.

    Args:
        classifier: of that problem and network.
        network: a name of the problem's networks; None takes the default.
    Raises:
        ValueError: the weights do not fit the network.
    """
    name = problem.network if network is None else choice("network", network, problem.networks)
    result = build_classifier(problem, "pytorch", 0, name)
    arrays = list(backend_for(classifier).state().values())
    try:
        state = framework_module("pytorch").state_of(problem.networks[name], problem.input_shape, arrays)
    except ValueError as error:
        raise ValueError(f"`classifier` must be the network {name!r}, whose weights do not fit: {error}") from error
    backend = backend_for(result)
    backend.load_state(state)
    return result


def _digits_small() -> Architecture:
    return (
        Conv(16, 3, padding=1, activation="silu"),
        Conv(32, 3, stride=2, padding=1, activation="silu"),
        Flatten(),
        Dense(64, "silu"),
        Dense(10, None),
    )


def _digits_mlp() -> Architecture:
    return (Flatten(), Dense(64), Dense(128), Dense(64), Dense(10, None))


def _mnist_small(activation: Activation, *, batch_norm: bool = False) -> Architecture:
    return (
        Conv(16, 4, stride=2, padding=1, activation=activation, batch_norm=batch_norm),
        Conv(32, 4, stride=2, padding=1, activation=activation, batch_norm=batch_norm),
        Flatten(),
        Dense(128, activation),
        Dense(10, None),
    )


def _mnist_large() -> Architecture:
    return (
        Conv(16, 3, stride=1, padding=1),
        Conv(16, 4, stride=2, padding=1),
        Conv(32, 3, stride=1, padding=1),
        Conv(32, 4, stride=2, padding=1),
        Flatten(),
        Dense(256),
        Dense(10, None),
    )


def _cifar10_small(activation: Activation) -> Architecture:
    return (
        Conv(32, 4, stride=2, padding=1, activation=activation),
        Conv(64, 4, stride=2, padding=1, activation=activation),
        Flatten(),
        Dense(256, activation),
        Dense(10, None),
    )


def _resnet(activation: Activation, nb_classes: int) -> Architecture:
    """A stem, two basic blocks and a mean, 0.3 million weights; small enough for adversarial training on a processor."""
    return (
        Conv(32, 3, stride=2, padding=1, activation=activation, batch_norm=True),
        Residual(64, 2, activation),
        Residual(128, 2, activation),
        GlobalAverage(),
        Dense(nb_classes, None),
    )


def _tiny_imagenet_small() -> Architecture:
    return (
        *(Conv(filters, 4, stride=2, padding=1, activation="gelu") for filters in (16, 32, 64)),
        Flatten(),
        Dense(128, "gelu"),
        Dense(10, None),
    )


def _nsl_kdd_mlp() -> Architecture:
    """Protocol, service and flag of a connection are what they are: no perturbation of the numbers changes them."""
    return (OneHot(NSL_KDD_NUMBERS), Dense(128), Dense(64), Dense(2, None))


def _fsdd_conv1d() -> Architecture:
    return (
        *(Conv(filters, 5, stride=2, padding=2) for filters in (32, 64, 64)),
        Flatten(),
        Dense(64),
        Dense(10, None),
    )


def _vit() -> Architecture:
    """A vision transformer of two blocks, 0.07 million weights."""
    return (Patches(4, 64), *(Encoder(4, 128) for _ in range(2)), TokenMean(), Dense(10, None))


def _six_dense(activation: Activation) -> Architecture:
    """Four convolutions and six dense layers, as the first author of arXiv 2008.03072 described his network in public."""
    return (
        *(Conv(32, 3, activation=activation) for _ in range(2)),
        MaxPool(),
        *(Conv(64, 3, activation=activation) for _ in range(2)),
        MaxPool(),
        Flatten(),
        *(Dense(units, activation) for units in (512, 256, 128, 128, 84)),
        Dense(10, None),
    )


# Radii of security curves, in steps of 8-bit pixels.
_UP_TO_16_PIXEL_STEPS = (0.0, 2 / 255, 4 / 255, 8 / 255, 12 / 255, 16 / 255)

# What digits asks for by itself is the first command that users give, which is to take 100 s on two cores; the published table
# has more epochs, points and seeds. Default networks have smooth activations where the radius is small: the first-order measure
# wants them, the defences of ART lose nothing by them.
PROBLEMS: dict[str, Problem] = {
    "digits": Problem(
        name="digits",
        title="Digits (scikit-learn, 8x8)",
        input_shape=(8, 8, 1),
        nb_classes=10,
        eps=0.15,
        curve_eps=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        networks={"small": _digits_small(), "mlp": _digits_mlp()},
        nb_epochs_natural=10,
        nb_epochs=10,
        batch_size=64,
        learning_rate=2e-3,
        n_train=1297,
        n_test=DIGITS_TEST,
        n_examples=100,
        load=read_digits,
    ),
    "mnist": Problem(
        name="mnist",
        title="MNIST",
        input_shape=(28, 28, 1),
        nb_classes=10,
        eps=0.3,
        curve_eps=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
        networks={
            "small": _mnist_small("relu"),
            "small_silu": _mnist_small("silu"),
            "small_batchnorm": _mnist_small("relu", batch_norm=True),
            "large": _mnist_large(),
        },
        nb_epochs_natural=3,
        nb_epochs=10,
        batch_size=128,
        learning_rate=2e-3,
        n_train=60_000,
        n_test=10_000,
        n_examples=500,
        load=read_mnist,
    ),
    "cifar10": Problem(
        name="cifar10",
        title="CIFAR-10 (a local cifar10_jpeg.npz is its JPEG copy)",
        input_shape=(32, 32, 3),
        nb_classes=10,
        eps=8 / 255,
        curve_eps=_UP_TO_16_PIXEL_STEPS,
        networks={
            "small": _cifar10_small("silu"),
            "small_relu": _cifar10_small("relu"),
            "six_dense": _six_dense("relu"),
            "six_dense_silu": _six_dense("silu"),
            "resnet": _resnet("silu", 10),
            "resnet_relu": _resnet("relu", 10),
        },
        nb_epochs_natural=8,
        nb_epochs=12,
        batch_size=128,
        learning_rate=2e-3,
        n_train=50_000,
        n_test=10_000,
        n_examples=500,
        load=read_cifar10,
    ),
    "fashion_mnist": Problem(
        name="fashion_mnist",
        title="Fashion-MNIST",
        input_shape=(28, 28, 1),
        nb_classes=10,
        eps=0.1,
        curve_eps=(0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
        networks={"small": _mnist_small("relu"), "small_silu": _mnist_small("silu"), "vit": _vit()},
        nb_epochs_natural=4,
        nb_epochs=10,
        batch_size=128,
        learning_rate=2e-3,
        n_train=60_000,
        n_test=10_000,
        n_examples=500,
        load=read_fashion_mnist,
    ),
    "gtsrb": Problem(
        name="gtsrb",
        title="Traffic signs (a subset of GTSRB)",
        input_shape=(32, 32, 3),
        nb_classes=43,
        eps=8 / 255,
        curve_eps=_UP_TO_16_PIXEL_STEPS,
        networks={"resnet": _resnet("relu", 43)},
        nb_epochs_natural=6,
        nb_epochs=10,
        batch_size=128,
        learning_rate=2e-3,
        n_train=13_070,
        n_test=6_315,
        n_examples=500,
        load=read_gtsrb,
    ),
    "tiny_imagenet10": Problem(
        name="tiny_imagenet10",
        title="Tiny ImageNet, ten classes",
        input_shape=(64, 64, 3),
        nb_classes=10,
        eps=4 / 255,
        curve_eps=(0.0, 1 / 255, 2 / 255, 4 / 255, 6 / 255, 8 / 255),
        networks={"small": _tiny_imagenet_small()},
        nb_epochs_natural=8,
        nb_epochs=12,
        batch_size=64,
        learning_rate=2e-3,
        n_train=5_000,
        n_test=500,
        n_examples=500,
        load=read_tiny_imagenet10,
    ),
    "nsl_kdd": Problem(
        name="nsl_kdd",
        title="Network intrusion (NSL-KDD), normal or attack",
        input_shape=(122,),
        nb_classes=2,
        eps=0.05,
        curve_eps=(0.0, 0.01, 0.02, 0.05, 0.1, 0.2),
        networks={"mlp": _nsl_kdd_mlp()},
        nb_epochs_natural=6,
        nb_epochs=10,
        batch_size=128,
        learning_rate=2e-3,
        n_train=25_192,
        n_test=22_544,
        n_examples=500,
        load=read_nsl_kdd,
    ),
    "fsdd": Problem(
        name="fsdd",
        title="Spoken digits (log-mel)",
        input_shape=(64, 40),
        nb_classes=10,
        eps=8 / 255,
        curve_eps=_UP_TO_16_PIXEL_STEPS,
        networks={"conv1d": _fsdd_conv1d()},
        nb_epochs_natural=10,
        nb_epochs=12,
        batch_size=64,
        learning_rate=2e-3,
        n_train=2_700,
        n_test=300,
        n_examples=300,
        load=read_fsdd,
    ),
}
