"""Colours, overlays, legends and index images: what their pixels are, and that nothing is cut off."""

from __future__ import annotations

import cv2
import numpy as np
import paddle
import pytest
from paddleseg.transforms import Compose, Normalize, Padding, Resize
from PIL import Image

from common.pictures.drawing import colour_map, index_png, overlay, palette, present_classes, side_by_side, with_legend
from semantic_segmentation.pictures import original_image, prediction_beside_truth

WHITE = np.array([255, 255, 255])
NAMES = ["background", "nucleus", "a rather long class name"]


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 250, (height, width, 3)).astype(np.uint8)


def is_white(pixels):
    return bool((pixels == 255).all())


# ---- colours


def test_colours_differ_from_each_other_and_from_black_and_white():
    colours = palette(1000).astype(int)
    with_both = np.concatenate([colours, [[0] * 3, [255] * 3]])
    assert len(np.unique(with_both, axis=0)) == 1002
    few = with_both[[*range(40), 1000, 1001]]
    distances = np.abs(few[:, None] - few[None]).max(-1)
    assert distances[~np.eye(len(few), dtype=bool)].min() >= 30


@pytest.mark.parametrize("classes", [0, 1, 20, 21, 150, 300])
def test_a_class_keeps_its_colour_whatever_the_number_of_classes(classes):
    assert palette(classes).dtype == np.uint8
    np.testing.assert_array_equal(palette(classes), palette(400)[:classes])


def test_the_shared_palette_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        palette(5)[0] = 0


def as_seen_without_green_cones(colours):
    """Deuteranopia in linear RGB, after Vienot, Brettel and Mollon (1999)."""
    linear = (colours / 255) ** 2.2
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    return 255 * np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)


def test_the_first_eight_colours_stay_apart_for_the_colour_blind():
    seen = as_seen_without_green_cones(palette(8).astype(float))
    distances = np.abs(seen[:, None] - seen[None]).max(-1)
    assert distances[~np.eye(8, dtype=bool)].min() > 25
    red_and_green = as_seen_without_green_cones(np.array([[160, 90, 0], [100, 120, 0]], float))
    assert np.abs(red_and_green[0] - red_and_green[1]).max() < 25  # the check can fail


# ---- label images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_colour_map_paints_each_label_and_unlabelled_pixels_black(dtype):
    labels = np.array([[0, 1, 2], [2, 3, 255]], dtype)
    painted = colour_map(labels, palette(3))
    assert painted.dtype == np.uint8
    for (y, x), label in np.ndenumerate(labels):
        np.testing.assert_array_equal(painted[y, x], palette(3)[label] if label < 3 else 0)


def test_colour_map_of_256_classes_and_of_negative_labels():
    np.testing.assert_array_equal(colour_map(np.arange(256, dtype=np.uint8)[None], palette(256))[0], palette(256))
    np.testing.assert_array_equal(colour_map(np.array([[-1]]), palette(3)), np.zeros((1, 1, 3)))


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 1.0])
def test_overlay_mixes_image_and_colours_except_where_there_is_no_class(opacity):
    image = random_image(20, 30)
    labels = np.random.default_rng(1).integers(0, 4, (20, 30)).astype(np.uint8)
    labels[:5] = 255
    before = image.copy()
    result = overlay(image, labels, palette(4), opacity)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(result[:5], image[:5])
    expected = (1 - opacity) * image[5:] + opacity * palette(4)[labels[5:]]
    np.testing.assert_allclose(result[5:], expected, atol=1)


def test_overlay_refuses_labels_of_another_size():
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(5, 4\)"):
        overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), int), palette(2))


def test_present_classes_are_sorted_by_size_and_leave_out_unlabelled_pixels():
    labels = np.array([[0, 3, 3, 255], [1, 1, 1, 255]], np.uint8)
    assert present_classes(labels, classes=5).tolist() == [1, 3, 0]
    assert present_classes(labels, np.full((3, 3), 4), np.array([[-1]]), classes=5).tolist() == [4, 1, 3, 0]
    assert present_classes(np.full((2, 2), 255), classes=5).tolist() == []


@pytest.mark.parametrize("classes", [2, 150, 256])
def test_index_images_keep_the_numbers_and_show_the_colours(tmp_path, classes):
    labels = np.random.default_rng(0).integers(0, classes, (30, 40))
    labels[0, :2] = 0, 255
    index_png(labels, palette(classes)).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown, colour_map(labels, palette(classes)))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "labels.png"))[..., ::-1], shown)


def test_index_images_of_more_than_256_classes_have_16_bits(tmp_path):
    labels = np.random.default_rng(0).integers(0, 1000, (30, 40)).astype(np.uint16)
    labels[0, 0] = 65535
    index_png(labels, palette(1000)).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(image), labels)


