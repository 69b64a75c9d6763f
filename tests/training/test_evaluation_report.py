"""The folder of -report: what it refuses and replaces, and what each task writes."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.pale_transformer import create_model
from common.training import run as common_run
from common.training.evaluation_report import prepare_report, write_report
from image_classification import classification
from image_classification.classification import Classification
from image_classification.config import CONFIG
from tests.helpers.tiny_runs import load, run


@pytest.fixture
def weights(tmp_path) -> Path:
    """Untrained weights for the three classes of the shapes."""
    path = tmp_path / "weights.pdparams"
    save_file(numpy_state(create_model("pale_nano", num_classes=3)), path)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def writes(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def test_a_report_replaces_an_earlier_one_of_another_task(tmp_path):
    folder = tmp_path / "a" / "report"
    for files in (
        {"classes.csv": b"class,objects,a\n", "precision_recall.csv": b"b"},
        {"classes.csv": b"class,images,recall,x\n", "confusion.csv": b"d"},
    ):
        prepare_report(folder)
        write_report(folder, {name: partial(writes, content=content) for name, content in files.items()})
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_a_file_of_an_unfinished_report_is_not_replaced(tmp_path):
    (tmp_path / "classes.csv").write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write to .*: No space left on device; give another -report"):
        write_report(tmp_path, {"classes.csv": fail})
    assert (tmp_path / "classes.csv").read_text() == "old"
    assert names(tmp_path) == {"classes.csv"}


@pytest.mark.parametrize("content", ["notes.txt", "classes.csv/x"])
def test_a_folder_with_other_files_is_refused_before_the_evaluation(
    tmp_path, shapes_config, weights, monkeypatch, content
):
    folder = tmp_path / "report"
    path = folder / content
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    (folder / "confusion.csv").write_text("old")
    if content != "classes.csv/x":
        (folder / "classes.csv").write_text("class,images\n")
    monkeypatch.setattr(Classification, "build_evaluation", lambda *_: pytest.fail("it was evaluated"))
    with pytest.raises(UserError, match=r"holds other files than those of a report \(.*\); give another -report"):
        run(Classification, shapes_config, "-eval", "-pretrained", weights, "-report", folder)
    assert (folder / "confusion.csv").read_text() == "old"


@pytest.mark.parametrize("name", ["classes.csv", "precision_recall.csv"])
def test_files_that_are_only_called_like_those_of_a_report_are_refused(tmp_path, name):
    (tmp_path / name).write_text("my own list of classes")
    with pytest.raises(UserError, match=r"names of a report that are none; give another -report"):
        prepare_report(tmp_path)


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*taken: File exists; give another -report"):
        prepare_report(tmp_path / "taken")


def test_only_an_evaluation_has_a_report_which_is_not_saved_with_a_run():
    with pytest.raises(UserError, match="-report writes the errors of an evaluation; it needs -eval"):
        load(CONFIG, "-report", "errors")
    assert "REPORT" not in CONFIG.dump(load(CONFIG, "-eval", "-report", "errors"))


def test_rank_0_alone_writes_the_confusions_of_a_classifier(tmp_path, shapes_config, weights, capsys, monkeypatch):
    flags = ("-eval", "-pretrained", weights, "-report", tmp_path / "report")
    run(Classification, shapes_config, *flags)
    printed = capsys.readouterr().out
    assert "eval, largest confusions" in printed
    assert "wrote classes.csv, confusion.csv, confusion.png, errors.csv to" in printed
    assert names(tmp_path / "report") == {"classes.csv", "confusion.csv", "confusion.png", "errors.csv"}
    tables = {name: (tmp_path / "report" / name).read_text().splitlines() for name in ("confusion.csv", "errors.csv")}
    rows = list(csv.DictReader(tables["confusion.csv"]))
    assert sum(int(row["count"]) for row in rows) == 21
    assert {row["true"] for row in rows} == {"red", "green", "blue"}
    wrong = list(csv.DictReader(tables["errors.csv"]))
    assert len(wrong) == sum(int(row["count"]) for row in rows if row["true"] != row["predicted"]) > 0
    assert all(Path(row["image"]).parent.name == row["true"] != row["predicted"] for row in wrong)
    probabilities = [float(row["probability"]) for row in wrong]
    assert 100 >= probabilities[0] >= probabilities[-1] > 33
    assert probabilities == sorted(probabilities, reverse=True)
    monkeypatch.setattr(common_run, "is_main_process", lambda: False)
    run(Classification, shapes_config, *flags[:-1], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_more_classes_than_a_confusion_matrix_has_are_evaluated_but_not_reported(
    tmp_path, shapes_config, weights, capsys, monkeypatch
):
    monkeypatch.setattr(classification, "MAX_CONFUSED", 2)
    flags = ("-eval", "-pretrained", weights)
    run(Classification, shapes_config, *flags)
    assert "each class" not in capsys.readouterr().out
    with pytest.raises(UserError, match="-report takes at most 2 classes, not 3; leave it out"):
        run(Classification, shapes_config, *flags, "-report", tmp_path / "report")
