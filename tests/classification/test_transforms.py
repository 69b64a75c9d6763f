"""Training and evaluation transforms and their parts."""

import random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from common.errors import UserError
from image_classification import transforms
from image_classification.label_map_alignment import Geometry
from image_classification.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RAND_AUGMENT_OPS,
    EvalTransform,
    Normalize,
    RandAugment,
    TrainTransform,
    random_crop_box,
    random_erase,
)

RECIPE = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)
PLAIN = {"scale": (1, 1), "ratio": (1, 1), "flip": 0, "erasing": 0}


def make_image(width, height, seed=0):
    """Smooth random colors, so that resampling is well behaved."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def plain_normalize(image):
    array = np.asarray(image, np.float64) / 255
    return ((array - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)


def test_normalize_is_the_plain_formula():
    array = Normalize()(make_noise(32, 8))
    assert (array.shape, array.dtype, array.flags.c_contiguous) == ((3, 8, 32), np.float32, True)
    np.testing.assert_allclose(array, plain_normalize(make_noise(32, 8)), atol=1e-6)


# ---- training transform


@pytest.mark.parametrize("image_size", [(50, 37), (3, 200), (1, 1)])
def test_training_transform_takes_any_size(image_size):
    transform = TrainTransform(24, rand_augment=RECIPE, erasing=1.0, rotation=10)
    rng = np.random.default_rng(0)
    for _ in range(5):
        array = transform(make_image(*image_size), rng)
        assert (array.shape, array.dtype, array.flags.c_contiguous) == ((3, 24, 24), np.float32, True)
        assert np.isfinite(array).all()


@pytest.mark.parametrize("options", [{"rand_augment": RECIPE}, {"color_jitter": 0.4, "rotation": 15, "erasing": 1.0}])
def test_training_transform_depends_only_on_the_generator(options):
    transform, image = TrainTransform(32, **options), make_image(60, 45)
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
    image = make_image(60, 60)
    expected = plain_normalize(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(TrainTransform(32, **PLAIN)(image, np.random.default_rng(0)), expected, atol=1e-6)
    flipped = TrainTransform(32, **{**PLAIN, "flip": 1})(image, np.random.default_rng(0))
    np.testing.assert_allclose(flipped[:, :, ::-1], expected, atol=1e-6)


def test_rotation_fills_with_black():
    image = Image.new("RGB", (28, 28), (255, 255, 255))
    transform = TrainTransform(28, **PLAIN, rotation=30, mean=(0,) * 3, std=(1,) * 3)
    array = transform(image, np.random.default_rng(0))
    assert array[:, 14, 14] == pytest.approx(1)
    assert array[:, 0, 0] == pytest.approx(0)


def test_color_jitter_is_used_only_without_rand_augment():
    image = make_image(32, 32)
    make = lambda **options: TrainTransform(32, erasing=0, **options)(image, np.random.default_rng(3))  # noqa: E731
    np.testing.assert_array_equal(make(rand_augment=RECIPE), make(rand_augment=RECIPE, color_jitter=0.4))
    assert (make() != make(color_jitter=0.4)).any()


def test_color_jitter_changes_the_colors_within_its_strength():
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = [transforms.color_jitter(image, 0.4, np.random.default_rng(s)).getpixel((0, 0))[0] for s in range(200)]
    assert 58 <= min(levels) < 70
    assert 130 < max(levels) <= 141


def test_no_crop_of_an_image_of_min_size_is_enlarged():
    transform = TrainTransform(40, scale=(0.3, 1), ratio=(0.5, 3))
    side, rng = transform.min_size(), np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = random_crop_box(side, side, (0.3, 0.3), (0.5, 3), rng)
        assert right - left >= 40 - 1
        assert bottom - top >= 40 - 1
    assert TrainTransform(100, scale=(0.25, 1), ratio=(1, 1)).min_size() == 200


def test_crop_boxes_cover_their_limits():
    rng = np.random.default_rng(0)
    scale, ratio, width, height = (0.08, 1.0), (3 / 4, 4 / 3), 500, 375
    shares, aspects = [], []
    for _ in range(2000):
        left, top, right, bottom = random_crop_box(width, height, scale, ratio, rng)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
        aspects.append((right - left) / (bottom - top))
    assert 0.078 < min(shares) < 0.1
    assert 0.9 < max(shares) <= 1
    assert 0.74 < min(aspects) < 0.77
    assert 1.3 < max(aspects) < 1.35
    assert random_crop_box(400, 30, (1, 1), ratio, rng) == (180, 0, 220, 30)  # no draw fits


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scale", (1.0, 0.08)),
        ("scale", (0.5, 1.5)),
        ("interpolation", "cubic"),
        ("flip", 1.1),
        ("rotation", float("nan")),
        ("color_jitter", -0.4),
        ("std", (0.5, 0.5, 0)),
    ],
)
def test_invalid_arguments(option, value):
    with pytest.raises(ValueError, match=option) as caught:
        TrainTransform(**{"image_size": 32, option: value})
    assert repr(value) in str(caught.value)


# ---- random erasing


def test_erasing_area_and_noise():
    rng = np.random.default_rng(0)
    shares, noise = [], []
    for _ in range(300):
        array = np.full((3, 64, 48), np.inf, np.float32)
        random_erase(array, (0.02, 1 / 3), rng)
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
    image, rng = make_image(16, 16), np.random.default_rng(0)
    transform = TrainTransform(16, **{**PLAIN, "erasing": 0.25})
    plain = TrainTransform(16, **PLAIN)(image, rng)
    erased = [(transform(image, rng) != plain).any() for _ in range(1000)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.05)


# ---- RandAugment


def apply(name, magnitude, image, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(RAND_AUGMENT_OPS[name](image, magnitude, rng, FILL, Geometry())).astype(int)


def test_every_op_keeps_size_and_input_at_every_magnitude():
    assert len(RAND_AUGMENT_OPS) == 15
    for size in ((40, 30), (1, 1)):
        image = make_image(*size)
        before = image.tobytes()
        for name in RAND_AUGMENT_OPS:
            for magnitude in np.linspace(0, 10, 21):
                assert apply(name, float(magnitude), image).shape == (size[1], size[0], 3)
        assert image.tobytes() == before


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("AutoContrast", 5, ImageOps.autocontrast),
        ("Equalize", 5, ImageOps.equalize),
        ("Invert", 5, ImageOps.invert),
        ("PosterizeIncreasing", 5, lambda image: ImageOps.posterize(image, 2)),
        ("SolarizeIncreasing", 5, lambda image: ImageOps.solarize(image, 128)),
        ("SolarizeAdd", 10, lambda image: image.point(lambda level: min(255, level + 110) if level < 128 else level)),
    ],
)
def test_ops_without_randomness(name, magnitude, expected):
    image = make_image(40, 30)
    np.testing.assert_array_equal(apply(name, magnitude, image), np.asarray(expected(image)))


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancing_ops_go_both_ways(name):
    image = make_noise(40, 30)
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
    image = make_noise(15, 12).resize((90, 72), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(apply(name, 0, image), np.asarray(image))
    for seed in (1, 2):
        sign = -1 if np.random.default_rng(seed).random() < 0.5 else 1
        differences = np.abs(apply(name, 9, image, seed) - np.asarray(reference(image, sign)))
        assert np.percentile(differences, 90) <= 2  # sharp edges and the border of the image differ more


def test_recipes():
    augment = RandAugment("rand-m9-n3-mstd0.5-inc1", FILL)
    assert (augment.magnitude, augment.num_ops, augment.magnitude_std) == (9, 3, 0.5)
    augment = RandAugment("rand-inc1-m7.5", FILL)
    assert (augment.magnitude, augment.num_ops, augment.magnitude_std) == (7.5, 2, 0)


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("augmix-m9-inc1", "'augmix-m9-inc1'"),
        ("rand-m9-inc1-x3", "'x3'"),
        ("rand-m11-inc1", "'m11'"),
        ("rand-m9-m8-inc1", "'m8'"),
        ("rand-m9", "'inc'"),
    ],
)
def test_invalid_recipes(recipe, part):
    with pytest.raises(UserError) as caught:
        TrainTransform(32, rand_augment=recipe)
    assert part in str(caught.value)
    assert repr(recipe) in str(caught.value)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("image_size", [(500, 375), (31, 7), (1, 1), (300, 10)])
def test_evaluation_transform_takes_any_size(image_size):
    array = EvalTransform(24)(make_image(*image_size))
    assert (array.shape, array.dtype, array.flags.c_contiguous) == ((3, 24, 24), np.float32, True)


def test_evaluation_resizes_the_shorter_side_and_crops_the_center():
    assert EvalTransform(224).resized(500, 375) == (341, 256)
    assert EvalTransform(224, crop_pct=0.9).resized(100, 100) == (249, 249)
    image = make_image(500, 375)
    expected = image.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
    np.testing.assert_allclose(EvalTransform(224)(image), plain_normalize(expected), atol=1e-6)
    square = image.crop((0, 0, 375, 375))
    expected = plain_normalize(square.resize((32, 32), Image.Resampling.LANCZOS))
    np.testing.assert_allclose(EvalTransform(32, 1.0, "lanczos")(square), expected, atol=1e-6)


@pytest.mark.parametrize(("option", "value"), [("crop_pct", 1.1), ("interpolation", "area")])
def test_invalid_arguments_of_the_evaluation(option, value):
    with pytest.raises(ValueError, match=option):
        EvalTransform(**{"image_size": 32, option: value})
