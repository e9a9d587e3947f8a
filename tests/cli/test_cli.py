"""The command line: what it says, what it loads, what it leaves behind."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import art_entropic
from art_entropic.backends.registry import backend_for, installed_frameworks
from art_entropic.benchmark.executors import SideBySide
from art_entropic.cli.arguments import DEFAULT_BATTERY, PROGRAM, as_share
from art_entropic.cli.benchmark import _plan
from art_entropic.cli.main import _COMMANDS, _parser, main
from art_entropic.cli.source import published
from art_entropic.cli.user_code import load_arrays, made_by
from art_entropic.evaluation.attempt import Attempt
from art_entropic.extras import install_command

HEAVY = (
    "art", "torch", "tensorflow", "keras", "sklearn", "scipy", "matplotlib", "rich", "jinja2", "pooch",
    "tqdm",
)  # fmt: skip

PYTORCH_MODELS = """
import torch
from art.estimators.classification import PyTorchClassifier

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    return PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (6,), 3, torch.optim.Adam(model.parameters(), 1e-2),
                             clip_values=(0.0, 1.0))

def fails():
    raise TypeError("no such layer")

def not_an_estimator():
    return object()

constant = 3
"""

TENSORFLOW_MODELS = """
import keras
import tensorflow as tf
from art.estimators.classification import TensorFlowV2Classifier

def make():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)])
    return TensorFlowV2Classifier(model, 3, (6,), keras.losses.CategoricalCrossentropy(from_logits=True),
                                  keras.optimizers.Adam(1e-2), clip_values=(0.0, 1.0))
