"""The keys under which records are found again: digests of what a result depends on, by name.

A key holds what changes a result, and only where it differs from what schema 2 takes for granted, which the tables below say
for good. So neither a reworded title nor a new parameter makes a published network count as not done: the default of a new
parameter is added to its table, and old keys stay as they are. Where a default of the library differs from the table's, so does
the key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from art_entropic.analysis.profile import PROFILE_REVISION
from art_entropic.backends.architecture import Architecture, normalises_by_batch
from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.defences import DEFENCES, VALIDATION_SHARE, Defence
from art_entropic.benchmark.plan import ResolvedPlan, Variant
from art_entropic.choosing import AGREEMENT, AUTOMATIC, LARGE_EPS
from art_entropic.evaluation.attacks import BATTERIES
from art_entropic.evaluation.checks import CHECKS, CHECKS_REVISION
from art_entropic.evaluation.result import CURVE_BATTERY, EVALUATION_REVISION
from art_entropic.measures import MEASURES, Channel, Measure
from art_entropic.records import SCHEMA
from art_entropic.schedule import DECAY

# What schema 2 takes for granted. Rows may be added, with the value that held before there was a choice; none may change.
_TRAINING: dict[str, Any] = {
    "n_train": None,
    "norm": "inf",
    "augmentation": "none",
    "keep": "last",
    "device": None,
    "decay": 0.5,
    "validation_share": 0.1,
    "revision": 1,
    "start": None,
    "constants": {},
    # How batch norm standardised the points of the ball that `channel` reads.
    "points_by": "running statistics",
}
_CONSTANTS = {"ramp": 0.5, "smallest": 0.01, "steps": 7, "step_share": 0.25, "beta_grey": 1.0, "beta_colour": 6.0}
# `agreement` came later. No published choice is another one for it, so that it is granted.
_AUTOMATIC = {"candidates": ["interval", "channel"], "large_eps": 0.05, "agreement": 0.9}
_SCHEDULE = {"warmup": 0.0, "decay": 0.5}
_MEASURES: dict[str, dict[str, Any]] = {
    "interval": {
        "beta": 0.1, "k": 0.5, "resolution": 1.0, "layers": "all", "relative": False, "eps_factor": 1.0, "read_share": 0.5,
        "pure": 0.5, "pure_beta": 0.3, "ramp": 0.6, **_SCHEDULE,
    },
    "linear": {
        "beta": 0.1, "k": 0.5, "resolution": 1.0, "layers": "all", "relative": False, "eps_factor": 1.0, "read_share": 0.5,
        "pure": 0.5, "pure_beta": 0.3, "ramp": 0.6, **_SCHEDULE,
    },
    "channel": {
        "beta": 0.5, "k": 0.5, "resolution": 1.0, "eps_factor": 1.0, "read_share": 0.5, "pure": 0.0, "pure_beta": 0.0,
        "ramp": 0.2, **_SCHEDULE,
    },
    "coding": {
        "beta": 1.0, "resolution": 1.0, "layers": "all", "eps_factor": 1.0, "read_share": 1.0, "ramp": 0.5, **_SCHEDULE,
    },
    "activation": {"beta": 0.1, "resolution": 1.0, "layers": "all", "read_share": 1.0, "ramp": 0.5, **_SCHEDULE},
}  # fmt: skip
_LAYERS: dict[str, dict[str, Any]] = {
    "Conv": {"stride": 1, "padding": 0, "activation": "relu", "batch_norm": False},
    "Residual": {"stride": 1, "activation": "relu"},
    "MaxPool": {"size": 2},
    "GlobalAverage": {},
    "OneHot": {},
    "Patches": {},
    "Encoder": {},
    "TokenMean": {},
    "Flatten": {},
    "Dense": {"activation": "relu"},
}
_EVALUATION = {"first_example": 0, "points_per_shard": None, "revision": 2, "curve_battery": ["pgd_ce", "pgd_margin"]}


def training_key(
    plan: ResolvedPlan, framework: str, seed: int, row: tuple[str, Variant | None], data_sha256: str, start: str | None,
    versions: Mapping[str, str],
) -> str:  # fmt: skip
    """Key of one training.

    Args:
        row: a defence, and its variant or None for the defence itself. The variant's name is no part of the key.
        start: key of the training whose weights it starts from; None for initial weights.
        versions: of packages, local labels such as "+cpu" included or not.
    """
    name, variant = row
    defence, problem = DEFENCES[name], plan.problem_spec
    facts = {
        "n_train": plan.n_train,
        "norm": plan.norm,
        "augmentation": plan.augmentation,
        "keep": plan.keep,
        # One GPU is like another.
        "device": None if plan.device is None else plan.device.partition(":")[0],
        "decay": DECAY,
        "validation_share": VALIDATION_SHARE,
        "revision": defence.revision,
        "start": start,
        "constants": _beyond(defence.constants, _CONSTANTS),
        "points_by": _points_by(defence, variant, problem.networks[plan.network]),
    }
    return digest(
        kind="training",
        schema=SCHEMA,
        problem=plan.problem,
        data=data_sha256,
        network=plan.network,
        architecture=_architecture_facts(problem.networks[plan.network]),
        framework=framework,
        versions=_computing(framework, versions),
        seed=seed,
        defence=name,
        eps=plan.eps,
        nb_epochs=plan.epochs_of(name, variant),
        batch_size=problem.batch_size,
        learning_rate=problem.learning_rate,
        **({"measure": _measure_facts(_measure(defence, variant))} if defence.ours else {}),
        **_beyond(facts, _TRAINING),
    )


def evaluation_key(plan: ResolvedPlan, training: str) -> str:
    """Key of the evaluation of a training's network."""
    facts = {
        "first_example": plan.first_example,
        "points_per_shard": plan.points_per_shard,
        "revision": EVALUATION_REVISION,
        "curve_battery": list(BATTERIES[CURVE_BATTERY]),
    }
    return digest(
        kind="evaluation",
        schema=SCHEMA,
        training=training,
        attacks=list(BATTERIES[plan.battery]),
        eps=plan.eps,
        n_examples=plan.n_examples,
        curve_eps=list(plan.curve_eps),
        **_beyond(facts, _EVALUATION),
    )


