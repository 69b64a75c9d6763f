"""The log of a run: progress lines, curves and pictures in VisualDL with one set of names for all tasks."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from visualdl import LogReader

from common.training import log as training_log
from common.training.log import Position, TrainingLog
from tests.helpers.programs import run_program


def shown(folder: Path) -> LogReader:
    """Of the file that VisualDL shows of a run."""
    (file,) = (folder / "visualdl").glob("vdlrecords.*")
    return LogReader(file_path=str(file))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.id, round(point.value, 5)) for point in shown(folder).get_data("scalar", tag)]


def open_log(folder: Path, step: int = 0, steps_per_epoch: int = 3, is_validated: bool = True) -> TrainingLog:
    log = TrainingLog()
    log.open(folder, Position(step, steps_per_epoch, is_validated))
    return log


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


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


def test_lines_show_no_control_characters(capsys):
    TrainingLog().line("weights a\x1b[2J:\n  two  blanks")
    assert capsys.readouterr().out == "weights a\\x1b[2J:\n  two  blanks\n"


def test_a_resumed_curve_is_whole_and_drops_the_steps_that_are_trained_again(tmp_path):
    log = open_log(tmp_path)
    for step in (1, 2, 3):
        log.record("train", step, loss=1 / step, epoch=step / 3)
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # cut by a kill
    (file,) = (tmp_path / "visualdl").iterdir()
    file.rename(file.with_name("vdlrecords.9999999999.log"))  # of a clock that was ahead
    log = open_log(tmp_path, step=2)
    log.record("train", 3, loss=0.25, epoch=1.0)
    log.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(shown(tmp_path).get_tags()["scalar"]) == 1  # the epoch is no curve
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]


def test_what_is_not_finite_is_left_out(tmp_path):
    log = open_log(tmp_path)
    log.record("val", 3, loss=float("nan"), top1=5.0)
    log.close()
    assert records(tmp_path) == [{"kind": "val", "step": 3, "top1": 5.0}]


@pytest.mark.parametrize(("is_validated", "kept"), [(True, ["val", "train", "val"]), (False, ["val", "train"])])
def test_the_records_of_a_validation_that_was_not_completed_are_dropped(tmp_path, is_validated, kept):
    log = open_log(tmp_path)
    for kind, step in (("val", 3), ("train", 6), ("val", 6)):
        log.record(kind, step, epoch=step / 3, loss=1.0)
    log.close()
    open_log(tmp_path, step=6, is_validated=is_validated).close()
    assert [record["kind"] for record in records(tmp_path)] == kept


@pytest.mark.parametrize("steps_per_epoch", [2, 4, 16])
def test_the_log_of_some_ranks_joins_that_of_others(tmp_path, steps_per_epoch):
    """They count the steps of an epoch differently."""
    log = open_log(tmp_path)
    for step in range(1, 17):
        log.record("train", step, epoch=step / 4, loss=float(step))
    log.close()
    before = records(tmp_path)
    log = open_log(tmp_path, step=3 * steps_per_epoch, steps_per_epoch=steps_per_epoch)
    log.record("train", 4 * steps_per_epoch, epoch=4.0, loss=0.5)
    log.close()
    assert records(tmp_path)[:-1] == before[:12]
    assert [record["epoch"] for record in records(tmp_path)[12:]] == [4.0]
    curve = scalars(tmp_path, "train/loss")
    assert curve == sorted(curve, key=lambda point: point[0])
    assert {(steps_per_epoch, 4.0), (3 * steps_per_epoch, 12.0), (4 * steps_per_epoch, 0.5)} <= set(curve)


def test_what_is_no_record_is_dropped(tmp_path):
    others = [
        "[1]", "7", "null", "{}", '{"kind": "train"}', '{"kind": 1, "step": 1}', '{"kind": "train", "step": "1"}',
        '{"kind": "train", "step": true}', '{"kind": "train", "step": NaN}', '{"kind": "train", "step": -1}',
        '{"kind": "train", "step": 1, "epoch": "1"}', '{"kind": "train", "step": 1, "epoch": NaN}',
        '{"kind": "train", "step": 1, "loss": "low"}', '{"kind": "train", "step": 1, "loss": [1]}',
        '{"kind": "train", "step": 1, "a%b": 1}', '{"kind": "train", "step": 1, "\\ud800": 1}',
        *(f'{{"kind": "train", "step": 1, "loss": 1{zeros * "0"}}}' for zeros in (400, 5000)), "[" * 100_000, "\udcff",
    ]  # fmt: skip
    record = '{"kind": "train", "step": 1, "loss": NaN, "top1": 50}'  # of a step that was skipped
    (tmp_path / "log.jsonl").write_bytes("\n".join([*others, record]).encode(errors="surrogateescape"))
    open_log(tmp_path, step=2).close()
    assert (tmp_path / "log.jsonl").read_text() == f"{record}\n"


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


def test_no_values_of_a_histogram_end_a_run(tmp_path):
    log = open_log(tmp_path)
    close = np.float32([1, np.nextafter(np.float32(1), np.float32(2))])  # no buckets in float32
    for name, values in (("close", close), ("tiny", np.float32([0, 1e-45])), ("huge", np.float32([1e30]))):
        log.histogram(f"gradients/{name}", 1, values)
    log.close()
    assert len(shown(tmp_path).get_tags()["histogram"]) == 2


def test_the_name_of_a_folder_may_be_no_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"run\xff")
    open_log(folder).close()
    assert shown(folder)


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
    tags = shown(tmp_path / "run").get_tags()
    found = {kind: {tag.replace("%", "/") for tag in tags[kind]} for kind in ("scalar", "image", "histogram")}
    expected = {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", f"train/{part}"}
    assert expected <= found["scalar"]
    assert any(tag.startswith("val/") for tag in found["scalar"])
    assert "train/epoch" not in found["scalar"]
    assert "train/samples" in found["image"]
    assert any(tag.startswith("val/image") for tag in found["image"])
    assert {tag.partition("/")[0] for tag in found["histogram"]} == {"weights", "gradients"}
    assert "train_samples.png" in {file.name for file in (tmp_path / "run" / "pictures").iterdir()}


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_for_the_lines_ends_no_training(monkeypatch, problem):
    log = TrainingLog()
    log._file = Mock()
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", Mock(wraps=full, flush=Mock(side_effect=OSError(problem, "full"))))
        log.line("a line")
        log.line("another")
    assert log.reader_is_gone


def test_a_pipe_in_place_of_the_log_is_refused(tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(OSError, match="Not a regular file"):
        TrainingLog().open(tmp_path)
