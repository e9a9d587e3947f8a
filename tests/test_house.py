"""The house: who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import art_entropic

ROOT = Path(art_entropic.__file__).parent
FLOORS = {
    "_validate": 0, "records": 0, "palette": 0, "states": 0, "files": 0,
    "backends": 1, "intervals": 1,
    "information": 2, "guards": 2, "certificates": 2, "statistics": 2,
    "objective": 3, "recipes": 3, "batches": 3, "analysis": 3,
    "trainer": 4, "callbacks": 4, "attacked": 4, "attacks": 4, "planted": 4, "checks": 4, "problems": 4,
    "evaluation": 5, "defences": 5,
    "benchmark": 6, "distribution": 6, "report": 6, "comparison": 6,
    "cli": 7, "__init__": 8, "__main__": 8,
}  # fmt: skip
FRAMEWORK_PACKAGES = {"torch", "tensorflow", "keras", "torchvision"}
SOURCES = sorted(ROOT.rglob("*.py"))


def imports(path, *, for_types_only):
    """(module, name) pairs that a file imports; blocks under TYPE_CHECKING count only if asked for."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not for_types_only and id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def floor(name):
    return FLOORS[name.split(".")[0]]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_from_its_own_floor_or_below(path):
    own = floor(str(path.relative_to(ROOT)).removesuffix(".py").split("/")[0])
    for module, name in imports(path, for_types_only=True):
        if module.split(".")[0] == "art_entropic":
            target = module.removeprefix("art_entropic").lstrip(".") or name
            if target in FLOORS or "." in target:
                assert floor(target) <= own, f"{path.name} (floor {own}) imports {target} (floor {floor(target)})"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name != "backends"], ids=lambda p: p.name)
def test_only_backends_name_a_framework(path):
    named = {module.split(".")[0] for module, _ in imports(path, for_types_only=True)}
    assert not named & FRAMEWORK_PACKAGES


def test_every_module_has_a_floor():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in SOURCES} == set(FLOORS)


def test_importing_the_package_loads_neither_art_nor_a_framework():
    heavy = {"art", "torch", "tensorflow", "keras", "scipy", "sklearn", "matplotlib"}
    code = f"import sys, art_entropic, art_entropic.cli; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
