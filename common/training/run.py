"""What a launcher does with a task: train it, evaluate weights, or check the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle
from paddle import nn
from yacs.config import CfgNode

from ..checkpoints.file_format import load_file
from ..checkpoints.loading import Checkpoint, load_weights, read_checkpoint, read_state
from ..checkpoints.released import local_path, resolve_weights
from ..errors import StoppedBySignal, UserError
from ..finite_outputs import require_finite_outputs
from ..flops import params
from ..runtime.atomic_file import copy_file
from ..runtime.csv_table import append_rows
from ..runtime.distributed import gather_objects, gather_rows, is_main_process, wait_for_all_ranks, world_size
from ..runtime.verbosity import is_verbose
from .config import WEIGHTS
from .config_values import find, keys_of
from .data_hash import code_hash, data_hash
from .evaluation_report import prepare_report, write_report
from .log_format import counted, labeled, near_path, title
from .next_commands import next_commands, resume_command
from .optimizer import with_cooldown
from .results import Result, make_results
from .run_folder import RunFolder
from .state import SavedState
from .task import Evaluator, Task, Training
from .trainer import Trainer

__all__ = ["run_task"]

_JUMP = 2.0  # factor by which a resumed run may raise the learning rate without a warning


def run_task(task: Task, settings: str = "") -> dict[str, Any]:
    """Do what the configuration says: train, or only evaluate (``EVAL``) or check the data (``CHECK_DATA``).

    Args:
        task: with its configuration.
        settings: what to print about the configuration: its file, and what differs from it.

    Returns:
        The metrics of the best or the evaluated weights.
    """
    _require_equal_ranks({**task.config_spec.values_of_all_ranks(task.config), "the code": code_hash()})
    if task.config.get("CHECK_DATA", False):
        return _check_data(task)
    return _evaluate(task, settings) if task.config.EVAL else _train(task, settings)


def _train(task: Task, settings: str = "") -> dict[str, Any]:
    config, log = task.config, task.log

    # Find what to resume, and build what to train.
    if config.RESUME not in ("", "auto"):
        local_path(config.RESUME)  # a wrong path is an error of its own, not that the folder holds another run
    folder = RunFolder(Path(config.OUTPUT), config.KEEP_CHECKPOINTS, task.unit)
    folder.claim(config.RESUME, config.OVERWRITE, log.line, _pretrained_files(task) if config.OVERWRITE else ())
    resumed = _find_training_state(task, folder)
    training = task.build_training(resumed=bool(resumed))
    _require_equal_ranks(training.data_hashes)

    # Load pretrained weights and print what the run is.
    report = None
    if config.MODEL.PRETRAINED and not resumed:
        ema = WEIGHTS[config.MODEL.WEIGHTS]
        checkpoint = read_checkpoint(config.MODEL.PRETRAINED, task.backbone_name, ema, task.name)
        report = load_weights(
            training.model, checkpoint, fine_tune=True, task=task.name, class_names=training.class_names
        )
    if not resumed and freezes_random_weights(config):
        log.line("warning: TRAIN.FREEZE keeps random weights as they are; give weights with -pretrained")
    ends_in_warm_up = _ends_in_warm_up(task, training)
    if config.TRAIN.COOLDOWN:
        training.learning_rate = with_cooldown(training.learning_rate, training.total_steps)
        steps_per_unit = training.sampler.steps_per_epoch if task.unit == "epoch" else 1
        training.total_steps += config.TRAIN.COOLDOWN * steps_per_unit
    facts = {
        "data": f"{training.description} ({training.evaluator.data_set})",
        "length": _length(task, training),
        "config": settings,
        "output": f"{near_path(folder.folder)}, with config.yaml and log.jsonl",
    }
    _log_header(task, training.model, facts)
    for warning in training.warnings:
        log.line(f"warning: {warning}")
    if report:
        log.line(str(report))

    # Restore the state, check the run, and only then write into the folder.
    trainer = Trainer(task, training, folder)
    if resumed:
        _resume(trainer, *resumed)
        is_complete = trainer.state.step == trainer.total_steps and trainer.position.is_validated
        if is_complete and gather_objects(folder.latest.exists())[0]:  # which may be of a later epoch, or other weights
            _print_end(task, folder, training.evaluator, trainer.state.best, False, ends_in_warm_up)
            return trainer.state.best
    task.preflight(training)
    wait_for_all_ranks()  # a problem of one ends all before a run is replaced
    folder.begin(task.config_spec.dump(config))
    if resumed:
        if not _is_latest(task, folder, resumed[0]):
            folder.save_latest(trainer.state.as_dict())  # a kill before the first save would undo a step back
        _carry_best(trainer, folder, Path(resumed[0]).parent)
    log.open(folder.folder, trainer.position)
    try:
        best = trainer.run()
    except StoppedBySignal:
        log.result(labeled("resume", resume_command(task, folder)))
        raise
    log.close()
    folder.require_intact()
    stopped_early = trainer.stops_early and trainer.state.step < trainer.total_steps
    if stopped_early:
        log.result(
            f"stopped early after {trainer.progress}: {trainer.state.validations_since_best} validations in a row had "
            f"no better {title(task.criterion)} (TRAIN.EARLY_STOP)"
        )
    _print_end(task, folder, training.evaluator, best, stopped_early, ends_in_warm_up)
    return best


def _evaluate(task: Task, settings: str = "") -> dict[str, Any]:
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
    report_folder = Path(config.REPORT) if config.REPORT and is_main_process() else None
    if report_folder:
        prepare_report(report_folder, record)
    if record:
        append_rows(record, Result, [])  # a file that cannot be written is reported before the evaluation
    checkpoint = read_checkpoint(name, task.backbone_name, WEIGHTS[config.MODEL.WEIGHTS], task.name)
    model, evaluator = task.build_evaluation(checkpoint)
    _require_equal_ranks({"SHA-256 of the weights": checkpoint.sha256, "validation data": evaluator.data_hash})
    report = load_weights(model, checkpoint, task=task.name, class_names=evaluator.class_names)
    _log_header(task, model, {"data": evaluator.data_set, "config": settings})
    for warning in task.config_spec.input_warnings(checkpoint.config, checkpoint.source, config):
        log.line(f"warning: {warning}")
    if report.left_out or report.renamed:
        log.line(str(report))
    with require_finite_outputs(model):
        metrics, details, files = evaluator.evaluate(model, "eval")  # not val, whose files may be those of a run
    log.result(f"{name}: " + "  ".join(f"{key} {value:.6g}" for key, value in metrics.items()))
    if details:
        log.result(details)
    if record:
        results = make_results(
            task.model_name, evaluator.data_set, metrics, evaluator.metric_suffix, checkpoint.sha256, task.device
        )
        append_rows(record, Result, results)
        log.result(f"recorded in {record}")
    if report_folder:
        write_report(report_folder, files)
        log.result(f"wrote {', '.join(files)} to {report_folder}")
    return dict(metrics)


def _check_data(task: Task) -> dict[str, Any]:
    """Check all data, and print every problem and the number of objects or pixels of each class.

    Raises:
        UserError: there are problems that are errors.
    """
    problems = 0
    for report in task.check_data():
        task.log.result(str(report))
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
        log.line(f"warning: differs from the interrupted run: {difference}")
    if trainer.state.step > trainer.total_steps:
        raise UserError(
            f"{source} is at step {trainer.state.step}, but this run ends at step {trainer.total_steps}; "
            f"raise {task.length_key} or TRAIN.COOLDOWN"
        )
    if trainer.state.step == trainer.total_steps:
        log.result(f"the run is already complete ({trainer.progress}); raise TRAIN.COOLDOWN to train longer")
        return
    step, rate = trainer.state.step, trainer.training.learning_rate
    if last_epoch >= 0:  # the saved rate is of another epoch
        trainer.state.optimizer.set_lr(rate(max(0, step - 1)))
        return
    # Both are of the last step that was trained, so a rate that only follows its schedule is no jump.
    before = SavedState.from_dict(saved, str(source)).learning_rate
    if before and step and rate(step - 1) > _JUMP * before:
        log.line(
            f"warning: the learning rate jumps from {before:.2e} to {rate(step):.2e}, so the "
            f"{title(task.criterion)} may fall at first; to continue at a low rate, undo the differences above, "
            "and raise TRAIN.COOLDOWN to train longer"
        )


def _is_latest(task: Task, folder: RunFolder, source: Path | str) -> bool:
    """Whether a run continues where the ``latest`` in its own folder ends, on every rank."""
    own = os.path.realpath(source) == os.path.realpath(folder.latest) and task.config.TRAIN.get("LAST_EPOCH", -1) < 0
    return all(gather_objects(own))


def _carry_best(trainer: Trainer, folder: RunFolder, source: Path) -> None:
    """Copy the best weights from the folder of the resumed state, or else let the next validation write new ones.

    Those of a later state than the resumed one are not copied. Those in the folder itself stay: a run that was killed
    after it wrote them repeats their validation.
    """
    state, of_source = trainer.state, Path(os.path.realpath(source / folder.best.name))
    if is_main_process() and not folder.best.exists() and _figures(of_source) == state.best:
        copy_file(of_source, folder.best)
    if state.best and state.step < trainer.total_steps and not gather_objects(folder.best.exists())[0]:
        trainer.log.line(f"warning: {folder.best} is missing, so the best result is that of the coming validations")
        state.best = {}


def _figures(file: Path) -> dict[str, Any] | None:
    """The metrics of weights; None if there are none, or the file is damaged."""
    try:
        figures = load_file(file).get("figures") if file.is_file() else None
    except UserError:
        return None
    return {name: value for name, value in figures.items() if value is not None} if isinstance(figures, dict) else None


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
    return bool(config.TRAIN.FREEZE) and not any(_pretrained(config))


def _pretrained(config: CfgNode) -> list[Any]:
    return [find(config, key) for key in keys_of(config) if key.rpartition(".")[2].lower() == "pretrained"]


def _pretrained_files(task: Task) -> list[Path]:
    """The files of all weights that a new run starts from; a tag or a link may lead into its folder.

    Raises:
        UserError: there is no such file or tag.
    """
    names = [name for name in _pretrained(task.config) if name and isinstance(name, str)]
    found = [resolve_weights(task.backbone_name, name, task.name) for name in names]
    return [local_path(source) for source in found if "://" not in str(source)]  # downloads are elsewhere


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


def _log_header(task: Task, model: nn.Layer, facts: Mapping[str, str]) -> None:
    """Print the model and the facts, by label."""
    log = task.log
    if is_verbose():
        log.line(task.config.dump())
    count = params(model, frozen=True)
    what = f"{type(model).__name__} {task.backbone_name}, {count / 1e6:.2f}M parameters"
    where = f"on {task.device}, {counted(world_size(), 'process', 'processes')}, Paddle {paddle.__version__}"
    for label, text in {"model": f"{what}, {where}", **facts}.items():
        log.line(labeled(label, text))
    if task.config.TRAIN.AMP and task.device == "cpu":
        log.line("warning: mixed precision has no effect on CPUs: everything is computed in float32")


def _length(task: Task, training: Training) -> str:
    """How much a run computes: ``16 epochs of 62 steps, 64 images per step``."""
    steps = training.sampler.steps_per_epoch
    epochs = f"{counted(training.total_steps // steps, 'epoch')} of {counted(steps, 'step')}"
    length = epochs if task.unit == "epoch" else counted(training.total_steps, "step")
    images = training.sampler.batch_size * world_size() * task.config.TRAIN.ACCUM_ITER
    return f"{length}, {counted(images, 'image')} per step"


def _print_end(
    task: Task,
    folder: RunFolder,
    evaluator: Evaluator,
    best: Mapping[str, Any],
    stopped_early: bool,
    ends_in_warm_up: bool,
) -> None:
    log, name = task.log, title(task.criterion)
    if not best:
        log.result(f"no validation gave a finite {name}")
        return
    log.line("")
    averaged = ", of the averaged weights" if best["weights"] == "model_ema" else ""
    log.result(labeled("best", f"{name} {best[task.criterion]:.2f} after {best['at']}{averaged}"))
    for label, command in next_commands(task, folder, evaluator, stopped_early, ends_in_warm_up).items():
        log.line(labeled(label, command))
