"""PaddleSeg's data sets and transforms, built out of a configuration, checked, and read reproducibly.

A data set is one that PaddleSeg has (``manager.DATASETS``), or ``Nuclei`` or ``HENuclei``, which are small and real and
registered here. It is described by a section of a configuration in PaddleSeg's form:

    train_dataset:
      type: Dataset
      dataset_root: data/bear
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

# What PaddleSeg's own data sets look for under dataset_root. {mode} is train or val, {long} training or validation.
_EXPECTED = {
    "ADE20K": ("images/{long}", "annotations/{long}"),
    "CHASEDB1": ("{mode}_list.txt",),
    "Cityscapes": ("leftImg8bit/{mode}", "gtFine/{mode}"),
    "CocoStuff": ("images/{mode}2017", "annotations/{mode}2017"),
    "DRIVE": ("{mode}_list.txt",),
    "HRF": ("{mode}_list.txt",),
    "MiniDeepGlobeRoadExtraction": ("{mode}.txt",),
    "OpticDiscSeg": ("{mode}_list.txt",),
    "PPHumanSeg14K": ("{mode}.txt",),
    "PascalContext": ("ImageSets/Segmentation/{mode}_context.txt", "JPEGImages", "Context"),
    "PascalVOC": ("VOC2012/ImageSets/Segmentation", "VOC2012/JPEGImages", "VOC2012/SegmentationClass"),
    "STARE": ("{mode}_list.txt",),
}
# They pair the sorted images with the sorted masks, whatever their names and however many: the folders between those
# of _EXPECTED and the files, and how the names of an image and of its mask end.
_PAIRED_BY_ORDER = {
    "Cityscapes": ("*/", "_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
    "CocoStuff": ("", ".jpg", ".png"),
}
_UNSUPPORTED = {
    "EG1800": "it takes the transforms of PortraitNet",
    "PSSLDataset": "its masks are .npz files",
    "SUPERVISELY": "it takes the transforms of PortraitNet",
}
_TRAIN_MODES = ("train", "trainval", "trainaug")
# PaddleSeg's transforms that leave the size alone or note in trans_info how to undo what they do.
_EVAL_TRANSFORMS = (
    "Normalize",
    "Resize",
    "ResizeByShort",
    "ResizeByLong",
    "LimitLong",
    "Padding",
    "PaddingByAspectRatio",
)

# The names of the benchmark's list, objectInfo150 (http://sceneparsing.csail.mit.edu), in their usual short form.
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


class _Micrograph(paddleseg_datasets.Dataset):
    """A segmentation folder that :mod:`common.demo_data.folders` makes on first use.

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
class Nuclei(_Micrograph):
    """Nuclei in a fluorescence micrograph; see :func:`common.demo_data.folders.write_nuclei_segmentation`."""

    class_names = demo_folders.NUCLEI_CLASSES
    NUM_CLASSES = len(class_names)
    _write = staticmethod(demo_folders.write_nuclei_segmentation)


@manager.DATASETS.add_component
class HENuclei(_Micrograph):
    """Three types of nuclei in H&E-stained tissue; see :func:`common.demo_data.folders.write_he_segmentation`."""

    class_names = demo_folders.HE_NUCLEI_CLASSES
    NUM_CLASSES = len(class_names)
    _write = staticmethod(demo_folders.write_he_segmentation)


# ---- from a configuration to a data set


