"""What VisualDL shows of a training: the same names in all tasks, whole curves after a resume, in a real browser."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visualdl import LogReader

from common.training.log import TrainingLog
from tests.helpers.programs import run_program


def newest(folder: Path) -> LogReader:
    """Of the file that VisualDL shows of a run."""
    return LogReader(file_path=str(sorted((folder / "visualdl").glob("vdlrecords.*"))[-1]))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.id, round(point.value, 5)) for point in newest(folder).get_data("scalar", tag)]


def test_a_resumed_curve_is_whole_and_never_goes_back(tmp_path):
    log = TrainingLog(tmp_path)
    for step in (1, 2, 3):
        log.record("train", step, loss=1 / step, epoch=step / 3)
    log.close()
    time.sleep(1.1)  # VisualDL names its files after the second
    log = TrainingLog(tmp_path)
    log.rewind(2)
    log.record("train", 3, loss=0.25, epoch=1.0)
    log.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(newest(tmp_path).get_tags()["scalar"]) == 1  # an epoch is no curve
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.slow
def test_the_last_evaluation_has_histograms_off_the_interval_too(tmp_path, shapes_config):
    options = ("HISTOGRAMS", "True", "TRAIN.EPOCHS", "3", "VALIDATE_EPOCHS", "2")
    result = run_program("image_classification/main_multi_gpu.py", "-cfg", shapes_config, "-opts", *options)
    assert result.returncode == 0, result.stdout
    histogram = newest(tmp_path / "out").get_data("histogram", "weights/head.weight")
    evaluations = [step for step, _ in scalars(tmp_path / "out", "val/top1")]
    assert len(evaluations) == 2
    assert [point.id for point in histogram] == evaluations


def test_the_server_reads_figures_and_pictures_of_one_evaluation(tmp_path):
    """It stops at a name that is a curve first and a picture later."""
    log = TrainingLog(tmp_path / "run")
    for step in (1, 2):
        log.record("val", step, top1=90.0, images=1000)
        log.picture("val/images", step, np.zeros((8, 8, 3), np.uint8))
    log.close()
    assert LogReader(logdir=str(tmp_path)).components() >= {"scalar", "image"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image_classification", "semantic_segmentation", "object_detection"])
def test_all_tasks_have_one_layout(tmp_path, task, request):
    fixture, loss_parts = {
        "image_classification": ("shapes_config", {"top1"}),
        "semantic_segmentation": ("squares_config", {"aAcc"}),
        "object_detection": ("boxes_config", {"loss_rpn_cls"}),
    }[task]
    config = request.getfixturevalue(fixture)
    launcher = f"{task}/main_multi_gpu.py"
    options = ("-output", tmp_path / "run", "-opts", "HISTOGRAMS", "True", "LOG_INTERVAL", "1", "PICTURES", "2")
    result = run_program(launcher, "-cfg", config, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    tags = newest(tmp_path / "run").get_tags()
    found = {kind: {tag.replace("%", "/") for tag in tags[kind]} for kind in ("scalar", "image", "histogram")}
    expected = {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second"}
    assert expected | {f"train/{part}" for part in loss_parts} <= found["scalar"]
    assert any(tag.startswith("val/") for tag in found["scalar"])
    assert "train/epoch" not in found["scalar"]
    assert "train/samples" in found["image"]
    assert any(tag.startswith("val/image") for tag in found["image"])
    assert LogReader(logdir=str(tmp_path / "run")).components() >= found.keys()  # as the server reads it
    kinds = {tag.partition("/")[0] for tag in found["histogram"]}
    assert kinds == {"weights", "gradients"}
    assert any("attention.projection.weight" in tag for tag in found["histogram"])
    pictures = {file.name for file in (tmp_path / "run" / "pictures").iterdir()}
    assert "train_samples.png" in pictures


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.alone
def test_the_server_shows_the_curves_in_a_browser(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("there is no Chromium; on Debian: apt-get install chromium")
    log = TrainingLog(tmp_path / "run")
    for step in range(1, 30):
        log.record("train", step, loss=1 / step, lr=step / 1000)
        log.record("val", step, top1=100 - 90 / step)
    log.close()
    port = free_port()
    command = [sys.executable, "-m", "visualdl.server.app", "--logdir", str(tmp_path), "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            runs = wait_for(f"{address}/app/api/runs")
            assert json.loads(runs)["data"] == ["run"]
            browse = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
            browse += ["--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}"]
            page = f"{address}/app/scalar"
            dom = subprocess.run([*browse, "--dump-dom", page], capture_output=True, text=True, timeout=90).stdout
            for text in (">train</h3>", ">val</h3>", 'title="run"'):
                assert text in dom
            assert dom.count("<canvas") >= 2  # names of curves are drawn, too
            picture = tmp_path / "page.png"
            subprocess.run([*browse, f"--screenshot={picture}", page], capture_output=True, timeout=90)
            pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)[200:, :1100]
            line = (abs(pixels - (41, 50, 225)) < 40).all(-1)  # VisualDL's blue, of the curve of the first run
            assert line.sum() > 300
            assert np.ptp(np.flatnonzero(line.any(axis=0))) > 300  # a curve, not a button
        finally:
            server.terminate()


def wait_for(address: str, seconds: float = 60) -> bytes:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
