"""Certificates: lines around nonlinearities, linear functions on balls, and what networks may be called proved."""

import math

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from scipy.optimize import minimize
from torch import nn

from art_entropic import certify, evaluate
from art_entropic.backends.numpy import ops
from art_entropic.backends.registry import backend_for
from art_entropic.certificates import METHODS, certificates
from art_entropic.linear_bounds import CURVES, Ball, Curve, curved, product, two_pieces
from art_entropic.ops import Box

FUNCTIONS = {
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(0, z),
    "logsigmoid": lambda z: -np.logaddexp(0, -z),
    "silu": lambda z: z * special.expit(z),
    "gelu": lambda z: z * special.ndtr(z),
    "gelu_tanh": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "mish": lambda z: z * np.tanh(np.logaddexp(0, z)),
    "erf": special.erf,
    "atan": np.arctan,
    "softsign": lambda z: z / (1 + np.abs(z)),
    "tanhshrink": lambda z: z - np.tanh(z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0))),
    "hardswish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
    "square": np.square,
}
place = st.floats(-12, 12, allow_nan=False)
width = st.floats(0, 15) | st.floats(0, 1e-3)


def encloses(lines, f, low, high):
    z = np.linspace(low, high, 1001)
    slack = 1e-9 * (1 + np.abs(f(z)))
    return bool(np.all(lines.below.at(z) <= f(z) + slack) and np.all(lines.above.at(z) >= f(z) - slack))


def test_each_curve_has_its_function():
    assert FUNCTIONS.keys() == CURVES.keys()


@pytest.mark.parametrize("name", CURVES)
def test_no_curve_bends_more_than_it_says(name):
    z, h = np.linspace(-20, 20, 400001), 1e-4
    f, curve = FUNCTIONS[name], CURVES[name]
    bend = np.abs(f(z + h) - 2 * f(z) + f(z - h)) / h**2
    away = np.all([np.abs(z - kink) > 2 * h for kink in (*curve.kinks, math.inf)], axis=0)
    assert np.all(bend[away] <= curve.bend(ops, np.abs(z))[away] + 1e-5)


@pytest.mark.parametrize("name", CURVES)
@given(low=place, width=width)
def test_lines_enclose_their_curve(name, low, width):
    box = Box(np.array([low]), np.array([low + width]))
    lines = curved(ops, FUNCTIONS[name], box, CURVES[name])
    assert encloses(lines, FUNCTIONS[name], low, low + width)
    # Never worse than the box itself, but for the sag between two points of the grid.
    z = np.linspace(low, low + width, 101)
    top = (
        np.ptp(FUNCTIONS[name](z)) + 2 * 2.0 * (width / 16) ** 2 / 8 + 1e-4 * (1 + np.abs(FUNCTIONS[name](z)).max() + abs(low))
    )
    assert lines.height(box)[0] <= top


