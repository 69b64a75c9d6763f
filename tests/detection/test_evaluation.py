"""COCO's average precision: against PaddleDetection's, for each class, and the same on any number of ranks."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import paddle
import pytest
from paddle import nn
from ppdet.metrics import COCOMetric
from pycocotools import mask as rle_masks

from common.errors import UserError
from common.runtime import distributed
from common.training.sampler import ShardedEvalSampler
from object_detection import evaluation
from object_detection.coco_file import index_annotations
from object_detection.evaluation import curve_columns, detect, evaluate, per_class_table
from tests.helpers.thread_ranks import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

HEIGHT, WIDTH = 60, 80
CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}, {"id": 12, "name": "blue"}, {"id": 1, "name": "no"}]
IMAGES = 7  # image 2 has no object, and on image 4 nothing is found


def encode(box) -> dict:
    """A box as a mask, without a corner, so that overlaps of boxes and masks differ."""
    x, y, w, h = map(int, np.ceil(box))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    mask[y : y + h // 3, x : x + w // 3] = 0
    return rle_masks.encode(np.asfortranarray(mask))


def text(rle: dict) -> dict:
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def random_box(rng) -> list[float]:
    w, h = rng.integers(60, 160, 2) / 4  # quarters are exact in the two decimals of COCO's results
    return [
        float(rng.integers(0, 4 * (WIDTH - w)) / 4),
        float(rng.integers(0, 4 * (HEIGHT - h)) / 4),
        float(w),
        float(h),
    ]


@pytest.fixture(scope="module")
def world():
    """Annotations, and for each image rows ``[n, 6]`` as PaddleDetection's models give them with their masks."""
    rng, annotations, found = np.random.default_rng(3), [], {}
    for image in range(IMAGES):
        rows = []
        for number in range(0 if image == 2 else 4):
            box, label = random_box(rng), int(rng.integers(0, 3))
            crowd = int(number == 3 and image % 2)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 * image, "category_id": CATEGORIES[label]["id"]}
                | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd, "segmentation": text(encode(box))}
            )
            for _ in range(int(rng.integers(0, 3)) if image != 4 else 0):
                moved = np.clip(np.array(box) + rng.integers(-8, 9, 4) / 4, [0, 0, 4, 4], [WIDTH, HEIGHT, 40, 40])
                rows.append((label if rng.random() < 0.9 else 3, moved))
        if image != 4:
            rows += [(int(rng.integers(0, 3)), np.array(random_box(rng))) for _ in range(2)]
        corners = [[x, y, min(x + w, WIDTH), min(y + h, HEIGHT)] for _, (x, y, w, h) in rows]
        scores = rng.integers(1, 32, len(rows)) / 32
        array = np.array([[label, s, *c] for (label, _), s, c in zip(rows, scores, corners, strict=True)], np.float32)
        boxes = [[x, y, u - x, v - y] for x, y, u, v in corners]
        found[10 * image] = array.reshape(-1, 6), [encode(box) for box in boxes]
    images = [{"id": 10 * n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(IMAGES)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, found


class Oracle(nn.Layer):
    """Gives what it is told to; the image holds its own number."""

    def __init__(self, found, with_masks=True):
        super().__init__()
        self.found, self.with_masks = found, with_masks

    def forward(self, inputs):
        assert not self.training
        rows, masks = self.found[int(inputs["image"][0, 0, 0, 0])]
        if not len(rows):  # as PaddleDetection stands in for nothing
            rows, masks = np.array([[0, 0, 0, 0, 1, 1]], np.float32), [encode([0, 0, 1, 1])]
        outputs = {"bbox": paddle.to_tensor(rows), "bbox_num": paddle.to_tensor([len(rows)], "int32")}
        return outputs | ({"mask": masks} if self.with_masks else {})


def batch_of(image_id: int) -> dict:
    return {
        "image": paddle.full([1, 3, 1, 1], float(image_id)),
        "im_shape": paddle.to_tensor([[2.0 * HEIGHT, 2.0 * WIDTH]]),
        "scale_factor": paddle.full([1, 2], 2.0),
        "im_id": paddle.to_tensor([[image_id]]),
    }


def run_evaluate(world, with_masks=True, **options):
    annotations, found = world
    loader = [batch_of(image["id"]) for image in annotations["images"]]
    return evaluate(Oracle(found, with_masks), loader, index_annotations(annotations), with_masks, **options)


# ---- metrics against others


def test_metrics_are_those_of_paddledetections_own_metric(world, tmp_path):
    annotations, found = world
    file = tmp_path / "all.json"
    file.write_text(json.dumps(annotations))
    with contextlib.redirect_stdout(io.StringIO()):
        metric = COCOMetric(str(file), output_eval=str(tmp_path))
        for image_id, (rows, masks) in found.items():
            if len(rows):
                outputs = {
                    "bbox": rows,
                    "bbox_num": [len(rows)],
                    "mask": np.stack([rle_masks.decode(m) for m in masks]),
                }
                metric.update({"im_id": np.array([[image_id]])}, outputs)
        metric.accumulate()
    metrics = run_evaluate(world).metrics
    assert metrics["images"] == IMAGES
    for theirs, ours in (("bbox", "box"), ("mask", "mask")):
        for name, value in zip(("AP", "AP50", "AP75", "APs", "APm"), metric.eval_results[theirs], strict=False):
            assert metrics[f"{ours}_{name}"] == 100.0 * value, (ours, name)
    assert 5 < metrics["box_AP"] < 95
    assert metrics["box_AP"] != metrics["mask_AP"]
    assert "box_APl" not in metrics, "there is no large object"


def metrics_of_one_class(world, category_id):
    """The metrics if there were only the objects of this class."""
    annotations, found = world
    alone = [entry for entry in annotations["annotations"] if entry["category_id"] == category_id]
    return run_evaluate(({**annotations, "annotations": alone}, found)).metrics


def test_the_ap_of_a_class_is_that_of_its_objects_alone(world):
    whole = run_evaluate(world)
    for number, category in enumerate(CATEGORIES[:3]):
        metrics = metrics_of_one_class(world, category["id"])
        for kind in ("box", "mask"):
            assert whole.per_class[kind][number] == pytest.approx(metrics[f"{kind}_AP"])
    assert np.isnan(whole.per_class["mask"][3]), "nothing is of the last class, and its detections spoil nothing"
    assert whole.metrics["mask_AP"] == pytest.approx(np.nanmean(whole.per_class["mask"]))


def test_the_curve_of_a_class_has_its_ap50_as_mean_and_its_scores_as_thresholds(world):
    _, found = world
    whole = run_evaluate(world)
    for number, category in enumerate(CATEGORIES[:3]):
        metrics = metrics_of_one_class(world, category["id"])
        for kind in ("box", "mask"):
            assert whole.curves[kind].precision[:, number].mean() == pytest.approx(metrics[f"{kind}_AP50"])
    curve = whole.curves["box"]
    assert curve.recall.tolist() == pytest.approx(list(range(101)))
    assert np.isnan(curve.precision[:, 3]).all(), "a class without objects"
    np.testing.assert_array_equal(np.isnan(curve.score[:, :3]), curve.precision[:, :3] == 0)
    scores = {round(float(row[1]), 5) for rows, _ in found.values() for row in rows}
    assert set(curve.score[~np.isnan(curve.score)]) <= scores


def test_the_table_of_curves_has_every_class_with_objects_and_the_mean(world):
    whole = run_evaluate(world)
    columns = curve_columns(whole.curves, [category["name"] for category in CATEGORIES])
    rows = list(zip(*columns.values(), strict=True))
    assert list(columns) == ["kind", "class", "recall", "precision", "score"]
    shown = [(kind, name) for kind in ("box", "mask") for name in ("red", "green", "blue", "")]
    assert [row[:2] for row in rows[::101]] == shown
    assert np.mean([row[3] for row in rows if row[:2] == ("mask", "")]) == pytest.approx(whole.metrics["mask_AP50"])


def test_a_model_without_masks_is_evaluated_by_its_boxes(world):
    boxes, both = run_evaluate(world, with_masks=False), run_evaluate(world)
    assert set(boxes.results) == {"bbox"}
    assert boxes.metrics == {name: value for name, value in both.metrics.items() if not name.startswith("mask")}


def test_a_model_that_finds_nothing_has_all_metrics_of_zero(world):
    annotations, found = world
    nothing = run_evaluate((annotations, {key: (np.zeros((0, 6), np.float32), []) for key in found}))
    assert {value for name, value in nothing.metrics.items() if name != "images"} == {0.0}
    assert nothing.results == {"bbox": [], "segm": []}


# ---- ranks


def test_metrics_are_the_same_on_any_number_of_ranks(world, monkeypatch):
    annotations, found = world
    expected = run_evaluate(world)
    ids = [image["id"] for image in annotations["images"]]

    def share():
        sampler = ShardedEvalSampler(len(ids), 1, distributed.rank(), distributed.world_size())
        loader = [batch_of(ids[key.index]) for (key,) in sampler]
        return evaluate(Oracle(found), loader, index_annotations(annotations), True)

    results = run_ranks(monkeypatch, [evaluation], share, 9)  # more than there are images
    assert all(result.metrics == expected.metrics for result in results)
    assert results[0].results == expected.results
    np.testing.assert_array_equal(results[0].per_class["box"], expected.per_class["box"])
    np.testing.assert_array_equal(results[0].curves["mask"].precision, expected.curves["mask"].precision)


def test_data_without_an_object_to_be_found_is_told(world):
    annotations, found = world
    crowds = [annotation for annotation in annotations["annotations"] if annotation["iscrowd"]]
    assert crowds
    with pytest.raises(UserError, match="no object; check EvalDataset"):
        run_evaluate(({**annotations, "annotations": crowds}, found))


# ---- one image


def test_detections_are_sorted_clipped_and_real():
    rows = [
        [1, 0.3, -5, -5, 20, 10],
        [-1, 0.9, 0, 0, 5, 5],
        [0, 0.0, 0, 0, 5, 5],
        [2, 0.8, 70, 50, 90, 70],
        [0, 0.7, 85, 0, 90, 9],
        [0, 0.3, 4, 4, 8, 8],
    ]
    masks = [{"number": number} for number in range(len(rows))]
    model = Oracle({0: (np.array(rows, np.float32), masks)})
    model.eval()
    found = detect(model, batch_of(0))
    assert found.boxes.tolist() == [[70, 50, 80, 60], [0, 0, 20, 10], [4, 4, 8, 8]]
    assert found.labels.tolist() == [2, 1, 0]
    assert found.scores.tolist() == pytest.approx([0.8, 0.3, 0.3])
    assert [mask["number"] for mask in found.masks] == [3, 0, 5]
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (np.float32, np.int64, np.float32)


def test_the_table_counts_objects_without_crowds_and_marks_classes_without(world):
    annotations, _ = world
    coco, found = index_annotations(annotations), run_evaluate(world)
    lines = per_class_table(coco, found.per_class, "val").splitlines()
    assert lines[0] == "val, each class, AP in percent"
    for number, category in enumerate(CATEGORIES):
        values = lines[2 + number].split()
        ids = [a["category_id"] for a in annotations["annotations"] if not a["iscrowd"]]
        assert values[:2] == [category["name"], str(ids.count(category["id"]))]
        assert values[2:] == (
            ["-", "-"] if number == 3 else [f"{found.per_class[k][number]:.2f}" for k in ("box", "mask")]
        )
