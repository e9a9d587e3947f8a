"""Where the information goes: every reading against an oracle, and the order that theorems give them."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from small_network import ARCHITECTURE

from art_entropic.analysis.profile import information_profile
from art_entropic.analysis.readings import PROFILE_MEASURES
from art_entropic.backends.architecture import Dense, Flatten
from art_entropic.backends.labels import labels_of
from art_entropic.backends.numpy import ops
from art_entropic.backends.registry import FRAMEWORKS, backend_for
from art_entropic.information import coding_rate, gaussian_channels, transmitted_information
from art_entropic.records import ProfileRow

LINEAR = (Flatten(), Dense(3, None))


def profile(classifiers, x, y=None, **options):
    return information_profile(classifiers, x, y, **{"eps": 0.1, "copies": 5, "verbose": False, **options})


def value(found, measure, layer="", model="a"):
    (row,) = [row for row in found.rows if (row.model, row.layer, row.measure) == (model, layer, measure)]
    return math.nan if row.value is None else float(row.value)


@given(seed=st.integers(0, 2**16), eps=st.floats(0, 10), resolution=st.floats(1e-3, 1e3), n=st.integers(2, 9))
def test_the_three_readings_are_ordered(seed, eps, resolution, n):
    rng = np.random.default_rng(seed)
    signals = eps * rng.choice([-1.0, 0.0, 1.0], (n, 4)) @ rng.normal(size=(4, 4))
    width = np.ptp(signals, axis=0)[None]
    centred = signals - signals.mean(axis=0)
    together = float(coding_rate(ops, centred, resolution=resolution / 2))
    one_by_one = gaussian_channels(ops, signals.var(axis=0)[None], resolution=resolution / 2)[0]
    assert together <= one_by_one * (1 + 1e-9) + 1e-9
    assert one_by_one <= transmitted_information(ops, width, resolution=resolution)[0] * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("norm", ["inf", 2])
def test_samples_stay_below_the_bound_in_every_layer(framework, make_classifier, points, norm):
    x, y = points(framework, n=12)
    found = profile({"a": make_classifier(framework)}, x, y, batch_size=20, norm=norm)
    assert str(found).startswith(f"L{norm} eps 0.1, n = 12")
    layers = ["input", *backend_for(make_classifier(framework)).layer_names()]
    for layer in layers:
        noise, gaussian, interval = (found.points["a", layer, one] for one in ("noise", "gaussian", "interval"))
        assert noise.shape == (12,) and (noise > 0).all()
        assert (noise <= gaussian * 1.0001).all() and (gaussian <= interval * 1.0001).all()
        assert (found.points["a", layer, "rivals"] <= interval * 1.0001).all()


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_a_linear_network_is_read_as_by_hand(framework, make_classifier, points, norm):
    classifier = make_classifier(framework, architecture=LINEAR, clip_values=None)
    x, y = points(framework, n=30)
    backend = backend_for(classifier)
    z = backend.logits(x).astype(np.float64)
    unit = np.eye(72, dtype=np.float32).reshape(-1, *x.shape[1:])
    kernel = backend.logits(unit).astype(np.float64) - backend.logits(np.zeros_like(x[:1]))
    tau = 0.5 * math.sqrt(z.var(axis=0).mean())
    logits = backend.layer_names()[-1]
    found = profile({"a": classifier}, x, y, resolution=0.5, norm=norm)
    dual = 1 if norm == np.inf else 2
    width = 2 * 0.1 * np.linalg.norm(kernel, ord=dual, axis=0)
    np.testing.assert_allclose(value(found, "interval", logits), np.log1p(width / tau).sum(), rtol=1e-4)
    flat = x.reshape(30, -1).astype(np.float64)
    own = 0.5 * math.sqrt(flat.var(axis=0).mean())
    np.testing.assert_allclose(value(found, "interval", "input"), 72 * np.log1p(0.2 / own), rtol=1e-4)
    (row,) = [row for row in found.rows if row.layer == logits and row.measure == "interval"]
    np.testing.assert_allclose(row.loss, value(found, "interval", "input") - row.value, rtol=1e-6)
    # Of a linear network, without clipping, all points tell the same.
    np.testing.assert_allclose([row.low, row.high], row.value, rtol=1e-6)
    covariance = np.cov(z.T, bias=True) + (tau / 2) ** 2 * np.eye(3)
    entropy = multivariate_normal(cov=covariance).entropy()
    np.testing.assert_allclose(value(found, "entropy", logits), entropy, rtol=1e-4)
    noise = multivariate_normal(cov=(tau / 2) ** 2 * np.eye(3)).entropy()
    np.testing.assert_allclose(value(found, "information", logits), entropy - noise, rtol=1e-4)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(value(found, "label"), np.log(3) + log_p[np.arange(30), y].mean(), rtol=1e-4)
    rival = np.where(np.arange(3) == y[:, None], -np.inf, z).argmax(axis=1)
    margin = z[np.arange(30), y] - z[np.arange(30), rival]
    fall = 0.1 * np.linalg.norm(kernel[:, y] - kernel[:, rival], ord=dual, axis=0)
    np.testing.assert_allclose(value(found, "gradient"), np.median((fall / margin)[margin > 0]), rtol=1e-4)
    # The end of the ball towards a rival is the worst point of a linear network: shifts of the logits from that end to x.
    slopes = [(kernel[:, (y + k) % 3] - kernel[:, y]).T for k in (1, 2)]
    units = [np.sign(g) if norm == np.inf else g / np.linalg.norm(g, axis=1, keepdims=True) for g in slopes]
    shifts = np.stack([np.zeros((30, 3)), *(0.1 * unit @ kernel for unit in units)], axis=1)
    centred = shifts - shifts.mean(axis=1, keepdims=True)
    gram = np.einsum("nki,nkj->nij", centred, centred) / 3
    expected = 0.5 * np.linalg.slogdet(np.eye(3) + gram / (tau / 2) ** 2)[1]
    np.testing.assert_allclose(found.points["a", logits, "rivals"], expected, rtol=1e-3)


def test_frameworks_agree(make_classifier, points):
    found = [profile({"a": make_classifier(name)}, *points(name, n=20), seed=3) for name in FRAMEWORKS]
    # The noise is drawn in the axes of the framework, so what it does to a point differs; the rest must not.
    for rows in zip(*(one.rows for one in found), strict=True):
        assert len({(row.measure, row.position, row.units) for row in rows}) == 1
        if rows[0].measure == "gradient":
            assert [row.n for row in rows] == [rows[0].n] * 2
        elif rows[0].measure not in ("gaussian", "noise"):
            np.testing.assert_allclose(*(float(row.value) for row in rows), rtol=2e-3, atol=1e-5)


def test_a_constant_layer_has_no_scale_and_no_nan(framework, make_classifier, points):
    classifier = make_classifier(framework)
    backend = backend_for(classifier)
    state = backend.state()
    dense = next(name for name, array in state.items() if array.ndim == 2)
    backend.load_state({**state, dense: np.zeros_like(state[dense])})
    found = profile({"a": classifier}, *points(framework, n=12))
    layers = backend.layer_names()
    for layer in layers[-2:]:
        assert value(found, "entropy", layer) == -math.inf
        assert [value(found, one, layer) for one in ("information", "interval", "noise", "rivals")] == [0] * 4
    missing = {row.measure for row in found.rows if row.value is None}
    assert missing <= {"gradient"}  # where the one class of all points makes none right
    assert "no scale" in found.notes[0] and layers[-1] in found.notes[0]


def test_an_operation_without_a_rule_is_a_gap_with_a_reason(points):
    import torch
    from art.estimators.classification import PyTorchClassifier

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(72, 4), torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.last(torch.cos(self.first(x.flatten(1))))

    classifier = PyTorchClassifier(Odd(), torch.nn.CrossEntropyLoss(), (2, 6, 6), 3, clip_values=(0.0, 1.0))
    found = profile({"a": classifier}, *points("pytorch", n=12))
    missing = {row.measure for row in found.rows if row.value is None}
    assert missing == {"interval", "label_worst"}
    for row in found.rows:
        if row.value is None:
            assert "no interval rule for torch function 'cos'" in row.reason
    assert value(found, "noise", "last") > 0
    with pytest.raises(ValueError, match="'interval' without any: no interval rule for torch function 'cos'"):
        found.plot()


def test_layers_have_labels_that_a_reader_knows_and_keep_their_names(framework, make_classifier, points):
    x, _ = points(framework, n=12)
    network = make_classifier(framework)
    found = profile({"a": network}, x, measures=("noise",))
    labels = {row.layer: row.label for row in found.rows}
    assert tuple(labels) == ("input", *backend_for(network).layer_names())
    assert tuple(labels.values()) == ("input", *labels_of(ARCHITECTURE))
    assert [tick.get_text() for tick in found.plot(("noise",)).axes[0].get_xticklabels()] == list(labels.values())


def test_other_layers_are_aligned_by_depth(framework, make_classifier, points):
    x, y = points(framework, n=12)
    pair = {"natural": make_classifier(framework), "b": make_classifier(framework, architecture=LINEAR)}
    found = profile(pair, x, y)
    assert "aligned by their relative depth" in found.notes[0]
    figure = found.plot(("interval", "noise"))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines) == ["natural", "b"]
    np.testing.assert_allclose(lines["b"].get_xdata(), [0, 1])
    assert figure.axes[0].get_xlabel().startswith("relative depth")
    with pytest.raises(ValueError, match="`reference` must have the layers of `model`"):
        found.difference("natural", "b")
    with pytest.raises(ValueError, match=r"`measures` must be one of .*got 'label'"):
        found.plot(("label",))


def test_networks_are_compared_point_by_point(framework, make_classifier, points):
    x, y = points(framework, n=40)
    pair = {"a": make_classifier(framework), "b": make_classifier(framework, seed=1)}
    found = profile(pair, x, y)
    table = found.difference("a", "b")
    row = table[(table["measure"] == "interval") & (table["layer"] == backend_for(pair["a"]).layer_names()[-1])].iloc[0]
    layer = row["layer"]
    each = (found.points["a", layer, "interval"] - found.points["b", layer, "interval"]) / 3
    np.testing.assert_allclose(row["difference"], each.mean())
    assert row["low"] < each.mean() < row["high"]
    assert (table[table["layer"] == "input"].query("measure == 'interval'")["difference"] == 0).all()


def test_labels_and_points_may_be_few(framework, make_classifier, points):
    x, _ = points(framework, n=5)
    found = profile({"a": make_classifier(framework)}, x)
    reasons = {row.measure: row.reason for row in found.rows if row.value is None}
    assert reasons == {
        **dict.fromkeys(("label", "label_worst"), "needs labels, give `y`"),
        **dict.fromkeys(("information", "entropy"), "needs at least 10 points, got 5"),
    }
    assert "own predictions" in found.notes[0]


def test_blocks_and_chunks_are_no_part_of_the_answer(framework, make_classifier, points):
    x, y = points(framework, n=250)
    classifier = make_classifier(framework)
    one, other = (
        profile({"a": classifier}, x, y, batch_size=size, measures=["interval", "rivals", "information"]) for size in (33, 999)
    )
    for first, second in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose(float(first.value), float(second.value), rtol=1e-4)
        assert first.n == second.n == (2 if first.measure == "information" else 250)


def test_memory_grows_with_the_batch_and_not_with_the_points(make_classifier, points):
    import tracemalloc

    classifier = make_classifier("pytorch")

    def peak(n, batch_size):
        x, y = points("pytorch", n=n)
        tracemalloc.start()
        try:
            profile({"a": classifier}, x, y, measures=["interval", "noise", "rivals"], batch_size=batch_size)
            return tracemalloc.get_traced_memory()[1] - 3 * x.nbytes  # x itself is checked and copied
        finally:
            tracemalloc.stop()

    peak(50, 64)
    small = peak(100, 64)
    assert peak(400, 64) < 1.3 * small
    assert peak(400, 1024) > 2 * small


def test_rows_survive_json(framework, make_classifier, points):
    found = profile(
        {"a": make_classifier(framework)}, *points(framework, n=12), layers=["input"], measures=["entropy", "noise"]
    )
    rows = [*found.rows, ProfileRow(model="a", measure="entropy", value="-inf", n=1)]
    again = msgspec.json.decode(msgspec.json.encode(rows), type=list[ProfileRow])
    assert again == rows and float(again[-1].value) == -math.inf
    assert [row.layer for row in found.rows] == ["input", "input"]
    assert "perturbation, random, units together, input" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["nowhere"]}, "`layers` must be among the layers of 'a', 'input', .*; got 'nowhere'"),
        ({"layers": []}, "`layers` must be a sequence of at least one"),
        ({"measures": "interval"}, "`measures` must be a sequence of names of measures, got 'interval'"),
        ({"measures": ["magic"]}, "`measures` must be one of .*got 'magic'"),
        ({"resolution": 0}, "`resolution` must be positive, got 0"),
        ({"copies": 1}, "`copies` must be at least 2, got 1"),
        ({"eps": 2.0}, "`eps` must"),
        ({"norm": 1}, r"`norm` must be 'inf', np\.inf or 2, got 1"),
        ({"norm": 2, "eps": 9}, r"`eps` must not exceed 8\.48528, the largest L2 distance"),
        ({"x": np.zeros((1, 6, 6, 2), np.float32)}, "`x` must hold at least 2 points"),
        ({"classifiers": {}}, "`classifiers` must hold at least one"),
    ],
)
def test_bad_input_is_refused_by_name(make_classifier, points, options, message):
    x, y = points("tensorflow", n=4)
    arguments = {"classifiers": {"a": make_classifier("tensorflow")}, "x": x, **options}
    labels = None if "x" in options else y
    with pytest.raises((TypeError, ValueError), match=message):
        profile(arguments.pop("classifiers"), arguments.pop("x"), labels, **arguments)


def test_other_inputs_are_refused(make_classifier, points):
    x, y = points("tensorflow", n=4)
    pair = {name: make_classifier(name) for name in FRAMEWORKS}
    with pytest.raises(ValueError, match="`classifiers` must share input shape, classes and clip_values"):
        profile(pair, x, y)
    with pytest.raises(TypeError, match="`classifiers` must map names"):
        profile(pair["tensorflow"], x, y)


def torch_classifier(forward, clip_values=(0.0, 1.0)):
    import torch
    from art.estimators.classification import PyTorchClassifier

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.input, self.last = torch.nn.Linear(72, 8), torch.nn.Linear(8, 3)

        def forward(self, x):
            return forward(self, x.flatten(1))

    return PyTorchClassifier(Network(), torch.nn.CrossEntropyLoss(), (2, 6, 6), 3, clip_values=clip_values)


def test_a_layer_called_input_does_not_hide_the_input(points):
    classifier = torch_classifier(lambda network, x: network.last(network.input(x).relu()))
    found = profile({"a": classifier}, *points("pytorch", n=12), measures=["interval"])
    assert [(row.layer, row.units) for row in found.rows] == [("input", 72), ("input#2", 8), ("last", 3)]


def test_values_that_are_not_finite_are_refused_wherever_they_are(points):
    x, y = points("pytorch", n=20)

    def overflows(network, x):
        hidden = network.input(x)
        hidden[-1] = hidden[-1] * 1e30 * 1e30
        return network.last(hidden.relu() * 0.0)

    with pytest.raises(ValueError, match="finite"):
        profile({"a": torch_classifier(lambda network, x: network.last(network.input(x).relu()) / (x[:, :1] > 0.2))}, x, y)
    with pytest.raises(ValueError, match="finite"):
        profile({"a": torch_classifier(overflows)}, x, y)


def test_other_clip_values_are_another_ball(points):
    pair = {
        str(high): torch_classifier(lambda network, x: network.last(network.input(x).relu()), clip_values=(0.0, high))
        for high in (1.0, 2.0)
    }
    with pytest.raises(ValueError, match=r"clip_values: '1.0' has .*\[0.0, 1.0\]\), got .*\[0.0, 2.0\]\) for '2.0'"):
        profile(pair, *points("pytorch", n=12))


def test_points_sorted_by_class_make_the_same_blocks(framework, make_classifier, points):
    x, y = points(framework, n=300)
    order = np.argsort(y, kind="stable")
    classifier = make_classifier(framework)
    mixed, by_class = (profile({"a": classifier}, *data, measures=["information"]) for data in ((x, y), (x[order], y[order])))
    for first, second in zip(mixed.rows, by_class.rows, strict=True):
        np.testing.assert_allclose(float(first.value), float(second.value), rtol=0.05)
        assert first.n == 3 and first.low is None  # three blocks have no interval


def test_every_measure_reads_one_thing_and_tells_its_bias():
    for row in PROFILE_MEASURES.values():
        assert sum(read is not None for read in (row.of_layer, row.of_block, row.of_network)) == 1
        assert row.caveat and row.title
