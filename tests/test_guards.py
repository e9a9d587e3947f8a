"""Is this the network that predicts, and are these its bounds? On PyTorch networks as people write them."""

import copy
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.defences.postprocessor import GaussianNoise, ReverseSigmoid, Rounded
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import HuggingFaceClassifierPyTorch, PyTorchClassifier
from torch import nn

from art_entropic import (
    BoundsMismatchError,
    EntropicTrainer,
    NoIntervalRuleError,
    certify,
    choosing,
    evaluate,
    information_profile,
)
from art_entropic.backends.errors import check_joint_pass
from art_entropic.backends.registry import backend_for
from art_entropic.guards import check_bounds, check_predictions
from art_entropic.ops import Box

EPS = 0.03


class Net(nn.Module):
    """Linear, a function of the hidden layer, linear."""

    def __init__(self, between=torch.relu, before=lambda x: x):
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self._between, self._before = between, before

    def forward(self, x):
        return self.c(self._between(self.a(self._before(x) - 0.5)))


class Own(Net):
    """A function that needs the network itself."""

    def forward(self, x):
        return self.c(self._between(self, self.a(x - 0.5)))


def classifier(model, kind=PyTorchClassifier, **arguments):
    optimizer = torch.optim.Adam(model.parameters()) if any(True for _ in model.parameters()) else None
    arguments = {"loss": nn.CrossEntropyLoss(), "input_shape": (4,), "nb_classes": 3, "clip_values": (0.0, 1.0)} | arguments
    return kind(model, optimizer=optimizer, device_type="cpu", **arguments)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(40, 4)).astype(np.float32), np.arange(40) % 3


def assert_bounds_hold(model, x, eps=EPS, copies=200):
    """Random points and corners of the ball, through the network itself, in the box of its logits."""
    model.eval()
    lower, upper = list(backend_for(classifier(model)).intervals(x, eps).values())[-1]
    rng = np.random.default_rng(1)
    for number in range(copies):
        step = rng.uniform(-eps, eps, x.shape) if number % 2 else rng.choice([-eps, eps], x.shape)
        with torch.no_grad():
            z = model(torch.tensor(np.clip(x + step, 0, 1).astype(np.float32))).numpy()
        assert np.all(z >= lower - 1e-6) and np.all(z <= upper + 1e-6)


# ------------------------------------------------------------------------------------------- in place, and through views


def _statement(net, h):
    net.act(h)
    return h


def _view(net, h):
    h.view(len(h), -1).relu_()
    return h


def _slice(net, h):
    h[:, :3].mul_(-3)
    return h


def _transposed(net, h):
    g = h.view(-1, 4, 4).transpose(1, 2)
    g.neg_()
    return h + g.flatten(1)


def _detour(net, h):
    h.unsqueeze(1).squeeze(1).mul_(-2.0)
    return h.abs_()


def _dead_base(net, h):
    v = h.view(len(h), -1)
    del h
    return v.relu_().neg_().clamp_(max=-0.1)


# fmt: off
IN_PLACE = {
    "module_used_again": lambda net, h: h + net.b(net.act(h)),
    "module_as_a_statement": _statement,
    "positional_flag": lambda net, h: F.relu(h, True) + net.b(h),
    "view": _view,
    "slice": _slice,
    "transposed_view": _transposed,
    "dropout_in_inference": lambda net, h: (F.dropout(h, 0.5, net.training).relu_(), h)[1],
    "identity": lambda net, h: (nn.Identity()(h).tanh_(), h)[1],
    "conversion_to_the_same": lambda net, h: (h.to(torch.float32).add_(1.0), 2 * h)[1],
    "detour_over_a_view": _detour,
    "silu": lambda net, h: F.silu(h, inplace=True) * h,
    "augmented": lambda net, h: (h.__iadd__(net.b(h)), torch.relu_(h))[1],
    "view_without_its_base": _dead_base,
    "clamped": lambda net, h: torch.clamp_(h, -0.2, 0.3) - net.b(h),
}
# fmt: on


@pytest.mark.parametrize("case", IN_PLACE)
def test_bounds_are_those_of_a_network_that_works_in_place(case, data):
    assert_bounds_hold(Own(IN_PLACE[case]), data[0])


