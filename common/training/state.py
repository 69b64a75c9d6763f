"""What changes during a run, and how it is saved so that a resumed run reaches bitwise identical weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import paddle
from paddle import nn
from paddle.base import unique_name

from .. import __version__
from ..checkpoints.loading import Checkpoint, attention_of, load_weights, numpy_state
from ..data.class_names import has_names
from ..errors import UserError
from ..runtime.distributed import rank, world_size
from ..schema import Count, Range, Text, check_value
from .batch_norm import gather_statistics, get_statistics, set_statistics
from .data_hash import code_hash
from .ema import ModelEma
from .log_format import title
from .optimizer import OPTIMIZERS
from .task import Task, Training

__all__ = ["SavedState", "TrainingState", "load_optimizer_state", "optimizer_state"]

_Positive = Annotated[int, Range(1, 2**53)]
_BATCH_FACTORS = ("batch size", "ranks", "accumulated batches")  # the conditions whose product is images per step


@dataclass(frozen=True)
class _SavedScaler:
    """What ``paddle.amp.GradScaler.state_dict`` returns."""

    scale: np.ndarray
    incr_ratio: float
    decr_ratio: float
    incr_every_n_steps: _Positive
    decr_every_n_nan_or_inf: _Positive
    incr_count: Count
    decr_count: Count
    use_dynamic_loss_scaling: bool


@dataclass(frozen=True)
class SavedState:
    """The content of a training state besides the weights, as :meth:`TrainingState.as_dict` saves it."""

    optimizer: dict[str, np.ndarray]
    step: Count
    steps_per_epoch: _Positive
    last_saved_step: Count
    best: dict[str, Any]
    conditions: dict[str, Any]
    scaler: _SavedScaler | None = None
    nonfinite: Count = 0
    ema_updates: Count = 0
    validations_since_best: Count = 0  # 0.1.0 did not count them
    learning_rate: float | None = None  # nor save this
    rank_statistics: list[np.ndarray] = field(default_factory=list)
    config: Text | None = None

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], source: str) -> SavedState:
        """Check the content of a file, of this version or of 0.1.0.

        Raises:
            UserError: it is not a training state, or a value is of a wrong type or impossible.
        """
        saved = {"last_saved_step": saved.get("settled"), **saved}  # 0.1.0 called it settled
        if isinstance(saved.get("scaler"), dict) and not saved["scaler"]:  # without float16
            del saved["scaler"]
        for name in ("model", "optimizer", "conditions", "best", "step", "steps_per_epoch", "last_saved_step"):
            if saved.get(name) is None:
                raise UserError(
                    f"{source} contains weights, not a training state; resume from latest, or use -pretrained"
                )
        found: SavedState = check_value(saved, cls, source)
        if found.best:
            for name in ("at", "weights"):
                check_value(found.best.get(name), str, source, f"best.{name}")
        for name in _BATCH_FACTORS:
            check_value(found.conditions.get(name), _Positive, source, f"conditions.{name}")
        if found.scaler and not (found.scaler.scale.shape == (1,) and 0 < found.scaler.scale[0] < math.inf):
            raise UserError(f"{source}: scaler.scale is not one positive number")
        return found


class TrainingState:
    """What changes during a run. There are no random states: random numbers are a function of the position in the run.

    Args:
        training: the model with its pretrained weights loaded.

    Attributes:
        ema: the average of the weights, or ``None``.
        scaler: scales the loss; does nothing without float16.
        step: optimizer steps done.
        last_saved_step: the last step whose validation and checkpoint are done.
        nonfinite_steps: consecutive steps that were skipped because the loss or the gradient was not finite.
        validations_since_best: validations in a row that were not better than ``best``.
        best: metrics of the best validation so far, with ``at`` (such as ``epoch 3/16``) and ``weights``.
        metadata: plain values to save in every checkpoint.
    """

    def __init__(self, task: Task, training: Training):
        config = task.config
        self.model, self.optimizer = training.model, training.optimizer
        self.ema = ModelEma(self.model, config.TRAIN.EMA_DECAY) if config.TRAIN.EMA_DECAY else None
        self.scaler = paddle.amp.GradScaler(enable=config.TRAIN.AMP == "float16", init_loss_scaling=2.0**16)
        self.step = self.last_saved_step = self.nonfinite_steps = self.validations_since_best = 0
        self.best: dict[str, Any] = {}
        self._class_names = None if training.class_names is None else list(training.class_names)
        self.metadata = {
            "task": task.name,
            "config": task.config_spec.dump(config),
            "attention": attention_of(self.model),
            "class_names": self._class_names,
            "versions": {
                "pale-transformer-paddle": __version__,
                "paddle": paddle.__version__,
                "numpy": np.__version__,
            },
        }
        self._task, self._sampler, self._total_steps = task, training.sampler, training.total_steps
        self._data_hashes = training.data_hashes

    def models(self) -> list[nn.Layer]:
        """The trained model and, if there is one, its average."""
        return [self.model, self.ema.model] if self.ema else [self.model]

    def as_dict(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs, as plain values and NumPy arrays; a collective operation."""
        saved = {
            "model": numpy_state(self.model),
            "optimizer": optimizer_state(self.optimizer, self.model),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "steps_per_epoch": self._sampler.steps_per_epoch,
            "last_saved_step": self.last_saved_step,
            "nonfinite": self.nonfinite_steps,
            "validations_since_best": self.validations_since_best,
            "learning_rate": float(self.optimizer.get_lr()),  # of the last step
            "best": dict(self.best),
            "conditions": self._conditions(),
            **self.metadata,
        }
        if self.ema:
            saved |= {"model_ema": numpy_state(self.ema.model), "ema_updates": self.ema.updates}
        if world_size() > 1:
            saved["rank_statistics"] = [gather_statistics(model) for model in self.models()]
        return saved

    def restore(self, saved: Mapping[str, Any], source: str, last_epoch: int | None = None) -> list[str]:
        """Continue a run where its state was saved, if necessary within an epoch.

        Args:
            saved: what :meth:`as_dict` returned, in this version or in 0.1.0.
            source: where it comes from, for messages.
            last_epoch: continue after this epoch instead.

        Returns:
            Differences from the interrupted run that change the weights, one line each; none if it resumes exactly.

        Raises:
            UserError: it is not a training state, or is another model's; this state must not be used then.
        """
        state = SavedState.from_dict(saved, source)
        differences = [
            f"{name} was {state.conditions.get(name)}, is {value}"
            for name, value in self._conditions().items()
            if state.conditions.get(name, value) != value
        ]
        differences += self._restore_weights(saved, state, source)
        best = {name: value for name, value in state.best.items() if value is not None}  # None was NaN
        for name in (self._task.criterion, *({"loss"} & set(best))) if best else ():
            check_value(best.get(name), float, source, f"best.{name}")
        if best and any(difference.startswith("validation ") for difference in differences):
            value = f"{title(self._task.criterion)} {best[self._task.criterion]:.2f}"
            differences.append(f"the best result so far, {value}, is of the other validation data")
        load_optimizer_state(self.optimizer, self.model, state.optimizer, source)
        if state.learning_rate is not None:
            self.optimizer.set_lr(state.learning_rate)  # it may be saved again before the next step
        if state.scaler:
            self.scaler.load_state_dict(dict(vars(state.scaler)))
        if last_epoch is None:
            self.step = self._same_position(state)
            self.last_saved_step = self.step if state.last_saved_step == state.step else 0
            self.validations_since_best = state.validations_since_best
        else:
            self.step = self.last_saved_step = last_epoch * self._sampler.steps_per_epoch
            if last_epoch * state.steps_per_epoch > state.step:
                raise UserError(
                    f"-last_epoch is {last_epoch}, but {source} has been trained for "
                    f"{state.step / state.steps_per_epoch:.4g} epochs; give a smaller one"
                )
        self.nonfinite_steps = state.nonfinite
        self.best = best
        if state.config is not None:
            spec, now = self._task.config_spec, self._task.config
            then = spec.from_text(state.config, source)
            if now.MODEL.PRETRAINED not in ("", then.MODEL.PRETRAINED):
                raise UserError(
                    f"MODEL.PRETRAINED {now.MODEL.PRETRAINED} would be ignored: RESUME {source} already has the run's "
                    f"own weights, which started from {then.MODEL.PRETRAINED or 'random ones'}; leave out one of them"
                )
            differences += spec.differences(then, now)
        return differences

    def _restore_weights(self, saved: Mapping[str, Any], state: SavedState, source: str) -> list[str]:
        """Load the weights, their average and each rank's BatchNorm statistics; return the differences."""
        differences = []
        report = load_weights(
            self.model,
            Checkpoint.from_state(saved, source, ema=False),
            task=self._task.name,
            class_names=self._class_names,
        )
        if report.interpolated:
            raise UserError(
                f"{source} has position encodings of another size, {report.interpolated[0]}; resume with the original "
                "image size and attention"
            )
        if report.left_out:
            raise UserError(
                f"{source} was trained with token labels ({', '.join(report.left_out)}); resume with the same "
                "-label_maps"
            )
        learned = saved.get("class_names")
        if not has_names(learned) or has_names(self._class_names):
            differences += report.renamed
        else:
            self.metadata["class_names"] = learned
            differences.append("the data has no names of classes, so those of the state are kept, unchecked")
        if self.ema:
            if "model_ema" not in saved:
                differences.append("the state has no EMA weights, the average starts from the present weights")
            load_weights(self.ema.model, Checkpoint.from_state(saved, source, ema="model_ema" in saved))
            self.ema.updates = state.ema_updates
        for model, rows in zip(self.models(), state.rank_statistics, strict=False):
            values = get_statistics(model).size
            if rows.ndim != 2 or not len(rows) or rows.shape[1] != values or not np.isfinite(rows).all():
                raise UserError(f"{source}: rank_statistics are not {values} finite numbers of each rank")
            set_statistics(model, rows[rank()] if len(rows) == world_size() else rows.mean(0))
            if any(name.endswith("._variance") and tensor.min() < 0 for name, tensor in model.state_dict().items()):
                raise UserError(f"{source}: rank_statistics contain a negative variance; use an older state")
        return differences

    def _conditions(self) -> dict[str, Any]:
        """What must be equal for a resumed run to be bitwise identical to an uninterrupted one."""
        sampler = self._sampler
        return {
            "length of the run": self._total_steps,
            "ranks": world_size(),
            "batch size": sampler.batch_size,
            "accumulated batches": self._task.config.TRAIN.ACCUM_ITER,
            "seed": self._task.config.SEED,
            "images": sampler.num_samples,
            "repeats": sampler.repeats,
            "Paddle": paddle.__version__,
            "code": code_hash(),
            **self._data_hashes,
        }

    def _same_position(self, saved: SavedState) -> int:
        """The step of this run that corresponds to the saved one.

        In a run of epochs, the same number of images of the same epoch, for any batch size and number of ranks.
        """
        if self._task.unit == "step":
            return saved.step
        then, now = (
            math.prod(conditions[factor] for factor in _BATCH_FACTORS)
            for conditions in (saved.conditions, self._conditions())
        )
        epoch, steps = divmod(saved.step, saved.steps_per_epoch)
        steps_per_epoch = self._sampler.steps_per_epoch
        return epoch * steps_per_epoch + min(steps * then // now, steps_per_epoch)


def optimizer_state(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> dict[str, np.ndarray]:
    """The optimizer's accumulators as ``<parameter name>/<accumulator>``.

    Paddle keys them by automatic names, which count the layers and the optimizers that a process has built, so that
    they fit only the same program in a fresh process; the structured names always fit.
    """
    state = optimizer.state_dict()
    return {name: np.array(state[key].numpy()) for name, key in _accumulator_keys(state, model).items()}


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, model: nn.Layer, state: Mapping[str, np.ndarray], source: str = "the state"
) -> None:
    """Give the optimizer the accumulators that :func:`optimizer_state` took.

    Raises:
        UserError: the state is of other parameters than this model trains, or of another optimizer, or is damaged.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    # The state may lack some: Paddle keeps nothing of a parameter that never had a gradient.
    other = {key.rpartition("/")[0] for key in state} - set(parameters)
    if other:
        raise UserError(
            f"{source}: the optimizer's state does not fit the model's trainable parameters, for example "
            f"{min(other)}; to freeze other ones (TRAIN.FREEZE), start a new run with -pretrained"
        )
    title, accumulators = next(
        (name, kind.accumulators) for name, kind in OPTIMIZERS.items() if isinstance(optimizer, kind.build)
    )
    unknown = {key.rpartition("/")[2] for key in state} - set(accumulators)
    if unknown:
        raise UserError(f"{source}: the optimizer's state has {min(unknown)!r}, unknown to {title}; use an older state")
    for name in {key.rpartition("/")[0] for key in state}:
        for kind, (low, high) in accumulators.items():
            array, shape = state.get(f"{name}/{kind}"), [1] if kind.endswith("_pow_acc") else parameters[name].shape
            if array is None or array.dtype.kind != "f" or list(array.shape) != shape:
                found = "missing" if array is None else f"{array.dtype} {list(array.shape)}, not float {shape}"
            elif not ((low <= array) & (array <= high)).all():  # neither is NaN
                found = f"not between {low:g} and {high:g}"
            else:
                continue
            raise UserError(f"{source}: {kind} of {name} in the optimizer's state is {found}; use an older state")
    state = {**state, **_first_accumulators(optimizer, parameters, state, accumulators)}
    present = _accumulator_keys(optimizer.state_dict(), model)
    own = {}
    for name, array in state.items():
        parameter, _, accumulator = name.rpartition("/")
        prefix = f"{parameters[parameter].name}_{accumulator}"
        # Before its first step the optimizer has no accumulators; it will name them by the next count of Paddle's.
        key = present.get(name, f"{prefix}_{unique_name.generator.ids[prefix]}")
        own[key] = paddle.to_tensor(array.astype(np.float32, copy=False))
    optimizer.set_state_dict(own)


def _first_accumulators(
    optimizer: paddle.optimizer.Optimizer,
    parameters: Mapping[str, paddle.Tensor],
    state: Mapping[str, np.ndarray],
    kinds: Iterable[str],
) -> dict[str, np.ndarray]:
    """The accumulators before the first step of parameters that a state has none of, but of others.

    They were frozen, or had no gradient yet. Paddle refuses to make their accumulators then.
    """
    known = {key.rpartition("/")[0] for key in state}
    first = {}
    for name in parameters.keys() - known if known else ():
        for kind in kinds:
            if kind.endswith("_pow_acc"):
                first[f"{name}/{kind}"] = np.full([1], getattr(optimizer, f"_{kind.removesuffix('_pow_acc')}"), "f4")
            else:
                first[f"{name}/{kind}"] = np.zeros(parameters[name].shape, "f4")
    return first


def _accumulator_keys(state: Mapping[str, Any], model: nn.Layer) -> dict[str, str]:
    """``<parameter name>/<accumulator>`` -> Paddle's key, such as ``linear_0.w_0_moment1_0``."""
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    keys = {}
    for key, value in state.items():
        if isinstance(value, paddle.Tensor):
            owner = max((name for name in names if key.startswith(f"{name}_")), key=len)
            keys[f"{names[owner]}/{key[len(owner) + 1 :].rpartition('_')[0]}"] = key
    return keys
