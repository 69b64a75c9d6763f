"""Readers of training images, ours and PaddleClas's, on the same files and with the same recipe."""

from __future__ import annotations

import importlib
import os
import random
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.training.sampler import SampleKey
from image_classification.config import CONFIG
from image_classification.datasets import build_dataset
from image_classification.loaders import TransformedDataset, build_transform
from tools.benchmarking.made_up_photos import write_photos
from tools.benchmarking.runner import Runner
from tools.benchmarking.stub_packages import register_packages
from tools.benchmarking.subjects import ROOT, Reader

__all__ = ["build"]

RECIPE = ROOT / "image_classification" / "configs" / "pale_tiny_224.yaml"
PADDLECLAS_COMMAND = "git clone --depth 1 https://github.com/PaddlePaddle/PaddleClas"


class ReaderRunner:
    """Reads all images of a folder, with other random numbers each time.

    Args:
        read: makes the sample of an image in an epoch.
        images: how many there are.
        folder: holds the images; it is kept as long as this object.
    """

    flops = None

    def __init__(self, read: Callable[[int, int], Any], images: int, folder: tempfile.TemporaryDirectory):
        self._read, self.images, self._folder = read, images, folder
        self._epoch = 0

    def run(self) -> float:
        self._epoch += 1
        began = time.perf_counter()
        for index in range(self.images):
            self._read(index, self._epoch)
        return time.perf_counter() - began


def build(subject: Reader) -> Runner:
    """Write the images and prepare to read them on one core.

    Raises:
        UserError: the checkout of PaddleClas does not exist or has no reader.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    config = CONFIG.load(Namespace(cfg=RECIPE, opts=[]))
    folder = tempfile.TemporaryDirectory()
    names = write_photos(Path(folder.name), subject.photos)
    Path(folder.name, "train_list.txt").write_text("".join(f"{name} 0\n" for name in names), encoding="utf-8")
    read = _paddleclas_reader(subject, folder.name, config) if subject.source else _our_reader(folder.name, config)
    return ReaderRunner(read, len(names), folder)


def _our_reader(folder: str, config) -> Callable[[int, int], Any]:
    dataset = build_dataset("list", folder, "train")
    samples = TransformedDataset(dataset, build_transform(config, training=True), config, replace_broken=False)

    def read(index: int, epoch: int):
        sample = samples[SampleKey(index=index, epoch=epoch, position=index)]
        if sample["errors"]:
            raise UserError(sample["errors"])
        return sample["images"]

    return read


def _paddleclas_reader(subject: Reader, folder: str, config) -> Callable[[int, int], Any]:
    """PaddleClas's ImageNet data set with the transforms of its Swin-T configuration, at the values of our recipe."""
    root = Path(subject.source)
    if not (root / "ppcls" / "data").is_dir():
        raise UserError(
            f"{root} is no checkout of PaddleClas, whose package has no training reader: {PADDLECLAS_COMMAND}, "
            "and give -paddleclas_source"
        )
    register_packages(root, "ppcls", "ppcls.utils", "ppcls.data", "ppcls.data.dataloader")
    sys.path.append(str(root))
    # It replaces an image that fails, as Pillow 13 makes one in 900 do (a posterisation to 0 bits), and says so.
    importlib.import_module("ppcls.utils.logger").init_logger()
    reader = importlib.import_module("ppcls.data.dataloader.imagenet_dataset")
    random.seed(0)
    np.random.seed(0)
    transforms = [
        {"DecodeImage": {"to_rgb": True, "channel_first": False}},
        {
            "RandCropImage": {
                "size": config.DATA.IMAGE_SIZE,
                "scale": config.AUG.CROP_SCALE,
                "ratio": config.AUG.CROP_RATIO,
                "interpolation": config.DATA.INTERPOLATION,
                "backend": "pil",
            }
        },
        {"RandFlipImage": {"flip_code": 1}},
        {
            "TimmAutoAugment": {
                "config_str": config.AUG.RAND_AUGMENT,
                "interpolation": config.DATA.INTERPOLATION,
                "img_size": config.DATA.IMAGE_SIZE,
            }
        },
        {"NormalizeImage": {"scale": 1 / 255, "mean": config.DATA.MEAN, "std": config.DATA.STD, "order": ""}},
        {
            "RandomErasing": {
                "EPSILON": config.AUG.ERASING,
                "sl": 0.02,
                "sh": 1 / 3,
                "r1": 0.3,
                "attempt": 10,
                "use_log_aspect": True,
                "mode": "pixel",
            }
        },
    ]
    samples = reader.ImageNetDataset(folder, str(Path(folder, "train_list.txt")), transforms)
    return lambda index, epoch: samples[index]
