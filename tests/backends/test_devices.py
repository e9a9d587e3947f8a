"""Where networks are: words for devices, moving a classifier, and data that wait there."""

import json
import re

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_entropic import EntropicTrainer, move_to
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_module, resolve_device
from art_entropic.backends.torch.backend import TorchBackend
from art_entropic.backends.torch.devices import on_device
from art_entropic.benchmark.cells import plan_jobs
from art_entropic.benchmark.plan import BenchmarkPlan, resolved
from art_entropic.benchmark.problems import PROBLEMS, build_classifier
from art_entropic.benchmark.run import run_benchmark

NO_GPU = r"`device` must be 'auto', 'cpu' or 'cuda\[:i\]' with a GPU of this machine \(none\), got "


def with_gpus(monkeypatch, framework, *gpus):
    monkeypatch.setattr(framework_module(framework), "accelerators", lambda: gpus)
    monkeypatch.setattr(f"art_entropic.backends.{FRAMEWORKS[framework].package}.devices.accelerators", lambda: gpus)


@pytest.mark.parametrize(
    ("word", "alone", "with_two"),
    [("auto", "cpu", "cuda:0"), ("cpu", "cpu", "cpu"), ("cuda", None, "cuda:0"), ("cuda:1", None, "cuda:1")],
)
def test_a_word_stands_for_a_device_that_is_here(framework, monkeypatch, word, alone, with_two):
    if alone is None:
        with pytest.raises(ValueError, match=NO_GPU + repr(word)):
            resolve_device(framework, word)
    else:
        assert resolve_device(framework, word) == alone
    with_gpus(monkeypatch, framework, "cuda:0", "cuda:1")
    assert resolve_device(framework, word) == with_two


@pytest.mark.parametrize("word", ["cuda:2", "cuda:", "gpu", "CPU", "tpu:0", 0, None])
def test_an_unknown_device_is_refused_before_any_work_with_those_that_are_here(framework, classifier, monkeypatch, word):
    with_gpus(monkeypatch, framework, "cuda:0", "cuda:1")
    message = rf"with a GPU of this machine \(cuda:0, cuda:1\), got {re.escape(repr(word))}$"
    with pytest.raises(ValueError, match=message):
        move_to(classifier, word)
    if word is not None:  # which leaves it to the framework
        with pytest.raises(ValueError, match=message):
            build_classifier(PROBLEMS["digits"], framework, 0, device=word)


@pytest.fixture
def classifier(framework, make_classifier):
    return make_classifier(framework)


def test_pytorch_lists_the_gpus_that_it_sees(monkeypatch):
    module = framework_module("pytorch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert module.accelerators() == ()  # a driver that is not there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Model T")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert module.accelerators() == ("cuda:0", "cuda:1")
    assert [module.device_title(device) for device in ("cpu", "cuda:0", None)] == [
        "cpu",
        "cuda:0 (Model T)",
        "cuda:1 (Model T)",
    ]


@pytest.mark.parametrize("device", [None, "auto", "cpu"])
def test_networks_of_the_package_are_built_where_they_are_asked_for(framework, device):
    built = build_classifier(PROBLEMS["digits"], framework, 0, device=device)
    assert not backend_for(built).is_accelerated
    state = backend_for(build_classifier(PROBLEMS["digits"], framework, 0)).state()
    for name, array in backend_for(built).state().items():
        np.testing.assert_array_equal(array, state[name])
    assert move_to(built, "cpu") is built


def test_art_builds_an_estimator_on_the_gpu_that_was_named(monkeypatch):
    """ART knows "gpu" alone, and takes the current one."""
    current = []

    class Current:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.append(None)

    monkeypatch.setattr(torch.cuda, "device", Current)
    with on_device(torch.device("cuda:1")) as kind:
        assert (kind, current) == ("gpu", [torch.device("cuda:1")])
    assert current[-1] is None
    for device, expected in ((None, "gpu"), (torch.device("cpu"), "cpu")):
        with on_device(device) as kind:
            assert kind == expected


def test_moving_takes_network_optimizer_loss_and_preprocessing_along():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    optimizer, loss = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss(weight=torch.ones(3))
    classifier = PyTorchClassifier(model, loss, (6,), 3, optimizer, clip_values=(0.0, 1.0), preprocessing=(0.3, 0.5))
    x = np.random.default_rng(0).random((8, 6), np.float32)
    classifier.fit(x, np.arange(8) % 3, nb_epochs=1, verbose=False)
    backend = backend_for(classifier)
    backend.logits(x)
    backend._move(torch.device("meta"))  # the one other device that every machine has
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert {parameter.device.type for group in optimizer.param_groups for parameter in group["params"]} == {"meta"}
    slots = list(optimizer.state.values())
    assert len(slots) == 6 and {slot[name].device.type for slot in slots for name in ("exp_avg", "exp_avg_sq")} == {"meta"}
    assert {slot["step"].device.type for slot in slots} == {"cpu"}  # where Adam wants it
    assert loss.weight.device.type == "meta"
    (standardise,) = classifier.preprocessing_operations
    assert (classifier.device.type, classifier.device_type, standardise._device.type) == ("meta", "gpu", "meta")
    # A backend that was made before the move follows.
    assert backend.device.type == "meta" and backend.is_accelerated
    low, high = backend.ball(torch.zeros(2, 6, device="meta"), 0.1)
    assert (low.device.type, high.device.type) == ("meta", "meta")
    assert backend.forward(torch.zeros(2, 6, device="meta")).device.type == "meta"