@given(low=place, width=width, left=st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_two_pieces_enclose_leaky_relu_as_tightly_as_the_chord(low, width, left):
    def f(z):
        return np.where(z > 0, z, left * z)

    box = Box(np.array([low]), np.array([low + width]))
    lines = two_pieces(ops, box, left)
    assert encloses(lines, f, low, low + width)
    if not low < 0 < low + width:
        np.testing.assert_allclose(lines.height(box), 0.0, atol=1e-9)


@given(kinks=st.lists(st.floats(-3, 3), min_size=1, max_size=3), low=place, width=width, seed=st.integers(0, 99))
def test_straight_pieces_are_enclosed_whatever_their_slopes(kinks, low, width, seed):
    kinks = sorted(kinks)
    slopes = np.random.default_rng(seed).normal(size=len(kinks) + 1)

    def f(z):
        value = slopes[0] * z
        for kink, change in zip(kinks, np.diff(slopes), strict=True):
            value = value + change * np.maximum(z - kink, 0)
        return value

    box = Box(np.array([low]), np.array([low + width]))
    assert encloses(curved(ops, f, box, Curve(kinks=tuple(kinks))), f, low, low + width)


@given(ends=st.tuples(place, width, place, width))
def test_planes_enclose_a_product(ends):
    one, other = (Box(np.array([low]), np.array([low + size])) for low, size in (ends[:2], ends[2:]))
    planes = product(one, other)
    x, y = np.meshgrid(np.linspace(one.lower[0], one.upper[0], 21), np.linspace(other.lower[0], other.upper[0], 21))
    slanted = planes.slope * x + planes.other_slope * y
    assert np.all(slanted + planes.offsets[0] <= x * y + 1e-9) and np.all(slanted + planes.offsets[1] >= x * y - 1e-9)


# --------------------------------------------------------------------------------------------- linear functions on balls


@given(seed=st.integers(0, 999), radius=st.floats(0.05, 3))
def test_the_least_of_a_linear_function_on_a_cut_l2_ball_is_that_of_a_solver(seed, radius):
    rng = np.random.default_rng(seed)
    lower, upper = -rng.uniform(0, 1, (1, 4)) * rng.integers(0, 2, (1, 4)), rng.uniform(0, 1, (1, 4))
    g = rng.normal(size=(1, 4))
    found = Ball(lower, upper, radius).least(g)[0]
    inside = {"type": "ineq", "fun": lambda d: radius**2 - d @ d, "jac": lambda d: -2 * d}
    solved = minimize(
        lambda d: g[0] @ d, np.zeros(4), jac=lambda d: g[0], bounds=list(zip(lower[0], upper[0], strict=True)),
        constraints=inside, options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert found <= solved.fun + 1e-7
    np.testing.assert_allclose(found, solved.fun, atol=2e-3)


def test_the_ball_is_cut_at_clip_values():
    x = np.array([[0.0, 0.5, 0.95]], np.float32)
    ball = Ball.around(x, 0.1, math.inf, (0.0, 1.0))
    np.testing.assert_allclose(ball.lower, [[0, -0.1, -0.1]], atol=1e-7)
    np.testing.assert_allclose(ball.upper, [[0.1, 0.1, 0.05]], atol=1e-7)
    np.testing.assert_allclose(ball.least(np.array([[1.0, 1.0, -1.0]])), [-0.15], atol=1e-7)


# ------------------------------------------------------------------------------------------------------------- networks


class Residual(nn.Module):
    def __init__(self, act, width=6):
        super().__init__()
        self.act = act
        self.one, self.two = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.pool = nn.BatchNorm2d(width), nn.MaxPool2d(2)
        self.three, self.out = nn.Linear(width * 9, 12), nn.Linear(12, 3)

    def forward(self, x):
        h = self.act(self.norm(self.one(x)))
        h = self.pool(self.act(h + self.two(h)))
        return self.out(self.act(self.three(h.flatten(1))))


def classifier(model, shape=(1, 6, 6), classes=3, clip_values=(0.0, 1.0), **options):
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, classes, clip_values=clip_values, **options)


def planes_hold(model, one, x, eps, norm, relaxation, seed=0, points=40):
    """Send points of the ball through the float64 twin of a network: how far the deepest one lies below its plane."""
    rng = np.random.default_rng(seed)
    relaxed = backend_for(one).relaxed(x, eps, norm, relaxation)
    ball = Ball.around(x, eps, norm, (0.0, 1.0))
    v = rng.normal(size=relaxed.logits.shape)
    plane = relaxed.below(v)
    least = plane.least(ball)
    shifts = [ball.farthest(plane.gradient), *(ball.farthest(rng.normal(size=ball.lower.shape)) for _ in range(points))]
    twin = model.double().eval()
    with torch.no_grad():
        reached = [(v * twin(torch.from_numpy(x + s.reshape(x.shape))).numpy()).sum(axis=1) for s in shifts]
    model.float()
    assert np.all(plane.gap >= -1e-6)
    return float(np.max(least - np.min(reached, axis=0)))


@pytest.mark.parametrize("relaxation", METHODS.values())
@pytest.mark.parametrize("norm", [math.inf, 2.0])
@pytest.mark.parametrize(
    "act",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.PReLU(init=-0.3), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Mish(),
     nn.Hardswish(), nn.Softplus(), nn.ELU(0.7), nn.ReLU6()],
    ids=lambda act: type(act).__name__,
)  # fmt: skip
def test_no_point_of_the_ball_lies_below_its_plane(act, norm, relaxation):
    torch.manual_seed(1)
    model = Residual(act).eval()
    x = np.random.default_rng(3).random((5, 1, 6, 6)).astype(np.float32)
    assert planes_hold(model, classifier(model), x, 0.1 if norm == math.inf else 0.4, norm, relaxation) <= 0.0


def by_hand(weights, x, eps, y, rival):
    """CROWN-IBP's bound of z_y - z_rival of a ReLU network of two hidden layers, written out in float64."""
    (w1, b1), (w2, b2), (w3, b3) = weights
    low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)

    def affine(w, b, low, high):
        centre, radius = w @ (low + high) / 2 + b, np.abs(w) @ (high - low) / 2
        return centre - radius, centre + radius

    l1, u1 = affine(w1, b1, low, high)
    l2, u2 = affine(w2, b2, np.maximum(l1, 0), np.maximum(u1, 0))

    def through(a, constant, low, high):
        below = (high > -low).astype(float)
        crosses = (low < 0) & (high > 0)
        slope = np.where(crosses, high / np.where(crosses, high - low, 1), below)
        constant += (np.minimum(a, 0) * np.where(crosses, -slope * low, 0)).sum()
        return np.maximum(a, 0) * below + np.minimum(a, 0) * slope, constant

    a, constant = w3[y] - w3[rival], b3[y] - b3[rival]
    for (w, b), *box in (((w2, b2), l2, u2), ((w1, b1), l1, u1)):
        a, constant = through(a, constant, *box)
        a, constant = a @ w, constant + a @ b
    return np.minimum(a * low, a * high).sum() + constant


