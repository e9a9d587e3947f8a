"""What is peculiar to TensorFlow: the walk through a Keras model, passes that are traced once, models as Keras has them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from art.estimators.classification import KerasClassifier, TensorFlowV2Classifier  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_contract import CONTROLS, OBJECTIVES, assert_same, differs, gradient_size, natural, worst_case  # noqa: E402
from test_tensorflow_rules import PROVED, Build, assert_sound, data, network  # noqa: E402

from art_entropic import EntropicTrainer  # noqa: E402
from art_entropic.backends.architecture import Conv, Dense, Flatten, MaxPool  # noqa: E402
from art_entropic.backends.errors import NoIntervalRuleError  # noqa: E402
from art_entropic.backends.protocol import Batch, Controls  # noqa: E402
from art_entropic.backends.registry import backend_for  # noqa: E402
from art_entropic.backends.tensorflow.backend import TensorFlowView  # noqa: E402
from art_entropic.backends.tensorflow.building import build_classifier  # noqa: E402
from art_entropic.backends.tensorflow.joint import Joint  # noqa: E402
from art_entropic.backends.tensorflow.passes import StepTerms  # noqa: E402
from art_entropic.backends.tensorflow.rules import FUNCTIONS  # noqa: E402
from art_entropic.backends.tensorflow.walk import Walk  # noqa: E402
from art_entropic.measures import Activation, Channel, Interval  # noqa: E402
from art_entropic.objective import EntropicObjective  # noqa: E402
from art_entropic.ops import Box  # noqa: E402

L = keras.layers
VECTOR, SEQUENCE, IMAGE = (6,), (7, 3), (6, 6, 3)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield


def view_of(model: Any, *, training: bool = False) -> TensorFlowView:
    return TensorFlowView(model, lambda x: x, lambda x, eps: tf.ones_like(x) * eps, None, training=training)


def ball_points(x: np.ndarray, eps: float, n: int, seed: int) -> Iterator[np.ndarray]:
    """Corners and inner points of the ball around a batch."""
    rng = np.random.default_rng(seed)
    yield from (x + eps * s for s in (-1, 1))
    for _ in range(n):
        yield x + eps * rng.choice([-1.0, 1.0], x.shape).astype(np.float32)
        yield x + eps * rng.uniform(-1, 1, x.shape).astype(np.float32)


def assert_inside(value: Any, box: Box, tolerance: float = 1e-5) -> None:
    value, lower, upper = (np.asarray(part, np.float64) for part in (value, *box))
    assert np.all(np.isfinite(lower)) and np.all(np.isfinite(upper))
    slack = tolerance * (1.0 + np.abs(lower) + np.abs(upper))
    assert np.all(value >= lower - slack), np.max(lower - value)
    assert np.all(value <= upper + slack), np.max(value - upper)


def gate(x: Any) -> Any:
    return L.Multiply()([L.Dense(4)(x), L.Dense(4, activation="sigmoid")(x)])


def squeeze_excite(x: Any) -> Any:
    y = L.Conv2D(4, 3, padding="same")(x)
    scale = L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D()(y))
    return L.Multiply()([y, L.Reshape((1, 1, 4))(scale)])


def shared(x: Any) -> Any:
    dense = L.Dense(6, activation="tanh")
    return dense(dense(x))


def nested(x: Any) -> Any:
    inner_input = keras.Input(VECTOR)
    one, two = L.Dense(5, activation="relu")(inner_input), L.Dense(5)(inner_input)
    inner = keras.Model(inner_input, [one, two])
    left, right = inner(x)
    return keras.Sequential([L.Dense(4, activation="elu"), L.Dense(3)])(left - right)


def operators(x: Any) -> Any:
    y = 1.0 - (2.0 * x - 0.5) / 3.0
    return abs(-y) + y**2 - y[:, ::-1] * 0.3


def residual(x: Any) -> Any:
    y = L.ReLU()(L.BatchNormalization()(L.Conv2D(3, 3, padding="same", use_bias=False)(x)))
    y = L.BatchNormalization()(L.Conv2D(3, 3, padding="same")(y))
    return L.ReLU()(L.Add()([x, y]))


def op_split(x: Any) -> Any:
    one, two = keras.ops.split(x, 2, axis=1)
    return keras.ops.maximum(one, two)


def bent(x: Any) -> Any:
    """Activations between dense layers, so that they see boxes that are not cubes."""
    for layer in (L.ReLU(max_value=0.5, negative_slope=0.2), L.LeakyReLU(0.3), L.PReLU(), L.ELU(0.7), L.Activation("silu")):
        x = layer(L.Dense(6)(x))
    return L.Dense(3)(x)


def moved(x: Any) -> Any:
    """Places before layers with weights, which would see one that is lost."""
    x = L.Conv2D(2, 3)(L.ZeroPadding2D(2)(L.Cropping2D(1)(x)))
    x = L.Conv1D(2, 2)(L.Reshape((6, 12))(x))
    return L.Dense(2)(L.Permute((2, 1))(L.Conv1D(2, 2)(L.RepeatVector(3)(L.Dense(3)(L.Flatten()(x))))))


# Each layer and operation by itself is in PROVED.
NETWORKS: dict[str, tuple[tuple[int, ...], Build]] = {
    "activations of layers": (VECTOR, bent),
    "activation of tensorflow": (VECTOR, L.Dense(5, activation=tf.nn.gelu)),
    "gate": (VECTOR, gate),
    "squeeze and excitation": (IMAGE, squeeze_excite),
    "concatenate": (IMAGE, lambda x: L.Concatenate()([x, L.Conv2D(2, 3, padding="same")(x)])),
    "places": (IMAGE, moved),
    "one layer called twice": (VECTOR, shared),
    "nested models": (VECTOR, nested),
    "residual": (IMAGE, residual),
    "operators": (VECTOR, operators),
    "operations that reduce": (IMAGE, lambda x: keras.ops.mean(x, axis=1) + keras.ops.max(x, axis=2)),
    "split and maximum": (VECTOR, op_split),
    "stack and flip": (VECTOR, lambda x: keras.ops.stack([keras.ops.flip(x, 1), x * 2.0, 1.0 / 3.0 - x], axis=1)),
}
ONE_EACH = {case: proof for case, proof in PROVED.items() if case.endswith(" 0") and not case.startswith("function")}

RANDOM: dict[str, tuple[tuple[int, ...], Build]] = {
    "batch norm": (IMAGE, L.BatchNormalization()),
    "batch norm without gain": (VECTOR, L.BatchNormalization(center=False, scale=False)),
    "batch norm over axis 1": (IMAGE, L.BatchNormalization(axis=1)),
    "residual": (IMAGE, residual),
    "dropout": (VECTOR, lambda x: L.Dense(3)(L.Dropout(0.5)(L.Dense(20, activation="relu")(x)))),
    "spatial dropout": (IMAGE, L.SpatialDropout2D(0.5)),
    "gaussian dropout": (VECTOR, L.GaussianDropout(0.7)),
    "gaussian noise": (VECTOR, L.GaussianNoise(0.5)),
    "alpha dropout": (VECTOR, lambda x: L.AlphaDropout(0.4)(L.Dense(20, activation="selu")(x))),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_boxes_hold_every_point_of_the_ball(case: str) -> None:
    shape, build = NETWORKS[case]
    assert_sound(network(build, shape), data(shape))


def with_generators_reset(model: Any, run: Callable[[], Any]) -> Any:
    for variable in model.variables:
        if "seed" in variable.name:
            variable.assign([7, 0])
    return run()


@pytest.mark.parametrize("case", list(RANDOM))
def test_training_sends_the_ball_through_the_network_that_the_data_sees(case: str) -> None:
    shape, build = RANDOM[case]
    model = network(build, shape)
    weights = model.get_weights()
    x = np.random.default_rng(2).normal(0, 1, (8, *shape)).astype(np.float32)

    def joint(box: tuple[np.ndarray, np.ndarray]) -> Joint:
        def run() -> Joint:
            model.set_weights(weights)
            return Walk(training=True).logits(model, Joint(tf.constant(x), Box(*map(tf.constant, box)), "input"))

        return with_generators_reset(model, run)

    degenerate = joint((x, x))
    statistics = model.get_weights()
    model.set_weights(weights)
    expected = with_generators_reset(model, lambda: model(x, training=True))
    np.testing.assert_allclose(degenerate.value, expected, rtol=1e-4, atol=1e-5)
    for ours, keras_own in zip(statistics, model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-5, atol=1e-6)
    for end in degenerate.box:
        np.testing.assert_allclose(end, expected, rtol=1e-3, atol=1e-4)

    eps = 0.4
    ball = joint((x - eps, x + eps))
    assert_inside(ball.value, ball.box)
    for point in ball_points(x, eps, 6, seed=4):
        assert_inside(joint((point, point)).box.lower, ball.box, tolerance=1e-4)


INFERENCE = NETWORKS | ONE_EACH


@pytest.mark.parametrize("case, training", [*((case, False) for case in INFERENCE), *((case, True) for case in RANDOM)])
def test_one_pass_has_the_layers_of_the_joint_pass(case: str, training: bool) -> None:
    shape, build = (RANDOM if training else INFERENCE)[case]
    model = network(lambda x: keras.ops.relu(build(x)), shape)
    weights = model.get_weights()
    x = tf.constant(data(shape))
    view = view_of(model, training=training)
    joint = with_generators_reset(model, lambda: view.propagate(x, tf.constant(0.0)))
    statistics = model.get_weights()
    model.set_weights(weights)
    passed = with_generators_reset(model, lambda: view.activations(x))
    for one, other in zip(model.get_weights(), statistics, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in passed.layers] == [layer.name for layer in joint.layers]
    for one, other in zip(passed.layers, joint.layers, strict=True):
        np.testing.assert_allclose(one.value, (other.box.lower + other.box.upper) / 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(passed.logits, joint.logits, rtol=1e-4, atol=1e-5)


class Inner(L.Layer):
    """Takes no mode itself, but has a layer that knows one."""

    def __init__(self) -> None:
        super().__init__(name="inner")
        self.norm = L.BatchNormalization(momentum=0.5)

    def build(self, shape: Any) -> None:
        self.norm.build(shape)

    def call(self, x: Any) -> Any:
        return self.norm(x)


@pytest.mark.parametrize("training", [False, True])
def test_activations_of_layers_without_a_rule_are_in_the_mode_of_the_step(training: bool) -> None:
    model = keras.Sequential([keras.Input(VECTOR), L.Dense(4, activation="relu"), Inner(), L.Dense(3, name="logits")])
    weights = model.get_weights()
    x = tf.random.normal((8, *VECTOR))
    with tf.GradientTape() as tape:
        passed = view_of(model, training=training).activations(x)
        total = tf.reduce_sum(passed.logits**2)
    assert np.abs(tape.gradient(total, model.layers[0].kernel.value)).max() > 0
    moved = model.get_weights()
    model.set_weights(weights)
    np.testing.assert_allclose(passed.logits, model(x, training=training), rtol=1e-4, atol=1e-5)
    for ours, keras_own in zip(moved, model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in passed.layers] == [model.layers[0].name, "logits"]


def test_batch_norm_in_training_is_the_affine_map_of_the_batch() -> None:
    layer = L.BatchNormalization(epsilon=0.1)
    model = network(layer, (2,))
    x = np.array([[0.0, 1.0], [2.0, 5.0]], np.float32)  # means 1 and 3, variances 1 and 4
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
    box = view_of(model, training=True).propagate(tf.constant(x), tf.constant(0.5)).box
    factor = gamma / np.sqrt([1.1, 4.1])
    centre, radius = (x - [1.0, 3.0]) * factor + beta, 0.5 * np.abs(factor)
    np.testing.assert_allclose(box.lower, centre - radius, rtol=1e-5)
    np.testing.assert_allclose(box.upper, centre + radius, rtol=1e-5)


def test_frozen_batch_norm_keeps_its_statistics_in_training() -> None:
    layer = L.BatchNormalization()
    layer.trainable = False
    model = network(layer, VECTOR)
    before = model.get_weights()
    x = tf.random.normal((4, *VECTOR))
    result = view_of(model, training=True).propagate(x, tf.constant(0.1))
    np.testing.assert_allclose(result.logits, model(x, training=False), rtol=1e-5, atol=1e-6)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


ACTIVATIONS = [name for name in FUNCTIONS if name in dir(keras.activations)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ends=st.tuples(st.floats(-8, 8, width=32), st.floats(-8, 8, width=32)))
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_function_stays_inside_its_bounds(name: str, ends: tuple[float, float]) -> None:
    lower, upper = np.float32(min(ends)), np.float32(max(ends))
    function = getattr(keras.activations, name)
    points = np.linspace(lower, upper, 65, dtype=np.float32)[:, None].clip(lower, upper)
    ones = np.ones_like(points)
    layer = L.Activation(function)
    joint = Joint(tf.constant(points), Box(tf.constant(ones * lower), tf.constant(ones * upper)), "input")
    result = Walk(training=False).call(layer, (joint,), {})
    assert_inside(function(points), result.box, tolerance=2e-6)


def test_gelu_knows_which_of_its_two_forms_it_is() -> None:
    for approximate in (True, False):
        model = network(lambda x, a=approximate: keras.ops.gelu(1.0 * x, approximate=a), (1,))
        result = view_of(model).propagate(tf.constant([[-0.75]]), tf.constant(1.0))
        assert result.layers[0].name.rstrip("_0123456789") == "multiply"
        grid = np.linspace(-1.75, 0.25, 20001, dtype=np.float32)[:, None]
        np.testing.assert_allclose(result.box.lower, [[np.min(model(grid))]], rtol=1e-6)


class Doubled(L.Dense):
    def call(self, inputs: Any) -> Any:
        return 2.0 * super().call(inputs)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="mine")
        self.first, self.last = L.Dense(8, activation="relu"), L.Dense(3)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.last(self.first(x))


# What depends on arguments and types is refused in test_tensorflow_rules.
REFUSED: dict[str, tuple[tuple[int, ...], Build, str]] = {
    "softmax": (VECTOR, lambda x: L.Softmax(name="probabilities")(L.Dense(3)(x)), "Softmax in layer 'probabilities': .*logits"),
    "unknown activation": (VECTOR, L.Dense(3, activation=tf.sin, name="last"), "'sin' in layer 'last'"),
    "rnn": (SEQUENCE, L.LSTM(4, name="memory"), "LSTM in layer 'memory'"),
    "attention": (SEQUENCE, lambda x: L.Attention(name="look")([x, x]), "Attention in layer 'look'"),
    "subclassed layer": (VECTOR, Doubled(3, name="twice"), "Doubled in layer 'twice'"),
    "nested subclassed model": (VECTOR, lambda x: Subclassed()(x), "Subclassed in layer 'mine': a subclassed model"),
    "half precision": (
        VECTOR,
        L.Dense(3, dtype="mixed_float16", name="half"),
        "float32 or float64 arithmetic, it (computes in|casts to) float16",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_an_operation_without_a_rule_names_itself_and_the_measure_that_serves(case: str) -> None:
    shape, build, message = REFUSED[case]
    model = network(build, shape)
    x = tf.random.normal((2, *shape))
    with pytest.raises(NoIntervalRuleError, match=message) as error:
        view_of(model).propagate(x, tf.constant(0.1))
    assert 'measure="channel"' in str(error.value)
    logits, gradient = view_of(model).input_gradient(x, lambda z: tf.ones_like(z))
    np.testing.assert_allclose(logits, tf.cast(model(x, training=False), tf.float32), rtol=1e-5, atol=1e-6)
    assert gradient.shape == x.shape


# ------------------------------------------------------------------------------------------------------- the backend

ARCHITECTURE = (Conv(4, 3, 2, 1), Conv(6, 4, 2, 1), Flatten(), Dense(16), Dense(10, None))
SHAPE, CLASSES = (8, 8, 1), 10


def digits_classifier(seed: int = 0, learning_rate: float = 1e-2) -> Any:
    return build_classifier(
        ARCHITECTURE,
        input_shape=SHAPE,
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        learning_rate=learning_rate,
        seed=seed,
    )


def keras_network(*extra: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            L.Conv2D(4, 3, use_bias=False, name="conv"),
            L.BatchNormalization(name="norm"),
            L.Activation("relu", name="act"),
            *extra,
            L.Flatten(name="flat"),
            L.Dense(CLASSES, name="logits"),
        ]
    )


def classifier_of(model: Any, **options: Any) -> Any:
    settings = {
        "nb_classes": CLASSES,
        "input_shape": SHAPE,
        "clip_values": (0.0, 1.0),
        "loss_object": keras.losses.CategoricalCrossentropy(from_logits=True),
        "optimizer": keras.optimizers.Adam(1e-2),
    }
    return TensorFlowV2Classifier(model=model, **(settings | options))


def batch_of(n: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (n, *SHAPE)).astype(np.float32)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, n)]
    return Batch(x, y, rng.uniform(-1, 1, x.shape).astype(np.float32), rng.uniform(0, 1, n).astype(np.float32))


def test_built_network_is_the_described_one() -> None:
    classifier = build_classifier(
        (Conv(3, 3, 1, 1), Conv(3, 3, 2, 1), MaxPool(), Flatten(), Dense(5, "silu"), Dense(4, None)),
        input_shape=(9, 8, 2),
        nb_classes=4,
        clip_values=(0.0, 1.0),
        learning_rate=0.25,
        seed=3,
    )
    kinds = [type(layer).__name__ for layer in classifier.model.layers]
    # 8 columns at stride 2 are padded by Keras on one side only, so that padding is spelt out.
    assert kinds == ["Conv2D", "ZeroPadding2D", "Conv2D", "MaxPooling2D", "Flatten", "Dense", "Dense"]
    assert classifier.model.output_shape == (None, 4)
    assert classifier.model.layers[0].padding == "same"
    assert classifier.optimizer.epsilon == 1e-8
    assert backend_for(classifier).layer_names() == ("conv1", "conv2", "dense5", "logits")


def test_keras_classifier_serves_with_the_optimizer_of_its_model() -> None:
    model = keras_network()
    model.compile(keras.optimizers.SGD(0.5), keras.losses.CategoricalCrossentropy(from_logits=True))
    classifier = KerasClassifier(model, use_logits=True, clip_values=(0.0, 1.0))
    backend = backend_for(classifier)
    backend.check_trainable()
    assert backend.learning_rate == pytest.approx(0.5)
    before = backend.state()
    backend.training_step(natural)(batch_of(8), CONTROLS)
    assert differs(before, backend.state())
    assert int(model.optimizer.iterations) == 1


def test_an_estimator_that_cannot_train_is_refused() -> None:
    with pytest.raises(ValueError, match="compiled"):
        backend_for(KerasClassifier(keras_network(), use_logits=True)).check_trainable()
    frozen = keras_network()
    frozen.trainable = False
    with pytest.raises(ValueError, match="trainable weights"):
        backend_for(classifier_of(frozen)).check_trainable()
    with pytest.raises(ValueError, match=r"shape \(n, 7\)"):
        backend_for(classifier_of(keras_network(), nb_classes=7)).check_trainable()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="must not scale the loss"):
        backend_for(classifier_of(keras_network(), optimizer=scaled)).check_trainable()
    with pytest.raises(TypeError, match="Keras 3 model"):
        backend_for(classifier_of(lambda x, training: x))


def test_a_subclassed_model_has_logits_and_gradients_but_no_bounds() -> None:
    model = Subclassed()
    classifier = classifier_of(model, input_shape=VECTOR, nb_classes=3, clip_values=None)
    backend = backend_for(classifier)
    x = np.random.default_rng(0).normal(0, 1, (5, *VECTOR)).astype(np.float32)
    np.testing.assert_allclose(backend.logits(x), classifier.predict(x), rtol=1e-5, atol=1e-6)
    v = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    expected = classifier.class_gradient(x, label=[0, 1, 2, 0, 1])[:, 0]
    np.testing.assert_allclose(backend.input_gradient(x, v), expected, rtol=1e-4, atol=1e-6)
    for ask in (backend.layer_names, lambda: backend.intervals(x, 0.1), lambda: backend.activations(x)):
        with pytest.raises(NoIntervalRuleError, match="Subclassed in layer 'mine'"):
            ask()
    noise = np.zeros_like(x)
    step = backend.training_step(gradient_size)
    values = step(Batch(x, v, noise, np.zeros(5, np.float32)), CONTROLS)
    assert values["size"] > 0
    for objective in (worst_case, EntropicObjective(Activation())):
        with pytest.raises(NoIntervalRuleError, match="Subclassed in layer 'mine'"):
            backend.training_step(objective)(Batch(x, v, noise, np.zeros(5, np.float32)), CONTROLS)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_steps_are_traced_once_over_uneven_batches(objective: Any) -> None:
    backend = backend_for(digits_classifier())
    for step in (backend.training_step(objective), backend.measuring_step(objective)):
        for n, eps in ((16, 0.01), (7, 0.02), (1, 0.03), (16, 0.05)):
            step(batch_of(n), Controls(eps, 0.3, 0.2))
        assert step.trace_count == 1


def test_natural_step_is_the_step_of_keras() -> None:
    data = batch_of(16)
    ours, theirs = digits_classifier(), digits_classifier()
    step = backend_for(ours).training_step(natural)
    theirs.model.compile(keras.optimizers.Adam(1e-2, epsilon=1e-8), keras.losses.CategoricalCrossentropy(from_logits=True))
    for _ in range(3):
        step(data, CONTROLS)
        theirs.model.train_on_batch(data.x, data.y)
    for a, b in zip(ours.model.get_weights(), theirs.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_step_that_is_not_finite_leaves_statistics_alone() -> None:
    backend = backend_for(classifier_of(keras_network()))
    step = backend.training_step(worst_case)
    step(batch_of(8), CONTROLS)
    before = backend.state()
    broken = batch_of(8)
    broken.x[3, 2, 2, 0] = np.nan
    assert not np.isfinite(step(broken, CONTROLS)["loss"])
    assert_same(backend.state(), before)


def test_a_loss_without_gradient_is_refused() -> None:
    step = backend_for(digits_classifier()).training_step(lambda view, batch, controls: {"loss": controls.eps})
    with pytest.raises(ValueError, match="must depend on the weights"):
        step(batch_of(4), CONTROLS)


class Noisy(L.Layer):
    """Draws from every generator that a user's layer can reach without owning one."""

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            return x + 0.1 * tf.random.normal(tf.shape(x)) + 0.1 * keras.random.normal(keras.ops.shape(x))
        return x


