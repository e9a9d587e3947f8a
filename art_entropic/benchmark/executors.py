"""Executors: this process, processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, TypeVar

from art_entropic._validate import finite, positive_int
from art_entropic.benchmark.cells import jobs_of
from art_entropic.benchmark.provenance import available_cores
from art_entropic.extras import optional

T = TypeVar("T")


class InProcess(Executor):
    """Does what it is given at once, in this process; only an interrupt ends more than the task."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def process_pool(n_jobs: int) -> Iterator[Executor]:
    """Processes of this machine, each with cores of its own, so that they do not slow each other.

    Args:
        n_jobs: number of processes, >= 1. More than there are cores are allowed, with a warning.
    """
    cores = available_cores()
    if positive_int("jobs", n_jobs) > cores:
        told = f"{n_jobs} jobs on {cores} cores slow each other down: do not compare their training times"
        print(told, file=sys.stderr)
    with _pool(_shares(n_jobs), one_thread=n_jobs > 1) as pool:
        yield pool


class SideBySide(Executor):
    """Gives every task to the process of its framework, so that each process imports one framework and no other."""

    def __init__(self, of_framework: Mapping[str, Executor]) -> None:
        self._of_framework = of_framework

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Args begin with a `WorkRequest`."""
        framework = jobs_of(args[0].task)[0].framework
        return self._of_framework[framework].submit(fn, *args, **kwargs)


@contextlib.contextmanager
def side_by_side(frameworks: Sequence[str]) -> Iterator[Executor]:
    """A process of this machine for each framework, each with cores of its own and one thread."""
    shares = _shares(len(frameworks))
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(_pool([share], one_thread=True)) for share in shares]
        yield SideBySide(dict(zip(frameworks, pools, strict=True)))


@contextlib.contextmanager
def _pool(cores: Sequence[tuple[int, ...]], *, one_thread: bool) -> Iterator[Executor]:
    """A process for each share of the cores."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads, as frameworks have them, may hang
    shares = context.SimpleQueue()
    for share in cores:
        shares.put(share)
    with ProcessPoolExecutor(len(cores), mp_context=context, initializer=_settle, initargs=(shares, one_thread)) as pool:
        yield pool


def _shares(n_jobs: int) -> list[tuple[int, ...]]:
    """Which cores each process has; empty where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return [()] * n_jobs
    cores = sorted(os.sched_getaffinity(0))
    if n_jobs >= len(cores):
        return [(cores[number % len(cores)],) for number in range(n_jobs)]
    return [tuple(cores[number::n_jobs]) for number in range(n_jobs)]


def _settle(shares: Any, one_thread: bool) -> None:
    """Take a share of the cores, before any framework is imported and counts them.

    Of several processes each computes in one thread: on cores that others use too, threads that wait for each other by spinning
    have taken a training from 20 s to half an hour.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process of a terminal, and must not wait for a task
    share = shares.get()
    threads = "1" if one_thread else str(len(share) or max(1, available_cores()))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = threads
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # or the first process takes all of the GPU's memory
    if share:
        os.sched_setaffinity(0, share)


@contextlib.contextmanager
def dask_cluster(address: str, timeout: float = 10.0, resources: Mapping[str, float] | None = None) -> Iterator[Executor]:
    """The workers of a Dask scheduler, whoever started it: a shell, dask-jobqueue on SLURM, dask-kubernetes.

    Args:
        address: of the scheduler, such as "tcp://host:8786".
        timeout: seconds until it counts as unreachable, and, with `resources`, until a cluster without workers is believed to
            get them later.
        resources: what each piece of work takes of its worker, by the names that `dask worker --resources "GPU=1"` gave; only
            workers that offer all of it are asked.
    Raises:
        MissingPackageError: Dask is not installed.
        TypeError, ValueError: no scheduler answers there; a resource has no name or no positive amount, or no worker offers
            all of them.
    """
    wanted = _check_resources(resources)
    distributed = optional("distributed")
    try:
        client = distributed.Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"`scheduler` must be the address of a running Dask scheduler, got {address!r}: {error}") from error
    with client:
        if wanted:
            with contextlib.suppress(distributed.TimeoutError):
                client.wait_for_workers(1, timeout=timeout)
            _check_offers(client, wanted, address)
        with client.get_executor(**({"resources": wanted} if wanted else {})) as executor:
            yield executor


def _check_resources(resources: Mapping[str, float] | None) -> dict[str, float]:
    if resources is not None and not isinstance(resources, Mapping):
        raise TypeError(f"`resources` must map names to amounts, such as {{'GPU': 1}}, got {resources!r}")
    for name, amount in (resources or {}).items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"`resources` must have non-empty names, such as 'GPU', got {name!r}")
        if finite(f"resources[{name!r}]", amount) <= 0:
            raise ValueError(f"`resources[{name!r}]` must be positive, got {amount!r}")
    return dict(resources or {})


def _check_offers(client: Any, wanted: Mapping[str, float], address: str) -> None:
    """Dask waits forever for a worker with a resource that none has, so it is asked before any work."""
    # All workers: some releases of Dask tell of five, those before them take no number and tell of all.
    offers = [worker.get("resources") or {} for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    if not offers:
        print(
            f"the cluster at {address} has no workers yet: cells wait until one with {_shown(wanted)} joins it", file=sys.stderr
        )
    elif not any(all(offer.get(name, 0) >= amount for name, amount in wanted.items()) for offer in offers):
        offered = dict.fromkeys(map(_shown, offers))
        raise ValueError(
            f"`resources` must be offered by a worker of {address}, got {_shown(wanted)}: its {len(offers)} workers offer "
            f'{"; ".join(offered)}. Start one with dask worker --resources "{_shown(wanted)}"'
        )


def _shown(resources: Mapping[str, float]) -> str:
    return " ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "none"
