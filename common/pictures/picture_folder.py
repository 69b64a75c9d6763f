"""The folder into which predictions draw, where nothing is overwritten but pictures of earlier runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from PIL import Image

from ..errors import UserError
from .own_pictures import is_own_picture, save_picture

__all__ = ["CannotWrite", "PictureFolder"]


class CannotWrite(UserError):
    """A picture cannot be written, and no other could be either."""


class PictureFolder:
    """Pictures of images, called after them.

    Pictures of an earlier run are replaced. Where that would overwrite an image that is to be predicted, a picture of
    this run, or a file that this project did not write, the name gets a number.

    Args:
        folder: where; made if it is missing.
        images: files that are to be predicted.

    Raises:
        CannotWrite: the folder cannot be made.
    """

    def __init__(self, folder: Path, images: Iterable[str]):
        self.folder = folder
        self._kept = {_identity(image) for image in images}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"cannot write to {folder}: {error.strerror}; give another -out") from error

    def save(self, image: str, pictures: Mapping[str, Image.Image]) -> dict[str, str]:
        """Write the pictures of an image, ``NAME_KIND.png``.

        Args:
            image: the file, whose name without its suffix is NAME.
            pictures: by KIND.

        Returns:
            The path of each kind.

        Raises:
            CannotWrite: the file system refuses it.
        """
        paths = self._free_paths(Path(image).stem, pictures)
        for kind, path in paths.items():
            try:
                save_picture(pictures[kind], path)
            except OSError as error:
                raise CannotWrite(f"cannot write {path}: {error.strerror or error}; give another -out") from error
        self._kept.update(map(_identity, paths.values()))
        return {kind: str(path) for kind, path in paths.items()}

    def _free_paths(self, stem: str, kinds: Collection[str]) -> dict[str, Path]:
        """The first names under which nothing stands that has to stay."""
        names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        candidates = ({kind: self.folder / f"{name}_{kind}.png" for kind in kinds} for name in names)
        return next(paths for paths in candidates if not any(map(self._stays, paths.values())))

    def _stays(self, path: Path) -> bool:
        return os.path.lexists(path) and (_identity(path) in self._kept or not is_own_picture(path))


def _identity(path: str | Path) -> tuple[int, int] | None:
    """The same for all names of a file, links and other spellings; None where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
