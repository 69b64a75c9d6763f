"""The training state: what a run needs to resume and reach bitwise identical weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle import nn
from paddle.base import unique_name

from ..checkpoints.loading import load_weights, numpy_state, refuse_other_attention
from ..errors import UserError
from ..runtime.distributed import rank, world_size
from .batch_norm import gather_statistics, set_statistics

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["load_optimizer_state", "optimizer_state", "restore", "training_state"]


def training_state(trainer: Trainer) -> dict[str, Any]:
    """Everything that :func:`restore` needs, as plain values and NumPy arrays; a collective operation.

    It holds no random states: every random number is a function of the position in the run.
    """
    state = {
        "model": numpy_state(trainer.model),
        "optimizer": optimizer_state(trainer.optimizer, trainer.model),
        "scaler": trainer.scaler.state_dict(),
        "step": trainer.step,
        "steps_per_epoch": trainer.steps_per_epoch,
        "last_saved_step": trainer.last_saved_step,
        "nonfinite": trainer.nonfinite_steps,
        "best": dict(trainer.best),
        "conditions": _conditions(trainer),
        **trainer.metadata,
    }
    if trainer.ema:
        state |= {"model_ema": numpy_state(trainer.ema.model), "ema_updates": trainer.ema.updates}
    if world_size() > 1:
        state["rank_statistics"] = [gather_statistics(model) for model in trainer.models()]
    return state


def restore(trainer: Trainer, state: Mapping[str, Any], source: str, last_epoch: int | None = None) -> list[str]:
    """Continue a run where its state was saved, in the middle of an epoch if need be.

    Args:
        state: what :func:`training_state` returned, in this version or in 0.1.0.
        source: where it comes from, for messages.
        last_epoch: continue after this epoch instead.

    Returns:
        Differences from the interrupted run that change its weights, one line each; none if the run resumes exactly.

    Raises:
        UserError: the file is not a training state, or is another model's; the trainer must not be used then.
    """
    saved_step = state.get("last_saved_step", state.get("settled"))  # 0.1.0 called it settled
    types: dict[str, type] = dict.fromkeys(("model", "optimizer", "conditions", "best"), dict)
    types |= dict.fromkeys(("step", "steps_per_epoch"), int)
    if not all(isinstance(state.get(name), kind) for name, kind in types.items()) or not isinstance(saved_step, int):
        raise UserError(f"{source} holds weights, not a training state; resume from latest, or use -pretrained")
    differences = [
        f"{name}: {state['conditions'].get(name)} then, {value} now"
        for name, value in _conditions(trainer).items()
        if state["conditions"].get(name) != value
    ]
    differences += _restore_weights(trainer, state, source)
    refuse_other_attention(trainer.model, state, source)
    load_optimizer_state(trainer.optimizer, trainer.model, state["optimizer"])
    if state.get("scaler"):
        trainer.scaler.load_state_dict(dict(state["scaler"]))
    trainer.step = _same_position(trainer, state) if last_epoch is None else last_epoch * trainer.steps_per_epoch
    trainer.last_saved_step = trainer.step if last_epoch is not None or saved_step == state["step"] else 0
    trainer.nonfinite_steps = state.get("nonfinite", 0)
    trainer.best = dict(state["best"])
    if isinstance(state.get("config"), str):
        spec = trainer.task.config_spec
        differences += spec.differences(spec.from_text(state["config"], source), trainer.config)
    return differences


def _restore_weights(trainer: Trainer, state: Mapping[str, Any], source: str) -> list[str]:
    """Load the weights, their average and each rank's BatchNorm statistics; return the differences."""
    differences = []
    report = load_weights(trainer.model, state["model"], source)
    if report.interpolated:
        raise UserError(
            f"{source} has positions of another size, {report.interpolated[0]}; resume with its own image size and "
            "attention"
        )
    if report.left_out:
        raise UserError(
            f"{source} was trained with token labels ({', '.join(report.left_out)}), which this run does not use; "
            "resume with its -label_maps"
        )
    if trainer.ema:
        if "model_ema" not in state:
            differences.append("EMA: none then, it starts from the present weights")
        load_weights(trainer.ema.model, state.get("model_ema", state["model"]), source)
        trainer.ema.updates = state.get("ema_updates", 0)
    for model, rows in zip(trainer.models(), state.get("rank_statistics", ()), strict=False):
        set_statistics(model, rows[rank()] if len(rows) == world_size() else rows.mean(0))
    return differences


def _conditions(trainer: Trainer) -> dict[str, Any]:
    """What must be equal for a resumed run to be bitwise identical to an uninterrupted one."""
    sampler = trainer.sampler
    return {
        "length of the run": trainer.total_steps,
        "ranks": world_size(),
        "batch size": sampler.batch_size,
        "accumulated batches": trainer.accum_iter,
        "seed": trainer.config.SEED,
        "images": sampler.num_samples,
        "repeats": sampler.repeats,
        "Paddle": paddle.__version__,
    }


def _same_position(trainer: Trainer, state: Mapping[str, Any]) -> int:
    """The step of this run at which as much of it is done as of the saved one.

    In a run of epochs, that is as many images of the same epoch, whatever the batch size and the number of ranks.
    """
    if trainer.task.unit == "step":
        return state["step"]
    then, now = (
        math.prod(conditions[factor] for factor in ("batch size", "ranks", "accumulated batches"))
        for conditions in (state["conditions"], _conditions(trainer))
    )
    epoch, steps = divmod(state["step"], state["steps_per_epoch"])
    return epoch * trainer.steps_per_epoch + min(steps * then // now, trainer.steps_per_epoch)


def optimizer_state(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> dict[str, np.ndarray]:
    """The optimizer's accumulators as ``<parameter name>/<accumulator>``.

    Paddle keys them by automatic names, which count the layers and the optimizers that a process has built, so that
    they fit only the same program in a fresh process; the structured names always fit.
    """
    state = optimizer.state_dict()
    return {name: np.array(state[key].numpy()) for name, key in _accumulator_keys(state, model).items()}


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, model: nn.Layer, state: Mapping[str, np.ndarray]
) -> None:
    """Give the optimizer the accumulators that :func:`optimizer_state` took.

    Raises:
        UserError: the state is of other parameters than this model trains.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    # The state may lack some: Paddle keeps nothing of a parameter that never had a gradient.
    other = {key.rpartition("/")[0] for key in state} - set(parameters)
    if other:
        raise UserError(f"the optimizer's state is of other parameters than this model trains, such as {min(other)}")
    present = _accumulator_keys(optimizer.state_dict(), model)
    own = {}
    for name, array in state.items():
        parameter, _, accumulator = name.rpartition("/")
        prefix = f"{parameters[parameter].name}_{accumulator}"
        # Before its first step the optimizer has no accumulators; it will name them by the next count of Paddle's.
        own[present.get(name, f"{prefix}_{unique_name.generator.ids[prefix]}")] = paddle.to_tensor(array)
    optimizer.set_state_dict(own)


def _accumulator_keys(state: Mapping[str, Any], model: nn.Layer) -> dict[str, str]:
    """``<parameter name>/<accumulator>`` -> Paddle's key, such as ``linear_0.w_0_moment1_0``."""
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    keys = {}
    for key, value in state.items():
        if isinstance(value, paddle.Tensor):
            owner = max((name for name in names if key.startswith(f"{name}_")), key=len)
            keys[f"{names[owner]}/{key[len(owner) + 1 :].rpartition('_')[0]}"] = key
    return keys
