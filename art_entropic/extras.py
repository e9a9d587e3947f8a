"""Packages that only an extra brings: imported when they are needed, and the command that installs a missing one."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from typing import Any, NamedTuple

DISTRIBUTION = "art-entropic"


class OptionalPackage(NamedTuple):
    """One row of OPTIONAL_PACKAGES."""

    title: str
    extra: str  # of pyproject.toml


# By the name that is imported. The frameworks are rows of FRAMEWORKS, and name their extras there.
OPTIONAL_PACKAGES = {
    "distributed": OptionalPackage("Dask", "distributed"),
    "matplotlib": OptionalPackage("matplotlib", "plot"),
    "pandas": OptionalPackage("pandas", "plot"),
    "tensorboard": OptionalPackage("TensorBoard", "tensorboard"),
}


class MissingPackageError(ImportError):
    """An optional package is not installed; the message is one line with the command that installs it."""


def optional(module: str) -> Any:
    """A module of an optional package, imported now.

    Args:
        module: its full name, such as "matplotlib.figure".
    Raises:
        MissingPackageError: its package is not installed.
        ImportError: its package is there, but does not load.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingPackageError(missing(*OPTIONAL_PACKAGES[package])) from error


def missing(title: str, extra: str) -> str:
    """One line: what is not installed, and the command that installs it."""
    return f"{title} is not installed: {install_command(extra)}"


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, from where it came: a checkout, a repository or an index.

    Source: PEP 610, which says what an installer writes of a package's origin.
    """
    installed = [found for found in importlib.metadata.distributions(name=DISTRIBUTION) if found.read_text("RECORD")]
    if not installed:  # run from its folder; an .egg-info there tells no origin
        return _in_checkout(extra, "-e ")
    origin = json.loads(installed[0].read_text("direct_url.json") or "{}")
    if "dir_info" in origin:
        return _in_checkout(extra, "-e " if origin["dir_info"].get("editable") else "")
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        revision = f"@{vcs['requested_revision']}" if "requested_revision" in vcs else ""
        return f"pip install '{DISTRIBUTION}[{extra}] @ {vcs['vcs']}+{origin['url']}{revision}'"
    if "archive_info" in origin:
        return f"pip install '{DISTRIBUTION}[{extra}] @ {origin['url']}'"
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _in_checkout(extra: str, editable: str) -> str:
    return f"pip install {editable}'.[{extra}]' in the folder of the checkout"