def test_layers_that_draw_without_a_generator_of_their_own_are_seeded_too() -> None:
    def run(seed: int) -> dict[str, np.ndarray]:
        keras.utils.set_random_seed(5)
        backend = backend_for(classifier_of(keras_network(Noisy())))
        tf.random.set_seed(seed + 17)
        with backend.training(seed):
            step = backend.training_step(natural)
            for index in range(4):
                step(batch_of(16, index), CONTROLS)
        return backend.state()

    one = run(1)
    assert_same(run(1), one)
    assert differs(run(2), one)


def test_the_learning_rate_of_a_schedule_is_told_and_cannot_be_set() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    scheduled = backend_for(classifier_of(keras_network(), optimizer=keras.optimizers.SGD(schedule)))
    assert scheduled.learning_rate == pytest.approx(0.5) and not scheduled.rate_is_settable
    with pytest.raises(ValueError, match="schedule"):
        scheduled.learning_rate = 0.1
    scheduled.training_step(natural)(batch_of(4), CONTROLS)
    assert scheduled.learning_rate < 0.5


def test_compiled_passes_are_shared_by_backends_and_forgotten_with_the_model() -> None:
    classifier = digits_classifier()
    backend = backend_for(classifier)
    assert backend._passes(SHAPE) is backend_for(classifier)._passes(SHAPE)
    backend.logits(batch_of(2).x)
    alive = weakref.ref(classifier.model)
    del classifier, backend
    gc.collect()
    assert alive() is None


