"""The PaddleDetection models that docs/paddledetection.md documents, made small, and batches for them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml

from object_detection import pale_backbone  # noqa: F401 (before ppdet: registers the backbone, applies the patches)
from tests.helpers.programs import ROOT

# isort: split
from ppdet.core.workspace import create, global_config, load_config

DOCUMENT = (ROOT / "docs" / "paddledetection.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^\*\*`(\w+\.yml)`\*\*.*?```yaml\n(.*?)```", DOCUMENT, re.DOTALL | re.MULTILINE))
MODELS = [name.removesuffix(".yml") for name in FILES if name != "coco.yml"]

# What makes the documented models small; a section is used by those that have it.
_SMALL = {
    "PaleTransformer": {"variant": "pale_nano"},
    "FPN": {"out_channel": 32},
    "RPNHead": {
        "anchor_generator": {"anchor_sizes": [[16], [32], [64], [128], [256]]},
        "rpn_target_assign": {"batch_size_per_im": 32},
        "train_proposal": {"pre_nms_top_n": 100, "post_nms_top_n": 40},
        "test_proposal": {"pre_nms_top_n": 100, "post_nms_top_n": 40},
    },
    "BBoxAssigner": {"batch_size_per_im": 16},
    "TwoFCHead": {"out_channel": 32},
    "CascadeTwoFCHead": {"out_channel": 32},
    "MaskFeat": {"num_convs": 1, "out_channel": 16},
    "RetinaHead": {"conv_feat": {"feat_in": 32, "feat_out": 32, "num_convs": 1}},
    "FCOSHead": {"fcos_feat": {"feat_in": 32, "num_convs": 1}},
}


def write_config(folder: Path, model: str, **sections: Any) -> Path:
    """Write the documented files, and one that makes ``model`` small and trains it on the data set ``folder/boxes``.

    That is one of :func:`tests.helpers.made_up_data.make_boxes`. ``sections`` change values of sections, or add keys.
    """
    for name, text in FILES.items():
        (folder / name).write_text(text)
    known = {key for text in FILES.values() for key in yaml.safe_load(text)}
    train, val = (
        {"dataset_dir": str(folder / "boxes"), "image_dir": split, "anno_path": f"annotations/{split}.json"}
        for split in ("train", "val")
    )
    resize = {"Resize": {"target_size": [64, 96], "keep_ratio": True, "interp": 1}}
    transforms = yaml.safe_load(FILES["coco.yml"])["TrainReader"]["sample_transforms"]
    transforms = [resize if "Resize" in transform else transform for transform in transforms]
    evaluation = [transform for transform in transforms if "RandomFlip" not in transform]
    settings = {
        "_BASE_": [f"{model}.yml"],
        "use_gpu": False,
        "log_iter": 1,
        "save_dir": str(folder / "out"),
        "epoch": 1,
        "num_classes": 3,
        "worker_num": 0,
        "TrainDataset": {**train, "allow_empty": True, "empty_ratio": 1.0},
        "EvalDataset": val,
        "TestDataset": {"anno_path": str(folder / "boxes/annotations/val.json")},
        "TrainReader": {"sample_transforms": transforms},
        "EvalReader": {"sample_transforms": evaluation},
        "TestReader": {"sample_transforms": evaluation},
        "LearningRate": {"base_lr": 0.001, "schedulers": [{"name": "PiecewiseDecay", "use_warmup": False}]},
    }
    settings.update({name: section for name, section in _SMALL.items() if name in known})
    path = folder / f"small_{model}.yml"
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section} if isinstance(section, dict) else section
    path.write_text(yaml.safe_dump(settings))
    return path


@contextmanager
def scoped_config(path: Path) -> Iterator[dict]:
    """Load a file into PaddleDetection's one configuration, and leave that as it was."""
    before = {name: copy.copy(value) for name, value in global_config.items()}
    try:
        yield load_config(str(path))
    finally:
        global_config.clear()
        global_config.update(before)


def build(folder: Path, model: str, **sections: Any) -> paddle.nn.Layer:
    """Build a small model in training mode."""
    with scoped_config(write_config(folder, model, **sections)) as config:
        paddle.seed(0)
        return create(config.architecture)


def make_batch(objects: Sequence[int], classes: int = 3, flat: bool = False, crowds: int = 0) -> dict[str, Any]:
    """Make 64x96 images of noise, with so many objects each.

    Args:
        flat: the first object of each image has no area.
        crowds: the first objects of each image that are crowds.
    """
    rng, height, width = np.random.default_rng(0), 64, 96
    boxes, labels, polygons, crowd = [], [], [], []
    for count in objects:
        corners, sides = rng.integers(0, 24, (count, 2)), rng.integers(20, 40, (count, 2))
        if flat and count:
            sides[0, 0] = 0
        ends = corners + sides
        boxes.append(np.concatenate([corners, ends], axis=1).astype("float32"))
        labels.append(rng.integers(0, classes, (count, 1)).astype("int32"))
        polygons.append(
            [[np.array([x, y, u, y, u, v, x, v], "float32")] for (x, y), (u, v) in zip(corners, ends, strict=True)]
        )
        crowd.append((np.arange(count)[:, None] < crowds).astype("int32"))
    images = rng.standard_normal((len(objects), 3, height, width)).astype("float32")
    return {
        "image": paddle.to_tensor(images),
        "im_shape": paddle.full([len(objects), 2], 1.0) * paddle.to_tensor([float(height), float(width)]),
        "scale_factor": paddle.ones([len(objects), 2]),
        "im_id": paddle.arange(len(objects)).reshape([-1, 1]),
        "gt_bbox": [_tensor(array) for array in boxes],
        "gt_class": [_tensor(array) for array in labels],
        "gt_poly": polygons,
        "is_crowd": [_tensor(array) for array in crowd],
    }


def _tensor(array: np.ndarray) -> paddle.Tensor:
    # Paddle 2.6 makes [0] of an array [0, 4].
    return paddle.to_tensor(array) if array.size else paddle.zeros(array.shape, str(array.dtype))
