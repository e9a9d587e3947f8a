"""A pytest plug-in that gives PyTorch a second device, on which all classifiers are built that may be on a GPU.

It is computed on the processor, and as strict as a GPU: tensors on "accel:0" meet none of the processor's, save scalars,
indices and what is copied on purpose; NumPy does not see them; random numbers come from a generator of its own. Kernels,
speed, memory, autocast and torch.compile it cannot show. CONTRIBUTING.md says how to use it.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ACCEL = torch.device("privateuseone", 0)
FREE_MEMORY = 1 << 30
aten = torch.ops.aten


class Module(_DummyBackendModule):
    """What PyTorch, and the package, ask of `torch.accel`."""

    operations = 0
    _state = torch.Generator().manual_seed(1234).get_state()

    def get_rng_state(self, device=None):
        return self._state

    def set_rng_state(self, state, device=None):
        self._state = state

    def manual_seed_all(self, seed):
        self._state = torch.Generator().manual_seed(seed + 1).get_state()  # not the numbers of the processor

    @contextlib.contextmanager
    def drawing(self):
        with torch.random.fork_rng([]):
            torch.set_rng_state(self._state)
            yield
            self._state = torch.get_rng_state()

    def device(self, device):
        return contextlib.nullcontext()

    def mem_get_info(self, device=None):
        return FREE_MEMORY, FREE_MEMORY


MODULE = Module()
_setup_privateuseone_for_python_backend("accel", backend_module=MODULE)
# Parameters that move stay the same objects, as between the processor and a GPU.
torch.__future__.set_swap_module_params_on_conversion(True)


class AccelTensor(torch.Tensor):
    """A tensor that says it is on the second device, around one of the processor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        about = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "layout": held.layout}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), device=ACCEL, **about)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"AccelTensor({self.held})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def meeting(function, args, kwargs):
    """The devices that must be one."""
    if function in COPIES:
        args, kwargs = args[:1], {}
    elif function in INDEXED and args[0].device == ACCEL:
        args = (args[0], *args[2:])  # indices of the processor are taken along
    return {tensor.device for tensor in tensors_of((args, kwargs)) if tensor.dim() or tensor.device == ACCEL}


def run(function, args, kwargs):
    tensors, met = tensors_of((args, kwargs)), meeting(function, args, kwargs)
    if len(met) > 1:
        raise RuntimeError(f"{function}: tensors on {' and '.join(sorted(map(str, met)))}")
    device = kwargs.get("device") or (ACCEL if ACCEL in met else torch.device("cpu"))
    there = torch.device(device).type == ACCEL.type
    MODULE.operations += there
    options = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory", "non_blocking")}
    inner = tree_map(lambda leaf: leaf.held if isinstance(leaf, AccelTensor) else leaf, (args, options))
    draws = there and torch.Tag.nondeterministic_seeded in function.tags
    with MODULE.drawing() if draws else contextlib.nullcontext():
        results = function(*inner[0], **inner[1])
    known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, AccelTensor)}
    given = {id(tensor) for tensor in tensors}

    def placed(leaf):
        if not isinstance(leaf, torch.Tensor) or id(leaf) in given:
            return leaf
        if there:
            return known[id(leaf)] if id(leaf) in known else AccelTensor(leaf)
        return leaf.clone() if id(leaf) in known else leaf

    return tree_map(placed, results)


class Here(TorchDispatchMode):
    """Inside, tensors can be made on the second device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


# What PyTorch calls below the mode.
library = torch.library.Library("aten", "IMPL")
library.impl(
    "empty_strided",
    lambda size, stride, *, dtype=None, layout=None, device=None, pin_memory=None: AccelTensor(
        torch.empty_strided(size, stride, dtype=dtype)
    ),
    "PrivateUse1",
)
library.impl("copy_", lambda into, source, non_blocking=False: run(aten.copy_.default, (into, source), {}), "PrivateUse1")
library.impl("_to_copy", lambda tensor, **options: run(aten._to_copy.default, (tensor,), options), "PrivateUse1")


@pytest.fixture(autouse=True)
def second_device(monkeypatch):
    """The GPU of ART and of the package, for one test."""
    from art.estimators.pytorch import PyTorchEstimator

    from art_entropic.backends.torch import framework

    build = PyTorchEstimator.__init__

    def on_accel(self, *args, device_type="gpu", **kwargs):
        build(self, *args, device_type="cpu", **kwargs)
        if device_type == "gpu":
            self._device, self._device_type = ACCEL, device_type

    monkeypatch.setattr(PyTorchEstimator, "__init__", on_accel)
    monkeypatch.setattr(framework, "accelerators", lambda: ("accel:0",))
    monkeypatch.setattr(framework, "device_title", lambda device: "accel:0 (second device)")
    with Here():
        yield


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{MODULE.operations} operations on the second device")
