"""The training loop that the tasks share: steps, gradient accumulation, AMP, EMA, evaluation, checkpoints, figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import paddle
from paddle import nn

from common import __version__
from common.checkpoint import (
    CheckpointFolder,
    load_optimizer_state,
    load_weights,
    numpy_state,
    optimizer_state,
)
from common.distributed import average_statistics, rank, sum_over_ranks, world_size
from common.ema import ModelEma
from common.errors import UserError
from common.sampler import ShardedTrainSampler
from common.training_log import TrainingLog

__all__ = ["StepResult", "TrainSettings", "Trainer"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        epochs: passes over the data.
        accum_iter: batches whose gradients make one optimizer step.
        grad_clip: limit of the gradients' global norm; 0 for none.
        amp: ``"float16"`` (with loss scaling), ``"bfloat16"``, or empty for float32.
        ema_decay: limit of the EMA's decay; 0 for no EMA.
        seed: every random number of a step is a function of it, the step and the rank.
        log_interval: optimizer steps between two lines.
        validate_epochs, save_epochs: epochs between two evaluations, and between two kept checkpoints.
    """

    epochs: int
    accum_iter: int = 1
    grad_clip: float = 0.0
    amp: str = ""
    ema_decay: float = 0.0
    seed: int = 0
    log_interval: int = 50
    validate_epochs: int = 1
    save_epochs: int = 1


@dataclass
class StepResult:
    """What the task's loss function returns.

    Attributes:
        loss: mean over the batch, a scalar tensor.
        samples, correct: counts for the training accuracy; ``correct`` is a scalar tensor.
        skipped: samples of the batch that could not be read and were replaced.
    """

    loss: paddle.Tensor
    samples: int
    correct: paddle.Tensor
    skipped: int = 0


