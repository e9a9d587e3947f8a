"""Networks, arrays and folders of the user's."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import sysconfig
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from art_entropic.evaluation.result import Evaluation
    from art_entropic.history import History
from art_entropic.cli.arguments import as_share

WEIGHTS = "weights"
CHECKPOINT = "checkpoint.npz"
HISTORY = "history.jsonl"
README = "README.txt"
EVALUATION = "evaluation.json"
POINTS = "points.csv"
PROFILE = "profile.json"
LAYERS = "layers.csv"
FIGURE = "information.svg"
TEST_SHARE = 0.2  # held out of `x`, `y` where a file has no test data of its own


def indented_json(summary: object) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"


def named_factory(text: str) -> tuple[str, tuple[str, str]]:
    name, separator, names = text.rpartition("=")
    module, factory = factory_names(names)
    return (name if separator else factory), (module, factory)


class Arrays(NamedTuple):
    """A user's data: inputs in the estimator's own layout and units, labels."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_arrays(path: Path, seed: int) -> Arrays:
    """Arrays of an .npz file: x_train, y_train, x_test, y_test, or x, y with x_test, y_test or a seeded fifth as test data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an .npz of plain arrays, or an array is missing.
    """
    from art_entropic.benchmark.cells import hold_out

    found = _plain_arrays(path)
    if set(Arrays._fields) <= set(found):
        return Arrays(**{name: found[name] for name in Arrays._fields})
    wish = "x_train, y_train, x_test, y_test, or x and y with or without x_test and y_test"
    x, y = _labelled(path, found, ("x", "y"), wish)
    if {"x_test", "y_test"} & set(found):
        return Arrays(x, y, *_labelled(path, found, ("x_test", "y_test"), wish))
    train, test = hold_out(len(x), TEST_SHARE, seed)
    return Arrays(x[train], y[train], x[test], y[test])


def load_test_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test points of an .npz file: x_test and y_test, or x and y.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an .npz of plain arrays, or an array is missing.
    """
    found = _plain_arrays(path)
    names = ("x_test", "y_test") if "x_test" in found else ("x", "y")
    return _labelled(path, found, names, "x_test and y_test, or x and y")


def _plain_arrays(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"`data` must be an .npz file, got {path}, which does not exist")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"`data` must be an .npz file with named arrays, got {path}, which is not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    # NumPy's ValueError asks to trust pickles: refused. Zip files know more compressions than Python does.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError) as error:
        reason = str(error).partition(".")[0]
        raise ValueError(f"`data` must hold plain arrays of numbers, got {path}: {reason}") from error
    for name, array in found.items():  # NumPy hands what is no array on as bytes
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise ValueError(f"`data` must hold arrays with one row for each example, got {name} in {path} without rows")
    return found


def _labelled(path: Path, found: dict[str, np.ndarray], names: tuple[str, str], wish: str) -> tuple[np.ndarray, np.ndarray]:
    if not set(names) <= set(found):
        raise ValueError(f"`data` must hold {wish}; {path} has {', '.join(found) or 'nothing'}")
    x, y = (found[name] for name in names)
    if len(x) != len(y):
        raise ValueError(f"`data` must hold one label for each example, got {names[0]} {x.shape} and {names[1]} {y.shape}")
    return x, y


def checked(arrays: Arrays, estimator: Any) -> Arrays:
    from art_entropic._validate import check_points

    x_train, y_train = check_points(estimator, arrays.x_train, arrays.y_train, names=("x_train", "y_train"))
    return Arrays(x_train, y_train, *check_points(estimator, arrays.x_test, arrays.y_test, names=("x_test", "y_test")))


def validation_split(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    from art_entropic.benchmark.cells import hold_out

    if not 0 <= share < 1:
        raise ValueError(f"`validation-split` must be a share of at least 0 and below 1, got {share!r}")
    return (np.arange(n), np.arange(0)) if share == 0 else hold_out(n, share, seed)


def factory_names(text: str, option: str = "estimator") -> tuple[str, str]:
    module, separator, factory = text.partition(":")
    if module.endswith(".py") or "/" in module:
        name = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"`{option}` must name a module and not its file: write {name}:{factory or 'FACTORY'}, got {text!r}")
    if not (module and separator and factory) or module.startswith("."):
        raise ValueError(f"`{option}` must be module:factory, such as mypkg.models:make_classifier, got {text!r}")
    return module, factory


def made_by(module: str, factory: str, device: str | None = None, option: str = "estimator") -> Any:
    """The user's estimator on that device, None where it is. The current folder is searched first, as by ``python -m``.

    Raises:
        ValueError: module or function is not there, or either fails or leaves; the message says how, and where.
    """
    from art_entropic.backends.registry import move_to

    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), factory, None)
    except (Exception, SystemExit) as error:  # a script that ends by `sys.exit` would end this command as if all were well
        raise ValueError(f"`{option}` {module}:{factory} could not be imported: {_told(error)}") from error
    if not callable(function):
        raise ValueError(f"`{option}` must name a function of {module}, got {factory!r}, which is not one")
    try:
        estimator = function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"`{option}` {module}:{factory}() failed with {_told(error)}") from error
    return estimator if device is None else move_to(estimator, device)


def _told(error: BaseException) -> str:
    """Type, message and place of an error of the user's own code, in one line."""
    message = " ".join(str(error).split())
    return type(error).__name__ + (f": {message}" if message else "") + _place(error)


