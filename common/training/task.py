"""One run of a launcher, in what is the same for all tasks: weights, training state, log, and what to do next."""

from __future__ import annotations

import shlex
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import paddle
from paddle import nn
from yacs.config import CfgNode

from ..checkpoints.loading import (
    LoadReport,
    attention_of,
    compare_attention,
    find_weights,
    load_weights,
    read_checkpoint,
    refuse_other_attention,
)
from ..checkpoints.released import resolve_weights
from ..data.class_names import check_class_order
from ..errors import UserError
from ..flops import params
from ..runtime.command_line import select_device
from ..runtime.distributed import gather_rows, is_main_process, world_size
from .checkpoints import CheckpointFolder
from .config import TaskConfig
from .log import TrainingLog
from .measurement import Measurement, make_results
from .results import append_results
from .sampler import TrainSampler
from .trainer import Evaluation, StepResult, Trainer, TrainSettings

__all__ = ["Task", "Training"]


@dataclass
class Training:
    """What a task trains, and on what.

    Attributes:
        model, loss_function, loader, sampler, optimizer, learning_rate: see :class:`common.training.trainer.Trainer`.
        total_steps, validate_steps, keep_steps: see :class:`common.training.trainer.TrainSettings`.
        data: one line about the data.
        alike: counts that must be the same on all ranks, by name.
        metadata: plain values to keep in every checkpoint beside the configuration.
        find_unused: see :class:`common.training.trainer.Trainer`.
    """

    model: nn.Layer
    loss_function: Callable[[nn.Layer, Any, np.random.Generator], StepResult]
    loader: paddle.io.DataLoader
    sampler: TrainSampler
    optimizer: paddle.optimizer.Optimizer
    learning_rate: Callable[[int], float]
    total_steps: int
    validate_steps: int
    keep_steps: int
    data: str
    alike: Mapping[str, int]
    metadata: Mapping[str, Any]
    find_unused: bool = False


class DataReport(Protocol):
    """What a look at a part of the data found; printed, a table.

    Attributes:
        problems: one line for each thing that is an error.
    """

    problems: list[str]


