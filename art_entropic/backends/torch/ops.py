"""`Ops` over torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from art_entropic.ops import division


class _Gram(torch.autograd.Function):
    """x x^T in float64. Its gradient is one product in the precision of x, where autodiff takes two in float64."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        double = x.double()
        return double @ double.T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        result: torch.Tensor = (gradient + gradient.T).to(x.dtype) @ x
        return result


class TorchOps:
    """`Ops` over torch tensors."""

    def abs(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()

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

    def largest(self, x: torch.Tensor, k: int) -> torch.Tensor:
        return x.topk(k, dim=1).values

    def cumsum(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.cumsum(axis)

    def one_hot(self, index: torch.Tensor, depth: int) -> torch.Tensor:
        # Not by F.one_hot, which asks the device for the values to check them: a wait for each call, and nothing to compile.
        return (index.long().unsqueeze(-1) == torch.arange(depth, device=index.device)).long()

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(1)

    def log_softmax(self, x: torch.Tensor) -> torch.Tensor:
        return x.log_softmax(1)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def reshape_like(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.reshape(like.shape)

    def constant(self, values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(list(values), dtype=like.dtype, device=like.device)

    def cast_like(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.to(like.dtype)

    def constant_of(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def concatenate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, y))

    def parts(self, x: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        end, start = division(len(x), share)
        return x[:end], x[start:]

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = x.chunk(2)
        return first, second

    def gram(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        product: torch.Tensor = _Gram.apply(x if axis == 0 else x.T)
        return product / len(x)

    def logdet1p(self, x: torch.Tensor) -> torch.Tensor:
        # Not by Cholesky, which raises on NaN.
        return torch.logdet(x + torch.eye(len(x), dtype=x.dtype, device=x.device))


ops = TorchOps()
