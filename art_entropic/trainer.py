"""`EntropicTrainer`: an ART trainer that makes a trained classifier robust from its original data alone."""

from __future__ import annotations

import contextlib
import math
import secrets
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from art.defences.trainer import Trainer
from tqdm.auto import tqdm

from art_entropic._validate import (
    NORMS,
    check_logits,
    check_points,
    check_radius,
    file_path,
    file_to_write,
    flag,
    listed,
    non_negative,
    norm_name,
    norm_of,
    positive_int,
    seed_of,
)
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.protocol import Backend, Batch, Controls, Step
from art_entropic.backends.registry import backend_for
from art_entropic.batches import Arrays, Generated, LabelledBatch, Source
from art_entropic.checkpoint import (
    Options,
    Retraining,
    Snapshot,
    read_checkpoint,
    refuse_other_classifier,
    refuse_other_settings,
    write_checkpoint,
)
from art_entropic.choosing import AUTOMATIC, measure_for, overflowing_layer
from art_entropic.guards import check_bounds, check_predictions, check_training_bounds, some_of
from art_entropic.history import SHOWN_POINTS, Callback, History, TrainingDivergedError, closing_line
from art_entropic.measures import Interval, Measure, measure_of
from art_entropic.objective import WEIGHTED_TERMS, EntropicObjective, combined
from art_entropic.ops import Array
from art_entropic.perturbations import unit_ball
from art_entropic.records import Epoch
from art_entropic.schedule import falling_rate
from art_entropic.states import kept_numpy_generator, plain_state, restored_state

# Of the data, on which a checkpoint keeps the network's answers.
PROBED_POINTS = 2


