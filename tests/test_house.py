"""The house: who may import whom, and what importing costs."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import art_entropic

ROOT = Path(art_entropic.__file__).parent
# A wing imports from its own level, where that is its own, and from those below.
LEVELS = {"core": 0, "backends": 0, "evaluation": 1, "analysis": 1, "benchmark": 2, "report": 3, "cli": 4}
# What backends need of the core; the rest of the core sees them through their protocol.
BELOW_BACKENDS = {"art_entropic", "_validate", "extras", "intervals", "linear_bounds", "ops", "states"}
BACKENDS_FOR_CORE = {"errors", "protocol", "registry", "numpy", "architecture"}
FRAMEWORK_PACKAGES = {"torch", "tensorflow", "keras", "torchvision"}


def name_of(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = sorted(SOURCES.keys() - {"art_entropic", "art_entropic.__main__"})


def imports(name):
    """Full names of the modules that a file imports, wherever in it, for types too."""
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            yield from inside or {node.module}


def own_imports(name):
    return {module for module in imports(name) if module.partition(".")[0] == "art_entropic"}


def wing(name):
    first = name.split(".")[1] if "." in name else ""
    return first if first in LEVELS else "core"


@pytest.mark.parametrize("name", MODULES)
def test_wings_import_downwards(name):
    for module in own_imports(name):
        here, there = wing(name), wing(module)
        assert here == there or LEVELS[there] < LEVELS[here] or {here, there} == {"core", "backends"}, module
        if (here, there) == ("backends", "core"):
            assert module.removeprefix("art_entropic.") in BELOW_BACKENDS, module
        if (here, there) == ("core", "backends"):
            assert module.split(".")[2] in BACKENDS_FOR_CORE, module


def test_no_files_import_each_other_in_a_circle():
    """Not even inside functions; what fails names the files on the circle."""
    files = graphlib.TopologicalSorter({name: own_imports(name) - {"art_entropic"} for name in MODULES})
    assert set(MODULES) <= set(files.static_order())


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) != "backends"])
def test_only_backends_name_a_framework(name):
    assert not {module.partition(".")[0] for module in imports(name)} & FRAMEWORK_PACKAGES


def test_importing_the_package_loads_neither_art_nor_a_framework():
    heavy = {"art", "torch", "tensorflow", "keras", "scipy", "sklearn", "matplotlib"}
    code = f"import sys, art_entropic, art_entropic.cli.main; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
