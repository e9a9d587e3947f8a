"""Packages that want something done before they are imported."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any


@cache
def torchvision() -> Any:
    """torchvision; beside a build of PyTorch that its own is not for, it lacks two operators, which nothing here runs.

    The plain wheels for Linux are built for CUDA and link libtorch_cuda.so, which a CPU build of PyTorch does not have. Their
    operators do not load then, and the import ends at the first function that is registered for one.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            _stubs().define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
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
