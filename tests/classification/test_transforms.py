"""The training and evaluation transforms and their parts."""

import random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from common.errors import UserError
from image_classification import transforms
from image_classification.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
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


def make_image(width, height, seed=0):
    """Smooth random colours, so that resampling is well behaved."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def plain_normalize(image):
    array = np.asarray(image, np.float64) / 255
    return ((array - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)


# ---- normalisation


def test_normalize_is_the_plain_formula():
    levels = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.stack([levels, levels[::-1], np.roll(levels, 9)], -1).reshape(8, 32, 3))
    array = Normalize()(image)
    assert array.shape == (3, 8, 32)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_allclose(array, plain_normalize(image), atol=1e-6)


# ---- training transform


@pytest.mark.parametrize(("size", "shape"), [(32, (3, 32, 32)), ((24, 40), (3, 24, 40))])
@pytest.mark.parametrize("image_size", [(50, 37), (20, 20), (3, 200), (1, 1)])
def test_train_shape(size, shape, image_size):
    transform = TrainTransform(size, rand_augment=RECIPE, erasing=1.0, rotation=10)
    rng = np.random.default_rng(0)
    for _ in range(5):
        array = transform(make_image(*image_size), rng)
        assert array.shape == shape
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()


@pytest.mark.parametrize("options", [{"rand_augment": RECIPE}, {"color_jitter": 0.4, "rotation": 15, "erasing": 1.0}])
def test_train_is_a_function_of_the_seed(options):
    transform, image = TrainTransform(32, **options), make_image(60, 45)
    before = image.tobytes()
    runs = []
    for seed in (7, 7, 8):
        rng = np.random.default_rng(seed)
        runs.append(np.stack([transform(image, rng) for _ in range(20)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    assert image.tobytes() == before


def test_global_random_state_is_neither_used_nor_changed():
    transform, image = TrainTransform(32, rand_augment=RECIPE, erasing=1.0), make_image(60, 45)
    first = transform(image, np.random.default_rng(0))
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    second = transform(image, np.random.default_rng(0))
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    np.testing.assert_array_equal(first, second)


def test_train_without_augmentation_is_a_resize():
    image = make_image(60, 60)
    transform = TrainTransform(32, scale=(1, 1), ratio=(1, 1), flip=0, erasing=0)
    expected = plain_normalize(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(transform(image, np.random.default_rng(0)), expected, atol=1e-6)


def test_flip():
    image = make_image(32, 32)
    arrays = [
        TrainTransform(32, scale=(1, 1), ratio=(1, 1), flip=flip, erasing=0)(image, np.random.default_rng(0))
        for flip in (0, 1)
    ]
    np.testing.assert_array_equal(arrays[0][:, :, ::-1], arrays[1])


def test_rotation_turns_and_fills_with_black():
    image = Image.new("RGB", (28, 28), (255, 255, 255))
    transform = TrainTransform(
        28, scale=(1, 1), ratio=(1, 1), flip=0, erasing=0, rotation=30, mean=(0,) * 3, std=(1,) * 3
    )
    array = transform(image, np.random.default_rng(0))
    assert array[:, 14, 14] == pytest.approx(1)
    assert array[:, 0, 0] == pytest.approx(0)


def test_color_jitter_is_used_only_without_rand_augment():
    image = make_image(32, 32)
    make = lambda **options: TrainTransform(32, erasing=0, **options)(image, np.random.default_rng(3))  # noqa: E731
    np.testing.assert_array_equal(make(rand_augment=RECIPE), make(rand_augment=RECIPE, color_jitter=0.4))
    assert (make() != make(color_jitter=0.4)).any()


def test_color_jitter_changes_the_colours_within_its_strength():
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = [transforms.color_jitter(image, 0.4, np.random.default_rng(s)).getpixel((0, 0))[0] for s in range(200)]
    assert 58 <= min(levels) < 70
    assert 130 < max(levels) <= 141


def test_min_size_never_enlarges_a_crop():
    transform = TrainTransform((24, 40), scale=(0.3, 1), ratio=(0.5, 3))
    side, rng = transform.min_size(), np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = random_crop_box(side, side, (0.3, 0.3), (0.5, 3), rng)
        assert right - left >= 40 - 1
        assert bottom - top >= 24 - 1
    assert TrainTransform(100, scale=(0.25, 1), ratio=(1, 1)).min_size() == 200


def test_crop_box_within_its_limits():
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


@pytest.mark.parametrize(("size", "box"), [((400, 30), (180, 0, 220, 30)), ((30, 400), (0, 180, 30, 220))])
def test_crop_box_of_an_extreme_image_is_central(size, box):
    assert random_crop_box(*size, (1, 1), (3 / 4, 4 / 3), np.random.default_rng(0)) == box


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", 0),
        ("image_size", (1, 2, 3)),
        ("image_size", 22.4),
        ("scale", (1.0, 0.08)),
        ("scale", (0.5, 1.5)),
        ("scale", (0, 1)),
        ("ratio", (2, 1)),
        ("interpolation", "cubic"),
        ("flip", -0.1),
        ("flip", 1.1),
        ("erasing", -0.1),
        ("erasing_scale", (0.5, 0.1)),
        ("rotation", -5),
        ("rotation", float("nan")),
        ("color_jitter", -0.4),
        ("mean", (0.5, 0.5)),
        ("std", (0.5, 0.5, 0)),
    ],
)
def test_wrong_arguments(option, value):
    with pytest.raises(ValueError, match=option) as caught:
        TrainTransform(**{"image_size": 32, option: value})
    assert repr(value) in str(caught.value)
    if option == "interpolation":
        assert all(name in str(caught.value) for name in INTERPOLATIONS)


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


def test_erasing_happens_with_its_probability():
    image, rng = make_image(16, 16), np.random.default_rng(0)
    transform = TrainTransform(16, scale=(1, 1), ratio=(1, 1), flip=0, erasing=0.25)
    plain = TrainTransform(16, scale=(1, 1), ratio=(1, 1), flip=0, erasing=0)(image, rng)
    erased = [(transform(image, rng) != plain).any() for _ in range(1000)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.05)


# ---- RandAugment


@pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
@pytest.mark.parametrize("size", [(40, 30), (1, 1)])
def test_every_op_at_every_magnitude(name, size):
    image, rng = make_image(*size), np.random.default_rng(0)
    before = image.tobytes()
    for magnitude in np.linspace(0, 10, 21):
        out = RAND_AUGMENT_OPS[name](image, float(magnitude), rng, FILL)
        assert out.mode == "RGB"
        assert out.size == size
    assert image.tobytes() == before


def test_there_are_fifteen_ops():
    assert len(RAND_AUGMENT_OPS) == 15


def apply(name, magnitude, image, seed=0):
    return np.asarray(RAND_AUGMENT_OPS[name](image, magnitude, np.random.default_rng(seed), FILL)).astype(int)


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("AutoContrast", 5, ImageOps.autocontrast),
        ("Equalize", 5, ImageOps.equalize),
        ("Invert", 5, ImageOps.invert),
        ("PosterizeIncreasing", 0, lambda image: ImageOps.posterize(image, 4)),
        ("PosterizeIncreasing", 5, lambda image: ImageOps.posterize(image, 2)),
        ("SolarizeIncreasing", 5, lambda image: ImageOps.solarize(image, 128)),
        ("SolarizeIncreasing", 0, lambda image: image),
        ("SolarizeIncreasing", 10, ImageOps.invert),
        ("SolarizeAdd", 0, lambda image: image),
        ("SolarizeAdd", 10, lambda image: image.point(lambda level: min(255, level + 110) if level < 128 else level)),
    ],
)
def test_ops_without_randomness(name, magnitude, expected):
    image = make_image(40, 30)
    np.testing.assert_array_equal(apply(name, magnitude, image), np.asarray(expected(image)))


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
@pytest.mark.parametrize("size", [(40, 30), (5, 2), (1, 1)])
def test_enhancing_ops_go_both_ways(name, size):
    image = make_noise(*size)
    results = {apply(f"{name}Increasing", 5, image, seed).tobytes() for seed in range(20)}
    enhancer = getattr(ImageEnhance, name)(image)
    assert results == {np.asarray(enhancer.enhance(factor)).astype(int).tobytes() for factor in (0.55, 1.45)}


def test_translation_is_relative_and_fills():
    image = make_image(40, 20)
    pixels = np.asarray(image).astype(int)
    results = [apply("TranslateXRel", 10 / 4.5, image, seed) for seed in range(20)]
    to_left = next(result for result in results if (result[:, -1] == FILL).all())
    np.testing.assert_array_equal(to_left[:, :-4], pixels[:, 4:])
    assert (to_left[:, -4:] == FILL).all()
    assert any((result[:, :4] == FILL).all() for result in results)
    assert any((apply("TranslateYRel", 10 / 4.5, image, seed)[:2] == FILL).all() for seed in range(20))


def pillow_affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_geometric_ops_at_zero_keep_the_image(name):
    image = make_image(40, 30)
    np.testing.assert_array_equal(apply(name, 0, image), np.asarray(image))
    assert (apply(name, 9, image) == FILL).all(-1).any()


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
    for seed in (1, 2):
        sign = -1 if np.random.default_rng(seed).random() < 0.5 else 1
        differences = np.abs(apply(name, 9, image, seed) - np.asarray(reference(image, sign)))
        assert np.percentile(differences, 90) <= 2  # beyond it are sharp edges and the border of the image


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("rand-m9-mstd0.5-inc1", (9, 2, 0.5)),
        ("rand-m9-n3-mstd0.5-inc1", (9, 3, 0.5)),
        ("rand-inc1-m7.5", (7.5, 2, 0)),
    ],
)
def test_recipe(recipe, values):
    augment = RandAugment(recipe, FILL)
    assert (augment.magnitude, augment.num_ops, augment.magnitude_std) == values


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("m9-inc1", "'m9-inc1'"),
        ("augmix-m9-inc1", "'augmix-m9-inc1'"),
        ("rand-m9-inc1-x3", "'x3'"),
        ("rand-m9-inc1-", "''"),
        ("rand-m9-inc0", "'inc0'"),
        ("rand-m11-inc1", "'m11'"),
        ("rand-m-inc1", "'m'"),
        ("rand-m9-m8-inc1", "'m8'"),
        ("rand-m9-n0-inc1", "'n0'"),
        ("rand-m9-mstd-inc1", "'mstd'"),
        ("rand-m9", "'inc'"),
        ("rand-inc1", "'m'"),
    ],
)
def test_wrong_recipe(recipe, part):
    with pytest.raises(UserError) as caught:
        TrainTransform(32, rand_augment=recipe)
    assert part in str(caught.value)
    assert repr(recipe) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rand_augment_draws(monkeypatch):
    calls = []
    for name in RAND_AUGMENT_OPS:
        monkeypatch.setitem(
            RAND_AUGMENT_OPS,
            name,
            lambda image, magnitude, rng, fill, name=name: calls.append((name, magnitude)) or image,
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


@pytest.mark.parametrize("image_size", [(500, 375), (375, 500), (20, 20), (31, 7), (1, 1), (300, 10)])
@pytest.mark.parametrize("size", [32, (24, 40), (40, 24), 33])
def test_eval_shape(image_size, size):
    array = EvalTransform(size)(make_image(*image_size))
    assert array.shape == (3, *((size, size) if isinstance(size, int) else size))
    assert array.dtype == np.float32
    assert array.flags.c_contiguous


def test_eval_resizes_the_shorter_side():
    assert EvalTransform(224).resized(500, 375) == (341, 256)
    assert EvalTransform(224).resized(375, 500) == (256, 341)
    assert EvalTransform(224, crop_pct=0.9).resized(100, 100) == (249, 249)
    assert EvalTransform((224, 448), crop_pct=1.0).resized(448, 448) == (448, 448)
    assert EvalTransform((224, 448), crop_pct=1.0).resized(1000, 100) == (2240, 224)


def test_eval_is_resize_and_centre_crop():
    image = make_image(500, 375)
    expected = image.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
    np.testing.assert_allclose(EvalTransform(224)(image), plain_normalize(expected), atol=1e-6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_eval_whole_square_is_a_resize(interpolation):
    image = make_image(50, 50)
    array = EvalTransform(32, crop_pct=1.0, interpolation=interpolation)(image)
    expected = plain_normalize(image.resize((32, 32), INTERPOLATIONS[interpolation]))
    np.testing.assert_allclose(array, expected, atol=1e-6)


def test_eval_of_the_right_size_is_the_image():
    image = make_image(40, 24)
    np.testing.assert_allclose(EvalTransform((24, 40), crop_pct=1.0)(image), plain_normalize(image), atol=1e-6)


@pytest.mark.parametrize(("option", "value"), [("crop_pct", 0), ("crop_pct", 1.1), ("interpolation", "area")])
def test_eval_wrong_arguments(option, value):
    with pytest.raises(ValueError, match=option):
        EvalTransform(**{"image_size": 32, option: value})
