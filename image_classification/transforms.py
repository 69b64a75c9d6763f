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

from common.errors import UserError
from image_classification.label_map_alignment import Geometry

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "RAND_AUGMENT_OPS",
    "EvalTransform",
    "Normalize",
    "RandAugment",
    "TrainTransform",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Color = tuple[int, int, int]
Matrix = Sequence[Sequence[float]]  # [2][3], see _warp
# (image, magnitude from 0 to 10, rng, color of pixels from outside the image, record of the geometry) -> image
AugmentOp = Callable[[Image.Image, float, np.random.Generator, Color, Geometry], Image.Image]


# ---- checks of the arguments


def _range(name: str, value: Sequence[float], upper: float = math.inf) -> tuple[float, float]:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= upper:
        raise ValueError(f"{name} {value!r} is not (low, high) with 0 < low <= high <= {upper}")
    return tuple(value)


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} {value!r} is not a probability between 0 and 1")
    return value


def _resampling(interpolation: str) -> Image.Resampling:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
    return INTERPOLATIONS[interpolation]


# ---- normalization


class Normalize:
    """``(image / 255 - mean) / std`` per channel, as one multiplication and one addition.

    Args:
        mean: three values, for pixels from 0 to 1.
        std: three positive values, for pixels from 0 to 1.

    Raises:
        ValueError: there are not three values each, or a std is not positive.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {mean!r} and std {std!r} are not three values each with a positive std")
        mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self._factor = (1 / (255 * std)).astype(np.float32).reshape(3, 1, 1)
        self._offset = (-mean / std).astype(np.float32).reshape(3, 1, 1)
        self.mean_color: Color = tuple(int(level) for level in np.clip(np.round(255 * mean), 0, 255))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Normalize an RGB image to a contiguous float32 [3, height, width]."""
        rows = image.tobytes("raw", "RGB;L")  # line by line: faster than to transpose pixels
        pixels = np.frombuffer(rows, np.uint8).reshape(image.height, 3, image.width)
        array = pixels.transpose(1, 0, 2).astype(np.float32, order="C")
        array *= self._factor
        array += self._offset
        return array


# ---- geometry


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
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


def _geometric(draw: Callable[[tuple[int, int], float, np.random.Generator], Matrix]) -> AugmentOp:
    """Make an op of ``draw(size, magnitude, rng)``, which returns the matrix for :func:`_warp`."""

    def op(image, magnitude, rng, fill, geometry):
        matrix = draw(image.size, magnitude, rng)
        geometry.warp(matrix, image.size)
        return _warp(image, matrix, fill)

    return op


def _rotate(size, magnitude, rng):
    return _rotation(size, _signed(30 * magnitude / MAX_MAGNITUDE, rng))


# A shear keeps the edge of the image in place, which is half a pixel before the center of the first one.
def _shear_x(size, magnitude, rng):
    shear = _signed(0.3 * magnitude / MAX_MAGNITUDE, rng)
    return (1, shear, shear / 2), (0, 1, 0)


def _shear_y(size, magnitude, rng):
    shear = _signed(0.3 * magnitude / MAX_MAGNITUDE, rng)
    return (1, 0, 0), (shear, 1, shear / 2)


def _translate_x(size, magnitude, rng):
    return (1, 0, _signed(0.45 * size[0] * magnitude / MAX_MAGNITUDE, rng)), (0, 1, 0)


def _translate_y(size, magnitude, rng):
    return (1, 0, 0), (0, 1, _signed(0.45 * size[1] * magnitude / MAX_MAGNITUDE, rng))


