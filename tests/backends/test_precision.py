"""What is judged is computed in full float32, whatever the process allows; what trains keeps the user's setting."""

import importlib
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from art.estimators.classification import KerasClassifier, PyTorchClassifier
from torch import nn

from art_entropic import EntropicTrainer, certify, evaluate, information_profile
from art_entropic.backends.registry import backend_for
from art_entropic.backends.switches import HeldSwitch
from art_entropic.backends.tensorflow import precision as _tensorflow_precision
from art_entropic.backends.torch import precision as _torch_precision

EPS = 0.05
SHAPE = (1, 2, 3)
X = np.random.default_rng(0).random((12, *SHAPE), np.float32)
Y = np.arange(12) % 10

NEWER = hasattr(torch.backends, "fp32_precision")


def tf32_of_tensorflow():
    return tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.fixture
def reduced():
    """Both frameworks may compute float32 with fewer digits, as they do by default on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    assert torch.get_float32_matmul_precision() == "medium" and tf32_of_tensorflow()
    torch.set_float32_matmul_precision(before)


class Watched(nn.Module):
    """Tells in which precision it is asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.seen = nn.Linear(6, 8), nn.Linear(8, 10), []

    def forward(self, x):
        self.seen.append(torch.get_float32_matmul_precision())
        return self.b(torch.relu(self.a(x.flatten(1))))


class WatchedLayer(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, x):
        def look(values):
            self.seen.append("medium" if tf32_of_tensorflow() else "highest")
            return values

        same = tf.numpy_function(look, [x], tf.float32)
        same.set_shape(x.shape)
        return x + tf.stop_gradient(same - x)


def pytorch():
    model = Watched()
    adam = torch.optim.Adam(model.parameters())
    built = PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, 10, adam, clip_values=(0.0, 1.0), device_type="cpu")
    return built, model.seen