class Task(ABC):
    """A run of one configuration.

    Attributes:
        name: folder of the task's launcher.
        form: its kind of configuration.
        criterion: the figure that decides which weights are the best.
        unit: what its runs are counted in, ``"epoch"`` or ``"step"``.
        length_key: the configuration key that says how long a run is.
    """

    name: ClassVar[str]
    form: ClassVar[TaskConfig]
    criterion: ClassVar[str]
    unit: ClassVar[str] = "epoch"
    length_key: ClassVar[str]

    def __init__(self, config: CfgNode):
        self.config = config
        self.device = select_device(config.DEVICE)
        paddle.seed(config.SEED)
        self.log = TrainingLog(None)
        self.step = 0  # of the evaluation that is under way
        self.class_names: list[str] | None = None  # of the validation data, if it names them

    @abstractmethod
    def build_training(self, resumed: bool) -> Training:
        """Build what is trained, and prepare :meth:`validate`.

        Args:
            resumed: all weights will come from a training state, so none need be loaded.
        """

    @abstractmethod
    def build_evaluation(self) -> nn.Layer:
        """Build the model, and prepare :meth:`validate` without any training data; set ``class_names``."""

    @abstractmethod
    def draw_samples(self, batch: Any) -> np.ndarray | None:
        """The first ``PICTURES`` images of a training batch, as augmentation made them, with what is true of them.

        Returns:
            RGB uint8 ``[h, w, 3]``, or ``None`` where no picture is wanted or an image could not be read.
        """

    @abstractmethod
    def validate(self, model: nn.Layer, kind: str) -> Evaluation:
        """Evaluate on the validation data; a collective operation.

        Args:
            kind: what the figures are called in the log: ``val`` or ``val_ema``.
        """

    def check(self, training: Training) -> None:  # noqa: B027 (a task may have nothing to check)
        """Look for what would end or spoil the run later; weights are loaded, nothing has been written yet.

        Raises:
            UserError: there is such a thing.
        """

    @abstractmethod
    def measurement(self, model: nn.Layer, figures: Mapping[str, float]) -> Measurement:
        """Say what an evaluation was of, for a table of results.

        Args:
            figures: as :meth:`validate` gave them.
        """

    @abstractmethod
    def model_name(self) -> str:
        """What to call the model in the log."""

    def load_weights(self, model: nn.Layer, source: Path | str, replace_head: bool) -> LoadReport:
        """Load weights of a whole model or, to train from, of its backbone alone."""
        state = read_checkpoint(source)
        if not replace_head:
            check_class_order(self.class_names, state.get("class_names"), "the validation data", str(source))
        weights = find_weights(state, str(source))
        if not replace_head:
            self._refuse_other_task(state, weights, model, source)
        of_backbone = hasattr(model, "backbone") and not any(name.startswith("backbone.") for name in weights)
        target = model.backbone if of_backbone and replace_head else model
        report = load_weights(target, weights, str(source), replace_head)
        if not replace_head:
            refuse_other_attention(model, state, source)
        report.note = compare_attention(model, state)
        return report

    def _refuse_other_task(
        self, state: Mapping[str, Any], weights: Mapping[str, Any], model: nn.Layer, source: Path | str
    ) -> None:
        """Stop where weights that are to be evaluated have nothing to do this task with."""
        given = self.config.MODEL.PRETRAINED or self.config.RESUME or source  # a name, not the file behind it
        task = state.get("task", self.name)
        if task != self.name:
            raise UserError(
                f"{given} was trained for {task}, not for {self.name}; give weights of this task, or evaluate with "
                f"{task}/main_multi_gpu.py"
            )
        if hasattr(model, "backbone") and any(name.startswith("stages.") for name in weights):
            raise UserError(
                f"{given} is a classifier or a backbone alone, which knows nothing of this data; give what this task "
                f"has trained, such as {self.config.OUTPUT}/best.pdparams, or leave -eval out to train from it"
            )

    def data_reports(self) -> Iterator[DataReport]:
        """What a look at all data finds, for each part of it; tasks that have the key ``CHECK_DATA`` say."""
        raise NotImplementedError

    def run(self) -> dict[str, float]:
        """Train, or only evaluate or check the data if the configuration says so."""
        if self.config.get("CHECK_DATA", False):
            return self.check_data()
        return self.evaluate() if self.config.EVAL else self.train()

    def check_data(self) -> dict[str, float]:
        """Look at all data, and print what is wrong and how often each class occurs.

        Raises:
            UserError: something is wrong that is an error.
        """
        problems = 0
        for report in self.data_reports():
            self.log.line(str(report))
            problems += len(report.problems)
        if problems:
            raise UserError(f"{problems} problem{'s' * (problems > 1)} in the data; they are listed above")
        return {"problems": 0.0}

    def train(self) -> dict[str, float]:
        """Train, evaluating on the way; return the figures of the best weights."""
        config = self.config
        output = Path(config.OUTPUT)
        if is_main_process():
            output.mkdir(parents=True, exist_ok=True)
        checkpoints = CheckpointFolder(output, config.KEEP_CHECKPOINTS, self.unit)
        resumed = self._find_state(checkpoints)
        training = self.build_training(resumed=bool(resumed))
        self._compare_ranks(training)
        report = None
        if config.MODEL.PRETRAINED and not resumed:
            report = self.load_weights(training.model, self._resolve(config.MODEL.PRETRAINED), replace_head=True)
        self._print_head(training.model)
        self.log.line(training.data)
        if report:
            self.log.line(str(report))
        self._warn_of_schedule(training)
        kept = self.form.dump(config)

        def evaluate(model: nn.Layer, kind: str) -> Evaluation:
            self.step = trainer.step
            return self.validate(model, kind)

        trainer = Trainer(
            model=training.model,
            loss_function=training.loss_function,
            loader=training.loader,
            sampler=training.sampler,
            optimizer=training.optimizer,
            learning_rate=training.learning_rate,
            evaluate=evaluate,
            criterion=self.criterion,
            settings=self._settings(training),
            log=self.log,
            checkpoints=checkpoints,
            metadata={
                "task": self.name,
                "config": kept,
                "attention": attention_of(training.model),
                **training.metadata,
            },
            find_unused=training.find_unused,
            draw_samples=self.draw_samples,
        )
        if resumed:
            self._resume(trainer, *resumed)
        self.check(training)
        checkpoints.clean()
        if is_main_process():
            (output / "config.yaml").write_text(kept, encoding="utf-8")
        self.log = trainer.log = log = TrainingLog(output)
        log.rewind(trainer.step if resumed else -1)
        best = trainer.run()
        self._print_next_commands(checkpoints, best)
        log.close()
        return best

    def evaluate(self) -> dict[str, float]:
        """Evaluate ``MODEL.PRETRAINED`` (or ``RESUME``) on the validation set."""
        source = self.config.MODEL.PRETRAINED or self.config.RESUME
        if source in ("", "auto"):
            raise UserError("-eval needs the weights to evaluate; give -pretrained FILE.pdparams")
        record = Path(self.config.RECORD).expanduser() if self.config.RECORD and is_main_process() else None
        if record:
            append_results(record, [])  # whether that works, the user learns before the work is done
        model = self.build_evaluation()
        report = self.load_weights(model, self._resolve(source), replace_head=False)
        self._print_head(model)
        if report.left_out:
            self.log.line(str(report))
        figures, details = self.validate(model, "val")
        self.log.line(f"{source}: " + "  ".join(f"{key} {value:.6g}" for key, value in figures.items()))
        if details:
            self.log.line(details)
        if record:
            measurement = self.measurement(model, figures)
            append_results(record, make_results(measurement, self.name, self._resolve(source), self.device))
            self.log.line(f"recorded in {record}")
        return dict(figures)

    def _resolve(self, source: str) -> Path | str:
        return resolve_weights(self.model_name(), source)

    def _settings(self, training: Training) -> TrainSettings:
        config = self.config
        return TrainSettings(
            total_steps=training.total_steps,
            validate_steps=training.validate_steps,
            keep_steps=training.keep_steps,
            unit=self.unit,
            accum_iter=config.TRAIN.ACCUM_ITER,
            grad_clip=config.TRAIN.GRAD_CLIP,
            amp=config.TRAIN.AMP,
            ema_decay=config.TRAIN.EMA_DECAY,
            seed=config.SEED,
            log_interval=config.LOG_INTERVAL,
            save_steps=config.SAVE_STEPS,
            skip_nonfinite=config.TRAIN.SKIP_NONFINITE,
            histograms=config.HISTOGRAMS,
        )

    def _compare_ranks(self, training: Training) -> None:
        """Stop where machines were given different data or settings, before they wait for each other for ever."""
        settings = zlib.crc32("".join(self.form.differences(self.form.defaults(), self.config)).encode())
        figures = {
            **training.alike,
            "batches": training.sampler.num_batches,
            "steps": training.total_steps,
            "accumulation": self.config.TRAIN.ACCUM_ITER,
            "seed": self.config.SEED,
            "other settings": settings,
        }
        rows = gather_rows(list(figures.values()))
        for other in range(world_size()):
            if (rows[other] != rows[0]).any():
                raise UserError(
                    f"rank {other} was started unlike rank 0 ({', '.join(figures)}): "
                    f"{rows[other].astype(int).tolist()}, not {rows[0].astype(int).tolist()}; start all machines alike"
                )

    def _warn_of_schedule(self, training: Training) -> None:
        rate, total = training.learning_rate, training.total_steps
        if rate(total) > rate(total - 1):
            self.log.line(
                f"warning: the learning rate still rises at the last of {total} steps; shorten the warm-up, or raise "
                f"{self.length_key}"
            )

    def _find_state(self, checkpoints: CheckpointFolder) -> tuple[Path | str, dict[str, Any]] | None:
        """The training state that ``RESUME`` means, with its source."""
        source, log = self.config.RESUME, self.log
        if not source:
            if checkpoints.latest.exists():
                log.line(f"replacing the run in {checkpoints.folder}; -resume auto would have gone on with it")
            return None
        found = checkpoints.find_latest(log.line) if source == "auto" else (source, read_checkpoint(source))
        if not found:
            log.line(f"no training state in {checkpoints.folder}: starting anew")
        steps = gather_rows([found[1].get("step", 0) if found else -1])[:, 0]
        if steps.min() != steps.max():
            raise UserError(
                f"the ranks find different training states (of steps {steps.astype(int).tolist()}, -1 for none); put "
                f"{checkpoints.folder} on a disk that all machines share, or copy {checkpoints.latest.name} to each"
            )
        return found

    def _resume(self, trainer: Trainer, source: Path | str, state: dict[str, Any]) -> None:
        last_epoch = self.config.TRAIN.get("LAST_EPOCH", -1)
        inexact = trainer.resume(state, str(source), last_epoch if last_epoch >= 0 else None)
        refuse_other_attention(trainer.model, state, source)
        if isinstance(state.get("config"), str):
            inexact += self.form.differences(self.form.from_text(state["config"], str(source)), self.config)
        where = f"{trainer.progress}, step {trainer.step}" if self.unit == "epoch" else trainer.progress
        self.log.line(f"resuming {source} after {where}")
        for reason in inexact:
            self.log.line(f"  differs from the run that was interrupted: {reason}")
        total = trainer.settings.total_steps
        if trainer.step > total:
            raise UserError(
                f"{source} has {trainer.step} steps behind it, this run has {total}; raise {self.length_key}"
            )
        if trainer.step == total:
            self.log.line(f"{trainer.progress} is done; raise {self.length_key} to train on")

    def _print_head(self, model: nn.Layer) -> None:
        self.log.line(self.config.dump())
        self.log.line(
            f"{self.model_name()}: {params(model) / 1e6:.2f}M parameters on {self.device}, "
            f"{world_size()} rank(s), Paddle {paddle.__version__}"
        )
        if self.config.TRAIN.AMP and self.device == "cpu":
            self.log.line("mixed precision has no effect on CPUs: everything is computed in float32")

    def _print_next_commands(self, checkpoints: CheckpointFolder, best: Mapping[str, Any]) -> None:
        config_file, best_file, latest_file = (
            shlex.quote(str(path))
            for path in (checkpoints.folder / "config.yaml", checkpoints.best, checkpoints.latest)
        )
        node = self.config
        for part in self.length_key.split("."):
            node = node[part]
        launcher = f"python -m paddle.distributed.launch {self.name}/main_multi_gpu.py -cfg {config_file}"
        line = self.log.line
        line(f"best: {self.criterion} {best[self.criterion]:.2f} after {best['at']} ({best['weights']})")
        line(f"evaluate:  {launcher} -eval -pretrained {best_file}")
        line(f"predict:   python tools/predict.py IMAGE... -pretrained {best_file}")
        line(f"resume:    {launcher} -resume {latest_file} -opts {self.length_key} {2 * node}")
