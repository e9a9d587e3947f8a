"""PyTorch: float32 that is computed as float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from art_entropic.backends.switches import HeldSwitch

_REDUCED = ("tf32", "bf16")


def _turn_to_float32() -> Callable[[], None]:
    """Undo every setting of the process that lets float32 be computed with fewer digits; returns what sets them again."""
    undo: list[Callable[[], None]] = []

    def change(get: Callable[[], Any], put: Callable[[Any], None], reduced: tuple[Any, ...], full: Any) -> None:
        before = get()
        if before in reduced:
            put(full)
            undo.append(partial(put, before))

    cudnn = torch.backends.cudnn
    # Both answer with an error where the newer settings below were used. Without a GPU the first one, on by default, is idle.
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            change(lambda: cudnn.allow_tf32, partial(setattr, cudnn, "allow_tf32"), (True,), False)
    with contextlib.suppress(RuntimeError):
        change(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, ("high", "medium"), "highest")
    for place in _places():
        change(partial(getattr, place, "fp32_precision"), partial(setattr, place, "fp32_precision"), _REDUCED, "ieee")

    def back() -> None:
        for step in reversed(undo):
            step()

    return back


def _places() -> tuple[Any, ...]:
    """Where PyTorch 2.9 and later keep the precision, parents first: a child shows its parent's where it has none."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return ()
    on_gpu = (backends.cudnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    on_cpu = (backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    return (backends, *(on_gpu if torch.cuda.is_available() else ()), *on_cpu)


# By default PyTorch convolves with the 10 bits of TF32 on GPUs that have it.
full_float32 = HeldSwitch(_turn_to_float32)


def _turn_cudnn_off() -> Callable[[], None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    return partial(setattr, torch.backends.cudnn, "enabled", before)


without_cudnn = HeldSwitch(_turn_cudnn_off)
