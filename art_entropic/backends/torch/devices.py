"""Where PyTorch computes: the GPUs that are here, their free memory and their generators of random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from art_entropic.ops import Array


def accelerators() -> tuple[str, ...]:
    """Names of the GPUs that PyTorch sees."""
    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) if torch.cuda.is_available() else ()


def device_title(device: str | None) -> str:
    """What a record says of a device that `resolve_device` has named; None is the one that ART takes."""
    if device is None:
        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return device if device == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def is_accelerated(device: torch.device) -> bool:
    """Whether it is another one than the processor."""
    return device.type != "cpu"


@contextlib.contextmanager
def on_device(device: torch.device | None) -> Iterator[str]:
    """Gives the `device_type` with which ART builds an estimator there: it knows "cpu", and the current GPU as "gpu".

    None is its own choice.
    """
    if device is None or not is_accelerated(device):
        yield "gpu" if device is None else "cpu"
        return
    with torch.get_device_module(device).device(device):
        yield "gpu"


def free_memory(device: torch.device) -> int:
    """Bytes of the GPU that nobody uses; 0 on the processor, whose memory the data are in anyway."""
    return int(torch.get_device_module(device).mem_get_info(device)[0]) if is_accelerated(device) else 0


def kept_generators(device: torch.device, enabled: bool = True) -> contextlib.AbstractContextManager[None]:
    """A context that leaves the generators of the processor and of the device as it found them."""
    return torch.random.fork_rng([device] if is_accelerated(device) else [], enabled, device_type=device.type)


def generators(device: torch.device) -> dict[str, Array]:
    """Where the generators stand that a step on this device draws from."""
    states = {"generator": torch.get_rng_state()}
    if is_accelerated(device):
        states["generator/device"] = torch.get_device_module(device).get_rng_state(device)
    return {name: state.numpy().copy() for name, state in states.items()}


def set_generators(state: Mapping[str, Array], device: torch.device) -> None:
    """Set them to where they stood; one of a device that is not here, or was not there, is left alone."""
    torch.set_rng_state(torch.as_tensor(np.array(state["generator"])))
    if is_accelerated(device) and "generator/device" in state:
        torch.get_device_module(device).set_rng_state(torch.as_tensor(np.array(state["generator/device"])), device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, of the device or of the machine, was too small."""
    # On the CPU it is a RuntimeError like any other, known by its words alone.
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, (torch.OutOfMemoryError, MemoryError))
