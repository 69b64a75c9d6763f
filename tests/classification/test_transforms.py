"""Training and evaluation transforms and their parts."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from common.errors import UserError
from image_classification.label_map_alignment import Geometry
from image_classification.transforms import (
    RAND_AUGMENT_OPS,
    EvalTransform,
    RandAugment,
    TrainTransform,
    color_jitter,
    random_crop_box,
    random_erase,
)
from tests.helpers.classification_config import make_config

RECIPE = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)
PLAIN = {"CROP_SCALE": [1, 1], "CROP_RATIO": [1, 1], "FLIP": 0}


def make_image(width, height):
    """Smooth random colors, so that resampling is well behaved."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def train_transform(**changes):
    return TrainTransform(make_config(**changes))


def normalized(image):
    array = np.asarray(image, np.float64) / 255
    return ((array - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1)


# ---- training transform


@pytest.mark.parametrize("image_size", [(50, 37), (3, 200), (1, 1)])
def test_images_of_any_size_become_float_arrays_of_one_size(image_size):
    transform, rng = train_transform(RAND_AUGMENT=RECIPE, ERASING=1.0, ROTATION=10.0), np.random.default_rng(0)
    arrays = [transform(make_image(*image_size), rng) for _ in range(5)]
    for array in [*arrays, EvalTransform(make_config())(make_image(*image_size))]:
        assert (array.shape, array.dtype, array.flags.c_contiguous) == ((3, 32, 32), np.float32, True)
        assert np.isfinite(array).all()


@pytest.mark.parametrize("options", [{"RAND_AUGMENT": RECIPE}, {"COLOR_JITTER": 0.4, "ROTATION": 15.0, "ERASING": 1.0}])
def test_training_transform_depends_only_on_the_generator(options):
    transform, image = train_transform(**options), make_image(60, 45)
    before = image.tobytes()
    runs = []
    for seed in (7, 7, 8):
        random.seed(len(runs))
        np.random.seed(len(runs))
        rng = np.random.default_rng(seed)
        runs.append(np.stack([transform(image, rng) for _ in range(20)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    assert image.tobytes() == before


def test_without_augmentation_it_is_a_resize_and_flip_mirrors():
    image, rng = make_image(60, 60), np.random.default_rng(0)
    expected = normalized(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(train_transform(**PLAIN)(image, rng), expected, atol=1e-6)
    flipped = train_transform(**PLAIN | {"FLIP": 1.0})(image, rng)
    np.testing.assert_allclose(flipped[:, :, ::-1], expected, atol=1e-6)


def test_rotation_fills_with_black():
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    transform = train_transform(**PLAIN, ROTATION=30.0, MEAN=[0.0] * 3, STD=[1.0] * 3)
    array = transform(image, np.random.default_rng(0))
    assert array[:, 16, 16] == pytest.approx(1)
    assert array[:, 0, 0] == pytest.approx(0)


def test_color_jitter_is_used_only_without_rand_augment_and_within_its_strength():
    image = make_image(32, 32)
    apply = lambda **options: train_transform(**options)(image, np.random.default_rng(3))  # noqa: E731
    np.testing.assert_array_equal(apply(RAND_AUGMENT=RECIPE), apply(RAND_AUGMENT=RECIPE, COLOR_JITTER=0.4))
    assert (apply() != apply(COLOR_JITTER=0.4)).any()
    gray = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = [color_jitter(gray, 0.4, np.random.default_rng(seed)).getpixel((0, 0))[0] for seed in range(200)]
    assert 58 <= min(levels) < 70
    assert 130 < max(levels) <= 141


def test_no_crop_of_an_image_of_min_size_is_enlarged():
    side, rng = train_transform(CROP_SCALE=[0.3, 1], CROP_RATIO=[0.5, 3]).min_size(), np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = random_crop_box(side, side, (0.3, 0.3), (0.5, 3), rng)
        assert min(right - left, bottom - top) >= 32 - 1
    assert train_transform(CROP_SCALE=[0.25, 1], CROP_RATIO=[1, 1]).min_size() == 64


def test_crop_boxes_cover_their_limits():
    rng, width, height, ratio = np.random.default_rng(0), 500, 375, (3 / 4, 4 / 3)
    boxes = np.array([random_crop_box(width, height, (0.08, 1.0), ratio, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert ((left >= 0) & (left < right) & (right <= width) & (top >= 0) & (top < bottom) & (bottom <= height)).all()
    shares, aspects = (right - left) * (bottom - top) / (width * height), (right - left) / (bottom - top)
    assert 0.078 < shares.min() < 0.1
    assert 0.9 < shares.max() <= 1
    assert 0.74 < aspects.min() < 0.77
    assert 1.3 < aspects.max() < 1.35
    assert random_crop_box(400, 30, (1, 1), ratio, rng) == (180, 0, 220, 30)  # no draw fits


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("AUG.CROP_SCALE", [1.0, 0.08]),
        ("AUG.CROP_SCALE", [0.5, 1.5]),
        ("AUG.FLIP", 1.1),
        ("AUG.ROTATION", float("nan")),
        ("AUG.COLOR_JITTER", -0.4),
        ("DATA.INTERPOLATION", "cubic"),
        ("DATA.STD", [0.5, 0.5, 0.0]),
        ("DATA.MEAN", [123.7, 116.3, 103.5]),
        ("DATA.CROP_PCT", 1.1),
    ],
)
def test_invalid_settings_are_named(key, value):
    config = make_config(**{key.partition(".")[2]: value})
    with pytest.raises(UserError, match=re.escape(f"{key} is {value!r}; it must")):
        (EvalTransform if key == "DATA.CROP_PCT" else TrainTransform)(config)


# ---- random erasing


def test_erasing_area_and_noise():
    rng, shares, noise = np.random.default_rng(0), [], []
    for _ in range(300):
        array = np.full((3, 64, 48), np.inf, np.float32)
        random_erase(array, rng)
        erased = np.isfinite(array)
        assert (erased == erased[0]).all()
        rows, columns = np.flatnonzero(erased[0].any(1)), np.flatnonzero(erased[0].any(0))
        assert erased[0].sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        shares.append(erased[0].mean())
        noise.append(array[erased])
    assert 0.015 < min(shares) < 0.05
    assert 0.3 < max(shares) < 0.35
    noise = np.concatenate(noise)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)


def test_erasing_has_its_probability():
    image, rng = make_image(32, 32), np.random.default_rng(0)
    transform, plain = train_transform(**PLAIN, ERASING=0.25), train_transform(**PLAIN)(image, rng)
    erased = [(transform(image, rng) != plain).any() for _ in range(1000)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.05)


# ---- RandAugment


def apply(name, magnitude, image, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(RAND_AUGMENT_OPS[name](image, magnitude, rng, FILL, Geometry())).astype(int)


def test_every_op_keeps_size_and_input_at_every_magnitude():
    assert len(RAND_AUGMENT_OPS) == 15
    for width, height in ((40, 30), (1, 1)):
        image = make_image(width, height)
        before = image.tobytes()
        for name in RAND_AUGMENT_OPS:
            for magnitude in (0.0, 0.5, 5.0, 9.9, 10.0):
                assert apply(name, magnitude, image).shape == (height, width, 3)
        assert image.tobytes() == before


def test_the_strength_of_color_ops_follows_the_magnitude():
    image = make_image(40, 30)
    for name, expected in (
        ("PosterizeIncreasing", ImageOps.posterize(image, 2)),
        ("SolarizeIncreasing", ImageOps.solarize(image, 128)),
        ("SolarizeAdd", image.point(lambda level: min(255, level + 55) if level < 128 else level)),
    ):
        np.testing.assert_array_equal(apply(name, 5, image), np.asarray(expected), err_msg=name)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        results = {apply(f"{name}Increasing", 5, image, seed).tobytes() for seed in range(20)}
        enhancer = getattr(ImageEnhance, name)(image)
        assert results == {np.asarray(enhancer.enhance(factor)).astype(int).tobytes() for factor in (0.55, 1.45)}


def pillow_affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("Rotate", lambda image, sign: image.rotate(sign * 27, Image.Resampling.BICUBIC, fillcolor=FILL)),
        ("ShearX", lambda image, sign: pillow_affine(image, (1, sign * 0.27, 0, 0, 1, 0))),
        ("ShearY", lambda image, sign: pillow_affine(image, (1, 0, 0, sign * 0.27, 1, 0))),
        ("TranslateXRel", lambda image, sign: pillow_affine(image, (1, 0, sign * 0.405 * 90, 0, 1, 0))),
        ("TranslateYRel", lambda image, sign: pillow_affine(image, (1, 0, 0, 0, 1, sign * 0.405 * 72))),
    ],
)
def test_geometric_ops_are_those_of_pillow(name, reference):
    image = make_image(90, 72)
    np.testing.assert_array_equal(apply(name, 0, image), np.asarray(image))
    for seed in (1, 2):
        sign = -1 if np.random.default_rng(seed).random() < 0.5 else 1
        differences = np.abs(apply(name, 9, image, seed) - np.asarray(reference(image, sign)))
        assert np.percentile(differences, 90) <= 2  # the border of the image differs more


def test_recipes():
    for recipe, expected in (("rand-m9-n3-mstd0.5-inc1", (9, 3, 0.5)), ("rand-inc1-m7.5", (7.5, 2, 0))):
        augment = RandAugment(recipe, FILL)
        assert (augment.magnitude, augment.num_ops, augment.magnitude_std) == expected
    for recipe in (
        "augmix-m9-inc1",
        "rand-m9-inc1-x3",
        "rand-m11-inc1",
        "rand-m9-m8-inc1",
        "rand-m9",
        "rand-m9-n0-inc1",
    ):
        with pytest.raises(UserError, match=f"AUG.RAND_AUGMENT is '{recipe}'; write it like"):
            train_transform(RAND_AUGMENT=recipe)


def test_draws_of_rand_augment(monkeypatch):
    calls = []
    for name in RAND_AUGMENT_OPS:
        monkeypatch.setitem(
            RAND_AUGMENT_OPS,
            name,
            lambda image, magnitude, *others, name=name: calls.append((name, magnitude)) or image,
        )
    augment, rng, image = RandAugment("rand-m9-n2-mstd0.5-inc1", FILL), np.random.default_rng(0), make_image(4, 4)
    for _ in range(3000):
        augment(image, rng)
    names, magnitudes = zip(*calls, strict=True)
    assert len(calls) == pytest.approx(3000, rel=0.05)  # two ops, each with probability 0.5
    counts = np.unique(names, return_counts=True)[1]
    assert len(counts) == 15
    assert counts.min() > 0.7 * counts.mean()
    assert np.mean(magnitudes) == pytest.approx(9, abs=0.05)
    assert np.std(magnitudes) == pytest.approx(0.5, abs=0.05)
    assert max(magnitudes) <= 10


# ---- evaluation transform


def test_evaluation_resizes_the_shorter_side_and_crops_the_center():
    image = make_image(500, 375)
    expected = image.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
    np.testing.assert_allclose(EvalTransform(make_config(IMAGE_SIZE=224))(image), normalized(expected), atol=1e-6)
    square = image.crop((0, 0, 375, 375))
    expected = normalized(square.resize((32, 32), Image.Resampling.LANCZOS))
    transform = EvalTransform(make_config(CROP_PCT=1.0, INTERPOLATION="lanczos"))
    np.testing.assert_allclose(transform(square), expected, atol=1e-6)
