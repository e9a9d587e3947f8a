"""Published networks: what loads is what was measured, and nothing else loads."""

from __future__ import annotations

import hashlib
import pickletools
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import publish_network
import pytest
from made import evaluation, training

import art_entropic
from art_entropic import list_networks, load_network, network_record
from art_entropic.backends.registry import backend_for
from art_entropic.benchmark import published_networks
from art_entropic.benchmark.data import for_framework, read_digits
from art_entropic.benchmark.published_networks import INDEX, PACKAGED, NetworkNotFoundError
from art_entropic.benchmark.store import RECORDS, Store
from art_entropic.evaluation.checks import retold
from art_entropic.records import ChecksRecord, EvaluationRecord, MeasurementRecord, TrainingRecord, read_records

NAMES = list_networks()
DIGITS = [name for name in NAMES if network_record(name).problem == "digits"]
FILES = [file for home in (PACKAGED, publish_network.LARGE) for file in sorted(home.glob("*")) if file.name != INDEX]


def test_there_are_networks_of_both_frameworks() -> None:
    assert {network_record(name).framework for name in DIGITS} == {"pytorch", "tensorflow"}


@pytest.mark.parametrize("name", DIGITS)
def test_a_network_is_right_on_as_many_points_as_its_record_says(name: str) -> None:
    record, data = network_record(name), read_digits()
    x, y = for_framework(data.x_test, record.framework), data.y_test
    assert data.sha256 == record.provenance.data_sha256
    attacked = slice(record.first_example, record.first_example + record.clean.n)
    right = load_network(name).predict(x[attacked]).argmax(axis=1) == y[attacked]
    assert right.sum() == record.clean.correct


