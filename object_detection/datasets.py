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
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

# isort: split
from object_detection import ppdet_patches  # noqa: F401 (before ppdet, which it patches)

# isort: split
import numpy as np
import paddle
from ppdet.core.workspace import register, serializable
from ppdet.data import transform
from ppdet.data.reader import BatchCompose, Compose
from ppdet.data.source import COCODataSet
from pycocotools.coco import COCO
from yacs.config import CfgNode

from common.demo_data.folders import write_nuclei_detection
from common.errors import UserError, one_line
from common.pale_transformer import STRIDE
from common.training.config import check_keys, plain
from common.training.loader import seed_generators
from common.training.sampler import SampleKey

__all__ = [
    "CocoData",
    "EvalDataset",
    "NucleiDataSet",
    "ObjectArray",
    "SeededDataset",
    "build_dataset",
    "build_transforms",
    "check_batch",
    "collate",
    "find_normalization",
    "read_records",
    "require_fields",
    "with_object_tensors",
]


_READER_KEYS = (
    *("sample_transforms", "batch_transforms", "batch_size", "shuffle", "drop_last", "collate_batch"),
    "use_shared_memory",
)


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
_TYPES = {bool: (bool,), int: (int,), float: (float, int)}  # of a default value: accepted types


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
    parameters = inspect.signature(COCODataSet).parameters
    check_keys(section, parameters, f"{name} ({kind})")
    for key, value in section.items():
        types = _TYPES.get(type(parameters[key].default))
        if types and type(value) not in types:
            raise UserError(f"{name}.{key} is {value!r}; it must be of type {types[0].__name__}")
    if section.get("repeat", 1) < 1:
        raise UserError(f"{name}.repeat is {section['repeat']}; it must be at least 1")
    if section.get("dataset_dir") is not None:
        section["dataset_dir"] = str(Path(str(section["dataset_dir"])).expanduser())
    if name == "EvalDataset":
        section.setdefault("allow_empty", True)
    dataset = _DATASETS[kind](**section)
    for key, what in (("image_dir", "the folder of the images"), ("anno_path", "the annotation file")):
        if not isinstance(getattr(dataset, key), str):
            raise UserError(f"{name}.{key} is {getattr(dataset, key)!r}; give {what}, relative to dataset_dir")
    root = Path(dataset.dataset_dir)
    data = CocoData(name, dataset, root / dataset.anno_path, root / dataset.image_dir)
    if not root.is_dir():
        raise UserError(f"{name}.dataset_dir: {root} is not a folder; give the one that holds {dataset.anno_path}")
    if not data.images.is_dir():
        raise UserError(f"{name}.image_dir: there is no folder {data.images}; give the one that holds the images")
    return data


def require_fields(data: CocoData, masks: bool) -> None:
    """Check that the samples will have all fields that the model is trained with.

    Args:
        masks: whether the model has masks; if not, masks are not read.

    Raises:
        UserError: ``data_fields`` lacks a field.
    """
    fields = data.dataset.data_fields
    needed = ("image", "gt_bbox", "gt_class", "is_crowd", *(("gt_poly",) if masks else ()))
    if not isinstance(fields, list) or not set(needed) <= set(fields):
        raise UserError(f"{data.name}.data_fields is {fields!r}; the model needs [{', '.join(needed)}]")
    data.dataset.data_fields = [field for field in fields if masks or field != "gt_poly"]


def read_records(data: CocoData, coco: COCO, seed: int) -> list[dict[str, Any]]:
    """Make PaddleDetection's records of the images that a data set selects, in the order of the image ids.

    Args:
        coco: the annotations after their check.
        seed: of the images that ``empty_ratio`` draws.

    Raises:
        UserError: no image is selected.
    """
    dataset = data.dataset
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


def build_transforms(config: CfgNode, name: str, num_classes: int) -> tuple[Compose, BatchCompose]:
    """Build the transforms of ``TrainReader`` or ``EvalReader``: of a sample, and of a batch.

    Raises:
        UserError: a transform does not exist, or its arguments are wrong.
    """
    section = plain(config[name])
    check_keys(section, _READER_KEYS, name)
    if section.get("collate_batch", name != "TrainReader") != (name != "TrainReader"):
        raise UserError(f"{name}.collate_batch must be {name != 'TrainReader'}: images differ in their objects")
    pipelines = []
    for key, kind in (("sample_transforms", Compose), ("batch_transforms", BatchCompose)):
        steps = section.get(key, [])
        if not isinstance(steps, list):
            raise UserError(f"{name}.{key} is {steps!r}; give a list of PaddleDetection's transforms")
        for number, step in enumerate(steps):
            _build_transform(step, f"{name}.{key}[{number}]")
        pipelines.append(kind(steps, num_classes))
    pipelines[1].collate_batch = name != "TrainReader"
    return pipelines[0], pipelines[1]


