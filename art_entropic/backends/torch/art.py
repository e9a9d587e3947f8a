"""PyTorch: a second ART estimator around a user's own module for ART's adversarial trainers, and care for the module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_entropic.backends.torch.backend import TorchBackend
from art_entropic.backends.torch.devices import kept_generators, on_device
from art_entropic.backends.torch.precision import full_float32


@contextlib.contextmanager
def untouched(estimator: Any, seed: int) -> Iterator[None]:
    """The module leaves as it came: modes, gradients, and the generators of PyTorch, which are seeded inside.

    Inside, parameters need no gradient: attacks differentiate with respect to the input only; and float32 is computed in full.
    """
    network = estimator.model
    modes = [(module, module.training) for module in network.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    with full_float32, kept_generators(estimator.device):
        torch.manual_seed(seed)
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


class _Reference:
    """The standard AutoAttack of torchattacks, called as ART's attacks are."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], device: torch.device, attack: dict[str, Any]) -> None:
        import torchattacks

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                # torchattacks asks a module's parameters where it lives.
                self.place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return forward(x)

        self._attack = torchattacks.AutoAttack(Network().eval(), version="standard", verbose=False, **attack)
        self._device = device

    def generate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        points, labels = (torch.as_tensor(part).to(self._device) for part in (x, y.argmax(axis=1)))
        with torch.enable_grad():
            found: torch.Tensor = self._attack(points, labels)
        result: np.ndarray = found.detach().cpu().numpy()
        return result


def reference_attack(estimator: Any, eps: float, norm: float, seed: int) -> Any:
    """See `Framework`."""
    norms = {float("inf"): "Linf", 2.0: "L2"}
    attack = {"eps": eps, "norm": norms[norm], "n_classes": estimator.nb_classes, "seed": seed}
    backend = TorchBackend(estimator)
    return _Reference(backend.deployed_logits, backend.device, attack)


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
    with on_device(estimator.device) as kind:
        return _Trainee(
            model=_SingleOutput(estimator.model),
            loss=estimator.loss,
            optimizer=estimator.optimizer,
            input_shape=estimator.input_shape,
            nb_classes=estimator.nb_classes,
            channels_first=estimator.channels_first,
            clip_values=estimator.clip_values,
            preprocessing_defences=estimator.preprocessing_defences,
            preprocessing=estimator.preprocessing,
            device_type=kind,
        )