class _Means:
    """Mean of each term over batches, each weighted by its size, or for some terms by a weight of its own."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, terms: Mapping[str, float], n: int, weights: Mapping[str, float] | None = None) -> None:
        for name, value in terms.items():
            weight = (weights or {}).get(name, n)
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def values(self) -> dict[str, float]:
        return {name: total / (self._weights[name] or 1.0) for name, total in self._sums.items()}


class EntropicTrainer(Trainer):  # type: ignore[misc]
    """Retrains an ART classifier to be robust, by equation (2) of the method page.

    loss = (1 - k) CE(z(x), y) + k CE(worst-case logits over the ball, y) + beta * information

    The information is what a perturbation |d|_norm <= eps sends into the network, in nats, measured with finite resolution.
    Retraining makes no adversarial examples and does not change the forward pass. Inspired by Sperl & Böttinger, arXiv
    2008.03072, whose own loss is not public; worst-case logits after Gowal et al. 2018, arXiv 1810.12715.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier, already trained, with optimizer and
            loss, returning logits.
        eps: radius of the perturbations to become robust against, in the units of the raw input.
        measure: how the information is measured, with all hyperparameters of the loss: a name of MEASURES, or a value such as
            ``Interval(beta=0.3, schedule=Schedule(ramp=0.4))``. `Interval` is the worst case: it gives certificates, needs an
            interval rule for every operation and works best with ReLU. `Channel` is first order: it works on any differentiable
            network, best with smooth activations or a small eps. `Coding` is the average case. `Activation` looks at the
            natural data only; it is a control, not a defence. With None, `fit` chooses `Interval` or `Channel` by the network
            and eps; `history.settings` says which.
        norm: norm of the perturbations: infinity (also "inf") or 2. In an L2 ball of radius eps, `Interval` starts from the
            exact range of each unit of the first layer, and `Channel` takes the L2 norm of the gradient.
        verbose: show a progress bar, the chosen measure and the result on stderr.
    Raises:
        TypeError: `classifier` is not a supported estimator, or an argument has the wrong type.
        ValueError: an argument is out of its range, or the estimator cannot be retrained.
    """

    def __init__(
        self,
        classifier: Any,
        eps: float,
        measure: str | Measure | None = None,
        *,
        norm: float | str = math.inf,
        verbose: bool = True,
    ) -> None:
        self._backend: Backend = backend_for(classifier)
        self._backend.check_trainable()
        if hasattr(eps, "generate"):
            raise TypeError(f"`eps` must be a number, got an attack of type {type(eps).__name__}: take its radius, attack.eps")
        super().__init__(classifier)
        self._norm = norm_of(norm, NORMS)
        self._eps = self._check_radius(eps)
        self._automatic = measure is None
        self._settle(measure_of(AUTOMATIC[0] if measure is None else measure))
        self._verbose = flag("verbose", verbose)
        self._progress: Retraining | None = None
        self._resuming = False

    def __repr__(self) -> str:
        measure = "automatic" if self._automatic and self._progress is None else self._measure
        norm = "" if math.isinf(self._norm) else f", norm={norm_name(self._norm)}"
        return f"EntropicTrainer({type(self._classifier).__name__}, eps={self._eps!r}, measure={measure!r}{norm})"

    @property
    def history(self) -> History | None:
        """History of the last retraining, finished or interrupted; None before the first."""
        return self._progress.history if self._progress else None

    def fit(
        self,
        x: Array,
        y: Array,
        batch_size: int = 128,
        nb_epochs: int = 20,
        validation_data: tuple[Array, Array] | None = None,
        *,
        seed: int | None = None,
        scheduler: Any = None,
        callbacks: Sequence[Callback] = (),
        early_stopping: int | None = None,
        checkpoint: str | Path | None = None,
        verbose: bool | None = None,
    ) -> History:
        """Retrain the classifier on its original training data.

        Args:
            x: original training data, (n, ...), raw units.
            y: class indices (n,) or one-hot rows (n, nb_classes).
            batch_size: examples in a batch.
            nb_epochs: number of epochs.
            validation_data: (x, y) to choose the best epoch on: the one with the lowest loss at full eps, k and beta, among
                the epochs after the ramp. Without it, the weights of the last epoch are kept.
            seed: seed of shuffling, noise and dropout; two runs with the same seed agree bit for bit on a CPU. None draws one.
            scheduler: a callable epoch -> learning rate, called before each epoch (epochs count from 0), or a PyTorch
                LRScheduler, stepped after each epoch; ReduceLROnPlateau follows the validation loss. A checkpoint keeps its
                state.
            callbacks: functions that are called with the record of each epoch; one that returns True ends the training. They
                may predict with the classifier and attack it.
            early_stopping: end after this many epochs without a better validation loss; needs validation_data.
            checkpoint: file to rewrite after each epoch, for `resume`.
            verbose: show progress on stderr; None takes the setting of the trainer.
        Returns:
            The history of the retraining. The classifier holds the chosen weights.
        Raises:
            TypeError, ValueError: an argument is wrong; the classifier is unchanged.
            NoIntervalRuleError: an operation of the network has no interval rule, or the bounds do not hold for the network
                that predicts; the classifier is unchanged.
            TrainingDivergedError: a loss or gradient was not finite.
            MemoryError: a batch does not fit into memory.

        Whatever ends the training early, Ctrl-C too, leaves weights and optimizer as the last finished epoch left them.
        """
        batch_size = positive_int("batch_size", batch_size)
        options = self._options(nb_epochs, validation_data, seed, scheduler, callbacks, early_stopping, checkpoint, verbose)
        x, labels = self._check(x, y)
        source = Arrays(self._backend.hold(x), labels, batch_size, options.seed)
        shown = some_of(x, SHOWN_POINTS), some_of(labels, SHOWN_POINTS)
        about_data = {"batch_size": batch_size, "n": len(x)}
        return self._run(source, *shown, options, about_data, {"x and y": _digest(x, labels)})

    def fit_generator(
        self,
        generator: Any,
        nb_epochs: int = 20,
        validation_data: tuple[Array, Array] | None = None,
        *,
        seed: int | None = None,
        scheduler: Any = None,
        callbacks: Sequence[Callback] = (),
        early_stopping: int | None = None,
        checkpoint: str | Path | None = None,
        verbose: bool | None = None,
    ) -> History:
        """Retrain the classifier on the batches of an ART DataGenerator, in its own order and with its own augmentation.

        All other arguments, and the errors, are those of `fit`. Batches are checked as they come.

        Args:
            generator: ART DataGenerator with a size, which gives (x, y) or (x, y, sample_weight). The loader inside it starts
                again with each epoch if it can. Sample weights make the cross-entropy of a batch a weighted mean.
        """
        options = self._options(nb_epochs, validation_data, seed, scheduler, callbacks, early_stopping, checkpoint, verbose)
        source = Generated(generator, self._check)
        with self._backend.training(options.seed), kept_numpy_generator():
            first = source.first()
        about_data = {"batch_size": generator.batch_size, "n": generator.size}
        return self._run(source, first.x[:SHOWN_POINTS], first.labels[:SHOWN_POINTS], options, about_data, {})

    def predict(self, x: Array, batch_size: int = 128, **kwargs: Any) -> Array:
        """Predict with the classifier, batch by batch; returns an array (n, nb_classes)."""
        size = positive_int("batch_size", batch_size)
        parts = [
            self._classifier.predict(x[start : start + size], batch_size=size, **kwargs) for start in range(0, len(x), size)
        ]
        return np.concatenate(parts)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint of the retraining after its last finished epoch: weights, optimizer, history. It has no pickle.

        Raises:
            RuntimeError: no epoch has finished yet.
        """
        if self._progress is None:
            raise RuntimeError("there is nothing to save before the first epoch of `fit`")
        write_checkpoint(file_to_write("path", path), self._progress)

    def resume(self, path: str | Path) -> None:
        """Load a checkpoint, so that the next `fit` with the same arguments continues from there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a checkpoint of this version, or does not fit this network or these settings: a network
                with the same weights must answer as the one that was saved.
        """
        path = file_path("path", path)
        saved = read_checkpoint(path)
        if self._automatic:
            measure = saved.fixed.get("measure")
            if measure not in AUTOMATIC:
                raise ValueError(f"`measure` must be as in the checkpoint {path}: {measure!r}, got None")
            self._settle(measure_of(measure))
        refuse_other_settings(saved.fixed, self._settings(), f"in the checkpoint {path}")
        refuse_other_classifier(self._backend, saved, path)
        self._progress, self._resuming = saved, True

    # -- checks

    def _options(
        self,
        nb_epochs: int,
        validation_data: Any,
        seed: int | None,
        scheduler: Any,
        callbacks: Sequence[Callback],
        early_stopping: int | None,
        checkpoint: str | Path | None,
        verbose: bool | None,
    ) -> Options:
        self._backend.check_trainable()
        self._backend.check_scheduler(scheduler, validates=validation_data is not None)
        if early_stopping is not None:
            positive_int("early_stopping", early_stopping)
            if validation_data is None:
                raise ValueError("`early_stopping` needs `validation_data`, got None")
        return Options(
            nb_epochs=positive_int("nb_epochs", nb_epochs),
            validation=None if validation_data is None else self._check_validation(validation_data),
            seed=self._seed(seed),
            scheduler=scheduler,
            decay=self._decay_for(scheduler),
            callbacks=_callables("callbacks", callbacks),
            early_stopping=early_stopping,
            checkpoint=None if checkpoint is None else file_to_write("checkpoint", checkpoint),
            verbose=self._verbose if verbose is None else flag("verbose", verbose),
        )

    def _check_validation(self, validation_data: Any) -> tuple[Array, Array]:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise ValueError(f"`validation_data` must be a pair (x, y), got {type(validation_data).__name__}")
        x, y = validation_data
        return self._check(x, y, prefix="validation ")

    def _check(self, x: Any, y: Any, prefix: str = "") -> tuple[Array, Array]:
        return check_points(self._classifier, x, y, names=(f"{prefix}x", f"{prefix}y"))

    def _seed(self, seed: int | None) -> int:
        if seed is None:
            resumed = self._resuming and self._progress is not None
            return self._progress.history.seed if resumed else secrets.randbits(31)  # type: ignore[union-attr]
        return seed_of("seed", seed)

    def _choose_measure(self, x: Array, labels: Array) -> str:
        """Settle on the measure that fits network and radius, or where it fails on the other one; the reason, in words.

        Raises:
            ValueError: neither works; the message says why.
        """
        chosen, reason = measure_for(self._backend, x, self._eps, self._norm)
        failures: dict[str, Exception] = {}
        for measure in (chosen, *(name for name in AUTOMATIC if name != chosen)):
            self._settle(measure_of(measure))
            try:
                terms = self._rehearse(x, labels)
                # Asked for by name it may start all the same: the ramp begins with narrow boxes.
                if measure == "interval" and not all(map(math.isfinite, terms.values())):
                    raise ValueError("its bounds leave float32 at full eps before training has narrowed them")
            except (ValueError, TypeError, NoIntervalRuleError) as error:
                failures[measure] = error
                continue
            told = [f"{name!r} cannot be had, {getattr(error, 'reason', error)}" for name, error in failures.items()]
            return "; ".join(told) or reason
        reasons = "; ".join(f"{name!r}: {error}" for name, error in failures.items())
        raise ValueError(f"`classifier` cannot be retrained with any measure that is chosen automatically. {reasons}")

    def _settle(self, measure: Measure) -> None:
        self._measure = measure
        self._schedule = measure.controls(self._eps)
        try:
            self._check_radius(self._schedule.eps)
        except ValueError as error:
            raise ValueError(f"`eps_factor` of {measure!r} does not fit `eps` {self._eps!r}: {error}") from error
        loss = self._backend.own_loss()
        self._objective = EntropicObjective(measure, loss.class_weights, loss.label_smoothing, self._norm)

    def _check_radius(self, eps: Any) -> float:
        estimator = self._backend.estimator
        return check_radius(eps, self._norm, estimator.clip_values, tuple(estimator.input_shape))

    def _rehearse(self, x: Array, labels: Array) -> dict[str, float]:
        """One step of training and one of validation, with everything put back: what cannot work fails before any work.

        Returns:
            The terms of the training step, at full strength.
        Raises:
            NoIntervalRuleError: bounds are asked for, and there are none, or they are those of another network.
            ValueError: a step fails; the message says how.
        """
        backend, eps = self._backend, self._schedule.eps
        batch = self._batch(LabelledBatch(x[:8], labels[:8]), np.random.default_rng(0))
        if isinstance(self._measure, Interval):
            layer = overflowing_layer(backend, x, eps, self._norm)
            if layer is not None:
                raise ValueError(
                    f"`measure` must not be {self._measure.name!r} for this network, whose bounds overflow float32 in layer "
                    f"{layer!r} at the start of the ramp, as in very deep ones: 'channel' works on any differentiable network"
                )
            check_bounds(backend, x, eps, self._norm)
            check_training_bounds(backend, x[:8], eps, self._norm)
        try:
            terms = backend.dry_step(self._objective, batch, self._schedule.full())
            backend.measuring_step(self._objective)(batch, self._schedule.full())
            return terms
        except (ValueError, NoIntervalRuleError, MemoryError):
            raise
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise MemoryError(f"not enough memory for a step with {len(batch.x)} examples") from error
            raise ValueError(
                f"`classifier` cannot be retrained with measure={self._measure.name!r}, whose step fails with "
                f"{type(error).__name__}: {error}"
            ) from error

    def _settings(self) -> dict[str, Any]:
        loss = {"class_weights": self._objective.class_weights, "label_smoothing": self._objective.label_smoothing}
        settings = {**self._schedule._asdict(), "norm": norm_name(self._norm), **self._measure.facts(), **loss}
        # As JSON gives it back.
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    def _decay_for(self, scheduler: Any) -> float:
        """The share of the retraining over which the learning rate falls; a schedule of the user's own goes before ours.

        Raises:
            ValueError: both were asked for.
        """
        own = "a `scheduler`" if scheduler is not None else None if self._backend.rate_is_settable else "one in the optimizer"
        asked = self._measure.schedule.decay
        if own is not None and asked:
            raise ValueError(
                f"`decay` must be 0 beside a learning rate schedule, got decay={asked!r} and {own}: write Schedule(decay=0)"
            )
        return 0.0 if own is not None else self._measure.decay

    # -- the loop

    def _batch(self, given: LabelledBatch, rng: np.random.Generator) -> Batch:
        x, labels, weight = given
        one_hot = np.zeros((len(x), self._classifier.nb_classes), np.float32)
        one_hot[np.arange(len(x)), labels] = 1.0
        if not self._measure.reads_noise:
            return Batch(x, one_hot, weight=weight)
        # It comes from NumPy even where x waits on a device, since every framework and device must see the same. One stream
        # gives both kinds by turns: a measure that reads one of them draws both, or its results would be those of another seed.
        noise = unit_ball(rng, tuple(x.shape), self._norm)
        return Batch(x, one_hot, noise, rng.random(len(x), np.float32), weight)

    def _run(
        self,
        source: Source,
        x: Array,
        labels: Array,
        options: Options,
        about_data: dict[str, Any],
        digests: dict[str, str | None],
    ) -> History:
        """Check the network on a few points, train, and load the chosen weights."""
        few = some_of(x, 32), some_of(labels, 32)
        check_predictions(self._backend, few[0])
        check_logits(self._backend.logits(few[0]), int(self._classifier.nb_classes))
        for remark in self._backend.own_loss().remarks:
            warnings.warn(f"`classifier` is retrained with a loss that differs from its own: {remark}", stacklevel=3)
        reason = "asked for"
        if self._automatic and not self._resuming:
            reason = self._choose_measure(*few)
            if options.verbose:
                print(f"entropic retraining with measure {self._measure.name!r}: {reason}", file=sys.stderr)
        else:
            self._settle(self._measure)
            self._rehearse(*few)
        shown = options.validation or (x, labels)
        before = self._accuracy(*shown)
        rates = list(self._backend.learning_rates) if options.decay else None
        fixed = {
            "nb_epochs": options.nb_epochs, "seed": options.seed, "decay": options.decay, "learning_rates": rates,
            "scheduler": None if options.scheduler is None else type(options.scheduler).__name__,
        }  # fmt: skip
        digests = {**digests, "validation_data": None if options.validation is None else _digest(*options.validation)}
        progress = self._begin({**self._settings(), **fixed, **about_data}, digests, options, reason, x[:PROBED_POINTS])
        with self._backend.training(options.seed), falling_rate(self._backend, options.decay) as set_rates:
            if progress.last.epoch:
                self._backend.load_optimizer_state(progress.last.optimizer)
                if options.framework_scheduler is not None:
                    state = restored_state(progress.last.scheduler)
                    self._backend.load_scheduler_state(options.framework_scheduler, state)
            with self._going_back(progress):
                self._loop(progress, source, options, set_rates)
        if progress.best_weights is not None:
            self._backend.load_state(progress.best_weights)
        if options.verbose:
            where = "validation" if options.validation else f"{len(x)} training points"
            told = closing_line(progress.history, self._schedule, source.steps, (before, self._accuracy(*shown)), where)
            print(told, file=sys.stderr)
        return progress.history

    def _accuracy(self, x: Array, labels: Array) -> float:
        """Clean accuracy."""
        return float(np.mean(self._backend.logits(x).argmax(axis=1) == labels))

    def _begin(
        self, settings: dict[str, Any], digests: dict[str, str | None], options: Options, reason: str, probed: Array
    ) -> Retraining:
        fixed = {**settings, **digests}
        if self._resuming and self._progress is not None:
            refuse_other_settings(self._progress.fixed, fixed, "in the checkpoint that is being resumed")
            self._resuming = False
            self._progress.history.stopped_early = False
            self._backend.load_state(self._progress.last.weights)
            return self._progress
        start = self._snapshot(0, options, probed)
        self._progress = Retraining(
            History(seed=options.seed, settings={**settings, "reason": reason}), fixed, start, probed=probed
        )
        return self._progress

    def _snapshot(self, epoch: int, options: Options, probed: Array | None) -> Snapshot:
        scheduler = options.framework_scheduler
        state = None if scheduler is None else plain_state(self._backend.scheduler_state(scheduler))
        answers = None if probed is None else self._backend.logits(probed)
        return Snapshot(epoch, self._backend.state(), self._backend.optimizer_state(), state, answers)

    @contextlib.contextmanager
    def _going_back(self, progress: Retraining) -> Iterator[None]:
        """Whatever ends the training early, weights and optimizer are then as the last finished epoch left them."""
        try:
            yield
        except BaseException:
            self._backend.load_state(progress.last.weights)
            self._backend.load_optimizer_state(progress.last.optimizer)
            progress.history.best_epoch = progress.last.epoch or None
            raise

    def _loop(self, progress: Retraining, source: Source, options: Options, set_rates: Callable[[float], None]) -> None:
        backend, history = self._backend, progress.history
        step = backend.training_step(self._objective)
        whole = replace(self._objective, measure=msgspec.structs.replace(self._measure, read_share=1.0))
        measuring = backend.measuring_step(whole)
        bar = tqdm(
            total=options.nb_epochs * source.steps,
            initial=progress.last.epoch * source.steps,
            desc="entropic retraining",
            unit="step",
            disable=not options.verbose,
        )
        with bar:
            for epoch in range(progress.last.epoch, options.nb_epochs):
                began = time.perf_counter()
                if callable(options.scheduler):
                    self._set_learning_rate(options.scheduler(epoch))
                set_rates(epoch / options.nb_epochs)
                learning_rate = backend.learning_rate
                terms = self._epoch(progress, source, step, epoch, options, bar, set_rates)
                controls = self._schedule.at((epoch + 1) / options.nb_epochs)
                shown = self._validate(measuring, options, progress)
                if options.framework_scheduler is not None:
                    backend.step_scheduler(options.framework_scheduler, None if shown is None else shown["loss"])
                seconds = time.perf_counter() - began
                record = Epoch(
                    epoch=epoch + 1, eps=controls.eps, k=controls.k, beta=controls.beta, learning_rate=learning_rate,
                    seconds=seconds, terms=terms, validation=shown,
                )  # fmt: skip
                finished = self._snapshot(epoch + 1, options, progress.probed)
                history.epochs.append(record)
                history.seconds += seconds
                self._keep_best(progress, record, finished)
                progress.last = finished
                if options.checkpoint is not None:
                    self.save(options.checkpoint)
                # ART draws a number to predict. A comparison of NumPy numbers gives NumPy's own True.
                with backend.kept_generators():
                    answers = [callback(record) for callback in options.callbacks]
                stop = [isinstance(answer, (bool, np.bool_)) and bool(answer) for answer in answers]
                if any(stop) or (options.early_stopping is not None and progress.stale >= options.early_stopping):
                    history.stopped_early = epoch + 1 < options.nb_epochs
                    break

    def _epoch(
        self,
        progress: Retraining,
        source: Source,
        step: Step,
        epoch: int,
        options: Options,
        bar: Any,
        set_rates: Callable[[float], None],
    ) -> dict[str, float]:
        """One pass over the data; the mean of each term, weighted by the size of its batch."""
        rng = np.random.default_rng([options.seed, epoch, 1])
        means = _Means()
        for number, batch in enumerate(source.batches(epoch)):
            share = (epoch + min(number, source.steps) / source.steps) / options.nb_epochs
            controls = self._schedule.at(share)
            set_rates(share)
            values = self._step(step, self._batch(batch, rng), controls, progress)
            if not all(map(math.isfinite, values.values())):
                raise TrainingDivergedError(epoch + 1, number + 1, values, progress.last.title)
            means.add(values, len(batch.x))
            bar.update()
            if number % 10 == 0:
                bar.set_postfix(_postfix(epoch, options.nb_epochs, controls, means.values()), refresh=False)
        return means.values()

    def _step(self, step: Step, batch: Batch, controls: Controls, progress: Retraining) -> dict[str, float]:
        try:
            return step(batch, controls)
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                raise
            smaller = max(1, progress.history.settings["batch_size"] // 2)
            raise MemoryError(
                f"not enough memory for a batch of {len(batch.x)}: try `batch_size` {smaller}; the weights were reset to those "
                f"of {progress.last.title}"
            ) from error

    def _set_learning_rate(self, value: Any) -> None:
        # ART's TensorFlow convention is a callable that sets the rate itself and returns nothing.
        if value is not None:
            rate = non_negative("scheduler(epoch)", value)
            self._backend.learning_rate = rate

    def _validate(self, measuring: Step, options: Options, progress: Retraining) -> dict[str, float] | None:
        """Terms at full strength on validation data, always with the same noise, so that epochs compare.

        Weights of classes count over all the points, whatever their order.
        """
        if options.validation is None:
            return None
        x, labels = options.validation
        rng = np.random.default_rng([options.seed, 2])
        means, controls, by_class = _Means(), self._schedule.full(), self._objective.class_weights
        size = min(256, 2 * progress.history.settings["batch_size"])
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            batch = self._batch(LabelledBatch(x[part], labels[part]), rng)
            weight = len(batch.x) if by_class is None else float(np.asarray(by_class)[labels[part]].sum())
            values = self._step(measuring, batch, controls, progress)
            means.add(values, len(batch.x), dict.fromkeys(WEIGHTED_TERMS, weight))
        found = means.values()
        return {**found, "loss": combined(found, controls)}

    def _keep_best(self, progress: Retraining, record: Epoch, finished: Snapshot) -> None:
        """Keep the weights of the epoch with the lowest validation loss, once the schedule is at full strength."""
        history = progress.history
        if record.validation is not None and self._schedule.is_full(record.epoch / history.settings["nb_epochs"]):
            loss = record.validation["loss"]
            if loss < progress.best_loss:
                progress.best_loss, progress.stale = loss, 0
                progress.best_weights, history.best_epoch = finished.weights, record.epoch
            else:
                progress.stale += 1
            if not math.isfinite(loss):
                bad = ", ".join(f"{name} = {value}" for name, value in record.validation.items() if not math.isfinite(value))
                warnings.warn(f"epoch {record.epoch} cannot be the best one, its validation has {bad}", stacklevel=2)
        if progress.best_weights is None:
            history.best_epoch = record.epoch


def _digest(x: Array, labels: Array) -> str:
    """Tells data apart: their number, all labels, and some of the points."""
    crc = zlib.crc32(np.asarray(some_of(x, SHOWN_POINTS), np.float32).tobytes())
    return f"{len(x)} points, CRC-32 {zlib.crc32(np.asarray(labels, np.int64).tobytes(), crc):08x}"


def _callables(name: str, values: Any) -> tuple[Callback, ...]:
    for value in listed(name, values, "callables"):
        if not callable(value):
            raise TypeError(f"`{name}` must be callables, got {value!r} of type {type(value).__name__}")
    return tuple(values)


def _postfix(epoch: int, nb_epochs: int, controls: Controls, terms: Mapping[str, float]) -> dict[str, str]:
    shown = {"epoch": f"{epoch + 1}/{nb_epochs}", "eps": f"{controls.eps:.3g}"}
    for name, short in (("loss", "loss"), ("information", "nats"), ("accuracy", "acc"), ("certified_accuracy", "cert")):
        if name in terms:
            shown[short] = f"{terms[name]:.3f}"
    return shown
