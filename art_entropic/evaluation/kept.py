"""Finished attacks of an evaluation, in a folder of their own."""

from __future__ import annotations

import hashlib
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from art_entropic.evaluation.attempt import Attempt
from art_entropic.evaluation.case import Case
from art_entropic.evaluation.result import EVALUATION_REVISION
from art_entropic.evaluation.tally import Cost, Tally
from art_entropic.files import replacing
from art_entropic.ops import Array
from art_entropic.records import SCHEMA, installed_version

FINGERPRINT_POINTS = 100


class Finished:
    """Finished attacks in a folder, each named by all that determines it: network, points, attack, ball, seed, versions."""

    def __init__(self, folder: Path, case: Case) -> None:
        self._folder, target, x, y = folder, case.target, case.x, case.y
        known = hashlib.sha256(
            f"{SCHEMA} {EVALUATION_REVISION} {target.framework} {target.measure!r} {target.batch_size}".encode()
        )
        for package in ("adversarial-robustness-toolbox", "numpy", "torch", "tensorflow", "torchattacks"):
            known.update(f"{package} {installed_version(package)}".encode())
        for name, one in {"": target, **target.sources}.items():
            for weight, array in one.backend.state().items():
                known.update(f"{name} {weight} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
            # Preprocessing and whatever else is no weight show in what the network says.
            known.update(one.logits(x[:FINGERPRINT_POINTS]).tobytes())
        known.update(repr(target.classifier.clip_values).encode() + x.tobytes() + y.tobytes())
        self._known = known

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
                return tally, Cost(float(file["seconds"]), int(file["asked"]))
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError, NotImplementedError) as error:
            print(f"{path} is damaged ({error}): its attack is run again", file=sys.stderr)
            return None

    def write(self, attempt: Attempt, points: Array, tally: Tally, cost: Cost) -> None:
        path = self._path(attempt, points)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: value for name, value in vars(tally).items() if name != "errors"}
        with replacing(path, path.suffix) as temporary:
            np.savez(temporary, seconds=cost.seconds, asked=cost.queries, **arrays)