def test_crown_ibp_is_what_its_authors_wrote(framework_of_weights):
    backend, weights, x = framework_of_weights
    relaxed = backend.relaxed(x, 0.1, math.inf, "lines")
    ball = Ball.around(x, 0.1, math.inf, (0.0, 1.0))
    for y, rival in ((0, 1), (2, 0)):
        v = np.zeros((len(x), 3))
        v[:, y], v[:, rival] = 1.0, -1.0
        plane = relaxed.below(v)
        found = plane.value - plane.gap + ball.least(plane.gradient)
        np.testing.assert_allclose(found, [by_hand(weights, one.astype(float), 0.1, y, rival) for one in x], atol=2e-5)


@pytest.fixture(params=["pytorch", "tensorflow"])
def framework_of_weights(request):
    rng = np.random.default_rng(5)
    weights = [(rng.normal(size=(m, n)) / np.sqrt(n), 0.3 * rng.normal(size=m)) for n, m in ((7, 9), (9, 8), (8, 3))]
    x = rng.random((4, 7)).astype(np.float32)
    if request.param == "pytorch":
        model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            for layer, (w, b) in zip(model[::2], weights, strict=True):
                layer.weight.copy_(torch.from_numpy(w))
                layer.bias.copy_(torch.from_numpy(b))
        return backend_for(classifier(model, (7,))), weights, x
    return backend_for(keras_classifier(weights)), weights, x


