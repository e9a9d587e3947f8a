import hashlib
import io
import re
import tarfile

import numpy as np
import pytest

from art_entropic.backends.architecture import Conv, Dense, Flatten, GlobalAverage, MaxPool, Residual, initial_weights
from art_entropic.backends.registry import FRAMEWORKS, backend_for, framework_module
from art_entropic.benchmark.data import DATA_FOLDER, NSL_KDD_NUMBERS, DataNotFoundError, for_framework
from art_entropic.benchmark.problems import PROBLEMS, build_classifier, load_data, to_pytorch

NETWORKS = [(name, network) for name, problem in PROBLEMS.items() for network in problem.networks]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_FOLDER, str(tmp_path))
    return tmp_path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import pooch

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.delenv(DATA_FOLDER, raising=False)


@pytest.mark.parametrize("name", PROBLEMS)
def test_row_agrees_with_itself(name):
    problem = PROBLEMS[name]
    assert problem.name == name
    for architecture in problem.networks.values():
        *_, kernel, _ = initial_weights(architecture, problem.input_shape, seed=0)
        assert kernel.shape[-1] == problem.nb_classes
    assert problem.eps in problem.curve_eps
    assert list(problem.curve_eps) == sorted(problem.curve_eps)


@pytest.mark.parametrize(("name", "network"), NETWORKS)
def test_a_network_has_the_same_logits_in_every_framework(name, network, rng):
    problem = PROBLEMS[name]
    x = rng.random((4, *problem.input_shape), np.float32)
    first, *others = [
        backend_for(build_classifier(problem, framework, seed=1, network=network)).logits(for_framework(x, framework))
        for framework in FRAMEWORKS
    ]
    assert np.std(first) > 1e-3
    for logits in others:
        np.testing.assert_allclose(logits, first, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_keeps_the_same_averages_in_both_frameworks(rng):
    """One step in training mode moves PyTorch's running averages and Keras's moving ones alike."""
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    problem = PROBLEMS["mnist"]
    x = rng.random((64, 28, 28, 1), np.float32)
    theirs = build_classifier(problem, "tensorflow", 0, "small_batchnorm").model
    theirs(x, training=True)
    ours = build_classifier(problem, "pytorch", 0, "small_batchnorm").model
    network = next(module for module in ours.modules() if isinstance(module, torch.nn.Sequential))
    network.train()(torch.from_numpy(for_framework(x, "pytorch")))
    norms = [module for module in network if isinstance(module, torch.nn.BatchNorm2d)]
    layers = [layer for layer in theirs.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == len(layers) == 2
    for norm, layer in zip(norms, layers, strict=True):
        np.testing.assert_allclose(layer.moving_mean.numpy(), norm.running_mean.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance.numpy(), norm.running_var.numpy(), rtol=1e-3, atol=1e-4)


def test_six_dense_is_the_network_that_was_described():
    conv, pool = [layer for layer in PROBLEMS["cifar10"].networks["six_dense"] if isinstance(layer, Conv)], MaxPool(2)
    assert [(layer.filters, layer.kernel, layer.stride, layer.padding) for layer in conv] == [
        (32, 3, 1, 0), (32, 3, 1, 0), (64, 3, 1, 0), (64, 3, 1, 0),
    ]  # fmt: skip
    dense = [Dense(units) for units in (512, 256, 128, 128, 84)]
    layers = [*conv[:2], pool, *conv[2:], pool, Flatten(), *dense, Dense(10, None)]
    assert list(PROBLEMS["cifar10"].networks["six_dense"]) == layers


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"`network` must be one of 'small', 'small_silu', .* got 'huge'"):
        build_classifier(PROBLEMS["mnist"], "pytorch", 0, "huge")


def test_digits_are_split_once_and_for_all():
    data = load_data("digits")
    assert data.x_train.shape == (1297, 8, 8, 1) and data.x_test.shape == (500, 8, 8, 1)
    assert (PROBLEMS["digits"].n_train, PROBLEMS["digits"].n_test) == (1297, 500)
    assert data.x_train.dtype == np.float32 and data.y_train.dtype == np.int64
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    counts = np.bincount(data.y_test)
    assert counts.min() >= 48 and counts.max() <= 51  # stratified
    again = load_data("digits")
    np.testing.assert_array_equal(data.x_test, again.x_test)
    assert data.sha256 == again.sha256
    # The first ten test points: a change of split or order would change every number ever measured.
    np.testing.assert_array_equal(data.y_test[:10], [4, 8, 8, 3, 9, 0, 6, 3, 9, 8])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_images_come_in_the_order_of_the_framework(framework):
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3)
    result = for_framework(x, framework)
    if FRAMEWORKS[framework].channels_first:
        assert result.shape == (1, 3, 2, 4) and result.flags.c_contiguous
        result = np.moveaxis(result, 1, -1)
    np.testing.assert_array_equal(result, x)


