"""What several tests need: a tiny data set, and the launcher run as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from scheduling import (  # noqa: F401 (pytest finds its hooks and fixtures here)
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_xdist_auto_num_workers,
    turn,
)

from common.cpu_settings import use_fast_gemm

use_fast_gemm()  # as the programs do: a test may compare with what one of them computed

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}


def make_shapes(folder: Path, images: int) -> None:
    """Write ``images`` 40x48 PNGs of a coloured square on noise into one folder for each colour."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(0, 60, (40, 48, 3)).astype(np.uint8)
            pixels[10:30, 10:30] = colour
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


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
VALIDATE_EPOCHS: 1
LOG_INTERVAL: 2
OUTPUT: {tmp_path}/out
"""
    )
    return path


def start_program(
    script: str,
    *arguments: object,
    ranks: int = 0,
    cwd: Path = ROOT,
    launch: tuple[str, ...] = (),
    prefix: tuple[str, ...] = (),
) -> subprocess.Popen:
    """Start a script of the project in a process group of its own, under the launcher if ``ranks`` is given.

    ``launch`` are further flags of the launcher, ``prefix`` a command that runs the whole.
    """
    command = [sys.executable, str(ROOT / script)]
    if ranks:
        command[1:1] = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), *launch]
        command[3:3] = ["--log_dir", str(cwd / "log")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    return subprocess.Popen(
        [*prefix, *command, *map(str, arguments)],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_program(process: subprocess.Popen) -> None:
    """SIGKILL a program and the ranks it launched, which the launcher puts into sessions of their own."""
    for child in (*psutil.Process(process.pid).children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            child.kill()


def run_program(
    script: str, *arguments: object, ranks: int = 0, cwd: Path = ROOT, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Run a script as :func:`start_program` does, to its end; stdout and stderr come as one text."""
    process = start_program(script, *arguments, ranks=ranks, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_program(process)
        output, _ = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{output}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def cpu_seconds() -> float:
    """CPU time of all programs that this process has started and that have ended.

    A program that computes with one thread takes at most so long where nothing else runs.
    """
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def fails(script: str, *flags: object, ranks: int = 0, cwd: Path) -> str:
    """Run a script, expect exit code 2 and one message without a traceback, and return the message."""
    result = run_program(script, *flags, ranks=ranks, cwd=cwd)
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stdout
    messages = set(re.findall(r"^error: .*", result.stdout, re.MULTILINE))
    assert len(messages) == 1, result.stdout
    return messages.pop()


def make_squares(folder: Path) -> None:
    """Write a segmentation folder: a red and a green square, 60x44 and 44x60 pixels, 5 to train and 3 to validate."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for split, count in (("train", 5), ("val", 3)):
        lines = []
        for number in range(count):
            height, width = (44, 60) if number % 2 else (60, 44)
            pixels, mask = rng.integers(0, 60, (height, width, 3)), np.zeros((height, width), np.uint8)
            for label, colour in ((1, COLOURS["red"]), (2, COLOURS["green"])):
                top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
                pixels[top : top + 16, left : left + 16], mask[top : top + 16, left : left + 16] = colour, label
            mask[:3] = 255
            name = f"{split}{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
            Image.fromarray(mask).save(folder / "masks" / name)
            lines.append(f"images/{name} masks/{name}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "labels.txt").write_text("background\nred\ngreen\n")


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
VALIDATE_STEPS: 4
KEEP_STEPS: 4
LOG_INTERVAL: 1
PICTURES: 1
OUTPUT: {tmp_path}/out
"""
    )
    return path


def make_boxes(folder: Path) -> None:
    """Write a COCO folder: coloured squares on noise, 5 images of 48x64 and 64x48 pixels to train and 3 to validate.

    The categories have sparse ids in an order that is not theirs: red (7), green (3) and blue (12), which has no object
    to validate. The last training image is empty, the last object to validate a crowd.
    """
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}, {"id": 12, "name": "blue"}]
    for split, count, colours, objects in (("train", 5, 3, 8), ("val", 3, 2, 6)):
        rng, images, annotations = np.random.default_rng(count), [], []
        (folder / split).mkdir()
        for number in range(count):
            height, width = (48, 64) if number % 2 else (64, 48)
            pixels = rng.integers(0, 60, (height, width, 3))
            for top in (0, height // 2) if len(annotations) < objects else ():
                category = categories[len(annotations) % colours]
                side = int(rng.integers(16, 24))
                left = int(rng.integers(0, width - side))
                pixels[top : top + side, left : left + side] = COLOURS[category["name"]]
                right, bottom = left + side, top + side
                annotation = {"id": len(annotations) + 1, "image_id": 100 + number, "category_id": category["id"]}
                annotation |= {"bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
                annotation["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
                annotations.append(annotation)
            name = f"{split}_{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name)
            images.append({"id": 100 + number, "file_name": name, "height": height, "width": width})
        if split == "val":
            runs = [height * left + top, *[side, height - side] * (side - 1), side]
            counts = [*runs, height * width - sum(runs)]
            annotations[-1] |= {"iscrowd": 1, "segmentation": {"size": [height, width], "counts": counts}}
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))


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
VALIDATE_EPOCHS: 1
SAVE_EPOCHS: 1
KEEP_CHECKPOINTS: 3
LOG_INTERVAL: 1
PICTURES: 1
OUTPUT: {tmp_path}/out
"""
    )
    return path
