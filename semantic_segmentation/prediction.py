"""The class of every pixel of single images, as pictures."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddleseg.transforms import Compose, Normalize
from PIL import Image
from yacs.config import CfgNode

from common.checkpoint import find_weights, load_weights
from common.config import plain
from common.errors import UserError
from common.image_file import read_image
from common.own_pictures import is_own_picture, save_picture
from common.pictures import colour_map, index_png, overlay, palette, present_classes, with_legend
from common.prediction import PredictOptions, Predictor
from semantic_segmentation.components import build_component, build_model
from semantic_segmentation.inference import InferenceSettings, predict_labels, predict_large

__all__ = ["Segmenter"]

LARGE = 2048 * 2048  # pixels; above this many, the logits of a whole image would take gigabytes
_KINDS = ("overlay", "colours", "labels")


class Segmenter(Predictor):
    """The class of every pixel, with the transforms and the inference of the validation data.

    Images of more than ``LARGE`` pixels are labelled in sliding windows: those of ``test_config`` or, where it has
    none, of 512 pixels that overlap by a third. The memory is then that of one row of windows.
    """

    def __init__(self, state: Mapping[str, Any], source: str, config: CfgNode):
        arrays = find_weights(state, source)
        names = state.get("class_names") or []
        self.model = build_model(config, len(names) or _count_classes(config, source))
        load_weights(self.model, arrays, source)
        self.model.eval()
        self.class_names = [str(name) for name in names] or [str(n) for n in range(self.model.num_classes)]
        self.colours = palette(len(self.class_names))
        self.settings = InferenceSettings.from_test_config(plain(config.test_config))
        self.transforms = [
            build_component(item, f"val_dataset.transforms[{number}]")
            for number, item in enumerate(plain(config.val_dataset).get("transforms", []))
        ]

    @paddle.no_grad()
    def predict(self, files: Sequence[str], options: PredictOptions) -> Iterator[dict[str, Any]]:
        """Write ``NAME_overlay.png``, ``NAME_colours.png`` and ``NAME_labels.png`` (class numbers) for each file.

        Pictures of an earlier run are replaced. Where that would overwrite one of the files, or a file that this
        project did not write, NAME gets a number.

        Yields:
            ``image``, the paths of the three, and ``classes``: ``label``, ``name`` and ``share`` (0 to 1) of those that
            occur, the largest first; or ``error``.

        Raises:
            UserError: the pictures cannot be written.
        """
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {options.out}: {error.strerror}; give another -out") from error
        kept = {_identity(file) for file in files}
        for file in files:
            image = read_image(file)
            if image is None:
                yield {"image": file, "error": f"cannot read image {file}; replace or remove it"}
                continue
            try:
                labels = self.label(image)
            except UserError as error:
                yield {"image": file, "error": f"image {file}: {error}"}
                continue
            except MemoryError:
                size = f"{image.shape[1]}x{image.shape[0]}"
                yield {"image": file, "error": f"image {file} of {size} pixels takes too much memory; cut it in parts"}
                continue
            paths = _free_paths(options.out, Path(file).stem, kept)
            classes = self._save(image, labels, paths)
            kept.update(map(_identity, paths.values()))
            yield {"image": file, **{kind: str(path) for kind, path in paths.items()}, "classes": classes}

    def label(self, image: np.ndarray) -> np.ndarray:
        """Label an image, RGB uint8 [h, w, 3], of any size; the labels are integers [h, w].

        Raises:
            UserError: the transforms or the scales of the inference cannot take an image of this size.
        """
        height, width = image.shape[:2]
        only_normalised = all(isinstance(transform, Normalize) for transform in self.transforms)
        if height * width > LARGE and only_normalised and not self.settings.aug_eval:
            windows = self.settings
            if not windows.is_slide:
                windows = replace(windows, is_slide=True, crop_size=(512, 512), stride=(341, 341))
            return predict_large(self.model, image, self._normalise, windows)
        data = self._transform(image)
        return predict_labels(self.model, paddle.to_tensor(data["img"][None]), self.settings, data["trans_info"])

    def describe(self, result: Mapping[str, Any]) -> str:
        lines = [f"  {100 * row['share']:6.2f} %  {row['name']}" for row in result["classes"]]
        return "\n".join([f"{result['image']} -> {result['overlay']}", *lines])

    def _normalise(self, window: np.ndarray) -> np.ndarray:
        return self._transform(window)["img"].astype(np.float32)

    def _transform(self, image: np.ndarray) -> dict[str, Any]:
        # A copy, because a transform may change itself: after a long image, ResizeByShort makes all others smaller.
        transforms = copy.deepcopy(self.transforms)
        try:
            return Compose(transforms, to_rgb=False)({"img": image.astype(np.float32)})
        except Exception as error:
            height, width = image.shape[:2]
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"val_dataset.transforms cannot take {width}x{height} pixels ({reason}); crop the image or change them"
            ) from error

    def _save(self, image: np.ndarray, labels: np.ndarray, paths: Mapping[str, Path]) -> list[dict[str, Any]]:
        present = present_classes(labels, classes=len(self.class_names))
        legend = [self.class_names[number] for number in present], self.colours[present]
        pictures = {
            "overlay": Image.fromarray(with_legend(overlay(image, labels, self.colours), *legend)),
            "colours": Image.fromarray(with_legend(colour_map(labels, self.colours), *legend)),
            "labels": index_png(labels, self.colours),
        }
        try:
            for kind, picture in pictures.items():
                save_picture(picture, paths[kind])
        except OSError as error:
            raise UserError(f"cannot write {paths[kind]}: {error.strerror or error}; give another -out") from error
        shares = [float((labels == number).mean()) for number in present]
        return [
            {"label": int(number), "name": self.class_names[number], "share": share}
            for number, share in zip(present, shares, strict=True)
        ]


def _count_classes(config: CfgNode, source: str) -> int:
    if "num_classes" not in config.model:
        raise UserError(f"{source} does not name its classes; give a -cfg with model.num_classes")
    return config.model.num_classes


def _free_paths(folder: Path, stem: str, kept: Container[tuple[int, int] | None]) -> dict[str, Path]:
    """Where the pictures of an image go: to the first names under which nothing stands that has to stay.

    Args:
        kept: identities of the files that stay whatever they are.
    """

    def stays(path: Path) -> bool:
        return os.path.lexists(path) and (_identity(path) in kept or not is_own_picture(path))

    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    candidates = ({kind: folder / f"{name}_{kind}.png" for kind in _KINDS} for name in names)
    return next(paths for paths in candidates if not any(map(stays, paths.values())))


def _identity(path: str | Path) -> tuple[int, int] | None:
    """The same for all names of a file, links and other spellings; None where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
