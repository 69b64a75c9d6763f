"""IDX files, and one case for each kind of mistake in them."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from image_classification.datasets import FASHION_MNIST_CLASSES, build_dataset
from tests.helpers.dataset_cases import fails


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(path, images, labels, prefix="t10k", compress=False):
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        content = idx_bytes(np.asarray(array, np.uint8))
        (path / f"{name}.gz").write_bytes(gzip.compress(content)) if compress else (path / name).write_bytes(content)


IDX_IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(("split", "prefix", "compress"), [("train", "train", False), ("val", "t10k", True)])
def test_idx(tmp_path, split, prefix, compress):
    write_idx(tmp_path, IDX_IMAGES, [2, 0, 1], prefix, compress)
    dataset = build_dataset("idx", tmp_path, split)
    assert (dataset.labels.dtype, dataset.labels.tolist()) == (np.int64, [2, 0, 1])
    assert (dataset.num_classes, dataset.class_names) == (3, None)
    image = dataset.load(1, min_size=1)
    np.testing.assert_array_equal(np.asarray(image), np.repeat(IDX_IMAGES[1][:, :, None], 3, axis=2))
    assert f"{prefix}-images-idx3-ubyte" in dataset.describe(1)
    assert len({name.partition(b"-")[2] for name in dataset.names()}) == 3  # CRC-32


def test_idx_class_names(tmp_path):
    write_idx(tmp_path, IDX_IMAGES, [9, 0, 1])
    assert build_dataset("mnist", tmp_path, "val").class_names == list("0123456789")
    assert build_dataset("fashion_mnist", tmp_path, "val", num_classes=10).class_names == FASHION_MNIST_CLASSES
    assert build_dataset("idx", tmp_path, "val").class_names is None
    (tmp_path / "class_names.txt").write_text("\n".join("abcdefghij"))
    assert build_dataset("idx", tmp_path, "val").class_names == list("abcdefghij")
    fails(["10 classes", "100"], "mnist", tmp_path, "val", num_classes=100)


def test_idx_missing_or_contradictory(tmp_path):
    fails([IMAGES, f"{IMAGES}.gz"], "idx", tmp_path, "val")
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 12])
    fails([LABELS, "entry 2", "label 12", "10 classes"], "mnist", tmp_path, "val")
    write_idx(tmp_path, IDX_IMAGES, [0, 1])
    fails([IMAGES, LABELS, "3 images", "2 labels"], "idx", tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"<html>", "begins with 3c68746d"),
        (idx_bytes(IDX_IMAGES)[:-1], "59 bytes of content"),
        (idx_bytes(IDX_IMAGES) + b"x", "more bytes of content"),
        (idx_bytes(IDX_IMAGES)[:10], "its header is cut off"),
        (idx_bytes(np.zeros((3, 1, 33), np.uint8)), "33x1 pixels, and one side is more than 32 times the other"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**24 + 1, 1, 1) + bytes(2**24 + 1), "16,777,216 images"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "header"),
        (idx_bytes(IDX_IMAGES[:0]), "empty"),
    ],
)
def test_idx_malformed(tmp_path, content, part):
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 2])
    (tmp_path / IMAGES).write_bytes(content)
    fails([IMAGES, part], "idx", tmp_path, "val")


@pytest.mark.parametrize("images", [3, 10**9])
def test_idx_that_unpacks_to_more_than_it_states_or_may_is_not_unpacked(tmp_path, images):
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 2])
    content = struct.pack(">4B3I", 0, 0, 8, 3, images, 5, 4) + bytes(5 * 10**7)
    (tmp_path / IMAGES).unlink()
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    try:
        fails([f"{IMAGES}.gz", "bytes"], "idx", tmp_path, "val")
        assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
    finally:
        tracemalloc.stop()


def test_idx_broken_gzip(tmp_path):
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(idx_bytes(IDX_IMAGES), mtime=0)[:-20])
    fails(["cannot read", f"{IMAGES}.gz"], "idx", tmp_path, "val")