def test_a_network_of_tensorflow_has_the_same_logits_in_pytorch() -> None:
    x = read_digits().x_test[:20]
    here = backend_for(load_network("digits-entropic-tensorflow")).logits(x)
    there = backend_for(load_network("digits-entropic-tensorflow", "pytorch", "cpu")).logits(for_framework(x, "pytorch"))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({"name": "digits-entropi"}, "`name` must be one of .*'digits-entropic', .*, got 'digits-entropi'"),
        ({"name": "digits-entropic", "framework": "jax"}, "`framework` must be one of 'pytorch', 'tensorflow', got 'jax'"),
        (
            {"name": "digits-entropic", "framework": "tensorflow"},
            "`framework` must be 'pytorch' for 'digits-entropic'.*networks for 'tensorflow': .*digits-entropic-tensorflow",
        ),
        ({"name": "digits-entropic", "device": "tpu"}, "`device` must be"),
    ],
)
def test_a_wrong_word_is_told_what_there_is(words: dict[str, str], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        load_network(**words)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has an index and no weights, and a folder beside it that has the weights."""
    package, folder = tmp_path / "package", tmp_path / "folder"
    package.mkdir(), folder.mkdir()
    shutil.copyfile(PACKAGED / INDEX, package / INDEX)
    shutil.copyfile(PACKAGED / "digits-entropic.pt", folder / "digits-entropic.pt")
    monkeypatch.setattr(published_networks, "PACKAGED", package)
    monkeypatch.setattr(published_networks, "CHECKOUT", package)
    monkeypatch.delenv("ART_ENTROPIC_NETWORKS", raising=False)
    return folder


def test_weights_that_are_not_part_of_the_package_come_from_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkNotFoundError, match=r"ART_ENTROPIC_NETWORKS is not set; set it .* digits-entropic\.pt"):
        load_network("digits-entropic")
    monkeypatch.setenv("ART_ENTROPIC_NETWORKS", str(home))
    assert load_network("digits-entropic").nb_classes == 10
    with pytest.raises(NetworkNotFoundError, match="which has no such file"):
        load_network("digits-natural")


def test_weights_come_from_a_url_by_their_hash(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def retrieve(url: str, *, known_hash: str, fname: str, path: Path) -> str:
        asked.append((url, known_hash, fname))
        if url.startswith("https://down/"):
            raise ConnectionError("no route")
        if url.startswith("https://other/"):
            raise ValueError("SHA256 hash of downloaded file does not match the known hash")
        return str(home / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.setenv("ART_ENTROPIC_NETWORKS", "https://host/networks/")
    load_network("digits-entropic")
    sha256 = network_record("digits-entropic").sha256
    assert asked == [("https://host/networks/digits-entropic.pt", f"sha256:{sha256}", "digits-entropic.pt")]
    monkeypatch.setenv("ART_ENTROPIC_NETWORKS", "https://down")
    with pytest.raises(NetworkNotFoundError, match=r"https://down/digits-entropic.pt could not be reached \(no route\)"):
        load_network("digits-entropic")
    monkeypatch.setenv("ART_ENTROPIC_NETWORKS", "https://other")
    with pytest.raises(ValueError, match="must be the published weights of 'digits-entropic': SHA256"):
        load_network("digits-entropic")


@pytest.mark.parametrize("packaged", [True, False])
def test_a_flipped_byte_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, packaged: bool) -> None:
    monkeypatch.setenv("ART_ENTROPIC_NETWORKS", str(home))
    content = bytearray((home / "digits-entropic.pt").read_bytes())
    content[len(content) // 2] ^= 1
    place = published_networks.PACKAGED if packaged else home
    (place / "digits-entropic.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"must be the published weights of 'digits-entropic', SHA-256 [0-9a-f]{64}, got"):
        load_network("digits-entropic")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_holds_numbers_and_no_code(file: Path) -> None:
    if file.suffix == ".pt":
        with zipfile.ZipFile(file) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".pkl"))
            opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(archive.read(name))]
        called = {argument for opcode, argument in opcodes if opcode == "GLOBAL"}
        storages = {"torch FloatStorage", "torch LongStorage"}
        assert called <= {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *storages}
        assert not {opcode for opcode, _ in opcodes} & {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
        return
    arrays: list[h5py.Dataset] = []
    with h5py.File(file) as weights:
        weights.visititems(lambda _, one: arrays.append(one) if isinstance(one, h5py.Dataset) else None)
        assert arrays and {array.dtype.kind for array in arrays} <= set("fiu")


def test_every_file_is_in_the_index_with_its_hash_and_all_are_small() -> None:
    records = {network_record(name).file: network_record(name) for name in NAMES}
    assert len(records) == len(NAMES) and sorted(records) == sorted(file.name for file in FILES)
    for file in FILES:
        content, record = file.read_bytes(), records[file.name]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (record.size, record.sha256)
        assert (file.parent == PACKAGED) == (record.size <= publish_network.MOST_PACKAGED)
    assert sum(record.size for record in records.values()) <= 25 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_what_the_published_results_say(name: str) -> None:
    record = network_record(name)
    found = {one.key: one for one in read_records(publish_network.RESULTS / f"{record.results}.jsonl")}
    trained, attacked = found[record.training_key], found[record.evaluation_key]
    # The checks may be those of another battery on the same weights.
    others = (read_records(path) for path in publish_network.RESULTS.glob(f"{record.problem}*.jsonl"))
    everywhere = {one.key: one for records in others for one in records if not isinstance(one, MeasurementRecord)}
    checks = None if record.checks_key is None else everywhere[record.checks_key]
    if isinstance(checks, ChecksRecord):
        checked = everywhere[checks.evaluation_key]
        assert isinstance(checked, EvaluationRecord) and checked.training_key == trained.key
    assert isinstance(trained, TrainingRecord) and isinstance(attacked, EvaluationRecord)
    assert attacked.training_key == trained.key
    for field in ("problem", "network", "framework", "defence", "variant", "seed", "eps", "norm", "provenance", "settings",
                  "nb_epochs", "batch_size", "n_train"):  # fmt: skip
        assert getattr(record, field) == getattr(trained, field)
    for field in ("battery", "first_example", "clean", "robust", "certified", "certified_reason"):
        assert getattr(record, field) == getattr(attacked, field)
    assert record.verdict == (retold(checks.verdict, checks.checks) if isinstance(checks, ChecksRecord) else None)
    assert f"{record.robust.value:.1%}" in str(record)


def test_a_training_that_was_done_again_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.weights.h5").write_bytes(b"weights")
    trained, attacked = training("entropic", network="small"), evaluation("entropic", 0.5, network="small")
    own = msgspec.structs.replace(trained, weights="weights/a.weights.h5")
    (tmp_path / RECORDS).touch()
    cell = "mine=pytorch:entropic"
    record, weights = publish_network.chosen([trained, attacked], Store(tmp_path, [own]), cell, 0, "table", {})
    assert (record.file, record.size, weights.read_bytes()) == ("mine.weights.h5", 7, b"weights")
    assert (record.robust, record.training_key, record.results) == (attacked.robust, trained.key, "table")
    again = msgspec.structs.replace(own, seconds=own.seconds + 1)
    with pytest.raises(ValueError, match="the very training in table"):
        publish_network.chosen([trained, attacked], Store(tmp_path, [again]), cell, 0, "table", {})
    with pytest.raises(ValueError, match=r"must be NAME=FRAMEWORK:DEFENCE\[:VARIANT\] with one training and one evaluation"):
        publish_network.chosen([trained, attacked], Store(tmp_path, [own]), cell, 1, "table", {})


def test_names_are_public() -> None:
    assert {"list_networks", "load_network", "network_record", "NetworkRecord"} <= set(art_entropic.__all__)
