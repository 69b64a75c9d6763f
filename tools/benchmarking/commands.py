"""Whole commands of this project, as a user runs them: training on several ranks, a first prediction."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

from common.errors import UserError
from tools.benchmarking.made_up_photos import write_photos
from tools.benchmarking.runner import Runner, TimedRunner
from tools.benchmarking.subjects import ROOT, FirstPrediction, PaddleImport, Ranks

__all__ = ["build_first_prediction", "build_paddle_import", "build_ranks"]

EPOCHS = 1
# Steps; the median of the intervals counts, without the first, which warms up. Two ranks have 31 steps.
LOG_INTERVAL = 5


def _run_command(*arguments: str | Path) -> None:
    """Run a command of this Python in the project's folder.

    Raises:
        UserError: it fails; the message has its last line.
    """
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        lines = result.stdout.strip().splitlines() or ["it printed nothing"]
        raise UserError(f"{' '.join(map(str, arguments))} ended with code {result.returncode}: {lines[-1]}")


class RanksRunner:
    """Trains and gives the seconds of one image, of all ranks together, by the run's own log."""

    flops, images = None, 1

    def __init__(self, ranks: int):
        self._ranks = ranks

    def run(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            _run_command(
                *("-m", "paddle.distributed.launch", "--log_dir", f"{folder}/log"),
                *(("--nproc_per_node", str(self._ranks)) if self._ranks > 1 else ()),
                *("image_classification/main_multi_gpu.py", "-output", f"{folder}/run"),
                *("-opts", "TRAIN.EPOCHS", str(EPOCHS), "VALIDATE_EVERY", str(EPOCHS)),
                *("LOG_INTERVAL", str(LOG_INTERVAL)),
            )
            log = Path(folder, "run", "log.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in log.splitlines()]
        rates = [record["images_per_second"] for record in records if record["kind"] == "train"]
        return 1.0 / statistics.median(rates[1:])


def build_ranks(subject: Ranks) -> Runner:
    return RanksRunner(subject.ranks)


def build_paddle_import(subject: PaddleImport) -> Runner:
    return TimedRunner(partial(_run_command, "-c", "import paddle"))


def build_first_prediction(subject: FirstPrediction) -> Runner:
    """Save a checkpoint with random weights and an image for ``tools/predict.py``."""
    from common.checkpoints.file_format import save_file
    from common.checkpoints.loading import numpy_state
    from common.pale_transformer import create_model
    from image_classification.config import CONFIG

    folder = tempfile.TemporaryDirectory()
    (image,) = write_photos(Path(folder.name), 1)
    recipe = ROOT / "image_classification" / "configs" / f"{subject.model}_224.yaml"
    config = CONFIG.load(Namespace(cfg=recipe, opts=[]))
    state = {"model": numpy_state(create_model(subject.model)), "task": "image_classification"}
    weights = Path(folder.name, "weights.pdparams")
    save_file({**state, "config": CONFIG.dump(config)}, weights)

    def predict() -> None:
        photo = Path(folder.name, image)  # the folder is deleted when nobody holds it any more
        _run_command("tools/predict.py", photo, "-pretrained", weights, "-device", "cpu")

    return TimedRunner(predict)
