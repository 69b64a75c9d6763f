"""Whole images, sliding windows, scales and flips: PaddleSeg's numbers, in less memory."""

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
from PIL import Image

from common.errors import UserError
from semantic_segmentation import inference
from semantic_segmentation.inference import (
    InferenceSettings,
    predict_bands,
    predict_labels,
    predict_large,
    predict_logits,
)
from tests.helpers.programs import ROOT

CLASSES = 7


class FakeModel(nn.Layer):
    """Logits that depend on a pixel's neighbours and, through zero padding, on where the window ends."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        paddle.seed(0)
        self.conv = nn.Conv2D(3, classes, 5, padding=2)
        self.sizes = []

    def forward(self, images):
        height, width = images.shape[2:]
        assert min(height, width) >= 32, "as the backbone demands"
        self.sizes.append((height, width))
        logits = self.conv(images)
        return [logits, logits * 0]


def sliding(crop, stride, **others):
    return InferenceSettings(is_slide=True, crop_size=crop, stride=stride, **others)


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def normalise(window):
    return (window.transpose(2, 0, 1).astype("float32") / 255 - 0.5) / 0.25


def as_tensor(image):
    return paddle.to_tensor(normalise(image)[np.newaxis])


def labels_of(logits):
    return paddle.argmax(logits, axis=1).numpy()[0]


# ---- settings


def test_settings_come_from_paddlesegs_test_config():
    config = {"is_slide": True, "crop_size": [512, 256], "stride": [341, 171], "aug_eval": True, "scales": [0.5, 1]}
    settings = InferenceSettings.from_test_config({**config, "flip_horizontal": True})
    assert settings == InferenceSettings(True, (512, 256), (341, 171), True, (0.5, 1), True, False)
    assert InferenceSettings.from_test_config({"scales": 1.25}).scales == (1.25,)
    assert InferenceSettings.from_test_config(None) == InferenceSettings.from_test_config({}) == InferenceSettings()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop": [512, 512]}, "crop is unknown; known are is_slide, crop_size"),
        ({"is_slide": True, "stride": [9, 9]}, "crop_size is None"),
        ({"is_slide": True, "crop_size": [9, 9]}, "stride is None"),
        ({"is_slide": 1}, "is_slide is 1; it must be true or false"),
        ({"flip_vertical": "no"}, "flip_vertical is 'no'"),
        ({"crop_size": [0, 512]}, r"crop_size is \[0, 512\]"),
        ({"crop_size": 512}, "crop_size is 512"),
        ({"crop_size": [512.0, 512]}, r"crop_size is \[512.0, 512\]"),
        ({"stride": [1, 2, 3]}, r"stride is \[1, 2, 3\]"),
        ({"crop_size": [64, 32], "stride": [64, 33]}, r"stride is \[64, 33\]; it must be at most crop_size \[64, 32\]"),
        ({"scales": []}, r"scales is \[\]"),
        ({"scales": [1.0, 0.0]}, r"scales is \[1.0, 0.0\]"),
        ({"scales": [float("nan")]}, "scales is"),
        ({"scales": True}, r"scales is \[True\]"),
        ({"scales": "1.0"}, "scales is '1.0'"),
    ],
)
def test_impossible_settings_are_named(config, message):
    with pytest.raises(UserError, match=f"^my.yml: {message}"):
        InferenceSettings.from_test_config(config, "my.yml")


# ---- the whole image


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (40, 3), (31, 33), (32, 32), (45, 71)])
def test_whole_images_of_any_size_are_padded_to_what_the_backbone_takes(height, width):
    model, image = FakeModel(), as_tensor(random_image(height, width))
    padded = F.pad(image, [0, max(0, 32 - width), 0, max(0, 32 - height)])
    expected = model(padded)[0][:, :, :height, :width]
    logits = predict_logits(model, image, InferenceSettings())
    assert logits.dtype == paddle.float32
    np.testing.assert_array_equal(logits.numpy(), expected.numpy())
    assert logits.stop_gradient


def test_resizing_and_padding_are_undone_before_the_class_is_chosen():
    model, image = FakeModel(), as_tensor(random_image(64, 48))
    trans_info = [("resize", (101, 77)), ("padding", (60, 45))]
    prediction, _ = infer.inference(model, image, trans_info=trans_info)
    labels = predict_labels(model, image, InferenceSettings(), trans_info)
    assert labels.dtype == np.uint8
    assert labels.shape == (101, 77)
    np.testing.assert_array_equal(labels, prediction.numpy()[0, 0])


@pytest.mark.parametrize("ties", [False, True])
def test_a_few_classes_at_a_time_are_brought_to_the_images_size(monkeypatch, ties):
    model, image = FakeModel(), as_tensor(random_image(64, 48))
    if ties:
        weight, bias = model.conv.weight.numpy(), model.conv.bias.numpy()
        weight[4:], bias[4:] = weight[:3], bias[:3]  # in another part than their equals
        model.conv.weight.set_value(weight)
        model.conv.bias.set_value(bias)
    trans_info = [("resize", (101, 77)), ("padding", (60, 45))]
    expected = infer.inference(model, image, trans_info=trans_info)[0].numpy()[0, 0]
    assert len(np.unique(expected)) > 2

    monkeypatch.setattr(inference, "_CHUNK", 3 * 101 * 77 + 1)
    undo, sizes = infer.reverse_transform, []

    def reverse_transform(logits, *others, **named):
        result = undo(logits, *others, **named)
        sizes.append(result.size)
        return result

    monkeypatch.setattr(infer, "reverse_transform", reverse_transform)
    np.testing.assert_array_equal(predict_labels(model, image, InferenceSettings(), trans_info), expected)
    assert sizes == [count * 101 * 77 for count in (3, 3, 1)]


def test_of_equally_probable_classes_the_first_is_chosen():
    def model(images):
        return [paddle.zeros([1, 5, *images.shape[2:]])]

    for settings in (InferenceSettings(), sliding((32, 32), (20, 20))):
        assert not predict_labels(model, as_tensor(random_image(50, 50)), settings).any()


# ---- windows

# image (h, w), window (w, h), stride (w, h): odd sizes, strides that do not divide, small images, windows side by side,
# a last row that almost repeats the one before
SLIDES = [
    ((97, 131), (48, 40), (31, 17)),
    ((100, 100), (64, 64), (43, 43)),
    ((97, 40), (48, 40), (31, 17)),
    ((35, 131), (48, 40), (31, 17)),
    ((33, 35), (48, 40), (31, 17)),
    ((80, 96), (48, 40), (48, 40)),
    ((81, 97), (48, 40), (48, 40)),
    ((90, 70), (37, 33), (1, 11)),
]


@pytest.mark.parametrize(("size", "crop", "stride"), SLIDES)
def test_windows_give_exactly_paddlesegs_numbers(size, crop, stride):
    model, image = FakeModel(), random_image(*size)
    expected = infer.slide_inference(model, as_tensor(image), crop, stride)
    theirs, model.sizes = model.sizes, []
    logits = predict_logits(model, as_tensor(image), sliding(crop, stride))
    assert model.sizes == theirs
    assert logits.dtype == expected.dtype == paddle.float64
    np.testing.assert_array_equal(logits.numpy(), expected.numpy())

    labels = labels_of(expected)
    assert len(np.unique(labels)) > 2
    np.testing.assert_array_equal(predict_labels(model, as_tensor(image), sliding(crop, stride)), labels)
    np.testing.assert_array_equal(predict_large(model, image, normalise, sliding(crop, stride)), labels)


def test_neighbouring_windows_disagree_so_that_their_order_and_number_matter():
    model, image = FakeModel(), as_tensor(random_image(97, 131))
    whole, slid = (predict_logits(model, image, s) for s in (InferenceSettings(), sliding((48, 40), (31, 17))))
    assert np.abs(whole.numpy() - slid.numpy()).max() > 0.1


def test_an_image_or_a_window_below_the_backbones_smallest_size():
    model = FakeModel()
    for size, crop in (((5, 90), (48, 40)), ((50, 60), (20, 24))):
        image = random_image(*size)
        labels = predict_large(model, image, normalise, sliding(crop, crop))
        assert labels.shape == size
        np.testing.assert_array_equal(labels, predict_labels(model, as_tensor(image), sliding(crop, crop)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_pillow_image_of_any_mode_is_read_as_rgb(mode):
    picture = Image.fromarray(random_image(70, 90)).convert(mode)
    settings = sliding((48, 40), (31, 17))
    from_array = predict_large(FakeModel(), np.asarray(picture.convert("RGB")), normalise, settings)
    np.testing.assert_array_equal(predict_large(FakeModel(), picture, normalise, settings), from_array)


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_labels_are_as_narrow_as_the_number_of_classes_allows(classes, dtype):
    labels = predict_large(FakeModel(classes), random_image(40, 50), normalise, sliding((32, 32), (32, 32)))
    assert labels.dtype == dtype
    assert predict_labels(FakeModel(classes), as_tensor(random_image(40, 50)), InferenceSettings()).dtype == dtype


def test_bands_come_as_soon_as_no_further_window_covers_them():
    model = FakeModel()
    bands = predict_bands(model, random_image(100, 70), normalise, sliding((48, 40), (31, 25)))
    assert not model.sizes
    heights, windows = [], []
    for band in bands:
        heights.append(len(band))
        windows.append(len(model.sizes))
    assert heights == [25, 25, 10, 40]  # windows at rows 0, 25, 50 and, moved back, 60
    assert windows == [2, 4, 6, 8]


def test_large_images_need_windows_and_no_augmentation():
    image = random_image(40, 40)
    with pytest.raises(UserError, match="is_slide is off"):
        predict_large(FakeModel(), image, normalise, InferenceSettings())
    with pytest.raises(UserError, match="aug_eval is on"):
        predict_bands(FakeModel(), image, normalise, sliding((32, 32), (32, 32), aug_eval=True))
    for wrong in (image[..., 0], image.astype("float32"), image[..., :2]):
        with pytest.raises(ValueError, match="expected uint8"):
            predict_bands(FakeModel(), wrong, normalise, sliding((32, 32), (32, 32)))


# ---- scales and flips


@pytest.mark.parametrize("windows", [{}, {"is_slide": True, "crop_size": (48, 40), "stride": (31, 17)}])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_scales_and_flips_are_paddlesegs(windows, flips):
    model, image = FakeModel(), as_tensor(random_image(70, 90))
    augmentation = {"scales": (0.75, 1.0, 1.5), "flip_horizontal": flips[0], "flip_vertical": flips[1]}
    trans_info = [("resize", (60, 99))]
    prediction, expected = infer.aug_inference(model, image, trans_info, **augmentation, **windows)
    settings = InferenceSettings(aug_eval=True, **augmentation, **windows)
    logits = infer.reverse_transform(predict_logits(model, image, settings), trans_info, mode="bilinear")
    np.testing.assert_array_equal(logits.numpy(), expected.numpy())
    np.testing.assert_array_equal(predict_labels(model, image, settings, trans_info), prediction.numpy()[0, 0])


def test_scales_and_flips_count_only_with_aug_eval():
    model, image = FakeModel(), as_tensor(random_image(64, 64))
    plain = predict_logits(model, image, InferenceSettings(scales=(2.0,), flip_vertical=True))
    np.testing.assert_array_equal(plain.numpy(), model(image)[0].numpy())


def test_small_scales_of_small_images():
    settings = InferenceSettings(aug_eval=True, scales=(0.5, 1.0))
    assert predict_logits(FakeModel(), as_tensor(random_image(1, 40)), settings).shape == [1, CLASSES, 1, 40]
    settings = InferenceSettings(aug_eval=True, scales=(0.25,))
    with pytest.raises(UserError, match=r"scale 0\.25 leaves nothing of an image of 1x40 pixels"):
        predict_logits(FakeModel(), as_tensor(random_image(1, 40)), settings)


# ---- memory


def peak_of_bands(height, width, classes, crop, stride):
    """Bytes that NumPy holds at most while the bands of an image are labelled one by one."""

    def model(images):
        return [paddle.zeros([1, classes, *images.shape[2:]])]

    image = np.zeros((height, width, 3), np.uint8)
    tracemalloc.start()
    try:
        assert sum(len(band) for band in predict_bands(model, image, normalise, sliding(crop, stride))) == height
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_one_row_of_windows_whatever_the_height():
    classes, width, crop, stride = 20, 500, (250, 50), (170, 34)
    one_row = 8 * classes * crop[1] * width
    low, high = (peak_of_bands(height, width, classes, crop, stride) for height in (250, 1000))
    assert high < 1.01 * low
    assert high < one_row + 4 * classes * crop[0] * crop[1] + 2**20
    whole = 8 * classes * 1000 * width
    assert high < whole / 10


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
    assert int(result.stdout.splitlines()[-1]) < 1200  # all logits at this size would be 5,150 MB


@pytest.mark.slow
def test_6000x6000_pixels_and_150_classes_fit_into_memory():
    program = """
import resource
import numpy as np
import paddle
import paddle.nn.functional as F
from semantic_segmentation.inference import InferenceSettings, predict_large

levels = np.linspace(0, 1, 150, dtype=np.float32)  # -(grey - level)**2 without grey**2 is linear in grey
weight = paddle.to_tensor(np.repeat(levels * 2 / 3, 3).reshape(150, 3, 1, 1))
bias = paddle.to_tensor(-(levels**2))

def model(images):
    return [F.conv2d(images, weight, bias)]

def normalise(window):
    return window.transpose(2, 0, 1).astype("float32") / 255

expected = np.random.default_rng(0).integers(0, 150, (6000, 6000)).astype(np.uint8)
image = np.repeat((levels * 255).round().astype(np.uint8)[expected][..., None], 3, axis=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
settings = InferenceSettings(is_slide=True, crop_size=(1500, 64), stride=(1500, 60))
labels = predict_large(model, image, normalise, settings)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert (labels == expected).all()
print((after - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    megabytes = int(result.stdout.splitlines()[-1])
    one_row = 8 * 150 * 64 * 6000 / 2**20
    assert megabytes < 1.6 * one_row  # all logits would be 41,200 MB