def build_dataset(section: Mapping[str, Any], name: str) -> paddleseg_datasets.Dataset:
    """Build the training or validation data of a configuration in PaddleSeg's form.

    Paths may begin with ``~``; a ``train_path`` or ``val_path`` that does not exist as given is taken relative to
    ``dataset_root``. Nothing is downloaded but the demo data: PaddleSeg would fetch a missing data set, on every rank.

    Args:
        section: ``type``, ``transforms`` (a list of ``{type: ..., argument: ...}``), and the arguments of that type.
        name: what the section is called: ``"train_dataset"`` or ``"val_dataset"``.

    Returns:
        PaddleSeg's data set. Its ``file_list`` of (image, mask) is the same on all machines, and its ``class_names``
        is a list of ``num_classes`` names: known ones, those of ``labels.txt`` or ``class_names.txt`` in
        ``dataset_root``, one on a line, or else the numbers.

    Raises:
        UserError: the section asks for what does not exist or cannot work, or the data is not there.
    """
    training = name == "train_dataset"
    component = find_component(section, name, manager.DATASETS)
    kind, where = section["type"], f"{name} ({section['type']})"
    if kind in _UNSUPPORTED:
        raise UserError(f"{where} is not supported: {_UNSUPPORTED[kind]}; give another type")
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
    _check_numbers(arguments, name)
    _find_files(component, arguments, mode.lower(), name)
    arguments["transforms"] = [
        _build_transform(item, f"{name}.transforms[{number}]", training)
        for number, item in enumerate(arguments["transforms"])
    ]
    dataset = build_component({"type": kind, **arguments}, name, manager.DATASETS)
    if kind == "ADE20K":
        dataset.file_list.sort()  # PaddleSeg leaves them in the order of the file system
    _check_pairs(dataset, kind, where, mode.lower())
    if training:
        _check_padding(dataset, name)
    dataset.class_names = _class_names(dataset, kind)
    return dataset


def _check_numbers(arguments: Mapping[str, Any], name: str) -> None:
    for key, low, high in (("num_classes", 2, 2**16), ("ignore_index", 0, 255)):
        value = arguments.get(key, low)
        # Masks have 8 bits, and OpenCV pads them with the nearest value that fits: with class 0 for -1.
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UserError(f"{name}.{key} is {value!r}; give an integer from {low} to {high}")


def _find_files(component: type, arguments: dict[str, Any], mode: str, name: str) -> None:
    """Make the paths among the arguments right, or say what is missing, before PaddleSeg downloads or fails."""
    for key in ("dataset_root", "train_path", "val_path"):
        value = arguments.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise UserError(f"{name}.{key} is {value!r}; give a path")
            arguments[key] = str(Path(value).expanduser())
    if not component.__module__.startswith("paddleseg."):
        return
    kind, given = component.__name__, arguments.get("dataset_root")
    words = {"mode": mode, "long": {"train": "training", "val": "validation"}.get(mode, mode)}
    expected = [path.format(**words) for path in _EXPECTED.get(kind, ())]
    holding = f"the folder that holds {', '.join(expected)}" if expected else "the folder that the list files refer to"
    if given is None:
        raise UserError(f"{name}.dataset_root is missing; {kind} needs {holding}")
    root = Path(given)
    if not root.is_dir():
        raise UserError(f"{name}.dataset_root: {root} is no folder; {kind} needs {holding}")
    missing = [path for path in expected if not (root / path).exists()]
    if missing:
        raise UserError(f"{name}.dataset_root: {root} has no {missing[0]}; {kind} needs {holding}")
    if kind == "Dataset":
        _find_list(arguments, root, "val_path" if mode == "val" else "train_path", name)


def _find_list(arguments: dict[str, Any], root: Path, key: str, name: str) -> None:
    given = arguments.get(key)
    if given is None:
        raise UserError(f"{name}.{key} is missing; give the file with one line IMAGE MASK for each image")
    path = next((path for path in (Path(given), root / given) if path.is_file()), None)
    if path is None:
        raise UserError(f"{name}.{key}: there is neither {given} nor {root / given}; give the list of the images")
    arguments[key] = str(path)
    _check_list(path, arguments.get("separator", " "))


def _check_list(path: Path, separator: str | None) -> None:
    """Read the list as PaddleSeg will."""
    number = 0
    try:
        with path.open() as file:
            for number, line in enumerate(file, 1):
                columns = line.strip().split(separator)
                if len(columns) != 2:
                    raise UserError(
                        f"{path} line {number}: {line.strip()!r} has not two columns; write IMAGE MASK, separated by "
                        f"{separator!r} (or set separator), and leave no line empty"
                    )
                if columns[0].startswith("\ufeff"):
                    raise UserError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path} ({error}); check it") from error
    if not number:
        raise UserError(f"the list {path} is empty; write one line IMAGE MASK for each image")