"""

MODELS = {"pytorch": PYTORCH_MODELS, "tensorflow": TENSORFLOW_MODELS}


def said(capsys: pytest.CaptureFixture[str], words: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    out, err = capsys.readouterr()
    return code, out, err


def points(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, each with two raised inputs, in [0, 1]."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.uniform(0.0, 0.3, (n, 6)).astype(np.float32)
    x[np.arange(n), 2 * y] += 0.6
    x[np.arange(n), 2 * y + 1] += 0.6
    return x, y


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's own: models for each framework and a data file, without a package around them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for framework, text in MODELS.items():
        (tmp_path / f"my_{framework}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"my_{framework}", raising=False)
    (x_train, y_train), (x_test, y_test) = points(120), points(40, seed=1)
    np.savez(tmp_path / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return tmp_path


MINE = ["--estimator", "my_pytorch:make", "--data", "data.npz", "--out", "deep/out"]


def train_words(*more: str, framework: str = "pytorch", eps: str = "0.1") -> list[str]:
    words = ["train", "--estimator", f"my_{framework}:make", "--data", "data.npz", "--eps", eps, "--out", "out"]
    return [*words, "--epochs", "4", "--batch-size", "32", "--quiet", *more]


# ------------------------------------------------------------------------------------------------------- what it loads


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["demo", "--help"],
        ["benchmark", "--help"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["analyse", "--help"],
        ["compare", "--help"],
        ["report", "--help"],
    ],
)
def test_help_loads_neither_art_nor_a_framework(words: list[str]) -> None:
    code = (
        "import sys\nfrom art_entropic.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"loaded = sorted(set({HEAVY!r}) & set(sys.modules))\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_import_loads_neither_art_nor_a_framework() -> None:
    heavy = sorted(set(HEAVY) - {"scipy"})
    code = f"import sys, art_entropic, art_entropic.benchmark\nprint(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    assert set(art_entropic.__all__) <= set(dir(art_entropic))
    for name in art_entropic.__all__:
        assert getattr(art_entropic, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = art_entropic.nothing


def test_help_lists_what_the_tables_hold(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, ["benchmark", "--help"])
    assert code == 0
    shown = " ".join(out.split())
    for name in (*art_entropic.PROBLEMS, *art_entropic.DEFENCES, *art_entropic.BATTERIES, "pytorch", "tensorflow"):
        assert name in shown


def test_defaults_are_those_of_the_plan() -> None:
    options = _parser(["benchmark"]).parse_args(["benchmark"])
    plan = art_entropic.BenchmarkPlan()
    assert _plan(options) == plan
    assert (plan.problem, plan.battery) == ("digits", DEFAULT_BATTERY)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, ["--version"]) == (0, f"art-entropic {art_entropic.__version__}\n", "")


# ----------------------------------------------------------------------------------------------------------- bad input


def assert_one_line(outcome: tuple[int, str, str], *wanted: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("art-entropic: error: ")
    assert err.count("\n") == 1
    for text in wanted:
        assert text in err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "COMMAND"),
        (["bogus"], "bogus"),
        (["benchmark", "--eps", "much"], "much"),
        (["benchmark", "--eps", "-1"], "`eps` must be positive"),
        (["benchmark", "--eps", "nan"], "`eps` must be finite"),
        (["benchmark", "--problem", "imagenet"], "imagenet"),
        (["benchmark", "--framework", "jax"], "'jax'"),
        (["benchmark", "--defence", "natural,magic"], "'magic'"),
        (["evaluate", "--seeds", ","], "argument --seeds: must name at least one, got ','"),
        (["benchmark", "--seeds", "a,b"], "`seeds` must be whole numbers from 0 to 2**31 - 1, such as 0,1,2, got 'a,b'"),
        (["benchmark", "--n-examples", "0"], "`n_examples`"),
        (["benchmark", "--dry-run", "--n-examples", "10000000"], "`n_examples` must be at most the 500 test points"),
        (["benchmark", "--epochs", "0"], "`nb_epochs`"),
        (["benchmark", "--n-ex", "5"], "--n-ex"),
        (["benchmark", "--network", "huge"], "`network` must be one of 'small', 'mlp', got 'huge'"),
        (["benchmark", "--n-train", "1"], "`n_train` must be a whole number of at least 2"),
        (["benchmark", "--plan", "none.toml"], "`plan` must be a TOML file, got none.toml"),
        (["benchmark", "--plan", "a.toml", "--eps", "0.1", "--n-train", "9"], "got --eps, --n-train with it"),
        (["report", "nowhere"], "records.jsonl"),
        (["train", "--eps", "0.1"], "--estimator"),
        (["benchmark", "--jobs", "0"], "`jobs` must be at least 1"),
        (["benchmark", "--jobs", "2", "--scheduler", "tcp://a:1"], "not allowed with argument"),
        (["benchmark", "--resources", "GPU=1"], "`--resources` needs --scheduler, the address of a Dask cluster"),
        (["benchmark", "--resources", "GPU"], "must be NAME=NUMBER, such as GPU=1 or GPU=1,MEMORY=2e9, got 'GPU'"),
        (["benchmark", "--resources", "GPU=one"], "must be NAME=NUMBER, such as GPU=1 or GPU=1,MEMORY=2e9, got 'GPU=one'"),
        (["benchmark", "--resources", "=1"], "must be NAME=NUMBER, such as GPU=1 or GPU=1,MEMORY=2e9, got '=1'"),
        (["benchmark", "--scheduler", "tcp://a:1", "--resources", "GPU=0"], "`resources['GPU']` must be positive, got 0.0"),
        (["benchmark", "--points-per-shard", "0"], "`points_per_shard` must be a whole number of at least 1, got 0"),
        (["benchmark", "--set", "eps=0.1"], "`--set` changes a value of a plan file and needs --plan"),
        (["evaluate", "--eps", "0.1"], "--estimator"),
        (["evaluate", *MINE, "--eps", "8"], "`eps` must not exceed the range 1 of `clip_values` (0, 1)"),
        (["evaluate", *MINE, "--eps", "0.1", "--norm", "3"], "invalid choice: '3'"),
        (["evaluate", *MINE, "--eps", "0.1", "--n-examples", "0"], "`n-examples` must be at least 1"),
        (["benchmark", "--device", "tpu"], "`device` must be 'auto', 'cpu' or 'cuda[:i]', got 'tpu'"),
        (["benchmark", "--framework", "pytorch", "--device", "cuda:3"], "of this machine (none), got 'cuda:3'"),
        (["evaluate", *MINE, "--eps", "0.1", "--device", "cuda"], "of this machine (none), got 'cuda'"),
        (["train", *MINE, "--eps", "0.1", "--device", "cuda"], "of this machine (none), got 'cuda'"),
        (["evaluate", *MINE, "--eps", "0.1", "--curve", "a"], "must be numbers such as 0,0.1,0.2"),
        (["evaluate", *MINE, "--eps", "0.1", "--transfer-from", "my_pytorch"], "module:factory"),
        (["evaluate", "--estimator", "my_pytorch:make", "--data", "none.npz", "--eps", "0.1"], "none.npz"),
        (["evaluate", "--estimator", "my_pytorch:make", "--eps", "0.1"], "given with --data and --eps, got it without --data"),
        (["train", "--estimator", "my_pytorch:make"], "given with --data and --eps, got it without --data and --eps"),
        (
            ["evaluate", "--network", "magic"],
            f"`network` must be one of {', '.join(map(repr, art_entropic.list_networks()))}, got",
        ),
        (["evaluate", "--network", "digits-natural", "--estimator", "my_pytorch:make"], "not allowed with argument"),
        (
            ["evaluate", "--network", "digits-natural", "--data", "data.npz"],
            "must be given without --data, got 'digits-natural'",
        ),
        (["train", "--network", "digits-natural", "--eps", "1", "--norm", "2"], "must be given without --eps, --norm"),
        (["analyse", "--network", "digits-natural", "--network", "digits-entropic-tensorflow"], "of the same data, framework"),
        (["demo", "--framework", "jax"], "'jax'"),
    ],
)
def test_bad_command_lines_get_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: str
) -> None:
    before = sorted(workplace.iterdir())
    assert_one_line(said(capsys, words), wanted)
    assert sorted(workplace.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"--estimator": "my_pytorch"}, "module:factory"),
        ({"--estimator": "no_such_module:make"}, "no_such_module"),
        ({"--estimator": "my_pytorch:constant"}, "must name a function of my_pytorch"),
        ({"--estimator": "my_pytorch:missing"}, "must name a function of my_pytorch"),
        ({"--estimator": "my_pytorch:fails"}, "failed with TypeError: no such layer"),
        ({"--estimator": "my_pytorch:not_an_estimator"}, "`classifier` must be an ART estimator"),
        ({"--data": "missing.npz"}, "missing.npz"),
        ({"--data": "text.npz"}, "text.npz"),
        ({"--data": "single.npy"}, "single.npy"),
        ({"--data": "pickled.npz"}, "pickle"),
        ({"--data": "names.npz"}, "images, labels"),
        ({"--data": "wide.npz"}, "`x_train` must have shape (n, 6), got (20, 7)"),
        ({"--data": "bright.npz"}, "`x_train` must lie within `clip_values` (0, 1)"),
        ({"--data": "classes.npz"}, "`y_train` must hold classes 0 to 2, got 3"),
        ({"--eps": "0"}, "`eps` must be positive"),
        ({"--eps": "8"}, "`eps` must not exceed the range"),
        ({"--epochs": "0"}, "`nb_epochs` must be at least 1"),
        ({"--batch-size": "0"}, "`batch_size` must be at least 1"),
        ({"--validation-split": "1"}, "`validation-split`"),
        ({"--n-examples": "0"}, "`n-examples`"),
        ({"--measure": "interval", "--set": "k=2"}, "`k` must be a number in [0, 1], got 2"),
        ({"--measure": "coding", "--set": "k=2"}, "`k` is unknown: a key must be one of beta, "),
        ({"--set": "k=0.2"}, "`--set` changes a hyperparameter of a measure and needs --measure, got k=0.2"),
        ({"--seed": "-1"}, "seed"),
        ({"--resume": None}, "`--resume` needs an interrupted retraining"),
    ],
)
def test_bad_training_input_gets_one_line_and_leaves_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str | None], wanted: str
) -> None:
    x, y = points(20)
    (workplace / "text.npz").write_text("not a zip file")
    np.save(workplace / "single.npy", x)
    np.savez(workplace / "pickled.npz", x=np.array([{}, {}]), y=y[:2])
    np.savez(workplace / "names.npz", images=x, labels=y)
    np.savez(workplace / "wide.npz", x=np.pad(x, ((0, 5), (0, 1))), y=np.pad(y, (0, 5)))
    np.savez(workplace / "bright.npz", x=255 * x, y=y)
    np.savez(workplace / "classes.npz", x=x, y=np.full_like(y, 3))
    options: dict[str, str | None] = {
        "--estimator": "my_pytorch:make", "--data": "data.npz", "--eps": "0.1", "--out": "deep/out", **changes,
    }  # fmt: skip
    words = ["train", "--quiet", *(word for pair in options.items() for word in pair if word is not None)]
    assert_one_line(said(capsys, words), wanted)
    assert not (workplace / "deep").exists()


def test_without_a_framework_one_line_says_what_to_install(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("art_entropic.benchmark.tools.TOOLS.installed_frameworks", tuple)
    assert_one_line(said(capsys, ["benchmark"]), install_command("torch"))


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("art_entropic.report.page.write_report", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report", "folder"])


# ------------------------------------------------------------------------------------------------------------ commands


def test_resources_reach_the_cluster_and_its_executor_the_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    @contextlib.contextmanager
    def dask_cluster(address: str, **options: Any) -> Iterator[str]:
        asked.append((address, options))
        yield "the cluster"

    def run_benchmark(plan: Any, out: Path, *, executor: Any, **options: Any) -> list[Any]:
        asked.append(executor)
        return []

    monkeypatch.setattr("art_entropic.benchmark.executors.dask_cluster", dask_cluster)
    monkeypatch.setattr("art_entropic.benchmark.run.run_benchmark", run_benchmark)
    monkeypatch.setattr("art_entropic.report.page.write_report", lambda folder: (folder / "a.md", folder / "a.html"))
    words = "benchmark --quiet --scheduler tcp://a:1 --resources GPU=1,MEMORY=2e9 --resources TPU=0.5"
    assert said(capsys, words.split()) == (0, "", "")
    assert asked == [("tcp://a:1", {"resources": {"GPU": 1.0, "MEMORY": 2e9, "TPU": 0.5}}), "the cluster"]


def test_benchmark_passes_its_options_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def run_benchmark(plan: Any, out: Path, *, results: Path | None, executor: Any, verbose: bool) -> list[Any]:
        asked.extend((plan, out, results, verbose))
        assert isinstance(executor, SideBySide)
        return []

    monkeypatch.setattr("art_entropic.benchmark.provenance.available_cores", lambda: 2)

    monkeypatch.setattr("art_entropic.benchmark.run.run_benchmark", run_benchmark)
    monkeypatch.setattr("art_entropic.report.page.write_report", lambda folder: (folder / "a.md", folder / "a.html"))
    words = "benchmark --problem mnist --framework pytorch,tensorflow --defence entropic --defence fbf --battery quick"
    words += " --eps 0.2 --seeds 0,2 --n-examples 50 --epochs 3 --epochs-natural 1 --quiet --network large --n-train 99"
    words += " --first-example 7 --points-per-shard 20 --device cuda:1"
    assert said(capsys, words.split()) == (0, "", "")
    assert asked == [
        art_entropic.BenchmarkPlan(
            problem="mnist", frameworks=("pytorch", "tensorflow"), defences=("entropic", "fbf"), battery="quick",
            eps=0.2, seeds=(0, 2), n_examples=50, nb_epochs=3, nb_epochs_natural=1, network="large", n_train=99,
            first_example=7, points_per_shard=20, device="cuda:1",
        ),
        Path("runs/mnist"),
        None,
        False,
    ]  # fmt: skip
    asked.clear()
    (workplace / "table.toml").write_text("seeds = [5]\n")
    words = "benchmark --plan table.toml --results kept/table.jsonl --quiet"
    assert said(capsys, words.split()) == (0, "", "")
    plan = art_entropic.BenchmarkPlan(seeds=(5,), source="table.toml")
    assert asked == [plan, Path("runs/table"), Path("kept/table.jsonl"), False]


def test_demo_is_a_small_benchmark_that_ends_with_its_report(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("art_entropic.benchmark.run.run_benchmark", lambda plan, out, **_: asked.append((plan, out)) or [])
    monkeypatch.setattr("art_entropic.report.page.write_report", lambda folder: (folder / "a.md", folder / "a.html"))
    code, out, err = said(capsys, ["demo"])
    assert (code, out) == (0, f"report: {Path('runs/demo/a.html')}\n")
    beforehand, *following = err.splitlines()
    assert beforehand.startswith("Trains a small network") and len(following) == 2
    ((plan, folder),) = asked
    assert (plan.frameworks, plan.defences, folder) == (installed_frameworks()[:1], ("natural", "entropic"), Path("runs/demo"))
    last = installed_frameworks()[-1]
    assert said(capsys, ["demo", "--framework", last, "--out", "deep/out", "--quiet"])[2] == ""
    assert (asked[1][0].frameworks, asked[1][1]) == ((last,), Path("deep/out"))
    for line in following:
        words = shlex.split(line.removeprefix("next:"), comments=True)
        assert words[0] == PROGRAM and words[1] in _COMMANDS


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)  # where nobody has run it before

    def run_benchmark(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("art_entropic.benchmark.run.run_benchmark", run_benchmark)
    code, out, err = said(capsys, ["benchmark"])
    assert (code, out) == (130, "")
    beforehand, _, _ = err.strip().partition("\n")
    assert re.match(r"8 of 10 cells to do, about \d+ (s|min)", beforehand) and "unknown length" not in beforehand
    assert err.strip().count("\n") == 2  # an empty line after the ^C of the terminal
    assert "The same command goes on where it was." in err


def test_report_prints_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from made import comparison

    from art_entropic.records import append_record

    for record in comparison():
        append_record(tmp_path / "records.jsonl", record)
    code, out, err = said(capsys, ["report", str(tmp_path)])
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(tmp_path / "report.md"), str(tmp_path / "report.html")]
    assert (tmp_path / "report.html").exists()


def test_data_without_a_test_part_is_split_by_the_seed(tmp_path: Path) -> None:
    x, y = points(50)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    arrays = load_arrays(tmp_path / "data.npz", seed=1)
    assert (len(arrays.x_train), len(arrays.x_test)) == (40, 10)
    together = np.concatenate([arrays.x_train, arrays.x_test])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(x, axis=0))
    np.testing.assert_array_equal(load_arrays(tmp_path / "data.npz", seed=1).x_test, arrays.x_test)
    assert not np.array_equal(load_arrays(tmp_path / "data.npz", seed=2).x_test, arrays.x_test)


def test_a_test_part_of_the_users_is_the_test_part(tmp_path: Path) -> None:
    x, y = points(50)
    np.savez(tmp_path / "data.npz", x=x[:40], y=y[:40], x_test=x[40:], y_test=y[40:])
    for found, wish in zip(load_arrays(tmp_path / "data.npz", seed=1), (x[:40], y[:40], x[40:], y[40:]), strict=True):
        np.testing.assert_array_equal(found, wish)
    np.savez(tmp_path / "half.npz", x=x, y=y, x_test=x)
    with pytest.raises(ValueError, match=r"`data` must hold .* x and y with or without x_test and y_test; .* has x, y, x_test"):
        load_arrays(tmp_path / "half.npz", seed=1)


@pytest.mark.parametrize("framework", installed_frameworks())
def test_evaluate_prints_a_verdict_and_goes_on_where_it_was(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    words = ["evaluate", "--estimator", f"my_{framework}:make", "--data", "data.npz", "--eps", "0.3", "--out", "out", "--quiet"]
    words += ["--transfer-from", f"my_{framework}:make", "--curve", "0,0.3"]
    code, out, err = said(capsys, words)
    assert (code, err) == (0, "")
    assert "not run   Square: Square attacks images, got inputs of shape (6,)" in out
    assert "\nverdict " in out and "Linf eps 0.3, battery 'standard', n = 40" in out and "eps 0.3: robust " in out
    found = json.loads((workplace / "out" / "evaluation.json").read_text())
    assert found["robust"]["n"] == 40 and len(found["checks"]) == len(art_entropic.CHECKS)
    where = found["provenance"]
    assert where["command"] == f"from my_{framework} import make; make()" and len(where["data_sha256"]) == 64
    assert "art-entropic" in where["versions"]
    rows = (workplace / "out" / "points.csv").read_text().splitlines()
    assert rows[0] == "point,attack,clean,attacked,success,distance,queries,seconds" and len(rows) == 1 + 4 * 40
    kept = sorted((workplace / "out" / "attacks").iterdir())
    assert [path.name.partition("-")[0] for path in kept] == ["apgd_ce", "apgd_t", "pgd_restarts"]

    asked: list[str] = []
    real = Attempt.run
    monkeypatch.setattr(Attempt, "run", lambda attempt: (asked.append(attempt.attack), real(attempt))[1])
    kept[1].unlink()  # as if it had been interrupted there
    again = said(capsys, [*words, "--no-checks"])
    assert again[0] == 0 and "no checks were run" in again[1]
    assert asked == ["apgd_t", "square", "pgd_ce", "pgd_margin"]  # the last two are those of the curve
    assert json.loads((workplace / "out" / "evaluation.json").read_text())["points"] == found["points"]


@pytest.mark.parametrize("name", ["digits-entropic", "digits-entropic-tensorflow"])
def test_a_published_network_is_attacked_again_beside_its_published_numbers(
    workplace: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = ["evaluate", "--network", name, "--battery", "quick", "--n-examples", "40", "--no-checks", "--quiet"]
    code, out, err = said(capsys, words)
    assert (code, err) == (0, "")
    record = art_entropic.network_record(name)
    before, now = (line for line in out.splitlines() if line.startswith(("published", "now")))
    assert before.split()[1:4] == [record.battery, str(record.seed), str(record.clean.n)]
    assert as_share(record.clean) in before and as_share(record.robust) in before
    assert now.split()[1:4] == ["quick", "0", "40"]
    found = json.loads((workplace / "runs" / f"{name}-evaluation" / "evaluation.json").read_text())
    assert (found["eps"], found["norm"], found["robust"]["n"]) == (record.eps, record.norm, 40)


def test_a_published_network_is_retrained_and_loads_back(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--network", "digits-natural", "--epochs", "1", "--n-examples", "20", "--out", "out", "--quiet"]
    code, out, err = said(capsys, words)
    assert (code, err) == (0, "")
    scope: dict[str, Any] = {}
    exec(out.splitlines()[-1].removeprefix("load:").strip(), scope)
    natural = backend_for(art_entropic.load_network("digits-natural")).state()
    retrained = backend_for(scope["classifier"]).state()
    assert natural.keys() == retrained.keys()
    assert not any(np.array_equal(natural[key], retrained[key]) for key in natural)


def test_published_networks_are_analysed_side_by_side(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["analyse", "--network", "digits-natural", "--network", "digits-entropic", "--measures", "gradient", "--quiet"]
    code, _, err = said(capsys, [*words, "--n-examples", "20", "--out", "out"])
    assert (code, err) == (0, "")
    assert json.loads((workplace / "out" / "profile.json").read_text())["models"] == ["digits-natural", "digits-entropic"]


@pytest.mark.parametrize("framework", installed_frameworks())
def test_analyse_shows_layers_and_writes_them(workplace: Path, capsys: pytest.CaptureFixture[str], framework: str) -> None:
    words = ["analyse", "--estimator", f"first=my_{framework}:make", "--estimator", f"my_{framework}:make"]
    words += ["--data", "data.npz", "--eps", "0.2", "--out", "out", "--quiet"]
    code, out, err = said(capsys, words)
    assert (code, err) == (0, "")
    assert "perturbation, worst case (interval bound) [nats per unit]" in out and "input" in out
    header = next(line for line in out.splitlines() if line.startswith("layer"))
    assert header.split() == ["layer", "first", "make"]
    found = json.loads((workplace / "out" / "profile.json").read_text())
    assert found["models"] == ["first", "make"] and found["n"] == 40
    assert {row["measure"] for row in found["rows"]} == set(art_entropic.PROFILE_MEASURES)
    assert (workplace / "out" / "information.svg").read_text().count("</svg>") == 1
    assert (workplace / "out" / "layers.csv").read_text().startswith("model,layer,label,position,depth,units,measure,value")
    code, out, err = said(capsys, [*words, "--measures", "label,gradient", "--layers", "nowhere"])
    assert code == 2 and "`layers` must be among the layers of 'first', 'input'" in err
    code, out, err = said(capsys, [*words[:3], "--estimator", f"first=my_{framework}:make", *words[5:]])
    assert code == 2 and "`estimator` must have a different name each time" in err


@pytest.mark.parametrize("framework", installed_frameworks())
def test_train_retrains_saves_and_loads_back(workplace: Path, capsys: pytest.CaptureFixture[str], framework: str) -> None:
    code, out, err = said(capsys, train_words(framework=framework))
    assert (code, err) == (0, "")
    before, after, weights, load = out.splitlines()
    assert before.startswith("before: clean ") and after.startswith("after:  clean ")
    assert "certified" in after and "n = 40" in after
    suffix = backend_for(made_by(f"my_{framework}", "make")).weights_suffix
    assert weights == f"weights: {Path('out') / f'weights{suffix}'}"
    history = [json.loads(line) for line in (workplace / "out" / "history.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4]
    assert (workplace / "out" / "README.txt").read_text().strip() == load
    assert sorted(path.name for path in (workplace / "out").iterdir()) == sorted(
        [".lock", "README.txt", "history.jsonl", f"weights{suffix}"]
    )
    scope: dict[str, Any] = {}
    exec(load.removeprefix("load:").strip(), scope)
    x, y = points(40, seed=1)
    accuracy = np.mean(backend_for(scope["classifier"]).logits(x).argmax(axis=1) == y)
    np.testing.assert_allclose(100 * accuracy, float(after.split()[2]), atol=0.06)


def test_train_does_not_overwrite_weights_unasked(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, train_words())[0] == 0
    weights = (workplace / "out" / "weights.pt").read_bytes()
    assert_one_line(said(capsys, train_words("--seed", "1")), "holds weights already", "--force")
    assert (workplace / "out" / "weights.pt").read_bytes() == weights
    assert said(capsys, train_words("--seed", "1", "--force"))[0] == 0
    assert (workplace / "out" / "weights.pt").read_bytes() != weights


def test_interrupted_training_resumes_to_the_same_weights(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = said(capsys, train_words())[1]
    (workplace / "out").rename(workplace / "whole")
    save = art_entropic.EntropicTrainer.save

    def save_then_interrupt(trainer: Any, path: Path) -> None:
        save(trainer, path)
        if trainer.history and len(trainer.history.epochs) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(art_entropic.EntropicTrainer, "save", save_then_interrupt)
        code, _, err = said(capsys, train_words())
    assert code == 130
    assert "--resume" in err
    assert_one_line(said(capsys, train_words()), "interrupted retraining", "--resume", "--force")
    code, resumed, _ = said(capsys, train_words("--resume"))
    assert (code, resumed) == (0, whole)
    lines = ((workplace / run / "history.jsonl").read_text().splitlines() for run in ("whole", "out"))
    for one, other in zip(*(map(json.loads, epochs) for epochs in lines), strict=True):
        np.testing.assert_allclose(one["terms"]["loss"], other["terms"]["loss"], rtol=1e-6)
    assert not (workplace / "out" / "checkpoint.npz").exists()


def test_every_command_has_help_for_every_option() -> None:
    for name in _COMMANDS:
        parser = _parser([name])
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert all(action.help for action in commands.choices[name]._actions)


EXAMPLES = [example for command in _COMMANDS.values() for example in command.examples]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_command_line(example: str) -> None:
    program, *words = shlex.split(example)
    options = _parser(words).parse_args(words)
    assert program == PROGRAM
    if options.command == "benchmark":
        _plan(options)
    elif getattr(options, "network", None):
        for name in [options.network] if isinstance(options.network, str) else options.network:
            published(name, options)


def test_every_command_shows_its_examples_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in _COMMANDS.items():
        assert any(shlex.split(example)[1] == name for example in command.examples)
        _, out, _ = said(capsys, [name, "--help"])
        assert set(command.examples) <= {line.strip() for line in out.splitlines()}


def test_options_of_a_benchmark_stand_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, ["benchmark", "--help"])
    parts = re.split(r"^(what to compare|how to attack|where to run|output):$", out, flags=re.MULTILINE)
    shown = {
        title: set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert {"--plan", "--set", "--problem", "--defence", "--eps", "--epochs"} <= shown["what to compare"]
    assert shown["how to attack"] == {
        "--battery", "--n-examples", "--first-example", "--points-per-shard", "--no-checks", "--no-profile",
    }  # fmt: skip
    assert shown["where to run"] == {"--device", "--jobs", "--scheduler", "--resources"}
    assert shown["output"] == {"--out", "--results", "--dry-run", "--quiet"}
