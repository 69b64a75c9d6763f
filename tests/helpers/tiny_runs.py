"""Runs in this process, and how tests interrupt and compare runs."""

from __future__ import annotations

import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paddle import nn
from yacs.config import CfgNode

from common.checkpoints.file_format import load_file
from common.runtime.command_line import ArgumentParser
from common.training.config import TaskConfig
from common.training.optimizer import build_optimizer
from common.training.run import run_task
from common.training.run_folder import RunFolder
from common.training.sampler import TrainSampler
from common.training.task import EvaluationResult, Evaluator, Task, Training
from common.training.trainer import Trainer
from image_classification.classification import Classification
from tests.helpers.programs import kill_program

# ---- runs in this process


def load(spec: TaskConfig, *flags: object) -> CfgNode:
    """The configuration that a launcher makes of its flags."""
    parser = ArgumentParser()
    spec.add_flags(parser)
    return spec.load(parser.parse_args([str(flag) for flag in flags]))


def run(task: type[Task], config: Path, *flags: object) -> dict[str, Any]:
    """Do what a launcher does."""
    return run_task(task(load(task.config_spec, "-cfg", config, *flags)))


class Constant(Evaluator):
    """A validation that always returns the same metric."""

    class_names = None
    data_set = data_hash = "none"

    def evaluate(self, model: nn.Layer, kind: str = "val", step: int = 0, last: bool = True) -> EvaluationResult:
        return EvaluationResult({"top1": 1.0})


def make_trainer(
    model: nn.Layer, compute_loss: Callable, loader: Iterable, sampler: TrainSampler, output: Path, *options: object
) -> Trainer:
    """A trainer for one epoch of a model and batches of one's own; ``options`` are keys and values."""
    default = Classification.config_spec.default_file
    opts = ["OUTPUT", str(output), "DEVICE", "cpu", *map(str, options)]
    task = Classification(Classification.config_spec.load(Namespace(cfg=default, opts=opts)))
    folder = RunFolder(output, 0)
    folder.claim(resume="", overwrite=True, warn=print)
    folder.begin("")
    training = Training(
        model=model,
        compute_loss=compute_loss,
        loader=loader,
        sampler=sampler,
        optimizer=build_optimizer({"type": "AdamW", "weight_decay": 0.05}, model),
        learning_rate=lambda step: 1e-3,
        total_steps=sampler.steps_per_epoch,
        evaluator=Constant(),
    )
    return Trainer(task, training, folder)


# ---- interruptions


def wait_for_steps(process: subprocess.Popen, output: Path, steps: int) -> None:
    """Return when a run has logged ``steps`` more training steps than now."""
    log = output / "log.jsonl"

    def count() -> int:
        return log.read_text().count('"kind": "train"') if log.exists() else 0

    target, deadline = count() + steps, time.monotonic() + 120
    while count() < target:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(process: subprocess.Popen) -> None:
    kill_program(process)
    process.communicate()


def assert_same_training(first: Path, second: Path) -> None:
    """Compare the weights, their average and the optimizer of two runs bitwise."""
    a, b = (load_file(folder / "latest.pdparams") for folder in (first, second))
    for name in ("step", "last_saved_step", "ema_updates", "best"):
        assert a.get(name) == b.get(name)
    for part in ("model", "model_ema", "optimizer"):
        assert (part in a) == (part in b)
        assert a.get(part, {}).keys() == b.get(part, {}).keys()
        different = [name for name in a.get(part, {}) if a[part][name].tobytes() != b[part][name].tobytes()]
        assert not different, (part, different[:5])
