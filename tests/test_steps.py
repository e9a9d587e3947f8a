"""The ways in which a PyTorch training step can be computed end where the plain one does."""

import os
import shutil

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_entropic import MEASURES, EntropicTrainer, certify
from art_entropic.backends.architecture import Conv, Dense, Flatten
from art_entropic.backends.registry import backend_for
from art_entropic.backends.torch import bounds as _torch_bounds
from art_entropic.backends.torch import compiled as _torch_compiled

EPS = 0.1
CONVOLUTIONAL = (Conv(4, 3, padding=1), Flatten(), Dense(16), Dense(3, None))
NETWORK = (Flatten(), Dense(8), Dense(3, None))


def trained(make_classifier, data, measure, *, epochs=3, batch_size=16, architecture=NETWORK, **manner):
    classifier = make_classifier("pytorch", architecture=architecture)
    trainer = EntropicTrainer(classifier, EPS, measure=measure, verbose=False, **manner)
    return classifier, trainer.fit(*data, batch_size=batch_size, nb_epochs=epochs, seed=0)


def assert_close(one, other, atol):
    for a, b in zip(backend_for(one).state().values(), backend_for(other).state().values(), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


# ------------------------------------------------------------------------------------------------------ mixed precision


@pytest.fixture
def bound_dtypes(monkeypatch):
    """Precisions of all that comes out of an interval rule."""
    seen = set()
    bind = _torch_bounds._Call.bind

    def watched(self, value, box):
        seen.update(part.dtype for part in (value, *getattr(box, "box", box)))
        return bind(self, value, box)

    monkeypatch.setattr(_torch_bounds._Call, "bind", watched)
    return seen


def test_bounds_stay_in_float32_beside_a_natural_pass_in_bfloat16(make_classifier, points, bound_dtypes):
    x, y = points("pytorch")
    natural = []
    classifier = make_classifier("pytorch", architecture=CONVOLUTIONAL)
    classifier.model[0].register_forward_hook(
        lambda _, inputs, output: natural.append(output.dtype) if type(output) is torch.Tensor else None
    )
    trainer = EntropicTrainer(classifier, EPS, measure="interval", mixed_precision=True, verbose=False)
    history = trainer.fit(x, y, batch_size=16, nb_epochs=20, seed=0)
    assert torch.bfloat16 in natural and bound_dtypes == {torch.float32}
    assert history.settings["mixed_precision"] is True
    cross_entropy = history.terms("cross_entropy")
    assert cross_entropy[-1] < 0.5 * cross_entropy[0]
    certified = certify(classifier, x, y, EPS)
    assert certified.mean() > 0.8
    rng, backend = np.random.default_rng(0), backend_for(classifier)
    for _ in range(20):
        noise = rng.choice(np.float32([-EPS, EPS]), x.shape)
        assert np.all(backend.logits(np.clip(x + noise, 0, 1)).argmax(1)[certified] == y[certified])


def test_gradients_of_channel_stay_in_float32(make_classifier, points):
    seen = {True: set(), False: set()}
    classifier = make_classifier("pytorch", architecture=CONVOLUTIONAL)
    classifier.model[0].register_forward_hook(lambda module, _, output: seen[module.training].add(output.dtype))
    trainer = EntropicTrainer(classifier, EPS, measure="channel", mixed_precision=True, verbose=False)
    trainer.fit(*points("pytorch"), batch_size=16, nb_epochs=1, seed=0)
    # The gradient is that of the deployed network, which is in inference mode.
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_mixed_precision_ends_near_float32(make_classifier, points, measure):
    data = points("pytorch")
    _, plain = trained(make_classifier, data, measure, epochs=5)
    _, mixed = trained(make_classifier, data, measure, epochs=5, mixed_precision=True)
    for term in ("loss", "cross_entropy", "information"):
        np.testing.assert_allclose(mixed.terms(term), plain.terms(term), rtol=0.05, atol=0.02)
        assert mixed.terms(term) != plain.terms(term)


def test_mixed_precision_is_refused_where_it_is_a_policy_of_layers(make_classifier):
    with pytest.raises(ValueError, match=r"`mixed_precision` must be False on TensorFlow, got True: .* policy of each layer"):
        EntropicTrainer(make_classifier("tensorflow"), EPS, mixed_precision=True)


@pytest.mark.parametrize("switch", ["mixed_precision", "compile"])
def test_switches_are_true_or_false(make_classifier, switch):
    with pytest.raises(TypeError, match=f"`{switch}` must be True or False, got 1"):
        EntropicTrainer(make_classifier("pytorch"), EPS, **{switch: 1})


def test_a_checkpoint_from_before_mixed_precision_goes_on_without_it(make_classifier, points, tmp_path):
    data = points("pytorch")
    trainer = EntropicTrainer(make_classifier("pytorch"), EPS, measure="interval", verbose=False)
    trainer.fit(*data, nb_epochs=2, batch_size=32, seed=0, callbacks=[lambda epoch: epoch.epoch == 1])
    del trainer._progress.plan["mixed_precision"]  # as it was written then
    trainer.save(tmp_path / "half.npz")
    other = EntropicTrainer(make_classifier("pytorch"), EPS, measure="interval", mixed_precision=True, verbose=False)
    with pytest.raises(ValueError, match=r"`mixed_precision` must be as in the checkpoint .*: False, got True"):
        other.resume(tmp_path / "half.npz")
    same = EntropicTrainer(make_classifier("pytorch"), EPS, measure="interval", verbose=False)
    same.resume(tmp_path / "half.npz")
    assert len(same.fit(*data, nb_epochs=2, batch_size=32, seed=0).epochs) == 2


# -------------------------------------------------------------------------------------------------------------- compile


@pytest.fixture
def recorded_alone(monkeypatch):
    """The recorded graphs, run as they are: what is compiled is right if they are, and compiling takes a minute."""
    graphs = []

    def keep(graph):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(_torch_compiled, "compiled", keep)
    monkeypatch.setattr("art_entropic.backends.torch.backend.check_compiler", lambda: None)
    return graphs


def layers_of_all_kinds():
    torch.manual_seed(0)
    model = nn.Sequential(
        # Batch norm takes a bias away: its gradient is rounding alone, which Adam makes as large as any other.
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 3),
    )  # fmt: skip
    model[6].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (2, 6, 6), 3, optimizer, clip_values=(0.0, 1.0), preprocessing=(0.3, 0.5)
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_a_recorded_step_is_the_step(recorded_alone, points, measure):
    """Statistics, dropout masks and a last batch of another length included."""
    x, y = points("pytorch", n=60)
    classifiers, histories = [], []
    for compile in (False, True):
        classifiers.append(layers_of_all_kinds())
        trainer = EntropicTrainer(classifiers[-1], EPS, measure=measure, compile=compile, verbose=False)
        histories.append(trainer.fit(x, y, batch_size=16, nb_epochs=2, seed=0))
    assert len(recorded_alone) == 1
    assert_close(*classifiers, atol=1e-5)
    for term in histories[0].epochs[-1].terms:
        np.testing.assert_allclose(histories[1].terms(term), histories[0].terms(term), rtol=1e-4, atol=1e-5)


