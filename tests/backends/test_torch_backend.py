"""What is peculiar to PyTorch: modules and their modes, the tensor that carries bounds, what works in place."""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.torch.backend import TorchBackend
from art_entropic.backends.torch.tensor import BoundTensor


def lambda_module(function):
    class Lambda(nn.Module):
        def forward(self, x):
            return function(x)

    return Lambda()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm(self.conv(x)))
        out += x
        return self.relu(out)


class Busy(nn.Module):
    """What forward methods do beside calling modules."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        joined = torch.cat([left - right, 2.0 - right, -left / 3, right * torch.tensor([[[[-1.0]], [[2.0]]]])], 1)
        mixed = joined.permute(0, 2, 3, 1)[..., :4] @ self.weight.T
        mixed = mixed.reshape(x.size(0), -1, 6).mean(1, keepdim=True).squeeze(1)
        return F.pad(mixed, (1, 1), value=-1.0).clamp(-2, 2).unsqueeze(-1).flatten(1)


IMAGE, ROW, FLAT = (4, 6, 6), (4, 7), (6,)
# fmt: off
CASES = {
    "linear": (FLAT, lambda: nn.Linear(6, 5)),
    "linear_on_rows": (ROW, lambda: nn.Linear(7, 5)),
    "conv1d": (ROW, lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2)),
    "conv2d": (IMAGE, lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1)),
    "conv2d_groups_dilation": (IMAGE, lambda: nn.Conv2d(4, 6, 2, groups=2, dilation=2)),
    "conv2d_depthwise_same": (IMAGE, lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same", bias=False)),
    "conv2d_reflect": (IMAGE, lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    "conv_transpose2d": (IMAGE, lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)),
    "batch_norm2d": (IMAGE, lambda: nn.BatchNorm2d(4)),
    "layer_norm": (ROW, lambda: nn.LayerNorm([4, 7])),
    "group_norm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "instance_norm": (IMAGE, lambda: nn.InstanceNorm2d(4, affine=True)),
    "max_pool": (IMAGE, lambda: nn.MaxPool2d(3, 2, 1)),
    "avg_pool": (IMAGE, lambda: nn.AvgPool2d(2)),
    "adaptive_pools": (IMAGE, lambda: nn.Sequential(nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(1))),
    "pool1d": (ROW, lambda: nn.Sequential(nn.MaxPool1d(2), nn.AvgPool1d(2))),
    "relu_inplace": (FLAT, lambda: nn.ReLU(inplace=True)),
    "prelu": (FLAT, nn.PReLU),
    "functional": (FLAT, lambda: lambda_module(lambda x: torch.sigmoid(x) + F.silu(x) - torch.relu(x) * 0.5)),
    "gate": (FLAT, lambda: lambda_module(lambda x: x * torch.sigmoid(x))),
    "abs_and_square": (FLAT, lambda: lambda_module(lambda x: x.abs() + torch.square(x))),
    "inplace_arithmetic": (FLAT, lambda: lambda_module(lambda x: torch.relu_(x.clone().add_(1.0).mul_(-0.5)))),
    "dropout": (FLAT, lambda: nn.Dropout(0.5)),
    "dropout2d": (IMAGE, lambda: nn.Dropout2d(0.5)),
    "upsample": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "residual": (IMAGE, Residual),
    "busy": (IMAGE, Busy),
}
# fmt: on


def backend_of(module, shape, nb_classes=3, **kwargs):
    return TorchBackend(PyTorchClassifier(module, nn.CrossEntropyLoss(), shape, nb_classes, **kwargs))


def trained_looking(module):
    """Weights, gains and running statistics away from their trivial initial values."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            draw = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(draw + 0.5 if "var" in name or name == "prelu" else draw * 2 - 0.8)
    if isinstance(module, nn.PReLU):
        module.weight.data.abs_()
    return module


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", CASES)
def test_bounds_contain_every_point_of_the_ball(case, training):
    shape, make = CASES[case]
    torch.manual_seed(0)
    module = trained_looking(make()).train(training)
    # The classifier's wrapper wants a network: a layer alone stands for one here.
    backend = backend_of(nn.Sequential(module), shape)
    backend.model.train(training)
    x, eps = torch.randn(5, *shape), 0.4
    state = torch.get_rng_state()
    joint = backend.propagate(x, eps)
    if training and case in ("batch_norm2d", "residual"):
        # Batch statistics move with the points: the box holds for the statistics of the data.
        freeze_statistics(backend.model, x)
    for points in ball_points(x, eps):
        torch.set_rng_state(state)  # the same dropout mask
        values = backend.model(points.clone()).detach()  # the network may work in place
        assert torch.all(values >= joint.box.lower - 1e-4) and torch.all(values <= joint.box.upper + 1e-4)
    torch.set_rng_state(state)
    torch.testing.assert_close(joint.logits, backend.model(x.clone()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", CASES)
def test_one_pass_has_the_layers_of_the_joint_pass(case, training):
    shape, make = CASES[case]
    torch.manual_seed(0)
    backend = backend_of(nn.Sequential(trained_looking(make()), nn.ReLU()), shape)
    backend.model.train(training)
    assert_same_layers(backend, torch.randn(5, *shape))


def assert_same_layers(backend, x):
    state = torch.get_rng_state()
    joint = backend.propagate(x.clone(), 0.0)
    torch.set_rng_state(state)  # the same dropout mask
    passed = backend.traced(x.clone())
    assert [layer.name for layer in passed.layers] == [layer.name for layer in joint.layers] == list(backend.layer_names())
    for one, other in zip(passed.layers, joint.layers, strict=True):
        torch.testing.assert_close(one.value, (other.box.lower + other.box.upper) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(passed.logits, joint.logits, atol=1e-5, rtol=1e-5)
    return passed


class Tangled(nn.Module):
    """A gate of weights alone, a tensor that enters two nonlinearities, and one of them that works on the logits."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(6, 6), nn.Linear(6, 3), nn.Dropout(0.5)
        self.gate = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        h = self.first(x)
        h = self.drop(torch.relu(h) + torch.tanh(h) * torch.sigmoid(self.gate))
        h = F.silu(input=h).tanh_()
        logits = self.last(h)
        self.confidence = torch.relu(logits)
        return logits


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_layers_are_the_tensors_of_the_input_that_enter_a_nonlinearity_once_each_and_the_logits_last(training):
    torch.manual_seed(0)
    backend = backend_of(Tangled(), FLAT)
    backend.model.train(training)
    passed = assert_same_layers(backend, torch.randn(5, 6))
    assert [layer.name for layer in passed.layers] == ["first", "drop", "silu", "last"]


def test_activations_are_differentiable_and_move_batch_statistics_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    backend = backend_of(model, FLAT, preprocessing=(0.3, 0.5))
    model.train()
    x = torch.randn(8, 6, requires_grad=True)
    passed = backend.traced(x)
    assert model[1].num_batches_tracked == 1
    norm, logits = passed.layers
    torch.testing.assert_close(norm.value.detach().mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    (norm.value**3).sum().backward()
    assert model[0].weight.grad.abs().max() > 0 and x.grad.abs().max() > 0 and model[3].weight.grad is None
    torch.testing.assert_close(logits.value, passed.logits)


def ball_points(x, eps, n=12):
    yield x
    for i in range(n):
        noise = torch.rand_like(x) * 2 - 1
        yield x + eps * (noise.sign() if i % 2 else noise)


def freeze_statistics(model, x):
    """Turn batch norm to inference with the statistics of the data x."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    seen = {}

    def keep(module, inputs):
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        seen[module] = torch.var_mean(inputs[0].detach(), axes, correction=0)

    handles = [module.register_forward_pre_hook(keep) for module in norms]
    model(x)
    for handle, module in zip(handles, norms, strict=True):
        handle.remove()
        module.eval()
        module.running_var, module.running_mean = seen[module]


def test_resnet18_goes_through(torchvision):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5)
    backend = backend_of(model, (3, 32, 32), 5, clip_values=(0.0, 1.0))
    x = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    bounds = backend.intervals(x, 1e-3)
    np.testing.assert_array_equal(backend.logit_bounds(x, 1e-3), bounds["fc"])
    assert len(bounds) == 18 and tuple(bounds) == backend.layer_names() and list(bounds)[-1] == "fc"
    noise = np.random.default_rng(1).uniform(-1e-3, 1e-3, x.shape).astype(np.float32)
    for name, value in backend.activations(np.clip(x + noise, 0, 1)).items():
        slack = 1e-4 * np.abs(value).max()
        assert np.all(value >= bounds[name].lower - slack) and np.all(value <= bounds[name].upper + slack), name


@pytest.mark.parametrize(
    "module, reason",
    [
        (nn.LeakyReLU(-0.5), "not monotone"),
        (nn.BatchNorm1d(6, track_running_stats=False), "other points of the batch"),
    ],
    ids=["negative_slope", "batch_norm_without_statistics"],
)
def test_a_refusal_names_the_layer_and_leaves_no_hook_behind(module, reason):
    backend = backend_of(nn.Sequential(nn.Linear(6, 6), module, nn.Linear(6, 3)), FLAT)
    with pytest.raises(NoIntervalRuleError, match="channel") as caught:
        backend.intervals(np.zeros((2, 6), np.float32), 0.1)
    assert reason in str(caught.value) and caught.value.layer == "1"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backend.model.modules())


def test_pre_activations_keep_their_box_when_the_activation_works_in_place():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)]
    inplace, plain = (backend_of(nn.Sequential(layers[0], relu, layers[2]), FLAT) for relu in (layers[1], nn.ReLU()))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    for name, box in plain.intervals(x, 0.1).items():
        np.testing.assert_array_equal(inplace.intervals(x, 0.1)[name].lower, box.lower)
    np.testing.assert_array_equal(inplace.activations(x)["0"], plain.activations(x)["0"])
    assert np.any(plain.activations(x)["0"] < 0)


def test_a_step_leaves_no_bound_behind():
    """Not even for Python's collector, which does not know how large tensors are and comes late."""
    backend = backend_of(nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (2, 2, 2), 3)
    gc.collect()
    gc.disable()
    try:
        backend.propagate(torch.rand(4, 2, 2, 2), 0.1)
        left = [one for one in gc.get_objects() if type(one) is BoundTensor]
    finally:
        gc.enable()
    assert not left
