"""COCO data out of a configuration, samples that depend on their keys only, and batches of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from ppdet.data.source import COCODataSet
from ppdet.data.transform import NormalizeImage

from common.pictures.drawing import denormalize
from common.training.loader import Loader
from common.training.sampler import SampleKey, ShardedEvalSampler, ShardedTrainSampler
from object_detection.coco_file import index_annotations
from object_detection.datasets import (
    Objects,
    SeededDataset,
    build_dataset,
    build_transforms,
    collate,
    find_normalization,
    read_records,
)
from tests.helpers.detection_runs import assert_told, load
from tests.helpers.programs import ROOT

NORMALIZE = "{NormalizeImage: {is_scale: true, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}, {Permute: {}}"
# Whatever draws random numbers in a recipe of detection, on samples and on batches.
HEAVY = """[{Decode: {}}, {RandomDistort: {}}, {RandomExpand: {fill_value: [9, 9, 9]}},
    {RandomCrop: {}}, {RandomFlip: {}},
    {RandomResize: {target_size: [[40, 60], [56, 80]], interp: 1, keep_ratio: true}}]"""
RESIZE = "{BatchRandomResize: {target_size: [64, 96, 128], random_size: true, random_interp: true, keep_ratio: false}}"
BATCHES = f"[{RESIZE}, {NORMALIZE}, {{PadBatch: {{pad_to_stride: 32}}}}]"
PLAIN = f"[{{Decode: {{}}}}, {NORMALIZE}]"
HEAVY_OPTIONS = ("TrainReader.sample_transforms", HEAVY, "TrainReader.batch_transforms", BATCHES)


def options(boxes_config: Path, *pairs: object):
    return load("-cfg", boxes_config, "-opts", *pairs)


def read(config, name: str = "TrainDataset"):
    """The records of a part, out of its file as it is."""
    data = build_dataset(config, name)
    return read_records(data, index_annotations(json.loads(data.file.read_text())), config.SEED)


def train_set(config, seed: int = 0) -> tuple[SeededDataset, partial]:
    transforms, batches = build_transforms(config, "TrainReader", 3)
    return SeededDataset(read(config), transforms, seed), partial(collate, transforms=batches)


def arrays(value) -> list[np.ndarray]:
    """Every array and number of a sample or batch, in its order."""
    if isinstance(value, Objects):
        return arrays(value.fields)
    if isinstance(value, dict):
        return [array for key in sorted(value) for array in arrays(value[key])]
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in arrays(item)]
    return [np.asarray(value)]


def are_equal(first, second) -> bool:
    first, second = arrays(first), arrays(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# ---- from a configuration to records


def test_a_folder_in_cocos_form_becomes_records_in_the_order_of_the_image_ids(boxes, boxes_config):
    data = build_dataset(load("-cfg", boxes_config), "TrainDataset")
    assert type(data.dataset) is COCODataSet
    assert (data.name, data.file, data.images) == ("TrainDataset", boxes / "annotations/train.json", boxes / "train")
    records = read(load("-cfg", boxes_config))
    assert [record["im_file"] for record in records] == [f"{boxes}/train/train_{number}.png" for number in range(5)]
    assert [int(record["im_id"][0]) for record in records] == list(range(100, 105))
    coco = json.loads(data.file.read_text())
    first = records[0]
    for number, annotation in enumerate(coco["annotations"][:2]):
        x, y, width, height = annotation["bbox"]
        np.testing.assert_array_equal(first["gt_bbox"][number], [x, y, x + width, y + height])
        assert first["gt_poly"][number] == annotation["segmentation"]
    assert first["gt_class"].ravel().tolist() == [0, 1], "classes are numbered in the order of the file, not of the ids"
    assert records[4]["gt_bbox"].shape == (0, 4)


def test_images_without_objects_are_trained_on_if_allowed_and_always_evaluated(boxes, boxes_config):
    assert len(read(options(boxes_config, "TrainDataset.allow_empty", "false"))) == 4
    assert len(read(options(boxes_config, "TrainDataset.repeat", "3"))) == 15
    path = boxes / "annotations" / "val.json"
    coco = json.loads(path.read_text())
    path.write_text(json.dumps({**coco, "annotations": coco["annotations"][:2]}))
    assert len(read(load("-cfg", boxes_config), "EvalDataset")) == 3
    path.write_text(json.dumps({**coco, "annotations": []}))
    none = options(boxes_config, "EvalDataset.empty_ratio", "0")
    assert_told(lambda: read(none, "EvalDataset"), "EvalDataset: no image of", "val.json", "allow_empty: true")


def test_which_empty_images_are_drawn_depends_on_the_seed_alone(boxes, boxes_config):
    path = boxes / "annotations" / "train.json"
    coco = json.loads(path.read_text())
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] == 100]
    path.write_text(json.dumps(coco))
    drawn = {}
    for seed in range(4):
        config = options(boxes_config, "SEED", seed, "TrainDataset.empty_ratio", "0.7")
        draws = []
        for _ in range(2):
            random.seed()  # nobody's seed
            draws.append([int(record["im_id"][0]) for record in read(config)])
        assert draws[0] == draws[1]
        drawn[seed] = tuple(draws[0])
    assert len(set(drawn.values())) > 1


def test_paths_may_begin_with_a_tilde(boxes, boxes_config, monkeypatch):
    monkeypatch.setenv("HOME", str(boxes.parent))
    assert len(read(options(boxes_config, "TrainDataset.dataset_dir", "~/boxes"))) == 5


def test_nothing_but_the_demo_data_is_fetched(boxes_config, monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("PaddleDetection would download")

    monkeypatch.setattr("ppdet.data.source.dataset.get_dataset_path", fetch)
    for options_ in (("dataset_dir", "nowhere"), ("image_dir", "nowhere")):
        config = options(boxes_config, f"TrainDataset.{options_[0]}", options_[1])
        assert_told(lambda config=config: build_dataset(config, "TrainDataset"), "TrainDataset", "nowhere")


@pytest.mark.parametrize("masks", [True, False])
def test_training_records_have_the_fields_that_the_model_needs(boxes_config, masks):
    data = build_dataset(options(boxes_config, "TrainDataset.data_fields", "[image]"), "TrainDataset")
    coco = index_annotations(json.loads(data.file.read_text()))
    record = read_records(data, coco, 0, masks)[0]
    assert {"im_file", "gt_bbox", "gt_class", "is_crowd"} <= set(record)
    assert ("gt_poly" in record) == masks


# ---- samples


def test_a_sample_is_an_image_and_its_objects(boxes, boxes_config):
    dataset, _ = train_set(options(boxes_config, "TrainReader.sample_transforms", PLAIN))
    sample = dataset[SampleKey(1, 0, 0)]
    pixels = np.asarray(Image.open(boxes / "train" / "train_1.png"))
    assert sample["image"].dtype == np.float32
    np.testing.assert_allclose(sample["image"], (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-6)
    np.testing.assert_array_equal(sample["im_shape"], [48, 64])
    np.testing.assert_array_equal(sample["scale_factor"], [1, 1])
    assert sample["im_id"].tolist() == [101]
    assert (sample["gt_bbox"].dtype, sample["gt_class"].dtype, sample["is_crowd"].dtype) == (
        "float32",
        "int32",
        "int32",
    )


def test_a_sample_depends_on_its_key_and_the_seed_only(boxes_config):
    dataset, _ = train_set(options(boxes_config, *HEAVY_OPTIONS), seed=1)
    keys = [SampleKey(0, 0, 0), SampleKey(0, 0, 1), SampleKey(0, 5, 0), SampleKey(4, 0, 0)]
    first = {key: dataset[key] for key in keys}
    np.random.seed(99)
    random.seed(99)
    assert all(are_equal(dataset[key], first[key]) for key in reversed(keys))
    assert not any(are_equal(first[keys[0]], first[other]) for other in keys[1:])
    again, _ = train_set(options(boxes_config, *HEAVY_OPTIONS), seed=2)
    assert not are_equal(again[keys[0]], first[keys[0]])


def epoch(config, workers: int = 0) -> list[dict]:
    dataset, batch_of = train_set(config)
    sampler = ShardedTrainSampler(len(dataset), 2, 0)
    return list(Loader(dataset, sampler, workers, batch_of))


def digest(config, workers: int) -> str:
    return sha256(b"".join(array.tobytes() for array in arrays(epoch(config, workers)))).hexdigest()


def test_batches_are_the_same_whatever_was_drawn_before(boxes_config):
    """Those of BatchRandomResize too, which draws once for a whole batch."""
    config = options(boxes_config, *HEAVY_OPTIONS)
    first = epoch(config)
    np.random.seed(99)
    random.seed(99)
    assert are_equal(epoch(config), first)
    dataset, batch_of = train_set(config)
    sizes = set()
    for position in range(0, 8, 2):
        batch = batch_of([dataset[SampleKey(number, 0, position + number)] for number in (0, 1)])
        sizes.add(batch["image"].shape)
    assert len(sizes) > 1


@pytest.mark.slow
def test_batches_are_the_same_in_any_process(boxes_config):
    program = (
        "import sys\n"
        f"sys.path[:0] = {[str(ROOT)]!r}\n"
        "from pathlib import Path\n"
        "from tests.detection.test_datasets import HEAVY_OPTIONS, digest, options\n"
        f"print(digest(options(Path({str(boxes_config)!r}), *HEAVY_OPTIONS), 0))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    config = options(boxes_config, *HEAVY_OPTIONS)
    assert digest(config, 0) == digest(config, 2) == result.stdout.split()[-1]


# ---- transforms


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("sample_transform", "[]", ["has the unknown key sample_transform", "sample_transforms"]),
        ("sample_transforms", "[5]", ["sample_transforms: ", "NAME: {argument: value}"]),
        ("sample_transforms", "[{Decod: {}}]", ["sample_transforms: ", "'Decod'"]),
        ("sample_transforms", "[{Decode: {}}, {Resize: {size: 3}}]", ["Resize", "'size'"]),
        ("batch_transforms", "[{PadBatch: {stride: 32}}]", ["batch_transforms: ", "PadBatch", "'stride'"]),
    ],
)
def test_wrong_transforms_are_named_with_their_section(boxes_config, key, value, parts):
    config = options(boxes_config, f"EvalReader.{key}", value)
    assert_told(lambda: build_transforms(config, "EvalReader", 3), "EvalReader", *parts)


# ---- batches


def test_a_batch_is_padded_and_keeps_the_objects_of_each_image(boxes_config):
    dataset, batch_of = train_set(options(boxes_config, "TrainReader.sample_transforms", PLAIN))
    samples = [dataset[SampleKey(index, 0, 0)] for index in (0, 1, 4)]
    batch = batch_of(samples)
    assert batch["image"].shape == (3, 3, 64, 64)
    np.testing.assert_array_equal(batch["image"][0, :, :, :48], samples[0]["image"])
    assert not batch["image"][0, :, :, 48:].any()
    np.testing.assert_array_equal(batch["im_shape"], [[64, 48], [48, 64], [64, 48]])
    np.testing.assert_array_equal(batch["im_id"], [[100], [101], [104]])
    tensors = batch["objects"].tensors()
    for key, width in (("gt_bbox", 4), ("gt_class", 1), ("is_crowd", 1)):
        assert [value.shape for value in tensors[key]] == [[2, width], [2, width], [0, width]]
    assert [len(image) for image in tensors["gt_poly"]] == [2, 2, 0]


def test_a_batch_to_validate_is_one_image_with_what_undoes_its_resizing(boxes_config):
    resize = f"[{{Decode: {{}}}}, {{Resize: {{target_size: [72, 200], interp: 1, keep_ratio: true}}}}, {NORMALIZE}]"
    config = options(boxes_config, "EvalReader.sample_transforms", resize)
    transforms, batches = build_transforms(config, "EvalReader", 3)
    dataset = SeededDataset(read(config, "EvalDataset"), transforms, 0)
    loader = Loader(dataset, ShardedEvalSampler(3, 1), 0, partial(collate, transforms=batches))
    for number, batch in enumerate(loader):
        height, width = (96, 72) if number != 1 else (72, 96)
        assert batch["image"].shape == [1, 3, 96, 96]
        np.testing.assert_array_equal(batch["im_shape"].numpy(), [[height, width]])
        original = batch["im_shape"].numpy() / batch["scale_factor"].numpy()
        np.testing.assert_allclose(original, [[64, 48] if number != 1 else [48, 64]], rtol=1e-6)
        assert batch["im_id"].numpy().ravel().tolist() == [100 + number]
        assert all(isinstance(batch[key], paddle.Tensor) for key in ("image", "im_shape", "scale_factor"))


@pytest.mark.parametrize(
    ("batch_transforms", "size", "told"),
    [
        ("[{PadBatch: {}}]", 1, "not multiples of 32; add PadBatch: {pad_to_stride: 32}"),
        ("[]", 5, "must have the same shape; add PadBatch: {pad_to_stride: 32}"),
    ],
)
def test_samples_that_make_no_batch_are_reported(boxes_config, batch_transforms, size, told):
    pairs = ("TrainReader.sample_transforms", PLAIN, "TrainReader.batch_transforms", batch_transforms)
    dataset, batch_of = train_set(options(boxes_config, *pairs))
    assert_told(lambda: list(Loader(dataset, ShardedTrainSampler(5, size, 0), 1, batch_of)), told)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), "does not exist; restore it"),
        (lambda path: path.write_bytes(b"no image"), "convert or remove it"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:45] + bytes(12) + path.read_bytes()[57:]),
            "OpenCV cannot decode it",
        ),
        (lambda path: Image.new("L", (65500, 1)).save(path), "it has 65500x1 pixels"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_in_place_of_its_batch(boxes, boxes_config, damage, expected):
    dataset, batch_of = train_set(load("-cfg", boxes_config))
    path = boxes / "train" / "train_1.png"
    damage(path)
    batches = iter(Loader(dataset, ShardedEvalSampler(len(dataset), 1), 1, batch_of))
    assert int(next(batches)["im_id"]) == 100
    assert_told(lambda: next(batches), str(path), expected)


PLAINLY_NORMALIZED = {"NormalizeImage": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}


@pytest.mark.parametrize(
    ("name", "steps", "parts"),
    [
        (
            "TrainReader",
            [{"NormalizeImage": {"mean": [123.7, 116.3, 103.5]}}],
            ["[123.7, 116.3, 103.5]", "is_scale: f"],
        ),
        ("TrainReader", [{"NormalizeImage": {"mean": [0.5] * 3, "is_scale": False}}], ["0 to 255", "is_scale: true"]),
        ("TrainReader", [PLAINLY_NORMALIZED, PLAINLY_NORMALIZED], ["NormalizeImage twice"]),
        ("TrainReader", [{"RandomFlip": {}, **PLAINLY_NORMALIZED}, PLAINLY_NORMALIZED], ["twice"]),
        ("TrainReader", [PLAINLY_NORMALIZED, {"RandomDistort": {}}], ["RandomDistort stands behind NormalizeImage"]),
        (
            "TrainReader",
            [PLAINLY_NORMALIZED, {"Permute": {}}, {"RandomFlip": {}}],
            ["RandomFlip stands behind Permute"],
        ),
        (
            "EvalReader",
            [{"RandomFlip": {}}, PLAINLY_NORMALIZED],
            ["RandomFlip changes images", "it is for TrainReader"],
        ),
        (
            "EvalReader",
            [{"LetterBoxResize": {"target_size": [64, 64]}}, PLAINLY_NORMALIZED],
            ["moves images by LetterBoxResize"],
        ),
        ("TrainReader", [{"Mixup": {}}], ["Mixup mixes several images", "remove it"]),
        ("TrainReader", [PLAINLY_NORMALIZED, {"NormalizeBox": {}}], ["NormalizeBox gives boxes a form"]),
        ("TrainReader", [PLAINLY_NORMALIZED, {"Pad": {"size": [96, 96]}}], ["Pad stands behind", "with 127.5"]),
        ("EvalReader", [{"Pad": {"size": [96, 96], "pad_mode": 1}}, PLAINLY_NORMALIZED], ["pad_mode: 0"]),
    ],
)
def test_transforms_that_would_compute_garbage_are_refused(boxes_config, name, steps, parts):
    config = options(boxes_config, f"{name}.sample_transforms", json.dumps([{"Decode": {}}, *steps]))
    assert_told(lambda: build_transforms(config, name, 2), name, *parts)


def test_what_readers_do_anyway_cannot_be_chosen(boxes_config):
    build_transforms(options(boxes_config, "TrainReader.shuffle", True, "EvalReader.shuffle", False), "TrainReader", 2)
    for name, key, value in (("TrainReader", "shuffle", False), ("EvalReader", "drop_last", True)):
        config = options(boxes_config, f"{name}.{key}", value)
        assert_told(lambda config=config, name=name: build_transforms(config, name, 2), f"{name}.{key} is {value}")


@pytest.mark.parametrize(
    ("step", "part"),
    [
        ({"RandomCrop": {}}, "RandomCrop does not crop masks; add is_mask_crop: true"),
        ({"RandomSelect": {"transforms1": [{"AutoAugment": {}}], "transforms2": []}}, "AutoAugment moves"),
    ],
)
def test_transforms_that_would_leave_masks_behind_are_refused_where_masks_are_trained(
    boxes_config, monkeypatch, step, part
):
    steps = [{"Decode": {}}, step, PLAINLY_NORMALIZED]
    config = options(boxes_config, "TrainReader.sample_transforms", json.dumps(steps))
    build_transforms(config, "TrainReader", 2)
    assert_told(lambda: build_transforms(config, "TrainReader", 2, masks=True), "TrainReader", part)
    cropped = json.dumps([{"Decode": {}}, {"RandomCrop": {"is_mask_crop": True}}, PLAINLY_NORMALIZED])
    config = options(boxes_config, "TrainReader.sample_transforms", cropped)
    for found in (True, None):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        if found:
            build_transforms(config, "TrainReader", 2, masks=True)
        else:
            assert_told(lambda: build_transforms(config, "TrainReader", 2, masks=True), "pip install shapely")


def test_a_mean_that_is_no_number_is_left_to_the_transform(boxes_config):
    for mean in ([], ["a", "b", "c"]):
        steps = [{"Decode": {}}, {"NormalizeImage": {"mean": mean}}]
        build_transforms(options(boxes_config, "TrainReader.sample_transforms", json.dumps(steps)), "TrainReader", 2)


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {"is_scale": True, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]},
        {"is_scale": False, "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
        {"is_scale": False, "norm_type": "none"},
    ],
)
def test_what_the_transforms_normalize_is_undone(boxes_config, arguments):
    image = np.random.default_rng(0).integers(0, 256, [4, 5, 3], dtype=np.uint8)
    steps = [{"Decode": {}}, *([] if arguments is None else [{"NormalizeImage": arguments}]), {"Permute": {}}]
    config = options(boxes_config, "TrainReader.sample_transforms", json.dumps(steps))
    seen = {"image": image.astype(np.float32)}
    if arguments is not None:
        seen = NormalizeImage(**arguments).apply(seen)
    mean_and_std = find_normalization(config, "TrainReader")
    np.testing.assert_array_equal(denormalize(seen["image"].transpose(2, 0, 1), *mean_and_std), image)
