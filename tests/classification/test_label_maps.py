"""Label maps in files: they are read back, and missing, damaged or foreign ones are named."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from common.errors import UserError
from image_classification.dataset_types import ArrayDataset
from image_classification.datasets import build_dataset
from image_classification.label_maps import LabelMapInfo, LabelMaps, create_label_maps

CLASSES = 3
NAMES = ["blue", "green", "red"]


def make_info(images=36, **changes):
    values = {"images": images, "height": 2, "width": 4, "top": 2, "num_classes": CLASSES, "class_names": NAMES}
    values |= {"model": "pale_nano", "weights": "best.pdparams", "sha256": "0" * 64, "image_size": 64}
    return LabelMapInfo(**{**values, **changes})


def make_arrays(info):
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((*info.shape[:3], info.num_classes)), -1)[..., : info.top]
    scores = -np.sort(-rng.dirichlet(np.ones(info.num_classes), info.shape[:3]), -1)[..., : info.top]
    return order.astype(np.int64), scores.astype(np.float32)


def write(folder, names, info):
    classes, scores = make_arrays(info)
    with create_label_maps(folder, info, names) as maps:
        maps["classes"][:], maps["scores"][:] = classes, scores
        assert not folder.exists()
    return classes, scores


@pytest.fixture
def dataset(shapes):
    return build_dataset("folder", shapes, "train")


@pytest.fixture
def maps(tmp_path, dataset):
    """A folder of label maps of :func:`dataset`, and its arrays."""
    return tmp_path / "maps", write(tmp_path / "maps", dataset.names(), make_info())


def test_maps_are_read_back(maps, dataset):
    folder, (classes, scores) = maps
    arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("images", "classes", "scores")}
    assert arrays["images"][0] == b"train/blue/00.png"
    assert (arrays["classes"].dtype, arrays["scores"].dtype) == (np.uint16, np.float16)
    read = LabelMaps(folder, dataset, CLASSES)
    assert read.info == make_info()
    assert not list(folder.parent.glob("*.partial"))
    for index in range(36):
        own_classes, own_scores = read[index]
        assert (own_classes.dtype, own_scores.dtype) == (np.int64, np.float32)
        np.testing.assert_array_equal(own_classes, classes[index].reshape(8, 2))
        np.testing.assert_array_equal(own_scores, scores[index].reshape(8, 2).astype(np.float16))


def test_maps_are_found_by_name_in_any_order_and_number(maps, dataset, shapes):
    folder, (classes, _) = maps
    lines = ["train/red/03.png 2", "train/blue/07.png 0", "train/green/00.png 1"]
    (shapes / "train_list.txt").write_text("\n".join(lines))
    read = LabelMaps(folder, build_dataset("list", shapes, "train"), CLASSES)
    for index, row in enumerate((27, 7, 12)):
        np.testing.assert_array_equal(read[index][0], classes[row].reshape(8, 2))


def test_images_without_a_map_are_named(tmp_path, dataset):
    write(tmp_path / "maps", np.delete(dataset.names(), [5, 6, 30]), make_info(33))
    with pytest.raises(UserError, match=r"blue/05\.png and 2 others; make maps .*make_label_maps\.py"):
        LabelMaps(tmp_path / "maps", dataset, CLASSES)


def test_images_in_memory_are_identified_by_their_content(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 8, 8), np.uint8), np.arange(5) % CLASSES
    dataset = ArrayDataset(images, labels, None, CLASSES, "digits")
    write(tmp_path / "maps", dataset.names(), make_info(5))
    LabelMaps(tmp_path / "maps", dataset, CLASSES)
    images[3, 0, 0] ^= 1
    with pytest.raises(UserError, match="digits image 3;"):
        LabelMaps(tmp_path / "maps", dataset, CLASSES)


def test_classes_must_be_those_of_the_model(maps, dataset, tmp_path):
    with pytest.raises(UserError, match="3 classes, but the model has 4"):
        LabelMaps(maps[0], dataset, 4)
    write(tmp_path / "other", dataset.names(), make_info(class_names=["red", "green", "blue"]))
    with pytest.raises(UserError, match=r"class 0 is 'blue' in the training data and 'red' in .*other"):
        LabelMaps(tmp_path / "other", dataset, CLASSES)
    write(tmp_path / "renamed", dataset.names(), make_info(class_names=["blue", "lime", "red"]))
    renamed = LabelMaps(tmp_path / "renamed", dataset, CLASSES).renamed
    assert renamed == ["class 1 is 'green' in the data and 'lime' in the label maps"]
    write(tmp_path / "nameless", dataset.names(), make_info(class_names=None))
    (line,) = LabelMaps(tmp_path / "nameless", dataset, CLASSES).renamed
    assert line.startswith("the label maps have no class names, so their order cannot be compared with")


def replace_info(**changes):
    def spoil(folder):
        path = folder / "label_maps.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda folder: (folder / "label_maps.json").unlink(), ["label_maps.json", "make_label_maps.py"]),
        (
            lambda folder: (folder / "label_maps.json").write_text("[]"),
            ["label_maps.json is a list", "make the label maps again"],
        ),
        (replace_info(format=2), ["format 2, not 1"]),
        (replace_info(height=10_000), ["height is 10000; it must be a whole number from 1 to 256"]),
        (lambda folder: np.save(folder / "images.npy", np.array([b"a" * 5000] * 36)), ["names of 5000 bytes"]),
        (replace_info(height=3), ["classes.npy", "[36, 2, 4, 2]", "[36, 3, 4, 2]"]),
        (lambda folder: (folder / "scores.npy").unlink(), ["scores.npy", "No such file"]),
        (cut("scores.npy", 300), ["scores.npy is damaged"]),
        (lambda folder: np.save(folder / "images.npy", np.array(["a"] * 36, object)), ["images.npy is damaged"]),
        (lambda folder: np.save(folder / "scores.npy", np.zeros((36, 2, 4, 2))), ["scores.npy has float64"]),
    ],
)
def test_damaged_files_are_named(maps, dataset, spoil, parts):
    spoil(maps[0])
    with pytest.raises(UserError) as caught:
        LabelMaps(maps[0], dataset, CLASSES)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("classes", 3), ("scores", np.nan), ("scores", -0.1), ("scores", 1.1)])
def test_a_damaged_map_is_named_when_it_is_read(maps, dataset, name, value):
    array = np.load(maps[0] / f"{name}.npy")
    array[20, 1, 3, 1] = value
    np.save(maps[0] / f"{name}.npy", array)
    read = LabelMaps(maps[0], dataset, CLASSES)
    _ = read[19], read[21]
    with pytest.raises(UserError, match=r"label map of .*green/08\.png is damaged"):
        _ = read[20]


def test_a_folder_is_neither_overwritten_nor_left_incomplete(maps, dataset):
    folder = maps[0]
    with pytest.raises(UserError, match="maps exists"):
        write(folder, dataset.names(), make_info())
    other = folder.with_name("other")
    with pytest.raises(KeyboardInterrupt), create_label_maps(other, make_info(), dataset.names()):
        raise KeyboardInterrupt
    assert not other.exists()
    write(other, dataset.names(), make_info())
    LabelMaps(other, dataset, CLASSES)
    with pytest.raises(UserError, match="65536 classes, not 65537"):
        write(folder.with_name("many"), dataset.names(), make_info(num_classes=65537))


def test_a_folder_with_the_temporary_name_stays_as_it_is(tmp_path, dataset):
    """It may be of a user, or of another process."""
    notes = tmp_path / "maps.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"maps\.partial exists"):
        write(tmp_path / "maps", dataset.names(), make_info())
    assert notes.read_text() == "mine"


def test_a_full_disk_is_an_error_before_the_first_map(tmp_path, dataset, monkeypatch):
    def fail(file, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "maps", dataset.names(), make_info())
    assert not list(tmp_path.glob("maps*"))
