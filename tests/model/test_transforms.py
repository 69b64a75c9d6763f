"""The transform of a model is that of the launcher that trained it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image

from common import create_model, transforms_for
from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state, read_checkpoint
from common.data import preprocessing
from common.errors import UserError
from image_classification.config import CONFIG, default_config
from image_classification.transforms import EvalTransform


def make_image(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGE = make_image(301, 240)


def test_without_weights_it_is_that_of_the_default_configuration():
    model = create_model("pale_nano")
    transform = EvalTransform(default_config())
    np.testing.assert_array_equal(transforms_for(model)(IMAGE), transform(IMAGE))
    data = default_config().DATA
    cfg = {"crop_pct": data.CROP_PCT, "interpolation": data.INTERPOLATION, "mean": data.MEAN, "std": data.STD}
    assert cfg.items() <= model.default_cfg.items()
    assert transforms_for(create_model("pale_nano", image_size=64))(IMAGE).shape == (3, 64, 64)


def test_the_orientation_of_a_phone_is_applied(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    IMAGE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    transform = transforms_for(create_model("pale_nano"))
    phone = Image.open(tmp_path / "phone.png").convert("RGB")
    np.testing.assert_array_equal(transform(phone), transform(IMAGE))


@pytest.mark.parametrize("tag", ["mnist5k", "fashion_mnist"])
def test_with_released_weights_it_is_that_of_their_configuration(tag):
    model = create_model("pale_nano", pretrained=tag)
    config = CONFIG.from_text(read_checkpoint(tag).config, tag)
    array = transforms_for(model)(IMAGE)
    np.testing.assert_array_equal(array, EvalTransform(config)(IMAGE))
    assert array.shape == model.default_cfg["input_size"] == (3, 32, 32)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("DATA: {CROP_PCT: 2}", "crop_pct is 2; it must be a finite number from 0.01 to 1"),
        ("DATA: {CROP_PCT: 1, IMAGE_SIZE: 1000000}", "image_size is 1000000"),
        ("DATA: {CROP_PCT: 1, INTERPOLATION: cubic}", "interpolation is 'cubic'; it must be one of nearest"),
        ("DATA: {CROP_PCT: 1, STD: [1, 1]}", "give three numbers each"),
        ("DATA: {CROP_PCT: 1, MEAN: [0, 0, 1.0e+300]}", "mean[2] is 1e+300; it must be a finite number from -1e+06"),
        ("DATA: {CROP_PCT: 1, CROP_PCT: 1}", "the key 'CROP_PCT' appears twice"),
    ],
)
def test_a_damaged_configuration_in_weights_is_told(tmp_path, config, part):
    save_file({"model": numpy_state(create_model("pale_nano")), "config": config}, tmp_path / "best.pdparams")
    with pytest.raises(UserError) as caught:
        create_model("pale_nano", pretrained=tmp_path / "best.pdparams")
    assert part in str(caught.value)


def test_weights_of_other_tasks_say_nothing_about_classifiers(tmp_path):
    state = {"model": numpy_state(create_model("pale_nano")), "config": "DATA: {}\nmodel: {type: PaleUPerNet}"}
    save_file(state, tmp_path / "best.pdparams")
    model = create_model("pale_nano", pretrained=tmp_path / "best.pdparams")
    assert model.preprocessing == create_model("pale_nano").preprocessing


def test_images_of_every_mode_are_converted_and_those_of_16_bits_scaled():
    transform = transforms_for(create_model("pale_nano", image_size=64))
    gray = IMAGE.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    np.testing.assert_array_equal(transform(deep), transform(gray))


def test_another_image_size_than_that_of_the_weights_is_kept():
    for size in (32, 64):
        transform = transforms_for(create_model("pale_nano", pretrained="mnist5k", image_size=size))
        assert transform(IMAGE).shape == (3, size, size)


def test_images_of_other_channels_have_no_transform():
    transform = transforms_for(create_model("pale_nano", image_size=64))
    with pytest.raises(ValueError, match=r"the image is ndarray; .*convert\('RGB'\)"):
        transform(np.asarray(IMAGE))
    with pytest.raises(ValueError, match="in_channels is 4"):
        transforms_for(create_model("pale_nano", in_channels=4))


@pytest.mark.parametrize(("crop_pct", "size"), [(0.01, (64, 64)), (0.1, (3200, 100))])
def test_no_settings_of_weights_enlarge_an_image_beyond_memory(crop_pct, size):
    transform = preprocessing.EvalTransform(preprocessing.Preprocessing(image_size=1024, crop_pct=crop_pct))
    with pytest.raises(UserError, match="pixels, more than"):
        transform(Image.new("RGB", size))