def _build_transform(item: Any, where: str, training: bool) -> Callable[[dict], dict]:
    component = find_component(item, where, manager.TRANSFORMS)
    named = f"{where} ({item['type']})"
    own = component.__module__.startswith("paddleseg.")
    if own and not training and item["type"] not in _EVAL_TRANSFORMS:
        raise UserError(f"{named} cannot be undone after prediction; use only {', '.join(_EVAL_TRANSFORMS)}")
    if item["type"] == "ResizeByShort" and isinstance(item.get("short_size"), list):
        raise UserError(f"{named} draws one of short_size once for the whole run; give one size, or ResizeStepScaling")
    return build_component(item, where)


def _check_pairs(dataset: paddleseg_datasets.Dataset, kind: str, where: str, mode: str) -> None:
    if kind not in _PAIRED_BY_ORDER:
        if not dataset.file_list:
            raise UserError(f"{where} finds no images in {dataset.dataset_root}; check it")
        return
    between, *suffixes = _PAIRED_BY_ORDER[kind]
    folders = [Path(dataset.dataset_root, path.format(mode=mode)) for path in _EXPECTED[kind]]
    images, masks = (
        sorted(str(path.relative_to(folder)).removesuffix(suffix) for path in folder.glob(f"{between}*{suffix}"))
        for folder, suffix in zip(folders, suffixes, strict=True)
    )
    if not images:
        raise UserError(
            f"{where} finds no images *{suffixes[0]} with *{suffixes[1]} in {dataset.dataset_root}; check it"
        )
    for own, others, (folder, partner), (suffix, missing), what in (
        (images, masks, folders, suffixes, "mask"),
        (masks, images, folders[::-1], suffixes[::-1], "image"),
    ):
        alone = sorted({*own} - {*others})
        if alone:
            more = f" ({len(alone)} such files)" if len(alone) > 1 else ""
            expected = partner / f"{alone[0]}{missing}"
            raise UserError(
                f"{where}: {folder / f'{alone[0]}{suffix}'} has no {what} {expected}{more}; add or remove one"
            )
    dataset.file_list = [
        [str(folder / f"{name}{suffix}") for folder, suffix in zip(folders, suffixes, strict=True)] for name in images
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
    """Training samples whose random numbers depend on the seed and the :class:`SampleKey` only.

    A sample is ``{"img": float32 [3, h, w], "label": int64 [h, w], "error": ""}``. As
    :func:`common.training.loader.build_loader` demands, it does not raise: what cannot be read becomes one pixel and a
    message in ``error``. PaddleSeg's transforms draw from the global generators of Python and NumPy, which every sample
    seeds.

    Args:
        dataset: a data set of PaddleSeg's in a training mode.
        seed: seed of the run.
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
    """Validation samples, of any size.

    A sample is ``{"img": float32 [3, h, w], "label": int64 [H, W], "trans_info": list, "path": str, "error": ""}``: the
    mask keeps its size, and ``trans_info`` tells ``paddleseg.core.infer`` how to undo what happened to the image. It
    does not raise; see :class:`SeededDataset`.

    Args:
        dataset: a data set of PaddleSeg's in mode ``val``.
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
    if isinstance(error, AttributeError) and "NoneType" in str(error):  # PaddleSeg does not look at what OpenCV returns
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
    """Make a batch of the one sample of :class:`EvalDataset`: images differ in size.

    Returns:
        ``{"img": float32 [1, 3, h, w], "label": int64 [1, H, W], "trans_info": list, "path": str, "error": str}``.
    """
    sample = dict(samples[0])
    if len(samples) > 1:
        sample["error"] = f"images are evaluated one by one, not {len(samples)} at once; set the batch size to 1"
    return {**sample, **{key: np.ascontiguousarray(sample[key][np.newaxis]) for key in ("img", "label")}}


def check_batch(batch: Mapping[str, Any]) -> None:
    """Raise what a reader had to report.

    Raises:
        UserError: a sample could not be read, or the samples do not make a batch.
    """
    if batch["error"]:
        raise UserError(batch["error"])
