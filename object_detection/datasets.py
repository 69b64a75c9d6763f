"""COCO-format data sets, read reproducibly through PaddleDetection's transforms.

A data set is PaddleDetection's ``COCODataSet``, or ``NucleiDataSet``, a small real one that is registered here. A
section of the configuration in PaddleDetection's format describes it:

    TrainDataset:
      name: COCODataSet
      dataset_dir: my_data
      image_dir: train
      anno_path: annotations/train.json
      data_fields: [image, gt_bbox, gt_class, gt_poly, is_crowd]
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

# isort: split
from common.toolkits import ppdet_patches  # noqa: F401 (before ppdet, which it patches)

# isort: split
import numpy as np
import paddle
from ppdet.core.workspace import register, serializable
from ppdet.data import transform
from ppdet.data.reader import BatchCompose, Compose
from ppdet.data.source import COCODataSet
from pycocotools.coco import COCO
from yacs.config import CfgNode

from common.data.image_file import check_header
from common.demo_data.folders import write_nuclei_detection
from common.errors import UserError, missing_hint, one_line
from common.pale_transformer import STRIDE
from common.runtime.folders import expand_home
from common.training.config import check_keys, plain
from common.training.config_values import largest
from common.training.loader import seed_generators
from common.training.sampler import SampleKey

__all__ = [
    "CocoData",
    "NucleiDataSet",
    "Objects",
    "SeededDataset",
    "build_dataset",
    "build_transforms",
    "collate",
    "find_normalization",
    "read_records",
]


@register
@serializable
class NucleiDataSet(COCODataSet):
    """Nuclei in a fluorescence micrograph, downloaded on first use.

    See :func:`common.demo_data.folders.write_nuclei_detection`.

    Args:
        dataset_dir: the folder; if None, it is beside the other demo data.
        options: arguments of ``COCODataSet``.

    Raises:
        common.errors.UserError: the data cannot be downloaded or written, or is incomplete.
    """

    def __init__(self, dataset_dir: str | None = None, **options: Any):
        super().__init__(dataset_dir=str(write_nuclei_detection(dataset_dir)), **options)


_DATASETS = {"COCODataSet": COCODataSet, "NucleiDataSet": NucleiDataSet}
_AUGMENTATION = re.compile("Rand|Flip|Crop|Mixup|Cutmix|Mosaic|Aug|GridMask|Lighting")  # names of transforms
_OF_COLORS = re.compile("Distort|Expand|Color|Aug|Lighting")  # of pixels from 0 to 255
# What no reader can use, and why.
_UNUSABLE = {
    "Mosaic|Mixup|Cutmix": "mixes several images, but gets one, which it does not change",
    "NormalizeBox|BboxXYXY2XYWH|PadBox": "gives boxes a form that detectors here do not take",
}
# They move images and boxes, but not masks; those that crop do if they are told to.
_NOT_FOR_MASKS = {"AutoAugment", "CropWithSampling", "FlipWarpAffine", "LetterBoxResize", "MOTRandomAffine"}
_CROPS_OF_MASKS = {"RandomCrop", "RandomResizeCrop"}
_READER_KEYS = ("sample_transforms", "batch_transforms", "batch_size")
_UNUSED_READER_KEYS = ("shuffle", "drop_last", "collate_batch", "use_shared_memory")  # fixed here


# ---- from a configuration to records


@dataclass
class CocoData:
    """A COCO-format data set whose files have not been read yet.

    Attributes:
        name: the section that describes it.
        dataset: PaddleDetection's data set.
        file: the annotation file.
        images: the image folder.
    """

    name: str
    dataset: COCODataSet
    file: Path
    images: Path


def build_dataset(config: CfgNode, name: str) -> CocoData:
    """Build the training or validation data set of a configuration, and check that its folders exist.

    Paths may begin with ``~``. Only demo data is downloaded: PaddleDetection would download a missing data set, on
    every rank. In validation, images without objects count by default, as in COCO's own evaluation.

    Args:
        name: ``"TrainDataset"`` or ``"EvalDataset"``.

    Raises:
        UserError: the section has an unknown key or a wrong value, or a folder does not exist.
    """
    section = plain(config[name])
    kind = section.pop("name", None)
    if kind not in _DATASETS:
        raise UserError(f"{name}.name is {kind!r}; it must be {' or '.join(_DATASETS)}")
    check_keys(section, inspect.signature(COCODataSet).parameters, f"{name} ({kind})")
    repeat = section.get("repeat", 1)
    if type(repeat) is not int or repeat < 1:
        raise UserError(f"{name}.repeat is {repeat!r}; it must be a positive integer")
    if section.get("dataset_dir") is not None:
        section["dataset_dir"] = expand_home(str(section["dataset_dir"]))
    if name == "EvalDataset":
        section.setdefault("allow_empty", True)
    dataset = _DATASETS[kind](**section)
    for key, what in (("image_dir", "the folder of the images"), ("anno_path", "the annotation file")):
        if not isinstance(getattr(dataset, key), str):
            raise UserError(f"{name}.{key} is {getattr(dataset, key)!r}; give {what}, relative to dataset_dir")
    root = Path(dataset.dataset_dir)
    data = CocoData(name, dataset, root / dataset.anno_path, root / dataset.image_dir)
    if not root.is_dir():
        hint = missing_hint(root)
        raise UserError(
            f"{name}.dataset_dir: {root} is not a folder; give the one that contains {dataset.anno_path}{hint}"
        )
    if not data.images.is_dir():
        hint = missing_hint(data.images)
        raise UserError(
            f"{name}.image_dir: there is no folder {data.images}; give the one that contains the images{hint}"
        )
    return data


def read_records(data: CocoData, coco: COCO, seed: int, masks: bool = True) -> list[dict[str, Any]]:
    """Make PaddleDetection's records of the images that a data set selects, in the order of the image ids.

    Training records have all fields that a model is trained with, whatever ``data_fields`` says.

    Args:
        coco: the annotations after their check.
        seed: of the images that ``empty_ratio`` draws.
        masks: whether the model has masks.

    Raises:
        UserError: no image is selected.
    """
    dataset = data.dataset
    if data.name == "TrainDataset":
        dataset.data_fields = ["image", "gt_bbox", "gt_class", "is_crowd", *(["gt_poly"] if masks else [])]
    seed_generators(seed)
    try:
        # parse_dataset would read the file again.
        with mock.patch("pycocotools.coco.COCO", return_value=coco):
            dataset.parse_dataset()
    except Exception as error:
        raise UserError(f"{data.name}: {one_line(error)}") from error
    if not dataset.roidbs:
        raise UserError(f"{data.name}: no image of {data.file} has an object; set allow_empty: true to use them all")
    return dataset.roidbs * dataset.repeat


# ---- from records to batches


def build_transforms(config: CfgNode, name: str, num_classes: int, masks: bool = False) -> tuple[Compose, BatchCompose]:
    """Build the transforms of ``TrainReader`` or ``EvalReader``: of a sample, and of a batch.

    Args:
        masks: whether masks are trained.

    Raises:
        UserError: a transform does not exist, or its arguments are wrong, or it would compute garbage.
    """
    section = plain(config[name])
    check_keys(section, (*_READER_KEYS, *_UNUSED_READER_KEYS), name)
    for key in ("shuffle", "drop_last"):
        if section.get(key, is_train := name == "TrainReader") != is_train:
            done = "always" if is_train else "never"
            raise UserError(f"{name}.{key} is {section[key]}; this is {done} done here, so remove the key")
    pipelines = []
    for key, kind in (("sample_transforms", Compose), ("batch_transforms", BatchCompose)):
        try:
            pipelines.append(kind(section.get(key, []), num_classes))
        except Exception as error:
            raise UserError(
                f"{name}.{key}: {one_line(error)}; give a list of PaddleDetection's transforms, each NAME: "
                "{argument: value}"
            ) from error
    steps = [step for key in _READER_KEYS[:2] for step in section.get(key) or ()]
    _check_each(steps, name, masks)
    _check_order(steps, name)
    pipelines[1].collate_batch = name != "TrainReader"  # training images differ in their numbers of objects
    return pipelines[0], pipelines[1]


def _check_each(steps: Sequence[Mapping[str, Any]], name: str, masks: bool) -> None:
    """Refuse transforms that would do nothing, or make other boxes or, if they are trained, masks of other places."""
    for step, arguments in ((step, arguments or {}) for row in steps for step, arguments in row.items()):
        if reason := next((reason for kinds, reason in _UNUSABLE.items() if re.match(kinds, step)), None):
            raise UserError(f"{name}: {step} {reason}; remove it")
        if masks and step in _NOT_FOR_MASKS:
            raise UserError(f"{name}: {step} moves images and boxes, but not masks; remove it")
        if masks and step in _CROPS_OF_MASKS and not arguments.get("is_mask_crop"):
            raise UserError(f"{name}: {step} does not crop masks; add is_mask_crop: true")
        if masks and step in {*_CROPS_OF_MASKS, "RandomSizeCrop"} and importlib.util.find_spec("shapely") is None:
            raise UserError(f"{name}: {step} needs another package to crop masks: pip install shapely")
        for inner in ("transforms1", "transforms2"):  # of RandomSelect
            _check_each(arguments.get(inner) or [], name, masks)


def _check_order(steps: Sequence[Mapping[str, Any]], name: str) -> None:
    """Refuse transforms that would compute garbage or other boxes where they stand, without an error."""
    names = [name for step in steps for name in step]
    if names.count("NormalizeImage") > 1:
        raise UserError(f"{name} has NormalizeImage twice; remove one")
    for late, kinds in (("NormalizeImage", _OF_COLORS), ("Permute", _AUGMENTATION)):
        after = names[names.index(late) + 1 :] if late in names else []
        if found := [step for step in after if kinds.search(step)]:
            raise UserError(f"{name}: {found[0]} stands behind {late}, whose images it cannot take; put it before")
    if name != "TrainReader" and (found := [step for step in names if _AUGMENTATION.search(step)]):
        raise UserError(f"{name}: {found[0]} changes images at random, or where objects are; it is for TrainReader")
    pad = next((step["Pad"] or {} for step in steps if "Pad" in step), {})
    if name != "TrainReader" and ({"LetterBoxResize", "WarpAffine"} & {*names} or pad.get("pad_mode")):
        raise UserError(
            f"{name} moves images by LetterBoxResize, WarpAffine or pad_mode, and nothing moves the detected boxes "
            "back; use Resize, and Pad with pad_mode: 0"
        )
    if "Pad" in names and "NormalizeImage" in names[: names.index("Pad")] and "fill_value" not in pad:
        raise UserError(f"{name}: Pad stands behind NormalizeImage, but pads with 127.5; put it before")
    arguments = next((step["NormalizeImage"] or {} for step in steps if "NormalizeImage" in step), {})
    mean, is_scale = arguments.get("mean", 0.5), arguments.get("is_scale", True)
    if largest(mean) > 1 and is_scale:
        raise UserError(
            f"{name}: the mean {mean} of NormalizeImage is not of pixels from 0 to 1; divide mean and std by 255, or "
            "set is_scale: false"
        )
    divides = arguments.get("norm_type") == "none" or "FlipWarpAffine" in names  # which divides by 255 itself
    if 0 < largest(mean) <= 1 and not is_scale and not divides:
        raise UserError(f"{name}: the mean {mean} of NormalizeImage is not of pixels from 0 to 255; set is_scale: true")


def find_normalization(config: CfgNode, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the mean and standard deviation of ``NormalizeImage`` in ``TrainReader`` or ``EvalReader``.

    Returns:
        Mean and standard deviation of the three channels, float64, for pixels from 0 to 1; 0 and 1 / 255 if pixels from
        0 to 255 are not changed.
    """
    reader = plain(config[name])
    steps = [step for key in _READER_KEYS[:2] for step in reader.get(key) or ()]
    arguments = next((step["NormalizeImage"] for step in steps if "NormalizeImage" in step), None)
    normalize = transform.NormalizeImage(**(arguments or {}))
    scale = 1.0 if normalize.is_scale and arguments is not None else 1 / 255
    if arguments is None or normalize.norm_type == "none":
        return np.zeros(3), np.full(3, scale)
    return scale * np.array(normalize.mean), scale * np.array(normalize.std)


