"""TensorFlow: float32 that is computed as float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import tensorflow as tf

from art_entropic.backends.switches import HeldSwitch


def _turn_to_float32() -> Callable[[], None]:
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    return partial(config.enable_tensor_float_32_execution, before)


# By default TensorFlow multiplies and convolves with the 10 bits of TF32 on GPUs that have it.
full_float32 = HeldSwitch(_turn_to_float32)