def test_mnist_is_read_from_the_local_folder(folder, rng):
    pixels = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 9], np.uint8)
    path = folder / "mnist.npz"
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:2], y_test=labels[:2])
    data = load_data("mnist")
    np.testing.assert_allclose(data.x_train[..., 0], pixels / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, [3, 1])
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.source == str(path)


def test_a_local_file_of_something_else_is_refused(folder):
    np.savez(folder / "mnist.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"must hold the arrays x_train, .* got x"):
        load_data("mnist")
    flat = np.zeros((5, 784), np.uint8)
    np.savez(folder / "mnist.npz", x_train=flat, y_train=np.zeros(5), x_test=flat, y_test=np.zeros(5))
    with pytest.raises(ValueError, match=r"shape \(n, 28, 28\), got uint8 of shape \(5, 784\)"):
        load_data("mnist")


def test_a_file_without_a_source_of_a_stable_hash_must_be_in_the_folder(folder, monkeypatch, rng):
    with pytest.raises(DataNotFoundError, match=r"^fashion_mnist.npz not found: .* which has no such file; set it .* made of"):
        load_data("fashion_mnist")
    monkeypatch.delenv(DATA_FOLDER)
    with pytest.raises(DataNotFoundError, match=r"^fashion_mnist.npz not found: ART_ENTROPIC_DATA is not set; set it"):
        load_data("fashion_mnist")
    monkeypatch.setenv(DATA_FOLDER, str(folder))
    pixels, labels = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8), np.array([3, 1, 9], np.uint8)
    np.savez(folder / "fashion_mnist.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    data = load_data("fashion_mnist")
    assert data.x_test.shape == (3, 28, 28, 1) and data.title == "Fashion-MNIST"
    np.testing.assert_array_equal(data.y_train, [3, 1, 9])


def network_of(framework, architecture, arrays, input_shape):
    """The backend of a network with these weights, in the order of Keras."""
    module, nb_classes = framework_module(framework), architecture[-1].units
    settings = {"nb_classes": nb_classes, "clip_values": (0.0, 1.0), "learning_rate": 0.1, "seed": 0}
    backend = backend_for(module.build_classifier(architecture, input_shape=input_shape, **settings))
    backend.load_state(module.state_of(architecture, input_shape, arrays))
    return backend


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("block", [Residual(2), Residual(5, stride=2)])
def test_a_basic_block_whose_convolutions_are_zero_is_its_shortcut(framework, block, rng):
    """The input itself, or every second pixel of it times a kernel."""
    x = rng.random((3, 4, 4, 2), np.float32)
    kernel = np.eye(2) if block.stride == 1 else rng.normal(size=(2, 5))
    architecture = (block, GlobalAverage(), Dense(block.filters, None))
    arrays = initial_weights(architecture, (4, 4, 2), seed=0)
    for array in arrays:
        if array.shape[:2] == (3, 3):
            array[:] = 0
        elif array.shape[:2] == (1, 1):
            array[0, 0] = kernel
    arrays[-2][:] = np.eye(block.filters)
    backend = network_of(framework, architecture, arrays, (4, 4, 2))
    expected = np.maximum(x[:, :: block.stride, :: block.stride] @ kernel, 0).mean((1, 2))
    np.testing.assert_allclose(backend.logits(for_framework(x, framework)), expected, rtol=1e-4, atol=1e-5)


def test_traffic_signs_come_with_their_tracks(folder, rng):
    pixels, labels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), np.array([0, 42, 7], np.uint8)
    arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels}
    np.savez(folder / "gtsrb32.npz", **arrays, track_train=np.array([42001, 9, 9], np.uint16))
    data = load_data("gtsrb")
    np.testing.assert_allclose(data.x_test, pixels / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.with_first(2).groups_train, [42001, 9])
    assert len(data.with_first(2).x_train) == len(data.with_first(2).y_train) == 2
    np.savez(folder / "gtsrb32.npz", **arrays, track_train=np.array([1, 2], np.uint16))
    with pytest.raises(ValueError, match=r"gtsrb32.npz: track_train must hold 3 tracks, got 2"):
        load_data("gtsrb")
    np.savez(folder / "gtsrb32.npz", **{**arrays, "y_test": labels + 1}, track_train=np.array([1, 2, 3], np.uint16))
    with pytest.raises(ValueError, match=r"gtsrb32.npz: y_test must hold 3 labels from 0 to 42"):
        load_data("gtsrb")


