"""PaddleSeg's data sets built from a configuration, and samples that depend only on their keys."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddleseg.core.infer import reverse_transform
from PIL import Image

from common.errors import UserError
from common.training.loader import Loader
from common.training.sampler import IterationSampler, SampleKey, ShardedEvalSampler
from semantic_segmentation.datasets import (
    EvalDataset,
    SeededDataset,
    build_dataset,
    collate_eval,
    collate_train,
)

HEAVY = [
    {"type": "ResizeByShort", "short_size": 24, "max_size": 40},
    {"type": "ResizeStepScaling", "min_scale_factor": 0.5, "max_scale_factor": 2.0, "scale_step_size": 0},
    {"type": "RandomPaddingCrop", "crop_size": [20, 16], "category_max_ratio": 0.75},
    {"type": "RandomHorizontalFlip"},
    {"type": "RandomDistort", "brightness_range": 0.2, "contrast_range": 0.5, "saturation_range": 0.5},
    {"type": "RandomNoise", "prob": 1.0},
    {"type": "Normalize"},
]
PLAIN = [{"type": "Normalize"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of 30x20 pixels and one of 90x20, with masks of the classes 0 to 2 and 255, and two lists."""
    rng = np.random.default_rng(0)
    root = tmp_path / "own"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(5):
        shape = (20, 90 if number == 4 else 30)
        Image.fromarray(rng.integers(0, 256, (*shape, 3)).astype(np.uint8)).save(root / f"images/{number}.png")
        mask = rng.choice([0, 1, 2, 255], shape).astype(np.uint8)
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    lines = [f"images/{number}.png masks/{number}.png\n" for number in range(5)]
    (root / "train.txt").write_text("".join(lines[2:]))
    (root / "val.txt").write_text("".join(lines[:2]))
    return root


def train_section(folder, **changes):
    section = {"type": "Dataset", "dataset_root": str(folder), "mode": "train", "train_path": "train.txt"}
    return {**section, "num_classes": 3, "transforms": HEAVY, **changes}


def val_section(folder, **changes):
    return {**train_section(folder, mode="val", val_path="val.txt", transforms=PLAIN), **changes}


def build(section, name=None):
    return build_dataset(section, name or f"{section['mode']}_dataset")


def test_a_data_set_may_have_no_transforms(folder):
    assert len(build(train_section(folder, transforms=[])).file_list) > 0


def make_ade20k(root, names=("b", "c", "a")):
    for split in ("training", "validation"):
        for name in names:
            for part, suffix, shape in (("images", "jpg", (8, 8, 3)), ("annotations", "png", (8, 8))):
                path = root / part / split / f"{name}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)).save(path)
    return root


# ---- building


def test_a_folder_with_lists_becomes_a_data_set(folder):
    dataset = build(train_section(folder))
    assert dataset.file_list == [[f"{folder}/images/{n}.png", f"{folder}/masks/{n}.png"] for n in (2, 3, 4)]
    assert (dataset.mode, dataset.num_classes, dataset.ignore_index) == ("train", 3, 255)
    assert [type(transform).__name__ for transform in dataset.transforms.transforms] == [item["type"] for item in HEAVY]
    assert len(build(val_section(folder))) == 2


