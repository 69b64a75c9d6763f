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
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from paddleseg import datasets as paddleseg_datasets
from paddleseg.cvlibs import manager

from common.data.channel_image import ARRAY_SUFFIX
from common.data.class_names import read_class_names
from common.data.image_file import check_header, is_ignored, list_images
from common.demo_data import folders as demo_folders
from common.errors import UserError, missing_hint, one_line
from common.runtime.folders import expand_home
from common.runtime.regular_file import read_lines
from common.training.config_values import largest
from common.training.loader import seed_generators
from common.training.sampler import SampleKey
from semantic_segmentation.components import build_component, check_arguments, find_component
from semantic_segmentation.data_check import check_pair
from semantic_segmentation.images import EIGHT_BIT_TRANSFORMS, NOT_FOR_FLOATS, ReadAndCompose

__all__ = [
    "EvalDataset",
    "HENuclei",
    "Nuclei",
    "SeededDataset",
    "build_dataset",
    "collate_eval",
    "collate_train",
]

CLASS_NAME_FILES = ("labels.txt", "class_names.txt")

# Images and masks below dataset_root. PaddleSeg pairs the sorted images with the sorted masks, whatever their names.
_PAIRED_BY_ORDER = {
    "Cityscapes": ("leftImg8bit/{mode}/*/*_leftImg8bit.png", "gtFine/{mode}/*/*_gtFine_labelTrainIds.png"),
    "CocoStuff": ("images/{mode}2017/*.jpg", "annotations/{mode}2017/*.png"),
}
_ADE20K_FOLDERS = {"train": "training", "val": "validation"}  # in images/
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
_CLASS_NAMES = {"ADE20K": _ADE20K_CLASSES, "Cityscapes": _CITYSCAPES_CLASSES}


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
    IMG_CHANNELS = 3
    class_names: ClassVar[tuple[str, ...]]
    _write: ClassVar[Callable[[str | None], Path]]

    def __init__(self, transforms: list, mode: str = "train", dataset_root: str | None = None):
        folder = self._write(dataset_root)
        lists = {"train_path": str(folder / "train.txt"), "val_path": str(folder / "val.txt")}
        super().__init__(mode, str(folder), transforms, self.NUM_CLASSES, **lists)


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

    A ``train_path`` or ``val_path`` is relative to ``dataset_root``, or else to the present folder. Only the demo data
    is downloaded; PaddleSeg would download a missing data set, on every rank.

    Args:
        section: ``type``, ``transforms`` (a list of ``{type: ..., argument: ...}``), and the arguments of that type.
        name: of the section: ``"train_dataset"`` or ``"val_dataset"``.

    Returns:
        PaddleSeg's data set. Its ``file_list`` of (image, mask) is the same on all machines. Its ``class_names`` is a
        list of ``num_classes`` names: those of the benchmark, those of ``labels.txt`` or ``class_names.txt`` in
        ``dataset_root``, one per line, or else the numbers. Its transforms are a
        :class:`semantic_segmentation.images.ReadAndCompose`.

    Raises:
        UserError: a value is invalid, or data is missing.
    """
    training = name == "train_dataset"
    component = find_component(section, name, manager.DATASETS)
    kind, where = section["type"], f"{name} ({section['type']})"
    arguments = {key: value for key, value in section.items() if key != "type"}
    fixed = getattr(component, "NUM_CLASSES", None)
    if fixed is not None and arguments.pop("num_classes", fixed) != fixed:
        raise UserError(
            f"{name}.num_classes is {section['num_classes']!r}, but {kind} always has {fixed} classes; leave "
            "num_classes (or -num_classes) out, or give a -cfg with data of type Dataset"
        )
    if "img_channels" in arguments and "img_channels" not in inspect.signature(component).parameters:
        raise UserError(
            f"{name}.img_channels or model.backbone.in_channels is {arguments['img_channels']}, but images of {kind} "
            "have 3 channels; leave it out, or use data of type Dataset"
        )
    mode = check_arguments(component, arguments, where).get("mode", "train")
    if mode not in (_TRAIN_MODES if training else ("val",)):
        raise UserError(f"{name}.mode is {mode!r}; write mode: {'train' if training else 'val'}")
    for key, low, high in (("num_classes", 2, 2**16), ("ignore_index", 0, 255)):
        value = arguments.get(key, low)
        # Masks have 8 bits, and OpenCV pads them with the nearest value that fits: with class 0 for -1.
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{name}.{key} is {value!r}; give an integer from {low} to {high}")
    if not issubclass(component, _DemoDataset):
        _find_files(kind, arguments, mode, name)
    ignore_index = arguments.get("ignore_index", 255)
    channels = arguments.pop("img_channels", 3)  # of which PaddleSeg accepts 1 and 3
    arguments["transforms"] = [
        _build_transform(item, f"{name}.transforms[{number}]", training, ignore_index, channels)
        for number, item in enumerate(arguments["transforms"])
    ]
    dataset = build_component({"type": kind, **arguments}, name, manager.DATASETS)
    _check_order(dataset.transforms.transforms, name)
    dataset.img_channels, dataset.transforms = channels, ReadAndCompose(dataset.transforms.transforms, channels)
    if kind in _PAIRED_BY_ORDER:
        dataset.file_list = _pair_by_name(Path(dataset.dataset_root), kind, mode)
    elif kind == "ADE20K":
        # PaddleSeg keeps the order of the file system, and hidden files.
        dataset.file_list = sorted(pair for pair in dataset.file_list if not is_ignored(Path(pair[0]).name))
    if not dataset.file_list:
        raise UserError(f"{where} finds no images in {arguments.get(f'{mode}_path') or dataset.dataset_root}; check it")
    mean = max((largest(getattr(item, "mean", 0)) for item in dataset.transforms.transforms), default=0)
    if mean > 1 and not dataset.file_list[0][0].lower().endswith((ARRAY_SUFFIX, ".tif", ".tiff")):  # may be any numbers
        raise UserError(
            f"{name}.transforms: the mean {mean:g} of Normalize is not of pixels from 0 to 1; divide it and std by 255"
        )
    dataset.class_names = _class_names(dataset, kind)
    return dataset


def _check_order(transforms: Sequence[Any], name: str) -> None:
    """Refuse transforms that would compute garbage without an error."""
    names = [type(transform).__name__ for transform in transforms]
    if names.count("Normalize") > 1:
        raise UserError(f"{name}.transforms has Normalize twice; remove one")
    for late in transforms[names.index("Normalize") :] if "Normalize" in names else ():
        if type(late).__name__ in NOT_FOR_FLOATS or largest(getattr(late, "im_padding_value", 0)) > 10:
            kind = type(late).__name__
            raise UserError(f"{name}.transforms: {kind} works on pixels from 0 to 255; put it before Normalize")


def _find_files(kind: str, arguments: dict[str, Any], mode: str, name: str) -> None:
    """Complete the paths among the arguments; PaddleSeg would download a missing data set."""
    root = expand_home(Path(str(arguments.get("dataset_root"))))
    if not root.is_dir():
        hint = missing_hint(root)
        raise UserError(f"{name}.dataset_root: {root} is not a folder; give the folder of the images and masks{hint}")
    for pattern in _PAIRED_BY_ORDER.get(kind, ()):
        if not any(root.glob(pattern.format(mode=mode))):
            raise UserError(
                f"{name}.dataset_root: {root} has no {pattern.format(mode=mode)}; give the folder of {kind}"
            )
    if kind == "ADE20K" and not (images := root / "images" / _ADE20K_FOLDERS[mode]).is_dir():
        raise UserError(f"{name}.dataset_root: there is no folder {images}; give ADEChallengeData2016, or rename yours")
    arguments["dataset_root"] = str(root)
    for key in ("train_path", "val_path"):
        if kind == "Dataset" and isinstance(arguments.get(key), str):
            given = expand_home(Path(arguments[key]))
            path = root / given
            if not path.is_file():
                path = given if given.is_file() else path
            elif given.is_file() and not given.samefile(path):
                raise UserError(f"{name}.{key} is {given}, which exists here and as {path}; give an absolute path")
            if path.exists() or key == f"{mode}_path":
                _check_list(path, arguments.get("separator", " "), f"{name}.{key}")
            arguments[key] = str(path)


def _check_list(path: Path, separator: str | None, where: str) -> None:
    """Check that PaddleSeg can read the list, and say which line it cannot read."""
    try:
        for number, line in enumerate(read_lines(path), 1):
            if line.startswith("\ufeff"):  # PaddleSeg would take it for a part of the first name
                raise UserError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
            if len(line.strip().split(separator)) != 2:
                raise UserError(
                    f"{path} line {number}: {line.strip()!r} does not have two columns; write IMAGE MASK, separated by "
                    f"{separator!r} (or set separator), and leave no line empty"
                )
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the list {path} ({error}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"cannot read the list {path} ({error.strerror}); give a file of lines IMAGE MASK as {where}"
            f"{missing_hint(path)}"
        ) from error


def _build_transform(item: Any, where: str, training: bool, ignore_index: int, channels: int) -> Callable[[dict], dict]:
    component = find_component(item, where, manager.TRANSFORMS)
    if item["type"] in EIGHT_BIT_TRANSFORMS and channels not in (1, 3):
        raise UserError(
            f"{where} ({item['type']}) is for 8-bit gray or color images, but img_channels is {channels}; remove it"
        )
    if component.__module__.startswith("paddleseg.") and not training and item["type"] not in _EVAL_TRANSFORMS:
        raise UserError(
            f"{where} ({item['type']}) cannot be reverted after prediction; use only {', '.join(_EVAL_TRANSFORMS)}"
        )
    if "label_padding_value" in inspect.signature(component).parameters:
        item = {"label_padding_value": ignore_index, **item}
    return build_component(item, where)


def _pair_by_name(root: Path, kind: str, mode: str) -> list[list[str]]:
    """Pair each image with the mask of its name; the check of the data reports missing masks."""
    image_pattern, mask_pattern = (pattern.format(mode=mode) for pattern in _PAIRED_BY_ORDER[kind])
    pairs = []
    for image in map(Path, list_images(root / image_pattern.partition("*")[0])):  # glob ignores folders it cannot list
        name = image.relative_to(root)
        if not name.match(image_pattern):
            continue
        mask = str(name)
        for old, new in zip(image_pattern.split("*"), mask_pattern.split("*"), strict=True):
            mask = mask.replace(old, new)
        pairs.append([str(image), str(root / mask)])
    return pairs


def _class_names(dataset: paddleseg_datasets.Dataset, kind: str) -> list[str]:
    if kind in _CLASS_NAMES:
        return [name.replace("_", " ") for name in _CLASS_NAMES[kind].split()]
    if hasattr(dataset, "class_names"):
        return list(dataset.class_names)
    found = read_class_names(Path(dataset.dataset_root), CLASS_NAME_FILES)
    if found is None:
        return [str(number) for number in range(dataset.num_classes)]
    names, file = found
    if len(names) != dataset.num_classes:
        other = f", or give -num_classes {len(names)}" if len(names) > 1 else ""
        raise UserError(
            f"{file} names {len(names)} classes, num_classes is {dataset.num_classes}: "
            f"write one name for each class, also for class 0, usually the background{other}"
        )
    return names


# ---- from a data set to batches


class EvalDataset:
    """Samples of any size.

    A sample is ``{"img": float32 [channels, h, w], "label": int64 [H, W], "trans_info": list, "path": str}``.
    In mode ``val``, the mask keeps its size; ``trans_info`` tells ``paddleseg.core.infer`` how to undo the transforms
    of the image. Reading raises ``UserError`` if the image or the mask cannot be used.

    Args:
        dataset: a data set of PaddleSeg.
    """

    def __init__(self, dataset: paddleseg_datasets.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        image, mask = self.dataset.file_list[key.index]
        # A copy, because a transform may change itself: after a long image, ResizeByShort makes all others smaller.
        dataset = copy.copy(self.dataset)
        dataset.transforms = copy.deepcopy(dataset.transforms)
        try:
            check_header(mask)
            data = dataset[key.index]
            img, label = np.asarray(data["img"], np.float32), np.asarray(data["label"], np.int64)
            label = label.reshape(label.shape[-2:])  # PaddleSeg adds an axis in mode val
        except UserError:
            raise
        except Exception as error:
            if not Path(mask).is_file():
                hint = missing_hint(mask)
                raise UserError(f"mask {mask} does not exist; restore it, or remove it from the data{hint}") from error
            problem = check_pair(self.dataset, (image, mask))
            if not isinstance(problem, str):
                problem = f"cannot read image {image} with mask {mask} ({one_line(error)}); check the transforms"
            raise UserError(problem) from error
        return {"img": img, "label": label, "trans_info": data["trans_info"], "path": image}


class SeededDataset(EvalDataset):
    """Training samples ``img`` and ``label``, whose random numbers depend only on the seed and the key.

    PaddleSeg's transforms use the global generators of Python and NumPy, which are seeded for every sample.

    Args:
        dataset: a data set of PaddleSeg in a training mode.
        seed: of the run.
    """

    def __init__(self, dataset: paddleseg_datasets.Dataset, seed: int):
        super().__init__(dataset)
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        seed_generators(self.seed, key.epoch, key.position)
        sample = super().__getitem__(key)
        if sample["img"].shape[1:] != sample["label"].shape:
            image, mask = self.dataset.file_list[key.index]
            raise UserError(f"image {image} and mask {mask} differ in size after the transforms; check them")
        return {name: sample[name] for name in ("img", "label")}


def collate_train(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples of :class:`SeededDataset`.

    Returns:
        ``{"img": float32 [B, channels, h, w], "label": int64 [B, h, w]}``.

    Raises:
        UserError: the samples differ in size.
    """
    sizes = sorted({sample["label"].shape for sample in samples})
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sizes[:2]
        raise UserError(
            f"the training images are {width}x{height}, {other_width}x{other_height}, ... pixels after the transforms; "
            "train_dataset.transforms must end in one size: add RandomPaddingCrop or Resize"
        )
    return {key: np.stack([sample[key] for sample in samples]) for key in ("img", "label")}


def collate_eval(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch of one sample of :class:`EvalDataset`; images differ in size, so that a batch has one.

    Returns:
        ``{"img": float32 [1, channels, h, w], "label": int64 [1, H, W], "trans_info": list, "path": str}``.
    """
    (sample,) = samples
    return {**sample, **{key: sample[key][np.newaxis] for key in ("img", "label")}}
