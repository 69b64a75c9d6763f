"""Data and a configuration for each task, for runs that take seconds."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.made_up_data import make_boxes, make_shapes, make_squares
from tests.helpers.programs import ROOT


def write_shapes(folder: Path) -> Path:
    make_shapes(folder / "shapes" / "train", 12)
    make_shapes(folder / "shapes" / "val", 7)
    return folder / "shapes"


def write_squares(folder: Path) -> Path:
    make_squares(folder / "squares")
    return folder / "squares"


def write_boxes(folder: Path) -> Path:
    make_boxes(folder / "boxes")
    return folder / "boxes"


def write_shapes_config(folder: Path) -> Path:
    path = folder / "shapes.yaml"
    path.write_text(
        f"""\
BASE: {ROOT}/image_classification/configs/pale_nano_mnist5k.yaml
DATA: {{DATASET: folder, DATA_PATH: {folder}/shapes, BATCH_SIZE: 6, BATCH_SIZE_EVAL: 4}}
TRAIN: {{EPOCHS: 2, WARMUP_EPOCHS: 0}}
VALIDATE_EVERY: 1
LOG_INTERVAL: 2
OUTPUT: {folder}/out
"""
    )
    return path


def write_squares_config(folder: Path) -> Path:
    path, squares = folder / "squares.yml", folder / "squares"
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
OUTPUT: {folder}/out
"""
    )
    return path


def write_boxes_config(folder: Path) -> Path:
    path, boxes = folder / "boxes.yml", folder / "boxes"
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
OUTPUT: {folder}/out
"""
    )
    return path
