"""PaddleSeg's data sets out of a configuration, and samples that depend on their keys only."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddleseg.core.infer import reverse_transform
from paddleseg.cvlibs import SegBuilder, manager
from PIL import Image

from common.demo_data import folders as demo_folders
from common.errors import UserError
from common.training.loader import build_loader
from common.training.sampler import IterationSampler, SampleKey, ShardedEvalSampler
from semantic_segmentation.datasets import (
    EvalDataset,
    SeededDataset,
    build_dataset,
    check_batch,
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


def test_the_section_is_left_as_it_was(folder):
    section = train_section(folder)
    build(section)
    assert section == train_section(folder)


def test_a_list_that_exists_as_given_is_taken_before_one_in_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("images/0.png masks/0.png\n")
    assert len(build(train_section(folder))) == 1
    assert len(build(train_section(folder, train_path=str(folder / "train.txt")))) == 3


def test_paths_may_begin_with_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(build(train_section("~/own", train_path="~/own/train.txt"))) == 3


def test_other_separators(folder):
    (folder / "train.txt").write_text("images/0.png\tmasks/0.png\n")
    assert len(build(train_section(folder, separator="\t"))) == 1


@pytest.mark.parametrize("name", ["labels.txt", "class_names.txt"])
def test_class_names_come_from_a_file_beside_the_data(folder, name):
    assert build(train_section(folder)).class_names == ["0", "1", "2"]
    (folder / name).write_text("ground\n two words \nsky\n\n")
    assert build(train_section(folder)).class_names == ["ground", "two words", "sky"]


def test_class_names_of_the_benchmarks(tmp_path):
    names = build({"type": "ADE20K", "dataset_root": str(make_ade20k(tmp_path)), "transforms": PLAIN}, "train_dataset")
    assert len(set(names.class_names)) == 150
    assert [names.class_names[index] for index in (0, 12, 44, 149)] == ["wall", "person", "chest of drawers", "flag"]


def test_ade20k_is_in_the_same_order_on_every_machine(tmp_path, monkeypatch):
    make_ade20k(tmp_path)
    monkeypatch.setattr("paddleseg.datasets.ade.os.listdir", lambda _: ["b.jpg", "c.jpg", "a.jpg"])
    section = {"type": "ADE20K", "dataset_root": str(tmp_path), "transforms": PLAIN}
    for mode in ("train", "val"):
        dataset = build({**section, "mode": mode})
        assert [Path(image).stem for image, _ in dataset.file_list] == ["a", "b", "c"]
        assert [Path(mask).stem for _, mask in dataset.file_list] == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Nuclei", "HENuclei"])
def test_demo_data_is_made_on_first_use(kind, tmp_path):
    root = tmp_path / "new"
    section = {"type": kind, "dataset_root": str(root), "transforms": PLAIN}
    train, val = build({**section, "mode": "train"}), build({**section, "mode": "val"})
    assert len(train) > 1
    assert len(val) == 4
    names = (root / "labels.txt").read_text().split()
    assert train.class_names == val.class_names == names
    # What PaddleSeg compares with the model of a configuration.
    component = SegBuilder(None).load_component_class(kind)
    assert len(names) == component.NUM_CLASSES
    assert component.IGNORE_INDEX == 255
    assert component.IMG_CHANNELS == 3


def test_demo_data_is_beside_the_other_by_default(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(demo_folders, "data_root", lambda: tmp_path)
    monkeypatch.setattr(demo_folders, "_write_segmentation", lambda folder, *_, **__: made.append(folder) or folder)
    for kind in ("Nuclei", "HENuclei"):
        with pytest.raises(UserError):  # nothing has been made
            build({"type": kind, "mode": "train", "transforms": PLAIN})
    assert made == [tmp_path / "nuclei_segmentation", tmp_path / "he_segmentation"]


CROP = {"type": "RandomPaddingCrop", "crop_size": [8, 8]}
MISTAKES = [
    ({"type": "Datset"}, ["train_dataset: unknown type 'Datset'", "HENuclei, HRF"]),
    ({"type": 3}, ["train_dataset is", "{type: NAME, ...}"]),
    ({"type": "PSSLDataset"}, ["PSSLDataset", "not supported"]),
    ({"colour": 1}, ["unexpected keyword argument 'colour'", "num_classes"]),
    ({"num_classes": None}, ["num_classes is None", "integer from 2"]),
    ({"num_classes": "3"}, ["num_classes is '3'"]),
    ({"num_classes": 1}, ["num_classes is 1"]),
    ({"type": "ADE20K"}, ["train_dataset.num_classes is 3", "ADE20K always has 150 classes; leave num_classes"]),
    ({"ignore_index": -1}, ["ignore_index is -1", "0 to 255"]),
    ({"ignore_index": 65535}, ["ignore_index is 65535"]),
    ({"mode": "val"}, ["train_dataset.mode is 'val'", "mode: train"]),
    ({"mode": "test"}, ["train_dataset.mode is 'test'"]),
    ({"mode": "training"}, ["train_dataset.mode is 'training'; write mode: train"]),
    ({"mode": "trainval"}, ["train_dataset (Dataset): mode should be 'train', 'val' or 'test', but got trainval"]),
    ({"img_channels": 4}, ["train_dataset (Dataset)", "img_channels"]),
    ({"dataset_root": None}, ["dataset_root is missing"]),
    ({"dataset_root": 5}, ["dataset_root is 5; give a path"]),
    ({"dataset_root": "nowhere"}, ["nowhere is no folder", "the list files refer to"]),
    ({"train_path": None}, ["train_path is missing"]),
    ({"train_path": "lost.txt"}, ["neither lost.txt nor", "own/lost.txt"]),
    ({"transforms": None}, ["train_dataset.transforms is None"]),
    ({"transforms": [3]}, ["train_dataset.transforms[0] is 3"]),
    ({"transforms": [{"type": "Normalise"}]}, ["transforms[0]: unknown type 'Normalise'", "Normalize"]),
    ({"transforms": [CROP, {**CROP, "size": 3}]}, ["transforms[1] (RandomPaddingCrop)", "'size'", "crop_size"]),
    ({"transforms": [{"type": "ResizeByLong"}]}, ["transforms[0] (ResizeByLong)", "'long_size'"]),
    ({"transforms": [{**CROP, "crop_size": 8}]}, ["transforms[0] (RandomPaddingCrop)", "list or tuple"]),
    ({"transforms": [{"type": "ResizeByShort", "short_size": [8, 9]}]}, ["once for the whole run"]),
    ({"ignore_index": 7, "transforms": [CROP]}, ["transforms[0]", "pads masks with 255", "label_padding_value: 7"]),
]


@pytest.mark.parametrize(("changes", "parts"), MISTAKES)
def test_mistakes_in_a_section_are_told_in_one_line(folder, changes, parts):
    assert_told(lambda: build(train_section(folder, **changes), "train_dataset"), parts)


def assert_told(function, parts):
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


LISTS = [
    (b"", ["train.txt is empty"]),
    (b"images/0.png masks/0.png\nimages/1.png\n", ["train.txt line 2: 'images/1.png' has not two columns"]),
    (b"images/0.png  masks/0.png\n", ["line 1", "separated by ' '"]),
    (b"images/0.png masks/0.png\n\n", ["line 2: ''", "leave no line empty"]),
    (b"my image.png masks/0.png\n", ["line 1", "set separator"]),
    (b"\xef\xbb\xbfimages/0.png masks/0.png\n", ["byte order mark"]),
    (b"images/\xff.png masks/0.png\n", ["cannot read the list", "train.txt"]),
]


@pytest.mark.parametrize(("content", "parts"), LISTS)
def test_malformed_lists_are_told_with_their_line(folder, content, parts):
    (folder / "train.txt").write_bytes(content)
    assert_told(lambda: build(train_section(folder)), parts)


def test_class_names_of_another_number(folder):
    (folder / "labels.txt").write_text("ground\nsky\n")
    assert_told(lambda: build(train_section(folder)), ["labels.txt names 2 classes", "num_classes is 3"])


def test_validation_data_must_be_in_its_mode_and_reversible(folder):
    assert_told(lambda: build(val_section(folder, mode="train"), "val_dataset"), ["val_dataset.mode is 'train'"])
    section = val_section(folder)
    del section["mode"]
    assert_told(lambda: build_dataset(section, "val_dataset"), ["val_dataset (Dataset)", "'mode'"])
    for item in (CROP, {"type": "RandomHorizontalFlip"}, {"type": "ResizeStepScaling"}):
        parts = [f"val_dataset.transforms[0] ({item['type']})", "cannot be undone"]
        assert_told(lambda item=item: build(val_section(folder, transforms=[item])), parts)


@pytest.mark.parametrize(
    ("kind", "present", "parts"),
    [
        ("ADE20K", [], ["no images/training", "holds images/training, annotations/training"]),
        ("ADE20K", ["images/training"], ["no annotations/training"]),
        ("ADE20K", ["images/training", "annotations/training"], ["finds no images"]),
        ("Cityscapes", ["leftImg8bit/train"], ["no gtFine/train"]),
        ("Cityscapes", ["leftImg8bit/train", "gtFine/train"], ["*_leftImg8bit.png with *_gtFine_labelTrainIds.png"]),
        ("CocoStuff", [], ["no images/train2017"]),
        ("PascalVOC", [], ["no VOC2012/ImageSets/Segmentation"]),
        ("OpticDiscSeg", [], ["no train_list.txt"]),
    ],
)
def test_a_missing_benchmark_is_told_and_not_downloaded(tmp_path, monkeypatch, kind, present, parts):
    def download(*_, **__):
        raise AssertionError("PaddleSeg would download")

    for module in ("ade", "voc", "optic_disc_seg"):
        monkeypatch.setattr(f"paddleseg.datasets.{module}.download_file_and_uncompress", download)
    for path in present:
        (tmp_path / path).mkdir(parents=True)
    section = {"type": kind, "dataset_root": str(tmp_path), "mode": "train", "transforms": PLAIN}
    assert_told(lambda: build(section), [str(tmp_path), *parts])
    assert_told(lambda: build({**section, "dataset_root": None}), ["dataset_root is missing"])
    assert_told(lambda: build({**section, "dataset_root": f"{tmp_path}/no"}), [f"{tmp_path}/no is no folder"])


@pytest.mark.parametrize(
    ("kind", "image", "mask"),
    [
        ("Cityscapes", "leftImg8bit/val/x/{}_leftImg8bit.png", "gtFine/val/x/{}_gtFine_labelTrainIds.png"),
        ("CocoStuff", "images/val2017/{}.jpg", "annotations/val2017/{}.png"),
    ],
)
def test_benchmarks_that_pair_by_order_are_compared_by_name(tmp_path, kind, image, mask):
    for path in (pattern.format(name) for name in "abcd" for pattern in (image, mask)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    section = {"type": kind, "dataset_root": str(tmp_path), "mode": "val", "transforms": PLAIN}
    dataset = build(section)
    assert dataset.class_names[13] == ("car" if kind == "Cityscapes" else "13")
    paths = [[f"{tmp_path}/{pattern.format(name)}" for pattern in (image, mask)] for name in "abcd"]
    assert dataset.file_list == paths
    (tmp_path / mask.format("d")).unlink()  # the last ones, of which the sorted lists would tell nothing
    assert_told(lambda: build(section), [f"/{image.format('d')} has no mask {tmp_path}/{mask.format('d')}; add"])
    (tmp_path / mask.format("b")).unlink()
    assert_told(lambda: build(section), [f"/{image.format('b')} has no mask", "(2 such files)"])
    for name in "bdc":
        (tmp_path / image.format(name)).unlink()
    assert_told(lambda: build(section), [f"/{mask.format('c')} has no image {tmp_path}/{image.format('c')}; add"])


# ---- the crop


def numbered(height, width):
    """An image whose three channels repeat its mask, so that a crop shows whether both are cut alike."""
    label = np.random.default_rng(0).integers(0, 4, (height, width)).astype(np.uint8)
    return {"img": np.repeat(label[..., None], 3, 2).astype(np.float32), "label": label, "gt_fields": ["label"]}


def test_the_crop_looks_for_one_without_a_dominant_class():
    crop = manager.TRANSFORMS["RandomPaddingCrop"](crop_size=(8, 8), category_max_ratio=0.75, loop_times=200)
    np.random.seed(0)
    for _ in range(20):
        data = numbered(40, 40)
        data["label"][:, 12:] = 2
        data["label"][:20] = 255
        data["img"] = np.repeat(data["label"][..., None], 3, 2).astype(np.float32)
        data = crop(data)
        np.testing.assert_array_equal(data["img"], np.repeat(data["label"][..., None], 3, 2))
        counts = np.bincount(data["label"][data["label"] != 255])
        assert counts.max() < 0.75 * counts.sum()


# ---- samples


def test_a_sample_is_an_image_and_its_mask(folder):
    sample = SeededDataset(build(train_section(folder, transforms=PLAIN)), 0)[SampleKey(0, 0, 0)]
    pixels, mask = (np.asarray(Image.open(folder / f"{kind}/2.png")) for kind in ("images", "masks"))
    assert sample["img"].dtype == np.float32
    assert sample["label"].dtype == np.int64
    np.testing.assert_allclose(sample["img"], (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)
    np.testing.assert_array_equal(sample["label"], mask)
    assert sample["error"] == ""


def test_a_sample_depends_on_its_key_only(folder):
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


# No loader here reads in the process itself: its ending thread may hold a lock of Paddle's (3.3) while the next loader
# forks its readers, which then wait for ever.


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_of_any_reader_are_those_of_the_keys(folder, workers):
    dataset = SeededDataset(build(train_section(folder)), 0)
    sampler = IterationSampler(len(dataset), 4, seed=0, steps=3)
    expected = [collate_train([dataset[key] for key in keys]) for keys in sampler]
    for batch, other in zip(build_loader(dataset, sampler, workers, collate_train), expected, strict=True):
        check_batch(batch)
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


def break_missing_image(folder):
    (folder / "images/2.png").unlink()
    return "image {}/images/2.png does not exist"


def break_missing_mask(folder):
    (folder / "masks/2.png").unlink()
    return "mask {}/masks/2.png does not exist"


def break_image(folder):
    (folder / "images/2.png").write_bytes(b"no image")
    return "image {}/images/2.png cannot be read; replace it"


def break_mask(folder):
    path = folder / "masks/2.png"
    path.write_bytes(path.read_bytes()[:60])
    return "cannot read image {0}/images/2.png with mask {0}/masks/2.png (image file is truncated"


def break_channels(folder):
    Image.new("RGB", (30, 20)).save(folder / "masks/2.png")
    return "cannot read image {0}/images/2.png with mask {0}/masks/2.png ("


def break_size(folder):
    Image.new("L", (3, 3)).save(folder / "masks/2.png")
    return "the transforms make an image of (20, 30) and a mask of (3, 3)"


@pytest.mark.parametrize(
    "damage", [break_missing_image, break_missing_mask, break_image, break_mask, break_channels, break_size]
)
def test_what_cannot_be_read_is_told_after_the_reader(folder, damage):
    expected = damage(folder).format(folder)
    dataset = SeededDataset(build(train_section(folder, transforms=PLAIN)), 0)
    error = dataset[SampleKey(0, 0, 0)]["error"]
    assert expected in error
    assert "\n" not in error
    loader = build_loader(dataset, IterationSampler(3, 3, seed=0, steps=1), 1, collate_train)
    (batch,) = list(loader)  # the reader has not stopped
    with pytest.raises(UserError) as caught:
        check_batch(batch)
    assert str(caught.value) == error


@pytest.mark.parametrize("damage", [break_missing_image, break_missing_mask, break_image, break_mask])
def test_what_cannot_be_evaluated_is_told_after_the_reader(folder, damage):
    expected = damage(folder).format(folder)
    (folder / "val.txt").write_text("images/2.png masks/2.png\n")
    dataset = EvalDataset(build(val_section(folder)))
    (batch,) = list(build_loader(dataset, ShardedEvalSampler(1, 1), 1, collate_eval))
    with pytest.raises(UserError) as caught:
        check_batch(batch)
    assert expected in str(caught.value)


def test_crops_of_different_sizes_are_told_after_the_reader(folder):
    dataset = SeededDataset(build(train_section(folder, transforms=PLAIN)), 0)
    (batch,) = list(build_loader(dataset, IterationSampler(3, 3, seed=0, steps=1), 1, collate_train))
    with pytest.raises(UserError, match=r"are 30x20, 90x20, .* RandomPaddingCrop or Resize"):
        check_batch(batch)


def test_evaluation_knows_how_to_get_back_to_the_mask(folder):
    resize = [{"type": "Resize", "target_size": [64, 32]}, {"type": "Padding", "target_size": [70, 40]}]
    dataset = EvalDataset(build(val_section(folder, transforms=resize + PLAIN)))
    loaded = list(build_loader(dataset, ShardedEvalSampler(len(dataset), 1), 1, collate_eval))
    assert [batch["path"] for batch in loaded] == [f"{folder}/images/{number}.png" for number in (0, 1)]
    for batch in loaded:
        check_batch(batch)
        assert batch["img"].shape == [1, 3, 40, 70]
        assert batch["label"].dtype == paddle.int64
        assert batch["label"].shape == [1, 20, 30]
        assert reverse_transform(batch["img"], batch["trans_info"]).shape == [1, 3, 20, 30]
        mask = np.asarray(Image.open(batch["path"].replace("images", "masks")))
        np.testing.assert_array_equal(batch["label"][0].numpy(), mask)


def test_evaluation_is_one_image_at_a_time(folder):
    dataset = EvalDataset(build(val_section(folder)))
    with pytest.raises(UserError, match="set the batch size to 1"):
        check_batch(collate_eval([dataset[SampleKey(0, 0, 0)], dataset[SampleKey(1, 0, 1)]]))
