"""Two devices under MirroredStrategy train as one. They must exist before TensorFlow starts, so in a process of their own."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from art.estimators.classification import KerasClassifier, TensorFlowV2Classifier  # noqa: E402

from art_entropic import EntropicTrainer  # noqa: E402
from art_entropic.backends.protocol import Batch, Controls  # noqa: E402
from art_entropic.backends.registry import backend_for  # noqa: E402
from art_entropic.measures import Interval  # noqa: E402
from art_entropic.objective import EntropicObjective  # noqa: E402

ROOT = Path(__file__).parents[2]
L = keras.layers
SHAPE, CLASSES = (6, 6, 2), 3
CONTROLS = Controls(0.05, 0.5, 0.1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
INTERVAL = EntropicObjective(Interval(read_share=0.5))


def network(*extra):
    keras.utils.set_random_seed(3)
    # Before batch norm a bias has no gradient but rounding, which Adam would magnify.
    conv = L.Conv2D(4, 3, padding="same", use_bias=not extra)
    layers = [conv, *extra, L.Activation("silu"), L.Flatten(), L.Dense(8, activation="relu")]
    return keras.Sequential([keras.Input(SHAPE), *layers, L.Dense(CLASSES)])


def classifier_of(model, optimizer):
    options = {"nb_classes": CLASSES, "input_shape": SHAPE, "clip_values": (0.0, 1.0), "loss_object": LOSS}
    return TensorFlowV2Classifier(model=model, optimizer=optimizer, **options)


def classifier(strategy, *extra):
    """On the devices of the strategy; None is one device."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        # Clipping by the norm tells one gradient of the whole batch from one of each share.
        return classifier_of(network(*[layer() for layer in extra]), keras.optimizers.Adam(1e-2, global_clipnorm=0.5))


def data(n):
    rng, labels = np.random.default_rng(0), np.arange(n) % CLASSES
    x = rng.uniform(0, 0.4, (n, *SHAPE)).astype(np.float32)
    x[np.arange(n), labels * 2, :, 0] += 0.6
    return x, labels


def batch_of(n):
    x, labels = data(n)
    noise = np.random.default_rng(n).uniform(-1, 1, x.shape).astype(np.float32)
    return Batch(x, np.eye(CLASSES, dtype=np.float32)[labels], noise, np.linspace(0, 0.9, n, dtype=np.float32))


def retrained(classifier, measure):
    """Loss and weights; the last batch has 3 points, too few to share."""
    history = EntropicTrainer(classifier, eps=0.1, measure=measure, verbose=False).fit(
        *data(51), nb_epochs=3, batch_size=16, seed=4
    )
    return {"loss": np.array(history.terms("loss")), **backend_for(classifier).state()}


def stepped(classifier, objective=INTERVAL, sizes=(16, 16)):
    """Terms of each step, and the weights after them."""
    backend = backend_for(classifier)
    step = backend.training_step(objective)
    terms = [list(step(batch_of(n), CONTROLS).values()) for n in sizes]
    assert step.trace_count == 1
    return {"terms": np.array(terms), **backend.state()}


def synchronized():
    return L.BatchNormalization(synchronized=True)


RUNS = {
    "interval": lambda strategy: retrained(classifier(strategy), "interval"),
    "channel": lambda strategy: retrained(classifier(strategy), "channel"),
    "uneven shares": lambda strategy: stepped(
        classifier(strategy), EntropicObjective(Interval(read_share=1.0)), sizes=(16, 7, 5, 3, 1)
    ),
    "statistics over all devices": lambda strategy: stepped(classifier(strategy, synchronized)),
}


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """What the process with two devices has found, by run and array."""
    folder = tmp_path_factory.mktemp("mirrored")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(folder)]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.parametrize("name", RUNS)
def test_two_devices_train_as_one(mirrored, name):
    alone = {key.replace("/", "."): array for key, array in RUNS[name](None).items()}
    assert mirrored[name].keys() == alone.keys()
    for key, array in alone.items():
        np.testing.assert_allclose(mirrored[name][key], array, rtol=1e-5, atol=1e-5, err_msg=key)


