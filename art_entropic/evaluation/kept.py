"""Finished attacks of an evaluation, in a folder of their own."""

from __future__ import annotations

import hashlib
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from art_entropic.evaluation.attempt import AttackRun
from art_entropic.evaluation.result import EVALUATION_REVISION
from art_entropic.evaluation.target import Ball, Target
from art_entropic.files import replacing
from art_entropic.ops import Array
from art_entropic.records import SCHEMA, installed_version

FINGERPRINT_POINTS = 100


class Finished:
    """Finished attacks in a folder, each named by all that determines it: network, points, attack, ball, seed, versions."""

    def __init__(self, folder: Path, target: Target, x: Array, y: Array) -> None:
        self._folder, self._target = folder, target
        known = hashlib.sha256(
            f"{SCHEMA} {EVALUATION_REVISION} {target.framework} {target.measure} {target.batch_size}".encode()
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

    def _path(self, name: str, index: Array, ball: Ball, seed: int) -> Path:
        key = self._known.copy()
        key.update(f"{name} {ball} {seed}".encode() + index.tobytes())
        return self._folder / f"{name}-{key.hexdigest()[:20]}.npz"

    def read(self, name: str, index: Array, ball: Ball, seed: int) -> tuple[AttackRun, tuple[float, int]] | None:
        path = self._path(name, index, ball, seed)
        if not path.exists():
            return None
        try:
            # Opened here, since NumPy leaves a file open that is no whole archive.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                run = AttackRun(**{name: file[name] for name in AttackRun.__dataclass_fields__ if name != "errors"})
                return run, (float(file["seconds"]), int(file["asked"]))
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError, NotImplementedError) as error:
            print(f"{path} is damaged ({error}): its attack is run again", file=sys.stderr)
            return None

    def write(self, name: str, index: Array, ball: Ball, seed: int, run: AttackRun, seconds: float, asked: int) -> None:
        path = self._path(name, index, ball, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: value for name, value in vars(run).items() if name != "errors"}
        with replacing(path, path.suffix) as temporary:
            np.savez(temporary, seconds=seconds, asked=asked, **arrays)
