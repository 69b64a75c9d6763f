"""The training loop of all tasks: steps, gradient accumulation, AMP, EMA, validation and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..checkpoints.loading import deployed_state
from ..errors import StoppedBySignal, UserError
from ..runtime.distributed import gather_rows, gather_scalars, rank, wait_for_all_ranks, world_size
from ..runtime.signals import StopRequest
from ..runtime.verbosity import is_verbose
from .batch_norm import average_statistics, get_statistics, set_statistics
from .log import Position
from .log_format import counted, duration, labeled, metric_columns, number, progress_line
from .optimizer import clip_gradients
from .run_folder import RunFolder
from .running_means import RunningMeans
from .state import TrainingState
from .sync_batch_norm import synchronize_batch_norm
from .task import BatchResult, Task, Training

__all__ = ["Trainer"]

_NOT_SHOWN = ("images_per_second", "data_share", "seconds_per_batch", "skipped")  # or in columns of their own
_MUCH_WAITING = 25  # percent of the time that a rank waits for data
_ESTIMATED_AFTER = 4  # steps
_MAX_OVERFLOWS = 30  # consecutive steps that loss scaling may skip; the scale has fallen by 2**30 then


class Trainer:
    """Trains a task's model on this rank, in step with the other ranks.

    Args:
        task: its configuration says how to train, see ``TRAIN`` and what follows it in
            :func:`common.training.config.shared_config`.
        training: the model with its pretrained weights loaded, the data and the optimizer.
        folder: where to save; claimed.

    Attributes:
        state: what changes during the run, and is saved.
    """

    def __init__(self, task: Task, training: Training, folder: RunFolder):
        self.task, self.training, self.folder = task, training, folder
        self.config, self.log = task.config, task.log
        self.model, self.sampler = training.model, training.sampler
        wait_for_all_ranks()  # one may have taken long to load weights
        if self.config.TRAIN.SYNC_BN:
            synchronize_batch_norm(self.model)
        # DataParallel copies rank 0's weights to all ranks, so it comes before the state's average of the weights.
        self.parallel_model = _parallel(self.model, training.find_unused_parameters) if world_size() > 1 else self.model
        self.state = TrainingState(task, training)

        self.accum_iter: int = self.config.TRAIN.ACCUM_ITER
        self.total_steps, self.steps_per_epoch = training.total_steps, self.sampler.steps_per_epoch
        self._steps_per_unit = self.steps_per_epoch if task.unit == "epoch" else 1
        self._validate_every = self.config.VALIDATE_EVERY * self._steps_per_unit
        self._checkpoint_every = self.config.CHECKPOINT_EVERY * self._steps_per_unit
        self._overflows = self._stop_signal = self._measured_steps = 0
        self._grad_norm = self._first_step_ended = math.nan
        self._unread_flags: tuple[int, paddle.Tensor] | None = None  # the last step, and its flags
        self._reads_late = paddle.get_device() != "cpu"  # where nothing is queued

    @property
    def progress(self) -> str:
        """The part of the run that is done, such as ``epoch 3/16``."""
        return f"{self.task.unit} {self.state.step // self._steps_per_unit}/{self.total_steps // self._steps_per_unit}"

    @property
    def stops_early(self) -> bool:
        """Whether ``TRAIN.EARLY_STOP`` validations in a row were not better; equal on all ranks, as the metrics are."""
        return 0 < self.config.TRAIN.EARLY_STOP <= self.state.validations_since_best

    @property
    def position(self) -> Position:
        """How far the run has come."""
        state = self.state
        return Position(state.step, self.steps_per_epoch, is_validated=state.step == state.last_saved_step)

    # ---- the loop

    def run(self) -> dict[str, Any]:
        """Train to the last step or an early stop, and return the metrics of the best validation.

        Raises:
            StoppedBySignal: SIGTERM, SIGINT or SIGHUP arrived; ``latest`` contains the present state.
            UserError: too many consecutive losses or gradients were not finite, or a file could not be read or written.
        """
        with (
            StopRequest() as self._stop_request,
            self.log.progress(self.total_steps, "train", lines=False) as self._bar,
        ):
            self._bar.update(self.state.step)
            self._validate_and_save()  # due if the run was interrupted between a step and its validation
            while self.state.step < self.total_steps and not self.stops_early:
                self._train_until_due()
                self._validate_and_save()
        return self.state.best

    def _train_until_due(self) -> None:
        """Train until the epoch ends or a validation or a checkpoint is due.

        The loader reads no further: the processes that read images for a validation can hang if they are forked while
        a thread of another loader holds a lock.
        """
        step, accum_iter = self.state.step, self.accum_iter
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        steps = min(
            self.steps_per_epoch - step_of_epoch,
            self.total_steps - step,
            self._validate_every - step % self._validate_every,
            self._checkpoint_every - step % self._checkpoint_every,
        )
        first = step_of_epoch * accum_iter
        self.sampler.set_range(epoch, first, first + steps * accum_iter)
        self.model.train()
        interval_means, epoch_means = RunningMeans(), RunningMeans()
        losses: list[paddle.Tensor] = []
        bn_statistics = None
        waiting_since = time.perf_counter()
        for index, batch in enumerate(self.training.loader, start=first):
            data_time = time.perf_counter() - waiting_since
            if index == first:
                wait_for_all_ranks()  # one may have taken long to start its readers
                self._log_samples(batch)
            if not losses and self.config.TRAIN.SKIP_NONFINITE:
                bn_statistics = get_statistics(self.model)
            ends_step = (index + 1) % accum_iter == 0
            result = self._forward_backward(batch, epoch, index, synchronize=ends_step)
            losses.append(result.loss.detach())
            for means in (interval_means, epoch_means):
                means.add(result, data_time)
            if ends_step:
                self._optimizer_step(losses, bn_statistics)
                losses = []
                self.state.step += 1
                self._bar.update(1)
                if index + 1 == first + steps * accum_iter:
                    self._read_flags()
                ends_epoch = self.task.unit == "epoch" and index + 1 == self.sampler.num_batches
                if self.state.step % self.config.LOG_INTERVAL == 0:
                    self._log_train(interval_means, record=True, show=not ends_epoch)
                    interval_means = RunningMeans()
                if ends_epoch:
                    self._log_train(epoch_means, record=False, show=True)
                self._estimate_duration()
                self._save_latest_if_due()
            waiting_since = time.perf_counter()

    # ---- a step

    def _forward_backward(self, batch: Any, epoch: int, index: int, synchronize: bool) -> BatchResult:
        """Forward and backward pass of one batch.

        Args:
            synchronize: average the gradients over the ranks; true for the last batch of a step.
        """
        seeds = [self.config.SEED, epoch, index, rank()]
        # Random numbers depend only on the position in the run, so a resumed run draws the same ones.
        paddle.seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        rng = np.random.default_rng(seeds)
        amp = self.config.TRAIN.AMP
        gradient_sync = nullcontext() if synchronize or world_size() == 1 else self.parallel_model.no_sync()
        with gradient_sync:
            with paddle.amp.auto_cast(enable=bool(amp), dtype=amp or "float16"):
                result = self.training.compute_loss(self.parallel_model, batch, rng)
            self.state.scaler.scale(result.loss / self.accum_iter).backward()
        return result

    def _optimizer_step(self, losses: list[paddle.Tensor], bn_statistics: np.ndarray | None) -> None:
        """Update the weights, unless the loss or the gradient is not finite.

        The ranks agree on this and on stopping, so all stop at the same step. Where a step may be skipped, the host
        reads the flags of this step, and waits for the GPU, before the update. Otherwise, a GPU has more work when its
        flags are read: at the next step. A step that is not finite then ends the run, before its weights are validated
        or saved.

        Args:
            losses: of the batches of this step.
            bn_statistics: those of BatchNorm from before the step, to restore if it is skipped.
        """
        state, config = self.state, self.config
        optimizer, scaler = state.optimizer, state.scaler
        optimizer.set_lr(self.training.learning_rate(state.step))
        scaler.unscale_(optimizer)
        norm = clip_gradients(self.model.parameters(), config.TRAIN.GRAD_CLIP)
        if config.HISTOGRAMS and self._is_due(state.step + 1, self._validate_every):
            self._log_histograms()
        signal = paddle.full([], float(self._stop_request.signal_number))
        flags = gather_scalars([paddle.isfinite(sum(losses)).astype("float32"), signal, norm])
        self._read_flags()
        self._unread_flags = state.step + 1, flags
        may_be_skipped = scaler.is_enable() or config.TRAIN.SKIP_NONFINITE
        if may_be_skipped and not self._read_flags():
            if bn_statistics is not None:
                set_statistics(self.model, bn_statistics)  # BatchNorm has seen what is not finite
        else:
            scaler.step(optimizer)  # skips gradients that overflow, which is usual with loss scaling
            if state.ema and not self._overflows:
                state.ema.update(self.model)
        scaler.update()
        optimizer.clear_grad(set_to_zero=False)
        if not self._reads_late:
            self._read_flags()

    def _read_flags(self) -> bool:
        """Read the flags of the last step, if they are unread; waits for the device to compute them.

        They are, of each rank, whether its loss is finite, the signal that it got, and the norm of the gradients.

        Returns:
            False if the step is to be skipped; True if the scaler does that, because gradients overflow.

        Raises:
            UserError: see :meth:`_skip_or_stop`.
        """
        if self._unread_flags is None:
            return True
        (step, flags), self._unread_flags = self._unread_flags, None
        finite, signals, norms = flags.numpy().T
        self._stop_signal, self._grad_norm = int(signals.max()), float(norms.max())
        if finite.all() and math.isfinite(self._grad_norm):
            self.state.nonfinite_steps = self._overflows = 0
        elif finite.all() and self.state.scaler.is_enable() and self._overflows < _MAX_OVERFLOWS:
            self._overflows += 1  # usual with loss scaling: the scaler skips the step and lowers its scale
        else:
            self._skip_or_stop(step, np.flatnonzero(finite == 0))
            return False
        return True

    def _skip_or_stop(self, step: int, ranks: np.ndarray) -> None:
        """Count a step that is not finite.

        Args:
            step: its number, from 1.
            ranks: those whose loss is not finite; none if it is the gradient.

        Raises:
            UserError: there were more in a row than ``TRAIN.SKIP_NONFINITE``.
        """
        self.state.nonfinite_steps += 1
        allowed = self.config.TRAIN.SKIP_NONFINITE
        where = f"the loss on rank {', '.join(map(str, ranks))}" if len(ranks) else "the gradient"
        message = f"{where} is not finite at step {step}"
        if self.state.nonfinite_steps > allowed:
            good = self.folder.latest if self.folder.latest.exists() else "none"
            raise UserError(
                f"{message}; lower the learning rate, train without -amp, or skip such steps with "
                f"TRAIN.SKIP_NONFINITE. Last good checkpoint: {good}"
            )
        self.log.line(f"warning: {message}: step skipped ({self.state.nonfinite_steps} of {allowed} in a row)")

    # ---- validation and checkpoints

    def _is_due(self, step: int, every: int) -> bool:
        return step == self.total_steps or step % every == 0

    def _validate_and_save(self) -> None:
        """Validate and write the checkpoints that are due after this step; stop if a signal has arrived."""
        state, step = self.state, self.state.step
        validation_due, checkpoint_due = (
            self._is_due(step, self._validate_every),
            self._is_due(step, self._checkpoint_every),
        )
        if step == state.last_saved_step or not (validation_due or checkpoint_due or step % self.steps_per_epoch == 0):
            return
        if validation_due:
            self.folder.save_latest(state.as_dict())  # the job may be killed during the validation
            for model in state.models():
                average_statistics(model)
            self._validate()
        state.last_saved_step = step
        if checkpoint_due:
            self.folder.save_numbered(state.as_dict(), step // self._steps_per_unit)
        else:
            self.folder.save_latest(state.as_dict())
        if step < self.total_steps:
            self._stop_if_signaled(int(gather_rows([self._stop_request.signal_number]).max()))

    def _validate(self) -> None:
        """Evaluate the weights and their average, log the metrics, and save the better ones, and the best so far."""
        state = self.state
        last: dict[str, Any] = {}
        last_model = None
        candidates = [("model", "val", "val", self.model)]
        if state.ema:
            candidates.append(("model_ema", "val_ema", "EMA", state.ema.model))
        for weights, kind, title, model in candidates:
            began = time.perf_counter()
            is_final = state.step == self.total_steps
            metrics, details, _ = self.training.evaluator.evaluate(model, kind, state.step, is_final)
            names = metrics if is_verbose() else (name for name in self.task.shown_metrics if name in metrics)
            shown = {name: metrics[name] for name in names}
            columns = [metric_columns(shown, 2), f"({time.perf_counter() - began:.1f} s)"]
            if skipped := metrics.get("skipped"):
                columns.append(f"{counted(int(skipped), 'unreadable image')} left out")
            self.log.line(self._line("  ".join(columns), title))
            if details:
                self.log.line(details)
            self._record(kind, metrics)
            figures = {**metrics, "at": self.progress, "weights": weights}
            if self._score(figures) >= self._score(last):
                last, last_model = figures, model
        state.validations_since_best += 1
        if last_model is None:  # no metric was finite
            return
        if self._score(last) > self._score(state.best):
            state.validations_since_best = 0
        saved = {"model": deployed_state(last_model), "figures": last, **state.metadata}
        self.folder.save_last(saved)
        if self._score(last) >= self._score(state.best):
            state.best = last
            self.folder.save_best(saved)

    def _score(self, figures: Mapping[str, Any]) -> tuple[float, float]:
        """Of two validations the one with the higher score is better, of equal ones the later."""
        return figures.get(self.task.criterion, -math.inf), -figures.get("loss", 0.0)

    def _save_latest_if_due(self) -> None:
        """Save ``latest`` inside an epoch; stop if a signal has arrived."""
        every = self.config.LATEST_EVERY
        if self._stop_signal or (every and self.state.step % every == 0):
            self._read_flags()  # of the step that is saved
            self.folder.save_latest(self.state.as_dict())
        self._stop_if_signaled(self._stop_signal)

    def _stop_if_signaled(self, signal_number: int) -> None:
        """Raise StoppedBySignal if a signal has arrived; the state is saved."""
        if signal_number:
            self.log.result(f"saved step {self.state.step} as {self.folder.latest}")
            self.log.close()
            raise StoppedBySignal(signal_number)

    # ---- the log

    def _line(self, text: str, word: str = "") -> str:
        """A line of the log: of this step, or of the epoch up to it if there is a word for that."""
        step, steps = self.state.step, self._steps_per_unit
        reached = -(-step // steps)
        part = word or (step - (reached - 1) * steps if steps > 1 else "train")
        return progress_line(self.task.unit, reached, self.total_steps // steps, part, steps, text)

    def _log_train(self, means: RunningMeans, record: bool, show: bool) -> None:
        """Log means of an interval, to be recorded, or of an epoch; ``compute`` is a collective operation."""
        metrics = means.compute()
        rate = self.training.learning_rate(max(0, self.state.step - 1))
        if show:
            left = (self.total_steps - self.state.step) * self.accum_iter * metrics["seconds_per_batch"]
            shown = {
                name: value
                for name, value in metrics.items()
                if name not in _NOT_SHOWN and (is_verbose() or not name.startswith("loss_"))
            }
            speed = metrics["images_per_second"]
            columns = [
                metric_columns(shown, 1),
                f"lr {number(rate):<6}",
                f"{speed:{'5.0f' if speed >= 99.95 else '#5.3g'}} img/s",
                f"ETA {duration(left)}",
            ]
            if metrics["data_share"] >= _MUCH_WAITING or is_verbose():
                columns.append(f"data wait {metrics['data_share']:.0f} %")
            if metrics["skipped"]:
                columns.append(f"{counted(int(metrics['skipped']), 'unreadable image')} replaced")
            self.log.line(self._line("  ".join(columns), "" if record else "train"))
        if record:
            self._read_flags()
            norm = {"grad_norm": self._grad_norm} if math.isfinite(self._grad_norm) else {}
            self._record("train", {"lr": rate, **norm, **metrics})

    def _estimate_duration(self) -> None:
        """Print how long the training will take as soon as that is known; the first step is slower than others."""
        now, self._measured_steps = time.perf_counter(), self._measured_steps + 1
        if self._measured_steps == 1:
            self._first_step_ended = now
        elif self._measured_steps == _ESTIMATED_AFTER and (steps := self.total_steps - self.state.step):
            seconds = (now - self._first_step_ended) / (_ESTIMATED_AFTER - 1)
            self.log.line(labeled("time", f"about {duration(seconds * steps)} for the {steps:,} steps left"))

    def _record(self, kind: str, metrics: Mapping[str, float]) -> None:
        epoch = {"epoch": self.state.step / self.steps_per_epoch} if self.task.unit == "epoch" else {}
        self.log.record(kind, self.state.step, **epoch, **metrics)

    def _log_samples(self, batch: Any) -> None:
        """Log the first images of a batch after augmentation."""
        picture = self.training.draw_samples(batch) if self.log.has_visualdl else None
        if picture is not None:
            self.log.picture("train/samples", self.state.step, picture)

    def _log_histograms(self) -> None:
        """Log the weights before this step, and its clipped gradients."""
        for name, parameter in self.model.named_parameters():
            if self.log.has_visualdl and parameter.grad is not None:
                for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
                    values = tensor.astype("float32").numpy()
                    if np.isfinite(values).all():
                        self.log.histogram(f"{kind}/{name}", self.state.step + 1, values)


def _parallel(model: nn.Layer, find_unused_parameters: bool) -> paddle.DataParallel:
    """Wrap the model so that its gradients are averaged over the ranks.

    On GPUs, a small last bucket of gradients (Paddle's default is 1 MB) is sent while the backward pass still runs.
    Gloo does not overlap the two, so on CPUs every bucket costs another synchronization.
    """
    buckets = {"last_comm_buffer_size": 25} if paddle.get_device() == "cpu" else {}  # MB, like the other buckets
    return paddle.DataParallel(model, find_unused_parameters=find_unused_parameters, **buckets)
