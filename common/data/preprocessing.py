"""How a classifier sees an image in evaluation: the settings, and the transform of a Pillow image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from PIL import Image

from ..errors import UserError
from ..schema import Range

__all__ = ["FILTERS", "MAX_PIXELS", "Color", "EvalTransform", "Normalize", "Preprocessing", "to_rgb"]

Color = tuple[int, int, int]
MAX_PIXELS = 2**28  # of an image, in all tasks: 805 MB as 8-bit RGB

FILTERS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}


@dataclass(frozen=True)
class Preprocessing:
    """Settings of :class:`EvalTransform`; the defaults are the usual ones for ImageNet [A: DeiT].

    Attributes:
        image_size: side of the input in pixels.
        crop_pct: side of the center crop over the shorter side of the resized image.
        interpolation: of the resizing, a key of :data:`FILTERS`.
        mean, std: of red, green and blue, on a scale from 0 to 1.

    Raises:
        UserError: the interpolation is unknown, or there are not three means and deviations.
    """

    image_size: Annotated[int, Range(1, 2**13)] = 224
    crop_pct: Annotated[float, Range(0.01, 1)] = 0.875
    interpolation: str = "bicubic"
    mean: list[Annotated[float, Range(-1e6, 1e6)]] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[Annotated[float, Range(1e-6, 1e6)]] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise UserError(f"interpolation is {self.interpolation!r}; it must be one of {', '.join(FILTERS)}")
        if not len(self.mean) == len(self.std) == 3:
            raise UserError(f"mean and std are {self.mean} and {self.std}; give three numbers each")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to 8-bit RGB.

    Alpha is dropped, not blended, as in torchvision and timm. 16-bit gray is scaled to 8 bits, where Pillow's own
    conversion saturates.

    Raises:
        ValueError: the pixels are floating-point numbers, whose range is not defined.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save the image with 8 or 16 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # a direct conversion to RGB makes Pillow warn
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


class Normalize:
    """``(image / 255 - mean) / std`` per channel, as one multiplication and one addition.

    Args:
        mean, std: of each channel, on a scale from 0 to 1; the deviations must be positive.

    Attributes:
        mean_color: the mean as an 8-bit color.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        means, deviations = np.array(mean), np.array(std)
        self._factor = (1 / (255 * deviations)).astype(np.float32).reshape(3, 1, 1)
        self._offset = (-means / deviations).astype(np.float32).reshape(3, 1, 1)
        red, green, blue = np.clip(np.round(255 * means), 0, 255).astype(int).tolist()
        self.mean_color: Color = (red, green, blue)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Normalize an RGB image to a contiguous float32 [3, height, width]."""
        array = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        array *= self._factor
        array += self._offset
        return array


class EvalTransform:
    """Resize the shorter side to ``image_size / crop_pct``, crop the center, normalize.

    Args:
        settings: of the model.
    """

    def __init__(self, settings: Preprocessing):
        self._size = settings.image_size
        self._shorter_side = round(self._size / settings.crop_pct)
        self._interpolation = FILTERS[settings.interpolation]
        self._normalize = Normalize(settings.mean, settings.std)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Transform an RGB image to float32 [3, size, size]; ``rng`` is not used.

        Raises:
            ValueError: it is no RGB image of Pillow.
            UserError: before it is cropped, the resized image would have more than 2**28 pixels.
        """
        if (mode := getattr(image, "mode", type(image).__name__)) != "RGB":
            raise ValueError(
                f"the image is {mode}; give an RGB image of Pillow, such as Image.open(file).convert('RGB')"
            )
        width, height = (side * self._shorter_side // min(image.size) for side in image.size)
        if width * height > MAX_PIXELS:
            raise UserError(
                f"resized for this model, the image has {width}x{height} pixels, more than {MAX_PIXELS:,}; crop it, or "
                "check image_size and crop_pct"
            )
        image = image.resize((width, height), self._interpolation)
        left, top = round((width - self._size) / 2), round((height - self._size) / 2)
        return self._normalize(image.crop((left, top, left + self._size, top + self._size)))