VALUE = EntropicObjective(Interval(read_share=1.0), label_smoothing=0.1)


def digits_step(classifier: Any, objective: Any = VALUE, kind: str = "training_step") -> Any:
    """A step that has been done once, of a backend of its own."""
    step = getattr(backend_for(classifier), kind)(objective)
    step(batch_of(4), CONTROLS)
    return step


def test_an_equal_objective_on_an_unchanged_network_is_not_traced_again() -> None:
    classifier = digits_classifier()
    for kind in ("training_step", "measuring_step"):
        digits_step(classifier, kind=kind)
    for kind in ("training_step", "measuring_step"):
        again = EntropicObjective(Interval(read_share=1.0), label_smoothing=0.1)
        assert digits_step(classifier, again, kind).trace_count == 1
    alive = weakref.ref(classifier.model)
    del classifier
    gc.collect()
    assert alive() is None


def test_a_second_fit_with_equal_settings_traces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[StepTerms] = []
    initialise = StepTerms.__init__
    monkeypatch.setattr(StepTerms, "__init__", lambda self, *told: (made.append(self), initialise(self, *told))[1])
    classifier, (x, labels) = digits_classifier(), (batch_of(20).x, np.arange(20) % CLASSES)
    traced = []
    for seed in (0, 1):
        trainer = EntropicTrainer(classifier, 0.05, "interval", verbose=False)
        trainer.fit(x, labels, batch_size=8, nb_epochs=1, validation_data=(x, labels), seed=seed)
        traced.append([terms.trace_count for terms in made])
    # One trains, one rehearses a validation that reads as much of a batch as the training does, one validates on all of it.
    assert traced[0] == traced[1] and sum(traced[0]) == 3


