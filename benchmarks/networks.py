"""Which measure works on which network: every network of the zoo through `fit` with each of them, and through `certify`.

    python benchmarks/networks.py [name ...]

Random weights, random inputs, two steps on batches of four, eps a tenth of the inputs' range. One record a network is appended
to results/networks.jsonl; `python benchmarks/tables.py` makes the table of docs/networks.md of the last ones.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import msgspec
from measuring import RESULTS

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.keys import digest
from art_entropic.benchmark.provenance import machine_provenance
from art_entropic.records import SCHEMA, Provenance, Record, append_record, installed_version
from art_entropic.report.table import Table, table_of

SHARE, BATCH, SEED = 0.1, 4, 0
TRAINS, OVERFLOWS, NO_RULE = "trains", "overflows", "no rule"


class NetworkRecord(Record, frozen=True, kw_only=True, tag="network", tag_field="kind"):
    """What worked on one network."""

    schema: int = SCHEMA
    key: str
    name: str
    title: str
    framework: str
    packages: tuple[str, ...]  # beside the framework
    measure: str  # that `measure=None` takes
    reason: str
    channel: str  # one of the outcomes above
    interval: str
    certificates: bool
    layer: str | None  # the first one without a rule
    operation: str | None
    settings: dict[str, float | int]
    provenance: Provenance


def records() -> dict[str, NetworkRecord]:
    """The last record of each network, those of a framework together and in the order of their titles."""
    lines = (RESULTS / "networks.jsonl").read_bytes().splitlines()
    found = [msgspec.json.decode(line, type=NetworkRecord) for line in lines]
    return {record.name: record for record in sorted(found, key=lambda record: (record.framework, record.title.lower()))}


def table(found: dict[str, NetworkRecord]) -> Table:
    """That of docs/networks.md, one row a network."""
    headings = ["network", "with", "`measure=None` takes", "because", "`channel`", "`interval`", "certificates"]
    rows = [
        [
            record.title,
            ", ".join(f"{package} {version}" for package, version in versions(record).items()),
            f"`{record.measure}`",
            because(record),
            record.channel,
            f"no rule for {record.operation} in `{record.layer}`" if record.interval == NO_RULE else record.interval,
            "yes" if record.certificates else "no",
        ]
        for record in found.values()
    ]
    return table_of(headings, rows, words=headings)


def because(record: NetworkRecord) -> str:
    if record.measure == "interval" or "cannot be had" not in record.reason:
        return record.reason.partition(", and")[0].removeprefix("the network is ")
    return {NO_RULE: "a rule is missing", OVERFLOWS: "the bounds overflow"}[record.interval]


def versions(record: NetworkRecord) -> dict[str, str]:
    row = FRAMEWORKS[record.framework]
    return {name: record.provenance.versions[name] for name in (row.package, *row.companions, *record.packages)}


# ------------------------------------------------------------------------------------------------------------- measuring


def outcome(network: Any, measure: str | None) -> tuple[str, Any]:
    """(one of the outcomes, the history or the error)."""
    from zoo import points, top

    from art_entropic import EntropicTrainer
    from art_entropic.history import TrainingDivergedError

    classifier = network.build()
    x, y = points(classifier, 2 * BATCH)
    trainer = EntropicTrainer(classifier, SHARE * top(classifier), measure=measure, verbose=False)
    try:
        return TRAINS, trainer.fit(x, y, batch_size=BATCH, nb_epochs=1, seed=SEED)
    except NoIntervalRuleError as error:
        return NO_RULE, error
    except TrainingDivergedError as error:
        return OVERFLOWS, error
    except ValueError as error:
        if "leave float32" not in str(error):
            raise
        return OVERFLOWS, error


def is_certifiable(network: Any) -> bool:
    from zoo import points, top

    from art_entropic import certify

    classifier = network.build()
    x, y = points(classifier, BATCH)
    try:
        certify(classifier, x, y, SHARE * top(classifier))
    except NoIntervalRuleError:
        return False
    return True


def measured(name: str, network: Any) -> NetworkRecord:
    told, history = outcome(network, None)
    if told != TRAINS:
        raise RuntimeError(f"{name}: no measure was found that works: {history}")
    channel, _ = outcome(network, "channel")
    interval, refused = outcome(network, "interval")
    packages = network.packages
    provenance = machine_provenance("python benchmarks/networks.py", (network.framework,), f"random inputs, seed {SEED}")
    installed = {package: installed_version(package) for package in packages}
    settings: dict[str, float | int] = {"eps_share": SHARE, "batch_size": BATCH, "nb_epochs": 1, "seed": SEED}
    return NetworkRecord(
        key=digest(name=name, **settings),
        name=name,
        title=network.title,
        framework=network.framework,
        packages=packages,
        measure=history.settings["measure"],
        reason=history.settings["reason"],
        channel=channel,
        interval=interval,
        certificates=is_certifiable(network),
        layer=refused.layer if interval == NO_RULE else None,
        operation=refused.operation if interval == NO_RULE else None,
        settings=settings,
        provenance=msgspec.structs.replace(provenance, versions={**provenance.versions, **installed}),
    )


def main() -> None:
    from zoo import networks

    found = networks()
    unknown = set(sys.argv[1:]) - set(found)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    for name in sys.argv[1:] or found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = measured(name, found[name])
        append_record(RESULTS / "networks.jsonl", record)
        print(name, record.measure, record.channel, record.interval, record.operation or "")


if __name__ == "__main__":
    main()
