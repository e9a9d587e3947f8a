"""Networks as users get them, with random weights: what tests/networks sends through, and what docs/networks.md tells of."""

from __future__ import annotations

import importlib

from art_entropic.backends.registry import installed_frameworks

from .network import CLASSES, Change, Network, points, top


def networks() -> dict[str, Network]:
    """Name -> network, of every framework that is installed."""
    found: dict[str, Network] = {}
    for framework in installed_frameworks():
        found |= importlib.import_module(f"{__name__}.{framework}").NETWORKS
    return found


__all__ = ["CLASSES", "Change", "Network", "networks", "points", "top"]
