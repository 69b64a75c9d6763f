"""Class folders inside of tar and zip archives: the same data as the unpacked folder, in few large files."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.data.image_file import is_ignored
from common.errors import UserError
from image_classification.archive_file import ARCHIVE_SUFFIXES, list_archive, read_member
from image_classification.dataset_types import FileDataset

__all__ = ["ArchiveDataset", "ArchiveTree", "compressed_hint", "list_archives"]

_COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_OPEN_FILES = 256  # of each data set, in each process: Linux allows a process 1,024 by default
_PLACE = np.dtype(  # an array, because reference counts of a million objects would copy them into every forked worker
    [
        ("archive", np.int32),
        ("offset", np.int64),
        ("stored", np.int64),
        ("size", np.int64),
        ("crc", np.int64),
        ("is_deflated", np.bool_),
    ]
)


def list_archives(folder: Path, pattern: str = ".*") -> list[Path]:
    """The archives in a folder whose names without suffix match a regular expression as a whole, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ARCHIVE_SUFFIXES
        and not is_ignored(path.name)
        and re.fullmatch(pattern, path.stem, re.IGNORECASE)
        and path.is_file()
    )


def compressed_hint(folder: Path) -> str:
    """What to add to the message that a folder has no data: a compressed tar in it, if there is one."""
    names = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(_COMPRESSED))
    if not names:
        return ""
    return f". {names[0]} cannot be used, because images inside of compressed tars have no place: uncompress it first"


class ArchiveTree:
    """The class folders of a split inside of archives.

    A member is ``CLASS/name.jpg``, with further folders below the class. Folders around all classes are left out; that
    of a single class must have a name of the split. In an archive inside of the split's folder, images without a folder
    have the name of the archive as their class, as in ImageNet's tar of tars.

    Args:
        root: folder of the data.
        path: the folder that the archives stand for; it need not exist.
        archives: tar and zip files.
        split_names: what the split's folder may be called.
    """

    others: Sequence[str] = ()  # as in FolderTree; other members of archives are not listed

    def __init__(self, root: Path, path: Path, archives: list[Path], split_names: tuple[str, ...]):
        self.path, self._root, self._archives, self._split_names = path, root, archives, split_names

    def class_names(self) -> list[str]:
        """The classes that have an image, sorted."""
        return sorted(self._files)

    def files(self, class_name: str) -> list[str]:
        """The images of a class, sorted as :func:`common.data.image_file.list_images` does; relative to the root."""
        return self._files.get(class_name, [])

    def dataset(
        self, names: list[str], labels: np.ndarray, class_names: list[str] | None, num_classes: int
    ) -> FileDataset:
        """The data set of some of the images."""
        rows = self._rows
        places = self._places[[rows[name] for name in names]]
        return ArchiveDataset(self._root, names, labels, class_names, num_classes, self._archives, places)

    @functools.cached_property
    def _listing(self) -> tuple[list[str], np.ndarray]:
        """The names of all images, and where they are."""
        names: list[str] = []

        def places() -> Iterator[tuple]:
            for number, archive in enumerate(self._archives):
                for member in list_archive(archive):
                    names.append(self._name_in_folder(archive, member.name))
                    yield (number, *member[1:])

        found = np.fromiter(places(), _PLACE)
        if not names:
            raise UserError(f"{self._archives[0]} has no images: put them into it as CLASS/name.jpg")
        while self._has_folder_around(names):
            names = [name.partition("/")[2] for name in names]
        return names, found

    def _has_folder_around(self, names: list[str]) -> bool:
        """Whether the first folder of all names is none of a class."""
        folders = {name.rpartition("/")[0] for name in names}
        first, *below = os.path.commonpath(folders).split("/")
        if not first or first in folders:  # else all images are in this folder, and in folders in it
            return False
        classes_differ = "/".join([first, *below]) not in folders
        return classes_differ or any(folder.lower() in self._split_names for folder in [first, *below])

    def _name_in_folder(self, archive: Path, name: str) -> str:
        if "/" in name:
            return name
        if archive.parent != self.path:
            raise UserError(
                f"{archive}: image {name!r} is in no class folder: give the members names such as CLASS/{name}"
            )
        return f"{archive.stem}/{name}"

    @property
    def _places(self) -> np.ndarray:
        return self._listing[1]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        rows: dict[str, int] = {}
        names, places = self._listing
        for row, name in enumerate(names):
            name = f"{self.path.name}/{name}"
            if rows.setdefault(name, row) != row:
                first, second = (self._archives[places["archive"][number]] for number in (rows[name], row))
                raise UserError(f"image {name!r} is in {first} and again in {second}: make the archives again")
        return rows

    @functools.cached_property
    def _files(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        for name in sorted(self._rows):
            files.setdefault(name.split("/", 2)[1], []).append(name)
        return files


class ArchiveDataset(FileDataset):
    """Images in archives.

    Args:
        root, names, labels, class_names, num_classes: see :class:`FileDataset`, for the unpacked archives.
        archives: their paths.
        places: [n], where each image is: the number of its archive, and the values of
            :class:`image_classification.archive_file.Member`.
    """

    def __init__(
        self,
        root: Path,
        names: list[str],
        labels: np.ndarray,
        class_names: list[str] | None,
        num_classes: int,
        archives: list[Path],
        places: np.ndarray,
    ):
        super().__init__(root, names, labels, class_names, num_classes)
        self._archives, self._places = archives, places
        self._open = functools.lru_cache(_OPEN_FILES)(_OpenFile)

    def describe(self, index: int) -> str:
        name = os.fsdecode(bytes(self._names[index]))
        return f"{name} in {self._archives[self._places['archive'][index]]}"

    def source(self, index: int) -> io.BytesIO:
        place = self._places[index]
        try:
            file = self._open(self._archives[place["archive"]])
            return io.BytesIO(read_member(file.descriptor, place))
        except OSError as error:
            raise UserError(f"{error.strerror}; check the archive and the disk") from error


class _OpenFile:
    """A file for reading. It is closed with the last reference, since another thread may still read from it."""

    def __init__(self, path: Path):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)
