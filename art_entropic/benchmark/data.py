"""Data sets, from a folder, a cache or their source, checked by their hash."""

from __future__ import annotations

import dataclasses
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
from art_entropic.benchmark.downloads import NotReachedError, fetched, folder_state

DATA_FOLDER = "ART_ENTROPIC_DATA"
CLIP_VALUES = (0.0, 1.0)
DIGITS_TEST = 500
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# The binary version: the one for Python is a pickle, which runs code when it is read.
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FASHION_MNIST_SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
GTSRB_SOURCE = "https://benchmark.ini.rub.de"
TINY_IMAGENET_SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FSDD_SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
NSL_KDD_SOURCE = "https://www.unb.ca/cic/datasets/nsl.html"
NSL_KDD_NUMBERS = 38
SPLIT = ("x_train", "y_train", "x_test", "y_test")
JPEG_KEYS = ("jpeg_train", "offset_train", "y_train", "jpeg_test", "offset_test", "y_test")


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
        groups_train: (n,), numbers of groups of near copies, of which none may lie on both sides of a split; None where
            training points are independent.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    sha256: str
    source: str
    title: str
    groups_train: np.ndarray | None = None

    def with_first(self, n: int | None) -> Data:
        """The same with the first n training points alone; None keeps all."""
        groups = None if self.groups_train is None else self.groups_train[:n]
        return dataclasses.replace(self, x_train=self.x_train[:n], y_train=self.y_train[:n], groups_train=groups)


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


def read_gtsrb() -> Data:
    """German traffic signs, 43 classes; the groups are tracks, the frames of one sign that a car passed.

    Source: Stallkamp et al. 2012, doi 10.1016/j.neunet.2012.02.016.
    """
    path = _required("gtsrb32.npz", GTSRB_SOURCE)
    data = _byte_images(path, (32, 32, 3), 43, "GTSRB, a subset, resized to 32x32")
    with _reading(path), _open_arrays(path, ("track_train",)) as arrays:
        tracks = _array(path, arrays, "track_train", np.uint16, ())
    if len(tracks) != len(data.x_train):
        raise ValueError(f"{path}: track_train must hold {len(data.x_train)} tracks, got {len(tracks)}")
    return dataclasses.replace(data, groups_train=tracks)


def read_tiny_imagenet10() -> Data:
    path = _required("tiny_imagenet10_jpeg.npz", TINY_IMAGENET_SOURCE)
    return _jpeg_data(path, (64, 64, 3), "Tiny ImageNet, ten classes")


def read_fsdd() -> Data:
    """Spoken digits as logarithms of mel energies, (n, 64 frames, 40 bands), [0, 1] from silence to the loudest.

    The range is 80 dB, one of the file's 255 steps 0.314 dB: a radius of 8/255 is 2.5 dB, up or down, in every band and frame.
    """
    path = _required("fsdd_logmel.npz", FSDD_SOURCE)
    with _reading(path), _open_arrays(path, SPLIT) as arrays:
        parts = []
        for part in ("train", "test"):
            bands = _array(path, arrays, f"x_{part}", np.uint8, (40, 64))
            x = _unit_range(bands.transpose(0, 2, 1))
            parts.append((x, _labels(path, arrays[f"y_{part}"], len(x), f"y_{part}")))
    (x_train, y_train), (x_test, y_test) = parts
    return Data(x_train, y_train, x_test, y_test, _sha256(path), str(path), "Free Spoken Digit Dataset, log-mel")


