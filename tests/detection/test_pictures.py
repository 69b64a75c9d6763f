"""Boxes, masks and texts over images: where they are, in which colours, and that every text can be read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ImageDraw
from pycocotools import mask as rle_masks

from common.pictures.drawing import palette
from object_detection.pictures import detections_beside_truth, draw_detections

NAMES = ["cat", "dog", "a rather long class name"]
BOX = np.array([[200, 300, 500, 600]], np.float32)


def black(height, width):
    return np.zeros((height, width, 3), np.uint8)


def rle(height, width, box):
    mask = np.zeros((height, width), np.uint8, order="F")
    left, top, right, bottom = map(int, box)
    mask[top:bottom, left:right] = 1
    return rle_masks.encode(mask)


def crowd(height, width, count, classes=3, seed=0):
    """Boxes of all sizes anywhere, also over the edges of the image."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (count, 2)) * (width, height)
    sizes = rng.uniform(0.02, 0.5, (count, 2)) * (width, height)
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).astype(np.float32)
    scores = np.sort(rng.random(count))[::-1].astype(np.float32)
    return boxes, rng.integers(0, classes, count), scores


@pytest.fixture
def written(monkeypatch):
    """What is written into pictures: text, its bounding box, its colour, and the size of the picture."""
    entries = []
    write = ImageDraw.ImageDraw.text

    def record(self, place, text, **options):
        box = self.textbbox(place, text, font=options["font"], anchor=options["anchor"])
        entries.append(SimpleNamespace(text=text, box=np.array(box), fill=options["fill"], size=self.im.size))
        write(self, place, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return entries


def texts(written):
    return [entry.text for entry in written]


# ---- boxes and masks


def test_edges_are_drawn_inside_the_box_in_the_colour_of_its_class():
    picture = draw_detections(black(1000, 800), BOX, np.array([1]), np.array([0.9]), None, NAMES)
    assert picture.shape == (1000, 800, 3)
    colour = palette(4)[2]
    for edge in (picture[300:302, 350:500], picture[598:600, 350:500]):
        assert (edge == colour).all()
    for edge in (picture[310:590, 200:202], picture[310:590, 498:500]):
        assert (edge == colour).all()
    assert not picture[310:590, 210:490].any()
    assert not picture[650:].any()


def test_masks_are_translucent_and_outlined():
    image = np.full((1000, 800, 3), 200, np.uint8)
    before = image.copy()
    mask = rle(1000, 800, (250, 350, 400, 500))
    picture = draw_detections(image, BOX, np.array([0]), np.array([0.9]), [mask], NAMES)
    np.testing.assert_array_equal(image, before)
    colour = palette(4)[1]
    blend = np.broadcast_to(0.65 * 200 + 0.35 * colour, (130, 130, 3))
    np.testing.assert_allclose(picture[360:490, 260:390], blend, atol=1)
    np.testing.assert_array_equal(picture[350, 300], colour)
    np.testing.assert_array_equal(picture[420, 399], colour)
    assert (picture[520:590, 210:490] == 200).all()


def test_small_images_are_enlarged_and_boxes_and_masks_with_them():
    box, mask = np.array([[20, 30, 60, 90]], np.float32), rle(128, 100, (30, 40, 50, 80))
    picture = draw_detections(black(128, 100), box, np.array([0]), None, [mask], ["nucleus"])
    assert picture.shape == (640, 500, 3)
    colour = palette(20)[1]
    assert (picture[150:152, 110:290] == colour).all()
    ys, xs = np.nonzero(picture.any(-1))
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (150, 449, 100, 299)
    blend = np.broadcast_to(np.rint(0.35 * colour), (190, 90, 3))
    np.testing.assert_array_equal(picture[205:395, 155:245], blend)
    around = picture[155:445, 105:295].copy()
    around[40:250, 40:150] = 0  # the mask with its outline, some pixels of which may be outside
    assert not around.any()


def test_large_images_keep_their_size_and_get_thicker_lines():
    image = black(3000, 4000)
    picture = draw_detections(image, BOX * 4, np.array([0]), np.array([0.9]), None, NAMES)
    assert picture.shape == image.shape
    assert (picture[1300:2300, 800:804] == palette(4)[1]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (9000, 1), (7, 300)])
def test_images_too_small_for_any_text_are_drawn_without(size):
    height, width = size
    boxes = np.array([[0, 0, width, height]], np.float32)
    picture = draw_detections(black(*size), boxes, np.array([2]), np.array([0.9]), [rle(*size, boxes[0])], NAMES)
    assert picture.any()
    assert picture.shape[0] / height == picture.shape[1] / width


def test_no_object_gives_the_image():
    image = np.random.default_rng(0).integers(0, 256, (700, 700, 3)).astype(np.uint8)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    for masks in (None, []):
        np.testing.assert_array_equal(draw_detections(image, *nothing, masks, NAMES), image)


def test_an_empty_mask_and_a_box_without_area_are_no_error():
    empty = rle(700, 700, (0, 0, 0, 0))
    boxes = np.array([[50, 50, 50, 50]], np.float32)
    assert draw_detections(black(700, 700), boxes, np.array([0]), np.array([0.5]), [empty], NAMES).any()


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(700, 600\).*\(600, 700\)"):
        draw_detections(black(700, 600), BOX, np.array([0]), None, [rle(600, 700, BOX[0])], NAMES)


# ---- colours