def test_a_keras_model_stays_where_it_was_built(make_classifier, monkeypatch):
    classifier = make_classifier("tensorflow")
    with_gpus(monkeypatch, "tensorflow", "cuda:0")
    with pytest.raises(ValueError, match=r"weights of `classifier` are \(CPU:0\), got 'cuda:0': a Keras model cannot be moved"):
        move_to(classifier, "auto")


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_tensorflow_computes_on_the_first_device_that_it_sees(make_classifier, monkeypatch, device):
    classifier = make_classifier("tensorflow")
    with_gpus(monkeypatch, "tensorflow", "cuda:0", "cuda:1")
    message = rf"`device` must be 'cuda:0' on TensorFlow, .* got '{device}': to choose another one, set .* CUDA_VISIBLE_DEVICES"
    with pytest.raises(ValueError, match=message):
        move_to(classifier, device)
    with pytest.raises(ValueError, match=message):
        build_classifier(PROBLEMS["digits"], "tensorflow", 0, device=device)


def test_the_device_of_a_plan_is_asked_for_where_its_cells_run(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    plan = BenchmarkPlan(frameworks=("pytorch",), defences=("natural",), device="cuda:7")
    assert resolved(plan).device == "cuda:7"  # which a worker may have
    message = r"with a GPU of this machine \(none\), got 'cuda:7'"
    with pytest.raises(ValueError, match=message):
        run_benchmark(plan, tmp_path, verbose=False)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match=message):
        run_benchmark(plan, tmp_path, executor=executor, verbose=False)
    assert not (tmp_path / "records.jsonl").exists()


def test_a_plan_without_a_device_is_the_plan_that_it_was(monkeypatch):
    """Published records are found by these keys."""
    plain, named, other = (
        plan_jobs(resolved(BenchmarkPlan(frameworks=("pytorch",), device=device)), "feed") for device in (None, "cpu", "auto")
    )
    assert not {job.training_key for job in plain} & {job.training_key for job in named}
    assert not {job.training_key for job in other} & {job.training_key for job in named}
    seen = []
    monkeypatch.setattr("art_entropic.benchmark.keys.digest", lambda **facts: seen.append(facts) or str(len(seen)))
    plan_jobs(resolved(BenchmarkPlan(frameworks=("pytorch",))), "feed")
    assert seen and not any("device" in facts for facts in seen)


def test_a_benchmark_says_where_its_networks_ran(tmp_path):
    plan = BenchmarkPlan(
        frameworks=("pytorch",), defences=("natural",), battery="quick", n_examples=5, n_train=64, nb_epochs_natural=1,
        checks=False, profile=False, device="auto",
    )  # fmt: skip
    records = run_benchmark(plan, tmp_path, verbose=False)
    assert {record.provenance.device for record in records} == {"cpu"}
    assert records[0].provenance.command.endswith(" --device auto")
    line = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])
    assert line["provenance"]["device"] == "cpu"


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_data_that_wait_on_the_device_train_to_the_same_weights_bit_for_bit(make_classifier, points, monkeypatch, measure):
    x, y = points("pytorch", n=50)  # the last batch is shorter
    ends, held = [], []
    for room in (0, 4 * x.nbytes, 4 * x.nbytes + 1):
        monkeypatch.setattr("art_entropic.backends.torch.backend.free_memory", lambda device, room=room: room)
        classifier = make_classifier("pytorch")
        trainer = EntropicTrainer(classifier, 0.1, measure=measure, verbose=False)
        held.append(isinstance(trainer._backend.hold(x), torch.Tensor))
        trainer.fit(x, y, batch_size=16, nb_epochs=2, seed=0)
        ends.append(backend_for(classifier).state())
    assert held == [False, False, True]
    for name, array in ends[0].items():
        np.testing.assert_array_equal(ends[1][name], array)
        np.testing.assert_array_equal(ends[2][name], array)


def test_data_wait_on_a_gpu_with_room_alone(make_classifier, framework, monkeypatch):
    backend = backend_for(make_classifier(framework))
    x = np.zeros((4, *backend.estimator.input_shape), np.float32)
    assert backend.hold(x) is x  # on the processor
    if framework == "pytorch":
        monkeypatch.setattr(TorchBackend, "device", torch.device("cuda:1"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * x.nbytes if device.index == 1 else 0, 0))
        assert backend.hold(x) is x  # it would take a quarter of what is free
