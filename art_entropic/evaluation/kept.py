"""Finished attacks of an evaluation, in a folder of their own."""

from __future__ import annotations

import hashlib
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from art_entropic.evaluation.attempt import Attempt
from art_entropic.evaluation.case import Case
from art_entropic.evaluation.result import EVALUATION_REVISION
from art_entropic.evaluation.tally import Cost, Tally
from art_entropic.evaluation.target import Target
from art_entropic.files import replacing
from art_entropic.guards import points_of_ball, some_of
from art_entropic.ops import Array
from art_entropic.records import SCHEMA, installed_version

FINGERPRINT_POINTS = 100
KEPT_FORMAT = 2  # of the files
# Points beside the data at which the network is looked at: examples, and copies of each.
PROBED_EXAMPLES, PROBED_COPIES = 4, 4
_PROJECTIONS = 4
# Gradients differ so far between two passes of a GPU, relative to the largest.
_SAME = 1e-3


class Finished:
    """Finished attacks in a folder, each named by all that determines it: network, points, attack, ball, seed, versions.

    Weights and answers on the data do not tell all of a network. A quantiser that the data pass unchanged, or a backward pass
    of its own, shows beside them, in logits and gradients. These are kept with each attack and compared, since on a GPU they
    are not the same to the last bit.
    """

    def __init__(self, folder: Path, case: Case) -> None:
        self._folder, target, x, y = folder, case.target, case.x, case.y
        facts = (SCHEMA, EVALUATION_REVISION, KEPT_FORMAT, target.framework, repr(target.measure), target.batch_size)
        known = hashlib.sha256(" ".join(map(str, facts)).encode())
        for package in ("adversarial-robustness-toolbox", "numpy", "torch", "tensorflow", "torchattacks"):
            known.update(f"{package} {installed_version(package)}".encode())
        networks = {"": target, **target.sources}
        for name, one in networks.items():
            for weight, array in one.backend.state().items():
                _update(known, f"{name} {weight}", array)
            # Preprocessing and whatever else is no weight show in what the network says.
            _update(known, name, one.logits(x[:FINGERPRINT_POINTS]))
        for end in () if target.classifier.clip_values is None else target.classifier.clip_values:
            _update(known, "clip_values", np.asarray(end))
        _update(known, "x", x)
        _update(known, "y", y)
        self._known = known
        self._probes = {f"probe_{number}": _probed(one, case) for number, one in enumerate(networks.values())}

    def _path(self, attempt: Attempt, points: Array) -> Path:
        key = self._known.copy()
        key.update(f"{attempt.attack} {attempt.ball} {attempt.seed}".encode() + points.tobytes())
        return self._folder / f"{attempt.attack}-{key.hexdigest()[:20]}.npz"

    def read(self, attempt: Attempt, points: Array) -> tuple[Tally, Cost] | None:
        """What an attempt on the points of these indices found and took; None where it is not finished."""
        path = self._path(attempt, points)
        if not path.exists():
            return None
        try:
            # Opened here, since NumPy leaves a file open that is no whole archive.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                tally = Tally(**{name: file[name] for name in Tally.__dataclass_fields__ if name != "errors"})
                if not all(_alike(file[name], probe) for name, probe in self._probes.items()):
                    print(
                        f"{path} is of a network with other logits or gradients beside the data: its attack is run again",
                        file=sys.stderr,
                    )
                    return None
                return tally, Cost(float(file["seconds"]), int(file["asked"]))
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            KeyError,
            ValueError,
            TypeError,
            NotImplementedError,
        ) as error:
            print(f"{path} is damaged ({error}): its attack is run again", file=sys.stderr)
            return None

    def write(self, attempt: Attempt, points: Array, tally: Tally, cost: Cost) -> None:
        """Keep what an attempt found. Where that fails a line says so: the attack has run, and counts."""
        path = self._path(attempt, points)
        arrays: dict[str, Any] = {name: value for name, value in vars(tally).items() if name != "errors"}
        arrays |= {"seconds": cost.seconds, "asked": cost.queries, **self._probes}
        try:
            with replacing(path, path.suffix) as temporary:
                np.savez(temporary, **arrays)
        except OSError as error:
            print(f"{path} could not be written ({error}): its attack counts, and a later start runs it again", file=sys.stderr)


def _update(known: hashlib._Hash, name: str, array: Array) -> None:
    known.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())


def _probed(target: Target, case: Case) -> Array:
    """(2, n, k): logits at random points of the ball, and the gradient of a random combination of them, projected.

    The same for the same network, up to rounding. Where nothing can be differentiated the gradients are NaN.
    """
    backend, nb_classes, ball = target.backend, target.nb_classes, max(case.balls, key=lambda ball: ball.eps)
    examples = some_of(case.x, PROBED_EXAMPLES)
    x = points_of_ball(backend, examples, ball.eps, PROBED_COPIES, 2.0 if np.isfinite(ball.norm) else ball.norm)
    rng = np.random.default_rng(0)
    v = rng.normal(size=(len(x), nb_classes)).astype(np.float32)
    with target.untouched(0):
        logits = np.asarray(backend.logits(x), np.float64)
        try:
            gradients = np.asarray(backend.input_gradient(x, v), np.float64).reshape(len(x), -1)
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise
            gradients = np.full((len(x), 1), np.nan)  # which the attacks and the checks report
    directions = rng.normal(size=(gradients.shape[1], _PROJECTIONS))
    seen = np.zeros((2, len(x), max(nb_classes, _PROJECTIONS)))
    seen[0, :, :nb_classes], seen[1, :, :_PROJECTIONS] = logits, gradients @ directions
    return seen


def _alike(kept: Array, now: Array) -> bool:
    """Whether two probes are of one network."""
    if kept.shape != now.shape:
        return False
    scale = np.nan_to_num(np.abs(now), posinf=0.0).max(axis=(1, 2), keepdims=True)
    return bool(np.all(np.isclose(kept, now, rtol=0.0, atol=_SAME * scale, equal_nan=True)))
