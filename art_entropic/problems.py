"""Data sets, each with the networks and the settings that every defence and framework gets alike."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from art_entropic._validate import choice
from art_entropic.backends import FRAMEWORKS, backend_for, framework_module, resolve_device
from art_entropic.backends.architecture import Activation, Architecture, Conv, Dense, Flatten, MaxPool

DATA_FOLDER = "ART_ENTROPIC_DATA"
CLIP_VALUES = (0.0, 1.0)
DIGITS_TEST = 500

MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# The binary version: the one for Python is a pickle, which runs code when it is read.
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_JPEG_KEYS = ("jpeg_train", "offset_train", "y_train", "jpeg_test", "offset_test", "y_test")


class DataNotFoundError(FileNotFoundError):
    """A data set is neither in the local folder nor to be had from its source; one line says what to do."""


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    Attributes:
        x_train, x_test: float32 (n, h, w, c) in [0, 1].
        y_train, y_test: int64 (n,).
        sha256: of the file that was read; for data inside a package, of the arrays as they came.
        source: what was read.
        title: the data set's name, with what sets this copy apart from the published one.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    sha256: str
    source: str
    title: str


@dataclass(frozen=True)
class Problem:
    """One row of PROBLEMS.

    Attributes:
        input_shape: (height, width, channels), whatever the framework's own order.
        eps: Linf radius on the [0, 1] range.
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
    input_shape: tuple[int, int, int]
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
    def default_network(self) -> str:
        return next(iter(self.networks))

    @property
    def architecture(self) -> Architecture:
        """The default network."""
        return self.networks[self.default_network]


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
    name = problem.default_network if network is None else choice("network", network, problem.networks)
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
    name = problem.default_network if network is None else choice("network", network, problem.networks)
    result = build_classifier(problem, "pytorch", 0, name)
    arrays = list(backend_for(classifier).state().values())
    try:
        state = framework_module("pytorch").state_of(problem.networks[name], problem.input_shape, arrays)
    except ValueError as error:
        raise ValueError(f"`classifier` must have the weights of the network {name!r}: {error}") from error
    backend = backend_for(result)
    backend.load_state(state)
    return result


def for_framework(x: np.ndarray, framework: str) -> np.ndarray:
    """Images (n, h, w, c) in the axis order of a framework."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if FRAMEWORKS[framework].channels_first else x


# ------------------------------------------------------------------------------------------------------------- readers


def _load_digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    raw = pixels.astype(np.uint8).tobytes() + labels.astype(np.uint8).tobytes()
    x = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=DIGITS_TEST, stratify=y, random_state=0)
    source = "scikit-learn, sklearn.datasets.load_digits"
    return Data(x_train, y_train, x_test, y_test, hashlib.sha256(raw).hexdigest(), source, "Digits (scikit-learn)")


def _load_mnist() -> Data:
    # Any local file with the right arrays is accepted and named by its hash: MNIST is handed round in many wrappings.
    path = _local("mnist.npz") or _download(MNIST_URL, MNIST_SHA256, "mnist.npz")
    with _reading(path), _open_arrays(path, ("x_train", "y_train", "x_test", "y_test")) as arrays:
        parts = [_digit_images(path, arrays, part) for part in ("train", "test")]
    (x_train, y_train), (x_test, y_test) = parts
    return Data(x_train, y_train, x_test, y_test, _sha256(path), str(path), "MNIST")


def _load_cifar10() -> Data:
    if path := _local("cifar10_jpeg.npz"):
        with _reading(path), _open_arrays(path, CIFAR10_JPEG_KEYS) as arrays:
            (x_train, y_train), (x_test, y_test) = (_jpeg_images(path, arrays, part) for part in ("train", "test"))
        title = "CIFAR-10, JPEG copy (pixels differ a little from the published ones)"
        return Data(x_train, y_train, x_test, y_test, _sha256(path), str(path), title)
    name = "cifar-10-binary.tar.gz"
    path = _local(name) or _download(CIFAR10_URL, CIFAR10_SHA256, name, also="cifar10_jpeg.npz or ")
    with _reading(path), tarfile.open(path, "r:gz") as archive:
        train = [_binary_images(path, archive, f"data_batch_{number}.bin") for number in range(1, 6)]
        x_test, y_test = _binary_images(path, archive, "test_batch.bin")
    x_train, y_train = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return Data(x_train, y_train, x_test, y_test, _sha256(path), str(path), "CIFAR-10")


def _local(name: str) -> Path | None:
    folder = os.environ.get(DATA_FOLDER)
    path = Path(folder) / name if folder else None
    return path if path is not None and path.is_file() else None


def _download(url: str, sha256: str, name: str, also: str = "") -> Path:
    folder = os.environ.get(DATA_FOLDER)
    where = f"folder {folder!r}" if folder else "no folder"
    wish = f"set {DATA_FOLDER} to a folder that holds {also}{name}"
    try:
        import pooch
    except ImportError as error:
        raise DataNotFoundError(
            f"{name} not found: {DATA_FOLDER} names {where}, and pooch, which would download it, is not installed; "
            f"{wish}, or pip install pooch"
        ) from error
    cache = pooch.os_cache("art-entropic")
    try:
        return Path(pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=cache))
    except OSError as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataNotFoundError(
            f"{also}{name} not found: {DATA_FOLDER} names {where}, {cache} has no copy, "
            f"and {url} could not be reached ({reason}); {wish}"
        ) from error


# What NumPy, Pillow and Python's archives raise over bytes or arrays of another kind than they expect.
_UNREADABLE = (EOFError, LookupError, OSError, ValueError, TypeError, AttributeError, NotImplementedError)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a data file is told with its name.

    Raises:
        ValueError: it is damaged, or something else than what its name says.
    """
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, tarfile.TarError, *_UNREADABLE) as error:
        if str(path) in str(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} must be a whole data file of that name, got a damaged or another one: {reason}") from error