def checks_key(evaluation: str, natural: str) -> str:
    """Key of the checks of an evaluation, which transfer from a natural network."""
    return digest(
        kind="checks", schema=SCHEMA, evaluation=evaluation, source=natural, checks=list(CHECKS), revision=CHECKS_REVISION
    )


def profile_key(plan: ResolvedPlan, trainings: list[str], n: int) -> str:
    """Key of the profile of the networks of some trainings at n points."""
    return digest(
        kind="profile",
        schema=SCHEMA,
        revision=PROFILE_REVISION,
        trainings=trainings,
        eps=plan.eps,
        first_example=plan.first_example,
        n=n,
    )


def digest(**facts: Any) -> str:
    """SHA-256 of named facts, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _measure(defence: Defence, variant: Variant | None) -> Measure | None:
    return defence.measure if variant is None or variant.measure is None else variant.measure


def _points_by(defence: Defence, variant: Variant | None, architecture: Architecture) -> str:
    measure = _measure(defence, variant)
    first_order = defence.ours and (measure is None or isinstance(measure, Channel))
    return "batch statistics" if first_order and normalises_by_batch(architecture) else "running statistics"


def _measure_facts(measure: Measure | None) -> dict[str, Any]:
    """A measure by name; None is the choice between those of AUTOMATIC, and what it may come to."""
    if measure is not None:
        return {"type": measure.name, **_beyond(_hyperparameters(measure), _MEASURES[measure.name])}
    rule = _beyond({"candidates": list(AUTOMATIC), "large_eps": LARGE_EPS, "agreement": AGREEMENT}, _AUTOMATIC)
    own = {name: _beyond(_hyperparameters(MEASURES[name]()), _MEASURES[name]) for name in AUTOMATIC}
    return {"type": "automatic", **rule, **{name: facts for name, facts in own.items() if facts}}


def _hyperparameters(measure: Measure) -> dict[str, Any]:
    """All of them, None of a schedule in the value that it stands for."""
    values = msgspec.structs.asdict(measure)
    values |= {"warmup": measure.schedule.warmup, "ramp": measure.ramp, "decay": measure.decay}
    # Layers are read in the order of the network, whatever the order of their names.
    return {name: sorted(value) if isinstance(value, tuple) else value for name, value in values.items() if name != "schedule"}


def _architecture_facts(architecture: Architecture) -> list[list[Any]]:
    """Each layer as its kind and what differs from the kind's usual."""
    return [[type(layer).__name__, _beyond(dataclasses.asdict(layer), _LAYERS[type(layer).__name__])] for layer in architecture]


def _computing(framework: str, versions: Mapping[str, str]) -> dict[str, str]:
    """Versions that numbers depend on. A build of the same release for another processor is the same release."""
    row = FRAMEWORKS[framework]
    packages = ("adversarial-robustness-toolbox", "numpy", row.package, *row.companions)
    return {package: versions[package].partition("+")[0] for package in packages}


def _beyond(facts: Mapping[str, Any], granted: Mapping[str, Any]) -> dict[str, Any]:
    """What is not as the schema takes it for granted."""
    return {name: value for name, value in facts.items() if name not in granted or granted[name] != value}
