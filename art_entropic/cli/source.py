"""Where a command takes classifier and data from: the user, or the published networks, which have data of their own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from art_entropic.benchmark.published_networks import NetworkRecord
from art_entropic.cli.arguments import DEFAULT_NORM, PROGRAM
from art_entropic.cli.user_code import Arrays, factory_names, load_arrays, load_test_arrays, made_by


class Source(Protocol):
    """A classifier, and the data it is about."""

    @property
    def name(self) -> str:
        """Of the folder that results go to where no other is named."""

    @property
    def eps(self) -> float: ...

    @property
    def norm(self) -> str: ...

    @property
    def published(self) -> NetworkRecord | None:
        """The record of a published network, None for the user's own."""

    @property
    def how_to_make(self) -> tuple[str, str]:
        """In Python, what to import and what to call to have the classifier."""

    def classifier(self) -> Any: ...

    def test_points(self) -> tuple[np.ndarray, np.ndarray]: ...

    def arrays(self, seed: int) -> Arrays: ...


@dataclass(frozen=True)
class OwnNetwork:
    """A function of the user's, and a file of arrays."""

    module: str
    factory: str
    data: Path
    eps: float
    norm: str
    device: str | None
    published: None = None

    @property
    def name(self) -> str:
        return f"{self.module}-{self.factory}"

    @property
    def how_to_make(self) -> tuple[str, str]:
        return f"from {self.module} import {self.factory}", f"{self.factory}()"

    def classifier(self) -> Any:
        return made_by(self.module, self.factory, self.device)

    def test_points(self) -> tuple[np.ndarray, np.ndarray]:
        return load_test_arrays(self.data)

    def arrays(self, seed: int) -> Arrays:
        return load_arrays(self.data, seed)


@dataclass(frozen=True)
class PublishedNetwork:
    """A published network, and the data of its problem."""

    published: NetworkRecord
    device: str | None

    @property
    def name(self) -> str:
        return self.published.name

    @property
    def eps(self) -> float:
        return self.published.eps

    @property
    def norm(self) -> str:
        return self.published.norm

    @property
    def how_to_make(self) -> tuple[str, str]:
        return "from art_entropic import load_network", f"load_network({self.name!r})"

    def classifier(self) -> Any:
        from art_entropic.benchmark.published_networks import load_network

        return load_network(self.name, device=self.device)

    def test_points(self) -> tuple[np.ndarray, np.ndarray]:
        """From the first one on that the published numbers are about."""
        first, arrays = self.published.first_example, self.arrays(0)
        return arrays.x_test[first:], arrays.y_test[first:]

    def arrays(self, seed: int) -> Arrays:
        from art_entropic.benchmark.data import for_framework
        from art_entropic.benchmark.problems import load_data

        data = load_data(self.published.problem)
        if data.sha256 != self.published.provenance.data_sha256:
            told = f"{data.source} differs from the copy of the data that the published numbers are of"
            print(f"{PROGRAM}: {told}", file=sys.stderr)
        x_train, x_test = (for_framework(x, self.published.framework) for x in (data.x_train, data.x_test))
        return Arrays(x_train, data.y_train, x_test, data.y_test)


def source_of(options: argparse.Namespace) -> Source:
    """What --estimator, --data, --eps and --norm, or --network in their place, ask for.

    Raises:
        ValueError: one of them is missing, or beside --network, or names nothing.
    """
    if options.network is not None:
        return published(options.network, options)
    return own(options.estimator, options)


def published(name: str, options: argparse.Namespace) -> PublishedNetwork:
    """A network of --network, which has its own data and its own ball."""
    from art_entropic._validate import choice
    from art_entropic.benchmark.published_networks import list_networks, network_record

    beside = [f"--{option}" for option in ("data", "eps", "norm") if getattr(options, option) is not None]
    if beside:
        raise ValueError(
            f"`--network` has its own data, eps and norm and must be given without {', '.join(beside)}, got {name!r}"
        )
    return PublishedNetwork(network_record(choice("network", name, list_networks())), options.device)


def own(estimator: str, options: argparse.Namespace) -> OwnNetwork:
    """An estimator of --estimator."""
    module, factory = factory_names(estimator)
    missing = [f"--{option}" for option in ("data", "eps") if getattr(options, option) is None]
    if missing:
        raise ValueError(f"`--estimator` must be given with --data and --eps, got it without {' and '.join(missing)}")
    return OwnNetwork(module, factory, options.data, options.eps, options.norm or DEFAULT_NORM, options.device)


def of_one_kind(networks: Sequence[PublishedNetwork]) -> None:
    """Whether published networks can be read on the same points.

    Raises:
        ValueError: they are of other data, of another framework, or for another ball.
    """
    kinds = {(one.published.problem, one.published.framework, one.eps, one.norm) for one in networks}
    if len(kinds) > 1:
        told = "; ".join(f"{problem}, {framework}, L{norm} {eps:g}" for problem, framework, eps, norm in sorted(kinds))
        raise ValueError(f"`--network` must name networks of the same data, framework and ball, got {told}")
