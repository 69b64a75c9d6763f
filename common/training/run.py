"""What a launcher does with a task: train it, evaluate weights, or check the data."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle
from paddle import nn
from yacs.config import CfgNode

from ..checkpoints.loading import Checkpoint, load_weights, read_checkpoint, read_state
from ..checkpoints.released import local_path
from ..errors import UserError
from ..flops import params
from ..runtime.csv_table import append_rows
from ..runtime.distributed import gather_objects, gather_rows, is_main_process, world_size
from .config import WEIGHTS
from .config_values import find, keys_of
from .data_hash import code_hash, data_hash
from .evaluation_report import prepare_report, write_report
from .optimizer import with_cooldown
from .results import Result, make_results
from .run_folder import RunFolder
from .state import SavedState
from .task import Task, Training
from .trainer import Trainer

__all__ = ["run_task"]

_JUMP = 2.0  # factor by which a resumed run may raise the learning rate without a warning
_ROOT = Path(__file__).resolve().parents[2]


def run_task(task: Task) -> dict[str, Any]:
    """Do what the configuration says: train, or only evaluate (``EVAL``) or check the data (``CHECK_DATA``).

    Returns:
        The metrics of the best or the evaluated weights.
    """
    _require_equal_ranks({**task.config_spec.values_of_all_ranks(task.config), "the code": code_hash()})
    if task.config.get("CHECK_DATA", False):
        return _check_data(task)
    return _evaluate(task) if task.config.EVAL else _train(task)


def _train(task: Task) -> dict[str, Any]:
    config, log = task.config, task.log

    # Find what to resume, and build what to train.
    if config.RESUME not in ("", "auto"):
        local_path(config.RESUME)  # a wrong path is an error of its own, not that the folder holds another run
    folder = RunFolder(Path(config.OUTPUT), config.KEEP_CHECKPOINTS, task.unit)
    folder.claim(config.RESUME, config.OVERWRITE, log.line, config.MODEL.PRETRAINED)
    resumed = _find_training_state(task, folder)
    training = task.build_training(resumed=bool(resumed))
    _require_equal_ranks(training.data_hashes)

    # Load pretrained weights and print what the run is.
    report = None
    if config.MODEL.PRETRAINED and not resumed:
        checkpoint = read_checkpoint(config.MODEL.PRETRAINED, task.backbone_name, WEIGHTS[config.MODEL.WEIGHTS])
        report = load_weights(
            training.model, checkpoint, fine_tune=True, task=task.name, class_names=training.class_names
        )
    _log_header(task, training.model)
    log.line(training.description)
    if report:
        log.line(str(report))
    if not resumed and freezes_random_weights(config):
        log.line("warning: TRAIN.FREEZE keeps random weights as they are; give weights with -pretrained")
    ends_in_warm_up = _ends_in_warm_up(task, training)
    if config.TRAIN.COOLDOWN:
        training.learning_rate = with_cooldown(training.learning_rate, training.total_steps)
        steps_per_unit = training.sampler.steps_per_epoch if task.unit == "epoch" else 1
        training.total_steps += config.TRAIN.COOLDOWN * steps_per_unit

    # Restore the state, check the run, and only then write into the folder.
    trainer = Trainer(task, training, folder)
    if resumed:
        _resume(trainer, *resumed)
    task.preflight(training)
    folder.begin(task.config_spec.dump(config))
    log.open(folder.folder, trainer.position)
    best = trainer.run()
    log.close()
    folder.require_intact()
    stopped_early = trainer.stops_early and trainer.state.step < trainer.total_steps
    if stopped_early:
        log.line(
            f"stopped early after {trainer.progress}: {trainer.state.validations_since_best} validations in a row had "
            f"no better {task.criterion} (TRAIN.EARLY_STOP)"
        )
    _print_next_commands(task, folder, best, stopped_early, ends_in_warm_up)
    return best


def _evaluate(task: Task) -> dict[str, Any]:
    """Evaluate ``MODEL.PRETRAINED`` (or ``RESUME``) on the validation split."""
    config, log = task.config, task.log
    if config.MODEL.PRETRAINED and config.RESUME:
        raise UserError(
            f"-eval has two weights, MODEL.PRETRAINED {config.MODEL.PRETRAINED} and RESUME {config.RESUME}; leave out "
            "-resume, and give the one to evaluate as -pretrained"
        )
    name = config.MODEL.PRETRAINED or config.RESUME
    if name in ("", "auto"):
        raise UserError("-eval needs the weights to evaluate; give -pretrained FILE.pdparams")
    record = Path(config.RECORD) if config.RECORD and is_main_process() else None
    if record:
        append_rows(record, Result, [])  # a file that cannot be written is reported before the evaluation
    report_folder = Path(config.REPORT) if config.REPORT and is_main_process() else None
    if report_folder:
        prepare_report(report_folder)
    checkpoint = read_checkpoint(name, task.backbone_name, WEIGHTS[config.MODEL.WEIGHTS])
    model, evaluator = task.build_evaluation(checkpoint)
    _require_equal_ranks({"SHA-256 of the weights": checkpoint.sha256, "validation data": evaluator.data_hash})
    report = load_weights(model, checkpoint, task=task.name, class_names=evaluator.class_names)
    _log_header(task, model)
    if report.left_out or report.renamed:
        log.line(str(report))
    metrics, details, files = evaluator.evaluate(model, "eval")  # not val, whose files may be those of a run
    log.line(f"{name}: " + "  ".join(f"{key} {value:.6g}" for key, value in metrics.items()))
    if details:
        log.line(details)
    if record:
        results = make_results(
            task.model_name, evaluator.data_set, metrics, evaluator.metric_suffix, checkpoint.sha256, task.device
        )
        append_rows(record, Result, results)
        log.line(f"recorded in {record}")
    if report_folder:
        write_report(report_folder, files)
        log.line(f"wrote {', '.join(files)} to {report_folder}")
    return dict(metrics)


def _check_data(task: Task) -> dict[str, Any]:
    """Check all data, and print every problem and the number of objects or pixels of each class.

    Raises:
        UserError: there are problems that are errors.
    """
    problems = 0
    for report in task.check_data():
        task.log.line(str(report))
        problems += len(report.problems)
    if problems:
        raise UserError(f"the data has {problems} problem{'s' * (problems > 1)}, see above")
    return {"problems": 0}


def _find_training_state(task: Task, folder: RunFolder) -> tuple[Path | str, dict[str, Any]] | None:
    """The training state that ``RESUME`` selects, with its source; ``None`` to start a new run."""
    source, log = task.config.RESUME, task.log
    if not source:
        return None
    found = folder.find_latest(log.line) if source == "auto" else (source, read_state(source))
    if not found:
        log.line(f"no training state in {folder.folder}: starting a new run")
    if world_size() == 1:
        return found
    step = SavedState.from_dict(found[1], str(found[0])).step if found else -1
    weights = Checkpoint.from_state(found[1], str(found[0]), ema=False).weights if found else {}
    steps, hashes = gather_rows([step, int(data_hash(weights, *weights.values()), 16)]).T  # below 2**53, so exact
    if len(set(steps)) > 1 or len(set(hashes)) > 1:
        raise UserError(
            f"the ranks find different training states (of steps {steps.astype(int).tolist()}, -1 for none); put "
            f"{folder.folder} on a disk that all machines share, or copy {folder.latest.name} to each"
        )
    return found


def _resume(trainer: Trainer, source: Path | str, saved: dict[str, Any]) -> None:
    task, log = trainer.task, trainer.log
    last_epoch = task.config.TRAIN.get("LAST_EPOCH", -1)
    differences = trainer.state.restore(saved, str(source), last_epoch if last_epoch >= 0 else None)
    where = f"{trainer.progress}, step {trainer.state.step}" if task.unit == "epoch" else trainer.progress
    log.line(f"resuming {source} after {where}")
    for difference in differences:
        log.line(f"  differs from the interrupted run: {difference}")
    if trainer.state.step > trainer.total_steps:
        raise UserError(
            f"{source} is at step {trainer.state.step}, but this run ends at step {trainer.total_steps}; "
            f"raise {task.length_key} or TRAIN.COOLDOWN"
        )
    if trainer.state.step == trainer.total_steps:
        log.line(f"the run is already complete ({trainer.progress}); raise TRAIN.COOLDOWN to train longer")
        return
    if last_epoch >= 0:  # the saved rate is of another epoch
        return
    # Both are of the last step that was trained, so a rate that only follows its schedule is no jump.
    before = SavedState.from_dict(saved, str(source)).learning_rate
    step, rate = trainer.state.step, trainer.training.learning_rate
    if before and step and rate(step - 1) > _JUMP * before:
        log.line(
            f"warning: the learning rate jumps from {before:.2e} to {rate(step):.2e}, so the {task.criterion} may fall "
            "at first; to continue at a low rate, undo the differences above, and raise TRAIN.COOLDOWN to train longer"
        )


def _require_equal_ranks(own: Mapping[str, str]) -> None:
    """Refuse ranks with other settings, code or data: they would wait for each other forever, or mix up the classes.

    Args:
        own: the values of this rank by name.
    """
    first, *others = gather_objects(dict(own))
    for number, other in enumerate(others, start=1):
        differing = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if differing:
            name = differing[0]
            more = f" (and {len(differing) - 1} more)" * (len(differing) > 1)
            raise UserError(
                f"rank {number} was started with other settings, code or data than rank 0: {name} is "
                f"{other.get(name)}, not {first.get(name)}{more}; use the same on all machines"
            )


def freezes_random_weights(config: CfgNode) -> bool:
    """Whether parts are frozen, but no section names weights: neither the task's nor those of a toolkit's models."""
    keys = (key for key in keys_of(config) if key.rpartition(".")[2].lower() == "pretrained")
    return bool(config.TRAIN.FREEZE) and not any(find(config, key) for key in keys)


def _ends_in_warm_up(task: Task, training: Training) -> bool:
    """Warn of a schedule that ends at its highest rate, and refuse to cool down there."""
    rate, total = training.learning_rate, training.total_steps
    rises = rate(total) > rate(total - 1)
    if rises:
        line = f"the warm-up does not end within {total} steps; shorten it, or raise {task.length_key}"
        if task.config.TRAIN.COOLDOWN:
            raise UserError(f"TRAIN.COOLDOWN would continue at the highest rate, because {line}")
        task.log.line(f"warning: {line}")
    return rises


def _log_header(task: Task, model: nn.Layer) -> None:
    task.log.line(task.config.dump())
    task.log.line(
        f"{task.backbone_name}: {params(model) / 1e6:.2f}M parameters on {task.device}, "
        f"{world_size()} rank(s), Paddle {paddle.__version__}"
    )
    if task.config.TRAIN.AMP and task.device == "cpu":
        task.log.line("mixed precision has no effect on CPUs: everything is computed in float32")


def _print_next_commands(
    task: Task, folder: RunFolder, best: Mapping[str, Any], stopped_early: bool, ends_in_warm_up: bool
) -> None:
    config_file, best_file, latest_file = (
        shlex.quote(str(path)) for path in (folder.config_file, folder.best, folder.latest)
    )
    length: Any = task.config
    for part in task.length_key.split("."):
        length = length[part]
    program = f"{_program(f'{task.name}/main_multi_gpu.py')} -cfg {config_file}"
    launcher = "python"
    if world_size() > 1:  # its log has the values of all environment variables, so it belongs to the run
        launcher = f"python -m paddle.distributed.launch --log_dir {shlex.quote(str(folder.folder / 'log'))}"
        if task.device == "cpu":  # without it, the launcher starts one rank for each GPU, and a single one on CPUs
            launcher += f" --nproc_per_node {os.environ.get('PADDLE_LOCAL_SIZE', world_size())}"
    line = task.log.line
    if not best:
        line(f"no validation gave a finite {task.criterion}")
        return
    line(f"best: {task.criterion} {best[task.criterion]:.2f} after {best['at']} ({best['weights']})")
    line(f"evaluate:  python {program} -eval -pretrained {best_file}")
    line(f"predict:   python {_program('tools/predict.py')} IMAGE... -pretrained {best_file}")
    resume = f"resume:    {launcher} {program} -resume {latest_file} -opts"
    if stopped_early:
        line(f"{resume} TRAIN.EARLY_STOP 0")
        return
    if ends_in_warm_up:
        line(f"{resume} {task.length_key} {2 * length}")
        return
    line(f"{resume} TRAIN.COOLDOWN {task.config.TRAIN.COOLDOWN + max(1, length // 2)}")
    line(
        f"           (at a low, constant learning rate; a larger {task.length_key} instead would raise the rate again, "
        f"and the {task.criterion} may fall at first)"
    )


def _program(name: str) -> str:
    """A program of the project as the present folder reaches it, quoted for a shell."""
    return shlex.quote(name if Path.cwd() == _ROOT else str(_ROOT / name))