def connections(**changed):
    """Three training points and one test point in the layout of the file, with two protocols, one service and one flag."""
    x = np.zeros((3, 38), np.float32)
    x[:, 0], x[:, 1] = [0, np.e - 1, np.e**2 - 1], 5
    beyond = np.zeros((1, 38), np.float32)
    beyond[0, :2] = [np.e**4, 6]
    names = {"protocol_type": np.array(["tcp", "udp"]), "service": np.array(["http"]), "flag": np.array(["SF"])}
    train = {"x_train": x, "c_train": np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0]], np.uint8), "y_train": np.uint8([0, 1, 4])}
    return {**names, **train, "x_test": beyond, "c_test": np.zeros((1, 3), np.uint8), "y_test": np.uint8([2]), **changed}


def test_connections_are_scaled_by_the_training_part_and_have_one_hot_categories(folder):
    np.savez(folder / "nsl_kdd.npz", **connections())
    data = load_data("nsl_kdd")
    assert data.x_train.shape == (3, 42) and data.x_train.dtype == np.float32
    np.testing.assert_allclose(data.x_train[:, 0], [0, 0.5, 1], rtol=1e-6)  # logarithms 0, 1 and 2
    assert not data.x_train[:, 1:38].any()  # a constant column
    np.testing.assert_array_equal(data.x_train[:, 38:], [[1, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]])
    # Beyond what the training part has; a constant column has no scale.
    np.testing.assert_allclose(data.x_test[0, :2], [1, np.log(7 / 6)], rtol=1e-6)
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1, 1], [1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"c_test": np.array([[2, 0, 0]], np.uint8)}, "c_test must hold 1 rows of codes below [2, 1, 1]"),
        ({"x_test": np.full((1, 38), -1, np.float32)}, "x_test must hold finite numbers >= 0, got values from -1 to -1"),
        ({"x_train": np.zeros((3, 37), np.float32)}, "x_train must be float32 of shape (n, 38), got float32 of shape (3, 37)"),
        ({"y_train": np.array([0, 1, 5])}, "y_train must hold 3 labels from 0 to 4, got 3 labels, values from 0 to 5"),
        ({"flag": np.array([{}])}, "must be the data file that its name says"),  # a pickle
    ],
)
def test_connections_of_another_kind_are_refused(folder, changed, message):
    np.savez(folder / "nsl_kdd.npz", **connections(**changed))
    with pytest.raises(ValueError, match="nsl_kdd.npz:? " + re.escape(message)):
        load_data("nsl_kdd")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_perturbation_of_the_radius_changes_a_category(framework, rng):
    problem = PROBLEMS["nsl_kdd"]
    classifier = build_classifier(problem, framework, 0)
    x = rng.random((3, 122), np.float32)
    x[:, NSL_KDD_NUMBERS:] = rng.integers(0, 2, (3, 84))
    moved = x.copy()
    moved[:, NSL_KDD_NUMBERS:] += np.float32(0.2) * np.where(x[:, NSL_KDD_NUMBERS:] == 0, 1, -1).astype(np.float32)
    backend = backend_for(classifier)
    np.testing.assert_array_equal(backend.logits(moved), backend.logits(x))
    gradient = classifier.loss_gradient(x, np.eye(2, dtype=np.float32)[[0, 1, 0]])
    assert not gradient[:, NSL_KDD_NUMBERS:].any() and gradient[:, :NSL_KDD_NUMBERS].all()
    # Nor do bounds let it: all the width that enters the first layer is that of the numbers.
    first = next(box for box in backend.intervals(x, problem.eps).values() if box.lower.shape == (3, 128))
    kernel = initial_weights(problem.networks["mlp"], (122,), 0)[0]
    low, high = (np.clip(x[:, :NSL_KDD_NUMBERS] + sign * problem.eps, 0, 1) for sign in (-1, 1))
    np.testing.assert_allclose(first.upper - first.lower, (high - low) @ np.abs(kernel[:NSL_KDD_NUMBERS]), rtol=1e-4)