def read_nsl_kdd() -> Data:
    """Network connections, normal (0) or an attack (1) of whatever kind, (n, 122) in [0, 1].

    First NSL_KDD_NUMBERS numbers x as log(1 + x), scaled so that the training part has minimum 0 and maximum 1; test points
    beyond are clipped to them. Then protocol, service and flag, one-hot. Of the test attacks 29 % are of kinds that the
    training part lacks.

    Source: Tavallaee et al. 2009, doi 10.1109/CISDA.2009.5356528.
    """
    path = _required("nsl_kdd.npz", NSL_KDD_SOURCE)
    keys = ("protocol_type", "service", "flag", *SPLIT, "c_train", "c_test")
    with _reading(path), _open_arrays(path, keys) as arrays:
        counts = [len(arrays[name]) for name in keys[:3]]
        numbers = {part: _logarithms(path, arrays, f"x_{part}") for part in ("train", "test")}
        low, high = (end(numbers["train"], axis=0) for end in (np.min, np.max))
        parts = []
        for part in ("train", "test"):
            scaled = np.clip((numbers[part] - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
            x = np.concatenate([scaled, *_one_hot(path, arrays, f"c_{part}", counts, len(scaled))], axis=1, dtype=np.float32)
            kinds = _labels(path, arrays[f"y_{part}"], len(x), f"y_{part}", 5)
            parts.append((x, (kinds > 0).astype(np.int64)))
    (x_train, y_train), (x_test, y_test) = parts
    title = "NSL-KDD (20 % of KDDTrain+, KDDTest+), two classes"
    return Data(x_train, y_train, x_test, y_test, _sha256(path), str(path), title)


def _logarithms(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    numbers = _array(path, arrays, name, np.float32, (NSL_KDD_NUMBERS,)).astype(np.float64)
    if not len(numbers) or not np.isfinite(numbers).all() or numbers.min() < 0:
        raise ValueError(f"{path}: {name} must hold finite numbers >= 0, got {_ends_of(numbers)}")
    return np.log1p(numbers)


def _one_hot(path: Path, arrays: np.lib.npyio.NpzFile, name: str, counts: list[int], n: int) -> list[np.ndarray]:
    codes = _array(path, arrays, name, np.uint8, (len(counts),))
    if len(codes) != n or (codes >= counts).any():
        raise ValueError(f"{path}: {name} must hold {n} rows of codes below {counts}, got {len(codes)} rows")
    return [np.eye(count)[column] for count, column in zip(counts, codes.T, strict=True)]


def read_cifar10() -> Data:
    if path := _local("cifar10_jpeg.npz"):
        return _jpeg_data(path, (32, 32, 3), "CIFAR-10, JPEG copy (pixels differ a little from the published ones)")
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
        where = folder_state(DATA_FOLDER)
        raise DataNotFoundError(
            f"{name} not found: {DATA_FOLDER} {where}; set it to a folder that holds {name}, made of {source}"
        )
    return path


def _download(url: str, sha256: str, name: str, also: str = "") -> Path:
    where, wish = folder_state(DATA_FOLDER), f"set {DATA_FOLDER} to a folder that holds {also}{name}"
    try:
        return fetched(url, sha256, name)
    except ImportError as error:
        raise DataNotFoundError(
            f"{name} not found: {DATA_FOLDER} {where}, and pooch, which would download it, is not installed; "
            f"{wish}, or pip install pooch"
        ) from error
    except NotReachedError as error:
        raise DataNotFoundError(f"{also}{name} not found: {DATA_FOLDER} {where}, {error}; {wish}") from error


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
        raise ValueError(
            f"{path} must be the data file that its name says, got a damaged or different one: {reason}"
        ) from error


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


def _ends_of(values: np.ndarray) -> str:
    return f"values from {values.min():g} to {values.max():g}" if len(values) else "no values"


def _jpeg_data(path: Path, shape: tuple[int, int, int], title: str) -> Data:
    with _reading(path), _open_arrays(path, JPEG_KEYS) as arrays:
        (x_train, y_train), (x_test, y_test) = (_jpeg_images(path, arrays, part, shape) for part in ("train", "test"))
    return Data(x_train, y_train, x_test, y_test, _sha256(path), str(path), title)


def _jpeg_images(
    path: Path, arrays: np.lib.npyio.NpzFile, part: str, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    import io

    from PIL import Image

    stream, offsets = arrays[f"jpeg_{part}"].tobytes(), arrays[f"offset_{part}"]
    images = [np.asarray(Image.open(io.BytesIO(stream[start:stop])).convert("RGB")) for start, stop in pairwise(offsets)]
    if found := {image.shape for image in images} - {shape}:
        raise ValueError(f"{path}: jpeg_{part} must hold images of shape {shape}, got {found.pop()}")
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
        raise ValueError(f"{path}: {name} must hold whole numbers, got other values of {y.dtype}")
    labels = y.reshape(-1).astype(np.int64)
    if len(labels) != n or n == 0 or labels.min() < 0 or labels.max() >= nb_classes:
        got = f"{len(labels)} labels, {_ends_of(labels)}"
        raise ValueError(f"{path}: {name} must hold {n} labels from 0 to {nb_classes - 1}, got {got}")
    return labels


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
