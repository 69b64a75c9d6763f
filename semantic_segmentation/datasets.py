"""PaddleSeg's data sets and transforms, built from a configuration, checked, and read reproducibly.

A data set is a component of PaddleSeg (``manager.DATASETS``), or ``Nuclei`` or ``HENuclei``, small real data sets that
are registered here. A section of the configuration, in PaddleSeg's format, describes it:

    train_dataset:
      type: Dataset
      dataset_root: my_data
      train_path: train_list.txt
      num_classes: 3
      mode: train
      transforms:
        - {type: RandomPaddingCrop, crop_size: [512, 512]}
        - {type: Normalize}
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import paddle
from paddleseg import datasets as paddleseg_datasets
from paddleseg.cvlibs import manager

from common.data.class_names import read_class_names
from common.data.image_file import check_name
from common.demo_data import folders as demo_folders
from common.errors import UserError, one_line
from common.training.sampler import SampleKey
from semantic_segmentation.components import build_component, check_arguments, find_component
from semantic_segmentation.config import require_transforms

__all__ = [
    "EvalDataset",
    "HENuclei",
    "Nuclei",
    "SeededDataset",
    "build_dataset",
    "check_batch",
    "collate_eval",
    "collate_train",
]

CLASS_NAME_FILES = ("labels.txt", "class_names.txt")

# Folders of images and masks below dataset_root; {mode} is train or val, {long} is training or validation.
_FOLDERS = {
    "ADE20K": ("images/{long}", "annotations/{long}"),
    "Cityscapes": ("leftImg8bit/{mode}", "gtFine/{mode}"),
    "CocoStuff": ("images/{mode}2017", "annotations/{mode}2017"),
}
# PaddleSeg pairs the sorted images with the sorted masks of these data sets, whatever their names: the path between
# folder and file, and the ends of the names of an image and its mask.
_PAIRED_BY_ORDER = {
    "Cityscapes": ("*/", "_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
    "CocoStuff": ("", ".jpg", ".png"),
}
_TRAIN_MODES = ("train", "trainval", "trainaug")
# PaddleSeg's transforms that keep the size, or record in trans_info how to undo the change.
_EVAL_TRANSFORMS = (
    "Normalize",
    "Resize",
    "ResizeByShort",
    "ResizeByLong",
    "LimitLong",
    "Padding",
    "PaddingByAspectRatio",
)

# Short forms of the names in the benchmark's objectInfo150 (http://sceneparsing.csail.mit.edu).
_ADE20K_CLASSES = """wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door
table mountain plant curtain chair car water painting sofa shelf house sea mirror rug field armchair seat fence desk
rock wardrobe lamp bathtub railing cushion base box column signboard chest_of_drawers counter sand sink skyscraper
fireplace refrigerator grandstand path stairs runway case pool_table pillow screen_door stairway river bridge bookcase
blind coffee_table toilet flower book hill bench countertop stove palm kitchen_island computer swivel_chair boat bar
arcade_machine hovel bus towel light truck tower chandelier awning streetlight booth television_receiver airplane
dirt_track apparel pole land bannister escalator ottoman bottle buffet poster stage van ship fountain conveyer_belt
canopy washer plaything swimming_pool stool barrel basket waterfall tent bag minibike cradle oven ball food step tank
trade_name microwave pot animal bicycle lake dishwasher screen blanket sculpture hood sconce vase traffic_light tray
ashcan fan pier crt_screen plate monitor bulletin_board shower radiator glass clock flag"""
_CITYSCAPES_CLASSES = """road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person
rider car truck bus train motorcycle bicycle"""
_PASCAL_VOC_CLASSES = """background aeroplane bicycle bird boat bottle bus car cat chair cow dining_table dog horse
motorbike person potted_plant sheep sofa train tv_monitor"""
_CLASS_NAMES = {
    kind: [name.replace("_", " ") for name in names.split()]
    for kind, names in (
        ("ADE20K", _ADE20K_CLASSES),
        ("Cityscapes", _CITYSCAPES_CLASSES),
        ("PascalVOC", _PASCAL_VOC_CLASSES),
    )
}


class _DemoDataset(paddleseg_datasets.Dataset):
    """A segmentation folder of :mod:`common.demo_data.folders`, which is made on first use.

    Args:
        transforms: PaddleSeg's transforms.
        mode: ``"train"`` or ``"val"``; both come from one image.
        dataset_root: where to make or find the folder; beside the other demo data if None.

    Raises:
        common.errors.UserError: the data cannot be downloaded or written, or is incomplete.
    """

    NUM_CLASSES: ClassVar[int]
    IGNORE_INDEX = 255
    IMG_CHANNELS = 3
    class_names: ClassVar[tuple[str, ...]]
    _write: ClassVar[Callable[[str | None], Path]]

    def __init__(self, transforms: list, mode: str = "train", dataset_root: str | None = None):
        folder = self._write(dataset_root)
        super().__init__(
            mode=mode,
            dataset_root=str(folder),
            transforms=transforms,
            num_classes=self.NUM_CLASSES,
            train_path=str(folder / "train.txt"),
            val_path=str(folder / "val.txt"),
            ignore_index=self.IGNORE_INDEX,
        )


@manager.DATASETS.add_component
class Nuclei(_DemoDataset):
    """Nuclei in a fluorescence micrograph; see :func:`common.demo_data.folders.write_nuclei_segmentation`."""

    class_names = demo_folders.NUCLEI_CLASSES
    NUM_CLASSES = len(class_names)
    _write = staticmethod(demo_folders.write_nuclei_segmentation)


@manager.DATASETS.add_component
class HENuclei(_DemoDataset):
    """Three types of nuclei in H&E-stained tissue; see :func:`common.demo_data.folders.write_he_segmentation`."""

    class_names = demo_folders.HE_NUCLEI_CLASSES
    NUM_CLASSES = len(class_names)
    _write = staticmethod(demo_folders.write_he_segmentation)


# ---- from a configuration to a data set


def build_dataset(section: Mapping[str, Any], name: str) -> paddleseg_datasets.Dataset:
    """Build the training or validation data set of a configuration.

    Paths may begin with ``~``. A ``train_path`` or ``val_path`` that does not exist is taken relative to
    ``dataset_root``. Only the demo data is downloaded; PaddleSeg would download a missing data set, on every rank.

    Args:
        section: ``type``, ``transforms`` (a list of ``{type: ..., argument: ...}``), and the arguments of that type.
        name: of the section: ``"train_dataset"`` or ``"val_dataset"``.

    Returns:
        PaddleSeg's data set. Its ``file_list`` of (image, mask) is the same on all machines. Its ``class_names`` is a
        list of ``num_classes`` names: those of the benchmark, those of ``labels.txt`` or ``class_names.txt`` in
        ``dataset_root``, one per line, or else the numbers.

    Raises:
        UserError: a value is invalid, or data is missing.
    """
    training = name == "train_dataset"
    component = find_component(section, name, manager.DATASETS)
    kind, where = section["type"], f"{name} ({section['type']})"
    arguments = {key: value for key, value in section.items() if key != "type"}
    require_transforms(section, name)
    if "num_classes" in arguments and hasattr(component, "NUM_CLASSES"):
        raise UserError(
            f"{name}.num_classes is {arguments['num_classes']!r}, but {kind} always has {component.NUM_CLASSES} "
            "classes; leave num_classes (or -num_classes) out, or give a -cfg with data of type Dataset"
        )
    mode = check_arguments(component, arguments, where).get("mode", "train")
    if not isinstance(mode, str) or mode.lower() not in (_TRAIN_MODES if training else ("val",)):
        raise UserError(f"{name}.mode is {mode!r}; write mode: {'train' if training else 'val'}")
    for key, low, high in (("num_classes", 2, 2**16), ("ignore_index", 0, 255)):
        value = arguments.get(key, low)
        # Masks have 8 bits, and OpenCV pads them with the nearest value that fits: with class 0 for -1.
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{name}.{key} is {value!r}; give an integer from {low} to {high}")
    for key in ("dataset_root", "train_path", "val_path"):
        if arguments.get(key) is not None:
            if not isinstance(arguments[key], str):
                raise UserError(f"{name}.{key} is {arguments[key]!r}; give a path")
            arguments[key] = str(Path(arguments[key]).expanduser())
    if not issubclass(component, _DemoDataset):
        _find_files(kind, arguments, mode.lower(), name)
    arguments["transforms"] = [
        _build_transform(item, f"{name}.transforms[{number}]", training)
        for number, item in enumerate(arguments["transforms"])
    ]
    dataset = build_component({"type": kind, **arguments}, name, manager.DATASETS)
    if kind in _PAIRED_BY_ORDER:
        dataset.file_list = _pair_by_name(Path(dataset.dataset_root), kind, mode.lower())
    elif kind == "ADE20K":
        dataset.file_list.sort()  # PaddleSeg keeps the order of the file system
    if not dataset.file_list:
        raise UserError(f"{where} finds no images in {dataset.dataset_root}; check it")
    if training:
        _check_padding(dataset, name)
    dataset.class_names = _class_names(dataset, kind)
    return dataset


def _find_files(kind: str, arguments: dict[str, Any], mode: str, name: str) -> None:
    """Check that folders and lists exist: PaddleSeg would download the data, or fail with a less clear message."""
    expected = _folders(kind, mode)
    content = f"the folder that holds {', '.join(expected)}" if expected else "the folder of the images and masks"
    if arguments.get("dataset_root") is None:
        raise UserError(f"{name}.dataset_root is missing; give {content}")
    root = Path(arguments["dataset_root"])
    if not root.is_dir():
        raise UserError(f"{name}.dataset_root: {root} is not a folder; give {content}")
    missing = [path for path in expected if not (root / path).exists()]
    if missing:
        raise UserError(f"{name}.dataset_root: {root} has no {missing[0]}; give {content}")
    if kind == "Dataset":
        key = "val_path" if mode == "val" else "train_path"
        given = arguments.get(key)
        if given is None:
            raise UserError(f"{name}.{key} is missing; give a list file with one line IMAGE MASK per image")
        path = next((path for path in (Path(given), root / given) if path.is_file()), None)
        if path is None:
            raise UserError(f"{name}.{key}: neither {given} nor {root / given} exists; give the list of the images")
        _check_list(path, arguments.get("separator", " "))
        arguments[key] = str(path)


def _folders(kind: str, mode: str) -> list[str]:
    long = {"train": "training", "val": "validation"}.get(mode, mode)
    return [path.format(mode=mode, long=long) for path in _FOLDERS.get(kind, ())]


def _check_list(path: Path, separator: str | None) -> None:
    """Check that PaddleSeg can read the list."""
    try:
        with path.open() as file:
            lines = list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path} ({error}); check it") from error
    if not lines:
        raise UserError(f"the list {path} is empty; write one line IMAGE MASK per image")
    if lines[0].startswith("\ufeff"):
        raise UserError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
    for number, line in enumerate(lines, 1):
        if len(line.strip().split(separator)) != 2:
            raise UserError(
                f"{path} line {number}: {line.strip()!r} does not have two columns; write IMAGE MASK, separated by "
                f"{separator!r} (or set separator), and leave no line empty"
            )


def _build_transform(item: Any, where: str, training: bool) -> Callable[[dict], dict]:
    component = find_component(item, where, manager.TRANSFORMS)
    named = f"{where} ({item['type']})"
    if component.__module__.startswith("paddleseg.") and not training and item["type"] not in _EVAL_TRANSFORMS:
        raise UserError(f"{named} cannot be undone after prediction; use only {', '.join(_EVAL_TRANSFORMS)}")
    if item["type"] == "ResizeByShort" and isinstance(item.get("short_size"), list):
        raise UserError(f"{named} draws one of short_size once for the whole run; give one size, or ResizeStepScaling")
    return build_component(item, where)


def _pair_by_name(root: Path, kind: str, mode: str) -> list[list[str]]:
    """Pair each image with the mask of its name; the check of the data reports missing masks."""
    between, image_end, mask_end = _PAIRED_BY_ORDER[kind]
    images, masks = (root / folder for folder in _folders(kind, mode))
    found = sorted(images.glob(f"{between}*{image_end}"))
    return [
        [str(image), str(masks / (str(image.relative_to(images)).removesuffix(image_end) + mask_end))]
        for image in found
    ]


def _check_padding(dataset: paddleseg_datasets.Dataset, name: str) -> None:
    for number, transform in enumerate(dataset.transforms.transforms):
        value = getattr(transform, "label_padding_value", dataset.ignore_index)
        if value != dataset.ignore_index:
            raise UserError(
                f"{name}.transforms[{number}] ({type(transform).__name__}) pads masks with {value!r}, which is not the "
                f"ignored value; write label_padding_value: {dataset.ignore_index}"
            )


def _class_names(dataset: paddleseg_datasets.Dataset, kind: str) -> list[str]:
    names = getattr(dataset, "class_names", None) or _CLASS_NAMES.get(kind)
    if names:
        return list(names)
    found = read_class_names(Path(dataset.dataset_root), CLASS_NAME_FILES)
    if found is None:
        return [str(number) for number in range(dataset.num_classes)]
    names, file = found
    if len(names) != dataset.num_classes:
        raise UserError(
            f"{file} names {len(names)} classes, num_classes is {dataset.num_classes}: "
            f"give -num_classes {len(names)}, or correct the file"
        )
    return names


# ---- from a data set to batches


class SeededDataset(paddle.io.Dataset):
    """Training samples whose random numbers depend only on the seed and the :class:`SampleKey`.

    A sample is ``{"img": float32 [3, h, w], "label": int64 [h, w], "error": ""}``. It does not raise (see
    :func:`common.training.loader.build_loader`): for an unreadable sample, ``error`` is the message and the arrays are
    placeholders. PaddleSeg's transforms use the global generators of Python and NumPy, which are seeded for every
    sample.

    Args:
        dataset: a data set of PaddleSeg in a training mode.
        seed: of the run.
    """

    def __init__(self, dataset: paddleseg_datasets.Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        words = np.random.SeedSequence([self.seed, key.epoch, key.position]).generate_state(8)
        random.seed(words[:4].tobytes())
        np.random.seed(words[4:])
        try:
            data = _read(self.dataset, key.index)
            img, label = np.asarray(data["img"], np.float32), np.asarray(data["label"], np.int64)
            if img.shape[1:] != label.shape:
                raise ValueError(f"the transforms make an image of {img.shape[1:]} and a mask of {label.shape}")
        except Exception as error:
            return {**_PLACEHOLDER, "error": _explain(self.dataset, key.index, error)}
        return {"img": img, "label": label, "error": ""}


class EvalDataset(paddle.io.Dataset):
    """Validation samples of any size.

    A sample is ``{"img": float32 [3, h, w], "label": int64 [H, W], "trans_info": list, "path": str, "error": ""}``.
    The mask keeps its size; ``trans_info`` tells ``paddleseg.core.infer`` how to undo the transforms of the image. It
    does not raise, as :class:`SeededDataset`.

    Args:
        dataset: a data set of PaddleSeg in mode ``val``.
    """

    def __init__(self, dataset: paddleseg_datasets.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        rest = {"trans_info": [], "path": self.dataset.file_list[key.index][0], "error": ""}
        try:
            data = _read(self.dataset, key.index)
            img, label = np.asarray(data["img"], np.float32), np.asarray(data["label"][0], np.int64)
        except Exception as error:
            return {**_PLACEHOLDER, **rest, "error": _explain(self.dataset, key.index, error)}
        return {**rest, "img": img, "label": label, "trans_info": data["trans_info"]}


_PLACEHOLDER = {"img": np.zeros((3, 1, 1), np.float32), "label": np.zeros((1, 1), np.int64)}


def _read(dataset: paddleseg_datasets.Dataset, index: int) -> dict[str, Any]:
    check_name(dataset.file_list[index][0])
    # A copy, because a transform may change itself: after a long image, ResizeByShort makes all others smaller.
    dataset = copy.copy(dataset)
    dataset.transforms = copy.deepcopy(dataset.transforms)
    return dataset[index]


def _explain(dataset: paddleseg_datasets.Dataset, index: int, error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    image, mask = dataset.file_list[index]
    for kind, path in (("image", image), ("mask", mask)):
        if not Path(path).is_file():
            return f"{kind} {path} does not exist; restore it, or take it out of the data"
    if isinstance(error, AttributeError) and "NoneType" in str(error):  # PaddleSeg uses OpenCV's None as an image
        return f"image {image} cannot be read; replace it, or take it out of the data"
    return f"cannot read image {image} with mask {mask} ({one_line(error)}); check them and the transforms"


def collate_train(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples of :class:`SeededDataset`.

    Returns:
        ``{"img": float32 [B, 3, h, w], "label": int64 [B, h, w], "error": str}``; :func:`check_batch` raises ``error``.
    """
    error = next((sample["error"] for sample in samples if sample["error"]), "")
    sizes = sorted({sample["label"].shape for sample in samples})
    if not error and len(sizes) > 1:
        (height, width), (other_height, other_width) = sizes[:2]
        error = (
            f"the training images are {width}x{height}, {other_width}x{other_height}, ... pixels after the transforms; "
            "train_dataset.transforms must end in one size: add RandomPaddingCrop or Resize"
        )
    if error:
        samples = [_PLACEHOLDER]
    return {**{key: np.stack([sample[key] for sample in samples]) for key in ("img", "label")}, "error": error}


def collate_eval(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch of one sample of :class:`EvalDataset`; images differ in size, so that a batch has one.

    Returns:
        ``{"img": float32 [1, 3, h, w], "label": int64 [1, H, W], "trans_info": list, "path": str, "error": str}``.
    """
    (sample,) = samples
    return {**sample, **{key: np.ascontiguousarray(sample[key][np.newaxis]) for key in ("img", "label")}}


def check_batch(batch: Mapping[str, Any]) -> None:
    """Raise the ``error`` of a batch.

    Raises:
        UserError: a sample could not be read, or the samples differ in size.
    """
    if batch["error"]:
        raise UserError(batch["error"])