class SeededDataset:
    """Samples whose random numbers depend on the seed and the :class:`SampleKey` only.

    A sample has ``image`` float32 [3, h, w], ``im_shape`` and ``scale_factor`` float32 [2], ``im_id`` [1]; in training
    also ``gt_bbox`` float32 [n, 4], ``gt_class`` and ``is_crowd`` int32 [n, 1], and ``gt_poly``, a list of polygons per
    object. Reading raises ``UserError`` if an image cannot be used. The transforms of a batch continue the random
    numbers of its last sample, in the same process.

    Args:
        records: from :func:`read_records`.
        transforms: from :func:`build_transforms`.
        seed: seed of the run.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], transforms: Callable[[dict], dict], seed: int):
        self.records, self.transforms, self.seed = records, transforms, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        record = self.records[key.index]
        path = record["im_file"]
        seed_generators(self.seed, key.epoch, key.position)
        check_header(path)
        try:
            return self.transforms(copy.deepcopy(record))
        except Exception as error:
            reason = one_line(error)
            if isinstance(error, AttributeError) and "bytes" in reason:
                reason = "OpenCV cannot decode it"
            raise UserError(f"cannot read image {path} ({reason}); check it and the transforms") from error


@dataclass
class Objects:
    """The objects of the images of a batch, which the loader does not convert to tensors.

    Attributes:
        fields: ``gt_bbox``, ``gt_class`` and ``is_crowd``, an array per image; ``gt_poly``, a list of polygons per
            object of each image.
    """

    fields: dict[str, list[Any]]

    def tensors(self) -> dict[str, list[Any]]:
        """The fields with tensors in place of arrays."""
        return {
            key: values if key == "gt_poly" else [_tensor(value) for value in values]
            for key, values in self.fields.items()
        }


def _tensor(array: np.ndarray) -> paddle.Tensor:
    # Paddle 2.6 makes [0] of an array [0, 4].
    return paddle.to_tensor(array) if array.size else paddle.zeros(array.shape, str(array.dtype))


def collate(samples: Sequence[dict[str, Any]], transforms: BatchCompose) -> dict[str, Any]:
    """Make a batch for PaddleDetection's models.

    Returns:
        ``image`` float32 [B, 3, h, w], ``im_shape`` and ``scale_factor`` [B, 2], ``im_id`` [B, 1]; in training
        ``objects`` (:class:`Objects`).

    Raises:
        UserError: the samples make no batch that a model can take.
    """
    if not all("image" in sample for sample in samples):
        raise UserError("sample_transforms read no image; let them begin with Decode: {}")
    sizes = {sample["image"].shape for sample in samples}
    try:
        batch = transforms([{**sample} for sample in samples])
    except Exception as error:
        remedy = f"; add PadBatch: {{pad_to_stride: {STRIDE}}} for images of several sizes" if len(sizes) > 1 else ""
        raise UserError(f"batch_transforms: {one_line(error)}{remedy}") from error
    height, width = batch["image"].shape[2:]
    if height % STRIDE or width % STRIDE:
        remedy = f"add PadBatch: {{pad_to_stride: {STRIDE}}} to batch_transforms"
        raise UserError(f"a batch has {width}x{height} pixels, which are not multiples of {STRIDE}; {remedy}")
    fields = {key: batch.pop(key) for key in list(batch) if isinstance(batch[key], list)}
    return {**batch, "objects": Objects(fields)}