def find_normalization(config: CfgNode, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the mean and standard deviation of ``NormalizeImage`` in ``TrainReader`` or ``EvalReader``.

    Returns:
        Mean and standard deviation of the three channels, float64, for pixels from 0 to 1; 0 and 1 / 255 if pixels from
        0 to 255 are not changed.
    """
    steps = plain(config[name]).get("sample_transforms", [])
    arguments = next((step["NormalizeImage"] for step in steps if "NormalizeImage" in step), None)
    normalize = transform.NormalizeImage(**(arguments or {}))
    scale = 1.0 if normalize.is_scale and arguments is not None else 1 / 255
    if arguments is None or normalize.norm_type == "none":
        return np.zeros(3), np.full(3, scale)
    return scale * np.array(normalize.mean), scale * np.array(normalize.std)


def _build_transform(step: Any, where: str) -> None:
    if not isinstance(step, Mapping) or len(step) != 1:
        raise UserError(f"{where} is {step!r}; write NAME: {{argument: value}}")
    ((name, arguments),) = step.items()
    component = getattr(transform, str(name), None)
    if not isinstance(component, type):
        known = [key for key, value in vars(transform).items() if isinstance(value, type)]
        close = difflib.get_close_matches(str(name), known, n=1)
        raise UserError(f"{where}: PaddleDetection has no {name}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        component(**(arguments or {}))
    except Exception as error:
        raise UserError(f"{where} ({name}): {one_line(error)}") from error


class _Records(paddle.io.Dataset):
    """Samples of records, read and transformed.

    It does not raise, as :func:`common.training.loader.build_loader` requires: a sample that cannot be read is
    ``{"error": message}``.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], transforms: Callable[[dict], dict]):
        self.records, self.transforms = records, transforms

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        record = self.records[key.index]
        try:
            return {**self.transforms(copy.deepcopy(record)), "error": ""}
        except Exception as error:
            return {"error": _explain(record["im_file"], error)}


class EvalDataset(_Records):
    """Validation samples: ``image`` float32 [3, h, w], ``im_shape`` and ``scale_factor`` float32 [2], ``im_id`` [1]."""


class SeededDataset(_Records):
    """Training samples whose random numbers depend on the seed and the :class:`SampleKey` only.

    They have the keys of validation samples, and ``gt_bbox`` float32 [n, 4], ``gt_class`` and ``is_crowd`` int32
    [n, 1], ``gt_poly``, a list of polygons per object. The transforms of a batch continue the random numbers of its
    last sample, in the same process.

    Args:
        seed: seed of the run.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], transforms: Callable[[dict], dict], seed: int):
        super().__init__(records, transforms)
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        seed_generators(self.seed, key.epoch, key.position)
        return super().__getitem__(key)


def _explain(path: str, error: Exception) -> str:
    if not Path(path).is_file():
        return f"image {path} does not exist; restore it, or remove it from the data"
    if isinstance(error, AttributeError) and "bytes" in str(error):  # OpenCV could not decode it
        return f"image {path} cannot be read; replace it, or remove it from the data"
    return f"cannot read image {path} ({one_line(error)}); check it and the transforms"


def collate(samples: Sequence[dict[str, Any]], transforms: BatchCompose) -> dict[str, Any]:
    """Make a batch for PaddleDetection's models.

    Returns:
        ``image`` float32 [B, 3, h, w], ``im_shape`` and ``scale_factor`` [B, 2], ``im_id`` [B, 1]; ``gt_bbox``,
        ``gt_class`` and ``is_crowd`` as lists of an :class:`ObjectArray` per image, ``gt_poly`` as lists of numbers;
        and ``error``, which :func:`check_batch` raises.
    """
    error = next((sample["error"] for sample in samples if sample["error"]), "")
    if error:
        return _no_batch(error)
    if not all("image" in sample for sample in samples):
        return _no_batch("sample_transforms read no image; let them begin with Decode: {}")
    try:
        batch = transforms([{key: value for key, value in sample.items() if key != "error"} for sample in samples])
    except Exception as reason:
        remedy = ""
        if len({sample["image"].shape for sample in samples}) > 1:
            remedy = f"; add PadBatch: {{pad_to_stride: {STRIDE}}} for images of several sizes"
        return _no_batch(f"batch_transforms: {one_line(reason)}{remedy}")
    height, width = batch["image"].shape[2:]
    if height % STRIDE or width % STRIDE:
        remedy = f"add PadBatch: {{pad_to_stride: {STRIDE}}} to batch_transforms"
        return _no_batch(f"a batch has {width}x{height} pixels, which are not multiples of {STRIDE}; {remedy}")
    if "gt_poly" in batch:  # lists of numbers, which the loader does not convert to tensors
        batch["gt_poly"] = [
            [[np.asarray(polygon, np.float64).tolist() for polygon in polygons] for polygons in image]
            for image in batch["gt_poly"]
        ]
    for key, images in batch.items():
        if isinstance(images, list):
            batch[key] = [ObjectArray(image) if isinstance(image, np.ndarray) else image for image in images]
    return {**batch, "error": ""}


def _no_batch(error: str) -> dict[str, Any]:
    return {"image": np.zeros(1, np.float32), "error": error}  # the loader fails on a batch without an array


@dataclass
class ObjectArray:
    """An array with a row per object of an image, which the loader does not convert to a tensor.

    A tensor without elements cannot leave a reading process.
    """

    values: np.ndarray

    def tensor(self) -> paddle.Tensor:
        # Paddle 2.6 makes [0] of an array [0, 4].
        values = self.values
        return paddle.to_tensor(values) if values.size else paddle.zeros(values.shape, str(values.dtype))


def with_object_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each :class:`ObjectArray` in a batch of :func:`collate` by a tensor."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [item.tensor() if isinstance(item, ObjectArray) else item for item in value]
        return value

    return {key: convert(value) for key, value in batch.items()}


def check_batch(batch: Mapping[str, Any]) -> None:
    """Raise the error of a batch.

    Raises:
        UserError: a sample could not be read, or the samples could not be collated.
    """
    if batch["error"]:
        raise UserError(batch["error"])