def keras_classifier(weights):
    import keras
    from art.estimators.classification import TensorFlowV2Classifier

    model = keras.Sequential(
        [keras.Input((7,)), *(keras.layers.Dense(len(b), activation="relu") for _, b in weights[:-1]), keras.layers.Dense(3)]
    )
    model.set_weights([part for w, b in weights for part in (w.T, b)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return TensorFlowV2Classifier(model, 3, (7,), loss_object=loss, clip_values=(0.0, 1.0))


def test_the_last_layer_is_merged_into_the_margins(framework_of_weights):
    """One hidden box [l, u] and margins (w_y - w_j) h + b: no correlation between two logits is lost."""
    backend, weights, x = framework_of_weights
    relaxed = backend.relaxed(x, 0.1, math.inf, "boxes")
    box = backend.intervals(x, 0.1)
    hidden = [Box(*(np.maximum(end, 0) for end in one)) for one in box.values()][1]
    w = weights[2][0][0] - weights[2][0][1]
    wish = np.minimum(w * hidden.lower, w * hidden.upper).sum(axis=1) + weights[2][1][0] - weights[2][1][1]
    v = np.array([[1.0, -1.0, 0.0]] * len(x))
    plane = relaxed.below(v)
    np.testing.assert_allclose(plane.value - plane.gap, wish, atol=2e-5)
    np.testing.assert_array_equal(plane.gradient, 0.0)
    assert np.all(wish > box[list(box)[-1]].lower[:, 0] - box[list(box)[-1]].upper[:, 1] - 1e-6)


def trained(model, classes=3, shape=(1, 6, 6)):
    """A network that knows three well separated classes, and points of them."""
    rng = np.random.default_rng(0)
    centres = rng.random((classes, *shape))
    y = rng.integers(0, classes, 300)
    x = np.clip(centres[y] + 0.05 * rng.normal(size=(300, *shape)), 0, 1).astype(np.float32)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return classifier(model.eval()), x, y


def test_methods_reach_further_one_after_the_other():
    one, x, y = trained(Residual(nn.GELU()))
    shares = {method: certify(one, x[:60], y[:60], 0.04, method=method) for method in (*METHODS, "best")}
    assert shares["ibp"].mean() < shares["crown-ibp"].mean() < shares["crown"].mean()
    np.testing.assert_array_equal(shares["best"], np.any([shares[method] for method in METHODS], axis=0))
    found = certificates(one, x[:60], y[:60], 0.04)
    np.testing.assert_array_equal(np.sum(list(found.by.values()), axis=0), found.proved)
    assert found.left_out == {} and found.nothing_because is None


def test_copies_of_an_example_share_its_units_and_find_the_same_boxes():
    one, x, _ = trained(Residual(nn.GELU()))
    backend, v = backend_for(one), np.random.default_rng(1).normal(size=(3, 3))
    alone = backend.relaxed(x[:3], 0.04, math.inf, "tightened").below(v)
    shared = backend.relaxed(x[:3].repeat(5, axis=0), 0.04, math.inf, "tightened", copies=5).below(v.repeat(5, axis=0))
    for mine, theirs in zip(alone, shared.rows(slice(None, None, 5)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_an_evaluation_says_which_method_proved_how_many():
    one, x, y = trained(Residual(nn.GELU()))
    result = evaluate(one, x[:60], y[:60], 0.04, battery="quick", checks=False, verbose=False)
    np.testing.assert_array_equal(np.sum(list(result.certified_by.values()), axis=0), result.certified_points)
    by = {name: int(found.sum()) for name, found in result.certified_by.items()}
    assert by["crown"] > 0 and f"{by['crown-ibp']} by crown-ibp, {by['crown']} by crown\n" in str(result)
    # A certified point meets the first attack alone.
    assert result.attacks[1].attacked == 60 - result.attacks[0].broken - result.certified.correct


def test_the_l2_ball_is_smaller_than_the_box_around_it():
    one, x, y = trained(Residual(nn.ReLU()))
    in_box, in_ball = (certify(one, x[:40], y[:40], 0.08, norm) for norm in ("inf", 2))
    assert np.all(in_ball >= in_box) and in_ball.mean() > in_box.mean() + 0.2


def test_linear_bounds_are_left_out_where_nothing_comes_of_them():
    one, x, y = trained(Residual(nn.ReLU()))
    found = certificates(one, x[:40], y[:40], 0.45)
    assert list(found.by) == ["ibp"] and "none of the 16 likeliest points" in found.left_out["crown"]
    assert "no point is proved by ibp; crown-ibp was left out, since it proves none of the 16" in found.nothing_because


class SequenceFirst(nn.Module):
    """Works on (time, n, features), so that no first axis tells the examples apart."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(48, 3)

    def forward(self, x):
        h = torch.relu(self.one(x[:, 0].permute(1, 0, 2)))
        h = torch.relu(self.two(h.reshape(-1, 8))).reshape(6, len(x), 8)
        return self.out(h.permute(1, 0, 2).flatten(1))


def test_examples_are_told_apart_whatever_the_order_of_axes():
    one, x, y = trained(SequenceFirst())
    together = certify(one, x[:12], y[:12], 0.02, method="crown-ibp")
    alone = [certify(one, x[i : i + 1], y[i : i + 1], 0.02, method="crown-ibp")[0] for i in range(12)]
    np.testing.assert_array_equal(together, alone)
    assert together.any() and not certify(one, x[:12], y[:12], 0.2, method="crown-ibp").any()


class Turned(nn.Module):
    """Turns the order of the examples round, and back again behind the nonlinearity."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(36, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        h = torch.relu(self.two(torch.relu(self.one(x.flatten(1))).flip(0)))
        return self.out(h.flip(0))


def test_examples_that_change_places_on_the_way_keep_their_own_bounds():
    one, x, y = trained(Turned())
    together = certify(one, x[:12], y[:12], 0.15, method="crown-ibp")
    alone = [certify(one, x[i : i + 1], y[i : i + 1], 0.15, method="crown-ibp")[0] for i in range(12)]
    np.testing.assert_array_equal(together, alone)


class Frozen(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.out = backbone, nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.backbone(x)
        return self.out(torch.relu(h))


def test_a_backbone_that_runs_without_gradients_is_bounded_like_any_other():
    backbone, x, y = trained(Residual(nn.ReLU()))
    model = Frozen(backbone.model).eval()
    for relaxation in METHODS.values():
        assert planes_hold(model, classifier(model), x[:4], 0.05, math.inf, relaxation) <= 0.0
    model.zero_grad()
    certify(classifier(model), x[:8], y[:8], 0.01)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_bad_input_is_refused_by_name():
    one, x, y = trained(Residual(nn.ReLU()))
    with pytest.raises(ValueError, match=r"`norm` must be 'inf', np.inf or 2, got 1"):
        certify(one, x[:2], y[:2], 0.1, 1)
    with pytest.raises(ValueError, match=r"`method` must be one of 'ibp', 'crown-ibp', 'crown', 'best', got 'alpha'"):
        certify(one, x[:2], y[:2], 0.1, method="alpha")
    with pytest.raises(ValueError, match=r"`eps`"):
        certify(one, x[:2], y[:2], 0.0)
    with pytest.raises(ValueError, match=r"`eps` must not exceed 6, the largest L2 distance"):
        certify(one, x[:2], y[:2], 7.0, 2)
