"""Faults that are not ours, and what is left after them; the table of docs/reliability.md names these tests."""

import json
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_entropic import EntropicTrainer
from art_entropic.backends.registry import backend_for
from art_entropic.cli.main import main
from art_entropic.cli.user_code import load_arrays, load_test_arrays
from art_entropic.records import append_record, read_records

ROOT = Path(__file__).parent.parent

# Appends records until the file may not grow any more, as on a full disk.
FILLER = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from made import evaluation
from art_entropic.records import append_record
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for seed in range(100):
    append_record(Path(sys.argv[1]), evaluation("entropic", 0.5, seed=seed))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
def test_a_full_disk_keeps_what_was_written(tmp_path):
    from made import evaluation

    file = tmp_path / "records.jsonl"
    found = subprocess.run([sys.executable, "-c", FILLER, file, str(ROOT / "tests")], capture_output=True, text=True)
    assert found.returncode != 0 and "File too large" in found.stderr
    with pytest.warns(RuntimeWarning, match="unfinished last line skipped"):
        kept = list(read_records(file))
    assert [record.seed for record in kept] == list(range(len(kept))) and len(kept) >= 2
    assert kept[0] == evaluation("entropic", 0.5, seed=0)


@pytest.mark.parametrize("command", ["benchmark --framework pytorch --out", "report"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, command):
    pass

    (tmp_path / "file").write_text("in the way")
    assert main([*command.split(), str(tmp_path / "file" / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("art-entropic: error: ") and said.count("\n") == 1


def test_a_damaged_checkpoint_is_refused_by_name(make_classifier, points, tmp_path):
    x, y = points("tensorflow", n=24)
    trainer = EntropicTrainer(make_classifier("tensorflow"), eps=0.05, verbose=False)
    trainer.fit(x, y, nb_epochs=1, batch_size=8, checkpoint=tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    middle = len(whole) // 2
    flipped = bytes(byte ^ 255 if middle <= place < middle + 64 else byte for place, byte in enumerate(whole))
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    # In the text that tells the shape of an array, which NumPy reads as Python before the check sum of the whole.
    header = whole.replace(b"'shape': (", b"'shape': [", 1)
    damaged = {"cut": whole[:middle], "empty": b"", "text": b"hello", "flipped": flipped, "header": header}
    for name, content in damaged.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
    for name in (*damaged, "other"):
        again = EntropicTrainer(make_classifier("tensorflow"), eps=0.05, verbose=False)
        with pytest.raises(ValueError, match=rf"{name}\.npz is"):
            again.resume(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        again.resume(tmp_path / "none.npz")


def test_too_little_memory_suggests_a_smaller_batch(framework, make_classifier, points, monkeypatch):
    import tensorflow as tf
    import torch

    errors = {
        "pytorch": [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
        "tensorflow": [tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")],
    }
    x, y = points(framework, n=32)
    for error in errors[framework]:
        classifier = make_classifier(framework)
        trainer = EntropicTrainer(classifier, eps=0.05, verbose=False)
        backend = trainer._backend
        before, real = backend.state(), backend.training_step

        def training_step(objective, error=error, real=real):
            step, taken = real(objective), []

            def fails(batch, controls):
                taken.append(step(batch, controls))
                if len(taken) == 2:
                    raise error
                return taken[-1]

            return fails

        monkeypatch.setattr(backend, "training_step", training_step)
        with pytest.raises(
            MemoryError,
            match=r"not enough memory for a batch of 16: try `batch_size` 8; .* reset to those of the start",
        ):
            trainer.fit(x, y, nb_epochs=1, batch_size=16)
        for name, array in backend_for(classifier).state().items():
            np.testing.assert_array_equal(array, before[name])


def test_other_errors_of_a_step_are_left_alone(make_classifier, points, monkeypatch):
    x, y = points("pytorch", n=16)
    trainer = EntropicTrainer(make_classifier("pytorch"), eps=0.05, verbose=False)

    def training_step(objective):
        def fails(batch, controls):
            raise RuntimeError("something else")

        return fails

    monkeypatch.setattr(trainer._backend, "training_step", training_step)
    with pytest.raises(RuntimeError, match="something else"):
        trainer.fit(x, y, nb_epochs=1, batch_size=16)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["schema", "kind", "key", "seed"]), inner),
    max_leaves=8,
)


@given(lines=st.lists(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), max_size=4))
def test_whatever_a_file_holds_it_is_records_or_an_error_that_names_the_line(lines, tmp_path_factory):
    file = tmp_path_factory.mktemp("fuzz") / "records.jsonl"
    file.write_bytes(b"\n".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert list(read_records(file)) == []
        except ValueError as error:
            assert re.search(r"records\.jsonl:\d+: ", str(error))


def test_records_of_another_version_are_refused_by_number(tmp_path):
    from made import evaluation

    file = tmp_path / "records.jsonl"
    append_record(file, evaluation("entropic", 0.5))
    with file.open("a") as stream:
        stream.write('{"schema": 7, "kind": "evaluation"}\n')
        stream.write(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:2: record of schema 7, this version reads schema 2"):
        list(read_records(file))


def test_every_fault_of_the_page_has_its_test():
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(f"{file}.py")
        source = path.read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file}.{test}"


# ---------------------------------------------------------------------------------------- code and files of the user's

# fmt: off
MODELS = {
    "raises": ("def make():\n    raise OSError('none')\n", r"raises:make\(\) failed with OSError: none \(raises.py, line 2\)"),
    "misses": ("def make():\n    return {}['model']\n", r"misses:make\(\) failed with KeyError: 'model' \(misses.py, line 2\)"),
    "garbled": ("def make(:\n", r"garbled:make could not be imported: SyntaxError: .*garbled.py, line 1"),
    "loads": ("import json\n\ndef make():\n    json.loads('x')\n", r"JSONDecodeError: .* \(loads.py, line 4\)"),
    "silent": ("def make():\n    raise RuntimeError\n", r"silent:make\(\) failed with RuntimeError \(silent.py, line 2\)"),
    "leaves": ("def make():\n    raise SystemExit(0)\n", r"leaves:make\(\) failed with SystemExit: 0 \(leaves.py, line 2\)"),
    "script": ("import sys\nsys.exit()\n", r"script:make could not be imported: SystemExit \(script.py, line 2\)"),
    "absent": ("import no_such_module\n", r"No module named 'no_such_module' \(absent.py, line 1\)"),
    "breaks": ("1 / 0\n", r"breaks:make could not be imported: ZeroDivisionError: division by zero \(breaks.py, line 1\)"),
}
# fmt: on


@pytest.mark.parametrize("name", [*MODELS, "models.py"])
@pytest.mark.parametrize("command", ["train --estimator", "analyse --estimator one="])
def test_code_of_the_users_that_fails_is_one_line_with_its_place(name, command, tmp_path, monkeypatch, capsys):
    pass

    code, message = MODELS.get(name, ("", r"write models:make, got 'models.py:make'"))
    (tmp_path / f"{name.removesuffix('.py')}.py").write_text(code)
    np.savez(tmp_path / "data.npz", x=np.zeros((10, 2)), y=np.arange(10) % 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = f"{command} {name}:make --data data.npz --eps 0.1".replace("= ", "=").split()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder/models:make", "`transfer-from` must name a module and not its file: write folder.models:make"),
        (".models:make", "`transfer-from` must be module:factory"),
    ],
)
def test_another_source_of_examples_is_named_by_its_own_option(text, message, capsys):
    pass

    assert main(["evaluate", "--estimator", "a:b", "--data", "d.npz", "--eps", "0.1", "--transfer-from", text]) == 2
    assert message in capsys.readouterr().err


def test_a_second_run_in_the_folder_of_a_training_is_refused(tmp_path, monkeypatch, capsys):
    pass
    from art_entropic.files import alone_in

    (tmp_path / "linear.py").write_text(
        "import torch\nfrom art.estimators.classification import PyTorchClassifier\n\ndef make():\n"
        "    m = torch.nn.Linear(2, 2)\n    o = torch.optim.SGD(m.parameters(), 0.1)\n"
        "    return PyTorchClassifier(m, torch.nn.CrossEntropyLoss(), (2,), 2, o, clip_values=(0, 1))\n"
    )
    np.savez(tmp_path / "data.npz", x=np.zeros((20, 2)), y=np.arange(20) % 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--estimator", "linear:make", "--data", "data.npz", "--eps", "0.1", "--out", "run", "--quiet"]
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "checkpoint.npz").write_bytes(b"of the run that goes on, which is no interrupted one")
        for command in ("train", "train --resume", "train --force", "evaluate", "analyse"):
            assert main([*command.split(), *words]) == 2
            assert "`out` run is in use by another run" in capsys.readouterr().err


def test_what_is_written_is_there_whole_or_not_at_all_and_leaves_nothing_beside(tmp_path):
    from art_entropic.files import replacing

    file = tmp_path / "checkpoint.npz"
    with pytest.raises(OSError, match="full"), replacing(file, ".npz") as one:
        one.write_bytes(b"half")
        raise OSError("the disk is full")
    assert not list(tmp_path.iterdir())
    with replacing(file, ".npz") as one, replacing(file, ".npz") as other:
        assert one != other
        one.write_bytes(b"whole")
        other.write_bytes(b"whole")
    assert file.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["mnist.npz", "cifar10_jpeg.npz", "cifar-10-binary.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut", b"\x1f\x8b\x08 cut"])
def test_a_damaged_data_file_is_named(name, content, tmp_path, monkeypatch):
    from art_entropic.benchmark.problems import load_data

    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("ART_ENTROPIC_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        load_data("mnist" if name == "mnist.npz" else "cifar10")


GARBAGE = np.zeros(9, np.uint8)
PIXELS, LABELS = np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.int64)
JPEGS = {"jpeg": GARBAGE, "offset": np.array([0, 9]), "y": LABELS[:1]}


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("mnist.npz", {"x": PIXELS, "y": np.array([0.5, 1.0])}),
        ("mnist.npz", {"x": PIXELS, "y": np.array([np.nan, 1.0])}),
        ("mnist.npz", {"x": PIXELS, "y": np.array(["a", "b"])}),
        ("mnist.npz", {"x": np.array([{}]), "y": LABELS}),
        ("cifar10_jpeg.npz", JPEGS),
        ("cifar10_jpeg.npz", {**JPEGS, "offset": np.array([0.0, 9.0])}),
        ("cifar10_jpeg.npz", {**JPEGS, "offset": np.array(9)}),
        ("cifar10_jpeg.npz", {**JPEGS, "offset": np.array([0])}),
    ],
)
def test_a_data_file_of_other_arrays_is_named(name, arrays, tmp_path, monkeypatch):
    from art_entropic.benchmark.problems import load_data

    np.savez(tmp_path / name, **{f"{key}_{part}": array for key, array in arrays.items() for part in ("train", "test")})
    monkeypatch.setenv("ART_ENTROPIC_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        load_data("mnist" if name == "mnist.npz" else "cifar10")


def of_compression_99(path):
    """The same archive, as if it were packed by a method that Python has not."""
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        for found in re.finditer(mark, bytes(content)):
            content[found.start() + place] = 99
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["bytes", "scalar", "compression"])
def test_damaged_data_of_the_users_are_named(kind, tmp_path):
    pass

    file = tmp_path / "data.npz"
    np.savez(file, **dict.fromkeys("xy", np.float32(1) if kind == "scalar" else np.ones((4, 2), np.float32)))
    if kind == "compression":
        of_compression_99(file)
    if kind == "bytes":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x", b"no array")
            archive.writestr("y", b"no array")
    for load in (lambda: load_arrays(file, 0), lambda: load_test_arrays(file)):
        with pytest.raises(ValueError, match=f"`data` must hold .*{re.escape(str(file))}"):
            load()


def changed(path, about=None, **arrays):
    """A checkpoint by hand, from a whole one."""
    with np.load(path) as file:
        content = {**{name: file[name] for name in file.files}, **arrays}
    if about is not None:
        content["about"] = np.array(json.dumps({**json.loads(str(content["about"])), **about}))
    np.savez(path.with_name("changed.npz"), **content)
    return path.with_name("changed.npz")


@pytest.mark.parametrize(
    "about", [{"epoch": 1e9}, {"epoch": -1}, {"epoch": 1.5}, {"epoch": 10**9}, {"history": {}}, {"plan": 3}]
)
def test_a_checkpoint_that_tells_nonsense_is_refused_by_name(about, make_classifier, points, tmp_path):
    whole = tmp_path / "whole.npz"
    trainer = EntropicTrainer(make_classifier("pytorch"), eps=0.05, verbose=False)
    trainer.fit(*points("pytorch", n=24), nb_epochs=2, batch_size=8, checkpoint=whole)
    with pytest.raises(ValueError, match=r"changed\.npz is damaged, or not a checkpoint"):
        EntropicTrainer(make_classifier("pytorch"), eps=0.05, verbose=False).resume(changed(whole, about))


def test_the_state_of_another_optimizer_is_refused_before_anything_changes(framework, make_classifier, points, tmp_path):
    whole = tmp_path / "whole.npz"
    trainer = EntropicTrainer(make_classifier(framework), eps=0.05, verbose=False)
    trainer.fit(*points(framework, n=24), nb_epochs=2, batch_size=8, checkpoint=whole)
    with np.load(whole) as file:
        part = next(name for name in file.files if name.startswith("optimizer/") and file[name].ndim > 1)
    classifier = make_classifier(framework, seed=1)
    before, optimizer = backend_for(classifier).state(), backend_for(classifier).optimizer_state()
    again = EntropicTrainer(classifier, eps=0.05, verbose=False)
    with pytest.raises(ValueError, match=r"changed\.npz holds a state that does not fit the optimizer"):
        again.resume(changed(whole, **{part: np.ones((1, 2, 3, 4, 5), np.float32)}))
    for old, new in ((before, backend_for(classifier).state()), (optimizer, backend_for(classifier).optimizer_state())):
        assert old.keys() == new.keys()
        for name, array in old.items():
            np.testing.assert_array_equal(array, new[name])


def test_plans_of_other_editors_are_read_and_numbers_without_end_are_not(tmp_path):
    from art_entropic.benchmark.plan import read_plan

    plan = tmp_path / "plan.toml"
    plan.write_bytes(b'\xef\xbb\xbfproblem = "digits"\neps = "8/255"\n')
    assert read_plan(plan).eps == 8 / 255
    from art_entropic.benchmark.plan import resolved

    for eps in ("1e999999999", "1e-999999999", f"1{'0' * 400}/1"):
        plan.write_text(f'problem = "digits"\neps = "{eps}"\n')
        with pytest.raises(ValueError, match="`eps` must"):
            resolved(read_plan(plan))


def test_a_title_with_html_is_text_in_both_reports(tmp_path):
    from made import evaluation

    from art_entropic.report.page import write_report

    record = evaluation("entropic", 0.5, seed=0)
    import msgspec

    hostile = msgspec.structs.replace(record, variant="<script>alert(1)</script>")
    append_record(tmp_path / "records.jsonl", hostile)
    for path in write_report(tmp_path):
        assert "<script>alert(1)" not in path.read_text() and "alert(1)" in path.read_text()


@pytest.mark.parametrize(
    ("count", "n", "flagged"), [(0, 1, False), (1, 20, False), (1, 100, False), (2, 200, False), (8, 200, True)]
)
def test_a_share_is_suspicious_where_chance_does_not_explain_it_at_this_n(count, n, flagged):
    from scipy.stats import binom

    from art_entropic.evaluation.checks import TOLERATED
    from art_entropic.evaluation.deciding import FALSE_ALARM_RATE, more_often

    finding = more_often(count, n, TOLERATED)
    assert finding.suspicious is flagged is bool(binom.sf(count - 1, n, TOLERATED) < FALSE_ALARM_RATE)
    assert finding.value == count / n and finding.n == n


@pytest.mark.parametrize("damage", ["empty", "cut", "missing", "rows", "compression"])
def test_a_damaged_finished_attack_is_run_again_and_told(damage, make_classifier, points, tmp_path, capsys):
    from art_entropic import evaluate

    classifier, (x, _) = make_classifier("pytorch"), points("pytorch", n=12)
    y = backend_for(classifier).logits(x).argmax(axis=1)  # or there is nothing to attack

    def found():
        return evaluate(classifier, x, y, 0.1, battery="quick", checks=False, folder=tmp_path, verbose=False).robust

    whole = found()
    file = sorted(tmp_path.glob("*.npz"))[0]
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "cut": content[: len(content) // 2]}.get(damage, content))
    if damage == "missing":
        np.savez(file, seconds=np.ones(3), asked=1)
    if damage == "rows":
        with np.load(file) as arrays:
            np.savez(file, **{**dict(arrays), "seconds": np.ones(3)})
    if damage == "compression":
        of_compression_99(file)
    capsys.readouterr()
    assert found() == whole
    assert f"{file} is damaged (" in capsys.readouterr().err
