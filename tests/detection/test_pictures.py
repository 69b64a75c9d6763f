"""Boxes, masks and labels over images: their places and colors."""

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


@pytest.fixture
def written(monkeypatch):
    """The labels in pictures: text and bounding box."""
    entries = []
    write = ImageDraw.ImageDraw.text

    def record(self, place, text, **options):
        entries.append((text, self.textbbox(place, text, font=options["font"], anchor=options["anchor"])))
        write(self, place, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return entries


def test_boxes_are_drawn_inside_and_masks_are_translucent_with_an_outline():
    image = np.full((1000, 800, 3), 200, np.uint8)
    before = image.copy()
    mask = rle(1000, 800, (250, 350, 400, 500))
    picture = draw_detections(image, BOX, np.array([0]), np.array([0.9]), [mask], NAMES)
    np.testing.assert_array_equal(image, before)
    color = palette(4)[1]
    for edge in (picture[300:302, 350:500], picture[598:600, 350:500], picture[310:590, 200:202]):
        assert (edge == color).all()
    blend = np.broadcast_to(0.65 * 200 + 0.35 * color, (130, 130, 3))
    np.testing.assert_allclose(picture[360:490, 260:390], blend, atol=1)
    np.testing.assert_array_equal(picture[350, 300], color)
    assert (picture[520:590, 210:490] == 200).all()
    assert (picture[650:] == 200).all()


def test_small_images_are_enlarged_with_boxes_and_masks():
    box, mask = np.array([[20, 30, 60, 90]], np.float32), rle(128, 100, (30, 40, 50, 80))
    picture = draw_detections(black(128, 100), box, np.array([0]), None, [mask], ["nucleus"])
    assert picture.shape == (640, 500, 3)
    color = palette(20)[1]
    assert (picture[150:152, 110:290] == color).all()
    ys, xs = np.nonzero(picture.any(-1))
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (150, 449, 100, 299)
    np.testing.assert_array_equal(picture[205:395, 155:245], np.broadcast_to(np.rint(0.35 * color), (190, 90, 3)))


@pytest.mark.parametrize("size", [(1, 1), (9000, 1), (7, 300)])
def test_images_may_be_tiny_or_narrow(size):
    height, width = size
    boxes = np.array([[0, 0, width, height]], np.float32)
    picture = draw_detections(black(*size), boxes, np.array([2]), np.array([0.9]), [rle(*size, boxes[0])], NAMES)
    assert picture.any()
    assert picture.shape[0] / height == picture.shape[1] / width


def test_no_object_gives_the_image_and_an_empty_one_is_no_error():
    image = np.random.default_rng(0).integers(0, 256, (700, 700, 3)).astype(np.uint8)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    for masks in (None, []):
        np.testing.assert_array_equal(draw_detections(image, *nothing, masks, NAMES), image)
    empty, boxes = rle(700, 700, (0, 0, 0, 0)), np.array([[50, 50, 50, 50]], np.float32)
    assert draw_detections(black(700, 700), boxes, np.array([0]), np.array([0.5]), [empty], NAMES).any()
    with pytest.raises(ValueError, match=r"\(700, 600\).*\(600, 700\)"):
        draw_detections(black(700, 600), BOX, np.array([0]), None, [rle(600, 700, BOX[0])], NAMES)


def test_objects_of_the_only_class_have_different_colors():
    boxes = np.array([[left, 100, left + 80, 300] for left in range(0, 900, 100)], np.float32)
    picture = draw_detections(black(1000, 1000), boxes, np.zeros(9, np.int64), None, None, ["nucleus"])
    assert len({tuple(picture[200, int(box[0])]) for box in boxes}) == 9
    several = draw_detections(black(1000, 1000), boxes, np.zeros(9, np.int64), None, None, NAMES)
    assert {tuple(several[200, int(box[0])]) for box in boxes} == {tuple(palette(4)[1])}


def test_labels_are_class_and_score_as_far_as_there_are_any(written):
    one = black(1000, 1000), BOX, np.array([1])
    draw_detections(*one, np.array([0.876]), None, NAMES)
    draw_detections(*one, None, None, NAMES)
    draw_detections(*one[:2], np.array([0]), np.array([0.876]), None, ["nucleus"])
    draw_detections(*one[:2], np.array([0]), None, None, ["nucleus"])
    assert [text for text, _ in written] == ["dog 0.88", "dog", "0.88"]


def test_labels_of_many_objects_stay_inside_the_picture_and_cover_no_other_label(written):
    rng = np.random.default_rng(0)
    centers, sizes = (rng.uniform(low, high, (100, 2)) * (480, 640) for low, high in ((0, 1), (0.02, 0.5)))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1).astype(np.float32)
    scores = np.sort(rng.random(100))[::-1].astype(np.float32)
    draw_detections(black(640, 480), boxes, rng.integers(0, 3, 100), scores, None, NAMES)
    places = np.array([box for _, box in written])
    assert len(places) >= 5
    starts, ends = places[:, :2], places[:, 2:]
    assert (starts >= 0).all()
    assert (ends <= (480, 640)).all()
    meet = (np.maximum(starts[:, None], starts) < np.minimum(ends[:, None], ends)).all(-1)
    assert not meet[~np.eye(len(places), dtype=bool)].any()


def test_detections_beside_truth(written):
    image = black(640, 640)
    boxes = np.array([[100, 100, 200, 200], [300, 300, 400, 400]], np.float32)
    masks = [rle(640, 640, box) for box in boxes]
    detections = SimpleNamespace(boxes=boxes, labels=np.array([0, 1]), scores=np.array([0.9, 0.3]), masks=masks)
    truth = SimpleNamespace(boxes=boxes[1:], labels=np.array([2]), masks=masks[1:])
    picture = detections_beside_truth(image, detections, truth, NAMES)
    assert [text for text, _ in written] == [
        "cat 0.90",
        "a rather long class name",
        "detections, score at least 0.5",
        "ground truth",
    ]
    assert picture.shape[1] > 2 * 640
    assert [bool((picture == color).all(-1).any()) for color in palette(4)[1:]] == [True, False, True]
    written.clear()
    detections.masks = truth.masks = None
    detections_beside_truth(image, detections, truth, NAMES, threshold=0.2)
    assert [text for text, _ in written[:2]] == ["cat 0.90", "dog 0.30"]


def test_a_detection_and_its_true_object_have_the_same_color():
    boxes = np.array([[left, 100, left + 80, 200] for left in (50, 250, 450)], np.float32)
    labels = np.zeros(3, np.int64)
    found = SimpleNamespace(boxes=boxes[:2], labels=labels[:2], scores=np.array([0.9, 0.8]), masks=None)
    truth = SimpleNamespace(boxes=boxes[[2, 1, 0]] + 10, labels=labels, masks=None)
    picture = detections_beside_truth(black(640, 640), found, truth, ["nucleus"])
    left, right = (picture[:, half] for half in (slice(None, 670), slice(670, None)))
    colors = palette(20)[1:6]
    # The third true object, which is not detected, has a color of its own.
    assert [bool((left == color).all(-1).any()) for color in colors] == [True, True, False, False, False]
    assert [bool((right == color).all(-1).any()) for color in colors] == [True, True, True, False, False]
    places = [[np.nonzero((half == color).all(-1))[1].mean() for color in colors[:2]] for half in (left, right)]
    assert np.diff(places[0]) == pytest.approx(np.diff(places[1]), abs=3)