def test_paths_may_be_absolute_relative_or_begin_with_a_tilde(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(build(train_section("~/own", train_path="~/own/train.txt"))) == 3
    monkeypatch.chdir(tmp_path)
    Path("here.txt").write_text("images/0.png\tmasks/0.png\n")
    assert len(build(train_section(folder, train_path="here.txt", separator="\t"))) == 1


def test_class_names_come_from_a_file_beside_the_data(folder):
    assert build(train_section(folder)).class_names == ["0", "1", "2"]
    (folder / "class_names.txt").write_text("ground\n two words \nsky\n\n")
    assert build(train_section(folder)).class_names == ["ground", "two words", "sky"]
    (folder / "labels.txt").write_text("ground\nsky\n")
    assert_error(lambda: build(train_section(folder)), ["labels.txt and", "class_names.txt have different class names"])
    (folder / "class_names.txt").unlink()
    parts = ["labels.txt names 2 classes, num_classes is 3: write one name for each class", ", or give -num_classes 2"]
    assert_error(lambda: build(train_section(folder)), parts)
    (folder / "labels.txt").write_text("sky\n")
    with pytest.raises(UserError, match=r"usually the background$"):  # one class cannot be trained
        build(train_section(folder))


def test_ade20k_has_class_names_and_the_same_order_on_every_machine(tmp_path, monkeypatch):
    make_ade20k(tmp_path)
    monkeypatch.setattr("paddleseg.datasets.ade.os.listdir", lambda _: ["b.jpg", "c.jpg", "a.jpg"])
    section = {"type": "ADE20K", "dataset_root": str(tmp_path), "transforms": PLAIN}
    for mode in ("train", "val"):
        dataset = build({**section, "mode": mode})
        assert [Path(image).stem for image, _ in dataset.file_list] == ["a", "b", "c"]
        assert [Path(mask).stem for _, mask in dataset.file_list] == ["a", "b", "c"]
        assert len(set(dataset.class_names)) == 150
        assert [dataset.class_names[index] for index in (0, 44, 149)] == ["wall", "chest of drawers", "flag"]


def test_demo_data_is_made_on_first_use(tmp_path):
    section = {"type": "Nuclei", "dataset_root": str(tmp_path / "new"), "transforms": PLAIN}
    train, val = build({**section, "mode": "train"}), build({**section, "mode": "val"})
    assert (len(train), len(val)) == (2, 4)
    assert train.class_names == val.class_names == ["background", "nucleus"]


CROP = {"type": "RandomPaddingCrop", "crop_size": [8, 8]}
MISTAKES = [
    ({"type": "Datset"}, ["train_dataset: unknown type 'Datset'", "HENuclei, HRF"]),
    ({"color": 1}, ["unexpected keyword argument 'color'", "num_classes"]),
    ({"num_classes": None}, ["num_classes is None", "integer from 2"]),
    ({"type": "ADE20K"}, ["train_dataset.num_classes is 3", "ADE20K always has 150 classes; leave num_classes"]),
    ({"ignore_index": -1}, ["ignore_index is -1", "0 to 255"]),
    ({"mode": "val"}, ["train_dataset.mode is 'val'", "mode: train"]),
    ({"img_channels": 4}, ["transforms[4] (RandomDistort) is for 8-bit gray or color images, but img_channels is 4"]),
    ({"type": "Nuclei", "img_channels": 4, "num_classes": 2}, ["img_channels", "Nuclei have 3 channels"]),
    ({"dataset_root": "nowhere"}, ["nowhere is not a folder; give the folder of the images and masks"]),
    ({"train_path": None}, ["train_dataset (Dataset)", "`train_path` is necessary"]),
    ({"train_path": "lost.txt"}, ["cannot read the list", "own/lost.txt", "lines IMAGE MASK as train_dataset.tr"]),
    ({"transforms": [{"type": "Normalizer"}]}, ["transforms[0]: unknown type 'Normalizer'", "Normalize"]),
    ({"transforms": [{"type": "Normalize", "mean": [123.7, 116.3, 103.5]}]}, ["the mean 123.7 of Normalize is not of"]),
    ({"transforms": [{"type": "Normalize"}] * 2}, ["train_dataset.transforms has Normalize twice"]),
    (
        {"transforms": [{"type": "Normalize"}, {"type": "RandomDistort"}]},
        ["RandomDistort works on pixels from 0 to 255"],
    ),
    ({"transforms": [{"type": "Normalize"}, CROP]}, ["RandomPaddingCrop works on pixels", "put it before Normalize"]),
    ({"transforms": [CROP, {**CROP, "size": 3}]}, ["transforms[1] (RandomPaddingCrop)", "'size'", "crop_size"]),
    ({"transforms": [{**CROP, "crop_size": 8}]}, ["transforms[0] (RandomPaddingCrop)", "list or tuple"]),
]


@pytest.mark.parametrize(("changes", "parts"), MISTAKES)
def test_mistakes_in_a_section_are_reported_in_one_line(folder, changes, parts):
    assert_error(lambda: build(train_section(folder, **changes), "train_dataset"), parts)


def test_masks_are_padded_with_the_ignored_value(folder):
    transforms = build(train_section(folder, ignore_index=7, transforms=[CROP])).transforms.transforms
    assert transforms[0].label_padding_value == 7


def assert_error(function, parts):
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_list_is_looked_for_in_the_folder_of_the_data_first(folder, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    section = {**train_section(folder), "train_path": "train.txt"}
    expected = len(build(section).file_list)
    (here / "train.txt").write_text("images/0.png masks/0.png\n")
    assert_error(lambda: build(section), ["train.txt, which exists here and as", "absolute path"])
    assert len(build({**section, "train_path": str(folder / "train.txt")}).file_list) == expected


LISTS = [
    (b"", ["train_dataset (Dataset) finds no images in ", "train.txt; check it"]),
    (
        "\ufeffimages/0.png masks/0.png\n".encode(),
        ["train.txt begins with a byte order mark; save it as UTF-8 without"],
    ),
    (b"images/0.png masks/0.png\nimages/1.png\n", ["train.txt line 2: 'images/1.png' does not have two columns"]),
    (b"images/0.png masks/0.png\n\n", ["line 2: ''", "leave no line empty"]),
    (b"images/\xff.png masks/0.png\n", ["cannot read the list", "train.txt"]),
]


@pytest.mark.parametrize(("content", "parts"), LISTS)
def test_malformed_lists_are_reported(folder, content, parts):
    (folder / "train.txt").write_bytes(content)
    assert_error(lambda: build(train_section(folder)), parts)


def test_validation_data_must_be_in_its_mode_and_reversible(folder):
    assert_error(lambda: build(val_section(folder, mode="train"), "val_dataset"), ["val_dataset.mode is 'train'"])
    parts = ["val_dataset.transforms[0] (RandomPaddingCrop)", "cannot be reverted"]
    assert_error(lambda: build(val_section(folder, transforms=[CROP])), parts)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("ADE20K", "images/training"),
        ("Cityscapes", "leftImg8bit/train/*/*_leftImg8bit.png; give the folder of Cityscapes"),
        ("OpticDiscSeg", "train_list.txt"),
    ],
)
def test_a_missing_benchmark_is_reported_and_not_downloaded(tmp_path, monkeypatch, kind, missing):
    def download(*_, **__):
        raise AssertionError("PaddleSeg would download")

    for module in ("ade", "optic_disc_seg"):
        monkeypatch.setattr(f"paddleseg.datasets.{module}.download_file_and_uncompress", download)
    section = {"type": kind, "dataset_root": str(tmp_path), "mode": "train", "transforms": PLAIN}
    assert_error(lambda: build(section), ["train_dataset", missing])
    assert_error(lambda: build({**section, "dataset_root": None}), ["train_dataset.dataset_root: None is not a folder"])
    assert_error(lambda: build({**section, "dataset_root": f"{tmp_path}/no"}), [f"{tmp_path}/no is not a folder"])


