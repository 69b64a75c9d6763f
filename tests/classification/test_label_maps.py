"""Label maps in files: what is written is read back, and what is missing, damaged or of other data is named."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from common.errors import UserError
from image_classification.datasets import ArrayDataset, build_dataset
from image_classification.label_maps import LabelMapInfo, LabelMaps, LabelMapWriter

CLASSES = 3
NAMES = ["blue", "green", "red"]


def make_info(images=36, **changes):
    values = {"images": images, "height": 2, "width": 4, "top": 2, "num_classes": CLASSES, "class_names": NAMES}
    values |= {"model": "pale_nano", "weights": "best.pdparams", "sha256": "0" * 64, "image_size": 64}
    return LabelMapInfo(**{**values, **changes})


def make_arrays(info, seed=0):
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((*info.shape[:3], info.num_classes)), -1)[..., : info.top]
    scores = -np.sort(-rng.dirichlet(np.ones(info.num_classes), info.shape[:3]), -1)[..., : info.top]
    return order.astype(np.int64), scores.astype(np.float32)


def write(folder, names, info, arrays):
    writer = LabelMapWriter(folder, info, names)
    for first in range(0, info.images, 10):  # the last batch is smaller
        writer.write(first, *(array[first : first + 10] for array in arrays))
    assert not folder.exists()
    writer.close()


@pytest.fixture
def dataset(shapes):
    return build_dataset("folder", shapes, "train")


@pytest.fixture
def maps(tmp_path, dataset):
    """A folder of label maps of :func:`dataset`, and its arrays."""
    info = make_info()
    arrays = make_arrays(info)
    write(tmp_path / "maps", dataset.names(), info, arrays)
    return tmp_path / "maps", arrays


def test_what_is_written_is_read_back(maps, dataset):
    folder, (classes, scores) = maps
    read = LabelMaps(folder, dataset, CLASSES)
    assert read.info == make_info()
    assert not list(folder.parent.glob("*.partial"))
    for index in range(36):
        own_classes, own_scores = read[index]
        assert (own_classes.dtype, own_scores.dtype) == (np.int64, np.float32)
        np.testing.assert_array_equal(own_classes, classes[index].reshape(8, 2))
        np.testing.assert_array_equal(own_scores, scores[index].reshape(8, 2).astype(np.float16))


def test_numpy_alone_reads_the_files(maps):
    folder, (classes, _) = maps
    info = json.loads((folder / "label_maps.json").read_text())
    assert (info["format"], info["num_classes"], info["class_names"]) == (1, 3, NAMES)
    arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("images", "classes", "scores")}
    assert arrays["images"][0] == b"train/blue/00.png"
    np.testing.assert_array_equal(arrays["classes"], classes)
    assert (arrays["classes"].dtype, arrays["scores"].dtype) == (np.uint16, np.float16)
    assert arrays["scores"].shape == (info["images"], info["height"], info["width"], info["top"])


def test_maps_are_found_by_name_whatever_their_order_and_number(maps, dataset, shapes):
    folder, (classes, _) = maps
    lines = ["train/red/03.png 2", "train/blue/07.png 0", "train/green/00.png 1"]
    (shapes / "train_list.txt").write_text("\n".join(lines))
    some = build_dataset("list", shapes, "train")
    read = LabelMaps(folder, some, CLASSES)
    for index, row in enumerate((27, 7, 12)):
        np.testing.assert_array_equal(read[index][0], classes[row].reshape(8, 2))


@pytest.mark.parametrize(("missing", "others"), [([5], ""), ([5, 6, 30], "and 2 others")])
def test_an_image_without_a_map_is_named_at_once(tmp_path, dataset, missing, others):
    info = make_info(36 - len(missing))
    write(tmp_path / "maps", np.delete(dataset.names(), missing), info, make_arrays(info))
    with pytest.raises(UserError, match=r"blue/05\.png") as caught:
        LabelMaps(tmp_path / "maps", dataset, CLASSES)
    assert "\n" not in str(caught.value)
    assert others in str(caught.value)
    assert "make_label_maps.py" in str(caught.value)


def test_images_in_memory_are_known_by_their_content(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 8, 8), np.uint8), np.arange(5) % CLASSES
    dataset = ArrayDataset(images, labels, None, CLASSES, "digits")
    info = make_info(5)
    write(tmp_path / "maps", dataset.names(), info, make_arrays(info))
    LabelMaps(tmp_path / "maps", dataset, CLASSES)
    images = images.copy()
    images[3, 0, 0] ^= 1
    with pytest.raises(UserError, match="digits image 3;"):
        LabelMaps(tmp_path / "maps", ArrayDataset(images, labels, None, CLASSES, "digits"), CLASSES)


def test_classes_must_be_the_models(maps, dataset, tmp_path):
    with pytest.raises(UserError, match="3 classes, the model has 4"):
        LabelMaps(maps[0], dataset, 4)
    info = make_info(class_names=["red", "green", "blue"])
    write(tmp_path / "other", dataset.names(), info, make_arrays(info))
    with pytest.raises(UserError, match=r"class 0 is 'blue' in the training data and 'red' in .*other"):
        LabelMaps(tmp_path / "other", dataset, CLASSES)
    info = make_info(class_names=None)
    write(tmp_path / "nameless", dataset.names(), info, make_arrays(info))
    LabelMaps(tmp_path / "nameless", dataset, CLASSES)


def replace_info(**changes):
    def spoil(folder):
        path = folder / "label_maps.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def save(name, array):
    return lambda folder: np.save(folder / name, array, allow_pickle=True)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "label_maps.json").unlink(), ["label_maps.json", "make_label_maps.py"]),
        (cut("label_maps.json", 40), ["label_maps.json", "no JSON"]),
        (lambda folder: (folder / "label_maps.json").write_bytes(b"\xff\xfe\x00"), ["label_maps.json", "no JSON"]),
        (lambda folder: (folder / "label_maps.json").write_text("[]"), ["format 'list'"]),
        (replace_info(format=2), ["format 2, not 1"]),
        (replace_info(height=0), ["height is 0"]),
        (replace_info(top="5"), ["top is '5'"]),
        (replace_info(class_names=[1, 2, 3]), ["class_names is [1, 2, 3]"]),
        (replace_info(sha256=None), ["sha256 is None"]),
        (replace_info(height=3), ["classes.npy", "[36, 2, 4, 2]", "[36, 3, 4, 2]"]),
        (replace_info(images=35), ["images.npy", "[36]", "[35]"]),
        (lambda folder: (folder / "scores.npy").unlink(), ["scores.npy", "No such file"]),
        (cut("scores.npy", 0), ["scores.npy is damaged"]),
        (cut("scores.npy", 50), ["scores.npy is damaged"]),
        (cut("scores.npy", 300), ["scores.npy is damaged"]),
        (cut("classes.npy", -1), ["classes.npy is damaged"]),
        (lambda folder: (folder / "images.npy").write_bytes(b"PK\x03\x04" + bytes(99)), ["images.npy is damaged"]),
        (save("images.npy", np.array(["a"] * 36, object)), ["images.npy is damaged"]),
        (save("scores.npy", np.zeros((36, 2, 4, 2))), ["scores.npy holds float64", "not float16"]),
        (save("classes.npy", np.zeros((36, 2, 4, 2), np.int16)), ["classes.npy holds int16", "not uint16"]),
    ],
)
def test_what_is_damaged_is_named_at_once(maps, dataset, spoil, named):
    spoil(maps[0])
    with pytest.raises(UserError) as caught:
        LabelMaps(maps[0], dataset, CLASSES)
    assert "\n" not in str(caught.value)
    for part in named:
        assert part in str(caught.value)


def test_broken_headers_are_errors_of_the_user(maps, dataset):
    path, rng = maps[0] / "scores.npy", np.random.default_rng(0)
    content = path.read_bytes()
    for _ in range(300):
        broken = bytearray(content)
        for place in rng.integers(0, 128, rng.integers(1, 6)):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        with contextlib.suppress(UserError):
            LabelMaps(maps[0], dataset, CLASSES)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("classes", 3, "it has class 3 of 3"),
        ("scores", np.nan, "no probabilities"),
        ("scores", np.inf, "no probabilities"),
        ("scores", -0.1, "no probabilities"),
        ("scores", 1.1, "no probabilities"),
    ],
)
def test_a_damaged_map_is_named_when_it_is_read(maps, dataset, name, value, reason):
    array = np.load(maps[0] / f"{name}.npy")
    array[20, 1, 3, 1] = value
    np.save(maps[0] / f"{name}.npy", array)
    read = LabelMaps(maps[0], dataset, CLASSES)
    _ = read[19], read[21]
    with pytest.raises(UserError, match=r"label map of .*green/08\.png is damaged") as caught:
        _ = read[20]
    assert reason in str(caught.value)


def test_a_folder_is_not_overwritten_but_what_an_interruption_left_is(maps, dataset):
    folder = maps[0]
    with pytest.raises(UserError, match="maps exists"):
        LabelMapWriter(folder, make_info(), dataset.names())
    other = folder.with_name("other")
    LabelMapWriter(other, make_info(), dataset.names())  # never closed
    assert not other.exists()
    write(other, dataset.names(), make_info(), maps[1])
    np.testing.assert_array_equal(LabelMaps(other, dataset, CLASSES)[3][0], maps[1][0][3].reshape(8, 2))


def test_more_classes_than_can_be_counted_are_refused(tmp_path, dataset):
    with pytest.raises(UserError, match="65536 classes, not 65537"):
        LabelMapWriter(tmp_path / "maps", make_info(num_classes=65537), dataset.names())
