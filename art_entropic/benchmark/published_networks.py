"""Networks that come trained, by name, each with what was measured of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from art_entropic._validate import choice
from art_entropic.backends.registry import FRAMEWORKS, load_weights, move_to
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.downloads import NotReachedError, fetched, folder_state
from art_entropic.benchmark.problems import PROBLEMS, build_classifier, to_pytorch
from art_entropic.benchmark.store import file_sha256
from art_entropic.records import SCHEMA, Accuracy, Provenance, Record, Setting

NETWORKS_FOLDER = "ART_ENTROPIC_NETWORKS"  # a folder, or the URL of one
PACKAGED = Path(__file__).parent.parent / "networks"
CHECKOUT = PACKAGED.parent.parent / "results" / "networks"  # where the package is run from its repository
INDEX = "index.jsonl"


class NetworkNotFoundError(FileNotFoundError):
    """The weights of a published network are not here and not to be had; one line says what to do."""


class NetworkRecord(Record, frozen=True, kw_only=True):
    """A published network: how it was trained, and what its evaluation found.

    Attributes:
        file, size, sha256: of the weights; bytes.
        results: name of the file under ``results/`` that has the whole records, under the three keys.
        problem, network: names of PROBLEMS, and of the problem's networks.
        eps, norm: of the ball that it was trained for and attacked in; inputs lie in [0, 1].
        seed: of the training and of the attacks.
        n_train: points that it was trained on.
        settings: of the training, those of EntropicTrainer as ``trainer.<name>``.
        battery: that it was attacked with, on `clean.n` test points from number `first_example` on.
        clean, robust, certified: the shares, with Wilson 95 % intervals; `certified` is None without a certificate.
        verdict: of the sanity checks; None where they were not run.
        provenance: where and when it was trained, with which versions, and the command that trains it again.
    """

    schema: int = SCHEMA
    name: str
    file: str
    size: int
    sha256: str
    results: str
    training_key: str
    evaluation_key: str
    checks_key: str | None = None
    problem: str
    network: str
    framework: str
    defence: str
    variant: str = ""
    seed: int
    eps: float
    norm: str = "inf"
    nb_epochs: int
    batch_size: int
    n_train: int
    settings: dict[str, Setting]
    battery: str
    first_example: int = 0
    clean: Accuracy
    robust: Accuracy
    certified: Accuracy | None = None
    certified_reason: str | None = None
    verdict: str | None = None
    provenance: Provenance

    @property
    def measure(self) -> str | None:
        """What EntropicTrainer retrained it with; None for the other defences."""
        chosen = self.settings.get("trainer.measure")
        return None if chosen is None else str(chosen)

    def __str__(self) -> str:
        measure = f" with {self.measure!r}" if self.measure else ""
        variant = f", {self.variant}" if self.variant else ""
        shares = {"clean": self.clean, "robust": self.robust, "certified": self.certified}
        told = ", ".join(
            f"{name} {share.value:.1%} [{share.low:.1%}, {share.high:.1%}]" for name, share in shares.items() if share
        )
        return (
            f"{self.name}: {DEFENCES[self.defence].title}{measure}{variant}, {FRAMEWORKS[self.framework].title}, network "
            f"{self.network!r} of {PROBLEMS[self.problem].title}, {self.nb_epochs} epochs on {self.n_train} points, seed "
            f"{self.seed}. L{self.norm} eps {self.eps:g}, battery {self.battery!r}, n = {self.robust.n}: {told}"
            + (f". Verdict: {self.verdict}" if self.verdict else "")
        )


def list_networks() -> list[str]:
    """Names of the published networks, for `load_network` and `network_record`."""
    return sorted(_index())


def network_record(name: str) -> NetworkRecord:
    """What is known of a published network: how it was trained, clean, robust and certified accuracy, the verdict.

    Raises:
        ValueError: there is none of that name; the message lists those that there are.
    """
    networks = _index()
    return networks[choice("name", name, sorted(networks))]


def load_network(name: str, framework: str | None = None, device: str | None = None) -> Any:
    """A published network as an ART classifier, trained and ready: for ART's attacks, `evaluate`, or further retraining.

    Small networks are part of the package, and a checkout of the repository has them all. Else the weights are looked for where
    the environment variable ART_ENTROPIC_NETWORKS points: a folder, or the URL of one, whose files are then kept in a cache.
    Every file is checked by its SHA-256, and none is read in a way that could run code.

    Args:
        name: see `list_networks`.
        framework: "pytorch" or "tensorflow"; None takes the one that it was trained in. A network of TensorFlow can be had in
            PyTorch too, with the same logits up to rounding; the other way round is an error.
        device: "auto" (the first GPU where there is one, else the processor), "cpu", "cuda" or "cuda:i"; None takes what ART
            and the framework take by themselves.
    Returns:
        An ART PyTorchClassifier (inputs channels first) or TensorFlowV2Classifier (channels last), of inputs in [0, 1].
    Raises:
        ValueError: the name, the framework or the device is unknown, or the file of weights is another one.
        NetworkNotFoundError: the weights are not here; the message says where to get them.
        MissingFrameworkError: the framework is not installed.
    """
    record = network_record(name)
    wanted = record.framework if framework is None else choice("framework", framework, FRAMEWORKS)
    if wanted not in (record.framework, "pytorch"):
        others = [other.name for other in _index().values() if other.framework == wanted]
        raise ValueError(
            f"`framework` must be {record.framework!r} for {name!r}, whose weights cannot be converted, got {framework!r}; "
            f"networks for {wanted!r}: {', '.join(sorted(others)) or 'none'}"
        )
    return built(record, weights_of(record), wanted, device)


def built(record: NetworkRecord, weights: Path, framework: str | None = None, device: str | None = None) -> Any:
    """The classifier of a record with the weights of a file.

    Raises:
        ValueError: they are of another network.
    """
    problem, wanted = PROBLEMS[record.problem], framework or record.framework
    same = wanted == record.framework
    classifier = build_classifier(problem, record.framework, record.seed, record.network, device=device if same else None)
    DEFENCES[record.defence].adapt_network(classifier)
    load_weights(classifier, weights)
    if same:
        return classifier
    converted = to_pytorch(classifier, problem, record.network)
    DEFENCES[record.defence].adapt_network(converted)
    return converted if device is None else move_to(converted, device)


def weights_of(record: NetworkRecord) -> Path:
    """The file of its weights, checked: of the package, of its repository, of what ART_ENTROPIC_NETWORKS names.

    Raises:
        NetworkNotFoundError: neither has it.
        ValueError: it has, but with another content.
    """
    home = os.environ.get(NETWORKS_FOLDER, "")
    for folder in (PACKAGED, CHECKOUT):
        if (folder / record.file).is_file():
            return _with_hash(folder / record.file, record)
    if "://" in home:
        return _fetched(f"{home.rstrip('/')}/{record.file}", record)
    if home and (Path(home) / record.file).is_file():
        return _with_hash(Path(home) / record.file, record)
    raise NetworkNotFoundError(
        f"the weights of {record.name!r} are not part of the package, and {NETWORKS_FOLDER} {folder_state(NETWORKS_FOLDER)}; "
        f"set it to a folder that holds {record.file}, such as results/networks of a checkout, or to the URL of one"
    )


def write_index(path: Path, records: list[NetworkRecord]) -> None:
    """One record a line, by name."""
    lines = [msgspec.json.encode(record) + b"\n" for record in sorted(records, key=lambda record: record.name)]
    path.write_bytes(b"".join(lines))


def read_index(path: Path) -> list[NetworkRecord]:
    """The records of an index.

    Raises:
        ValueError: a line is none, or of a schema that this version does not read.
    """
    try:
        found = [msgspec.json.decode(line, type=NetworkRecord) for line in path.read_bytes().splitlines()]
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} must hold one network record per line, got something else: {error}") from error
    for record in found:
        if record.schema != SCHEMA:
            raise ValueError(f"{path} must hold records of schema {SCHEMA}, got {record.schema} for {record.name!r}")
    return found


def _index() -> dict[str, NetworkRecord]:
    return {record.name: record for record in read_index(PACKAGED / INDEX)}


def _with_hash(path: Path, record: NetworkRecord) -> Path:
    found = file_sha256(path)
    if found != record.sha256:
        raise ValueError(f"{path} must be the published weights of {record.name!r}, SHA-256 {record.sha256}, got {found}")
    return path


def _fetched(url: str, record: NetworkRecord) -> Path:
    try:
        return fetched(url, record.sha256, record.file)
    except NotReachedError as error:
        raise NetworkNotFoundError(
            f"the weights of {record.name!r} are not here: {error}; {NETWORKS_FOLDER} may also name a folder that holds "
            f"{record.file}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url} must be the published weights of {record.name!r}: {error}") from error
