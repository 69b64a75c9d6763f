"""COCO-format data, checked, and read reproducibly through PaddleDetection's transforms.

A data set is PaddleDetection's ``COCODataSet``, or ``NucleiDataSet``, which is small and real and registered here. A
section of a configuration in PaddleDetection's form describes it:

    TrainDataset:
      name: COCODataSet
      dataset_dir: my_data
      image_dir: train
      anno_path: annotations/train.json
      data_fields: [image, gt_bbox, gt_class, gt_poly, is_crowd]
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import io
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
    "build_transforms",
    "check_batch",
    "collate",
    "find_data",
    "find_normalisation",
    "index_annotations",
    "read_records",
    "require_fields",
    "with_object_tensors",
]


_READER_KEYS = ("sample_transforms", "batch_transforms", "batch_size", "shuffle", "drop_last", "collate_batch")
_READER_KEYS += ("use_shared_memory",)


@register
@serializable
class NucleiDataSet(COCODataSet):
    """Nuclei in a fluorescence micrograph, made on first use.

    See :func:`common.demo_data.folders.write_nuclei_detection`.

    Args:
        dataset_dir: where to make or find the folder; beside the other demo data if None.
        options: those of ``COCODataSet``.

    Raises:
        common.errors.UserError: the data cannot be downloaded or written, or is incomplete.
    """

    def __init__(self, dataset_dir: str | None = None, **options: Any):
        super().__init__(dataset_dir=str(write_nuclei_detection(dataset_dir)), **options)


_DATASETS = {"COCODataSet": COCODataSet, "NucleiDataSet": NucleiDataSet}
_TYPES = {bool: (bool,), int: (int,), float: (float, int)}  # of a default: what may stand in its place


# ---- from a configuration to records


@dataclass
class CocoData:
    """A COCO-format data set that is there, but has not been read.

    Attributes:
        name: the section that describes it.
        dataset: PaddleDetection's.
        file: the annotations.
        images: the folder of the images.
    """

    name: str
    dataset: COCODataSet
    file: Path
    images: Path


def find_data(config: CfgNode, name: str) -> CocoData:
    """Find the training or validation data of a configuration.

    Paths may begin with ``~``. Nothing is downloaded but the demo data: PaddleDetection would fetch a data set that is
    missing, on every rank. In validation, images without objects count by default, as in COCO's own evaluation.

    Args:
        name: ``"TrainDataset"`` or ``"EvalDataset"``.

    Raises:
        UserError: the section asks for what does not exist or cannot work, or the data is not there.
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
        raise UserError(f"{name}.dataset_dir: {root} is no folder; give the one that holds {dataset.anno_path}")
    if not data.images.is_dir():
        raise UserError(f"{name}.image_dir: there is no folder {data.images}; give the one that holds the images")
    return data


def require_fields(data: CocoData, masks: bool) -> None:
    """See that the samples will have what the model learns from.

    Args:
        masks: whether that includes masks; if not, they are not read.

    Raises:
        UserError: ``data_fields`` lacks something.
    """
    fields = data.dataset.data_fields
    needed = ("image", "gt_bbox", "gt_class", "is_crowd", *(("gt_poly",) if masks else ()))
    if not isinstance(fields, list) or not set(needed) <= set(fields):
        raise UserError(f"{data.name}.data_fields is {fields!r}; the model needs [{', '.join(needed)}]")
    data.dataset.data_fields = [field for field in fields if masks or field != "gt_poly"]