def test_moving_statistics_are_the_mean_of_the_devices_and_all_copies_agree(mirrored):
    found = mirrored["batch norm"]
    alone = stepped(classifier(None, L.BatchNormalization), sizes=(16,))
    (key,) = [key for key in alone if key.endswith("moving_mean")]
    # The mean over equal shares of their means is that of the batch; their variances miss what is between the shares.
    np.testing.assert_allclose(found[key.replace("/", ".")], alone[key], atol=1e-6)
    first, second = found["after"]
    np.testing.assert_array_equal(first, second)
    assert np.any(found["start"] != found["after"])


def test_a_step_that_is_not_finite_changes_no_copy(mirrored):
    found = mirrored["batch norm"]
    assert not np.isfinite(found["broken loss"])
    np.testing.assert_array_equal(found["after broken"], found["after"])


def test_a_retraining_on_two_devices_resumes_exactly(mirrored):
    found = mirrored["resumed"]
    np.testing.assert_array_equal(found["resumed"], found["whole"])
    assert np.any(found["whole"] != found["half"])


def test_what_cannot_train_on_several_devices_is_refused_by_name():
    strategy, outside = tf.distribute.MirroredStrategy(["CPU:0"]), network()
    with strategy.scope():
        model, optimizer = network(), keras.optimizers.Adam()
        mixed = keras.Sequential([keras.Input(SHAPE), outside, L.Dense(CLASSES)])
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        of_workers = network()
    plain = keras.optimizers.Adam()
    for network_, optimizer_, message in (
        (model, plain, "optimizer of `classifier` must be made where the weights are"),
        (mixed, optimizer, r"whose weights were all made in one `strategy.scope\(\)`"),
        (of_workers, plain, r"built under tf.distribute.MirroredStrategy, got \w+"),
    ):
        with pytest.raises(ValueError, match=message):
            EntropicTrainer(classifier_of(network_, optimizer_), eps=0.1)
    backend = backend_for(classifier_of(model, optimizer))
    with strategy.scope(), pytest.raises(RuntimeError, match=r"outside of `strategy.scope\(\)`"):
        backend.training_step(INTERVAL)


# ------------------------------------------------------------------------------------- the process with two devices


def flat(variables):
    return np.concatenate([np.asarray(variable).ravel().astype(np.float64) for variable in variables])


def copies_of(strategy, variables):
    """The values on each of the two devices."""
    return [flat(copies) for copies in zip(*(strategy.experimental_local_results(v.value) for v in variables), strict=True)]


def batch_norm(strategy):
    """A step, and one that is not finite."""
    trained = classifier(strategy, L.BatchNormalization)
    backend, variables = backend_for(trained), [*trained.model.weights, *trained.optimizer.variables]
    start, step = copies_of(strategy, variables), backend.training_step(INTERVAL)
    step(batch_of(16), CONTROLS)
    state, after, broken = backend.state(), copies_of(strategy, variables), batch_of(16)
    broken.x[3, 2, 2, 0] = np.nan  # of the second device's share
    loss = step(broken, CONTROLS)["loss"]
    return {"start": start, "after": after, "broken loss": loss, "after broken": copies_of(strategy, variables), **state}


def resumed(strategy, folder):
    def fit(resume=False, last=3):
        with strategy.scope():
            model = network(L.BatchNormalization(), L.Dropout(0.5))
            model.compile(keras.optimizers.Adam(1e-2), LOSS)
        trained = KerasClassifier(model, clip_values=(0.0, 1.0))
        trainer = EntropicTrainer(trained, eps=0.1, measure="interval", verbose=False)
        if resume:
            trainer.resume(folder / "half")
        stop = [lambda epoch: epoch.epoch == last]
        trainer.fit(*data(40), nb_epochs=3, batch_size=16, seed=1, callbacks=stop, checkpoint=folder / "half")
        return flat(backend_for(trained).state().values())

    return {"whole": fit(), "half": fit(last=1), "resumed": fit(resume=True)}


def main(folder):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    others = {"batch norm": batch_norm, "resumed": lambda strategy: resumed(strategy, folder)}
    for name, run in (RUNS | others).items():
        np.savez(folder / f"{name}.npz", **{key.replace("/", "."): array for key, array in run(strategy).items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
