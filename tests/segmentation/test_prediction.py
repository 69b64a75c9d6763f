"""What predictions of segmentation read and write: names, sizes, and which files are replaced."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from common.checkpoints.loading import Checkpoint, numpy_state
from common.errors import UserError
from common.inference.predictor import PredictOptions, find_images
from common.runtime import command_line as entry_point
from semantic_segmentation.components import build_model
from semantic_segmentation.prediction import Segmenter
from tests.segmentation.test_segmentation import load

NOT_UTF8 = os.fsdecode(b"\xff\xe9.png")
SHORT = "[{type: ResizeByShort, short_size: 40, max_size: 64}, {type: Normalize}]"


def random_image(height=40, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.fixture
def build(squares_config):
    """Builds a segmenter of random weights with these transforms."""

    def build(transforms="[{type: Normalize}]"):
        config = load("-cfg", squares_config, "-opts", "val_dataset.transforms", transforms)
        paddle.seed(0)
        weights = numpy_state(build_model(config, 3))
        checkpoint = Checkpoint("random", weights, class_names=["background", "天空", "green"])
        return Segmenter.from_checkpoint(checkpoint, config)

    return build


def predict(segmenter, *files, out):
    return list(segmenter.predict([str(file) for file in files], PredictOptions(out=out)))


# ---- which files are images


def test_the_output_folder_is_left_out_of_a_folder_and_files_that_are_named_are_not(tmp_path):
    image, picture = tmp_path / "a.png", tmp_path / "out" / "a_overlay.png"
    picture.parent.mkdir()
    for path in (image, picture):
        random_image().save(path)
    assert find_images([str(tmp_path)]) == [str(image), str(picture)]
    assert find_images([str(tmp_path), str(picture)], tmp_path / "out") == [str(image), str(picture)]
    assert find_images([str(tmp_path)], tmp_path / "out") == [str(image)]
    loop = image.with_name("loop.png")
    loop.symlink_to(loop.name)  # is reported when it is read
    assert find_images([str(tmp_path)], tmp_path / "out") == sorted([str(image), str(loop)])
    loop.unlink()
    with pytest.raises(UserError, match=r"are in the output folder .*; give another -out"):
        find_images([str(tmp_path)], tmp_path)
    with pytest.raises(UserError, match=r"no such image or folder: .*none\.png"):
        find_images([str(tmp_path / "none.png")])


# ---- names


@pytest.mark.parametrize(("encoding", "as_json"), [("ascii", False), ("ascii", True)])
def test_names_that_the_terminal_cannot_show_are_printed_all_the_same(tmp_path, build, monkeypatch, encoding, as_json):
    segmenter = build()
    folder = tmp_path / "né"
    folder.mkdir()
    random_image().save(folder / NOT_UTF8)
    monkeypatch.setattr(sys, "path", [*sys.path])
    predict_program = importlib.import_module("tools.predict")
    monkeypatch.setattr(predict_program, "open_weights", lambda arguments: ("semantic_segmentation", segmenter, None))
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(entry_point, "_leave", lambda code: pytest.fail(f"exit code {code}"))  # it would end the tests
    flags = [str(folder), "-pretrained", "random", "-out", str(tmp_path / "out"), *(["-json"] if as_json else [])]
    entry_point.run(predict_program.main, flags)
    output = stdout.buffer.getvalue().decode(encoding)
    if as_json:
        (entry,) = json.loads(output)
        assert entry["image"] == str(folder / NOT_UTF8)
        assert {row["name"] for row in entry["classes"]} <= {"background", "天空", "green"}
    else:
        assert output.startswith(f"{tmp_path}/n\\xe9/\\udcff\\udce9")


# ---- what is written where


def test_floating_point_pixels_in_another_unit_are_warned_of_once(build, capsys):
    segmenter = build("[{type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}]")
    for scale, warnings in ((1, 0), (255, 1), (255, 0)):
        segmenter.label(np.full((32, 32, 3), scale, np.float32))
        assert capsys.readouterr().err.count("by up to 509 times its std: they are not divided") == warnings


def test_pictures_of_the_run_before_are_replaced_and_images_are_not(tmp_path, build):
    segmenter = build()
    files = [tmp_path / name for name in ("one/a.png", "two/a.png", "b.png", "b_overlay.png")]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        random_image(40 + number, 30).save(file)
    before = [file.read_bytes() for file in files]
    for _ in range(2):
        results = predict(segmenter, *files, out=tmp_path)
        names = ["a_labels.png", "a_2_labels.png", "b_2_labels.png", "b_overlay_labels.png"]
        assert [Path(result["labels"]).name for result in results] == names
        assert [Image.open(result["labels"]).size for result in results] == [(30, 40 + number) for number in range(4)]
    assert [file.read_bytes() for file in files] == before


# ---- transforms


def test_an_image_that_the_transforms_cannot_take_is_one_line_and_the_others_are_labeled(tmp_path, build):
    random_image(1, 30).save(tmp_path / "long.png")
    random_image().save(tmp_path / "a.png")
    tiny = SHORT.replace("64", "14")  # the shorter side becomes 0
    long, other = predict(build(tiny), tmp_path / "long.png", tmp_path / "a.png", out=tmp_path / "out")
    assert f"image {tmp_path}/long.png: val_dataset.transforms cannot take 30x1 pixels (" in long["error"]
    assert "\n" not in long["error"]
    assert "labels" in other


def test_outputs_that_are_not_finite_are_an_error_of_the_image(tmp_path, build, capsys):
    random_image().save(tmp_path / "a.png")
    segmenter = build()
    model = segmenter.model
    segmenter.model = lambda images: [model(images)[0] * float("nan")]
    (result,) = predict(segmenter, tmp_path / "a.png", out=tmp_path / "out")
    assert result["error"].startswith(f"image {tmp_path}/a.png: the outputs of the model are not finite")


def test_an_image_that_takes_too_much_memory_is_one_line_and_the_others_are_labeled(tmp_path, build, monkeypatch):
    segmenter, label = build(), Segmenter.label

    def label_small(self, image):
        if image.shape[0] > 40:
            raise MemoryError("(ResourceExhausted) Fail to alloc memory")
        return label(self, image)

    monkeypatch.setattr(Segmenter, "label", label_small)
    random_image(41, 30).save(tmp_path / "large.png")
    random_image().save(tmp_path / "a.png")
    large, other = predict(segmenter, tmp_path / "large.png", tmp_path / "a.png", out=tmp_path / "out")
    assert large["error"] == f"image {tmp_path}/large.png of 30x41 pixels takes too much memory; cut it into parts"
    assert "labels" in other


def test_a_model_whose_layers_do_not_fit_together_is_an_error_of_the_user(tmp_path, build, monkeypatch):
    random_image().save(tmp_path / "a.png")
    segmenter = build()
    monkeypatch.setattr(segmenter, "predict_image", lambda *_: paddle.ones([2, 3]) @ paddle.ones([2, 3]))
    with pytest.raises(UserError, match=r"the model fails on image .*a\.png: .*; check the weights"):
        predict(segmenter, tmp_path / "a.png", out=tmp_path / "out")


def test_a_long_image_does_not_change_how_the_next_is_resized(build):
    segmenter, image = build(SHORT), np.asarray(random_image(60, 60))
    before = segmenter.label(image)
    segmenter.label(np.asarray(random_image(20, 300)))
    np.testing.assert_array_equal(segmenter.label(image), before)


def test_weights_for_another_number_of_classes_are_named_with_the_remedy(squares_config):
    checkpoint = Checkpoint("other.pdparams", {"cls.weight": np.zeros(1, np.float32)}, class_names=["a", "b"])
    with pytest.raises(UserError, match=r"num_classes is 3, but other\.pdparams has 2 classes; set it to 2"):
        Segmenter.from_checkpoint(checkpoint, load("-cfg", squares_config, "-opts", "model.num_classes", "3"))
