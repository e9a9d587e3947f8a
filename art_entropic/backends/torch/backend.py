"""PyTorch: ART's PyTorchClassifier behind the `Backend` protocol."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from art_entropic import intervals
from art_entropic.backends.architecture import (
    Activation,
)
from art_entropic.backends.errors import NOT_DIFFERENTIABLE, SAME_LOGITS, NoIntervalRuleError, OutputError, check_joint_pass
from art_entropic.backends.labels import Measured, labels
from art_entropic.backends.preprocessing import standardisation
from art_entropic.backends.protocol import (
    Activations,
    Ascent,
    AttackObjective,
    Batch,
    Controls,
    LayerActivation,
    LayerInterval,
    LinearBound,
    Objective,
    OwnLoss,
    Propagation,
    Relaxation,
    Step,
)
from art_entropic.backends.torch.bounds import Trace
from art_entropic.backends.torch.building import ACTIVATIONS
from art_entropic.backends.torch.devices import (
    free_memory,
    generators,
    is_accelerated,
    is_out_of_memory,
    kept_generators,
    set_generators,
)
from art_entropic.backends.torch.modes import BatchStatistics, Recorder, TwiceDifferentiated
from art_entropic.backends.torch.network import (
    as_written,
    check_optimizer,
    frozen,
    lock_of,
    main_output,
    own_buffers,
    own_loss,
    remove_softmax,
    twice_differentiable,
    unchanged,
    uncompiled,
)
from art_entropic.backends.torch.ops import ops
from art_entropic.backends.torch.optimizer import array_of, follow, load_optimizer_state, optimizer_state
from art_entropic.backends.torch.precision import full_float32
from art_entropic.backends.torch.relaxing import CertifyingTrace, RelaxingTrace, TorchRelaxed
from art_entropic.backends.torch.shares import Shares
from art_entropic.backends.torch.tensor import Bounds, BoundTensor
from art_entropic.linear_bounds import Ball
from art_entropic.ops import Array, Box, concatenated


class TorchView:
    """`View` of a PyTorch network."""

    ops = ops

    def __init__(self, backend: TorchBackend, differentiable: bool) -> None:
        self._backend = backend
        self._differentiable = differentiable

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self._backend.forward(x)

    def ball(self, x: torch.Tensor, eps: torch.Tensor | float) -> Box:
        return self._backend.ball(x, eps)

    def propagate(self, x: torch.Tensor, eps: torch.Tensor | float, norm: float = math.inf) -> Propagation:
        return self._backend.propagate(x, eps, norm)

    def relaxed(self, x: torch.Tensor, eps: torch.Tensor | float, norm: float = math.inf) -> tuple[Propagation, LinearBound]:
        return self._backend.lined(x, eps, norm)

    def activations(self, x: torch.Tensor) -> Activations:
        return self._backend.traced(x)

    def linearised(
        self, x: torch.Tensor, point: torch.Tensor, direction: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        statistics = BatchStatistics()
        with as_written(), statistics:
            logits = self.logits(x)
        with statistics.again():
            return logits, *self.input_gradient(point, direction)

    def input_gradient(
        self, x: torch.Tensor, direction: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode(False), self._backend.inference(), torch.enable_grad():
            # An attack differentiates the gradient once more, with respect to x.
            point = x if x.requires_grad else x.detach().requires_grad_(True)
            model = self._backend.model
            with twice_differentiable(model), own_buffers(model), TwiceDifferentiated():
                logits = self._backend.forward(point)
            weights = direction(logits.detach())
            if not logits.requires_grad:
                raise ValueError(NOT_DIFFERENTIABLE)
            score = (weights * logits).sum()
            (gradient,) = torch.autograd.grad(score, point, create_graph=self._differentiable, allow_unused=True)
            if gradient is None:
                raise ValueError(NOT_DIFFERENTIABLE)
        return logits, gradient

    def penalty(self) -> None:
        """PyTorch leaves regularisation to the optimizer and to the loss that a user writes."""


_Scheduler = torch.optim.lr_scheduler.LRScheduler


class TorchBackend:
    """`Backend` of an ART PyTorchClassifier."""

    framework = "pytorch"
    weights_suffix = ".pt"
    ops = ops

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self.model: nn.Module = estimator.model
        # Graphs will keep these, which they cannot where the caller's inference mode made them.
        with torch.inference_mode(False):
            self._mean_std, self._clip = _pair(standardisation(estimator)), _pair(estimator.clip_values)
        self._told_of_auxiliary = False

    @property
    def estimator(self) -> Any:
        return self._estimator

    @property
    def device(self) -> torch.device:
        """Where the estimator is by now: `move_to` may have moved it."""
        device: torch.device = self._estimator.device
        return device

    @torch.inference_mode(False)
    def _here(self, pair: _Pair | None) -> _Pair | None:
        if pair is None or pair[0].device == self.device:
            return pair
        return pair[0].to(self.device), pair[1].to(self.device)

    @property
    def _standardisation(self) -> _Pair | None:
        self._mean_std = self._here(self._mean_std)
        return self._mean_std

    @property
    def _clip_values(self) -> _Pair | None:
        self._clip = self._here(self._clip)
        return self._clip

    def place(self, device: str) -> None:
        self._move(torch.device(device))

    def _move(self, device: torch.device) -> None:
        estimator = self._estimator
        before = list(self.model.parameters())
        self.model.to(device)
        if isinstance(estimator.loss, nn.Module):
            estimator.loss.to(device)  # it may hold weights of the classes
        if estimator.optimizer is not None:
            # Parameters mostly stay the objects that they were, but PyTorch does not promise it.
            follow(estimator.optimizer, dict(zip(before, self.model.parameters(), strict=True)))
        for part in (estimator, *estimator.preprocessing_operations):
            if "_device" in vars(part):
                part._device = device
        estimator._device_type = "cpu" if device.type == "cpu" else "gpu"

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._estimator.optimizer
        return optimizer

    def check_trainable(self) -> None:
        kind = type(self._estimator).__name__
        if self._estimator.optimizer is None:
            raise ValueError(f"`classifier` must have an optimizer to be retrained, got a {kind} with `optimizer=None`")
        if self._estimator.loss is None:
            raise ValueError(f"`classifier` must have a loss to be retrained, got a {kind} with `loss=None`")
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            raise ValueError("`classifier` must be retrained with gradients on, got torch.no_grad() or torch.inference_mode()")
        check_optimizer(self._optimizer, self.model)
        for name, value in self.model.state_dict().items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(
                    "`classifier` must hold a network whose state is tensors alone, "
                    f"got {name!r} of type {type(value).__name__}"
                )

    def own_loss(self) -> OwnLoss:
        return own_loss(self._estimator.loss, int(self._estimator.nb_classes))

    # -- passes

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Inference mode inside, for one thread at a time; every module's own mode after, so that what was frozen stays so."""
        with lock_of(self.model):
            training = [module for module in self.model.modules() if module.training]
            for module in training:
                module.training = False
            try:
                yield
            finally:
                for module in training:
                    module.training = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of raw x, differentiable, in the modules' present mode."""
        return self._logits_of(self.model(self._processed(self._own(x))))

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised inputs in memory of their own: the network may work in place."""
        return x.clone() if self._standardisation is None else self._standardised(x)

    def _processed(self, x: Any) -> Any:
        """What a HuggingFaceClassifierPyTorch puts before its network."""
        processor = getattr(self._estimator, "processor", None)
        return x if processor is None else processor(x)

    def _logits_of(self, outputs: Any) -> torch.Tensor:
        """The one tensor of logits, in float32 or more; in training mode a network may return more than it predicts with.

        Raises:
            OutputError: there is no such tensor.
        """
        logits = outputs
        if not isinstance(outputs, torch.Tensor) and self.model.training:
            logits = main_output(outputs)
            if isinstance(logits, torch.Tensor) and not self._told_of_auxiliary:
                self._told_of_auxiliary = True
                warnings.warn(
                    f"the network of `classifier` returns a {type(outputs).__name__} in training: the retraining uses its "
                    "logits and ignores its other outputs",
                    stacklevel=2,
                )
        if not isinstance(logits, torch.Tensor):
            raise OutputError(
                f"`classifier` must return one tensor of logits, its network returns a {type(outputs).__name__}: let its "
                "forward method return the logits alone"
            )
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def _standardised(self, x: torch.Tensor) -> torch.Tensor:
        if self._standardisation is None:
            return x
        mean, std = self._standardisation
        return (x - mean) / std

    def ball(self, x: torch.Tensor, eps: torch.Tensor | float) -> Box:
        return intervals.ball(ops, x, eps, self._clip_values)

    def _spread(self, x: torch.Tensor, eps: torch.Tensor | float) -> torch.Tensor:
        """How far each feature may go in an L2 ball, of the shape of x without the memory of it."""
        one = torch.ones_like(x[:1]) * eps
        return (one if self._standardisation is None else one / self._standardisation[1]).expand(x.shape)

    def propagate(self, x: torch.Tensor, eps: torch.Tensor | float, norm: float = math.inf) -> Propagation:
        """The joint pass of `View.propagate`, in the modules' present mode."""
        return self._propagate(x, eps, Trace(self.model), norm)

    def _propagate(self, x: torch.Tensor, eps: torch.Tensor | float, trace: Trace, norm: float = math.inf) -> Propagation:
        return _propagation(trace, self._bound_logits(x, eps, trace, norm))

    def lined(self, x: torch.Tensor, eps: torch.Tensor | float, norm: float = math.inf) -> tuple[Propagation, LinearBound]:
        """The joint pass of `View.relaxed`, in the modules' present mode."""
        differentiates = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            start = x.clone() if x.requires_grad else x.detach().clone().requires_grad_(True)
            trace = RelaxingTrace(self.model, start, differentiates=differentiates)
            logits = self._bound_logits(start, eps, trace, norm, x)
            return _propagation(trace, logits), functools.partial(trace.bound, logits.value)

    def _bound_logits(
        self, x: torch.Tensor, eps: torch.Tensor | float, trace: Trace, norm: float, around: torch.Tensor | None = None
    ) -> BoundTensor:
        """The joint pass of x and of the ball around it, or around the same points apart from the graph of x."""
        around = x if around is None else around
        box = Box(*map(self._standardised, self.ball(around, eps)))
        bounds = Bounds(box, spread=None if math.isinf(norm) else self._spread(around, eps))
        with as_written(), trace.refusing(self.model):
            outputs = self.model(self._processed(BoundTensor(self._own(x), bounds, "input", trace)))
        logits = self._logits_of(outputs)
        if not isinstance(logits, BoundTensor):
            raise NoIntervalRuleError(
                type(self.model).__name__, "the output", "the bounds of the input do not reach the logits"
            )
        return logits

    @full_float32
    def relaxed(self, x: Array, eps: float, norm: float, relaxation: Relaxation, copies: int = 1) -> TorchRelaxed:
        ball = Ball.around(x, eps, norm, self._estimator.clip_values)
        # No graph grows in the caller's inference mode.
        with torch.inference_mode(False), self.inference(), frozen(self.model), torch.enable_grad():
            chunk = self._tensor(x).requires_grad_(True)
            trace = CertifyingTrace(self.model, chunk, relaxation, ball, copies)
            logits = self._bound_logits(chunk, eps, trace, norm, chunk.detach())
            with torch.no_grad():
                plain = self.forward(chunk.detach())
        check_joint_pass(_array(plain), _array(logits.value.detach()), lambda: "logits")
        return TorchRelaxed(trace, logits)

    def traced(self, x: torch.Tensor) -> Activations:
        """The pass of `View.activations`, in the modules' present mode."""
        trace = Trace(self.model)
        inputs = self._own(x)
        recorder = Recorder(trace, self.model)
        with as_written(), trace.refusing(self.model), recorder:
            outputs = self.model(self._processed(inputs))
        logits = self._logits_of(outputs)
        trace.finish(recorder.source(logits), recorder.kept(logits))
        return Activations(logits, tuple(LayerActivation(name, value) for name, value in trace.named()))

    def _tensor(self, x: Any) -> torch.Tensor:
        if isinstance(x, torch.Tensor):  # one that `hold` gave out
            return x
        array = np.asarray(x, np.float32)
        # Nobody writes into it, but PyTorch warns of memory that it could not write into.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)

    def _chunks(self, x: Array, batch_size: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(x), batch_size):
            yield self._tensor(x[start : start + batch_size])

    @full_float32
    def logits(self, x: Array, batch_size: int = 256) -> Array:
        with self.inference(), torch.no_grad():
            return np.concatenate([_array(self.forward(chunk)) for chunk in self._chunks(x, batch_size)])

    @full_float32
    def predict(self, x: Array) -> Array:
        # ART leaves the network in inference mode. One that works in place would write into what ART hands it.
        with self.inference(), kept_generators(self.device):
            predictions: Array = self._estimator.predict(x.copy(), batch_size=len(x))
        return predictions

    @full_float32
    def both_logits(self, x: Array, eps: float, *, training: bool, norm: float = math.inf) -> tuple[Array, Array]:
        chunk = self._tensor(x)

        def logits(compute: Callable[[], torch.Tensor]) -> Array:
            with unchanged(self.model, self.device, seed=0), torch.no_grad():
                self.model.train(training)
                return _array(compute())

        return logits(lambda: self.forward(chunk)), logits(lambda: self.propagate(chunk, eps, norm).logits)

    def _record(self, x: torch.Tensor) -> tuple[LayerActivation, ...]:
        with self.inference(), torch.no_grad():
            return self.traced(x).layers

    @full_float32
    def layer_names(self) -> tuple[str, ...]:
        shape = tuple(self._estimator.input_shape)
        return tuple(name for name, _ in self._record(torch.zeros((1, *shape), device=self.device)))

    def layer_labels(self, names: Sequence[str]) -> dict[str, str]:
        modules = {uncompiled(name): module for name, module in self.model.named_modules()}
        return labels([_measured(name, modules.get(name.partition("#")[0])) for name in names])

    def curved_operation(self, x: Array) -> str | None:
        with self.inference(), torch.no_grad():
            trace = Trace(self.model)
            self._propagate(self._tensor(x), 0.0, trace)
        return trace.curved

    @full_float32
    def activations(self, x: Array, batch_size: int = 256) -> dict[str, Array]:
        parts: dict[str, list[Array]] = {}
        for chunk in self._chunks(x, batch_size):
            for name, value in self._record(chunk):
                parts.setdefault(name, []).append(value.cpu().numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    @full_float32
    def intervals(self, x: Array, eps: float, batch_size: int = 256, norm: float = math.inf) -> dict[str, Box]:
        parts = list(self._bounds(x, eps, batch_size, slice(None), norm))
        return {name: concatenated([part[name] for part in parts]) for name in parts[0]}

    @full_float32
    def logit_bounds(self, x: Array, eps: float, batch_size: int = 256, norm: float = math.inf) -> Box:
        parts = self._bounds(x, eps, batch_size, slice(-1, None), norm)
        return concatenated([box for part in parts for box in part.values()])

    def _bounds(self, x: Array, eps: float, batch_size: int, chosen: slice, norm: float) -> Iterator[dict[str, Box]]:
        """Of each batch the bounds of the chosen layers."""
        with self.inference(), torch.no_grad():
            for chunk in self._chunks(x, batch_size):
                joint, plain = self.propagate(chunk, eps, norm), self.forward(chunk)
                check_joint_pass(_array(plain), _array(joint.logits), lambda: self._first_other(chunk, joint))  # noqa: B023
                yield {
                    layer.name: Box(layer.box.lower.cpu().numpy(), layer.box.upper.cpu().numpy())
                    for layer in joint.layers[chosen]
                }

    def _first_other(self, x: torch.Tensor, joint: Propagation) -> str:
        """The first layer whose box misses the network's own value at x."""
        values = {layer.name: layer.value for layer in self.traced(x).layers}
        for name, box, _ in joint.layers:
            if name not in values:
                return name
            value = values[name]
            slack = SAME_LOGITS * value.abs().max()
            if value.shape != box.lower.shape or bool(((value < box.lower - slack) | (value > box.upper + slack)).any()):
                return name
        return joint.layers[-1].name

    @full_float32
    def input_gradient(self, x: Array, v: Array, batch_size: int = 256) -> Array:
        view = TorchView(self, differentiable=False)

        def gradient(chunk: torch.Tensor, weights: torch.Tensor) -> Array:
            _, result = view.input_gradient(chunk, lambda _: weights)
            return result.cpu().numpy()

        return np.concatenate(
            [gradient(*pair) for pair in zip(self._chunks(x, batch_size), self._chunks(v, batch_size), strict=True)]
        )

    @full_float32
    def deployed_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of raw x in inference mode, differentiable."""
        with self.inference():
            return self.forward(x)

    def ascent(self, objective: AttackObjective, nb_classes: int) -> Callable[[Array, Array, Array], Ascent]:
        view = TorchView(self, differentiable=True)

        @full_float32
        def ask(x: Array, y: Array, more: Array) -> Ascent:
            # A caller's inference mode would leave nothing to differentiate.
            with torch.inference_mode(False), self.inference(), torch.enable_grad():
                point = self._tensor(x).requires_grad_(True)
                logits, values = objective(view, point, self._tensor(y), self._tensor(more))
                # Autograd refuses what does not depend on x at all; to an attack, that is a flat place like any other.
                (gradient,) = torch.autograd.grad(values.sum() + 0 * point.sum(), point)
            return Ascent(*(tensor.detach().cpu().numpy() for tensor in (logits, values, gradient)))

        return ask

    @property
    def is_accelerated(self) -> bool:
        return is_accelerated(self.device)

    def replace_activations(self, there: Activation, then: Activation) -> tuple[str, ...]:
        found = [
            (parent, name, f"{path}.{name}".lstrip("."))
            for path, parent in self.model.named_modules()
            # Not named_children: it names a module that is used twice only once.
            for name, child in parent._modules.items()
            # A subclass may do something else.
            if type(child) is ACTIVATIONS[there]
        ]
        for parent, name, _ in found:
            setattr(parent, name, ACTIVATIONS[then]().train(parent.training))
        return tuple(path for _, _, path in found)

    def remove_softmax(self) -> str:
        return remove_softmax(self._estimator)

    # -- training

    @contextlib.contextmanager
    def training(self, seed: int | None) -> Iterator[None]:
        # Modes are read and set while no other thread has put them off for a pass of its own.
        with lock_of(self.model):
            modes = [(module, module.training) for module in self.model.modules()]
            gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        with kept_generators(self.device, enabled=seed is not None):
            try:
                with lock_of(self.model):
                    if seed is not None:
                        torch.manual_seed(seed)
                    self.model.train()
                yield
            finally:
                with lock_of(self.model):
                    for parameter, gradient in gradients:
                        parameter.grad = gradient
                    for module, mode in modes:
                        module.training = mode

    def kept_generators(self) -> contextlib.AbstractContextManager[None]:
        return kept_generators(self.device)

    def hold(self, x: Array) -> Any:
        return self._tensor(x) if 4 * x.nbytes < free_memory(self.device) else x

    def _inputs(self, batch: Batch, controls: Controls) -> tuple[Batch, Controls]:
        # Python floats as controls: PyTorch needs no retracing, and a scalar tensor would cost a kernel each.
        return Batch(*(None if part is None else self._tensor(part) for part in batch)), controls

    def training_step(self, objective: Objective) -> Step:
        view = TorchView(self, differentiable=True)
        optimizer = self._optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        shares = Shares()
        shares.agree([*self.model.state_dict().values()])
        modes = [(module, module.training) for module in self.model.modules()]

        def step(batch: Batch, controls: Controls) -> dict[str, float]:
            with lock_of(self.model):
                # A callback or a generator that predicts with ART leaves the network in inference mode.
                for module, mode in modes:
                    if module.training is not mode:
                        module.training = mode
                return descend(batch, controls)

        def descend(batch: Batch, controls: Controls) -> dict[str, float]:
            optimizer.zero_grad(set_to_none=True)
            batch, weight = shares.of(batch)
            terms = dict(objective(view, *self._inputs(batch, controls)))
            terms["loss"].backward()
            terms = shares.average(parameters, terms, weight)
            shares.agree([*self.model.buffers()])
            gradients = [p.grad for p in parameters if p.grad is not None]
            values = _numbers({**terms, "gradient_norm": nn.utils.get_total_norm(gradients)})
            if np.isfinite(values["loss"]) and np.isfinite(values["gradient_norm"]):
                optimizer.step()
            return values

        return step

    def dry_step(self, objective: Objective, batch: Batch, controls: Controls) -> dict[str, float]:
        view = TorchView(self, differentiable=True)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        with unchanged(self.model, self.device, seed=0), as_written():
            self.model.train()
            terms = objective(view, *self._inputs(batch, controls))
            found = torch.autograd.grad(terms["loss"], parameters, allow_unused=True)
            gradients = [gradient for gradient in found if gradient is not None]
            return _numbers({**terms, "gradient_norm": nn.utils.get_total_norm(gradients)})

    def is_out_of_memory(self, error: Exception) -> bool:
        return is_out_of_memory(error)

    def measuring_step(self, objective: Objective) -> Step:
        view = TorchView(self, differentiable=False)

        def step(batch: Batch, controls: Controls) -> dict[str, float]:
            with self.inference(), torch.no_grad():
                return _numbers(objective(view, *self._inputs(batch, controls)))

        return step

    # -- state

    def state(self) -> dict[str, Array]:
        return {name: array_of(tensor) for name, tensor in self.model.state_dict().items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        self.model.load_state_dict({name: torch.as_tensor(np.array(array)) for name, array in state.items()})

    def optimizer_state(self) -> dict[str, Array]:
        return generators(self.device) | optimizer_state(self._optimizer)

    def load_optimizer_state(self, state: Mapping[str, Array]) -> None:
        load_optimizer_state(self._optimizer, state)
        set_generators(state, self.device)

    rate_is_settable = True

    @property
    def learning_rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.learning_rates = (value,) * len(self._optimizer.param_groups)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return tuple(float(group["lr"]) for group in self._optimizer.param_groups)

    @learning_rates.setter
    def learning_rates(self, values: tuple[float, ...]) -> None:
        for group, value in zip(self._optimizer.param_groups, values, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def check_scheduler(self, scheduler: Any, *, validates: bool) -> None:
        if callable(scheduler) and len(set(self.learning_rates)) > 1:
            raise ValueError(
                "`scheduler` must be a torch.optim.lr_scheduler.LRScheduler where the groups of the optimizer have several "
                f"learning rates, {self.learning_rates}, got a callable, which gives one for all"
            )
        if scheduler is None or callable(scheduler):
            return
        if not isinstance(scheduler, _Scheduler):
            raise TypeError(
                "`scheduler` must be a callable epoch -> learning rate or a torch.optim.lr_scheduler.LRScheduler, "
                f"got {type(scheduler).__name__}"
            )
        if scheduler.optimizer is not self._optimizer:
            raise ValueError("`scheduler` must be made for the optimizer of `classifier`, got one for another optimizer")
        if isinstance(scheduler, ReduceLROnPlateau) and not validates:
            raise ValueError("`scheduler` ReduceLROnPlateau needs `validation_data`, whose loss it follows, got None")

    def step_scheduler(self, scheduler: _Scheduler, loss: float | None) -> None:
        if isinstance(scheduler, ReduceLROnPlateau) and loss is not None:
            scheduler.step(loss)
        else:
            scheduler.step()

    def scheduler_state(self, scheduler: _Scheduler) -> dict[str, Any]:
        state: dict[str, Any] = scheduler.state_dict()
        return state

    def load_scheduler_state(self, scheduler: _Scheduler, state: Mapping[str, Any]) -> None:
        scheduler.load_state_dict(dict(state))

    def save_weights(self, path: Path) -> None:
        # The same file wherever it was trained, compiled or not, which loads everywhere.
        state = {uncompiled(name): tensor.cpu() for name, tensor in self.model.state_dict().items()}
        torch.save(state, path)

    def load_weights(self, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        names = {uncompiled(name): name for name in self.model.state_dict()}
        self.model.load_state_dict({names.get(uncompiled(name), name): value for name, value in saved.items()})


_Pair = tuple[torch.Tensor, torch.Tensor]


def _propagation(trace: Trace, logits: BoundTensor) -> Propagation:
    trace.finish(logits.source, logits.bounds)
    layers = tuple(LayerInterval(name, bounds.box, bounds.radius) for name, bounds in trace.named())
    return Propagation(logits.value, logits.box, layers)


def _measured(name: str, module: nn.Module | None) -> Measured:
    if isinstance(module, nn.Linear):
        return Measured(name, "dense", module.out_features)
    convolutions, norms = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return Measured(name, "conv" if isinstance(module, convolutions) else "norm" if isinstance(module, norms) else None)


def _pair(values: Any) -> _Pair | None:
    if values is None:
        return None
    one, two = (torch.as_tensor(np.asarray(value, np.float32)) for value in values)
    return one, two


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _numbers(terms: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """All scalars in one transfer."""
    values = torch.stack([torch.as_tensor(value).detach().float() for value in terms.values()]).tolist()
    return dict(zip(terms, values, strict=True))
