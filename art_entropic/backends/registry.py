"""The frameworks, by name: whose estimator is it, which devices are here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from art_entropic._validate import DEVICE_WISH, file_path, file_to_write
from art_entropic.backends.errors import MissingFrameworkError
from art_entropic.backends.protocol import Backend, Framework
from art_entropic.extras import missing

if TYPE_CHECKING:
    from art_entropic.backends.tensorflow import framework as tensorflow
    from art_entropic.backends.torch import framework as pytorch

    _HELD_AGAINST_THE_PROTOCOL: tuple[Framework, ...] = (pytorch, tensorflow)


@dataclass(frozen=True)
class FrameworkRow:
    """One row of FRAMEWORKS."""

    title: str
    package: str  # the distribution's import name, and that of the extra which brings it
    module: str  # which is a `Framework`
    estimators: tuple[str, ...]  # ART classes, by name, looked for along an estimator's MRO
    channels_first: bool
    companions: tuple[str, ...] = ()  # further distributions that its numbers depend on


FRAMEWORKS: dict[str, FrameworkRow] = {
    "pytorch": FrameworkRow("PyTorch", "torch", "art_entropic.backends.torch.framework", ("PyTorchClassifier",), True),
    "tensorflow": FrameworkRow(
        "TensorFlow",
        "tensorflow",
        "art_entropic.backends.tensorflow.framework",
        ("TensorFlowV2Classifier", "KerasClassifier"),
        False,
        ("keras",),
    ),
}


def installed_frameworks() -> tuple[str, ...]:
    """Names of the frameworks that can be imported here; nothing is imported."""
    return tuple(name for name, row in FRAMEWORKS.items() if importlib.util.find_spec(row.package) is not None)


def framework_module(name: str) -> Framework:
    """The module of a framework, imported now.

    Raises:
        MissingFrameworkError: the framework is not installed.
    """
    row = FRAMEWORKS[name]
    if sys.modules.get(row.package) is None and importlib.util.find_spec(row.package) is None:
        raise MissingFrameworkError(missing(row.title, row.package))
    module: Any = importlib.import_module(row.module)
    framework: Framework = module
    return framework


def framework_of(estimator: Any) -> str:
    """Name of the framework of an ART estimator.

    Raises:
        TypeError: not an estimator of a supported kind.
    """
    names = {base.__name__ for base in type(estimator).__mro__ if base.__module__.partition(".")[0] == "art"}
    for framework, row in FRAMEWORKS.items():
        if names.intersection(row.estimators):
            return framework
    wanted = ", ".join(kind for row in FRAMEWORKS.values() for kind in row.estimators)
    raise TypeError(f"`classifier` must be an ART estimator of kind {wanted}, got {type(estimator).__name__}")


def backend_for(estimator: Any) -> Backend:
    """The backend of an ART estimator.

    Raises:
        TypeError: not an estimator of a supported kind.
    """
    return framework_module(framework_of(estimator)).estimator_backend(estimator)


def resolve_device(framework: str, device: str) -> str:
    """The device that a word stands for on this machine.

    Args:
        device: "auto" (the first GPU where there is one, else the processor), "cpu", "cuda" (the first GPU) or "cuda:i".
    Returns:
        "cpu" or "cuda:i".
    Raises:
        ValueError: another word, or a GPU that the framework does not see here; the message lists those that it sees.
        MissingFrameworkError: the framework is not installed.
    """
    here = framework_module(framework).accelerators()
    if device == "auto":
        return here[0] if here else "cpu"
    name = "cuda:0" if device == "cuda" else device
    if name != "cpu" and name not in here:
        gpus = ", ".join(here) or "none"
        raise ValueError(f"`device` must be {DEVICE_WISH} with a GPU of this machine ({gpus}), got {device!r}")
    return name


def move_to(classifier: Any, device: str) -> Any:
    """Put an ART classifier on a device, in place: its network, the state of its optimizer, its preprocessing.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier.
        device: "auto" (the first GPU where there is one, else the processor), "cpu", "cuda" (the first GPU) or "cuda:i". On
            TensorFlow "cuda:i" is its GPU:i.
    Returns:
        The classifier.
    Raises:
        TypeError: not an estimator of a supported kind.
        ValueError: the device is unknown or not here, or a Keras model is elsewhere: it stays where it was built.
    """
    framework = framework_of(classifier)
    name = resolve_device(framework, device)
    backend_for(classifier).place(name)
    return classifier


def save_weights(classifier: Any, path: str | os.PathLike[str]) -> Path:
    """Write the weights of an ART classifier in the framework's own format, which loads without running code.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier.
        path: a file that ends in ".pt" (PyTorch) or ".weights.h5" (Keras), in a folder that is there.
    Returns:
        The file.
    Raises:
        TypeError: not an estimator of a supported kind, or `path` is no path.
        ValueError: `path` ends otherwise, or is not in a folder that is there.
    """
    backend, file = backend_for(classifier), file_to_write("path", path)
    if not file.name.endswith(backend.weights_suffix):
        raise ValueError(f"`path` must end in {backend.weights_suffix!r} for a {type(classifier).__name__}, got {path!r}")
    backend.save_weights(file)
    return file


def load_weights(classifier: Any, path: str | os.PathLike[str]) -> Any:
    """Give an ART classifier weights that `save_weights` or `art-entropic train` has written, in place.

    Args:
        classifier: of the network that they were saved from; compiled or not, on whichever device.
    Returns:
        The classifier.
    Raises:
        TypeError: not an estimator of a supported kind, or `path` is no path.
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold the weights of this network; nothing has been changed then.
    """
    backend, file = backend_for(classifier), file_path("path", path)
    if not file.is_file():
        raise FileNotFoundError(f"`path` must be a file of weights, got {path!r}, which is not a file")
    before = backend.state()
    try:
        backend.load_weights(file)
    except Exception as error:
        backend.load_state(before)
        reason = " ".join(str(error).split())
        raise ValueError(f"`path` must hold the weights of this network, got {path!r}: {reason}") from error
    return classifier