def index_annotations(annotations: Mapping[str, Any]) -> COCO:
    """Annotations as pycocotools wants them."""
    coco = COCO()
    coco.dataset = dict(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_records(data: CocoData, coco: COCO, seed: int) -> list[dict[str, Any]]:
    """PaddleDetection's records of the images that a data set selects, in the order of the image ids.

    Args:
        coco: the annotations, which may have been mended after they were read.
        seed: of the images that ``empty_ratio`` draws.

    Raises:
        UserError: no image is left.
    """
    dataset = data.dataset
    seed_generators(seed)
    try:
        # parse_dataset reads the file itself; here it is handed what is already in memory.
        with mock.patch("pycocotools.coco.COCO", return_value=coco):
            dataset.parse_dataset()
    except Exception as error:
        raise UserError(f"{data.name}: {one_line(error)}") from error
    if not dataset.roidbs:
        raise UserError(f"{data.name}: no image of {data.file} has an object; set allow_empty: true to use them all")
    return dataset.roidbs * dataset.repeat


# ---- from records to batches


def build_transforms(config: CfgNode, name: str, num_classes: int) -> tuple[Compose, BatchCompose]:
    """What ``TrainReader`` or ``EvalReader`` does to a sample, and to a batch of them.

    Raises:
        UserError: there is no such transform, or its arguments are wrong.
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


def find_normalisation(config: CfgNode, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What ``NormalizeImage`` in ``TrainReader`` or ``EvalReader`` subtracts and divides by.

    Returns:
        Mean and standard deviation of the three channels, float64, for pixels from 0 to 1; 0 and 1 / 255 where pixels
        from 0 to 255 stay as they are.
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
    """Records, read and transformed.

    As :func:`common.training.loader.build_loader` demands, it does not raise: what cannot be read becomes
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

    Besides what validation samples have: ``gt_bbox`` float32 [n, 4], ``gt_class`` and ``is_crowd`` int32 [n, 1],
    ``gt_poly``, a list of polygons for each object. The transforms of a batch draw what comes after those of its last
    sample, in the same process.

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
        return f"image {path} does not exist; restore it, or take it out of the data"
    if isinstance(error, AttributeError) and "bytes" in str(error):  # what OpenCV could not decode is left as it is
        return f"image {path} cannot be read; replace it, or take it out of the data"
    return f"cannot read image {path} ({one_line(error)}); check it and the transforms"


def collate(samples: Sequence[dict[str, Any]], transforms: BatchCompose) -> dict[str, Any]:
    """Make a batch as PaddleDetection's models want it.

    Returns:
        ``image`` float32 [B, 3, h, w], ``im_shape`` and ``scale_factor`` [B, 2], ``im_id`` [B, 1], what begins with
        ``gt_`` or ``is_crowd`` as a list with an :class:`ObjectArray` for each image (``gt_poly``: lists of numbers),
        and ``error``; :func:`check_batch` raises it.
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
        return _no_batch(f"a batch has {width}x{height} pixels, which are no multiples of {STRIDE}; {remedy}")
    if "gt_poly" in batch:  # as lists of numbers, of which the loader makes no tensors
        batch["gt_poly"] = [[list(map(_numbers, polygons)) for polygons in image] for image in batch["gt_poly"]]
    for key, images in batch.items():
        if isinstance(images, list):
            batch[key] = [ObjectArray(image) if isinstance(image, np.ndarray) else image for image in images]
    return {**batch, "error": ""}


def _no_batch(error: str) -> dict[str, Any]:
    return {"image": np.zeros(1, np.float32), "error": error}  # a batch without an array would end the loader


@dataclass
class ObjectArray:
    """An array with a row for each object of an image, which the loader hands on as it is.

    Of arrays it makes tensors, which cannot leave the processes that read if an image has no object.
    """

    values: np.ndarray

    def tensor(self) -> paddle.Tensor:
        # Paddle 2.6 makes [0] of an array [0, 4].
        values = self.values
        return paddle.to_tensor(values) if values.size else paddle.zeros(values.shape, str(values.dtype))


def with_object_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of :func:`collate` with tensors in the place of each :class:`ObjectArray`."""
    return {
        key: [item.tensor() if isinstance(item, ObjectArray) else item for item in value]
        if isinstance(value, list)
        else value
        for key, value in batch.items()
    }


def _numbers(polygon: Any) -> list[float]:
    return np.asarray(polygon, np.float64).tolist()


def check_batch(batch: Mapping[str, Any]) -> None:
    """Raise what a reader had to report.

    Raises:
        UserError: a sample could not be read, or the samples do not make a batch.
    """
    if batch["error"]:
        raise UserError(batch["error"])
