"""The log of a run: progress lines, curves and pictures in VisualDL with one set of names for all tasks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from visualdl import LogReader

from common.training import log as training_log
from common.training.log import TrainingLog
from tests.helpers.programs import run_program


def newest(folder: Path) -> LogReader:
    """Of the file that VisualDL shows of a run."""
    return LogReader(file_path=str(sorted((folder / "visualdl").glob("vdlrecords.*"))[-1]))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.id, round(point.value, 5)) for point in newest(folder).get_data("scalar", tag)]


def open_log(folder: Path, last_step: int = -1) -> TrainingLog:
    log = TrainingLog()
    log.open(folder, last_step)
    return log


@pytest.mark.parametrize(("lines", "expected"), [(True, ["checking: 1 of 2", "checking: 2 of 2"]), (False, [])])
def test_progress_is_lines_without_a_terminal(monkeypatch, capsys, lines, expected):
    monkeypatch.setattr(training_log, "_INTERVALS", {"delay": 1e-9, "mininterval": 0.0})
    with TrainingLog().progress(2, "checking", lines=lines) as bar:
        bar.update(1)
        bar.update(1)
    out, err = capsys.readouterr()
    assert [line.partition(",")[0] for line in out.splitlines() if line.strip()] == expected
    assert not err


def test_short_progress_prints_nothing_and_batches_pass(capsys):
    assert list(TrainingLog().batches(["a", "b"], "val")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_a_resumed_curve_is_whole_and_drops_the_steps_that_are_trained_again(tmp_path):
    log = open_log(tmp_path)
    for step in (1, 2, 3):
        log.record("train", step, loss=1 / step, epoch=step / 3)
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # cut by a kill
    time.sleep(1.1)  # VisualDL names its files after the second
    log = open_log(tmp_path, last_step=2)
    log.record("train", 3, loss=0.25, epoch=1.0)
    log.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(newest(tmp_path).get_tags()["scalar"]) == 1  # the epoch is no curve
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_visualdls_server_reads_metrics_and_pictures_of_one_evaluation(tmp_path):
    """It stops at a name that is both a curve and a picture."""
    log = open_log(tmp_path / "run")
    for step in (1, 2):
        log.record("val", step, top1=90.0, images=1000)
        log.picture("val/images", step, np.zeros((8, 8, 3), np.uint8))
    log.histogram("weights/a", 1, np.arange(3.0))
    log.close()
    assert LogReader(logdir=str(tmp_path)).components() >= {"scalar", "image", "histogram"}
    assert (tmp_path / "run" / "pictures" / "val_images.png").is_file()


def test_a_log_that_is_not_open_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = TrainingLog()
    assert not log.has_visualdl
    log.record("val", 1, top1=1.0)
    log.histogram("weights/a", 1, np.arange(3.0))
    log.picture("val/images", 1, np.zeros((2, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image_classification", "semantic_segmentation", "object_detection"])
def test_all_tasks_have_one_layout(tmp_path, task, request):
    fixture, part = {
        "image_classification": ("shapes_config", "top1"),
        "semantic_segmentation": ("squares_config", "aAcc"),
        "object_detection": ("boxes_config", "loss_rpn_cls"),
    }[task]
    config = request.getfixturevalue(fixture)
    options = ("-output", tmp_path / "run", "-opts", "HISTOGRAMS", "True", "LOG_INTERVAL", "1", "PICTURES", "2")
    result = run_program(f"{task}/main_multi_gpu.py", "-cfg", config, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    tags = newest(tmp_path / "run").get_tags()
    found = {kind: {tag.replace("%", "/") for tag in tags[kind]} for kind in ("scalar", "image", "histogram")}
    expected = {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", f"train/{part}"}
    assert expected <= found["scalar"]
    assert any(tag.startswith("val/") for tag in found["scalar"])
    assert "train/epoch" not in found["scalar"]
    assert "train/samples" in found["image"]
    assert any(tag.startswith("val/image") for tag in found["image"])
    assert {tag.partition("/")[0] for tag in found["histogram"]} == {"weights", "gradients"}
    assert "train_samples.png" in {file.name for file in (tmp_path / "run" / "pictures").iterdir()}