@pytest.mark.parametrize(
    ("kind", "image", "mask"),
    [
        ("Cityscapes", "leftImg8bit/val/x/{}_leftImg8bit.png", "gtFine/val/x/{}_gtFine_labelTrainIds.png"),
        ("CocoStuff", "images/val2017/{}.jpg", "annotations/val2017/{}.png"),
    ],
)
def test_images_are_paired_with_the_masks_of_their_names(tmp_path, monkeypatch, kind, image, mask):
    for path in (image.format("a"), image.format("b"), mask.format("b"), mask.format("c")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    section = {"type": kind, "dataset_root": str(tmp_path), "mode": "val", "transforms": PLAIN}
    dataset = build(section)
    assert dataset.class_names[13] == ("car" if kind == "Cityscapes" else "13")
    pairs = [[f"{tmp_path}/{pattern.format(name)}" for pattern in (image, mask)] for name in "ab"]
    assert dataset.file_list == pairs
    Image.new("RGB", (3, 3)).save(pairs[0][0])
    with pytest.raises(UserError, match=f"{pairs[0][1]} does not exist; restore it"):
        EvalDataset(dataset)[SampleKey(0, 0, 0)]

    def scandir(path, original=os.scandir):
        if Path(path).name == "city":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    (tmp_path / image).parents[0 if kind == "CocoStuff" else 1].joinpath("city").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    assert_error(lambda: build(section), ["cannot list ", "/city: Permission denied"])


# ---- samples


def test_a_sample_is_an_image_and_its_mask(folder):
    sample = SeededDataset(build(train_section(folder, transforms=PLAIN)), 0)[SampleKey(0, 0, 0)]
    pixels, mask = (np.asarray(Image.open(folder / f"{kind}/2.png")) for kind in ("images", "masks"))
    assert sample["img"].dtype == np.float32
    assert sample["label"].dtype == np.int64
    np.testing.assert_allclose(sample["img"], (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)
    np.testing.assert_array_equal(sample["label"], mask)


def test_a_sample_depends_only_on_its_key(folder):
    dataset = SeededDataset(build(train_section(folder)), 1)
    keys = [SampleKey(index, epoch, position) for index in range(3) for epoch in (0, 5) for position in range(3)]
    # After the long image, PaddleSeg's ResizeByShort would make all others smaller.
    first = {key: dataset[key] for key in keys}
    random.seed(99)
    again = {key: SeededDataset(build(train_section(folder)), 1)[key] for key in reversed(keys)}
    for key in keys:
        np.testing.assert_array_equal(first[key]["img"], again[key]["img"])
        np.testing.assert_array_equal(first[key]["label"], again[key]["label"])
    images = {first[key]["img"].tobytes() for key in keys}
    assert len(images) == len(keys)
    assert SeededDataset(dataset.dataset, 2)[keys[0]]["img"].tobytes() not in images


def test_batches_do_not_depend_on_the_number_of_readers(folder):
    dataset = SeededDataset(build(train_section(folder)), 0)
    sampler = IterationSampler(len(dataset), 4, seed=0, steps=3)
    expected = [collate_train([dataset[key] for key in keys]) for keys in sampler]
    for batch, other in zip(Loader(dataset, sampler, 2, collate_train), expected, strict=True):
        assert batch["img"].shape == [4, 3, 16, 20]
        assert batch["label"].shape == [4, 16, 20]
        np.testing.assert_array_equal(batch["img"].numpy(), other["img"])
        np.testing.assert_array_equal(batch["label"].numpy(), other["label"])


def test_ade20k_ignores_zero_and_counts_from_one(tmp_path):
    make_ade20k(tmp_path)
    section = {"type": "ADE20K", "dataset_root": str(tmp_path), "transforms": PLAIN}
    label = SeededDataset(build({**section, "mode": "train"}), 0)[SampleKey(0, 0, 0)]["label"]
    val_label = EvalDataset(build({**section, "mode": "val"}))[SampleKey(0, 0, 0)]["label"]
    expected = np.array([255, *range(63)]).reshape(8, 8)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(val_label, expected)


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


def lengthen(path):
    Image.new("L", (65500, 1)).save(path)


DAMAGES = {
    "{}/images/2.png does not exist": lambda folder: (folder / "images/2.png").unlink(),
    "{}/masks/2.png does not exist": lambda folder: (folder / "masks/2.png").unlink(),
    "cannot read image {}/images/2.png: it is damaged": lambda folder: damage(folder / "images/2.png"),
    "mask {}/masks/2.png is a PNG image of mode RGB": lambda folder: shutil.copy(
        folder / "images/2.png", folder / "masks/2.png"
    ),
    "cannot read image {}/masks/2.png: it is damaged": lambda folder: damage(folder / "masks/2.png"),
    "{}/images/2.png: it has 65500x1 pixels": lambda folder: lengthen(folder / "images/2.png"),
    "{}/masks/2.png: it has 65500x1 pixels": lambda folder: lengthen(folder / "masks/2.png"),
}


@pytest.mark.parametrize("expected", DAMAGES)
def test_an_unreadable_sample_is_named(folder, expected):
    DAMAGES[expected](folder)
    (folder / "val.txt").write_text("images/2.png masks/2.png\n")
    train = SeededDataset(build(train_section(folder, transforms=PLAIN)), 0)
    val = EvalDataset(build(val_section(folder)))
    for dataset in (train, val):
        assert_error(lambda dataset=dataset: dataset[SampleKey(0, 0, 0)], [expected.format(folder)])


@pytest.mark.parametrize(("mode", "size"), [("train", (3, 3)), ("train", (20, 30, 3)), ("val", (20, 30, 3))])
def test_a_mask_that_does_not_fit_its_image_is_an_error_of_its_sample(folder, mode, size):
    Image.fromarray(np.zeros(size, np.uint8)).save(folder / "masks/2.png")
    (folder / "val.txt").write_text("images/2.png masks/2.png\n")
    train = SeededDataset(build(train_section(folder, transforms=PLAIN)), 0)
    samples = train if mode == "train" else EvalDataset(build(val_section(folder)))
    with pytest.raises(UserError, match=f"mask {folder}/masks/2.png"):
        samples[SampleKey(0, 0, 0)]


def test_images_of_different_sizes_are_an_error_of_their_batch(folder):
    dataset = SeededDataset(build(train_section(folder, transforms=PLAIN)), 0)
    with pytest.raises(UserError, match=r"are 30x20, 90x20, .* RandomPaddingCrop or Resize"):
        collate_train([dataset[SampleKey(index, 0, index)] for index in range(3)])


def test_evaluation_knows_how_to_get_back_to_the_mask(folder):
    resize = [{"type": "Resize", "target_size": [64, 32]}, {"type": "Padding", "target_size": [70, 40]}]
    dataset = EvalDataset(build(val_section(folder, transforms=resize + PLAIN)))
    loaded = list(Loader(dataset, ShardedEvalSampler(len(dataset), 1), 1, collate_eval))
    assert [batch["path"] for batch in loaded] == [f"{folder}/images/{number}.png" for number in (0, 1)]
    for batch in loaded:
        assert batch["img"].shape == [1, 3, 40, 70]
        assert batch["label"].dtype == paddle.int64
        assert batch["label"].shape == [1, 20, 30]
        assert reverse_transform(batch["img"], batch["trans_info"]).shape == [1, 3, 20, 30]
        mask = np.asarray(Image.open(batch["path"].replace("images", "masks")))
        np.testing.assert_array_equal(batch["label"][0].numpy(), mask)
