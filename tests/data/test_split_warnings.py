"""What two splits of a data set may have in common by mistake."""

from common.data.split_warnings import normalization_warning, split_warnings


def test_classes_of_one_name_and_images_of_both_splits_are_named():
    names, repeated = split_warnings(["sky", "cat", "cat"], ["a.png", "x/../b.png", "c.png"], ["./b.png", "d.png"])
    assert names == "classes 1, 2 are all called 'cat'"
    assert repeated.startswith("1 images are both in the training and in the validation data, such as b.png; ")
    assert split_warnings(None, [b"train/a.png"], [b"val/a.png"]) == []


def test_images_that_are_listed_twice_are_named():
    (line,) = split_warnings(None, ["a", "b", "./b"], ["c"])
    assert line == "1 images are more than once in the training data, such as b"


def test_copies_of_training_images_are_named(tmp_path):
    for name, content in {"a": b"1" * 5000, "b": b"1" * 4999 + b"2", "c": b"3", "copy of a": b"1" * 5000}.items():
        (tmp_path / name).write_bytes(content)
    (line,) = split_warnings(None, [b"a", b"b", b"c"], [b"copy of a", b"c", b"missing"], tmp_path)[1:]
    assert line.startswith("1 images of the validation data are copies of training images, such as copy of a of a; ")


def test_equal_images_of_one_split_and_their_classes_are_named(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1" if name != "c" else b"2")
    for images, labels, named in (
        (["a", "b", "c"], [0, 1, 1], "a"),
        (["c", "c"], [0, 1], "c"),
        (["b", "a"], [0, 0], ""),
    ):
        for split, other in (("training", "validation"), ("validation", "training")):
            data = {split: images, other: []}
            lines = split_warnings(
                ["cat", "dog"], **data, root=tmp_path, labels=(labels, []) if split == "training" else ([], labels)
            )
            assert "c" in images or lines == [
                f"1 images of the {split} data are copies of others there, such as b of a"
            ]
            several = f"the {split} data has {named}, itself or a copy, in several classes: cat, dog"
            assert (lines[-1] == several) == bool(named)


def test_folders_whose_images_have_labels_of_other_classes_are_named():
    train, val = ["a/cat/1", "a/dog/1", "a/dog/2"], ["b/dog/3", "b/cat/4"]
    assert split_warnings(["cat", "dog"], train, val, labels=([0, 1, 1], [1, 0])) == []
    (line,) = split_warnings(None, train, val, labels=([0, 1, 1], [0, 1]))
    assert line.startswith("images in folders called cat have the label 0 in the training data and 1 in the validation")
    (line,) = split_warnings(["dog", "cat"], train, val, labels=([0, 1, 1], [1, 0]))
    assert line.startswith("images in folders called cat have the label 0, which is called dog; ")
    assert split_warnings(["dog", "cat"], ["cat/1", "dog/1", "dog/2"], ["all/3"], labels=([0, 1, 0], [1])) == []


def test_splits_that_are_normalized_differently_are_named():
    assert normalization_warning(([0.5, 0.5, 0.5], 0.25), (0.5, [0.25, 0.25, 0.25])) == []
    assert normalization_warning(([0.5, 0.5], 0.25), ([0.5, 0.5, 0.5], 0.25))  # one of them is an error of its own
    (line,) = normalization_warning(([0.1], [0.5]), ([0.5], [0.25]))
    assert "mean [0.1] and std [0.5], validation images with mean [0.5] and std [0.25]" in line
