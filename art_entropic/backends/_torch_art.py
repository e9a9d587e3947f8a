"""PyTorch: ART estimators around a user's own module, for ART's attacks and adversarial trainers.

An attack needs a loss that the user's estimator does not have, and must leave that estimator as it found it. So each attack
works on a second estimator that shares the module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

_TINY = 1e-12

PerExample = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _true_logit(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return z[torch.arange(len(z), device=z.device), y.argmax(1)]


def _best_wrong_logit(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    true = nn.functional.one_hot(y.argmax(1), z.shape[1]).bool()
    return z.masked_fill(true, -torch.inf).amax(1)


def _rival_logit(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return z[torch.arange(len(z), device=z.device), ((y > 0) & (y < 1)).float().argmax(1)]


def cross_entropy(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """-log softmax(z)_y."""
    return torch.logsumexp(z, 1) - _true_logit(z, y)


def margin(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """max_{i != y} z_i - z_y: positive exactly where the prediction is wrong."""
    return _best_wrong_logit(z, y) - _true_logit(z, y)


def margin_to_rival(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """z_t - z_y."""
    return _rival_logit(z, y) - _true_logit(z, y)


def dlr_to_rival(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), the targeted difference of logits ratio of Croce & Hein 2020, eq. (7)."""
    top = z.topk(4, dim=1).values
    return margin_to_rival(z, y) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


_LOSSES: dict[str, PerExample] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "margin_to_rival": margin_to_rival,
    "dlr_to_rival": dlr_to_rival,
}


class _Loss(nn.modules.loss._Loss):
    """A loss in the form that ART drives: it sets `reduction` before it calls."""

    def __init__(self, per_example: PerExample) -> None:
        # The sum and not the mean: the gradient at one example must not shrink with the size of the batch.
        super().__init__(reduction="sum")
        self.per_example = per_example

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        values = self.per_example(z, y)
        if self.reduction == "none":
            return values
        return values.sum() if self.reduction == "sum" else values.mean()


class _Attacked(PyTorchClassifier):  # type: ignore[misc]
    """Predicts in plain chunks: ART's own loader collates example by example, which takes longer than a small network."""

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **_: Any) -> np.ndarray:
        self._model.train(training_mode)
        prepared, _y = self._apply_preprocessing(x, y=None, fit=False)
        with torch.no_grad():
            chunks = torch.split(torch.from_numpy(prepared), batch_size)
            parts = [self.model(chunk.to(self.device)).cpu() for chunk in chunks]
        result: np.ndarray = torch.cat(parts).numpy()
        return result


def _around(estimator: Any, kind: type[PyTorchClassifier], model: nn.Module, loss: Any, optimizer: Any) -> Any:
    """An ART estimator of `kind` with the input side (shape, clip range, preprocessing, device) of `estimator`."""
    return kind(
        model=model,
        loss=loss,
        optimizer=optimizer,
        input_shape=estimator.input_shape,
        nb_classes=estimator.nb_classes,
        channels_first=estimator.channels_first,
        clip_values=estimator.clip_values,
        preprocessing_defences=estimator.preprocessing_defences,
        preprocessing=estimator.preprocessing,
        device_type="cpu" if estimator.device.type == "cpu" else "gpu",
    )


def with_loss(estimator: Any, kind: str) -> Any:
    """A second ART estimator around the same module whose loss is the one named.

    Postprocessing is left out: an attack sees the logits.

    Args:
        kind: "cross_entropy", "margin", "margin_to_rival" or "dlr_to_rival". Labels are one-hot rows; for the last two, the
            rival class of each row is marked by a value between 0 and 1.
    """
    return _around(estimator, _Attacked, estimator.model, _Loss(_LOSSES[kind]), None)


@contextlib.contextmanager
def untouched(estimator: Any) -> Iterator[None]:
    """The module leaves as it came: modes, gradients, and the generators of PyTorch.

    Inside, parameters need no gradient: attacks differentiate with respect to the input only.
    """
    network = estimator.model
    modes = [(module, module.training) for module in network.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    devices = [estimator.device] if estimator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            for parameter, _, _ in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, needs, gradient in parameters:
                parameter.requires_grad_(needs)
                parameter.grad = gradient
            for module, mode in modes:
                module.training = mode


class _SingleOutput(nn.Module):
    """The same network as one module: ART's FBF and TRADES take the first layer of a Sequential for its output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(x)
        return output


class _Trainee(PyTorchClassifier):  # type: ignore[misc]
    """Returns to training mode after the attack's gradients, so that a trainer that forgets to does not train in eval mode."""

    remarks: tuple[str, ...] = ()

    def loss_gradient(self, *args: Any, **kwargs: Any) -> Any:
        gradient = super().loss_gradient(*args, **kwargs)
        self.model.train()
        return gradient


@contextlib.contextmanager
def before_each_step(twin: Any, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before each optimizer step of an estimator of `for_art_trainers`, whichever trainer takes it."""
    handle = twin.optimizer.register_step_pre_hook(lambda *_: act())
    try:
        yield
    finally:
        handle.remove()


def for_art_trainers(estimator: Any) -> Any:
    """A second ART estimator that shares module, loss and optimizer, and on which all of ART's trainers run as meant.

    Its `remarks` say what differs from ART's own way in a manner that a comparison should mention.
    """
    return _around(estimator, _Trainee, _SingleOutput(estimator.model), estimator.loss, estimator.optimizer)
