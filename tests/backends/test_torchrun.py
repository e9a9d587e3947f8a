"""Several processes that train together end where one does with the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from art_entropic import EntropicTrainer
from art_entropic.backends.registry import backend_for

ROOT = Path(__file__).parents[2]

# The test's own training, in each of the processes; the first one starts from other weights, which the others must take over.
SCRIPT = """
import os, sys
import numpy as np, torch
torch.set_num_threads(1)
from torch import distributed
from art_entropic import EntropicTrainer
from art_entropic.backends.registry import backend_for, framework_module
from small_network import ARCHITECTURE

distributed.init_process_group("gloo")
rank = distributed.get_rank()
data = np.load(sys.argv[1])
classifier = framework_module("pytorch").build_classifier(
    ARCHITECTURE, input_shape=(6, 6, 2), nb_classes=3, clip_values=(0.0, 1.0), learning_rate=1e-2, seed=rank
)
trainer = EntropicTrainer(classifier, eps=0.1, measure=sys.argv[3], verbose=False)
history = trainer.fit(data["x"], data["y"], nb_epochs=3, batch_size=16, seed=4)
np.savez(f"{sys.argv[2]}-{rank}.npz", loss=history.terms("loss"), **backend_for(classifier).state())
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("measure", ["interval", "channel"])
def test_two_processes_train_as_one(make_classifier, points, tmp_path, measure):
    x, y = points("pytorch", n=51)  # the last batch has 3 points, too few to share
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    command += [str(tmp_path / "script.py"), str(tmp_path / "data.npz"), str(tmp_path / "out"), measure]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]

    classifier = make_classifier("pytorch", seed=0)
    alone = EntropicTrainer(classifier, eps=0.1, measure=measure, verbose=False).fit(x, y, nb_epochs=3, batch_size=16, seed=4)
    first, second = (np.load(tmp_path / f"out-{rank}.npz") for rank in (0, 1))
    np.testing.assert_allclose(first["loss"], alone.terms("loss"), rtol=1e-5)
    for name, array in backend_for(classifier).state().items():
        np.testing.assert_allclose(first[name], array, atol=1e-5)
        np.testing.assert_array_equal(first[name], second[name])
