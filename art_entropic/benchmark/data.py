"""Data sets, from a folder, a cache or their source, checked by their hash."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from art_entropic.backends.registry import FRAMEWORKS

DATA_FOLDER = "ART_ENTROPIC_DATA"
CLIP_VALUES = (0.0, 1.0)
DIGITS_TEST = 500
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# The binary version: the one for Python is a pickle, which runs code when it is read.
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FASHION_MNIST_SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
SPLIT = ("x_train", "y_train", "x_test", "y_test")
CIFAR10_JPEG_KEYS = ("jpeg_train", "offset_train", "y_train", "jpeg_test", "offset_test", "y_test")


class DataNotFoundError(FileNotFoundError):
    """A data set is neither in the local folder nor to be had from its source; one line says what to do."""


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    Attributes:
        x_train, x_test: float32 in [0, 1], (n, h, w, c), (n, time, bands) or (n, features).
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


def for_framework(x: np.ndarray, framework: str) -> np.ndarray:
    """Points (n, ..., channels) in the axis order of a framework."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if FRAMEWORKS[framework].channels_first else x


def read_digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    raw = pixels.astype(np.uint8).tobytes() + labels.astype(np.uint8).tobytes()
    x = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=DIGITS_TEST, stratify=y, random_state=0)
    source = "scikit-learn, sklearn.datasets.load_digits"
    return Data(x_train, y_train, x_test, y_test, hashlib.sha256(raw).hexdigest(), source, "Digits (scikit-learn)")


def read_mnist() -> Data:
    # Any local file with the right arrays is accepted and named by its hash: MNIST is handed round in many wrappings.
    path = _local("mnist.npz") or _download(MNIST_URL, MNIST_SHA256, "mnist.npz")
    return _byte_images(path, (28, 28), 10, "MNIST")


def read_fashion_mnist() -> Data:
    return _byte_images(_required("fashion_mnist.npz", FASHION_MNIST_SOURCE), (28, 28), 10, "Fashion-MNIST")


def read_cifar10() -> Data:
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


def _required(name: str, source: str) -> Path:
    """A local file that nothing stands in for: its source has no address whose content is known to stay.

    Raises:
        DataNotFoundError: it is not there.
    """
    path = _local(name)
    if path is None:
        folder = os.environ.get(DATA_FOLDER)
        where = f"folder {folder!r}, which has no such file" if folder else "no folder"
        raise DataNotFoundError(
            f"{name} not found: {DATA_FOLDER} names {where}; set it to a folder that holds {name}, made of {source}"
        )
    return path


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


def _byte_images(path: Path, shape: tuple[int, ...], nb_classes: int, title: str) -> Data:
    """The data of a file of uint8 images of that shape; grey ones get their channel."""
    with _reading(path), _open_arrays(path, SPLIT) as arrays:
        parts = []
        for part in ("train", "test"):
            x = _array(path, arrays, f"x_{part}", np.uint8, shape)
            x = x if len(shape) == 3 else x[..., None]
            parts.append((_unit_range(x), _labels(path, arrays[f"y_{part}"], len(x), f"y_{part}", nb_classes)))
    (x_train, y_train), (x_test, y_test) = parts
    return Data(x_train, y_train, x_test, y_test, _sha256(path), str(path), title)


def _array(path: Path, arrays: np.lib.npyio.NpzFile, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that name, of that type and that shape of a row."""
    found: np.ndarray = arrays[name]
    if found.dtype != dtype or found.ndim == 0 or found.shape[1:] != shape:
        rows = ", ".join(map(str, ("n", *shape)))
        wish = f"{np.dtype(dtype)} of shape ({rows})" if shape else f"{np.dtype(dtype)} of shape (n,)"
        raise ValueError(f"{path}: {name} must be {wish}, got {found.dtype} of shape {found.shape}")
    return found


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


def _labels(path: Path, y: np.ndarray, n: int, name: str, nb_classes: int = 10) -> np.ndarray:
    if y.dtype.kind not in "iuf" or not np.isfinite(y).all() or not np.array_equal(y, np.floor(y)):
        raise ValueError(f"{path}: {name} must hold whole numbers, got others, of {y.dtype}")
    labels = y.reshape(-1).astype(np.int64)
    if len(labels) != n or n == 0 or labels.min() < 0 or labels.max() >= nb_classes:
        raise ValueError(f"{path}: {name} must hold {n} classes 0 to {nb_classes - 1}, got {len(labels)} labels")
    return labels


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
