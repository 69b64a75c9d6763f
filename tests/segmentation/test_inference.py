"""Inference through PaddleSeg: its settings, small and large images, and the argmax that saves memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddleseg.core import infer

from common.errors import UserError
from semantic_segmentation import inference
from semantic_segmentation.inference import InferenceSettings, predict_labels, predict_large
from tests.helpers.programs import ROOT

WINDOWS = {"is_slide": True, "crop_size": [48, 40], "stride": [31, 17]}
FLIPS = {"scales": [0.75, 1.5], "flip_horizontal": True, "flip_vertical": True}


class FakeModel(nn.Layer):
    """Logits depend on the neighbors of a pixel and, through zero padding, on the edges of the input."""

    def __init__(self, classes=20):
        super().__init__()
        paddle.seed(0)
        self.conv = nn.Conv2D(3, classes, 5, padding=2)
        self.sizes = []

    def forward(self, images):
        assert min(images.shape[2:]) >= 32, "as the backbone requires"
        self.sizes.append(tuple(images.shape[2:]))
        return [self.conv(images)]


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def as_tensor(image):
    return paddle.to_tensor((image.transpose(2, 0, 1).astype("float32") / 255 - 0.5)[np.newaxis])


# ---- settings


def test_settings_come_from_paddlesegs_test_config():
    settings = InferenceSettings.from_test_config({**WINDOWS, "aug_eval": True, **FLIPS})
    assert settings == InferenceSettings(True, [48, 40], [31, 17], True, [0.75, 1.5], True, True)
    assert InferenceSettings.from_test_config({"aug_eval": True, "scales": 1.25}).scales == (1.25,)
    assert InferenceSettings.from_test_config({}) == InferenceSettings()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop": [512, 512]}, "'crop'; its arguments are is_slide, crop_size"),
        ({"is_slide": True, "stride": [9, 9]}, "crop_size is None; is_slide needs"),
        ({"flip_vertical": "no"}, "flip_vertical is 'no'"),
        ({**WINDOWS, "crop_size": [0, 512]}, r"crop_size is \[0, 512\]"),
        ({**WINDOWS, "stride": [48, 41]}, r"stride is \[48, 41\]; it must be at most crop_size \[48, 40\]"),
        ({"scales": []}, r"scales is \[\]"),
        ({"scales": [0.5]}, "scales has no effect without aug_eval: true"),
        ({"crop_size": [32, 32]}, "crop_size has no effect without is_slide: true"),
        ({"scales": [1.0, 0.0]}, r"scales is \[1.0, 0.0\]"),
    ],
)
def test_invalid_settings_are_named(config, message):
    with pytest.raises(UserError, match=f"^test_config.*{message}"):
        InferenceSettings.from_test_config(config)


# ---- labels


@pytest.mark.parametrize("windows", [{}, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("augmentation", [{}, FLIPS], ids=["as is", "scales and flips"])
def test_labels_are_paddlesegs(windows, augmentation):
    model, image, trans_info = (
        FakeModel(),
        as_tensor(random_image(70, 90)),
        [("resize", (101, 77)), ("padding", (60, 99))],
    )
    function = infer.aug_inference if augmentation else infer.inference
    expected, _ = function(model, image, trans_info=trans_info, **windows, **augmentation)
    settings = InferenceSettings(aug_eval=bool(augmentation), **windows, **augmentation)
    labels = predict_labels(model, image, settings, trans_info)
    assert (labels.dtype, labels.shape) == (np.uint8, (101, 77))
    np.testing.assert_array_equal(labels, expected.numpy()[0, 0])


def test_of_equal_classes_the_first_is_predicted():
    logits = np.tile(np.random.default_rng(0).standard_normal((1, 5, 40, 40)), (1, 4, 1, 1)).astype("float32")
    labels = predict_labels(
        lambda images: [paddle.to_tensor(logits)], paddle.zeros([1, 3, 40, 40]), InferenceSettings()
    )
    np.testing.assert_array_equal(labels, logits[0].argmax(axis=0))


def test_images_and_windows_smaller_than_the_stride_of_the_backbone_are_padded():
    model, image = FakeModel(), as_tensor(random_image(20, 24)[:1])
    expected = model(F.pad(image, [0, 8, 0, 31]))[0][:, :, :1, :24].numpy()
    np.testing.assert_array_equal(
        predict_labels(model, image, InferenceSettings())[0], expected[0, :, 0].argmax(axis=0)
    )
    windows = InferenceSettings(is_slide=True, crop_size=[20, 24], stride=[20, 24])
    assert predict_labels(model, as_tensor(random_image(50, 60)), windows).shape == (50, 60)


def test_more_than_256_classes_need_16_bits():
    for classes, dtype in ((256, np.uint8), (257, np.uint16)):
        image = as_tensor(random_image(40, 50))
        assert predict_labels(FakeModel(classes), image, InferenceSettings()).dtype == dtype


# ---- large images


@pytest.mark.parametrize("size", [(250, 130), (64, 65), (30, 300)])
def test_tiles_give_the_labels_of_the_whole_image_in_bounded_memory(monkeypatch, size):
    monkeypatch.setattr(inference, "_TILE", 64)
    monkeypatch.setattr(inference, "_MARGIN", 32)
    model, image = FakeModel(), random_image(*size)
    expected = predict_labels(model, as_tensor(image), InferenceSettings())
    model.sizes.clear()
    np.testing.assert_array_equal(predict_large(model, image, InferenceSettings(), as_tensor), expected)
    assert max(max(sides) for sides in model.sizes) <= 64 + 2 * 32


@pytest.mark.slow
def test_labels_of_a_resized_image_of_3000x3000_pixels_and_150_classes_fit_into_memory():
    """A limit that the README states."""
    program = """
import resource
import paddle
from semantic_segmentation.inference import InferenceSettings, predict_labels

model = paddle.nn.Conv2D(3, 150, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = paddle.rand([1, 3, 512, 512])
labels = predict_labels(lambda images: [model(images)], image, InferenceSettings(), [("resize", (3000, 3000))])
assert labels.shape == (3000, 3000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.splitlines()[-1]) < 1200  # all logits at this size would take 5,150 MB
