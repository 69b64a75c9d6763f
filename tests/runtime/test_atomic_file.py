"""Files are replaced whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from common.pictures.picture_folder import PictureFolder
from common.runtime import atomic_file
from common.runtime.atomic_file import replace_file
from common.training.log import TrainingLog
from common.training.run_folder import RunFolder
from object_detection.config import CONFIG
from object_detection.detection import DetectionEvaluator
from tests.helpers.tiny_runs import load
from tools import benchmark


def write_configuration(folder: Path) -> None:
    run_folder = RunFolder(folder, 1)
    run_folder.claim("auto", overwrite=False, warn=print)
    run_folder.begin("new")


def write_log(folder: Path) -> None:
    TrainingLog().open(folder)


def write_training_picture(folder: Path) -> None:
    log = TrainingLog()
    log._file, log._visualdl = (folder / "log.jsonl").open(), Mock()
    log.picture("val/images", 1, np.zeros((8, 8, 3), np.uint8))


def write_prediction(folder: Path) -> None:
    PictureFolder(folder, []).save("cat.jpg", {"classes": Image.new("L", (8, 8))})


def write_detections(folder: Path) -> None:
    evaluator = DetectionEvaluator.__new__(DetectionEvaluator)
    evaluator._config = load(CONFIG, "-output", folder)
    evaluator._write_results("val", {"bbox": [{"score": 0.5}]})


def write_measurements(folder: Path) -> None:
    benchmark._write_csv(folder / "speed.csv", [{"model": "pale_nano", "threads": 1}])


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_configuration, "config.yaml"),
        (write_log, "log.jsonl"),
        (write_training_picture, "pictures/val_images.png"),
        (write_prediction, "cat_classes.png"),
        (write_detections, "val_bbox.json"),
        (write_measurements, "speed.csv"),
    ],
)
def test_a_disk_that_is_full_leaves_the_old_file(tmp_path, monkeypatch, write, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("old")
    (tmp_path / "log.jsonl").write_text("old")

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_file.os, "fsync", fsync)
    with pytest.raises(Exception, match="No space left"):
        write(tmp_path)
    assert file.read_text() == "old"
    assert not [path for path in tmp_path.rglob(".*") if path.suffix == ".tmp"]


@pytest.mark.parametrize("write", [atomic_file.write_text, lambda path, text: atomic_file.copy_file(Path(text), path)])
def test_a_link_that_a_process_of_the_same_number_left_keeps_its_file(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    numbered, new = Path("epoch_0001"), Path("new")
    numbered.write_text("old")
    new.write_text("new")
    Path(f".latest.{os.getpid()}.tmp").hardlink_to(numbered)
    write(Path("latest").absolute(), "new")
    assert (numbered.read_text(), Path("latest").read_text()) == ("old", "new")


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "null")  # as /dev/null, which the superuser could replace
    with pytest.raises(OSError, match="Not a regular file"):
        atomic_file.write_text(tmp_path / "null", "text")
    assert [path.name for path in tmp_path.iterdir() if path.is_fifo()] == ["null"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_another_program_has_written_meanwhile_is_kept_on_demand(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "not permitted")))
    path = tmp_path / "out"
    with replace_file(path, new=True) as file:
        file.write(b"first")
    with pytest.raises(FileExistsError), replace_file(path, new=True) as file:
        file.write(b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
