"""What several tests need: a tiny data set, and the launcher run as a user runs it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}


def make_shapes(folder: Path, images: int) -> None:
    """Write ``images`` 40x48 PNGs of a coloured square on noise into one folder for each colour."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(0, 60, (40, 48, 3)).astype(np.uint8)
            pixels[10:30, 10:30] = colour
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A class-per-folder data set with 3 x 12 training and 3 x 7 validation images."""
    make_shapes(tmp_path / "shapes" / "train", 12)
    make_shapes(tmp_path / "shapes" / "val", 7)
    return tmp_path / "shapes"


@pytest.fixture
def shapes_config(tmp_path: Path, shapes: Path) -> Path:
    """A configuration that trains pale_nano on :func:`shapes` for two epochs in about a second."""
    path = tmp_path / "shapes.yaml"
    path.write_text(
        f"""\
BASE: {ROOT}/image_classification/configs/pale_nano_mnist5k.yaml
DATA: {{DATASET: folder, DATA_PATH: {shapes}, BATCH_SIZE: 6, BATCH_SIZE_EVAL: 4}}
TRAIN: {{EPOCHS: 2, WARMUP_EPOCHS: 0}}
VALIDATE_EPOCHS: 1
LOG_INTERVAL: 2
OUTPUT: {tmp_path}/out
"""
    )
    return path


def start_program(
    script: str,
    *arguments: object,
    ranks: int = 0,
    cwd: Path = ROOT,
    launch: tuple[str, ...] = (),
    prefix: tuple[str, ...] = (),
) -> subprocess.Popen:
    """Start a script of the project in a process group of its own, under the launcher if ``ranks`` is given.

    ``launch`` are further flags of the launcher, ``prefix`` a command that runs the whole.
    """
    command = [sys.executable, str(ROOT / script)]
    if ranks:
        command[1:1] = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), *launch]
        command[3:3] = ["--log_dir", str(cwd / "log")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    return subprocess.Popen(
        [*prefix, *command, *map(str, arguments)],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_program(process: subprocess.Popen) -> None:
    """SIGKILL a program and the ranks it launched, which the launcher puts into sessions of their own."""
    for child in (*psutil.Process(process.pid).children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            child.kill()


def run_program(script: str, *arguments: object, ranks: int = 0, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script as :func:`start_program` does, to its end; stdout and stderr come as one text."""
    process = start_program(script, *arguments, ranks=ranks, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        kill_program(process)
        output, _ = process.communicate()
        raise AssertionError(f"still running after 300 s:\n{output}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, output)
