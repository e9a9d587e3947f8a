"""Where TensorFlow computes: the GPUs that it sees, and the only one that it takes."""

from __future__ import annotations

import tensorflow as tf


def accelerators() -> tuple[str, ...]:
    """Names of the GPUs that TensorFlow sees."""
    return tuple(f"cuda:{index}" for index in range(len(tf.config.list_logical_devices("GPU"))))


def device_title(device: str | None) -> str:
    """What a record says of a device that `resolve_device` has named; None is the one that TensorFlow takes."""
    device = next(iter(accelerators()), "cpu") if device is None else device
    if device == "cpu":
        return device
    visible, index = tf.config.get_visible_devices("GPU"), int(device.partition(":")[2])
    if index >= len(visible):  # one GPU that was split into logical ones
        return device
    return f"{device} ({tf.config.experimental.get_device_details(visible[index]).get('device_name', 'GPU')})"


def check_first(device: str) -> None:
    """Refuse a device that is not the one TensorFlow computes on: weights would be there, and the work elsewhere."""
    first = next(iter(accelerators()), "cpu")
    if device != first:
        raise ValueError(
            f"`device` must be {first!r} on TensorFlow, which computes on the first device that it sees, got {device!r}: "
            "to choose another one, set the environment variable CUDA_VISIBLE_DEVICES (empty for the CPU) before TensorFlow is "
            "imported"
        )


def own_name(device: str) -> str:
    """TensorFlow's name of "cpu" or "cuda:i"."""
    return "CPU:0" if device == "cpu" else device.replace("cuda", "GPU")
