"""What an extra brings and is not there: one line, with a command that works where the package came from."""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest

from art_entropic import Evaluation, History, TensorBoard
from art_entropic.analysis.profile import InformationProfile
from art_entropic.backends.errors import MissingFrameworkError
from art_entropic.backends.registry import FRAMEWORKS, framework_module
from art_entropic.benchmark.executors import dask_cluster
from art_entropic.evaluation.compare import Comparison, Row
from art_entropic.extras import OPTIONAL_PACKAGES, MissingPackageError, install_command, optional
from art_entropic.records import Accuracy, CurvePoint, Epoch
from art_entropic.report.figures import axes_of, inline_svg

PYPROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture
def block(monkeypatch):
    """Makes a package one that is not installed."""

    def hide(package):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes the installed distribution one that came from an origin, as PEP 610 writes it."""

    def came_from(origin, files=("RECORD", "METADATA")):
        home = tmp_path / "art_entropic-0.1.0.dist-info"
        home.mkdir()
        for name in files:
            (home / name).write_text("Name: art-entropic\n")
        if origin is not None:
            (home / "direct_url.json").write_text(json.dumps(origin))
        monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter([importlib.metadata.PathDistribution(home)]))

    return came_from


CHECKOUT = "file:///home/me/art-entropic"
REPOSITORY = "https://example.org/art-entropic.git"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'art-entropic[plot]'"),
        ({"url": CHECKOUT, "dir_info": {"editable": True}}, "pip install -e '.[plot]' in the folder of the checkout"),
        ({"url": CHECKOUT, "dir_info": {}}, "pip install '.[plot]' in the folder of the checkout"),
        ({"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "1a", "requested_revision": "v1"}},
         f"pip install 'art-entropic[plot] @ git+{REPOSITORY}@v1'"),
        ({"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "1a"}},
         f"pip install 'art-entropic[plot] @ git+{REPOSITORY}'"),
        ({"url": "file:///tmp/a.whl", "archive_info": {}}, "pip install 'art-entropic[plot] @ file:///tmp/a.whl'"),
    ],
)  # fmt: skip
def test_command_installs_from_where_the_package_came(installed, origin, command):
    installed(origin)
    assert install_command("plot") == command


def test_a_folder_that_nobody_installed_is_a_checkout(installed):
    installed(None, files=("METADATA",))  # as an .egg-info that a build has left there
    assert install_command("plot") == "pip install -e '.[plot]' in the folder of the checkout"


def test_every_package_is_in_its_extra():
    rows = [(package, row.extra) for package, row in OPTIONAL_PACKAGES.items()]
    for package, extra in [*rows, *((row.package, row.package) for row in FRAMEWORKS.values())]:
        assert re.search(rf'^{extra} = \[.*"{package}>=', PYPROJECT, re.MULTILINE), (package, extra)


ACCURACY = Accuracy(correct=1, n=2, low=0.1, high=0.9)
COMPARED = Comparison(
    0.1, "inf", "quick", (Row("a", ACCURACY, ACCURACY, None, "", (CurvePoint(eps=0.1, robust=ACCURACY),)),), ()
)
RUN = History([Epoch(epoch=1, eps=0.1, k=0.0, beta=0.0, learning_rate=0.1, seconds=1.0, terms={"loss": 1.0})])
PROFILE = InformationProfile(("a",), 0.1, "inf", 0.1, 1, 1, rows=(), notes=(), seconds=1.0, points={})


@pytest.mark.parametrize(
    ("package", "door"),
    [
        ("matplotlib", RUN.plot),
        ("matplotlib", COMPARED.plot),
        ("matplotlib", PROFILE.plot),
        ("matplotlib", axes_of),
        ("matplotlib", lambda: inline_svg(None, "", "")),
        ("pandas", COMPARED.to_frame),
        ("pandas", COMPARED.pairs_frame),
        ("pandas", PROFILE.to_frame),
        ("pandas", lambda: PROFILE.difference("a", "a")),
        ("pandas", lambda: Evaluation.to_frame(None)),
        ("tensorboard", lambda: TensorBoard("nowhere")),
        ("distributed", lambda: dask_cluster("tcp://nowhere:1").__enter__()),
    ],
)  # fmt: skip
def test_every_door_names_the_extra_that_it_lacks(block, package, door):
    block(package)
    title, extra = OPTIONAL_PACKAGES[package]
    with pytest.raises(MissingPackageError, match=re.escape(f"{title} is not installed: {install_command(extra)}")):
        door()


def test_a_framework_that_is_not_installed_names_its_extra(block, framework):
    row = FRAMEWORKS[framework]
    block(row.package)
    with pytest.raises(MissingFrameworkError, match=re.escape(f"{row.title} is not installed: {install_command(row.package)}")):
        framework_module(framework)


def test_a_package_that_is_there_and_broken_is_not_called_missing(tmp_path, monkeypatch, block):
    (tmp_path / "pandas.py").write_text("import something_that_it_needs")
    block("pandas")
    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_that_it_needs"):
        optional("pandas")
