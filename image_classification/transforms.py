"""Transforms from a Pillow RGB image to the model's input, for training (random) and evaluation (fixed).

A transform is a callable ``transform(image, rng) -> float32 [3, size, size]``. All random numbers come from ``rng``:
equal generator states give bitwise equal arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from yacs.config import CfgNode

from common.data import preprocessing
from common.data.preprocessing import FILTERS, Color, Normalize, Preprocessing
from common.errors import UserError
from common.training.config import require
from image_classification.label_map_alignment import Geometry

__all__ = ["RAND_AUGMENT_OPS", "EvalTransform", "RandAugment", "TrainTransform", "preprocessing_of"]

Matrix = Sequence[Sequence[float]]  # [2][3], see _warp
# (image, magnitude from 0 to 10, rng, color of pixels from outside the image, record of the geometry) -> image
AugmentOp = Callable[[Image.Image, float, np.random.Generator, Color, Geometry], Image.Image]


def preprocessing_of(config: CfgNode) -> Preprocessing:
    """Return ``DATA.IMAGE_SIZE``, ``CROP_PCT``, ``INTERPOLATION``, ``MEAN`` and ``STD``.

    Raises:
        UserError: a value is invalid.
    """
    require(config, "DATA.CROP_PCT", lambda value: 0 < value <= 1, "must be greater than 0 and at most 1")
    require(config, "DATA.INTERPOLATION", lambda name: name in FILTERS, f"must be one of {', '.join(FILTERS)}")
    require(config, "DATA.MEAN", lambda mean: min(mean) >= 0 and max(mean) <= 1, "must be of pixels from 0 to 1")
    require(config, "DATA.STD", lambda std: min(std) > 0, "must be positive")
    data = config.DATA
    return Preprocessing(data.IMAGE_SIZE, data.CROP_PCT, data.INTERPOLATION, data.MEAN, data.STD)


# ---- geometry


def random_crop_box(
    width: int, height: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the box of a random resized crop (Inception, arXiv 1409.4842).

    Args:
        width, height: of the image, in pixels.
        scale: limits of the box's share of the image area, drawn uniformly.
        ratio: limits of the box's width / height, drawn uniformly on a log scale.
        rng: random generator.

    Returns:
        (left, top, right, bottom) in pixels. If ten draws do not fit into the image, it is the largest central box
        with a ratio within the limits.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _rotation(size: tuple[int, int], degrees: float) -> np.ndarray:
    """Matrix for :func:`_warp` that rotates an image of size (width, height) counterclockwise about its center."""
    width, height = size
    # OpenCV's matrix maps from the input to the output, hence the minus.
    return cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)


def _warp(image: Image.Image, matrix: Matrix, fill: Color) -> Image.Image:
    """Warp an RGB image with bicubic interpolation, by OpenCV, which takes less than half the time of Pillow.

    Args:
        image: 8-bit RGB.
        matrix: [2][3], maps (x, y, 1) of an output pixel to the place in the image; the center of the first pixel is
            (0, 0).
        fill: color of pixels from outside the image.
    """
    warped = cv2.warpAffine(
        np.asarray(image),
        np.asarray(matrix, np.float64),
        image.size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderValue=fill,
    )
    return Image.fromarray(warped)


# ---- RandAugment

MAX_MAGNITUDE = 10


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _without_draw(function: Callable[[Image.Image], Image.Image]) -> AugmentOp:
    return lambda image, magnitude, rng, fill, geometry: function(image)


def _posterize(image, magnitude, rng, fill, geometry):
    # timm goes down to 0 bits, which is a black image and, since Pillow 13, an error.
    return ImageOps.posterize(image, max(1, 4 - int(4 * magnitude / MAX_MAGNITUDE)))


def _solarize(image, magnitude, rng, fill, geometry):
    return ImageOps.solarize(image, 256 - int(256 * magnitude / MAX_MAGNITUDE))


def _solarize_add(image, magnitude, rng, fill, geometry):
    added = int(110 * magnitude / MAX_MAGNITUDE)
    return image.point([min(255, level + added) if level < 128 else level for level in range(256)] * 3)


def _enhance(enhancer: Callable) -> AugmentOp:
    def op(image, magnitude, rng, fill, geometry):
        return enhancer(image).enhance(1 + _signed(0.9 * magnitude / MAX_MAGNITUDE, rng))

    return op


def _geometric(limit: float, matrix_of: Callable[[float, tuple[int, int]], Matrix]) -> AugmentOp:
    """Make an op that warps with ``matrix_of(value, size)``; at magnitude 10 the value is ``limit`` or ``-limit``."""

    def op(image, magnitude, rng, fill, geometry):
        matrix = matrix_of(_signed(limit * magnitude / MAX_MAGNITUDE, rng), image.size)
        geometry.warp(matrix, image.size)
        return _warp(image, matrix, fill)

    return op


RAND_AUGMENT_OPS: dict[str, AugmentOp] = {
    "AutoContrast": _without_draw(ImageOps.autocontrast),
    "Equalize": _without_draw(ImageOps.equalize),
    "Invert": _without_draw(ImageOps.invert),
    "Rotate": _geometric(30, lambda degrees, size: _rotation(size, degrees)),
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    # A shear keeps the edge of the image in place, which is half a pixel before the center of the first one.
    "ShearX": _geometric(0.3, lambda shear, size: ((1, shear, shear / 2), (0, 1, 0))),
    "ShearY": _geometric(0.3, lambda shear, size: ((1, 0, 0), (shear, 1, shear / 2))),
    "TranslateXRel": _geometric(0.45, lambda share, size: ((1, 0, share * size[0]), (0, 1, 0))),
    "TranslateYRel": _geometric(0.45, lambda share, size: ((1, 0, 0), (0, 1, share * size[1]))),
}


class RandAugment:
    """RandAugment (arXiv 1909.13719) with timm's "increasing" ops.

    ``num_ops`` ops are drawn with replacement; each is applied with probability 0.5, at a magnitude drawn from
    N(magnitude, magnitude_std) and clipped to 0..10.

    Args:
        recipe: in timm's notation: "rand" and, joined by "-", ``m`` magnitude, ``n`` number of ops (2), ``mstd``
            standard deviation of the magnitude (0), and ``inc1`` (required, since other ops are not provided), such as
            "rand-m9-mstd0.5-inc1".
        fill: color of pixels from outside the image.

    Raises:
        UserError: the recipe is invalid.
    """

    APPLY_PROBABILITY = 0.5

    def __init__(self, recipe: str, fill: Color):
        kind, *parts = recipe.split("-")
        matches = [re.fullmatch(r"(mstd|m|n|inc)([0-9]+(?:\.[0-9]+)?)", part) for part in parts]
        values = {match[1]: float(match[2]) for match in matches if match}
        self.magnitude, self.magnitude_std = values.get("m", -1), values.get("mstd", 0)
        self.num_ops = int(values.get("n", 2))
        each_once = kind == "rand" and len(values) == len(parts) and values.get("inc") == 1
        if not each_once or not 0 <= self.magnitude <= MAX_MAGNITUDE or values.get("n", 2) not in range(1, 100):
            raise UserError(
                f"AUG.RAND_AUGMENT is {recipe!r}; write it like rand-m9-n2-mstd0.5-inc1, with m from 0 to 10"
            )
        self._fill = fill

    def __call__(self, image: Image.Image, rng: np.random.Generator, geometry: Geometry | None = None) -> Image.Image:
        """Augment an RGB image; ``geometry`` records the warps."""
        ops, geometry = list(RAND_AUGMENT_OPS.values()), geometry or Geometry()
        for index in rng.integers(len(ops), size=self.num_ops):
            if rng.random() < self.APPLY_PROBABILITY:
                magnitude = min(max(rng.normal(self.magnitude, self.magnitude_std), 0.0), MAX_MAGNITUDE)
                image = ops[index](image, magnitude, rng, self._fill, geometry)
        return image


# ---- color jitter, random erasing


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Scale brightness, contrast and saturation, in random order, each by U(max(0, 1 - strength), 1 + strength)."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(len(enhancers)):
        image = enhancers[index](image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def random_erase(array: np.ndarray, rng: np.random.Generator) -> None:
    """Overwrite a random box with N(0, 1) noise, in place (Random Erasing, arXiv 1708.04896).

    The share of the area is drawn uniformly from 0.02 to 1 / 3, height / width from 0.3 to 1 / 0.3 on a log scale. If
    ten draws do not fit, nothing is erased.

    Args:
        array: float32 [channels, height, width], normalized.
        rng: random generator.
    """
    channels, height, width = array.shape
    log_aspect = math.log(0.3), -math.log(0.3)
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(*log_aspect))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            array[:, top : top + h, left : left + w] = rng.standard_normal((channels, h, w), dtype=np.float32)
            return


# ---- the two transforms


class TrainTransform:
    """Random resized crop, flip, rotation, RandAugment or color jitter, normalization, random erasing.

    As in timm, ``AUG.COLOR_JITTER`` is used only without ``AUG.RAND_AUGMENT``, which fills with ``DATA.MEAN``.
    ``AUG.ROTATION`` leaves black corners; it suits images with a black background, such as digits.

    Args:
        config: ``DATA.IMAGE_SIZE``, ``INTERPOLATION``, ``MEAN`` and ``STD``, and the section ``AUG``.

    Raises:
        UserError: a value is invalid.
    """

    def __init__(self, config: CfgNode):
        self._size, self._aug = config.DATA.IMAGE_SIZE, config.AUG
        require(config, "AUG.FLIP AUG.ERASING", lambda value: 0 <= value <= 1, "must be between 0 and 1")
        require(config, "AUG.ROTATION", lambda value: 0 <= value <= 180, "must be an angle between 0 and 180 degrees")
        require(config, "AUG.COLOR_JITTER", lambda value: value >= 0, "must not be negative")
        for key, limit in (("AUG.CROP_SCALE", 1), ("AUG.CROP_RATIO", math.inf)):
            rule = f"must be [low, high] with 0 < low <= high <= {limit}"
            require(config, key, lambda pair, limit=limit: 0 < pair[0] <= pair[1] <= limit, rule)
        settings = preprocessing_of(config)
        self._interpolation, self._normalize = FILTERS[settings.interpolation], Normalize(settings.mean, settings.std)
        recipe = config.AUG.RAND_AUGMENT
        self._rand_augment = RandAugment(recipe, self._normalize.mean_color) if recipe else None

    def min_size(self) -> int:
        """Smallest side of an image, in pixels, with which no crop is enlarged: the argument of ``Dataset.load``."""
        low, high = self._aug.CROP_RATIO
        return math.ceil(self._size * max(1 / math.sqrt(low), math.sqrt(high)) / math.sqrt(self._aug.CROP_SCALE[0]))

    def __call__(self, image: Image.Image, rng: np.random.Generator, geometry: Geometry | None = None) -> np.ndarray:
        """Transform an RGB image to float32 [3, size, size]; ``geometry`` records crop, flip and warps."""
        aug, geometry = self._aug, geometry or Geometry()
        box = random_crop_box(*image.size, aug.CROP_SCALE, aug.CROP_RATIO, rng)
        geometry.crop(box, image.size)
        image = image.resize((self._size, self._size), self._interpolation, box=box)
        if rng.random() < aug.FLIP:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            geometry.flip()
        if aug.ROTATION:
            angle = rng.uniform(-aug.ROTATION, aug.ROTATION)
            image = image.rotate(angle, Image.Resampling.BILINEAR)
            geometry.warp(_rotation(image.size, angle), image.size)
        if self._rand_augment:
            image = self._rand_augment(image, rng, geometry)
        elif aug.COLOR_JITTER:
            image = color_jitter(image, aug.COLOR_JITTER, rng)
        array = self._normalize(image)
        if rng.random() < aug.ERASING:
            random_erase(array, rng)
        return array


class EvalTransform(preprocessing.EvalTransform):
    """The evaluation transform of a configuration.

    Args:
        config: ``DATA.IMAGE_SIZE``, ``CROP_PCT``, ``INTERPOLATION``, ``MEAN`` and ``STD``.

    Raises:
        UserError: a value is invalid.
    """

    def __init__(self, config: CfgNode):
        super().__init__(preprocessing_of(config))
