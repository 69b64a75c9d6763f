"""Objects of single images: what is read, what is written and said, and which task weights belong to."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image
from pycocotools import mask as rle_masks

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import Checkpoint, numpy_state
from common.data import image_limits
from common.errors import UserError
from common.inference.predictor import PredictOptions
from common.tasks import TASKS
from object_detection import prediction
from object_detection.components import build_model
from object_detection.config import CONFIG
from object_detection.pictures import draw_detections
from object_detection.prediction import Detector
from tests.helpers.programs import ROOT

NAMES = ["cat", "dog"]


def random_image(height=40, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def detections(height, width, masks=True):
    """Three objects, the last of which is not certain."""
    boxes = np.array([[1, 2, 11.5, 22], [5, 5, 20, 30], [0, 0, 4, 4]], np.float32)
    rles = [rle_masks.encode(np.asfortranarray(np.eye(height, width, number, np.uint8))) for number in range(3)]
    scores = np.array([0.9, 0.6, 0.3], np.float32)
    return SimpleNamespace(boxes=boxes, labels=np.array([1, 0, 1]), scores=scores, masks=rles if masks else None)


@pytest.fixture
def config():
    """The default one, which resizes to 256 pixels."""
    return CONFIG.load(Namespace(cfg=CONFIG.default_file, opts=[]))


@pytest.fixture
def build(monkeypatch, config):
    """Builds a detector that finds the same on all images."""

    def build(class_names=tuple(NAMES), num_classes=0, masks=True, weights=None):
        def detect(model, batch):
            assert not model.training
            height, width = np.rint((batch["im_shape"] / batch["scale_factor"]).numpy()[0]).astype(int)
            return detections(height, width, masks)

        monkeypatch.setattr(prediction, "build_model", lambda config, num_classes: nn.Linear(3, num_classes))
        monkeypatch.setattr(prediction, "detect", detect)
        state = {"model": weights or numpy_state(nn.Linear(3, len(class_names) or num_classes or 1))}
        state |= {"class_names": list(class_names)} if class_names else {}
        config.defrost()
        config.num_classes = num_classes
        return Detector.from_checkpoint(Checkpoint.from_state(state, "best"), config)

    return build


def predict(detector, *files, out, threshold=0.5):
    return list(detector.predict([str(file) for file in files], PredictOptions(threshold=threshold, out=out)))


# ---- what is found


def test_each_object_is_said_and_drawn(tmp_path, build):
    random_image().save(tmp_path / "a.png")
    (result,) = predict(build(), tmp_path / "a.png", out=tmp_path / "new" / "out")
    assert json.loads(json.dumps(result)) == result, "plain values"
    assert result["image"] == str(tmp_path / "a.png")
    assert result["picture"] == str(tmp_path / "new" / "out" / "a_detections.png")
    first, second = result["detections"]
    assert (first["label"], first["name"], first["box"]) == (1, "dog", [1, 2, 11.5, 22])
    assert (second["label"], second["name"]) == (0, "cat")
    assert [first["score"], second["score"]] == pytest.approx([0.9, 0.6])
    np.testing.assert_array_equal(rle_masks.decode(second["segmentation"]), np.eye(40, 30, 1))

    found = detections(40, 30)
    shown = found.boxes[:2], found.labels[:2], found.scores[:2], found.masks[:2]
    expected = draw_detections(np.asarray(random_image()), *shown, NAMES)
    with Image.open(result["picture"]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_objects_below_the_threshold_are_left_out(tmp_path, build):
    random_image().save(tmp_path / "a.png")
    detector = build()
    (result,) = predict(detector, tmp_path / "a.png", out=tmp_path / "out", threshold=0.0)
    assert [row["score"] for row in result["detections"]] == pytest.approx([0.9, 0.6, 0.3])
    assert detector.describe(result).splitlines() == [
        f"{tmp_path / 'a.png'} -> {tmp_path / 'out' / 'a_detections.png'}",
        "     2  dog  (score 0.30 to 0.90)",
        "     1  cat  (score 0.60 to 0.60)",
    ]
    (result,) = predict(detector, tmp_path / "a.png", out=tmp_path / "out", threshold=0.95)
    assert detector.describe(result).splitlines()[1:] == [
        "     0  objects (the best score, 0.9000, is below -threshold)"
    ]


def test_models_without_masks_give_boxes_only(tmp_path, build):
    random_image().save(tmp_path / "a.png")
    (result,) = predict(build(masks=False), tmp_path / "a.png", out=tmp_path / "out")
    assert [sorted(row) for row in result["detections"]] == [["box", "label", "name", "score"]] * 2


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_images_of_any_mode_are_drawn_in_color(tmp_path, build, mode):
    gray = np.asarray(random_image(700, 640).convert("L"))
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    if mode == "RGBA":
        image.putalpha(3)
    image.save(tmp_path / "a.png")
    (result,) = predict(build(), tmp_path / "a.png", out=tmp_path / "out", threshold=1)
    with Image.open(result["picture"]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), gray[..., np.newaxis].repeat(3, axis=2))


def test_a_whole_model_predicts_and_prints_nothing_by_itself(tmp_path, config, capfd):
    paddle.seed(0)
    checkpoint = Checkpoint("random", numpy_state(build_model(config, 2)), class_names=NAMES)
    random_image(1, 900).save(tmp_path / "flat.png")
    random_image(90, 120).save(tmp_path / "a.png")
    detector = Detector.from_checkpoint(checkpoint, config)
    capfd.readouterr()
    flat, result = predict(detector, tmp_path / "flat.png", tmp_path / "a.png", out=tmp_path / "out", threshold=0)
    assert capfd.readouterr().out == "", "-json would print it, too"
    assert "error" in flat
    scores = [row["score"] for row in result["detections"]]
    assert len(scores) > 10
    assert scores == sorted(scores, reverse=True)
    assert {row["name"] for row in result["detections"]} <= set(NAMES)
    assert all(rle_masks.decode(row["segmentation"]).shape == (90, 120) for row in result["detections"])


def test_outputs_that_are_not_finite_are_an_error_of_the_image(tmp_path, config):
    paddle.seed(0)
    weights = numpy_state(build_model(config, 2))
    weights |= {name: array * np.float32(1e30) for name, array in weights.items() if ".mlp." in name}
    detector = Detector.from_checkpoint(Checkpoint("large", weights, class_names=NAMES), config)
    random_image(90, 120).save(tmp_path / "a.png")
    (result,) = predict(detector, tmp_path / "a.png", out=tmp_path / "out", threshold=0)
    assert "the outputs of the model are not finite" in result["error"]


# ---- classes and weights


def test_classes_without_names_are_numbers(tmp_path, build):
    random_image().save(tmp_path / "a.png")
    (result,) = predict(build(class_names=(), num_classes=2), tmp_path / "a.png", out=tmp_path / "out")
    assert [row["name"] for row in result["detections"]] == ["1", "0"]


def test_weights_that_do_not_fit_are_refused(build):
    with pytest.raises(UserError, match="best does not name its classes; give a -cfg with num_classes"):
        build(class_names=(), num_classes=0)
    with pytest.raises(UserError, match="best"):
        build(weights={"weight": np.zeros((3, 5), np.float32)})


# ---- files


def test_what_cannot_be_predicted_is_said_and_the_rest_is_predicted(tmp_path, build, monkeypatch):
    monkeypatch.setattr(image_limits, "_MAX_RATIO", 1000)
    (tmp_path / "text.png").write_text("no image")
    random_image(1, 900).save(tmp_path / "flat.png")
    random_image().save(tmp_path / "good.png")
    files = [tmp_path / name for name in ("missing.png", "text.png", "flat.png", "good.png")]
    *wrong, good = predict(build(), *files, out=tmp_path / "out")
    assert [result["image"] for result in wrong] == [str(file) for file in files[:3]]
    assert wrong[0]["error"].startswith(f"image {files[0]} does not exist; ")
    assert wrong[1]["error"].startswith(f"cannot read image {files[1]}: its content is none of BMP")
    assert wrong[2]["error"].startswith(f"image {files[2]}: EvalReader cannot take 900x1 pixels (")
    assert "\n" not in wrong[2]["error"]
    assert len(good["detections"]) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path, build):
    random_image().save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"cannot write to .*a\.png.*give another -out"):
        predict(build(), tmp_path / "a.png", out=tmp_path / "a.png" / "out")


# ---- the program


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return importlib.import_module("tools.predict")


def test_the_configuration_tells_the_task_where_the_weights_do_not(tmp_path, program):
    (tmp_path / "base.yml").write_text("architecture: MaskRCNN")
    (tmp_path / "own.yml").write_text("_base_: base.yml")
    assert program._task_of_config(str(tmp_path / "own.yml")) == "object_detection"
    assert program._task_of_config(None) == "image_classification"
    for task in TASKS:
        files = [
            file for file in (ROOT / task / "configs").glob("*.y*ml") if "own_data" in file.name or "pale" in file.name
        ]
        assert {program._task_of_config(str(file)) for file in files} == {task}


@pytest.mark.parametrize("threshold", ["-0.1", "nan", "much"])
def test_an_impossible_threshold_is_named(program, threshold):
    with pytest.raises(UserError, match=threshold):
        program.main(["a.png", "-pretrained", "x.pdparams", f"-threshold={threshold}"])


@pytest.mark.slow
def test_the_program_prints_json_and_nothing_else(tmp_path, config):
    """Not even what PaddleDetection says when it is imported, and when it cannot resize an image."""
    paddle.seed(0)
    model = build_model(config, 2)
    state = {"task": "object_detection", "model": numpy_state(model), "class_names": NAMES, "config": config.dump()}
    save_file(state, tmp_path / "random.pdparams")
    random_image(1, 900).save(tmp_path / "flat.png")
    random_image().save(tmp_path / "a.png")
    flags = ("flat.png", "a.png", "-pretrained", "random.pdparams", "-threshold", "0.99", "-json")
    command = [sys.executable, ROOT / "tools" / "predict.py", *flags]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert (
        "error: 1 of 2 images could not be predicted: cannot read image flat.png: it has 900x1 pixels" in result.stderr
    )
    _, entry = json.loads(result.stdout)
    assert 0 < entry.pop("best_score") < 0.5
    assert entry == {"image": "a.png", "picture": "predictions/a_detections.png", "detections": []}
