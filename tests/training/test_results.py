"""Tables of results: they grow by whole lines, and an evaluation writes down what it was of."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from common import __version__
from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.pale_transformer import create_model
from common.runtime import machine
from common.training import task as common_task
from common.training.measurement import Measurement, make_results
from common.training.results import Result, append_results, read_results
from image_classification.classification import Classification
from image_classification.config import CONFIG
from object_detection import detection
from object_detection.config import CONFIG as DETECTION
from semantic_segmentation.config import CONFIG as SEGMENTATION
from semantic_segmentation.inference import InferenceSettings
from semantic_segmentation.segmentation import Segmentation
from tests.helpers.programs import ROOT, run_program

COLUMNS = [field.name for field in dataclasses.fields(Result)]
TEXTS = ["pale_nano", "mnist5k", "top1", "97.4", "", "", 'python "a, b"\n', "0.1.0", "AMD EPYC, 2 cores", ""]


def result(**changes) -> Result:
    return Result(**{**dict(zip(COLUMNS, TEXTS, strict=True)), **changes})


# ---- the file


def test_lines_come_back_as_they_were(tmp_path):
    file = tmp_path / "new" / "results.csv"
    assert read_results(file) == []
    append_results(file, [])
    assert file.read_text() == ",".join(COLUMNS) + "\n"
    append_results(file, [result(), result(metric="top5")])
    append_results(file, [result(value="1")])
    assert read_results(file) == [result(), result(metric="top5"), result(value="1")]
    assert [path.name for path in file.parent.iterdir()] == ["results.csv"]


def test_no_line_is_lost_where_several_append(tmp_path):
    file = tmp_path / "results.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_results(file, [result(value=str(number))]), range(40)))
    assert sorted(int(row.value) for row in read_results(file)) == list(range(40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,value\na,1\n", "does not begin with the columns model,data_set"),
        ("", "does not begin with the columns"),
        (",".join(COLUMNS) + '\n,,,,,,"two\nlines",,,\na,b,c\n', r"line 4 is damaged"),
        (",".join(COLUMNS) + "\na,b,c\n", r"line 2 is damaged \(3 of 10 cells\); mend or delete it"),
    ],
)
def test_other_or_damaged_tables_are_refused_and_stay(tmp_path, text, message):
    file = tmp_path / "results.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        append_results(file, [result()])
    assert file.read_text() == text


def test_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot (read|write) .*file/results.csv.*"):
        append_results(tmp_path / "file" / "results.csv", [result()])


# ---- what a line says


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout of its own, in the place of the project's."""
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
    return tmp_path


def test_code_version_names_the_commit_and_changes_but_not_those_of_results(repository):
    version = machine.code_version()
    assert re.fullmatch(rf"{re.escape(__version__)}\+[0-9a-f]{{7,}}", version)
    (repository / "results" / "a.csv").write_text("2")
    assert machine.code_version() == version
    assert machine.git_state().endswith("-dirty")
    (repository / "code.py").write_text("2")
    assert machine.code_version() == f"{version}-dirty"


def classification(*options: object) -> Classification:
    path = ROOT / "image_classification" / "configs" / "pale_tiny_224.yaml"
    return Classification(CONFIG.load(Namespace(cfg=path, device="cpu", opts=[str(option) for option in options])))


IMAGENET = {"top1": 83.0, "top5": 96.0, "loss": 1.0, "images": 50_000}


def measure(task, figures, classes=1000) -> Measurement:
    return task.measurement(SimpleNamespace(num_classes=classes), figures)


def test_the_papers_model_on_the_papers_data_carries_its_figure(tmp_path):
    weights = tmp_path / "weights.pdparams"
    weights.write_bytes(b"weights")
    measurement = measure(classification(), IMAGENET)
    top1, top5 = make_results(measurement, "image_classification", weights, "cpu")
    assert (top1.model, top1.data_set, top1.metric, top1.value) == ("pale_tiny", "ImageNet-1K", "top1", "83")
    assert (top1.paper_value, top5.paper_value) == ("83.4", "")
    assert top1.checkpoint_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert re.fullmatch(r".+, \d+ cores, Paddle \d+\.\d+\.\d+", top1.machine)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ", top1.date)


@pytest.mark.parametrize(
    ("options", "figures", "model", "data_set"),
    [
        (["MODEL.ATTENTION", "axial"], IMAGENET, "pale_tiny ATTENTION=axial", "ImageNet-1K"),
        (["DATA.IMAGE_SIZE", 384], IMAGENET, "pale_tiny", "ImageNet-1K"),
        (["DATA.DATA_PATH", "my/photos"], {**IMAGENET, "images": 9}, "pale_tiny", "imagenet2012 photos"),
        (["DATA.DATASET", "mnist5k"], IMAGENET, "pale_tiny", "mnist5k"),
    ],
)
def test_other_models_sizes_and_data_do_not(options, figures, model, data_set):
    measurement = measure(classification(*options), figures)
    assert (measurement.model, measurement.data_set) == (model, data_set)
    assert measurement.paper_model in ("", "pale_tiny ATTENTION=axial")  # of which the paper prints nothing


