"""Tests of the package again, on a device that is not the processor."""

import re

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="no devices written in Python"
)

STRICT = """
import numpy as np
import pytest
import torch


def test_strict():
    one, other = torch.ones(3, device="accel"), torch.ones(3)
    assert (one + 1).tolist() == [2, 2, 2] and (one + 1).device.type == "accel" and other.device.type == "cpu"
    assert one[torch.arange(2)].device == one.device
    index = torch.arange(2, device="accel")
    for mixed in (
        lambda: one + other, lambda: one.add_(other), lambda: torch.cat([one, other]), lambda: one @ other, lambda: other[index]
    ):
        with pytest.raises(RuntimeError, match="tensors on accel:0 and cpu"):
            mixed()
    with pytest.raises(RuntimeError):
        one.numpy()
    np.testing.assert_array_equal((one + other.to("accel")).cpu().numpy(), [2, 2, 2])


def test_random_numbers_are_its_own():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.rand(3, device="accel").tolist()
    assert torch.equal(torch.get_rng_state(), state)
    assert first != torch.rand(3).tolist()
    torch.manual_seed(0)
    assert torch.rand(3, device="accel").tolist() == first
"""

BENCHMARK = """
import torch

from art_entropic import BenchmarkPlan, run_benchmark


def test_benchmark(tmp_path):
    plan = BenchmarkPlan(
        frameworks=("pytorch",), defences=("natural", "entropic_interval"), battery="quick", device="auto", checks=False,
        n_train=100, n_examples=20, nb_epochs=1, nb_epochs_natural=1,
    )
    records = run_benchmark(plan, tmp_path, verbose=False)
    names = [type(record).__name__ for record in records]
    assert names == ["TrainingRecord", "EvaluationRecord"] * 2 + ["ProfileRecord"]
    assert {record.provenance.device for record in records} == {"accel:0 (second device)"}
    for training in records[:4:2]:
        weights = torch.load(tmp_path / training.weights, weights_only=True)
        assert {type(tensor) for tensor in weights.values()} == {torch.Tensor}
"""


@pytest.fixture
def on_second_device(run_pytest):
    """Runs tests there; gives the last line of pytest, and how many operations ran on the second device."""

    def run(*arguments, text):
        told = run_pytest("second_device", *arguments, text=text)
        operations = re.search(r"^(\d+) operations on the second device$", told, re.MULTILINE)
        assert operations
        return told.strip().splitlines()[-1], int(operations[1])

    return run


def test_the_second_device_is_as_strict_as_a_gpu(on_second_device):
    last, operations = on_second_device(text=STRICT)
    assert last.startswith("2 passed") and 5 < operations < 50


def test_what_holds_on_the_processor_holds_there(on_second_device):
    again = [
        "test_trainer.py",
        "benchmark/test_defences.py::test_defence_trains_the_estimator_it_is_given",
        "test_objective.py::test_three_steps_agree_between_the_frameworks",
        "evaluation/test_attacks.py::test_attack_breaks_what_can_be_broken_and_nothing_else",
    ]
    tests = [f"tests/{one}" for one in again]
    # What another test shows there too, and takes long.
    slow = "hop_skip_jump or apgd_t or linear-0.5 or both_frameworks or subclassed_keras or fit_generator"
    last, operations = on_second_device(*tests, "-k", f"not (tensorflow or 1.0 or 2.0 or {slow})", text=BENCHMARK)
    ended = re.match(r"(\d+) passed, \d+ deselected in", last)
    assert ended, last
    assert int(ended[1]) > 80 and operations > 100_000