def _place(error: BaseException) -> str:
    """The innermost line of the user's own, since the ones below it are the inside of a package."""
    if isinstance(error, SyntaxError):  # its text names the place, and the frames are Python's own
        return ""
    importing = ("<frozen ", importlib.__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if not frame.filename.startswith(importing)]
    packages = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib"))
    own = [frame for frame in frames if not frame.filename.startswith(packages)]
    return next((f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in reversed(own or frames)), "")


def check_folder(out: Path, *, resume: bool, force: bool) -> None:
    checkpoint = out / CHECKPOINT
    if resume:
        if not checkpoint.exists():
            raise ValueError(f"`--resume` needs an interrupted retraining, {out} has no {CHECKPOINT}")
        return
    if force:
        return
    if checkpoint.exists():
        raise ValueError(f"`out` {out} holds an interrupted retraining: --resume goes on with it, --force starts over")
    if any(out.glob(f"{WEIGHTS}.*")):
        raise ValueError(f"`out` {out} holds weights already: choose another folder, or --force to replace them")


@contextmanager
def out_folder(out: Path) -> Iterator[None]:
    """Make a folder and hold it, and take it away again where an error leaves it empty."""
    from art_entropic.files import LOCK, alone_in

    if out.exists() and not out.is_dir():
        raise ValueError(f"`out` must be a folder, got the file {out}")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with alone_in(out):
            yield
    finally:
        if made and [file.name for file in out.iterdir()] == [LOCK]:
            (out / LOCK).unlink()
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def save(out: Path, backend: Any, history: History, how_to_make: tuple[str, str]) -> Path:
    import msgspec

    from art_entropic.files import replacing, write_whole

    out.mkdir(parents=True, exist_ok=True)
    weights = out / f"{WEIGHTS}{backend.weights_suffix}"
    with replacing(weights, backend.weights_suffix) as temporary:
        backend.save_weights(temporary)
    lines = b"".join(msgspec.json.encode(epoch) + b"\n" for epoch in history.epochs)
    write_whole(out / HISTORY, lines)
    write_whole(out / README, f"{how_to_load(how_to_make, weights)}\n".encode())
    return weights


def how_to_load(how_to_make: tuple[str, str], weights: Path) -> str:
    imports, call = how_to_make
    return f"load:    {imports}; from art_entropic import load_weights; classifier = load_weights({call}, {str(weights)!r})"


def attacked_points(estimator: Any, arrays: Arrays, eps: float, norm: str, options: argparse.Namespace) -> Evaluation:
    from art_entropic.evaluation.evaluate import evaluate

    n = options.n_examples
    return evaluate(
        estimator,
        arrays.x_test[:n],
        arrays.y_test[:n],
        eps,
        norm,
        battery="quick",
        seeds=options.seed,
        checks=False,
        verbose=not options.quiet,
    )


def described(result: Evaluation) -> str:
    certified = f"none ({result.certified_reason})" if result.certified is None else as_share(result.certified)
    return (
        f"clean {as_share(result.clean)}, robust {as_share(result.robust)} (quick battery, an upper bound), "
        f"certified {certified}, n = {result.clean.n}"
    )
