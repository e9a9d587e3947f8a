"""`Ops` over torch tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class TorchOps:
    """`Ops` over torch tensors."""

    def abs(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()

    def log1p(self, x: torch.Tensor) -> torch.Tensor:
        return x.log1p()

    def sqrt(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()

    def minimum(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.minimum(x, y)

    def maximum(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, y)

    def where(self, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(condition, x, y)

    def sum(self, x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        return x.sum() if axis is None else x.sum(axis)

    def mean(self, x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        return x.mean() if axis is None else x.mean(axis)

    def max(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.amax(axis)

    def cumsum(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.cumsum(axis)

    def one_hot(self, index: torch.Tensor, depth: int) -> torch.Tensor:
        return F.one_hot(index.long(), depth)

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(1)

    def log_softmax(self, x: torch.Tensor) -> torch.Tensor:
        return x.log_softmax(1)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def cast_like(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.to(like.dtype)


ops = TorchOps()