def test_a_step_is_recorded_again_when_a_parameter_is_frozen(recorded_alone, points):
    classifier = layers_of_all_kinds()
    weight = classifier.model[0].weight
    trainer = EntropicTrainer(classifier, EPS, measure="channel", compile=True, decay=0.0, verbose=False)
    seen = []

    def freeze(epoch):
        seen.append(weight.detach().clone())
        weight.requires_grad_(False)

    trainer.fit(*points("pytorch"), batch_size=32, nb_epochs=3, seed=0, callbacks=[freeze])
    assert len(recorded_alone) == 2
    torch.testing.assert_close(seen[1], seen[2], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_compiled_steps_end_where_the_others_do(make_classifier, points, measure):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("compile needs a C++ compiler, and this machine has none")
    data = points("pytorch", n=32)
    one, _ = trained(make_classifier, data, measure, epochs=2)
    other, _ = trained(make_classifier, data, measure, epochs=2, compile=True)
    assert_close(one, other, atol=1e-5)


def test_without_a_compiler_the_switch_is_named_before_any_work(make_classifier):
    import torch._inductor.config

    with (
        torch._inductor.config.patch("cpp.cxx", "no-such-compiler"),
        pytest.raises(ValueError, match=r"`compile` must be False on a machine without a C\+\+ compiler, .* got True"),
    ):
        EntropicTrainer(make_classifier("pytorch"), EPS, compile=True)


def test_what_cannot_be_compiled_names_the_switch_and_leaves_the_weights(recorded_alone, points):
    class Undecided(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if float(self.weight.detach().sum()) > 0 else 1.0)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Undecided(72, 3))
    optimizer = torch.optim.Adam(model.parameters())
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (2, 6, 6), 3, optimizer, clip_values=(0.0, 1.0))
    before = backend_for(classifier).state()
    with pytest.raises(ValueError, match=r"`compile` must be False for this network and this objective, .* get value out of"):
        EntropicTrainer(classifier, EPS, measure="interval", compile=True, verbose=False).fit(*points("pytorch"), nb_epochs=1)
    for name, array in backend_for(classifier).state().items():
        np.testing.assert_array_equal(array, before[name])


class Counting(nn.Module):
    """Puts another tensor in the place of its buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return x


@pytest.mark.parametrize(("between", "hooked", "reason"), [
    (Counting(), False, "puts another tensor in the place of a buffer"),
    (nn.Identity(), True, "the gradient of '1.weight' has hooks"),
])  # fmt: skip
def test_what_a_graph_would_leave_out_is_refused(recorded_alone, points, between, hooked, reason):
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), between)
    optimizer = torch.optim.Adam(model.parameters())
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (2, 6, 6), 3, optimizer, clip_values=(0.0, 1.0))
    if hooked:
        model[1].weight.register_hook(torch.zeros_like)
    trainer = EntropicTrainer(classifier, EPS, measure="channel", compile=True, verbose=False)
    with pytest.raises(ValueError, match=f"`compile` must be False for this network and this objective, .*{reason}"):
        trainer.fit(*points("pytorch"), nb_epochs=1)


def test_on_tensorflow_the_switch_is_that_of_xla(make_classifier, points):
    classifiers = [make_classifier("tensorflow") for _ in range(2)]
    for classifier, compile in zip(classifiers, (False, True), strict=True):
        trainer = EntropicTrainer(classifier, EPS, measure="interval", compile=compile, verbose=False)
        trainer.fit(*points("tensorflow"), nb_epochs=1, batch_size=32, seed=0)
    one, two = (backend_for(classifier).state() for classifier in classifiers)
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, atol=1e-5)
    coding = EntropicTrainer(classifiers[1], EPS, measure="coding", compile=True, verbose=False)
    with pytest.raises(ValueError, match=r"`compile` must be False for this step, which XLA refuses"):
        coding.fit(*points("tensorflow"), nb_epochs=1)
    for name, array in backend_for(classifiers[1]).state().items():
        np.testing.assert_array_equal(array, two[name])