def _twice_through_views(net, h):
    v = h.view(len(h), -1)
    v.relu_()
    h.mul_(2.0)
    return v


def test_a_second_change_through_another_view_is_refused_by_layer_and_function(data):
    x, y = data
    with pytest.raises(NoIntervalRuleError, match=r"'mul' in layer 'Own': it changes memory in place"):
        certify(classifier(Own(_twice_through_views)), x, y, EPS)


def test_writing_where_out_says_is_refused(data):
    x, y = data
    with pytest.raises(NoIntervalRuleError, match="given as `out`"):
        certify(classifier(Net(lambda h: torch.add(h, 1.0, out=torch.empty(len(h), 16)))), x, y, EPS)


def test_an_in_place_relu_behind_each_convolution_trains_with_bounds():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(inplace=True),
        nn.Linear(8, 3),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(12, 1, 6, 6)).astype(np.float32), np.arange(12) % 3
    one = classifier(model, input_shape=(1, 6, 6))
    history = EntropicTrainer(one, 0.1, measure="interval", verbose=False).fit(x, y, batch_size=6, nb_epochs=2, seed=0)
    assert history.terms("information")[-1] > 0
    assert backend_for(one).layer_names() == ("1", "4", "6")


# ------------------------------------------------------------------------------------------------- compiled networks


def _wholly(model):
    return torch.compile(model, backend="eager")


def _itself(model):
    model.compile(backend="eager")
    return model


def _in_part(model):
    model.a = torch.compile(model.a, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [_wholly, _itself, _in_part])
def test_a_compiled_network_has_the_certificates_and_the_gradients_of_the_same_one_uncompiled(compiled, data):
    x, y = data
    plain, other = classifier(Net()), classifier(compiled(Net()))
    np.testing.assert_array_equal(certify(plain, x, y, 0.01), certify(other, x, y, 0.01))
    assert certify(plain, x, y, 0.01).any() and not certify(plain, x, y, 0.01).all()
    assert backend_for(plain).layer_names() == backend_for(other).layer_names() == ("a", "c")
    for measure in ("interval", "channel", "coding", "activation"):
        for one in (plain, other):
            EntropicTrainer(one, 0.1, measure=measure, verbose=False).fit(x, y, batch_size=20, nb_epochs=1, seed=0)
        for a, b in zip(backend_for(plain).state().values(), backend_for(other).state().values(), strict=True):
            np.testing.assert_array_equal(a, b)


# ----------------------------------------------------------------------------------- what no rule can know of by itself


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x.relu()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * (ctx.saved_tensors[0] > 0)


def test_a_custom_function_keeps_its_certificates_but_trains_without_bounds(data, monkeypatch):
    monkeypatch.setattr(choosing, "AGREEMENT", 2.0)  # so small a network hardly turns its gradient
    x, y = data
    model = Net(Doubled.apply)
    assert_bounds_hold(model, x)
    assert certify(classifier(model), x, y, 0.005).any()
    with pytest.raises(NoIntervalRuleError, match=r"'relu' in layer 'Net': it is computed without gradients"):
        EntropicTrainer(classifier(model), 0.1, measure="interval", verbose=False).fit(x, y, nb_epochs=1)
    history = EntropicTrainer(classifier(model), 0.1, verbose=False).fit(x, y, nb_epochs=1, seed=0)
    assert history.settings["measure"] == "channel" and "computed without gradients" in history.settings["reason"]


# fmt: off
RANDOM = {
    "dropout_that_forgets_the_mode": lambda h: F.dropout(torch.relu(h), 0.5),
    "noise_of_its_own": lambda h: torch.relu(h) + 0.3 * torch.rand(h.shape),
    "noise_like_a_tensor": lambda h: torch.relu(h) + 0.3 * torch.randn_like(h),
}
# fmt: on


def test_what_depends_on_the_other_points_of_the_batch_gets_no_certificate(data):
    x, y = data
    with pytest.raises(BoundsMismatchError, match="depend on the other points of the batch"):
        certify(classifier(Net(lambda h: torch.relu(h - h.mean(0)))), x, y, EPS)


