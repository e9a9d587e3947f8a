"""Faults that are not ours, and what is left after them; the table of docs/reliability.md names these tests."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_entropic import EntropicTrainer
from art_entropic.backends import backend_for
from art_entropic.records import append_record, read_records

ROOT = Path(__file__).parent.parent

# Appends records until the file may not grow any more, as on a full disk.
FILLER = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_report import evaluation
from art_entropic.records import append_record
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for seed in range(100):
    append_record(Path(sys.argv[1]), evaluation("entropic", 0.5, seed=seed))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
def test_a_full_disk_keeps_what_was_written(tmp_path):
    from test_report import evaluation

    file = tmp_path / "records.jsonl"
    found = subprocess.run([sys.executable, "-c", FILLER, file, str(ROOT / "tests")], capture_output=True, text=True)
    assert found.returncode != 0 and "File too large" in found.stderr
    with pytest.warns(RuntimeWarning, match="torn last line skipped"):
        kept = list(read_records(file))
    assert [record.seed for record in kept] == list(range(len(kept))) and len(kept) >= 2
    assert kept[0] == evaluation("entropic", 0.5, seed=0)


@pytest.mark.parametrize("command", ["benchmark --framework pytorch --out", "report"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, command):
    from art_entropic import cli

    (tmp_path / "file").write_text("in the way")
    assert cli.main([*command.split(), str(tmp_path / "file" / "run")]) == 2
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
    for name, content in (("cut", whole[:middle]), ("empty", b""), ("text", b"hello"), ("flipped", flipped)):
        (tmp_path / f"{name}.npz").write_bytes(content)
    for name in ("cut", "empty", "text", "flipped", "other"):
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
            MemoryError, match="no memory for a batch of 16: try `batch_size` 8; the weights are back at the start"
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
    from test_report import evaluation

    file = tmp_path / "records.jsonl"
    append_record(file, evaluation("entropic", 0.5))
    with file.open("a") as stream:
        stream.write('{"schema": 7, "kind": "evaluation"}\n')
        stream.write(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:2: record of schema 7, this version reads schema 1"):
        list(read_records(file))


def test_every_fault_of_the_page_has_its_test():
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, test in named:
        source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file}.{test}"
