"""One training step on several processes, as torchrun starts them: each takes a share of the batch, gradients are averaged.

Every process sees the same batches and the same random numbers, takes every size-th example from its rank on, and bounds what
it has taken. A loss that is a mean over examples then has the gradient that one process has for the whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import distributed, nn

from art_entropic.backends.protocol import Batch


class Shares:
    """The place of this process among those that train together; one of one where nobody initialised a process group."""

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)

    def of(self, batch: Batch) -> tuple[Batch, float]:
        """This process's examples, and their share of the batch. A batch too small to share is everybody's."""
        n = len(batch.x)
        if self.size == 1 or n < 2 * self.size:
            return batch, 1.0 / self.size
        own = Batch(*(None if part is None else part[self.rank :: self.size] for part in batch))
        return own, len(own.x) / n

    def average(
        self, parameters: Iterable[nn.Parameter], terms: Mapping[str, torch.Tensor], weight: float
    ) -> dict[str, torch.Tensor]:
        """The terms over the whole batch; the gradients become those of the whole batch, in place."""
        if self.size == 1:
            return dict(terms)
        for parameter in parameters:
            if parameter.grad is not None:
                self._sum(parameter.grad.mul_(weight))
        values = self._sum(torch.stack([torch.as_tensor(value).detach().float() for value in terms.values()]) * weight)
        return dict(zip(terms, values, strict=True))

    def agree(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every process the tensors of the first one, in place."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    distributed.broadcast(tensor, 0)

    @staticmethod
    def _sum(tensor: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(tensor)
        return tensor
