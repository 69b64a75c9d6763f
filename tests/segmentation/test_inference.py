"""Whole images, sliding windows, scales and flips give PaddleSeg's numbers, in less memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddleseg.core import infer

from common.errors import UserError
from semantic_segmentation import inference
from semantic_segmentation.inference import InferenceSettings, predict_labels, predict_large, predict_logits
from tests.helpers.programs import ROOT

CLASSES = 7
RESIZED = [("resize", (101, 77)), ("padding", (60, 45))]


class FakeModel(nn.Layer):
    """Logits depend on the neighbors of a pixel and, through zero padding, on the edges of the window."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        paddle.seed(0)
        self.conv = nn.Conv2D(3, classes, 5, padding=2)
        self.sizes = []

    def forward(self, images):
        height, width = images.shape[2:]
        assert min(height, width) >= 32, "as the backbone requires"
        self.sizes.append((height, width))
        logits = self.conv(images)
        return [logits, logits * 0]


def sliding(crop, stride, **others):
    return InferenceSettings(is_slide=True, crop_size=crop, stride=stride, **others)


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def normalize(window):
    return (window.transpose(2, 0, 1).astype("float32") / 255 - 0.5) / 0.25


def as_tensor(image):
    return paddle.to_tensor(normalize(image)[np.newaxis])


# ---- settings


def test_settings_come_from_paddlesegs_test_config():
    config = {"is_slide": True, "crop_size": [512, 256], "stride": [341, 171], "aug_eval": True, "scales": [0.5, 1]}
    settings = InferenceSettings.from_test_config({**config, "flip_horizontal": True})
    assert settings == InferenceSettings(True, (512, 256), (341, 171), True, (0.5, 1), True, False)
    assert InferenceSettings.from_test_config({"scales": 1.25}).scales == (1.25,)
    assert InferenceSettings.from_test_config(None) == InferenceSettings()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop": [512, 512]}, "crop is unknown; known are is_slide, crop_size"),
        ({"is_slide": True, "stride": [9, 9]}, "crop_size is None"),
        ({"flip_vertical": "no"}, "flip_vertical is 'no'; it must be true or false"),
        ({"crop_size": [0, 512]}, r"crop_size is \[0, 512\]"),
        ({"crop_size": [64, 32], "stride": [64, 33]}, r"stride is \[64, 33\]; it must be at most crop_size \[64, 32\]"),
        ({"scales": []}, r"scales is \[\]"),
        ({"scales": [1.0, 0.0]}, r"scales is \[1.0, 0.0\]"),
    ],
)
def test_invalid_settings_are_named(config, message):
    with pytest.raises(UserError, match=f"^my.yml: {message}"):
        InferenceSettings.from_test_config(config, "my.yml")


# ---- the whole image


@pytest.mark.parametrize(("height", "width"), [(1, 50), (45, 71)])
def test_small_images_are_padded_to_the_stride_of_the_backbone(height, width):
    model, image = FakeModel(), as_tensor(random_image(height, width))
    expected = model(F.pad(image, [0, max(0, 32 - width), 0, max(0, 32 - height)]))[0][:, :, :height, :width]
    logits = predict_logits(model, image, InferenceSettings())
    assert (logits.dtype, logits.stop_gradient) == (paddle.float32, True)
    np.testing.assert_array_equal(logits.numpy(), expected.numpy())


@pytest.mark.parametrize("chunk", [2**26, 3 * 101 * 77 + 1])
def test_resizing_and_padding_are_undone_a_few_classes_at_a_time(monkeypatch, chunk):
    model, image = FakeModel(), as_tensor(random_image(64, 48))
    weight, bias = model.conv.weight.numpy(), model.conv.bias.numpy()
    weight[4:], bias[4:] = weight[:3], bias[:3]  # ties between classes of different chunks
    model.conv.weight.set_value(weight)
    model.conv.bias.set_value(bias)
    monkeypatch.setattr(inference, "_CHUNK", chunk)
    labels = predict_labels(model, image, InferenceSettings(), RESIZED)
    expected = infer.inference(model, image, trans_info=RESIZED)[0].numpy()[0, 0]
    assert (labels.dtype, labels.shape) == (np.uint8, (101, 77))
    assert len(np.unique(labels)) > 2
    np.testing.assert_array_equal(labels, expected)


