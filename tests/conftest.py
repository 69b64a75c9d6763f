"""What several tests need: a tiny data set for each task, and a configuration that trains on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.runtime.cpu_settings import use_fast_gemm
from tests.helpers.made_up_data import make_boxes, make_shapes, make_squares
from tests.helpers.programs import ROOT
from tests.helpers.scheduling import (  # noqa: F401 (pytest finds its hooks and fixtures here)
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_xdist_auto_num_workers,
    turn,
)

use_fast_gemm()  # as the programs do: a test may compare with what one of them computed


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A class-per-folder data set with 3 x 12 training and 3 x 7 validation images."""
    make_shapes(tmp_path / "shapes" / "train", 12)
    make_shapes(tmp_path / "shapes" / "val", 7)
    return tmp_path / "shapes"


@pytest.fixture
def shapes_config(tmp_path: Path, shapes: Path) -> Path:
    """A configuration that trains pale_nano on :func:`shapes` for two epochs in about a second."""
    path = tmp_path / "shapes.yaml"
    path.write_text(
        f"""\
BASE: {ROOT}/image_classification/configs/pale_nano_mnist5k.yaml
DATA: {{DATASET: folder, DATA_PATH: {shapes}, BATCH_SIZE: 6, BATCH_SIZE_EVAL: 4}}
TRAIN: {{EPOCHS: 2, WARMUP_EPOCHS: 0}}
VALIDATE_EVERY: 1
LOG_INTERVAL: 2
OUTPUT: {tmp_path}/out
"""
    )
    return path


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """The folder of :func:`make_squares`."""
    make_squares(tmp_path / "squares")
    return tmp_path / "squares"


@pytest.fixture
def squares_config(tmp_path: Path, squares: Path) -> Path:
    """A configuration that trains a small UPerNet on :func:`squares` for 8 steps in a few seconds."""
    path = tmp_path / "squares.yml"
    section = f"type: Dataset, dataset_root: {squares}, {{split}}_path: {{split}}.txt, num_classes: 3"
    path.write_text(
        f"""\
_base_: {ROOT}/semantic_segmentation/configs/upernet_pale_nano_nuclei.yml
batch_size: 2
iters: 8
train_dataset:
  {{{section.format(split="train")}, transforms: [
    {{type: RandomPaddingCrop, crop_size: [48, 48]}}, {{type: RandomHorizontalFlip}}, {{type: Normalize}}]}}
val_dataset: {{{section.format(split="val")}, transforms: [{{type: Normalize}}]}}
model: {{num_classes: 3}}
lr_scheduler: {{warmup_iters: 2}}
VALIDATE_EVERY: 4
CHECKPOINT_EVERY: 4
LOG_INTERVAL: 1
PICTURES: 1
OUTPUT: {tmp_path}/out
"""
    )
    return path


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """The folder of :func:`make_boxes`."""
    make_boxes(tmp_path / "boxes")
    return tmp_path / "boxes"


@pytest.fixture
def boxes_config(tmp_path: Path, boxes: Path) -> Path:
    """A configuration that trains a small Mask R-CNN on :func:`boxes` for two epochs in a few seconds."""
    path = tmp_path / "boxes.yml"
    section = f"name: COCODataSet, dataset_dir: {boxes}, image_dir: {{split}}, anno_path: annotations/{{split}}.json"
    normalize = "{NormalizeImage: {is_scale: true, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}, {Permute: {}}"
    path.write_text(
        f"""\
_BASE_: [{ROOT}/object_detection/configs/mask_rcnn_pale_nano_nuclei.yml]
epoch: 2
FPN: {{out_channel: 32}}
RPNHead:
  rpn_target_assign: {{batch_size_per_im: 32}}
  train_proposal: {{pre_nms_top_n: 100, post_nms_top_n: 40}}
  test_proposal: {{pre_nms_top_n: 100, post_nms_top_n: 40}}
BBoxAssigner: {{batch_size_per_im: 16}}
TwoFCHead: {{out_channel: 32}}
MaskFeat: {{num_convs: 1, out_channel: 16}}
TrainDataset: {{{section.format(split="train")}, allow_empty: true, empty_ratio: 1.0}}
EvalDataset: {{{section.format(split="val")}}}
TrainReader:
  sample_transforms: [{{Decode: {{}}}}, {{RandomFlip: {{prob: 0.5}}}}, {normalize}]
  batch_size: 2
EvalReader:
  sample_transforms: [{{Decode: {{}}}}, {normalize}]
LearningRate:
  base_lr: 0.001
  schedulers: [{{name: CosineDecay}}, {{name: LinearWarmup, start_factor: 0.1, steps: 1}}]
VALIDATE_EVERY: 1
CHECKPOINT_EVERY: 1
KEEP_CHECKPOINTS: 3
LOG_INTERVAL: 1
PICTURES: 1
OUTPUT: {tmp_path}/out
"""
    )
    return path