def test_a_kept_step_is_a_fresh_step_to_the_bit() -> None:
    """Two retrainings of one network in turn, and the second one from where the first ended on a network that has no step."""
    kept, fresh = digits_classifier(), digits_classifier()
    digits_step(kept)
    backend_for(fresh).load_state(backend_for(kept).state())
    fresh.optimizer.build(fresh.model.trainable_variables)
    backend_for(fresh).load_optimizer_state(backend_for(kept).optimizer_state())
    assert digits_step(kept).trace_count == digits_step(fresh).trace_count == 1
    assert_same(backend_for(fresh).state(), backend_for(kept).state())


def first_layer(classifier: Any) -> Any:
    return next(layer for layer in classifier.model.layers if layer.weights)


def freeze_first(classifier: Any) -> None:
    first_layer(classifier).trainable = False
    classifier._optimizer = keras.optimizers.SGD(0.1)


CHANGES: dict[str, Callable[[Any], None]] = {
    "another optimizer": lambda classifier: setattr(classifier, "_optimizer", keras.optimizers.SGD(0.1)),
    "a setting of the optimizer": lambda classifier: setattr(classifier.optimizer, "clipnorm", 1e-6),
    "a layer that no longer trains": freeze_first,
    "the clip values": lambda classifier: setattr(classifier, "_clip_values", (np.float32(0), np.float32(0.5))),
    "an activation": lambda classifier: setattr(first_layer(classifier), "activation", keras.activations.tanh),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_step_is_traced_anew_after(change: Callable[[Any], None]) -> None:
    classifier, fresh = digits_classifier(), digits_classifier()
    first = digits_step(classifier)
    backend_for(classifier).load_state(backend_for(fresh).state())
    for one in (classifier, fresh):
        change(one)
    # The moments of an optimizer that stays must not tell the two apart.
    for slot in first.owners[1].variables:
        if slot is not first.owners[1]._learning_rate:
            slot.assign(keras.ops.zeros_like(slot))
    assert digits_step(classifier).terms is not first.terms
    digits_step(fresh)
    assert_same(backend_for(fresh).state(), backend_for(classifier).state())


def test_no_step_is_kept_of_what_no_value_tells() -> None:
    classifier = digits_classifier()
    assert digits_step(classifier, natural).terms is not digits_step(classifier, natural).terms
    own = L.Activation(lambda x: 2.0 * x)
    for layer in (Noisy(), own):
        noisy, objective = classifier_of(keras_network(layer)), EntropicObjective(Channel())
        assert digits_step(noisy, objective).terms is not digits_step(noisy, objective).terms


def test_a_changed_model_is_compiled_anew() -> None:
    model = keras.Sequential([keras.Input(SHAPE), L.Flatten(), L.Dense(CLASSES, activation="softmax")])
    backend = backend_for(classifier_of(model))
    x = batch_of(3).x
    np.testing.assert_allclose(backend.logits(x).sum(axis=1), 1.0, rtol=1e-5)
    model.layers[-1].activation = keras.activations.linear
    np.testing.assert_allclose(backend.logits(x), model(x), rtol=1e-5, atol=1e-6)
    assert tuple(backend.intervals(x, 0.1)) == (model.layers[-1].name,)


def test_repeated_names_are_told_apart() -> None:
    model = network(lambda x: L.Dense(CLASSES, name="logits")(keras.Sequential([L.Flatten(), shared_block()])(x)), SHAPE)
    assert backend_for(classifier_of(model)).layer_names() == ("dense", "dense#2", "logits")


def shared_block() -> Any:
    inputs = keras.Input((64,))
    dense = L.Dense(64, activation="relu", name="dense")
    return keras.Model(inputs, dense(dense(inputs)))


@pytest.mark.parametrize("training", [False, True])
def test_mobilenet_goes_through(training: bool) -> None:
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None, alpha=0.35
    )
    x = tf.constant(np.random.default_rng(0).uniform(0, 1, (16, 32, 32, 3)).astype(np.float32))
    weights = model.get_weights()
    sources: list[str] = []

    @tf.function(autograph=False)
    def joint(lower: Any, upper: Any) -> tuple[Any, Box]:
        walk = Walk(training=training)
        logits = walk.logits(model, Joint(x, Box(lower, upper), "input"))
        sources.extend(name for name, _ in walk.layers())
        return logits.value, logits.box

    eps = 1e-4
    value, box = joint(x - eps, x + eps)
    moved = model.get_weights()
    model.set_weights(weights)
    # Some batch statistics are those of 16 numbers that hardly differ, which magnifies rounding.
    np.testing.assert_allclose(value, model(x, training=training), rtol=1e-2, atol=2e-3)
    for ours, keras_own in zip(moved, model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-3, atol=1e-4)
    assert len(sources) == 36 and sources[-1] == "predictions"
    assert_inside(value, box)
    for point in ball_points(x.numpy(), eps, 2, seed=1):
        image = joint(tf.constant(point), tf.constant(point))[1].lower if training else model(point, training=False)
        assert_inside(image, box, tolerance=1e-3)


