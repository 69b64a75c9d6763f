"""IDX files of MNIST and of data sets like it (format: http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from common.data.class_names import read_class_names
from common.data.image_limits import check_size
from common.errors import UserError
from common.runtime.regular_file import open_regular
from image_classification.dataset_types import ArrayDataset, Dataset, check_labels, class_count
from image_classification.list_files import CLASS_NAME_FILES

__all__ = ["build_idx"]

_MAX_IDX_BYTES = 2**32
_MAX_IMAGES = 2**24  # in a file, since each needs more than its bytes there, such as a label of 8 bytes


def build_idx(path: Path, split: str, num_classes: int | None, class_names: list[str] | None = None) -> Dataset:
    prefix = {"train": "train", "val": "t10k"}[split]
    image_file, images = _read_idx(path, f"{prefix}-images-idx3-ubyte", ndim=3)
    label_file, labels = _read_idx(path, f"{prefix}-labels-idx1-ubyte", ndim=1)
    if len(images) != len(labels):
        raise UserError(
            f"{image_file} has {len(images)} images but {label_file} {len(labels)} labels: download the pair again"
        )
    try:
        check_size(*images.shape[:0:-1])
    except UserError as error:
        raise UserError(f"cannot use the images of {image_file}: {error}") from error
    labels = labels.astype(np.int64)
    source = path
    if class_names is None:
        class_names, source = read_class_names(path, CLASS_NAME_FILES) or (None, path)
    count = class_count(num_classes, class_names, labels, source)
    check_labels(labels, count, lambda index: f"{label_file} entry {index}")
    return ArrayDataset(images, labels, class_names, count, str(image_file))


def _read_idx(path: Path, name: str, ndim: int) -> tuple[Path, np.ndarray]:
    """Read an array of unsigned bytes: magic 0, 0, 8, ndim; sizes as big-endian uint32; content in C order."""
    file = path / name
    if not file.is_file():
        file = path / f"{name}.gz"
    if not file.is_file():
        raise UserError(f"{path} has neither {name} nor {file.name}: download one of them, or check -data_path")
    header = 4 + 4 * ndim
    try:
        with open_regular(file, "rb") as stored, gzip.open(stored) if file.suffix == ".gz" else stored as stream:
            head = stream.read(header)
            if head[:4] != bytes([0, 0, 8, ndim]):
                raise UserError(
                    f"{file} is not an IDX file of {ndim}-d unsigned bytes: it begins with {head[:4].hex()}, not "
                    f"{bytes([0, 0, 8, ndim]).hex()}; download it again"
                )
            if len(head) < header:
                raise EOFError("its header is cut off")
            shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, header, 4)]
            size = math.prod(shape)
            if not size:
                raise UserError(f"{file} is empty: its header gives the shape {shape}; download it again")
            if size > _MAX_IDX_BYTES or shape[0] > _MAX_IMAGES:
                raise UserError(
                    f"{file} has {size:,} bytes according to its header {shape}, more than {_MAX_IDX_BYTES:,}, or more "
                    f"than {_MAX_IMAGES:,} images: give the images as files, with -dataset list"
                )
            content = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {file} ({error}): download it again") from error
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise UserError(f"{file} has {found} bytes of content but its header requires {size:,}: download it again")
    return file, np.frombuffer(content, np.uint8).reshape(shape)