def test_top1_with_token_labels_is_another_column_of_the_paper():
    task = classification("TOKEN_LABEL.MAPS", "label_maps", "AUG.MIXUP", 0, "AUG.CUTMIX", 0)
    assert list(measure(task, IMAGENET).figures) == ["top1_token_labels", "top5"]


def segmentation(*options: str) -> Segmentation:
    path = ROOT / "semantic_segmentation" / "configs" / "upernet_pale_tiny_ade20k_160k.yml"
    return Segmentation(SEGMENTATION.load(Namespace(cfg=path, device="cpu", opts=options)))


def test_segmentation_tells_scales_and_models_apart():
    figures = {"mIoU": 50.0, "mAcc": 60.0, "images": 2_000}
    task = segmentation()
    task._inference = InferenceSettings()
    assert measure(task, figures) == Measurement(
        "PaleUPerNet pale_tiny", "ADE20K", {"mIoU": 50.0, "mAcc": 60.0}, "pale_tiny"
    )
    task._inference = InferenceSettings(aug_eval=True, scales=(0.75, 1.0))
    assert list(measure(task, figures).figures) == ["mIoU_multi_scale", "mAcc_multi_scale"]
    task = segmentation("model.channels", "256")
    task._inference = InferenceSettings()
    narrow = measure(task, figures)
    assert (narrow.model, narrow.paper_model) == ("PaleUPerNet pale_tiny channels=256", "")
    task = segmentation()
    task._inference = InferenceSettings()
    assert measure(task, {**figures, "images": 10}).paper_model == ""


@pytest.mark.parametrize(
    ("options", "size", "images", "data_set", "row"),
    [
        ([], 41.4e6, 5_000, "COCO", "pale_tiny"),
        ([], 44.0e6, 5_000, "COCO", ""),  # another neck or head
        ([], 41.4e6, 8, "COCODataSet coco", ""),
        (["epoch", "36"], 41.4e6, 5_000, "COCO", ""),
        (["EvalDataset.anno_path", "annotations/mine.json"], 41.4e6, 5_000, "COCODataSet coco", ""),
    ],
)
def test_detection_knows_the_papers_row(monkeypatch, options, size, images, data_set, row):
    path = ROOT / "object_detection" / "configs" / "mask_rcnn_pale_tiny_1x_coco.yml"
    task = detection.Detection(DETECTION.load(Namespace(cfg=path, device="cpu", opts=options)))
    monkeypatch.setattr(detection, "params", lambda model: size)
    measurement = measure(task, {"box_AP": 47.0, "images": images})
    assert measurement.model == f"MaskRCNN pale_tiny {task.config.epoch} epochs"
    assert (measurement.data_set, measurement.paper_model) == (data_set, row)


# ---- -record


@pytest.fixture
def weights(tmp_path):
    """Weights, not trained, for the three classes of the shapes."""
    path = tmp_path / "weights.pdparams"
    save_file(numpy_state(create_model("pale_nano", num_classes=3)), path)
    return path


def load(config, *options):
    return CONFIG.load(Namespace(cfg=config, device="cpu", opts=[], **dict(options)))


def test_an_evaluation_is_recorded_by_rank_0_alone(tmp_path, shapes_config, weights, monkeypatch):
    file = tmp_path / "results" / "mine.csv"
    config = load(shapes_config, ("eval", True), ("pretrained", str(weights)), ("record", str(file)))
    figures = Classification(config).run()
    (top1,) = read_results(file)  # of 3 classes, there is no top-5
    assert (top1.metric, float(top1.value)) == ("top1", pytest.approx(figures["top1"], rel=1e-5))
    assert (top1.model, top1.data_set) == ("pale_nano", "folder shapes")
    assert top1.checkpoint_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(common_task, "is_main_process", lambda: False)
    Classification(config).run()
    assert len(read_results(file)) == 1


def test_a_table_that_cannot_take_the_figures_is_refused_before_the_evaluation(tmp_path, shapes_config, weights):
    file = tmp_path / "other.csv"
    file.write_text("a,b\n")
    task = Classification(load(shapes_config, ("eval", True), ("pretrained", str(weights)), ("record", str(file))))
    task.build_evaluation = lambda: pytest.fail("it was evaluated")
    with pytest.raises(UserError, match=r"other\.csv does not begin with the columns"):
        task.run()


def test_only_an_evaluation_can_be_recorded(shapes_config):
    with pytest.raises(UserError, match="-record writes the figures of an evaluation down; it needs -eval"):
        load(shapes_config, ("record", "results.csv"))


def test_the_record_is_no_part_of_a_runs_configuration(shapes_config, weights):
    config = load(shapes_config, ("eval", True), ("record", "results.csv"))
    assert "RECORD" not in CONFIG.dump(config)


@pytest.mark.slow
def test_two_ranks_write_each_figure_once_with_the_command(tmp_path, shapes_config, weights):
    flags = ("-cfg", shapes_config, "-eval", "-pretrained", weights, "-record")
    result = run_program("image_classification/main_multi_gpu.py", *flags, ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    (top1,) = read_results(tmp_path / "results" / "image_classification.csv")
    assert top1.metric == "top1"
    command = "python -m paddle.distributed.launch image_classification/main_multi_gpu.py"
    assert top1.command == f"{command} -cfg {shapes_config} -eval -pretrained {weights} -record"