# ---- windows


@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((97, 131), (48, 40), (31, 17)),
        ((35, 131), (48, 40), (31, 17)),  # lower than a window
        ((81, 97), (48, 40), (48, 40)),  # the last windows overlap nearly completely
        ((90, 70), (37, 33), (1, 11)),
    ],
)
def test_windows_give_exactly_paddlesegs_numbers(size, crop, stride):
    model, image = FakeModel(), random_image(*size)
    expected = infer.slide_inference(model, as_tensor(image), crop, stride)
    theirs, model.sizes = model.sizes, []
    logits = predict_logits(model, as_tensor(image), sliding(crop, stride))
    assert model.sizes == theirs
    np.testing.assert_array_equal(logits.numpy(), expected.numpy())
    labels = paddle.argmax(expected, axis=1).numpy()[0]
    np.testing.assert_array_equal(predict_labels(model, as_tensor(image), sliding(crop, stride)), labels)
    np.testing.assert_array_equal(predict_large(model, image, normalize, sliding(crop, stride)), labels)


def test_windows_may_be_smaller_than_the_stride_of_the_backbone():
    image = random_image(50, 60)
    labels = predict_large(FakeModel(), image, normalize, sliding((20, 24), (20, 24)))
    assert labels.shape == (50, 60)


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_more_than_256_classes_need_16_bits(classes, dtype):
    labels = predict_large(FakeModel(classes), random_image(40, 50), normalize, sliding((32, 32), (32, 32)))
    assert labels.dtype == dtype
    assert predict_labels(FakeModel(classes), as_tensor(random_image(40, 50)), InferenceSettings()).dtype == dtype


def test_memory_is_that_of_one_row_of_windows_whatever_the_height():
    classes, width, crop, stride = 20, 500, (250, 50), (170, 34)

    def model(images):
        return [paddle.zeros([1, classes, *images.shape[2:]])]

    tracemalloc.start()
    try:
        assert predict_large(model, np.zeros((1000, width, 3), np.uint8), normalize, sliding(crop, stride)).any() == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one_row = 8 * classes * crop[1] * width
    assert peak < 3 * one_row  # the logits of the whole image would take 20 * one_row


# ---- scales and flips


@pytest.mark.parametrize("windows", [{}, {"is_slide": True, "crop_size": (48, 40), "stride": (31, 17)}])
def test_scales_and_flips_are_paddlesegs(windows):
    model, image = FakeModel(), as_tensor(random_image(70, 90))
    augmentation = {"scales": (0.75, 1.0, 1.5), "flip_horizontal": True, "flip_vertical": True}
    trans_info = [("resize", (60, 99))]
    prediction, expected = infer.aug_inference(model, image, trans_info, **augmentation, **windows)
    settings = InferenceSettings(aug_eval=True, **augmentation, **windows)
    logits = infer.reverse_transform(predict_logits(model, image, settings), trans_info, mode="bilinear")
    np.testing.assert_array_equal(logits.numpy(), expected.numpy())
    np.testing.assert_array_equal(predict_labels(model, image, settings, trans_info), prediction.numpy()[0, 0])


def test_a_scale_that_leaves_no_pixels_is_named():
    image = as_tensor(random_image(1, 40))
    assert predict_logits(FakeModel(), image, InferenceSettings(aug_eval=True, scales=(0.5,))).shape[1:] == [7, 1, 40]
    with pytest.raises(UserError, match=r"scale 0\.25 leaves nothing of an image of 1x40 pixels"):
        predict_logits(FakeModel(), image, InferenceSettings(aug_eval=True, scales=(0.25,)))


# ---- a limit that the README states


@pytest.mark.slow
def test_labels_of_a_resized_image_of_3000x3000_pixels_and_150_classes_fit_into_memory():
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
