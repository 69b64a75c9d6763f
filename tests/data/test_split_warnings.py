"""What two splits of a data set may have in common by mistake."""

from common.data.split_warnings import split_warnings


def test_classes_of_one_name_and_images_of_both_splits_are_named():
    names, repeated = split_warnings(["sky", "cat", "cat"], ["a.png", "x/../b.png", "c.png"], ["./b.png", "d.png"])
    assert names == "classes 1, 2 are all called 'cat'"
    assert repeated.startswith("1 images are both in the training and in the validation data, such as b.png; ")
    assert split_warnings(None, [b"train/a.png"], [b"val/a.png"]) == []
