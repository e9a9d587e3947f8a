"""The examples of docstrings run, and say what comes out."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import art_entropic
from art_entropic.backends.numpy import ops
from art_entropic.ops import Box

HOME = Path(art_entropic.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("art_entropic", *path.relative_to(HOME).with_suffix("").parts))
    for path in HOME.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
FORMULAS = ("information", "intervals", "objective", "statistics")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_say_what_comes_out(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module, extraglobs={"np": np, "ops": ops, "Box": Box})
    assert found.attempted and not found.failed


@pytest.mark.parametrize("name", FORMULAS)
def test_every_public_formula_has_an_example(name):
    module = importlib.import_module(f"art_entropic.{name}")
    own = [one for one in vars(module).values() if getattr(one, "__module__", "") == module.__name__ and callable(one)]
    formulas = [one for one in own if not one.__name__.startswith("_") and re.search(r"Source:|\(n,|box", one.__doc__ or "")]
    # Those of a whole network take a View, which is no line of an example.
    shown = [one for one in formulas if not isinstance(one, type) and "view" not in one.__code__.co_varnames[:1]]
    bare = [one.__name__ for one in shown if ">>> " not in (one.__doc__ or "")]
    assert shown and not bare
