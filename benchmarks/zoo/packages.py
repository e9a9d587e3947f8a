"""Packages that want something done before they are imported."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from typing import Any


@cache
def torchvision() -> Any:
    """torchvision; its import looks up two operators, which nothing here runs and a CPU build of PyTorch may lack."""
    import torch

    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        if not torch._C._dispatch_has_kernel(f"torchvision::{schema.partition('(')[0]}"):
            with contextlib.suppress(RuntimeError):  # defined by a full build
                _stubs().define(schema)
    import torchvision

    return torchvision


@cache
def _stubs() -> Any:
    """What is defined in it goes when it goes."""
    import torch

    return torch.library.Library("torchvision", "FRAGMENT")


def timm() -> Any:
    """timm, which imports torchvision."""
    torchvision()
    import timm

    return timm


def transformers() -> Any:
    """transformers, which asks its hub for nothing; it imports torchvision where that is there."""
    torchvision()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers
