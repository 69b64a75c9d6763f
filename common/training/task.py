"""What a task provides: the model, the data, the loss and the evaluation of one configuration.

:mod:`common.training.run` trains or evaluates it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import paddle
from paddle import nn
from yacs.config import CfgNode

from ..checkpoints.loading import Checkpoint
from ..errors import UserError
from ..flops import params
from ..layers.freezing import freeze
from ..runtime.device import select_device
from .config import TaskConfig
from .evaluation_report import ReportFiles
from .loader import Loader
from .log import TrainingLog
from .sampler import TrainSampler

__all__ = ["BatchResult", "DataReport", "EvaluationResult", "Evaluator", "Task", "Training"]


@dataclass
class BatchResult:
    """The loss of one batch.

    Attributes:
        loss: mean over the batch, a scalar tensor.
        samples: size of the batch.
        metrics: further means over the batch to log beside the loss, scalar tensors.
        skipped: unreadable samples of the batch that were replaced.
    """

    loss: paddle.Tensor
    samples: int
    metrics: Mapping[str, paddle.Tensor] = field(default_factory=dict)
    skipped: int = 0


class EvaluationResult(NamedTuple):
    """Metrics of a model.

    Attributes:
        metrics: to log.
        details: tables to print below them, or empty.
        files: of a ``-report``; on rank 0, with details.
    """

    metrics: Mapping[str, float]
    details: str = ""
    files: ReportFiles = MappingProxyType({})


class Evaluator(ABC):
    """The validation split, and how a model is evaluated on it.

    Attributes:
        class_names: of the split; ``None`` where it does not name them.
        data_set: what to call the data in a table of results.
        data_hash: what the data consists of, see :func:`common.training.data_hash.data_hash`. Equal on all ranks.
        metric_suffix: appended to the names of the metrics in a table of results.
        example: path of an image to show commands with; empty where images are not files.
    """

    class_names: Sequence[str] | None
    data_set: str
    data_hash: str
    metric_suffix: str = ""
    example: str = ""

    @abstractmethod
    def evaluate(self, model: nn.Layer, kind: str = "val", step: int = 0, last: bool = True) -> EvaluationResult:
        """Evaluate a model on the whole split; a collective operation.

        Args:
            kind: prefix of what is logged and written: ``val`` or ``val_ema`` (the averaged weights) in a run, ``eval``
                outside of one.
            step: the optimizer step to log pictures under.
            last: no other evaluation of this run follows, so details are wanted.
        """


@dataclass
class Training:
    """Everything that a :class:`common.training.trainer.Trainer` needs for one run.

    Attributes:
        model: the model, with its pretrained weights loaded before the trainer starts.
        compute_loss: ``(model, batch, rng) -> BatchResult``; ``rng`` is a NumPy generator for this batch alone.
        loader: yields the batches that ``sampler`` selects.
        sampler: the order of the training samples.
        optimizer: over the parameters of ``model``; the trainer sets the learning rate of each step.
        learning_rate: maps an optimizer step to its rate.
        total_steps: length of the run in optimizer steps.
        evaluator: of the validation split.
        class_names: to save in checkpoints; ``None`` where the data does not name its classes.
        description: of the data.
        warnings: what looks wrong with the data but may be intended, one line each.
        data_hashes: what the data consists of, by name, see :func:`common.training.data_hash.data_hash`. Equal on all
            ranks; a resumed run reports differences.
        draw_samples: maps a batch to a picture, RGB uint8 ``[h, w, 3]``, of its first images after augmentation with
            their labels; ``None`` for no picture.
        find_unused_parameters: some batches may leave parameters without gradients, see ``paddle.DataParallel``.
    """

    model: nn.Layer
    compute_loss: Callable[[nn.Layer, Any, np.random.Generator], BatchResult]
    loader: Loader
    sampler: TrainSampler
    optimizer: paddle.optimizer.Optimizer
    learning_rate: Callable[[int], float]
    total_steps: int
    evaluator: Evaluator
    class_names: Sequence[str] | None = None
    description: str = ""
    warnings: Sequence[str] = ()
    data_hashes: Mapping[str, str] = field(default_factory=dict)
    draw_samples: Callable[[Any], np.ndarray | None] = lambda batch: None
    find_unused_parameters: bool = False


class DataReport(Protocol):
    """The result of checking one split of the data; ``str`` gives a table.

    Attributes:
        problems: one line per error.
    """

    problems: list[str]


class Task(ABC):
    """One configuration of a task. All its state is what ``__init__`` sets.

    Args:
        config: the frozen configuration.

    Attributes:
        name: folder of the task's launcher.
        config_spec: the task's keys, flags and checks.
        criterion: the metric that selects the best weights; higher is better.
        shown_metrics: those to print for each validation.
        unit: what the length of a run is given in, ``"epoch"`` or ``"step"``.
        length_key: the configuration key with the length of a run.
    """

    name: ClassVar[str]
    config_spec: ClassVar[TaskConfig]
    criterion: ClassVar[str]
    shown_metrics: ClassVar[tuple[str, ...]]
    unit: ClassVar[str] = "epoch"
    length_key: ClassVar[str]

    def __init__(self, config: CfgNode):
        self.config = config
        self.device = select_device(config.DEVICE)
        self.log = TrainingLog()
        paddle.seed(config.SEED)

    @property
    @abstractmethod
    def backbone_name(self) -> str:
        """The backbone's variant, such as ``pale_tiny``."""

    @property
    @abstractmethod
    def model_name(self) -> str:
        """What to call the model in a table of results."""

    @abstractmethod
    def build_training(self, resumed: bool) -> Training:
        """Build model, data and optimizer.

        Args:
            resumed: all weights will come from a training state, so no others need be loaded.
        """

    def freeze(self, model: nn.Layer) -> None:
        """Freeze what ``TRAIN.FREEZE`` names; call it before the optimizer is built.

        Raises:
            UserError: an entry matches nothing, or nothing would train.
        """
        patterns = self.config.TRAIN.FREEZE
        if not patterns:
            return
        total = params(model)
        try:
            freeze(model, patterns)
        except ValueError as error:
            raise UserError(f"TRAIN.FREEZE: {error}") from error
        if not params(model):
            raise UserError(f"TRAIN.FREEZE is {list(patterns)}: every parameter is frozen; leave some out")
        self.log.line(f"TRAIN.FREEZE: {params(model):,} of {total:,} parameters train")

    @abstractmethod
    def build_evaluation(self, checkpoint: Checkpoint) -> tuple[nn.Layer, Evaluator]:
        """Build the model and the validation split for the weights of a checkpoint, which number the classes.

        No training data is read. The weights are loaded later.
        """

    def preflight(self, training: Training) -> None:  # noqa: B027 (a task may have nothing to check)
        """Check for problems that would end or spoil the run later, after loading weights and before writing files.

        Raises:
            UserError: the model, the settings or the data cannot be used.
        """

    def check_data(self) -> Iterator[DataReport]:
        """Check every sample of the training and the validation data; for tasks that have the key ``CHECK_DATA``."""
        raise NotImplementedError