def test_spoken_digits_are_frames_of_bands(folder, rng):
    bands, labels = rng.integers(0, 256, (2, 40, 64), dtype=np.uint8), np.array([3, 9], np.uint8)
    np.savez(folder / "fsdd_logmel.npz", x_train=bands, y_train=labels, x_test=bands, y_test=labels)
    data = load_data("fsdd")
    assert data.x_test.shape == (2, 64, 40)
    np.testing.assert_allclose(data.x_test[1, 5, 30], bands[1, 30, 5] / 255, rtol=1e-6)
    assert for_framework(data.x_test, "pytorch").shape == (2, 40, 64)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_convolution_over_time_is_what_numpy_makes_of_it(framework, rng):
    """Stride 2 and padding 1 on 6 frames, which Keras's own padding would put at the end alone."""
    x, kernel, bias = rng.random((2, 6, 3), np.float32), rng.normal(size=(3, 3, 4)), rng.normal(size=4)
    architecture = (Conv(4, 3, stride=2, padding=1), Flatten(), Dense(12, None))
    arrays = [array.astype(np.float32) for array in (kernel, bias, np.eye(12), np.zeros(12))]
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    frames = [np.einsum("nkc,kcf->nf", padded[:, t : t + 3], kernel) + bias for t in (0, 2, 4)]
    expected = np.maximum(np.stack(frames, 1), 0).reshape(2, 12)
    backend = network_of(framework, architecture, arrays, (6, 3))
    np.testing.assert_allclose(backend.logits(for_framework(x, framework)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "file", "side"), [("cifar10", "cifar10_jpeg", 32), ("tiny_imagenet10", "tiny_imagenet10_jpeg", 64)]
)
def test_jpeg_copies_are_decoded(folder, name, file, side):
    from PIL import Image

    def encoded(mode, grey):
        stream = io.BytesIO()
        Image.new(mode, (side, side), grey if mode == "L" else (grey, grey, grey)).save(stream, "JPEG", quality=75)
        return np.frombuffer(stream.getvalue(), np.uint8)

    streams = [encoded("RGB", 0), encoded("L", 128), encoded("RGB", 255)]
    offsets = np.cumsum([0, *map(len, streams)])
    arrays = {"jpeg": np.concatenate(streams), "offset": offsets, "y": np.array([0, 5, 9], np.uint8)}
    np.savez(folder / f"{name}_jpeg.npz", **{f"{k}_{p}": v for p in ("train", "test") for k, v in arrays.items()})
    data = load_data(name)
    assert data.x_train.shape == (3, side, side, 3)
    np.testing.assert_allclose(data.x_test.mean((1, 2, 3)), [0, 128 / 255, 1], atol=2 / 255)
    np.testing.assert_array_equal(data.y_train, [0, 5, 9])
    assert name != "cifar10" or "JPEG copy" in data.title


