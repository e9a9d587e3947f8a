"""Set up before any framework is imported: a scratch home (ART, Keras and PyTorch's compiler write there) and quiet logs."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_scratch = tempfile.TemporaryDirectory(prefix="art-entropic-tests-")
os.environ["HOME"] = _scratch.name
os.environ["KERAS_HOME"] = os.path.join(_scratch.name, ".keras")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # name a GPU there to test on it
os.environ["MPLCONFIGDIR"] = _scratch.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(_scratch.name, "inductor")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from small_network import ARCHITECTURE  # noqa: E402
from zoo import packages  # noqa: E402

from art_entropic.backends.registry import FRAMEWORKS, framework_module  # noqa: E402

# A busy machine must not fail a property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Minutes each. A file runs on one worker, which must not begin with them when the others are done.
LONGEST = ("test_notebooks.py", "test_second_device.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def run_pytest(tmp_path):
    """Runs tests of a text, or of this folder, under one of the plug-ins beside this file, in a process of their own."""
    here = Path(__file__).parent

    def run(plugin, *arguments, text=None):
        path = os.pathsep.join([str(here.parent), str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", plugin, "-p", "no:cacheprovider", *arguments]
        if text is not None:
            (tmp_path / "test_of_a_text.py").write_text(text)
            command.append(str(tmp_path))
        environment = {**os.environ, "PYTHONPATH": path}
        ran = subprocess.run(
            command, cwd=here.parent, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        print(ran.stdout, ran.stderr)  # which is shown where the test fails
        return ran.stdout

    return run


@pytest.fixture(scope="session")
def torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return packages.torchvision()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=list(FRAMEWORKS))
def framework(request):
    return request.param


@pytest.fixture
def make_classifier():
    """A small untrained ART classifier, the same weights in every framework; raw inputs (6, 6, 2) or channels first."""

    def make(framework, *, seed=0, learning_rate=1e-2, architecture=ARCHITECTURE, clip_values=(0.0, 1.0)):
        return framework_module(framework).build_classifier(
            architecture,
            input_shape=(6, 6, 2),
            nb_classes=3,
            clip_values=clip_values,
            learning_rate=learning_rate,
            seed=seed,
        )

    return make


@pytest.fixture
def points():
    """Inputs and index labels that a small network can learn; channels first or last as the framework wants them."""

    def make(framework, n=64, seed=0):
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 3
        x = rng.uniform(0, 0.4, (n, 6, 6, 2)).astype(np.float32)
        x[np.arange(n), labels * 2, :, 0] += 0.6
        return (x.transpose(0, 3, 1, 2).copy() if FRAMEWORKS[framework].channels_first else x), labels

    return make
