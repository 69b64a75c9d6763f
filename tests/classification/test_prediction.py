"""Predictions of a classifier that are no numbers."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from PIL import Image

from common.errors import UserError
from common.inference.predictor import PredictOptions
from image_classification.prediction import Classifier
from tests.helpers.classification_config import make_config
from tests.helpers.programs import ROOT
from tools import predict


def test_outputs_that_are_not_finite_are_an_error_of_the_image(tmp_path):
    for value in (0, 255):
        Image.new("RGB", (32, 32), (value, value, value)).save(tmp_path / f"{value}.png")

    def infinite_for_white(images):
        return images.mean([2, 3]) / (images.mean() * 0 + (images.mean([1, 2, 3], keepdim=True)[:, :, 0, 0] < 0))

    classifier = Classifier(infinite_for_white, make_config(), ["a", "b", "c"])
    files = [str(tmp_path / name) for name in ("0.png", "255.png")]
    black, white = classifier.predict(files, PredictOptions())
    assert len(black["predictions"]) == 3
    assert white["error"].startswith(f"image {files[1]}: the outputs of the model are not finite")


def test_a_number_of_classes_that_is_not_that_of_the_weights_is_refused():
    flags = [str(ROOT / "docs/digit.png"), "-pretrained", "mnist5k", "-opts", "MODEL.NUM_CLASSES", "3"]
    with pytest.raises(UserError, match=r"MODEL.NUM_CLASSES is 3, but mnist5k has 10 classes; set it to 10, or leave"):
        predict.main(flags)


def test_weights_of_an_exported_model_and_the_precision_of_weights_cannot_be_chosen(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"-weights model: .*model\.onnx is an exported model"):
        predict.main([str(tmp_path / "a.png"), "-pretrained", "model.onnx", "-weights", "model"])
    with pytest.raises(UserError, match=r"-precision bf16: only OpenVINO's model\.xml"):
        predict.main([str(tmp_path / "a.png"), "-pretrained", "mnist5k", "-precision", "bf16"])


def test_a_file_names_the_classes_of_weights_without_names(tmp_path, capsys):
    file = tmp_path / "names.txt"
    file.write_text("zero one two three four five six seven eight nine".replace(" ", "\n"))
    flags = [str(ROOT / "docs/digit.png"), "-class_names", str(file), "-pretrained"]
    predict.main([*flags, "mnist5k"])
    assert " %  seven\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"names\.txt: fashion_mnist names its classes; leave it out"):
        predict.main([*flags, "fashion_mnist"])
    file.write_text("cat\ndog")
    with pytest.raises(
        UserError, match=r"with the 2 names of -class_names .*names\.txt: mnist5k names 2 classes and has 10"
    ):
        predict.main([*flags, "mnist5k"])
    file.unlink()
    with pytest.raises(UserError, match=r"names\.txt: no such file"):
        predict.main([*flags, "mnist5k"])


def test_names_with_control_characters_are_printed_as_escapes(tmp_path, capsys, monkeypatch):
    file = tmp_path / "a\x1b[2J  b\x9b.png"
    Image.new("RGB", (32, 32)).save(file)
    classifier = Classifier(lambda images: paddle.zeros([len(images), 2]), make_config(), ["two  blanks", "b"])
    monkeypatch.setattr(predict, "open_weights", lambda arguments: (None, classifier, None))
    predict.main([str(file), "-pretrained", "mnist5k"])
    shown = capsys.readouterr().out
    assert r"a\x1b[2J  b\x9b.png" in shown
    assert "two  blanks" in shown
    assert "\x1b" not in shown
    classifier.model = lambda images: paddle.full([len(images), 2], float("nan"))
    with pytest.raises(UserError, match="1 of 1 images could not be predicted"):
        predict.main([str(file), "-pretrained", "mnist5k", "-json"])
    shown = capsys.readouterr().out
    assert "\x9b" not in shown  # begins an escape sequence, as ESC [ does
    (row,) = json.loads(shown)
    assert row["image"] == str(file)
    assert "not finite" in row["error"]


def test_images_of_16_bits_give_a_warning_beside_the_result(tmp_path, capsys, monkeypatch):
    file = tmp_path / "a.png"
    Image.fromarray(np.full((32, 32), 4095, np.uint16)).save(file)
    classifier = Classifier(lambda images: paddle.zeros([len(images), 2]), make_config(), ["a", "b"])
    monkeypatch.setattr(predict, "open_weights", lambda arguments: (None, classifier, None))
    predict.main([str(file), "-pretrained", "mnist5k", "-json"])
    shown = capsys.readouterr()
    assert json.loads(shown.out)[0]["image"] == str(file)
    assert shown.err.startswith(f"warning: 1 of 1 inspected images have more than 8 bits per channel, such as {file}")