def test_cifar10_reads_the_published_binary_archive(folder, rng):
    red = np.zeros((2, 3073), np.uint8)
    red[:, 0] = (7, 2)
    red[:, 1:1025] = 255
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = red.nbytes
            archive.addfile(member, io.BytesIO(red.tobytes()))
    data = load_data("cifar10")
    assert data.x_train.shape == (10, 32, 32, 3) and data.title == "CIFAR-10"
    np.testing.assert_array_equal(data.x_test[0, 5, 6], [1, 0, 0])
    np.testing.assert_array_equal(data.y_test, [7, 2])


@pytest.mark.parametrize(("name", "file"), [("mnist", "mnist.npz"), ("cifar10", "cifar10_jpeg.npz or cifar-10-binary.tar.gz")])
def test_missing_data_is_one_line_that_says_what_to_set(offline, name, file):
    with pytest.raises(DataNotFoundError) as caught:
        load_data(name)
    message = str(caught.value)
    assert file in message and f"set {DATA_FOLDER}" in message and "no route to host" in message
    assert "\n" not in message


def test_an_unknown_problem_is_refused():
    with pytest.raises(ValueError, match=r"`problem` must be one of 'digits', .* got 'imagenet'"):
        load_data("imagenet")


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("mnist", "small"),
        ("mnist", "small_batchnorm"),
        ("cifar10", "resnet"),
        ("fashion_mnist", "vit"),
        ("fsdd", "conv1d"),
        ("nsl_kdd", "mlp"),
    ],
)
def test_a_keras_network_is_the_same_in_pytorch(name, network, rng):
    pytest.importorskip("tensorflow")
    problem = PROBLEMS[name]
    there = build_classifier(problem, "tensorflow", 5, network)
    backend = backend_for(there)
    state = backend.state()
    backend.load_state({name: array + rng.uniform(0, 0.1, array.shape).astype(array.dtype) for name, array in state.items()})
    here = to_pytorch(there, problem, network)
    x = rng.uniform(0, 1, (7, *problem.input_shape)).astype(np.float32)
    expected, got = backend.logits(x), backend_for(here).logits(for_framework(x, "pytorch"))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_arrays_of_a_keras_network_are_its_state_by_name():
    pytest.importorskip("tensorflow")
    module, problem = framework_module("tensorflow"), PROBLEMS["mnist"]
    state = backend_for(build_classifier(problem, "tensorflow", 5, "small_batchnorm")).state()
    arrays = list(state.values())
    taken = module.state_of(problem.networks["small_batchnorm"], problem.input_shape, arrays)
    assert taken.keys() == state.keys()
    assert all(one is other for one, other in zip(taken.values(), arrays, strict=True))
    with pytest.raises(ValueError, match=f"`arrays` must hold the {len(arrays)} arrays of the network, got {len(arrays) - 1}"):
        module.state_of(problem.networks["small_batchnorm"], problem.input_shape, arrays[1:])


def test_weights_of_another_network_are_refused():
    pytest.importorskip("tensorflow")
    there = build_classifier(PROBLEMS["digits"], "tensorflow", 0)
    with pytest.raises(ValueError, match=r"must be the network 'small'"):
        to_pytorch(there, PROBLEMS["mnist"], "small")
