"""A release: the two files that go to an index, and what they do on a machine with nothing but the core's dependencies."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import art_entropic

ROOT = Path(__file__).parent.parent
FOLDERS = ("art_entropic", "benchmarks", "docs", "notebooks", "results", "tests")
FILES = {
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "SECURITY.md",
    "constraints.txt", "mkdocs.yml", "pyproject.toml", "setup.py",
}  # fmt: skip
LEFTOVERS = ("__pycache__", "*.py[cod]", "*.egg-info", ".*")
# Nothing that the extras bring is found.
CORE_ALONE = """
from importlib.machinery import PathFinder

ABSENT = ("torch", "tensorflow", "keras", "matplotlib", "pandas", "tensorboard", "distributed")
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in ABSENT else find(name, *rest)
"""


def run(*command, folder, path=()):
    """What a command of Python's says, stderr too; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    ran = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def files_below(folder, home):
    return {path.relative_to(home).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """These files, without what builds and tools have left beside them."""
    home = tmp_path_factory.mktemp("release") / "source"
    home.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns(*LEFTOVERS))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, home)
    return home


@pytest.fixture(scope="module")
def built(source):
    """Folder with the source distribution, and with the wheel that is made of it."""
    pytest.importorskip("build")
    run("-m", "build", "--no-isolation", "--outdir", source.parent / "dist", source, folder=source.parent)
    return source.parent / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"art_entropic-{art_entropic.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def unpacked(built):
    """Folder of the unpacked source distribution."""
    name = f"art_entropic-{art_entropic.__version__}"
    with tarfile.open(built / f"{name}.tar.gz") as file:
        file.extractall(built.parent, filter="data")
    return built.parent / name


@pytest.fixture(scope="module")
def bare(wheel):
    """Runs a command where the wheel is installed, and nothing that an extra brings."""
    home = wheel.parent.parent / "bare"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", home, wheel, folder=home.parent)
    (home / "sitecustomize.py").write_text(CORE_ALONE)
    return lambda *command: run(*command, folder=home.parent, path=[home])


def test_version_and_date_are_told_alike():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (version,), (date,) = (re.findall(rf'^{key}: "?([^"\n]+)', cited, re.MULTILINE) for key in ("version", "date-released"))
    changes = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[:2] == [("Unreleased", ""), (version, date)]
    assert version == art_entropic.__version__


def test_wheel_holds_the_package_and_its_data_alone(wheel, source):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    about = {name for name in names if name.startswith(f"art_entropic-{art_entropic.__version__}.dist-info/")}
    package = files_below(source / "art_entropic", source)
    assert names - about == package
    assert {
        f"art_entropic/{name}" for name in ("py.typed", "benchmark/costs.json", "report/templates/report.html.j2")
    } <= package


def test_source_distribution_holds_all_that_its_tests_and_pages_are_made_of(unpacked, source):
    found = files_below(unpacked, unpacked)
    for folder in FOLDERS:
        assert not files_below(source / folder, source) - found
    assert found >= FILES
    assert not [name for name in found if "__pycache__" in name]


def test_an_index_would_take_both_files(built):
    pytest.importorskip("twine")
    said = run("-m", "twine", "check", "--strict", *sorted(built.iterdir()), folder=built)
    assert said.count("PASSED") == 2


def test_tests_run_from_the_source_distribution(unpacked):
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_intervals.py", "tests/test_house.py",
               folder=unpacked, path=[unpacked])  # fmt: skip
    assert re.search(r"\d+ passed", said) and "skipped" not in said


def test_the_core_alone_imports_and_tells_its_commands(bare, wheel):
    home = wheel.parent.parent / "bare"
    said = bare("-c", "import art_entropic; art_entropic.EntropicTrainer; print(art_entropic.__file__)")
    assert Path(said.splitlines()[-1]) == home / "art_entropic" / "__init__.py"
    assert "report" in bare(home / "bin" / "art-entropic", "--help")


def test_the_core_alone_makes_a_report_of_records(bare, wheel, source):
    home = wheel.parent.parent / "run"
    home.mkdir()
    shutil.copy(source / "results" / "digits.jsonl", home / "records.jsonl")
    bare("-m", "art_entropic", "report", home)
    assert "matplotlib is not installed" in (home / "report.md").read_text(encoding="utf-8")
    assert (home / "report.html").is_file()
