"""Segmentation of images with six channels, of 16 bits or floating-point numbers, from training to exported models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.checkpoints.file_format import load_file
from common.errors import UserError
from common.training.sampler import SampleKey
from semantic_segmentation.components import build_component
from semantic_segmentation.config import CONFIG, image_channels
from semantic_segmentation.datasets import EvalDataset, build_dataset
from semantic_segmentation.images import as_picture, for_transforms
from semantic_segmentation.segmentation import Segmentation
from tests.helpers.tiny_runs import load, run
from tests.inference.test_export import PADDLE_2, WRITABLE
from tools import export, predict

MEANS, DEVIATIONS = {"tif": 0.3, "npy": 900.0}, {"tif": 0.2, "npy": 600.0}


def write_stack(path: Path, colors: np.ndarray) -> None:
    """Six channels in place of three: 16 bits of the whole range (tif), or reflectances up to 3000 (npy)."""
    stack = np.concatenate([colors, 255 - colors], axis=2)
    if path.suffix == ".tif":
        tifffile.imwrite(path, stack * np.uint16(257), photometric="minisblack", planarconfig="contig", metadata=None)
    else:
        np.save(path, stack.astype(np.float32) * (3000 / 255))


@pytest.fixture
def make_stacks(squares: Path, squares_config: Path):
    """Turns the squares into images of six channels of a format, and returns the flags that train on them."""

    def make(suffix: str) -> list[str]:
        for image in (squares / "images").glob("*.png"):
            write_stack(image.with_suffix(f".{suffix}"), np.asarray(Image.open(image)))
            image.unlink()
        for split in ("train", "val"):
            pairs = (squares / f"{split}.txt").read_text()
            (squares / f"{split}.txt").write_text(pairs.replace(".png masks", f".{suffix} masks"))
        normalize = f"{{type: Normalize, mean: {[MEANS[suffix]] * 6}, std: {[DEVIATIONS[suffix]] * 6}}}"
        options = ["train_dataset.img_channels", "6", "val_dataset.transforms.0", normalize]
        return ["-opts", *options, "train_dataset.transforms.2", normalize]

    return make


# ---- from training to exported models


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_six_channels_from_training_to_exported_models(tmp_path, squares, squares_config, make_stacks, suffix, capsys):
    flags = make_stacks(suffix)
    run(Segmentation, squares_config, "-check_data", *flags)
    run(Segmentation, squares_config, "-pretrained", "mnist5k", "-iters", "4", *flags)
    output = capsys.readouterr().out
    assert "adapted to the channels of the images: " in output
    assert ("have 16 bits per channel" in output) == (suffix == "tif")
    best = tmp_path / "out" / "best.pdparams"
    assert load_file(best)["model"]["backbone.stages.0.merging.conv.weight"].shape[1] == 6
    assert {path.name for path in (tmp_path / "out" / "pictures").iterdir()} >= {"train_samples.png", "val_image_0.png"}

    best_metric = max(json.loads(line).get("mIoU", 0) for line in (tmp_path / "out" / "log.jsonl").open())
    found = run(Segmentation, tmp_path / "out" / "config.yaml", "-eval", "-pretrained", best)
    assert found["mIoU"] == pytest.approx(best_metric, rel=1e-6)

    images, exported = squares / "images", tmp_path / "exported"
    size = ["-size", "64", "64"] if PADDLE_2 else []
    with pytest.raises(UserError, match="takes images of 6 channels; give some of them as -images"):
        export.main(["-pretrained", str(best), "-out", str(exported), *size])
    export.main(["-pretrained", str(best), "-out", str(exported), "-images", str(images), *size])
    assert f"OK: {', '.join(WRITABLE[:2])}, " in capsys.readouterr().out

    def labels(source: Path) -> list[np.ndarray]:
        predict.main([str(images), "-pretrained", str(source), "-out", str(tmp_path / source.name), "-json"])
        rows = json.loads(capsys.readouterr().out)
        assert len(rows) == 8
        return [np.asarray(Image.open(row["labels"])) for row in rows]

    expected = labels(best)
    for file in (exported, exported / "model.onnx")[: len(WRITABLE)]:
        for one, other in zip(expected, labels(file), strict=True):
            assert (one != other).mean() < 1e-3


def test_gray_images_are_one_channel_for_all_transforms(tmp_path, squares, squares_config, capsys):
    channels = ["train_dataset.img_channels", "1", "train_dataset.transforms.1", "{type: RandomDistort}"]
    run(Segmentation, squares_config, "-iters", "1", "-opts", *channels, "VALIDATE_EVERY", "1")
    predict.main([str(squares / "images" / "val0.png"), "-pretrained", str(tmp_path / "out" / "best.pdparams"),
                  "-out", str(tmp_path / "pictures")])  # fmt: skip
    overlay = np.asarray(Image.open(tmp_path / "pictures" / "val0_overlay.png"))
    assert overlay.shape[2] == 3


def test_check_data_and_training_name_an_image_of_other_channels(squares, squares_config, make_stacks):
    flags = make_stacks("tif")
    five = np.zeros((60, 44, 5), np.uint16)
    tifffile.imwrite(
        squares / "images" / "train2.tif", five, photometric="minisblack", planarconfig="contig", metadata=None
    )
    for mode in (["-check_data"], []):
        with pytest.raises(UserError) as caught:
            run(Segmentation, squares_config, *mode, *flags)
        assert "\n" not in str(caught.value)
    assert f"image {squares}/images/train2.tif: it has 5 channels, not 6; correct img_channels" in str(caught.value)


# ---- the configuration


def build(squares: Path, transforms: list, **options: object):
    section = {"type": "Dataset", "dataset_root": str(squares), "mode": "train", "train_path": "train.txt"}
    return build_dataset({**section, "num_classes": 3, "transforms": transforms, **options}, "train_dataset")


@pytest.mark.parametrize(
    "key", ["train_dataset.img_channels", "val_dataset.img_channels", "model.backbone.in_channels"]
)
def test_one_of_three_keys_sets_the_channels(squares_config, key):
    config = load(CONFIG, "-cfg", squares_config, "-opts", key, "6")
    channels = config.train_dataset.img_channels, config.val_dataset.img_channels, config.model.backbone.in_channels
    assert (*channels, image_channels(config)) == (6, 6, 6, 6)
    assert "in_channels" not in load(CONFIG, "-cfg", squares_config).model.backbone, "and three are the default"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["train_dataset.img_channels", "6", "model.backbone.in_channels", "4"],
            "train_dataset.img_channels is 6, but model.backbone.in_channels is 4; make them equal",
        ),
        (["val_dataset.img_channels", "0"], "val_dataset.img_channels is 0; give an integer from 1 to 64"),
        (["model.backbone.in_channels", "[6]"], r"model.backbone.in_channels is \[6\]; give an integer"),
        (
            [
                "val_dataset.transforms",
                "[{type: Normalize, mean: [0, 0, 0], std: [1]}]",
                "val_dataset.img_channels",
                "6",
            ],
            r"val_dataset.transforms\[0\].mean has 3 numbers, but images have 6 channels; give one for each",
        ),
    ],
)
def test_channels_that_disagree_are_named(squares_config, options, told):
    with pytest.raises(UserError, match=told):
        load(CONFIG, "-cfg", squares_config, "-opts", *options)


# ---- the transforms


@pytest.mark.parametrize(
    "transform",
    [
        {"type": "RandomPaddingCrop", "crop_size": [70, 70], "im_padding_value": 51},
        {"type": "RandomRotation", "im_padding_value": 51},
        {"type": "Resize", "target_size": [30, 30], "interp": "AREA"},
        {"type": "Resize", "target_size": [90, 90], "interp": "CUBIC"},
        {"type": "ResizeStepScaling"},
        {"type": "RandomScaleAspect"},
    ],
    ids=lambda transform: transform["type"],
)
def test_paddlesegs_transforms_treat_six_channels_as_twice_three(transform):
    rows, columns, channels = np.indices((60, 44, 6), np.float32)
    image = rows + 2 * columns + 10 * channels
    results = []
    for part in (image[..., :3], image[..., 3:], image):
        np.random.seed(0)
        random.seed(0)
        data = {"img": np.ascontiguousarray(part), "label": np.zeros((60, 44), np.uint8), "gt_fields": ["label"]}
        results.append(build_component(transform, "transforms[0]")({**data, "trans_info": []})["img"])
    first, second, both = results
    assert first.shape != (60, 44, 3) or not np.array_equal(first, image[..., :3])
    difference = np.abs(both - np.concatenate([first, second], axis=2))
    assert difference.mean() < 0.1, "OpenCV rounds coordinates differently for three and four channels"


def test_integers_are_divided_by_their_largest_value_and_floats_are_as_they_are(tmp_path):
    (tmp_path / "train.txt").write_text("a.npy a.png\n")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    for dtype, largest in (("uint8", 255), ("uint16", 65535), ("float32", 1), ("float64", 1)):
        pixels = (np.random.default_rng(0).random((40, 40, 6)) * 60000).astype(dtype)
        np.save(tmp_path / "a.npy", pixels)
        normalize = {"type": "Normalize", "mean": [0.25] * 6, "std": [0.5] * 6}
        sample = EvalDataset(build(tmp_path, [normalize], img_channels=6))[SampleKey(0, 0, 0)]
        expected = (pixels.astype("float64").transpose(2, 0, 1) / largest - 0.25) / 0.5
        np.testing.assert_allclose(sample["img"], expected, rtol=1e-5, atol=1e-5)


def test_16_bits_of_a_color_image_are_kept_and_give_what_8_bits_give(tmp_path):
    (tmp_path / "train.txt").write_text("a.tif a.png\n")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint16)
    samples = []
    for stored in (pixels.astype(np.uint8), pixels * np.uint16(257), pixels * np.uint16(257) ^ np.uint16(1)):
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb")
        samples.append(EvalDataset(build(tmp_path, [{"type": "Normalize"}]))[SampleKey(0, 0, 0)]["img"])
    np.testing.assert_allclose(samples[0], samples[1], atol=1e-6)
    assert np.abs(samples[0] - samples[2]).min() > 1e-5


@pytest.mark.parametrize("name", ["RandomDistort", "RandomNoise"])
def test_transforms_that_cannot_take_floats_are_named(tmp_path, name):
    (tmp_path / "train.txt").write_text("a.npy a.png\n")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.ones((40, 40, 3), np.float32))
    dataset = EvalDataset(build(tmp_path, [{"type": name}]))
    with pytest.raises(UserError, match=rf"a\.npy has floating-point numbers, which {name} cannot take; remove {name}"):
        dataset[SampleKey(0, 0, 0)]


# ---- pictures


def test_pictures_show_three_channels_stretched_and_colors_as_they_are():
    colors = np.random.default_rng(0).integers(0, 100, (40, 50, 3)).astype(np.uint8)
    np.testing.assert_array_equal(as_picture(for_transforms(colors) / 255), colors)
    six = np.concatenate([colors.astype(np.float32) * 30, np.zeros((40, 50, 3), np.float32)], axis=2)
    picture = as_picture(six)
    assert (picture.dtype, picture.shape) == (np.uint8, (40, 50, 3))
    assert np.abs(picture.astype(float) - colors * (255 / 99)).max() < 8, "from the 1st to the 99th percentile"
    gray = as_picture(six[:, :, :2])
    assert (gray == picture[:, :, :1]).all()
    assert not as_picture(np.full((4, 4, 6), 7.0, np.float32)).any(), "a constant channel is black"