@pytest.mark.parametrize("case", RANDOM)
def test_what_is_random_in_inference_gets_no_certificate(case, data):
    x, y = data
    with pytest.raises(NoIntervalRuleError):
        certify(classifier(Net(RANDOM[case])), x, y, EPS)


def test_a_pass_with_bounds_that_says_something_else_is_refused_with_the_first_layer_that_differs(data):
    x, y = data

    def other_for_subclasses(h):
        return torch.relu(h) if type(h) is torch.Tensor else torch.relu(h + 1.0)

    with pytest.raises(BoundsMismatchError, match=r"bounds of layer 'add' do not hold for this network: .* different logits"):
        certify(classifier(Net(other_for_subclasses)), x, y, EPS)
    result = evaluate(classifier(Net(other_for_subclasses)), x, y, EPS, battery="quick", checks=False, verbose=False)
    assert result.certified is None and "do not hold for this network" in result.certified_reason


def test_other_logits_are_told_from_rounding():
    plain = np.array([[10.0, -3.0]])
    check_joint_pass(plain, plain * (1 + 1e-6), lambda: "logits")
    with pytest.raises(BoundsMismatchError, match=r"layer 'fc' .* differ by 0.01, the largest is 10"):
        check_joint_pass(plain, plain + 0.01, lambda: "fc")


class Sloped:
    """A backend of f(x) = 2 x whose bounds are too narrow by a factor."""

    class estimator:
        clip_values = None

    def __init__(self, factor):
        self._factor = factor

    def logits(self, x):
        return 2 * x

    def activations(self, x):
        return {"hidden": 2 * x, "logits": 2 * x}

    def intervals(self, x, eps, norm):
        reach = 2 * eps * self._factor
        return {"hidden": Box(2 * x - 2 * eps, 2 * x + 2 * eps), "logits": Box(2 * x - reach, 2 * x + reach)}

    def logit_bounds(self, x, eps, norm):
        return self.intervals(x, eps, norm)["logits"]


def test_points_of_the_ball_find_bounds_that_are_too_narrow():
    x = np.linspace(0, 1, 20, dtype=np.float32).reshape(10, 2)
    check_bounds(Sloped(1.0), x, 0.1)
    with pytest.raises(BoundsMismatchError, match=r"layer 'logits' .* outside by 0\.002, where values go up to 2\.2"):
        check_bounds(Sloped(0.99), x, 0.1)


def test_points_of_the_l2_ball_reach_its_surface_and_do_not_leave_it():
    x = np.linspace(0, 1, 10, dtype=np.float32).reshape(10, 1)
    check_bounds(Sloped(1.0), x, 0.1, 2.0)
    with pytest.raises(BoundsMismatchError, match=r"outside by 0\.002"):
        check_bounds(Sloped(0.99), x, 0.1, 2.0)
    # In 100 dimensions no unit moves by the whole radius: a box that would be too narrow for corners holds all points.
    check_bounds(Sloped(0.7), np.zeros((10, 100), np.float32), 0.1, 2.0)


@pytest.mark.parametrize(
    "hook",
    [lambda m, i, out: m.__dict__.setdefault("seen", []).append(out.detach().numpy()), lambda m, i, out: out.tolist() and None],
)
def test_a_hook_that_looks_at_numbers_leaves_channel_and_the_profile(hook, data):
    x, y = data
    model = Net(nn.ReLU())
    model.a.register_forward_hook(hook)
    assert (
        EntropicTrainer(classifier(model), 0.1, verbose=False).fit(x, y, nb_epochs=1, seed=0).settings["measure"] == "channel"
    )
    profile = information_profile({"a": classifier(model)}, x, y, eps=0.1, verbose=False)
    (row,) = [row for row in profile.rows if row.measure == "interval" and row.layer == "c"]
    assert row.value is None and "layer 'a'" in row.reason


def test_a_scripted_network_trains_with_channel(data, monkeypatch):
    monkeypatch.setattr(choosing, "AGREEMENT", 2.0)
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        model = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    history = EntropicTrainer(classifier(model), 0.1, verbose=False).fit(*data, nb_epochs=1, seed=0)
    assert history.settings["measure"] == "channel" and "RecursiveScriptModule" in history.settings["reason"]