@pytest.mark.parametrize(("value", "classes"), [(256, 3), (-1, 3), (65536, 300)])
def test_index_images_refuse_numbers_that_do_not_fit(value, classes):
    with pytest.raises(ValueError, match=f"{value}.* do not fit"):
        index_png(np.full((2, 2), value), palette(classes))


# ---- legends


@pytest.mark.parametrize(("height", "width"), [(128, 128), (1000, 756), (756, 1000), (40, 600), (600, 40), (1, 1)])
@pytest.mark.parametrize("classes", [1, 3, 40])
def test_legend_shows_all_colours_beside_or_below_the_untouched_picture(height, width, classes):
    picture = random_image(height, width)
    names = [NAMES[number % 3] for number in range(classes)]
    result = with_legend(picture, names, palette(classes))
    np.testing.assert_array_equal(result[:height, :width], picture)
    panel = result[:, width:] if width <= height else result[height:]
    pixels, counts = np.unique(panel.reshape(-1, 3), axis=0, return_counts=True)
    painted = dict(zip(map(tuple, pixels.tolist()), counts.tolist(), strict=True))
    side = min(max((height * width) ** 0.5 / 36, 11), 40) - 2
    for colour in palette(classes).tolist():
        assert painted[tuple(colour)] > 0.8 * side**2
    assert is_white(result[-1, width:])
    assert is_white(result[height:, -1])


def test_legend_is_as_readable_as_the_picture_is_large():
    heights = []
    for side in (128, 1000):
        panel = with_legend(np.zeros((side, side, 3), np.uint8), ["HHHH"], np.array([[255, 0, 0]], np.uint8))[:, side:]
        heights.append(np.any((panel < 100).all(-1)[:, 40:], axis=1).sum())
    assert heights[0] >= 8  # pixels of a capital letter
    assert heights[1] >= 18


def test_long_legends_of_small_pictures_grow_downwards():
    result = with_legend(random_image(128, 128), ["class"] * 100, palette(100))
    assert result.shape[1] < 4 * 128
    assert result.shape[0] > 128


def test_a_picture_without_classes_gets_no_legend():
    picture = random_image(10, 10)
    np.testing.assert_array_equal(with_legend(picture, [], palette(0)), picture)


# ---- several pictures


def test_pictures_stand_side_by_side_below_their_titles():
    pictures = [random_image(50, 70), random_image(80, 40), random_image(30, 90)]
    result = side_by_side(pictures, ["image", "a title that is wider than its picture", "天空"])
    top = result.shape[0] - 80 - 7  # the tallest ends above the margin
    found = [
        next(x for x in range(result.shape[1]) if np.array_equal(result[top : top + h, x : x + w], picture))
        for picture in pictures
        for h, w in [picture.shape[:2]]
    ]
    assert found == sorted(found)
    assert found[2] - found[1] > 150  # the title has its room
    assert is_white(result[:, :7])
    assert is_white(result[:, -7:])
    assert not is_white(result[:top])


# ---- semantic segmentation


def transformed(image, *transforms):
    data = Compose([*transforms, Normalize()], to_rgb=False)({"img": image.astype(np.float32)})
    return paddle.to_tensor(data["img"][np.newaxis]), data["trans_info"], Normalize().mean, Normalize().std


@pytest.mark.parametrize("transforms", [[], [Padding((50, 70))], [Resize((60, 40)), Padding((61, 70))]])
def test_what_paddlesegs_transforms_did_is_undone(transforms):
    image = np.repeat(np.repeat(random_image(2, 3), 10, axis=0), 10, axis=1)
    result = original_image(*transformed(image, *transforms))
    assert result.dtype == np.uint8
    assert result.shape == image.shape
    np.testing.assert_array_equal(result[5::10, 5::10], image[5::10, 5::10])
    if not any(isinstance(transform, Resize) for transform in transforms):
        np.testing.assert_array_equal(result, image)


def test_values_beyond_those_of_images_become_black_and_white():
    wild = paddle.to_tensor([[[[99.0, -99.0]]] * 3]).reshape([1, 3, 1, 2])
    assert original_image(wild, [], [0.5] * 3, [0.5] * 3).tolist() == [[[255] * 3, [0] * 3]]


def test_prediction_beside_truth():
    label = np.zeros((40, 60), np.uint8)
    label[:10] = 1
    label[-5:] = 255
    prediction = np.zeros((40, 60), np.uint8)
    prediction[:, :30] = 2
    image = random_image(40, 60)
    picture = prediction_beside_truth(image, label, prediction, NAMES)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in palette(3).tolist()} <= colours
    only_background = prediction_beside_truth(image, label * 0, prediction * 0, NAMES)
    assert tuple(palette(3)[2].tolist()) not in {tuple(colour) for colour in only_background.reshape(-1, 3).tolist()}