def tensorflow():
    keras.utils.set_random_seed(0)
    watched = WatchedLayer()
    layers = [
        keras.Input(SHAPE),
        keras.layers.Flatten(),
        keras.layers.Dense(8, activation="relu"),
        watched,
        keras.layers.Dense(10),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    return KerasClassifier(model, clip_values=(0.0, 1.0), use_logits=True), watched.seen


BUILT = {"pytorch": pytorch, "tensorflow": tensorflow}


def test_what_is_judged_is_computed_in_full(framework, reduced):
    classifier, seen = BUILT[framework]()
    asked = [
        lambda: evaluate(classifier, X, Y, eps=EPS, battery="standard", verbose=False),
        lambda: information_profile({"net": classifier}, X, Y, eps=EPS, verbose=False),
        lambda: backend_for(classifier).predict(X),
        lambda: backend_for(classifier).input_gradient(X, np.ones((12, 10), np.float32)),
    ]
    if framework == "pytorch":
        asked += [
            lambda: certify(classifier, X, Y, EPS),
            lambda: evaluate(classifier, X, Y, eps=EPS, battery="reference", checks=False, verbose=False),
        ]
    for ask in asked:
        seen.clear()
        ask()
        assert set(seen) == {"highest"}


def test_training_keeps_the_precision_that_the_user_chose(framework, reduced):
    classifier, seen = BUILT[framework]()
    trainer = EntropicTrainer(classifier, EPS, measure="channel", verbose=False)
    trainer.fit(X, Y, nb_epochs=1, batch_size=4, seed=0)
    assert "medium" in seen
    seen.clear()
    classifier.fit(X, np.eye(10, dtype=np.float32)[Y], nb_epochs=1, batch_size=4)
    assert set(seen) == {"medium"}


def test_bounds_of_a_keras_model_are_computed_in_full(monkeypatch, make_classifier):
    classifier, seen = make_classifier("tensorflow"), []
    module = importlib.import_module("art_entropic.backends.tensorflow.backend")
    check = module.check_joint_pass
    monkeypatch.setattr(module, "check_joint_pass", lambda *given: (seen.append(tf32_of_tensorflow()), check(*given)))
    certify(classifier, np.zeros((2, *classifier.input_shape), np.float32), [0, 1], EPS)
    assert seen and not any(seen) and tf32_of_tensorflow()


def readings():
    """All that PyTorch tells of its precision."""
    backends = torch.backends
    found = {"matmul": torch.get_float32_matmul_precision(), "cudnn": backends.cudnn.allow_tf32}
    if NEWER:
        places = {"all": backends, "cudnn": backends.cudnn, "mkldnn": backends.mkldnn, "cuda.matmul": backends.cuda.matmul}
        places |= {
            f"{kind}.{name}": getattr(getattr(backends, kind), name) for kind in ("cudnn", "mkldnn") for name in ("conv", "rnn")
        }
        found |= {f"{name} precision": place.fp32_precision for name, place in places.items()}
    return found


def older(value):
    return lambda: torch.set_float32_matmul_precision(value)


def newer(*path, value):
    def put():
        place = torch.backends
        for name in path:
            place = getattr(place, name)
        place.fp32_precision = value

    return put


SETTINGS = {
    "default": (older("highest"), lambda: None),
    "high": (older("high"), older("highest")),
    "medium": (older("medium"), older("highest")),
}
if NEWER:
    SETTINGS |= {
        "all": (newer(value="tf32"), newer(value="none")),
        "cudnn": (newer("cudnn", value="tf32"), newer("cudnn", value="none")),
        "convolutions on the processor": (newer("mkldnn", "conv", value="bf16"), newer("mkldnn", "conv", value="none")),
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_every_way_to_allow_less_is_undone_inside_and_as_it_was_after(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    put, back = SETTINGS[name]
    put()
    try:
        before = readings()
        assert set(before.values()) & {"tf32", "bf16", "high", "medium", True}
        with _torch_precision.full_float32, _torch_precision.without_cudnn:
            assert not set(readings().values()) & {"tf32", "bf16", "high", "medium", True}
            assert not torch.backends.cudnn.enabled
        assert readings() == before and torch.backends.cudnn.enabled
    finally:
        back()


def test_settings_that_pytorch_itself_cannot_read_any_more_are_undone_too(monkeypatch):
    if not NEWER:
        pytest.skip("PyTorch before 2.9 knows one way only")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    conv = torch.backends.cudnn.conv
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError):
            print(torch.backends.cudnn.allow_tf32)
        with _torch_precision.full_float32:
            assert conv.fp32_precision == "ieee"
        assert (conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision) == ("tf32", "ieee")
    finally:
        torch.backends.cudnn.rnn.fp32_precision = "tf32"


@pytest.mark.parametrize("switch", [_torch_precision.full_float32, _tensorflow_precision.full_float32])
def test_an_error_inside_turns_the_switch_back(switch, reduced):
    with pytest.raises(KeyError), switch, switch:
        raise KeyError


def test_the_last_thread_out_turns_the_switch_back():
    turned = []
    switch = HeldSwitch(lambda: turned.append("on") or (lambda: turned.append("off")))
    first_in, second_out = threading.Event(), threading.Event()

    @switch
    def first():
        first_in.set()
        assert second_out.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(10)
    with switch:
        pass
    assert turned == ["on"]
    second_out.set()
    thread.join()
    assert turned == ["on", "off"]
    with switch:
        assert turned == ["on", "off", "on"]


@pytest.mark.parametrize("in_place", [True, False])
def test_both_passes_draw_a_dropout_in_the_same_form(in_place, monkeypatch):
    """On a GPU the two forms have kernels of their own, which make other masks of the same random numbers."""
    drawn = []
    for name in ("dropout", "dropout_"):
        own = getattr(F._VF, name)
        monkeypatch.setattr(F._VF, name, lambda *given, name=name, own=own: (drawn.append(name), own(*given))[1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5, inplace=in_place), nn.Linear(8, 10))
    built = PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, 10, clip_values=(0.0, 1.0), device_type="cpu")
    plain, joint = backend_for(built).both_logits(X, EPS, training=True)
    np.testing.assert_allclose(plain, joint, rtol=1e-6)
    assert drawn == 2 * ["dropout_" if in_place else "dropout"]