# fmt: off
BEFORE_A_MAXIMUM = {
    "relu in the layer": lambda: [keras.layers.Conv2D(3, 3, activation="relu"), keras.layers.MaxPooling2D()],
    "tanh in the layer": lambda: [keras.layers.Conv2D(3, 3, activation="tanh"), keras.layers.MaxPooling2D()],
    "a layer of its own": lambda: [keras.layers.Conv2D(3, 3), keras.layers.ReLU(), keras.layers.MaxPooling2D()],
    "over all places": lambda: [keras.layers.Conv2D(3, 3, activation="softplus"), keras.layers.GlobalMaxPooling2D()],
}
# fmt: on


@pytest.mark.parametrize("case", BEFORE_A_MAXIMUM)
def test_bounds_of_the_compiled_pass_are_those_of_the_plain_one(case, rng):
    """TensorFlow's graph optimiser moved a maximum before an activation and lost the upper bounds on the way."""
    keras.utils.set_random_seed(0)
    layers = [*BEFORE_A_MAXIMUM[case](), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    classifier = TensorFlowV2Classifier(model, 3, (6, 6, 2), clip_values=(0.0, 1.0))
    x = rng.uniform(size=(4, 6, 6, 2)).astype(np.float32)
    compiled = list(backend_for(classifier).intervals(x, 0.1).values())[-1]
    ends = (tf.constant(np.clip(x + step, 0, 1)) for step in (np.float32(-0.1), np.float32(0.1)))
    box = Walk(training=False).logits(model, Joint(tf.constant(x), Box(*ends), "input")).box
    for one, other in zip(compiled, box, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _leaky(slope: float) -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.Input((6,)), keras.layers.Dense(12), keras.layers.LeakyReLU(slope), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


def test_a_setting_of_a_layer_that_changes_changes_what_is_judged() -> None:
    x = np.random.default_rng(0).random((20, 6), np.float32)
    changed = _leaky(0.0)
    classifier = KerasClassifier(changed, clip_values=(0.0, 1.0), use_logits=True)
    backend = backend_for(classifier)
    backend.logits(x), backend.intervals(x, 0.02), backend.input_gradient(x, np.ones((20, 4), np.float32))
    changed.layers[1].negative_slope = 0.6
    asked = backend_for(KerasClassifier(_leaky(0.6), clip_values=(0.0, 1.0), use_logits=True))
    asked.load_state(backend.state())
    np.testing.assert_allclose(backend.logits(x), asked.logits(x), rtol=1e-6)
    there, here = (list(one.intervals(x, 0.02).values())[-1] for one in (asked, backend))
    np.testing.assert_allclose(here.lower, there.lower, rtol=1e-6)
    np.testing.assert_allclose(backend.input_gradient(x, here.upper), asked.input_gradient(x, here.upper), rtol=1e-5)


def test_a_sequential_model_that_its_first_batch_has_built_is_retrained() -> None:
    model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)])
    classifier = TensorFlowV2Classifier(
        model, 3, (6,), keras.losses.CategoricalCrossentropy(from_logits=True), keras.optimizers.Adam(), clip_values=(0.0, 1.0)
    )
    x, y = np.random.default_rng(0).random((12, 6), np.float32), np.arange(12) % 3
    classifier.fit(x, np.eye(3, dtype=np.float32)[y], nb_epochs=1, batch_size=5)
    assert model.output_shape != (None, 3)
    assert len(EntropicTrainer(classifier, 0.1, verbose=False).fit(x, y, nb_epochs=1, batch_size=4).epochs) == 1