class Trainer:
    """Trains a model on this rank, in step with the others.

    Args:
        model: the bare model, with its pretrained weights loaded.
        loss_function: ``(model, batch, rng) -> StepResult``; ``rng`` is a NumPy generator of this batch's own.
        loader: yields the batches that ``sampler`` chooses.
        learning_rate: optimizer step -> rate.
        evaluate: ``model -> figures``, on all ranks; ``figures[criterion]`` decides which weights are the best.
        metadata: plain values to keep in every checkpoint, such as the configuration and the class names.
    """

    def __init__(
        self,
        model: nn.Layer,
        loss_function: Callable[[nn.Layer, Any, np.random.Generator], StepResult],
        loader: paddle.io.DataLoader,
        sampler: ShardedTrainSampler,
        optimizer: paddle.optimizer.Optimizer,
        learning_rate: Callable[[int], float],
        evaluate: Callable[[nn.Layer], Mapping[str, float]],
        criterion: str,
        settings: TrainSettings,
        log: TrainingLog,
        checkpoints: CheckpointFolder,
        metadata: Mapping[str, Any],
    ):
        self.model, self.loss_function, self.loader, self.sampler = model, loss_function, loader, sampler
        self.optimizer, self.learning_rate, self.evaluate, self.criterion = (
            optimizer,
            learning_rate,
            evaluate,
            criterion,
        )
        self.settings, self.log, self.checkpoints, self.metadata = settings, log, checkpoints, dict(metadata)
        self.ema = ModelEma(model, settings.ema_decay) if settings.ema_decay else None
        self.scaler = paddle.amp.GradScaler(enable=settings.amp == "float16", init_loss_scaling=2.0**16)
        self.parallel = paddle.DataParallel(model) if world_size() > 1 else model
        self.epoch, self.step, self.best = 0, 0, {}
        self.steps_per_epoch = sampler.num_batches // settings.accum_iter
        self.total_steps = self.steps_per_epoch * settings.epochs

    # ---- state

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`resume` needs, as plain values and NumPy arrays."""
        state = {
            "model": numpy_state(self.model),
            "optimizer": optimizer_state(self.optimizer, self.model),
            "scaler": {k: v for k, v in self.scaler.state_dict().items() if isinstance(v, (int, float, bool))},
            "epoch": self.epoch,
            "step": self.step,
            "best": dict(self.best),
            **self._described(),
        }
        if self.ema:
            state |= {"model_ema": numpy_state(self.ema.model), "ema_updates": self.ema.updates}
        return state

    def _described(self) -> dict[str, Any]:
        versions = {"pale-transformer-paddle": __version__, "paddle": paddle.__version__, "numpy": np.__version__}
        return {**self.metadata, "versions": versions}

    def resume(self, state: Mapping[str, Any], source: str, last_epoch: int | None = None) -> None:
        """Continue after the last whole epoch of a saved state.

        Raises:
            UserError: the file is no training state, or is another model's.
        """
        if not {"model", "optimizer", "epoch", "step"} <= set(state):
            raise UserError(f"{source} holds weights, not a training state; resume from latest, or use -pretrained")
        load_weights(self.model, state["model"], source)
        if self.ema:
            load_weights(self.ema.model, state.get("model_ema", state["model"]), source)
            self.ema.updates = state.get("ema_updates", 0)
        load_optimizer_state(self.optimizer, self.model, state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.epoch = state["epoch"] if last_epoch is None else last_epoch
        self.step = self.epoch * self.steps_per_epoch
        self.best = dict(state["best"])

    # ---- loop

    def run(self) -> dict[str, float]:
        """Train to the last epoch and return the figures of the best evaluation."""
        with self.log.progress(self.total_steps, "train") as bar:
            bar.update(self.step)
            while self.epoch < self.settings.epochs:
                self._train_epoch(bar)
                self.epoch += 1
                last = self.epoch == self.settings.epochs
                average_statistics(self.model)
                if last or self.epoch % self.settings.validate_epochs == 0:
                    self._validate()
                state = self.state()
                self.checkpoints.save_latest(state)
                if last or self.epoch % self.settings.save_epochs == 0:
                    self.checkpoints.save_epoch(state, self.epoch)
        return self.best

    def _train_epoch(self, bar) -> None:
        self._interval, epoch_sum = _Interval(), _Interval()
        self.sampler.set_position(self.epoch)
        self.model.train()
        accum_iter = self.settings.accum_iter
        waited = time.perf_counter()
        for index, batch in enumerate(self.loader):
            data_time = time.perf_counter() - waited
            last = (index + 1) % accum_iter == 0
            result = self._backward(batch, index, synchronise=last)
            for interval in (self._interval, epoch_sum):
                interval.add(result, data_time)
            if last:
                self._update()
                bar.update(1)
                if self.step % self.settings.log_interval == 0:
                    self._report(self._interval, f"step {self.step}/{self.total_steps}", record=True)
                    self._interval = _Interval()
            waited = time.perf_counter()
        self._report(epoch_sum, f"epoch {self.epoch + 1}/{self.settings.epochs} train", record=False)

    def _backward(self, batch: Any, index: int, synchronise: bool) -> StepResult:
        """Forward and backward of one batch; ranks add up their gradients only with the last one of a step."""
        settings = self.settings
        seeds = [settings.seed, self.epoch, index, rank()]
        # Random numbers depend on the position in the run alone, so a resumed run draws the same ones.
        paddle.seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        rng = np.random.default_rng(seeds)
        local = nullcontext() if synchronise or world_size() == 1 else self.parallel.no_sync()
        with local:
            with paddle.amp.auto_cast(enable=bool(settings.amp), dtype=settings.amp or "float16"):
                result = self.loss_function(self.parallel, batch, rng)
            self.scaler.scale(result.loss / settings.accum_iter).backward()
        return result

    def _update(self) -> None:
        self.optimizer.set_lr(self.learning_rate(self.step))
        if self.settings.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.clear_grad()
        if self.ema:
            self.ema.update(self.model)
        self.step += 1

    def _report(self, interval: _Interval, head: str, record: bool) -> None:
        figures = interval.figures()
        if not math.isfinite(figures["loss"]):
            raise UserError(
                f"the loss is {figures['loss']} at step {self.step}; lower TRAIN.BASE_LR or train without -amp. "
                f"The last good checkpoint is {self.checkpoints.latest}"
            )
        rate = self.learning_rate(max(0, self.step - 1))
        batches_left = (self.total_steps - self.step) * self.settings.accum_iter
        eta = timedelta(seconds=round(batches_left * figures["seconds_per_batch"]))
        skipped = f"  {figures['skipped']} unreadable images replaced" if figures["skipped"] else ""
        self.log.line(
            f"{head}  loss {figures['loss']:.4f}  top-1 {figures['accuracy']:.2f} %  lr {rate:.2e}  "
            f"{figures['images_per_second']:.0f} images/s  data {figures['data_share']:.0f} %  ETA {eta}{skipped}"
        )
        if record:
            self.log.record("train", self.step, lr=rate, epoch=self.step / self.steps_per_epoch, **figures)

    def _validate(self) -> None:
        candidates = {"model": self.model} | ({"model_ema": self.ema.model} if self.ema else {})
        for name, candidate in candidates.items():
            began = time.perf_counter()
            figures = dict(self.evaluate(candidate))
            shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
            which = "EMA" if name == "model_ema" else "val"
            self.log.line(
                f"epoch {self.epoch}/{self.settings.epochs} {which}    {shown}  ({time.perf_counter() - began:.1f} s)"
            )
            self.log.record("val" if name == "model" else "val_ema", self.step, epoch=self.epoch, **figures)
            if figures[self.criterion] > self.best.get(self.criterion, -math.inf):
                self.best = {**figures, "epoch": self.epoch, "weights": name}
                self.checkpoints.save_best(
                    {"model": numpy_state(candidate), "figures": dict(self.best), **self._described()}
                )


class _Interval:
    """Running sums since its creation; tensors are read only when the figures are asked for."""

    def __init__(self):
        self.began = time.perf_counter()
        self.batches = self.samples = self.skipped = 0
        self.data_time = 0.0
        self.loss = self.correct = paddle.zeros([])

    def add(self, result: StepResult, data_time: float) -> None:
        self.loss = self.loss + result.loss.detach().astype("float32")
        self.correct = self.correct + result.correct.astype("float32")
        self.samples += result.samples
        self.skipped += result.skipped
        self.batches += 1
        self.data_time += data_time

    def figures(self) -> dict[str, float]:
        """Means over all ranks; a collective operation. ``data_share`` is this rank's percentage spent on waiting."""
        seconds = time.perf_counter() - self.began
        loss, correct, samples, batches, skipped = sum_over_ranks(
            [float(self.loss), float(self.correct), self.samples, self.batches, self.skipped]
        )
        return {
            "loss": loss / batches,
            "accuracy": 100.0 * correct / samples,
            "images_per_second": samples / seconds,
            "data_share": 100.0 * self.data_time / seconds,
            "seconds_per_batch": seconds / self.batches,
            "skipped": int(skipped),
        }