def test_objects_of_the_only_class_have_different_colours():
    boxes = np.array([[left, 100, left + 80, 300] for left in range(0, 900, 100)], np.float32)
    picture = draw_detections(black(1000, 1000), boxes, np.zeros(9, np.int64), None, None, ["nucleus"])
    assert len({tuple(picture[200, int(box[0])]) for box in boxes}) == 9
    several = draw_detections(black(1000, 1000), boxes, np.zeros(9, np.int64), None, None, NAMES)
    assert {tuple(several[200, int(box[0])]) for box in boxes} == {tuple(palette(4)[1])}


def luminance(colour):
    """Relative luminance, as WCAG 2 defines it."""
    srgb = np.array(colour) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("classes", [1, 80])
def test_texts_have_the_contrast_that_wcag_demands(written, classes):
    names = [f"class {number}" for number in range(classes)]
    labels = np.arange(80) % classes
    boxes = np.array([[100 + 300 * (n % 10), 300 * (n // 10 + 1), 200 + 300 * (n % 10), 300 * (n // 10 + 1) + 90]
                      for n in range(80)], np.float32)  # fmt: skip
    picture = draw_detections(black(3000, 3400), boxes, labels, np.full(80, 0.5), None, names)
    assert len(written) == 80
    for entry in written:
        left, top = entry.box[:2].astype(int)
        dark, light = sorted([luminance(picture[top - 3, left - 3]), luminance(entry.fill)])
        assert (light + 0.05) / (dark + 0.05) >= 4.4


# ---- texts


def test_texts_are_class_and_score_or_what_there_is_to_say(written):
    one = black(1000, 1000), BOX, np.array([1])
    draw_detections(*one, np.array([0.876]), None, NAMES)
    draw_detections(*one, None, None, NAMES)
    draw_detections(*one[:2], np.array([0]), np.array([0.876]), None, ["nucleus"])
    assert texts(written) == ["dog 0.88", "dog", "0.88"]
    draw_detections(*one[:2], np.array([0]), None, None, ["nucleus"])
    assert len(written) == 3


@pytest.mark.parametrize(("height", "width"), [(128, 128), (640, 480), (3000, 4000), (60, 500)])
@pytest.mark.parametrize("count", [1, 30, 200])
def test_texts_stay_inside_the_picture_and_hide_no_other_text(written, height, width, count):
    picture = draw_detections(black(height, width), *crowd(height, width, count), None, NAMES)
    boxes = np.array([entry.box for entry in written])
    assert texts(written)[0].endswith(f"{crowd(height, width, count)[2][0]:.2f}"), "the best has its text"
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (picture.shape[1], picture.shape[0])).all()
    starts, ends = boxes[:, :2], boxes[:, 2:]
    meet = (np.maximum(starts[:, None], starts) < np.minimum(ends[:, None], ends)).all(-1)
    assert not meet[~np.eye(len(boxes), dtype=bool)].any()
    if count == 30 and min(height, width) > 100:
        assert len(written) >= 20


@pytest.mark.parametrize("side", [640, 1000, 3000])
def test_texts_are_as_readable_as_the_picture_is_large(written, side):
    draw_detections(black(side, side), BOX, np.array([1]), np.array([0.9]), None, NAMES)
    (entry,) = written
    height = entry.box[3] - entry.box[1]
    assert max(9, side / 80) <= height <= side / 35


def test_a_text_stands_at_its_box_and_rather_not_on_another_object(written):
    boxes = np.array([[200, 300, 300, 400], [195, 270, 400, 298]], np.float32)
    draw_detections(black(1000, 1000), boxes, np.array([0, 0]), np.array([0.9, 0.8]), None, NAMES)
    (left, top, right, bottom), _ = (entry.box for entry in written)
    assert bottom < 300 + 150
    assert top >= 400, "below: above is the other object"
    assert left >= 200
    assert right < 400


def test_names_too_long_for_the_picture_end_in_dots_before_the_score(written):
    names = ["x" * 500, "other"]
    draw_detections(black(640, 640), BOX, np.array([0]), np.array([0.9]), None, names)
    draw_detections(black(640, 640), BOX, np.array([0]), None, None, names)
    for entry, end in zip(written, ("… 0.90", "…"), strict=True):
        assert entry.text.startswith("xxxxxxxx")
        assert entry.text.endswith(end)
        assert entry.box[2] - entry.box[0] > 500


# ---- beside the truth


def test_detections_beside_truth(written):
    image = black(640, 640)
    boxes = np.array([[100, 100, 200, 200], [300, 300, 400, 400]], np.float32)
    masks = [rle(640, 640, box) for box in boxes]
    detections = SimpleNamespace(boxes=boxes, labels=np.array([0, 1]), scores=np.array([0.9, 0.3]), masks=masks)
    truth = SimpleNamespace(boxes=boxes[1:], labels=np.array([2]), masks=masks[1:])
    picture = detections_beside_truth(image, detections, truth, NAMES)
    assert texts(written) == ["cat 0.90", "a rather long class name", "detections, score at least 0.5", "truth"]
    assert picture.shape[1] > 2 * 640
    assert [bool((picture == colour).all(-1).any()) for colour in palette(4)[1:]] == [True, False, True]
    written.clear()
    detections.masks = truth.masks = None
    detections_beside_truth(image, detections, truth, NAMES, threshold=0.2)
    assert texts(written)[:2] == ["cat 0.90", "dog 0.30"]