def _open_arrays(path: Path, keys: tuple[str, ...]) -> np.lib.npyio.NpzFile:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} must be an .npz file with the arrays {', '.join(keys)}, got a file of another kind")
    arrays: np.lib.npyio.NpzFile = np.load(path, allow_pickle=False)
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(f"{path} must hold the arrays {', '.join(keys)}, got {', '.join(arrays) or 'none'}")
    return arrays


def _digit_images(path: Path, arrays: np.lib.npyio.NpzFile, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1:] != (28, 28):
        raise ValueError(f"{path}: x_{part} must be uint8 of shape (n, 28, 28), got {x.dtype} of shape {x.shape}")
    return _unit_range(x[..., None]), _labels(path, y, len(x), f"y_{part}")


def _jpeg_images(path: Path, arrays: np.lib.npyio.NpzFile, part: str) -> tuple[np.ndarray, np.ndarray]:
    import io

    from PIL import Image

    stream, offsets = arrays[f"jpeg_{part}"].tobytes(), arrays[f"offset_{part}"]
    images = [np.asarray(Image.open(io.BytesIO(stream[start:stop])).convert("RGB")) for start, stop in pairwise(offsets)]
    if {image.shape for image in images} != {(32, 32, 3)}:
        raise ValueError(f"{path}: jpeg_{part} must hold images of shape (32, 32, 3), got {images[0].shape}")
    return _unit_range(np.stack(images)), _labels(path, arrays[f"y_{part}"], len(images), f"y_{part}")


def _binary_images(path: Path, archive: tarfile.TarFile, name: str) -> tuple[np.ndarray, np.ndarray]:
    member: IO[bytes] | None = archive.extractfile(f"cifar-10-batches-bin/{name}")
    rows = np.frombuffer(member.read() if member else b"", dtype=np.uint8)
    if not len(rows) or len(rows) % 3073:
        raise ValueError(f"{path}: {name} must hold records of 3073 bytes, got {len(rows)} bytes")
    rows = rows.reshape(-1, 3073)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _unit_range(images), _labels(path, rows[:, 0], len(rows), name)


def _unit_range(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255)


def _labels(path: Path, y: np.ndarray, n: int, name: str) -> np.ndarray:
    if y.dtype.kind not in "iuf" or not np.isfinite(y).all() or not np.array_equal(y, np.floor(y)):
        raise ValueError(f"{path}: {name} must hold whole numbers, got others, of {y.dtype}")
    labels = y.reshape(-1).astype(np.int64)
    if len(labels) != n or n == 0 or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path}: {name} must hold {n} classes 0 to 9, got {len(labels)} labels")
    return labels


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ networks


def _digits_small() -> Architecture:
    return (
        Conv(16, 3, padding=1, activation="silu"),
        Conv(32, 3, stride=2, padding=1, activation="silu"),
        Flatten(),
        Dense(64, "silu"),
        Dense(10, None),
    )


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


# Default networks have smooth activations where the radius is small: the first-order measure wants them, the defences of ART
# lose nothing by them.
PROBLEMS: dict[str, Problem] = {
    "digits": Problem(
        name="digits",
        title="Digits (scikit-learn, 8x8)",
        input_shape=(8, 8, 1),
        nb_classes=10,
        eps=0.15,
        curve_eps=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        networks={"small": _digits_small()},
        nb_epochs_natural=20,
        nb_epochs=30,
        batch_size=64,
        learning_rate=2e-3,
        n_train=1297,
        n_test=DIGITS_TEST,
        n_examples=300,
        load=_load_digits,
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
        load=_load_mnist,
    ),
    "cifar10": Problem(
        name="cifar10",
        title="CIFAR-10 (a local cifar10_jpeg.npz is its JPEG copy)",
        input_shape=(32, 32, 3),
        nb_classes=10,
        eps=8 / 255,
        curve_eps=(0.0, 2 / 255, 4 / 255, 8 / 255, 12 / 255, 16 / 255),
        networks={
            "small": _cifar10_small("silu"),
            "small_relu": _cifar10_small("relu"),
            "six_dense": _six_dense("relu"),
            "six_dense_silu": _six_dense("silu"),
        },
        nb_epochs_natural=8,
        nb_epochs=12,
        batch_size=128,
        learning_rate=2e-3,
        n_train=50_000,
        n_test=10_000,
        n_examples=500,
        load=_load_cifar10,
    ),
}