RAND_AUGMENT_OPS: dict[str, AugmentOp] = {
    "AutoContrast": _without_draw(ImageOps.autocontrast),
    "Equalize": _without_draw(ImageOps.equalize),
    "Invert": _without_draw(ImageOps.invert),
    "Rotate": _geometric(_rotate),
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": _geometric(_shear_x),
    "ShearY": _geometric(_shear_y),
    "TranslateXRel": _geometric(_translate_x),
    "TranslateYRel": _geometric(_translate_y),
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
        UserError: a part of the recipe is unknown, repeated, malformed or missing.
    """

    APPLY_PROBABILITY = 0.5

    def __init__(self, recipe: str, fill: Color):
        self.magnitude, self.num_ops, self.magnitude_std = self._parse(recipe)
        self._fill = fill

    @staticmethod
    def _parse(recipe: str) -> tuple[float, int, float]:
        form = 'write it like "rand-m9-n2-mstd0.5-inc1"'
        kind, *parts = recipe.split("-")
        if kind != "rand":
            raise UserError(f'RandAugment recipe {recipe!r} does not begin with "rand": {form}')
        values = {}
        for part in parts:
            match = re.fullmatch(r"(mstd|m)([0-9]+(?:\.[0-9]+)?)|(n)([1-9][0-9]?)|(inc)(1)", part)
            key, value = [group for group in match.groups() if group] if match else (None, "")
            if key is None or key in values or (key == "m" and float(value) > MAX_MAGNITUDE):
                raise UserError(f"RandAugment recipe {recipe!r}: part {part!r} is unknown, repeated or wrong: {form}")
            values[key] = float(value)
        for key in ("m", "inc"):
            if key not in values:
                raise UserError(f"RandAugment recipe {recipe!r} lacks the part {key!r}: {form}")
        return values["m"], int(values.get("n", 2)), values.get("mstd", 0.0)

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


def random_erase(array: np.ndarray, scale: tuple[float, float], rng: np.random.Generator) -> None:
    """Overwrite a random box with N(0, 1) noise, in place (Random Erasing, arXiv 1708.04896).

    The share of the area is drawn uniformly from ``scale``, height / width from 0.3 to 1 / 0.3 on a log scale. If ten
    draws do not fit, nothing is erased.

    Args:
        array: float32 [channels, height, width], normalized.
        scale: limits of the erased share of the area.
        rng: random generator.
    """
    channels, height, width = array.shape
    log_aspect = math.log(0.3), -math.log(0.3)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_aspect))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            array[:, top : top + h, left : left + w] = rng.standard_normal((channels, h, w), dtype=np.float32)
            return


# ---- the two transforms


class TrainTransform:
    """Random resized crop, flip, rotation, RandAugment or color jitter, normalization, random erasing.

    Args:
        image_size: side of the output in pixels.
        scale: limits of the crop's share of the image area.
        ratio: limits of the crop's width / height.
        interpolation: a key of INTERPOLATIONS.
        flip: probability of a horizontal flip.
        rotation: degrees; the angle is uniform within +-rotation, and the corners become black. It suits images with a
            black background, such as digits.
        rand_augment: recipe of RandAugment; "" disables it.
        color_jitter: strength, see ``color_jitter``; as in timm, it is used only without RandAugment.
        erasing: probability of random erasing.
        erasing_scale: limits of the erased share of the area.
        mean, std: of each channel, for pixels from 0 to 1. ``mean`` is also the color that RandAugment fills with.

    Raises:
        ValueError: an argument is out of range.
        UserError: the ``rand_augment`` recipe is invalid.
    """

    def __init__(
        self,
        image_size: int,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
        flip: float = 0.5,
        rotation: float = 0.0,
        rand_augment: str = "",
        color_jitter: float = 0.0,
        erasing: float = 0.25,
        erasing_scale: Sequence[float] = (0.02, 1 / 3),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        self._size = image_size
        self._scale = _range("scale", scale, 1.0)
        self._ratio = _range("ratio", ratio)
        self._resample = _resampling(interpolation)
        self._flip = _probability("flip", flip)
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation {rotation!r} is not an angle between 0 and 180 degrees")
        self._rotation = rotation
        if not 0 <= color_jitter < math.inf:
            raise ValueError(f"color_jitter {color_jitter!r} is not a strength of 0 or more")
        self._color_jitter = color_jitter
        self._erasing = _probability("erasing", erasing)
        self._erasing_scale = _range("erasing_scale", erasing_scale, 1.0)
        self._normalize = Normalize(mean, std)
        self._rand_augment = RandAugment(rand_augment, self._normalize.mean_color) if rand_augment else None

    def min_size(self) -> int:
        """Smallest side of an image, in pixels, with which no crop is enlarged: the argument of ``Dataset.load``."""
        low, high = self._ratio
        return math.ceil(self._size * max(1 / math.sqrt(low), math.sqrt(high)) / math.sqrt(self._scale[0]))

    def __call__(self, image: Image.Image, rng: np.random.Generator, geometry: Geometry | None = None) -> np.ndarray:
        """Transform an RGB image to float32 [3, size, size]; ``geometry`` records crop, flip and warps."""
        geometry = geometry or Geometry()
        box = random_crop_box(*image.size, self._scale, self._ratio, rng)
        geometry.crop(box, image.size)
        image = image.resize((self._size, self._size), self._resample, box=box)
        if rng.random() < self._flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            geometry.flip()
        if self._rotation:
            angle = rng.uniform(-self._rotation, self._rotation)
            image = image.rotate(angle, Image.Resampling.BILINEAR)
            geometry.warp(_rotation(image.size, angle), image.size)
        if self._rand_augment:
            image = self._rand_augment(image, rng, geometry)
        elif self._color_jitter:
            image = color_jitter(image, self._color_jitter, rng)
        array = self._normalize(image)
        if rng.random() < self._erasing:
            random_erase(array, self._erasing_scale, rng)
        return array


class EvalTransform:
    """Resize, center crop, normalize.

    The image is resized, keeping its proportions, until its shorter side is ``image_size / crop_pct``, and the center
    is cropped.

    Args:
        image_size: side of the output in pixels.
        crop_pct: share of the resized side that the crop keeps, 0 < crop_pct <= 1.
        interpolation: a key of INTERPOLATIONS.
        mean, std: of each channel, for pixels from 0 to 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        image_size: int,
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        self._size = image_size
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct {crop_pct!r} is not within 0 < crop_pct <= 1")
        self._shorter_side = round(image_size / crop_pct)
        self._resample = _resampling(interpolation)
        self._normalize = Normalize(mean, std)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size (width, height) to which an image is resized before the crop."""
        shorter = min(width, height)
        return width * self._shorter_side // shorter, height * self._shorter_side // shorter

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Transform an RGB image to float32 [3, size, size]; ``rng`` is not used."""
        width, height = self.resized(*image.size)
        image = image.resize((width, height), self._resample)
        left, top = round((width - self._size) / 2), round((height - self._size) / 2)
        return self._normalize(image.crop((left, top, left + self._size, top + self._size)))
