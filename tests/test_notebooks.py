"""The notebooks run from top to bottom, and what is committed is what they say."""

import ast
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import art_entropic

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
ROOT = Path(__file__).parent.parent


def shown(notebook):
    """For each code cell what it shows: kinds of output, without what goes to stderr."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[sorted(one.get("data", {"stream": 0})) for one in cell.outputs if one.get("name") != "stderr"] for cell in cells]


def test_there_are_six():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_begins_briefly_and_uses_public_names_alone(path):
    code = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert len(code[0].splitlines()) <= 4
    tree = ast.parse("\n".join(line for one in code for line in one.splitlines() if not line.startswith("%")))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("art_entropic")]
    assert imported and {node.module for node in imported} == {"art_entropic"}
    assert {alias.name for node in imported for alias in node.names} <= set(art_entropic.__all__)
    assert "import art_entropic" not in "\n".join(code)


@pytest.mark.filterwarnings("ignore")  # of Jupyter's, in this process; the notebook's own stay in its kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_is_committed(path, tmp_path, monkeypatch):
    committed = nbformat.read(path, 4)
    nbformat.validate(committed)
    assert all(cell.execution_count for cell in committed.cells if cell.cell_type == "code")
    text = path.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text and "/home/" not in text and str(ROOT) not in text
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    fresh = nbformat.read(path, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=900, kernel_name="python3", coalesce_streams=True, resources=where).execute()
    assert shown(fresh) == shown(committed)
    figures = [cell for cell in committed.cells if cell.cell_type == "code" and "image/svg+xml" in str(cell.outputs)]
    told = [cell for cell in committed.cells if cell.cell_type == "markdown" and "**What to see:**" in cell.source]
    assert len(told) >= len(figures) > 0 or not figures
