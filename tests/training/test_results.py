"""Tables of results, and what -record writes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import resource
import subprocess
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import pytest

from common import __version__
from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.pale_transformer import create_model
from common.runtime import machine
from common.runtime.csv_table import append_rows, read_table
from common.training import run as common_run
from common.training.results import Result
from image_classification.classification import Classification, ClassificationEvaluator
from image_classification.config import CONFIG
from object_detection.config import CONFIG as DETECTION
from object_detection.detection import Detection
from semantic_segmentation.config import CONFIG as SEGMENTATION
from semantic_segmentation.segmentation import Segmentation
from tests.helpers.programs import run_program
from tests.helpers.tiny_runs import load, run

COLUMNS = [field.name for field in dataclasses.fields(Result)]
RESULT = Result("pale_nano", "mnist5k", "top1", 97.4, "", 'python "a, b"\n', "0.1.0", "AMD EPYC, 2 cores", "")


# ---- the file


def test_rows_are_appended_and_read_back(tmp_path):
    file = tmp_path / "new" / "results.csv"
    assert read_table(file, Result) == []
    append_rows(file, Result, [])
    assert file.read_text() == ",".join(COLUMNS) + "\n"
    append_rows(file, Result, [RESULT])
    file.write_text(file.read_text().removesuffix("\n"))  # as an editor may save it
    append_rows(file, Result, [dataclasses.replace(RESULT, metric="top5")])
    assert read_table(file, Result) == [RESULT, dataclasses.replace(RESULT, metric="top5")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,value\na,1\n", "has other columns than model,data_set"),
        (",".join(COLUMNS) + '\n,,,1,,"two\nlines",,,\na,b,c\n', "line 4 is damaged"),
        (",".join(COLUMNS) + "\n,,,high,,,,,\n", "line 2 is damaged .*'high'"),
        (",".join(COLUMNS) + "\n,,,nan,,,,,\n", "line 2 is damaged .*nan is not finite"),
    ],
)
def test_other_or_damaged_tables_are_refused_and_unchanged(tmp_path, text, message):
    file = tmp_path / "results.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        append_rows(file, Result, [RESULT])
    assert file.read_text() == text


@pytest.mark.parametrize("rows", [[], [RESULT]])
def test_a_disk_that_is_full_leaves_the_old_rows(tmp_path, rows):
    file = tmp_path / "results.csv"
    for row in rows:
        append_rows(file, Result, [row])
    old = file.read_bytes() if rows else b""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) + 20, unlimited[1]))  # as a disk with 20 free bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            append_rows(file, Result, [RESULT])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert file.read_bytes() == old
    append_rows(file, Result, [RESULT])
    assert read_table(file, Result) == [*rows, RESULT]


def test_several_writers_share_one_heading(tmp_path):
    for number in range(20):
        file = tmp_path / f"{number}.csv"
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _, file=file: append_rows(file, Result, [RESULT]), range(8)))
        assert read_table(file, Result) == [RESULT] * 8


def test_paths_that_are_no_text_are_recorded_as_escapes(tmp_path):
    append_rows(tmp_path / "results.csv", Result, [dataclasses.replace(RESULT, data_set=os.fsdecode(b"a\xff"))])
    assert read_table(tmp_path / "results.csv", Result)[0].data_set == "a\\udcff"


# ---- a row


def test_code_version_names_the_commit_and_changes_outside_results(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_ROOT", tmp_path)

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    assert machine.code_version() == __version__  # no checkout
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/a.csv"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    version = machine.code_version()
    assert re.fullmatch(rf"{re.escape(__version__)}\+[0-9a-f]{{7,}}", version)
    (tmp_path / "results" / "a.csv").write_text("2")
    assert machine.code_version() == version
    (tmp_path / "code.py").write_text("2")
    assert machine.code_version() == f"{version}-dirty"


@pytest.mark.parametrize(
    ("task", "spec", "file", "options", "title"),
    [
        (Classification, CONFIG, "pale_tiny_224.yaml", [], "pale_tiny"),
        (Classification, CONFIG, "pale_tiny_224.yaml", ["MODEL.ATTENTION", "axial"], "pale_tiny ATTENTION=axial"),
        (Segmentation, SEGMENTATION, "upernet_pale_tiny_ade20k_160k.yml", [], "PaleUPerNet pale_tiny"),
        (Detection, DETECTION, "mask_rcnn_pale_tiny_1x_coco.yml", [], "MaskRCNN pale_tiny 12 epochs"),
    ],
)
def test_each_task_names_its_model(task, spec, file, options, title):
    config = spec.load(Namespace(cfg=spec.default_file.with_name(file), device="cpu", opts=options))
    assert task(config).model_name == title


# ---- -record


@pytest.fixture
def weights(tmp_path):
    """Untrained weights for the three classes of the shapes."""
    path = tmp_path / "weights.pdparams"
    save_file(numpy_state(create_model("pale_nano", num_classes=3)), path)
    return path


def test_an_evaluation_is_recorded_by_rank_0_alone(tmp_path, shapes_config, weights, monkeypatch):
    file = tmp_path / "results" / "mine.csv"
    flags = ("-eval", "-pretrained", weights, "-record", file)
    metrics = run(Classification, shapes_config, *flags)
    top1, ece = read_table(file, Result)  # with 3 classes, there is no top-5
    assert (ece.metric, float(ece.value)) == ("ece", pytest.approx(metrics["ece"], rel=1e-5))
    assert (top1.model, top1.data_set, top1.metric) == ("pale_nano", "folder shapes", "top1")
    assert top1.value == pytest.approx(metrics["top1"], rel=1e-5)
    assert top1.checkpoint_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert re.fullmatch(r".+, \d+ cores, Paddle \d+\.\d+\.\d+", top1.machine)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ", top1.date)
    monkeypatch.setattr(common_run, "is_main_process", lambda: False)
    run(Classification, shapes_config, *flags)
    assert len(read_table(file, Result)) == 2


def test_the_recorded_hash_is_that_of_the_evaluated_weights(tmp_path, shapes_config, weights, monkeypatch):
    """A run that goes on may replace the file during the evaluation."""
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    evaluate = ClassificationEvaluator.evaluate

    def replace_and_evaluate(*arguments):
        weights.write_bytes(b"the weights of a later epoch")
        return evaluate(*arguments)

    monkeypatch.setattr(ClassificationEvaluator, "evaluate", replace_and_evaluate)
    run(Classification, shapes_config, "-eval", "-pretrained", weights, "-record", tmp_path / "results.csv")
    assert [row.checkpoint_sha256 for row in read_table(tmp_path / "results.csv", Result)] == [sha256, sha256]


def test_a_table_with_other_columns_is_refused_before_the_evaluation(tmp_path, shapes_config, weights, monkeypatch):
    file = tmp_path / "other.csv"
    file.write_text("a,b\n")
    monkeypatch.setattr(Classification, "build_evaluation", lambda *_: pytest.fail("it was evaluated"))
    with pytest.raises(UserError, match=r"other\.csv has other columns than"):
        run(Classification, shapes_config, "-eval", "-pretrained", weights, "-record", file)


def test_only_an_evaluation_can_be_recorded_and_the_record_is_not_saved_with_a_run():
    with pytest.raises(UserError, match="-record writes the metrics of an evaluation; it needs -eval"):
        load(CONFIG, "-record", "results.csv")
    assert "RECORD" not in CONFIG.dump(load(CONFIG, "-eval", "-record"))


@pytest.mark.slow
def test_two_ranks_write_each_metric_once_with_the_command(tmp_path, shapes_config, weights):
    flags = ("-cfg", shapes_config, "-eval", "-pretrained", weights, "-record")
    result = run_program("image_classification/main_multi_gpu.py", *flags, ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    top1, ece = read_table(tmp_path / "results" / "image_classification.csv", Result)
    assert (top1.metric, ece.metric) == ("top1", "ece")
    command = "python -m paddle.distributed.launch --log_dir output/log image_classification/main_multi_gpu.py"
    assert top1.command == f"{command} -cfg {shapes_config} -eval -pretrained {weights} -record"
