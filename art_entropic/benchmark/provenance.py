"""Where a number comes from: versions, machine, time, and what else the machine did."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from art_entropic import __version__
from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.plan import ResolvedPlan
from art_entropic.records import Provenance, installed_version

SHARED_PACKAGES = ("adversarial-robustness-toolbox", "numpy", "scipy", "scikit-learn")


class Spent(NamedTuple):
    """What a training took: wall-clock seconds, and the share of this process's cores that others kept busy meanwhile."""

    seconds: float
    other_load: float | None  # None where the system does not tell


class Moment(NamedTuple):
    """Seconds, each since some time of its own."""

    wall: float
    own: float  # of work of this process
    busy: float | None  # of work of its cores, for whomever; None where the system does not tell
    cores: int


def moment() -> Moment:
    return Moment(time.perf_counter(), time.process_time(), _busy_seconds(), available_cores())


class Stopwatch:
    """Times a block, and watches whether the machine was free for it.

    Two processes on the same cores can slow each other tenfold, so that seconds alone would compare the neighbours.
    """

    def __init__(self, now: Callable[[], Moment] = moment) -> None:
        self._now, self._began = now, now()

    def stop(self) -> Spent:
        began, ended = self._began, self._now()
        seconds = ended.wall - began.wall
        if ended.busy is None or began.busy is None or seconds <= 0:
            return Spent(seconds, None)
        others = ended.busy - began.busy - (ended.own - began.own)
        return Spent(seconds, round(min(max(others / (seconds * ended.cores), 0.0), 1.0), 3))


def _busy_seconds() -> float | None:
    """CPU seconds that the cores of this process have worked since boot, for whomever. Source: proc_stat(5)."""
    stat = Path("/proc/stat")
    if not (stat.exists() and hasattr(os, "sched_getaffinity")):
        return None
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in stat.read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def provenance(plan: ResolvedPlan, data_sha256: str) -> Provenance:
    """Where and with what this process runs."""
    return machine_provenance(plan.command, plan.frameworks, data_sha256)


def machine_provenance(command: str, frameworks: Sequence[str], data_sha256: str) -> Provenance:
    """Where and with what this process runs, for a command over data of that digest."""
    return Provenance(
        created=timestamp(),
        command=command,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor_name(),
        cores=available_cores(),
        versions=package_versions(frameworks),
        data_sha256=data_sha256,
    )


def package_versions(frameworks: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that numbers depend on; nothing is imported."""
    rows = [FRAMEWORKS[framework] for framework in frameworks]
    packages = SHARED_PACKAGES + tuple(name for row in rows for name in (row.package, *row.companions))
    return {"art-entropic": __version__} | {package: installed_version(package) for package in packages}


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as the operating system calls it, with family, model and stepping where it tells them.

    A virtual machine can call every generation of a processor by one name, and one computes at a quarter of another's speed.
    """
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    first = text.lstrip().split("\n\n", 1)[0]  # the first core
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    name = facts.get("model name") or platform.processor() or platform.machine()
    known = [
        f"{field.removeprefix('cpu ')} {facts[field]}" for field in ("cpu family", "model", "stepping") if facts.get(field)
    ]
    return ", ".join([name, *known])


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def timestamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# A training's setting: the share of its cores that other processes kept busy, and from where on its seconds are unsure.
OTHER_LOAD = "other_load"