# ------------------------------------------------------------------------------------------ the network that predicts


def doors(one, x, y):
    yield "evaluate", lambda: evaluate(one, x, y, EPS, battery="quick", checks=False, verbose=False)
    yield "certify", lambda: certify(one, x, y, EPS)
    yield "information_profile", lambda: information_profile({"a": one}, x, y, eps=EPS, verbose=False)
    yield "fit", lambda: EntropicTrainer(one, EPS, verbose=False).fit(x, y, nb_epochs=1)


class Negated(PyTorchClassifier):
    def predict(self, x, **arguments):
        return -super().predict(x, **arguments)


OTHERS = {
    "PyTorchRandomizedSmoothing": lambda: classifier(Net(), PyTorchRandomizedSmoothing, sample_size=5),
    "Negated": lambda: classifier(Net(), Negated),
    "ReverseSigmoid": lambda: classifier(Net(), postprocessing_defences=ReverseSigmoid()),
    "GaussianNoise": lambda: classifier(Net(), postprocessing_defences=GaussianNoise(0.5)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_door_refuses_a_classifier_that_predicts_by_something_else(name, data):
    one = OTHERS[name]()
    before = copy.deepcopy(one.model.state_dict())
    for door, enter in doors(one, *data):
        with pytest.raises(ValueError, match=rf"(?s)must predict by the logits of its network.*{name}"):
            enter()
            pytest.fail(door)
    assert all(torch.equal(before[key], value) for key, value in one.model.state_dict().items())


def test_a_postprocessing_that_keeps_the_order_is_named_in_a_warning(data):
    with pytest.warns(UserWarning, match="postprocessing defence Rounded, which keeps the order"):
        certify(classifier(Net(), postprocessing_defences=Rounded(2)), *data, EPS)


class Softened(PyTorchClassifier):
    def predict(self, x, **arguments):
        z = super().predict(x, **arguments)
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


class Labelled(PyTorchClassifier):
    def predict(self, x, **arguments):
        return np.eye(3)[super().predict(x, **arguments).argmax(axis=1)]


def test_a_softmax_behind_the_logits_is_no_other_network_and_bare_labels_are(data):
    check_predictions(backend_for(classifier(Net(), Softened)), data[0])
    with pytest.raises(ValueError, match="predict of Labelled"):
        check_predictions(backend_for(classifier(Net(), Labelled)), data[0])


def test_the_processor_of_a_hugging_face_classifier_belongs_to_the_network(data):
    x, y = data
    model = Net()
    hugging = classifier(model, HuggingFaceClassifierPyTorch, processor=lambda z: (z - 0.13) / 0.05)
    as_module = classifier(Net(before=lambda z: (z - 0.13) / 0.05))
    np.testing.assert_allclose(backend_for(hugging).logits(x), hugging.predict(x), rtol=1e-5)
    np.testing.assert_array_equal(certify(hugging, x, y, 0.002), certify(as_module, x, y, 0.002))
    for one in (hugging, as_module):
        EntropicTrainer(one, 0.1, measure="interval", verbose=False).fit(x, y, nb_epochs=2, seed=0)
    for a, b in zip(model.state_dict().values(), as_module.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    results = [evaluate(one, x, y, 0.01, battery="quick", checks=False, verbose=False) for one in (hugging, as_module)]
    assert results[0].clean.correct == results[1].clean.correct and results[0].robust.correct == results[1].robust.correct


# ------------------------------------------------------------------------------------------ outputs that are no logits

# fmt: off
OUTPUTS = {
    "a tuple": (lambda z: (z, z), "network returns a tuple"),
    "a dict": (lambda z: {"logits": z}, "network returns a dict"),
    "NaN": (lambda z: z * float("nan"), "finite logits"),
    "one column": (lambda z: z[:, :1], "one logit per class"),
    "probabilities": (lambda z: z.softmax(1), r"to_logits\(classifier\)"),
    "bfloat16": (lambda z: z.bfloat16(), "BFloat16"),
}
# fmt: on


class Behind(Net):
    def forward(self, x):
        return self._between(super(Net, self).__getattr__("c")(torch.relu(self.a(x))))


@pytest.mark.parametrize("case", OUTPUTS)
def test_every_door_names_outputs_that_are_no_logits(case, data):
    make, message = OUTPUTS[case]
    for door, enter in doors(classifier(Behind(make)), *data):
        with pytest.raises((ValueError, TypeError), match=rf"`classifier` .*{message}"):
            enter()
            pytest.fail(door)


# fmt: off
OTHER_PRECISIONS = {
    "half": lambda h: torch.relu(h).half().float(),
    "bfloat16": lambda h: torch.relu(h).to(torch.bfloat16).float(),
    "whole_numbers": lambda h: (torch.relu(h) * 10).to(torch.uint8).float(),
}
# fmt: on


@pytest.mark.parametrize("case", OTHER_PRECISIONS)
def test_other_precisions_inside_a_network_get_no_certificate(case, data):
    with pytest.raises(NoIntervalRuleError):
        certify(classifier(Net(OTHER_PRECISIONS[case])), *data, EPS)


def test_autocast_gets_no_certificate(data):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises((NoIntervalRuleError, ValueError)):
        certify(classifier(Net()), *data, EPS)


def test_a_network_in_double_precision_is_refused_by_name(data):
    with pytest.raises(ValueError, match="`classifier` must answer on `x`, but its network fails with RuntimeError"):
        certify(classifier(Net().double()), *data, EPS)


# ------------------------------------------------------------------------------------- relatives of the cases above


class Rounding(PyTorchClassifier):
    """Its data lie on the grid that it rounds to."""

    def predict(self, x, **arguments):
        return super().predict(np.round(x * 8) / 8, **arguments)


class Sharpened(PyTorchClassifier):
    """One temperature for each input, so that the order of the classes is kept."""

    def predict(self, x, **arguments):
        return super().predict(x, **arguments) * (1 + x[:, :1])


class Reversed(PyTorchClassifier):
    def predict(self, x, **arguments):
        return super().predict(x[:, ::-1].copy(), **arguments)


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("kind", [Rounding, Sharpened, Reversed])
def test_a_predict_that_looks_at_the_input_by_itself_is_found_whatever_the_order_of_classes(kind, n, data):
    x, y = np.round(data[0] * 8) / 8, data[1]
    with pytest.raises(ValueError, match=rf"must predict by the logits of its network, but the predict of {kind.__name__}"):
        certify(classifier(Net(), kind), x[:n].astype(np.float32), y[:n], EPS)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


BEHIND = {
    "temperature": lambda z: softmax(z / 3),
    "saturated": lambda z: softmax((200 * z - 200 * z.max(axis=1, keepdims=True)).astype(np.float32)),
    "log_softmax": lambda z: np.log(softmax(z)),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "shifted": lambda z: 2 * z - z.max(axis=1, keepdims=True),
}


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("name", BEHIND)
def test_a_predict_that_rescales_the_logits_alike_for_all_inputs_is_taken(name, n, data):
    class Rescaled(PyTorchClassifier):
        def predict(self, x, **arguments):
            return BEHIND[name](super().predict(x, **arguments))

    one, plain = classifier(Net(), Rescaled), classifier(Net())
    x, y = data[0][:n], data[1][:n]
    np.testing.assert_array_equal(certify(one, x, y, EPS), certify(plain, x, y, EPS))


class Alone(nn.Module):
    """Of other points of the batch, a point alone sees none."""

    def __init__(self, answer):
        super().__init__()
        self.a, self.norm, self.answer = nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), answer

    def forward(self, x):
        return self.answer(self, self.a(x))


ALONE = {
    "depend on the other points": lambda net, z: z - z.mean(0) + torch.tensor([2.0, 0, 0]),
    "a batch of one point fails with ValueError: Expected more than 1 value": lambda net, z: net.norm(z),
    r"a batch of one point gets logits of shape \(3,\)": lambda net, z: z.squeeze(),
}


@pytest.mark.parametrize("reason", ALONE)
def test_what_one_point_alone_gets_otherwise_gets_no_certificate_even_alone(reason, data):
    if "depend" in reason:
        with pytest.raises(BoundsMismatchError, match=reason):
            certify(classifier(Alone(ALONE[reason])), data[0][:1], data[1][:1], EPS)
    with pytest.raises(BoundsMismatchError, match=reason):
        certify(classifier(Alone(ALONE[reason])), *data, EPS)


class Merging(nn.Linear):
    """An adapter that is merged into its weight for inference, as loralib's are."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up, self.merged = nn.Parameter(torch.randn(2, sizes[0])), nn.Parameter(torch.randn(sizes[1], 2)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (self.up @ self.down) * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else x @ self.down.T @ self.up.T)


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_that_changes_its_weights_with_its_mode_says_the_same_after_every_door(mode, data):
    torch.manual_seed(0)
    model = nn.Sequential(Merging(4, 8), nn.ReLU(), Merging(8, 3)).train(mode)
    one, x = classifier(model), torch.tensor(data[0])
    one.optimizer.param_groups[0]["lr"] = 0.0
    before = model(x).detach()
    for door, enter in doors(one, *data):
        enter()
        torch.testing.assert_close(model(x).detach(), before, rtol=1e-5, atol=1e-5, msg=door)
    assert model.training == mode


def test_switches_of_the_process_are_back_after_threads_that_overlap(data):
    import torch._dynamo

    class Slow(Net):
        def forward(self, x):
            time.sleep(0.01 * self.b.out_features / 16)
            return super().forward(x)

    def retrain():
        EntropicTrainer(classifier(Slow()), EPS, measure="channel", verbose=False).fit(*data, nb_epochs=2, batch_size=20)
        certify(classifier(Slow()), *data, EPS)

    threads = [threading.Thread(target=retrain) for _ in range(3)]
    for number, thread in enumerate(threads):
        thread.start()
        time.sleep(0.013 * number)
    for thread in threads:
        thread.join()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch._dynamo.eval_frame._stance.stance == "default"


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Parameter(torch.randn(5, 4, 8)), nn.Parameter(torch.randn(5, 8, 3))

    def forward(self, x):
        return torch.vmap(lambda a, b: torch.relu(x @ a) @ b)(self.a, self.b).mean(0)


def test_an_ensemble_by_vmap_trains_with_channel_as_the_same_one_in_a_loop_does(data):
    class Loop(Ensemble):
        def forward(self, x):
            return torch.stack([torch.relu(x @ a) @ b for a, b in zip(self.a, self.b, strict=True)]).mean(0)

    ends = []
    for kind in (Ensemble, Loop):
        one = classifier(kind())
        history = EntropicTrainer(one, EPS, measure="channel", verbose=False).fit(*data, nb_epochs=2, batch_size=8, seed=0)
        ends.append([*one.model.parameters(), torch.tensor(history.epochs[-1].terms["loss"])])
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    assert EntropicTrainer(classifier(Ensemble()), EPS, verbose=False).fit(*data, nb_epochs=1).settings["measure"] == "channel"


def test_attacks_have_their_gradients_in_the_callers_inference_mode(data):
    one = classifier(Net())
    asked = dict(eps=EPS, battery="quick", checks=False, verbose=False)
    plain = evaluate(one, *data, **asked)
    with torch.inference_mode():
        here = evaluate(one, *data, **asked)
    np.testing.assert_array_equal(here.survived, plain.survived)


def test_a_module_that_keeps_what_it_saw_keeps_a_plain_tensor(data):
    class Keeping(Net):
        def forward(self, x):
            self.seen = self.a(x)
            return self.c(torch.sort(self.seen).values)

    model = Keeping()
    with pytest.raises(NoIntervalRuleError):
        certify(classifier(model), *data, EPS)
    assert type(model.seen) is torch.Tensor
    copy.deepcopy(model.state_dict())


def test_a_mixture_whose_experts_see_some_points_is_profiled_by_its_logits(data):
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([Net(), Net()])

        def forward(self, x):
            out, chosen = x.new_zeros(len(x), 3), (x[:, 0] > 0.5).long()
            for number, expert in enumerate(self.experts):
                out[chosen == number] = expert(x[chosen == number])
            return out

    profile = information_profile({"net": classifier(Mixture())}, *data, eps=EPS, verbose=False)
    assert "cannot be read" in profile.notes[0] and "points" in profile.notes[0]
