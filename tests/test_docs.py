"""The site builds from what is here, without a network, and its pages say what is so."""

import contextlib
import re
import subprocess
import sys
import types
from pathlib import Path

import msgspec
import pytest
from zoo import packages

import art_entropic
from art_entropic.cli.main import _COMMANDS
from art_entropic.fields import field_specs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = re.compile(r"https://(?:raw\.)?github(?:usercontent)?\.com/art-entropic/art-entropic/(?:blob/|tree/)?main/")
WITH_EXAMPLES = ("own-model", "keras-softmax", "hugging-face")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, and what MkDocs said."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def html(site, *pages):
    return "".join((site / page / "index.html").read_text(encoding="utf-8") for page in pages)


def examples(page):
    """The Python blocks of a page, one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M))


def test_every_notebook_is_a_page_with_its_figures(site):
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        page = html(site, f"notebooks/{notebook.stem}")
        figures = re.findall(r'<div class="[^"]*jp-RenderedSVG', page)
        assert len(figures) == notebook.read_text(encoding="utf-8").count('"image/svg+xml"')
        assert not re.search(r'href="[^"]*\.ipynb"', page)


def test_every_public_name_is_on_a_reference_page(site):
    page = html(site, *(f"reference/{path.stem}" for path in (DOCS / "reference").glob("*.md")))
    assert [name for name in art_entropic.__all__ if f'id="art_entropic.{name}"' not in page] == []
    tables = ("ATTACKS", "BATTERIES", "CHECKS", "DEFENCES", "MEASURES", "PROBLEMS", "PROFILE_MEASURES")
    listed = [name for table in tables for name in getattr(art_entropic, table)]
    listed += [
        field for struct in (*art_entropic.MEASURES.values(), art_entropic.BenchmarkPlan) for field in field_specs(struct)
    ]
    assert [name for name in listed if f"<td><code>{name}</code></td>" not in page] == []


def test_the_page_of_the_command_line_has_what_help_says(site):
    page = html(site, "reference/command-line")
    for name in _COMMANDS:
        assert f'id="art-entropic-{name}"' in page and f"usage: art-entropic {name}" in page
    assert "--estimator" in page and "--scheduler" in page and "--fail" in page


def test_no_page_loads_anything_from_elsewhere(site):
    loads = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\s(?:src|href)="?(?:https?:)?//|import\(.?https?:|@import')
    pages = sorted(site.rglob("*.html"))
    assert pages and [page.name for page in pages if loads.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_into_the_repository_lead_somewhere(name, site):
    """The README's are whole addresses, since a package index shows it too."""
    text = SOURCES.sub("", (ROOT / name).read_text(encoding="utf-8"))
    links = re.findall(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)", text)
    assert [target for target, _ in links if not (ROOT / target).exists()] == []
    for target, anchor in links:
        if anchor and target.startswith("docs/"):
            assert f'id="{anchor}"' in html(site, target.removeprefix("docs/").removesuffix(".md")), f"{target}#{anchor}"


def test_the_table_of_compatibility_is_that_of_the_project():
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    extras = project["optional-dependencies"]
    asked = [("always", one) for one in project["dependencies"]]
    asked += [(f"`[{extra}]`", one) for extra in ("torch", "tensorflow") for one in extras[extra]]
    versions = {re.split(r"[<>=]", one)[0]: (one.removeprefix(re.split(r"[<>=]", one)[0]), place) for place, one in asked}
    rows = re.findall(r"^\| ([\w-]+) \| `([^`]+)` \| ?(.*?) ?\|$", (DOCS / "install.md").read_text(encoding="utf-8"), re.M)
    (python,) = (wish for name, wish, _ in rows if name == "Python")
    assert python == project["requires-python"]
    packages = {name: (wish, place) for name, wish, place in rows if name != "Python"}
    assert packages == {name: versions[name] for name in ("adversarial-robustness-toolbox", "torch", "tensorflow", "keras")}


class Run(contextlib.AbstractContextManager):
    """Of Weights & Biases, as far as the page uses one."""

    def __init__(self):
        self.config, self.logged = {}, {}

    def log(self, data, step):
        self.logged[step] = data

    def __exit__(self, *error):
        pass


def test_loggers_get_every_epoch(make_classifier, points, monkeypatch, tmp_path):
    metrics, params, run = {}, {}, Run()
    mlflow = types.SimpleNamespace(
        start_run=contextlib.nullcontext,
        log_metrics=lambda values, step: metrics.update({step: values}),
        log_params=params.update,
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda project: run))
    monkeypatch.chdir(tmp_path)
    (x, y), trainer = points("pytorch"), art_entropic.EntropicTrainer(make_classifier("pytorch"), 0.1, verbose=False)
    exec(examples("how-to/tracking.md"), {"trainer": trainer, "x_train": x, "y_train": y, "x_val": x, "y_val": y})
    epochs = list(range(1, 21))
    assert list(metrics) == list(run.logged) == epochs
    assert all(type(value) is float for values in metrics.values() for value in values.values())
    assert {"cross_entropy", "validation_loss", "eps", "seconds"} <= metrics[1].keys()
    assert run.logged[20]["training"].keys() >= {"loss", "information"} and run.logged[20]["validation"]
    assert params["measure"] == run.config["measure"]
    assert list((tmp_path / "runs" / "a").iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that the pages show
@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_the_examples_of_a_page_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    packages.transformers()  # which needs a hand beside some builds of PyTorch
    exec(examples(f"how-to/{page}.md"), {})
