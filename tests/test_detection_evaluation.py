"""COCO's figures of detections that are known."""

import numpy as np
import paddle
from detection_runs import assert_told, load, run

from object_detection.datasets import index_annotations
from object_detection.detection import Detection
from object_detection.evaluation import evaluate, per_class_table

# As tools for annotation write them: ids with gaps, and not in order.
CATEGORIES = [{"id": 30, "name": "found"}, {"id": 7, "name": "missed"}, {"id": 100, "name": "absent"}]
BOX = [10, 20, 40, 60]


class FindsTheFirstClass(paddle.nn.Layer):
    """Finds one object of the class 0, on every image."""

    def forward(self, batch):
        x, y, width, height = BOX
        row = [0.0, 0.9, x, y, x + width, y + height]
        return {"bbox": paddle.to_tensor([row], "float32"), "bbox_num": paddle.to_tensor([1])}


def test_each_class_has_its_own_figures_whatever_the_order_of_the_ids():
    annotations = [
        {"id": number, "image_id": 5, "category_id": category, "bbox": BOX, "area": 2400, "iscrowd": 0}
        for number, category in ((1, 30), (2, 7))
    ]
    images = [{"id": 5, "file_name": "5.png", "width": 100, "height": 100}]
    coco = index_annotations({"images": images, "annotations": annotations, "categories": CATEGORIES})
    batch = {
        "image": paddle.zeros([1, 3, 100, 100]),
        "im_shape": paddle.to_tensor([[100.0, 100.0]]),
        "scale_factor": paddle.ones([1, 2]),
        "im_id": paddle.to_tensor([[5]]),
        "error": "",
    }
    found = evaluate(FindsTheFirstClass(), [batch], coco, with_masks=False)
    np.testing.assert_allclose(found.per_class["box"], [100, 0, np.nan])
    np.testing.assert_allclose(found.figures["box_AP"], 50)
    lines = per_class_table(coco, found.per_class, "val").splitlines()[2:]
    assert [line.split() for line in lines] == [["found", "1", "100.00"], ["missed", "1", "0.00"], ["absent", "0", "-"]]


def test_weights_that_number_the_classes_otherwise_are_not_evaluated(tmp_path, boxes_config):
    task, weights = Detection(load("-cfg", boxes_config)), tmp_path / "weights.pdparams"
    model = task.build_evaluation()

    def evaluate(*names):
        paddle.save({"model": model.state_dict(), "class_names": names}, str(weights))
        return run(boxes_config, "-eval", "-pretrained", weights)

    place = f"class 1 is 'green' in the validation data and 'blue' in {weights}"
    assert_told(lambda: evaluate("red", "blue", "green"), place, "order")
    assert evaluate("another", "green", "blue")["images"] == 3  # the same class by another name
