"""The training loop that the tasks share: steps, gradient accumulation, AMP, EMA, evaluation, checkpoints, figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn

from .. import __version__
from ..checkpoints.loading import deployed_state, load_weights, numpy_state
from ..errors import StoppedBySignal, UserError
from ..runtime.distributed import (
    average_statistics,
    gather_rows,
    gather_statistics,
    get_statistics,
    rank,
    set_statistics,
    sum_over_ranks,
    world_size,
)
from ..runtime.signals import StopRequest
from .checkpoints import CheckpointFolder, load_optimizer_state, optimizer_state
from .ema import ModelEma
from .log import TrainingLog
from .optimizer import clip_gradients
from .sampler import TrainSampler

__all__ = ["Evaluation", "StepResult", "TrainSettings", "Trainer"]


_FACTORS_OF_A_STEP = ("batch size", "ranks", "accumulated batches")
_MAX_OVERFLOWS = 30  # steps in a row that loss scaling may leave out; by then the scale has fallen by a factor 2**30


@dataclass(frozen=True)
class TrainSettings:
    """How to train; steps are optimizer steps.

    Attributes:
        total_steps: length of the run.
        validate_steps, keep_steps: steps between two evaluations, and between two kept checkpoints.
        unit: what lines and checkpoints count: ``"epoch"`` or ``"step"``.
        accum_iter: batches whose gradients make one step.
        grad_clip: limit of the gradients' global norm; 0 for none.
        amp: ``"float16"`` (with loss scaling), ``"bfloat16"``, or empty for float32.
        ema_decay: limit of the EMA's decay; 0 for no EMA.
        seed: every random number of a step is a function of it, the step and the rank.
        log_interval: steps between two lines.
        save_steps: steps between two writes of ``latest``, which is also written after every epoch and evaluation.
        skip_nonfinite: steps in a row whose loss or gradient may be NaN or infinite; they are left out.
        histograms: log those of weights and gradients in the last step before each evaluation.
    """

    total_steps: int
    validate_steps: int
    keep_steps: int
    unit: str = "epoch"
    accum_iter: int = 1
    grad_clip: float = 0.0
    amp: str = ""
    ema_decay: float = 0.0
    seed: int = 0
    log_interval: int = 50
    save_steps: int = 0
    skip_nonfinite: int = 0
    histograms: bool = False


@dataclass
class StepResult:
    """What the task's loss function returns.

    Attributes:
        loss: mean over the batch, a scalar tensor.
        samples: size of the batch.
        figures: further means over the batch to show beside the loss, scalar tensors.
        skipped: samples of the batch that could not be read and were replaced.
    """

    loss: paddle.Tensor
    samples: int
    figures: Mapping[str, paddle.Tensor] = field(default_factory=dict)
    skipped: int = 0


class Evaluation(NamedTuple):
    """What the task's evaluation returns.

    Attributes:
        figures: for the log.
        details: lines to print below them, or empty.
    """

    figures: Mapping[str, float]
    details: str = ""


class Trainer:
    """Trains a model on this rank, in step with the others.

    Args:
        model: the bare model, with its pretrained weights loaded.
        loss_function: ``(model, batch, rng) -> StepResult``; ``rng`` is a NumPy generator of this batch's own.
        loader: yields the batches that ``sampler`` chooses.
        learning_rate: optimizer step -> rate.
        evaluate: ``(model, kind) -> Evaluation``, on all ranks; ``kind`` is ``val`` or ``val_ema``, and
            ``figures[criterion]`` decides which weights are the best.
        metadata: plain values to keep in every checkpoint, such as the configuration and the class names.
        find_unused: some batches may leave parameters without gradients, which the ranks then have to tell each other.
        draw_samples: a batch of the loader -> RGB uint8 picture of some of it, for the log; ``None`` for no picture.
    """

    def __init__(
        self,
        model: nn.Layer,
        loss_function: Callable[[nn.Layer, Any, np.random.Generator], StepResult],
        loader: paddle.io.DataLoader,
        sampler: TrainSampler,
        optimizer: paddle.optimizer.Optimizer,
        learning_rate: Callable[[int], float],
        evaluate: Callable[[nn.Layer, str], Evaluation],
        criterion: str,
        settings: TrainSettings,
        log: TrainingLog,
        checkpoints: CheckpointFolder,
        metadata: Mapping[str, Any],
        find_unused: bool = False,
        draw_samples: Callable[[Any], np.ndarray | None] = lambda batch: None,
    ):
        self.model, self.loss_function, self.loader, self.sampler = model, loss_function, loader, sampler
        self.optimizer, self.learning_rate, self.evaluate, self.criterion = (
            optimizer,
            learning_rate,
            evaluate,
            criterion,
        )
        self.settings, self.log, self.checkpoints, self.metadata = settings, log, checkpoints, dict(metadata)
        self.draw_samples = draw_samples
        self.scaler = paddle.amp.GradScaler(enable=settings.amp == "float16", init_loss_scaling=2.0**16)
        self.parallel = _parallel(model, find_unused) if world_size() > 1 else model
        self.ema = ModelEma(model, settings.ema_decay) if settings.ema_decay else None
        self.steps_per_epoch = sampler.num_batches // settings.accum_iter
        self.step = 0  # optimizer steps behind us
        self.best: dict[str, Any] = {}
        self._settled = 0  # the last step whose evaluation and checkpoint are behind us
        self._nonfinite = self._overflows = 0
        self._grad_norm = math.nan

    @property
    def progress(self) -> str:
        """What is behind us, such as ``epoch 3/16``."""
        each = self.steps_per_epoch if self.settings.unit == "epoch" else 1
        return f"{self.settings.unit} {self.step // each}/{self.settings.total_steps // each}"

    # ---- state

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`resume` needs, as plain values and NumPy arrays; a collective operation.

        There are no random states in it: every random number is a function of the position in the run.
        """
        state = {
            "model": numpy_state(self.model),
            "optimizer": optimizer_state(self.optimizer, self.model),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "settled": self._settled,
            "nonfinite": self._nonfinite,
            "best": dict(self.best),
            "conditions": self._conditions(),
            **self._described(),
        }
        if self.ema:
            state |= {"model_ema": numpy_state(self.ema.model), "ema_updates": self.ema.updates}
        if world_size() > 1:
            state["rank_statistics"] = [gather_statistics(model) for model in self._models()]
        return state

    def _models(self) -> list[nn.Layer]:
        return [self.model, self.ema.model] if self.ema else [self.model]

    def _conditions(self) -> dict[str, Any]:
        """What has to be the same for a resumed run to be bitwise the undisturbed one."""
        return {
            "length of the run": self.settings.total_steps,
            "ranks": world_size(),
            "batch size": self.sampler.batch_size,
            "accumulated batches": self.settings.accum_iter,
            "seed": self.settings.seed,
            "images": self.sampler.num_samples,
            "repeats": self.sampler.repeats,
            "Paddle": paddle.__version__,
        }

    def _described(self) -> dict[str, Any]:
        versions = {"pale-transformer-paddle": __version__, "paddle": paddle.__version__, "numpy": np.__version__}
        return {**self.metadata, "versions": versions}

    def resume(self, state: Mapping[str, Any], source: str, last_epoch: int | None = None) -> list[str]:
        """Continue where a saved state left off, in the middle of an epoch if need be.

        Args:
            state: what :meth:`state` gave.
            source: where it comes from, for messages.
            last_epoch: continue after this epoch instead.

        Returns:
            What keeps the rest of the run from being bitwise the one that was interrupted; empty if nothing does.

        Raises:
            UserError: the file is no training state, or is another model's; the trainer must not be used then.
        """
        kinds: dict[str, type] = dict.fromkeys(("model", "optimizer", "conditions", "best"), dict)
        kinds |= dict.fromkeys(("step", "steps_per_epoch", "settled"), int)
        if not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
            raise UserError(f"{source} holds weights, not a training state; resume from latest, or use -pretrained")
        inexact = [
            f"{name}: {state['conditions'].get(name)} then, {value} now"
            for name, value in self._conditions().items()
            if state["conditions"].get(name) != value
        ]
        report = load_weights(self.model, state["model"], source)
        if report.interpolated:
            raise UserError(
                f"{source} has positions of another size, {report.interpolated[0]}; resume with the image size and the "
                "attention that it had"
            )
        if report.left_out:
            raise UserError(
                f"{source} was trained with token labels ({', '.join(report.left_out)}), which this run has not; "
                "resume with their -label_maps"
            )
        if self.ema:
            if "model_ema" not in state:
                inexact.append("EMA: none then, it starts from the present weights")
            load_weights(self.ema.model, state.get("model_ema", state["model"]), source)
            self.ema.updates = state.get("ema_updates", 0)
        for model, rows in zip(self._models(), state.get("rank_statistics", ()), strict=False):
            set_statistics(model, rows[rank()] if len(rows) == world_size() else rows.mean(0))
        load_optimizer_state(self.optimizer, self.model, state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.step = self._same_position(state) if last_epoch is None else last_epoch * self.steps_per_epoch
        self._settled = self.step if last_epoch is not None or state["settled"] == state["step"] else 0
        self._nonfinite = state.get("nonfinite", 0)
        self.best = dict(state["best"])
        return inexact

    def _same_position(self, state: Mapping[str, Any]) -> int:
        """The step at which as much of the run is behind us as in the state.

        In a run of epochs, that is as many images of the same epoch, whatever the batch and the number of ranks.
        """
        if self.settings.unit == "step":
            return state["step"]
        then, now = state["conditions"], self._conditions()
        epoch, steps = divmod(state["step"], state["steps_per_epoch"])
        images = steps * math.prod(then[factor] for factor in _FACTORS_OF_A_STEP)
        steps = images // math.prod(now[factor] for factor in _FACTORS_OF_A_STEP)
        return epoch * self.steps_per_epoch + min(steps, self.steps_per_epoch)

    # ---- loop

    def run(self) -> dict[str, float]:
        """Train to the last step and return the figures of the best evaluation.

        Raises:
            StoppedBySignal: SIGTERM or SIGINT arrived; ``latest`` has the present state.
            UserError: the loss or the gradient was not finite once too often, or a file could not be read or written.
        """
        with StopRequest() as self._stop, self.log.progress(self.settings.total_steps, "train", lines=False) as bar:
            bar.update(self.step)
            self._settle()  # a run that was interrupted between training and evaluation makes up for it
            while self.step < self.settings.total_steps:
                self._train_until_due(bar)
                self._settle()
        return self.best

    def _settle(self) -> None:
        """Evaluate, and write the checkpoints, where they are due."""
        settings, step = self.settings, self.step
        last = step == settings.total_steps
        validate, keep = self._is_due(step, settings.validate_steps), self._is_due(step, settings.keep_steps)
        if step == self._settled or not (validate or keep or step % self.steps_per_epoch == 0):
            return
        if validate:
            self.checkpoints.save_latest(self.state())  # an evaluation may take longer than a scheduler waits
            for model in self._models():
                average_statistics(model)
            self._validate()
        self._settled = step
        state = self.state()
        self.checkpoints.save_latest(state)
        if keep:
            self.checkpoints.save_numbered(state, step // (self.steps_per_epoch if settings.unit == "epoch" else 1))
        if not last:
            self._leave_if(int(gather_rows([self._stop.signal_number]).max()))

    def _is_due(self, step: int, every: int) -> bool:
        """Whether something that is done after every so many steps, and at the end, is done after this one."""
        return step == self.settings.total_steps or step % every == 0

    def _leave_if(self, stop: int) -> None:
        """Leave, after the state was saved, if a signal number is given."""
        if stop:
            self.log.line(f"saved step {self.step} as {self.checkpoints.latest}; go on with -resume auto")
            self.log.close()
            raise StoppedBySignal(stop)

    def _train_until_due(self, bar) -> None:
        """Train to the end of the epoch, or to the step at which something is due.

        The loader reads no further: the processes that an evaluation starts to read its images can hang if they are
        forked while a thread of another loader holds a lock.
        """
        settings = self.settings
        interval, epoch_sum = _Interval(), _Interval()
        epoch, steps = divmod(self.step, self.steps_per_epoch)
        first = steps * settings.accum_iter
        due = (every - self.step % every for every in (settings.validate_steps, settings.keep_steps))
        left = min(*due, settings.total_steps - self.step, self.steps_per_epoch - steps)
        self.sampler.set_range(epoch, first, first + left * settings.accum_iter)
        self.model.train()
        losses: list[paddle.Tensor] = []
        statistics = None
        waited = time.perf_counter()
        for index, batch in enumerate(self.loader, start=first):
            data_time = time.perf_counter() - waited
            last = (index + 1) % settings.accum_iter == 0
            if settings.skip_nonfinite and not losses:
                statistics = get_statistics(self.model)
            if index == first:
                self._log_samples(batch)
            result = self._backward(batch, epoch, index, synchronise=last)
            losses.append(result.loss.detach())
            for sums in (interval, epoch_sum):
                sums.add(result, data_time)
            if last:
                stop = self._update(losses, statistics)
                losses = []
                self.step += 1
                bar.update(1)
                if self.step % settings.log_interval == 0:
                    self._report(interval, f"step {self.step}/{settings.total_steps}", record=True)
                    interval = _Interval()
                if settings.unit == "epoch" and index + 1 == self.sampler.num_batches:
                    self._report(epoch_sum, f"{self.progress} train", record=False)
                if stop or (settings.save_steps and self.step % settings.save_steps == 0):
                    self.checkpoints.save_latest(self.state())
                self._leave_if(stop)
            waited = time.perf_counter()

    def _log_samples(self, batch: Any) -> None:
        """Show what augmentation has made of the first images of an interval."""
        picture = self.draw_samples(batch) if self.log.has_visualdl else None
        if picture is not None:
            self.log.picture("train/samples", self.step, picture)

    def _backward(self, batch: Any, epoch: int, index: int, synchronise: bool) -> StepResult:
        """Forward and backward of one batch; ranks add up their gradients only with the last one of a step."""
        settings = self.settings
        seeds = [settings.seed, epoch, index, rank()]
        # Random numbers depend on the position in the run alone, so a resumed run draws the same ones.
        paddle.seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        rng = np.random.default_rng(seeds)
        local = nullcontext() if synchronise or world_size() == 1 else self.parallel.no_sync()
        with local:
            with paddle.amp.auto_cast(enable=bool(settings.amp), dtype=settings.amp or "float16"):
                result = self.loss_function(self.parallel, batch, rng)
            self.scaler.scale(result.loss / settings.accum_iter).backward()
        return result

    def _update(self, losses: list[paddle.Tensor], statistics: np.ndarray | None) -> int:
        """Make one optimizer step, unless something is not finite; return the signal that asks to stop, or 0.

        The ranks agree on both before anyone changes its weights, so all stop at the same step.
        """
        self.optimizer.set_lr(self.learning_rate(self.step))
        self.scaler.unscale_(self.optimizer)
        norm = self._grad_norm = clip_gradients(self.model.parameters(), self.settings.grad_clip)
        if self.settings.histograms and self._is_due(self.step + 1, self.settings.validate_steps):
            self._log_histograms()
        flags = gather_rows([math.isfinite(float(sum(losses))), self._stop.signal_number])
        # The gradients are the same on all ranks.
        if flags[:, 0].all() and math.isfinite(norm):
            self.scaler.step(self.optimizer)
            self._nonfinite = self._overflows = 0
            if self.ema:
                self.ema.update(self.model)
        elif flags[:, 0].all() and self.scaler.is_enable() and self._overflows < _MAX_OVERFLOWS:
            self._overflows += 1  # usual with loss scaling: the scaler leaves the step out and lowers its scale
            self.scaler.step(self.optimizer)
        else:
            self._count_nonfinite(np.flatnonzero(flags[:, 0] == 0))
            if statistics is not None:
                set_statistics(self.model, statistics)  # what is not finite has gone into BatchNorm's, too
        self.scaler.update()
        self.optimizer.clear_grad()
        return int(flags[:, 1].max())

    def _log_histograms(self) -> None:
        """The weights before this step, and the gradients that it takes, clipped."""
        for name, parameter in self.model.named_parameters():
            if self.log.has_visualdl and parameter.grad is not None:
                for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
                    values = tensor.astype("float32").numpy()
                    if np.isfinite(values).all():
                        self.log.histogram(f"{kind}/{name}", self.step + 1, values)

    def _count_nonfinite(self, ranks: np.ndarray) -> None:
        self._nonfinite += 1
        where = f"the loss on rank {', '.join(map(str, ranks))}" if len(ranks) else "the gradient"
        message = f"{where} is not finite at step {self.step + 1}"
        if self._nonfinite > self.settings.skip_nonfinite:
            good = self.checkpoints.latest if self.checkpoints.latest.exists() else "none"
            raise UserError(
                f"{message}; lower the learning rate, train without -amp, or tolerate some with TRAIN.SKIP_NONFINITE. "
                f"Last good checkpoint: {good}"
            )
        self.log.line(f"{message}: left out ({self._nonfinite} of {self.settings.skip_nonfinite} in a row)")

    def _report(self, interval: _Interval, head: str, record: bool) -> None:
        figures = interval.figures()
        rate = self.learning_rate(max(0, self.step - 1))
        batches_left = (self.settings.total_steps - self.step) * self.settings.accum_iter
        eta = timedelta(seconds=round(batches_left * figures["seconds_per_batch"]))
        skipped = f"  {figures['skipped']} unreadable images replaced" if figures["skipped"] else ""
        shown = "  ".join(f"{name} {figures[name]:.4g}" for name in ("loss", *interval.sums))
        self.log.line(
            f"{head}  {shown}  lr {rate:.2e}  "
            f"{figures['images_per_second']:.3g} images/s  data {figures['data_share']:.0f} %  ETA {eta}{skipped}"
        )
        if record:
            norm = {"grad_norm": self._grad_norm} if math.isfinite(self._grad_norm) else {}
            self._record("train", {"lr": rate, **norm, **figures})

    def _record(self, kind: str, figures: Mapping[str, float]) -> None:
        epoch = {"epoch": self.step / self.steps_per_epoch} if self.settings.unit == "epoch" else {}
        self.log.record(kind, self.step, **epoch, **figures)

    def _validate(self) -> None:
        candidates = {"model": self.model} | ({"model_ema": self.ema.model} if self.ema else {})
        for name, candidate in candidates.items():
            kind = "val" if name == "model" else "val_ema"
            began = time.perf_counter()
            evaluation = self.evaluate(candidate, kind)
            figures = dict(evaluation.figures)
            shown = "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
            )
            which = "val" if name == "model" else "EMA"
            self.log.line(f"{self.progress} {which}    {shown}  ({time.perf_counter() - began:.1f} s)")
            if evaluation.details:
                self.log.line(evaluation.details)
            self._record(kind, figures)
            if figures[self.criterion] > self.best.get(self.criterion, -math.inf):
                self.best = {**figures, "at": self.progress, "weights": name}
                self.checkpoints.save_best(
                    {"model": deployed_state(candidate), "figures": dict(self.best), **self._described()}
                )


def _parallel(model: nn.Layer, find_unused: bool) -> paddle.DataParallel:
    """The model on all ranks.

    A small last bucket of gradients (Paddle's is of 1 MB) helps where earlier ones travel during the backward pass.
    Gloo does nothing meanwhile, so that on CPUs each bucket is one more time to wait for the slowest rank.
    """
    buckets = {"last_comm_buffer_size": 25} if paddle.get_device() == "cpu" else {}  # MB, as the others are
    return paddle.DataParallel(model, find_unused_parameters=find_unused, **buckets)


class _Interval:
    """Running sums since its creation; tensors are read only when the figures are asked for."""

    def __init__(self):
        self.began = time.perf_counter()
        self.batches = self.samples = self.skipped = 0
        self.data_time = 0.0
        self.loss = paddle.zeros([])
        self.sums: dict[str, paddle.Tensor] = {}

    def add(self, result: StepResult, data_time: float) -> None:
        loss = result.loss.detach().astype("float32")
        self.loss = self.loss + paddle.where(paddle.isfinite(loss), loss, paddle.zeros([]))
        for name, mean in result.figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + mean.detach().astype("float32") * result.samples
        self.samples += result.samples
        self.skipped += result.skipped
        self.batches += 1
        self.data_time += data_time

    def figures(self) -> dict[str, float]:
        """Means over all ranks; a collective operation. ``data_share`` is this rank's percentage spent on waiting."""
        seconds = time.perf_counter() - self.began
        loss, samples, batches, skipped, *sums = sum_over_ranks(
            [float(self.loss), self.samples, self.batches, self.skipped, *map(float, self.sums.values())]
        )
        return {
            "loss": loss / batches,
            **{name: total / samples for name, total in zip(self.sums, sums, strict=True)},
            "images_per_second": samples / seconds,
            "data_share": 100.0 * self.data_time / seconds,
            "seconds_per_batch": seconds / self.batches,
            "skipped": int(skipped),
        }
