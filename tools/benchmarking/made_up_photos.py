"""JPEG files that cost a reader what photographs cost it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["write_photos"]

WIDTH, HEIGHT = 500, 375  # about ImageNet's mean size
QUALITY = 90
# Pixels between the points of each layer of noise. As in photographs, the coarse layers are the strong ones.
SCALES = (1, 2, 4, 8, 16, 32, 64, 128)


def write_photos(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Write ``count`` JPEGs of smooth noise at several scales and of edges, and return their names.

    The same seed gives the same pixels.
    """
    rng = np.random.default_rng(seed)
    names = [f"photo_{number:03d}.jpg" for number in range(count)]
    for name in names:
        Image.fromarray(_pixels(rng)).save(folder / name, quality=QUALITY)
    return names


def _pixels(rng: np.random.Generator) -> np.ndarray:
    """A picture, np.uint8 ``[HEIGHT, WIDTH, 3]``."""
    edges = Image.new("RGB", (WIDTH, HEIGHT), tuple(rng.integers(60, 196, 3).tolist()))
    draw = ImageDraw.Draw(edges)
    for _ in range(12):
        centre, corners = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.normal(0, 60, (int(rng.integers(3, 8)), 2))
        draw.polygon([tuple(point) for point in (centre + corners).tolist()], tuple(rng.integers(20, 236, 3).tolist()))
    pixels = np.asarray(edges, np.float32).copy()
    for scale in SCALES:
        shape = (HEIGHT // scale + 2, WIDTH // scale + 2)
        # Brightness varies three times as much as colour.
        layer = rng.standard_normal((*shape, 1), np.float32) + rng.standard_normal((*shape, 3), np.float32) / 3
        for channel in range(3):
            plane = Image.fromarray(layer[:, :, channel]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            pixels[:, :, channel] += 4 * scale**0.4 * np.asarray(plane)
    return np.clip(pixels, 0, 255).astype(np.uint8)
