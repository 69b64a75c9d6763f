"""The folder that pictures of predictions are written to."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..runtime.atomic_file import replace_file

__all__ = ["CannotWrite", "PictureFolder"]

_LONGEST_NAME = 200  # bytes


class CannotWrite(UserError):
    """A picture cannot be written, and the next one could not be either."""


class PictureFolder:
    """Writes ``NAME_KIND.png`` for images called ``NAME.*``.

    Existing files of these names are replaced, so that a second run with the same images gives the same files. Input
    images, and pictures written before in this run, are never overwritten: ``NAME_2_KIND.png``, ``NAME_3_KIND.png``,
    ... is written instead. A NAME of more than 200 bytes is shortened, because file systems allow 255 in all.

    Args:
        folder: created if it does not exist.
        images: the input images of this run.

    Raises:
        CannotWrite: the folder cannot be created.
    """

    def __init__(self, folder: Path, images: Iterable[str]):
        self.folder = folder
        self._protected = {_file_id(image) for image in images} - {None}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"cannot write to {folder}: {error.strerror}; give another -out") from error

    def save(self, image: str, pictures: Mapping[str, Image.Image]) -> dict[str, str]:
        """Write the pictures of an image.

        Args:
            image: path of the input image.
            pictures: by KIND.

        Returns:
            The path of each kind.

        Raises:
            CannotWrite: the operating system refuses it.
        """
        paths: dict[str, Path] = {}
        stem = Path(image).stem
        if len(os.fsencode(stem)) > _LONGEST_NAME:
            stem = os.fsencode(stem)[:_LONGEST_NAME].decode(errors="ignore")
        for number in itertools.count(1):
            name = stem + (f"_{number}" if number > 1 else "")
            paths = {kind: self.folder / f"{name}_{kind}.png" for kind in pictures}
            if self._protected.isdisjoint(map(_file_id, paths.values())):
                break
        for kind, path in paths.items():
            try:
                with replace_file(path) as file:
                    pictures[kind].save(file, format="PNG")
            except OSError as error:
                raise CannotWrite(f"cannot write {path}: {error.strerror or error}; give another -out") from error
            self._protected.add(_file_id(path))
        return {kind: str(path) for kind, path in paths.items()}


def _file_id(path: str | Path) -> tuple[int, int] | None:
    """Device and inode, which are the same for all links to a file; None if it does not exist."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
