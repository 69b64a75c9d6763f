"""Models of PaddleDetection train and detect with the patches; each test names the patch that it fails without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn
from PIL import Image

from common.toolkits import ppdet_patches  # noqa: F401 (applies the patches)
from common.toolkits.patches import is_patched_version
from tests.helpers.tiny_detection import build, make_batch

# isort: split
from ppdet.modeling.heads.roi_extractor import RoIAlign
from ppdet.modeling.post_process import MaskPostProcess
from ppdet.modeling.proposal_generator import target_layer
from ppdet.utils import visualizer


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Callable[[str], nn.Layer]:
    """Build each model once; a test gets it with its first weights, in training mode, without gradients."""
    built: dict[str, tuple[nn.Layer, dict]] = {}

    def get(name: str) -> nn.Layer:
        if name not in built:
            model = build(tmp_path_factory.mktemp(name), name)
            built[name] = model, {key: tensor.clone() for key, tensor in model.state_dict().items()}
        model, weights = built[name]
        model.set_state_dict(weights)
        model.clear_gradients()
        model.train()
        return model

    return get


def learn(model: nn.Layer, batch: dict) -> dict[str, float]:
    """Compute losses and gradients; all are finite."""
    losses = model(batch)
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or np.isfinite(parameter.grad.numpy()).all(), name
    losses = {name: float(loss) for name, loss in losses.items()}
    assert np.isfinite(list(losses.values())).all()
    return losses


@pytest.mark.parametrize(
    "images", [{"objects": [2, 1], "crowds": 1}, {"objects": [0, 2], "flat": True}, {"objects": [0]}], ids=str
)
@pytest.mark.parametrize("model", ["mask_rcnn", "cascade_mask_rcnn", "retinanet"])
def test_models_learn_from_images_with_and_without_objects(models, model, images):
    """``_concat``; with Paddle 2.6 ``_concat_empty`` and ``_bbox2delta``."""
    losses = learn(models(model), make_batch(**images))
    assert losses["loss"] == pytest.approx(sum(losses.values()) - losses["loss"], rel=1e-5)
    if not sum(images["objects"]):
        assert all(loss == 0.0 for name, loss in losses.items() if "reg" in name or "mask" in name)


def test_a_crowd_is_neither_object_nor_background():
    """``_label_box``."""
    boxes = paddle.to_tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 50.0]])
    crowd = paddle.to_tensor([[0], [1]], "int32")
    rois, labels, *_ = target_layer.generate_proposal_target(
        [boxes], [paddle.zeros([2, 1], "int32")], [boxes], 8, 1.0, 0.5, 0.5, 1, is_crowd=[crowd]
    )
    for box, label in zip(rois[0].tolist(), labels[0].tolist(), strict=True):
        assert label == (0 if box == boxes[0].tolist() else 1)


def test_one_proposal_per_image_is_enough(models):
    """``_ones``."""
    model = models("mask_rcnn")
    generator = model.rpn_head.train_proposal
    before = generator.pre_nms_top_n, generator.post_nms_top_n
    generator.pre_nms_top_n = generator.post_nms_top_n = 1
    learn(model, make_batch([0]))
    generator.pre_nms_top_n, generator.post_nms_top_n = before


def test_models_learn_when_no_proposal_has_an_area(models):
    """``_align``."""
    model = models("mask_rcnn")
    deltas = np.zeros(model.rpn_head.rpn_rois_delta.bias.shape, "float32")
    deltas[0::4] = 1e4  # moves every proposal out of the image, where it is clipped
    model.rpn_head.rpn_rois_delta.bias.set_value(deltas)
    learn(model, make_batch([2, 0]))


@pytest.mark.parametrize("aligned", [True, False])
def test_boxes_without_area_have_zero_features_and_the_others_are_unchanged(aligned):
    """``_align``; unless aligned, only boxes of NaN have no area."""

    def align(boxes: list[list[float]], function: Callable = RoIAlign.forward) -> np.ndarray:
        rng = np.random.default_rng(0)
        maps = [paddle.to_tensor(rng.standard_normal((1, 2, side, side)).astype("float32")) for side in (16, 8)]
        extractor = RoIAlign(4, [0.25, 0.125], end_level=1, canconical_level=3, canonical_size=32)
        extractor.aligned = aligned  # not an argument, because a clone of PaddleDetection ignores that
        counts = paddle.to_tensor([len(boxes)], "int32")
        return function(extractor, maps, [paddle.to_tensor(boxes, "float32")], counts).numpy()

    good = [[0.0, 0.0, 8.0, 8.0], [3.0, 5.0, 60.0, 50.0], [20.5, 20.5, 21.5, 22.0]]
    empty = [[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 1.0, 20.0], [np.nan, 0.0, 8.0, 8.0]]
    if not aligned:
        good, empty = [*good, *empty[:2]], [[np.nan] * 4] * 5
    features = align([box for pair in zip(good, empty, strict=True) for box in pair])
    np.testing.assert_array_equal(features[0::2], align(good, RoIAlign.forward_without_patch))
    assert not features[1::2].any()


def test_masks_to_learn_are_the_polygons_within_the_boxes():
    square = [[np.array([0, 0, 8, 0, 8, 8, 0, 8], "float32")]]
    boxes, owners = paddle.to_tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 8.0, 16.0]]), paddle.zeros([2], "int64")
    rois, counts, classes, masks, index, weights = target_layer.generate_mask_target(
        [square, []], [boxes, boxes], [paddle.to_tensor([1, 0], "int32"), paddle.ones([2], "int32")], [owners] * 2, 1, 4
    )
    assert [part.tolist() for part in rois] == [boxes[1:].tolist(), boxes[:1].tolist()]
    assert (counts.tolist(), classes.tolist(), weights.tolist()) == ([1, 1], [0, 0], [1.0, 0.0])
    assert index.flatten().tolist() == [1, 0]
    assert masks[0].tolist() == [[1, 1, 1, 1]] * 2 + [[0, 0, 0, 0]] * 2


def detect(model: nn.Layer, images: np.ndarray, shapes: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and masks of each image, whose original sizes are ``shapes``."""
    sizes = np.full((len(images), 2), images.shape[2:], "float32")
    batch = {"image": images, "im_shape": sizes, "scale_factor": sizes / np.array(shapes, "float32")}
    with paddle.no_grad():
        outputs = model({name: paddle.to_tensor(array) for name, array in batch.items()})
    ends = np.cumsum(outputs["bbox_num"].numpy())
    boxes, masks = (np.split(outputs[name].numpy(), ends[:-1]) for name in ("bbox", "mask"))
    return [(b, m[:, :height, :width]) for b, m, (height, width) in zip(boxes, masks, shapes, strict=True)]


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_images_of_a_batch_are_detected_as_each_alone(models, name):
    """``_paste_masks``; ``_concat``."""
    if paddle.__version__ < "3" and name == "mask_rcnn":
        pytest.skip("Paddle 2.6 cannot distribute the boxes of a batch in which an image has none")
    model = models(name)
    model.eval()
    paddle.seed(1)
    for key, parameter in model.named_parameters():
        if "bbox_score" in key:  # so that what is found depends on the image
            parameter.set_value(paddle.randn(parameter.shape) * (2.0 if key.endswith("weight") else 0.0))
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 96)).astype("float32")
    images[1] = 0.0
    shapes = [(64, 96), (40, 60), (100, 150)]
    model.bbox_post_process.nms.score_threshold = 0.5
    alone = [detect(model, images[i : i + 1], shapes[i : i + 1])[0] for i in range(3)]
    counts = [int((boxes[:, 1] > 0).sum()) for boxes, _ in alone]
    assert min(counts) == 0 < max(counts), counts
    for (boxes, masks), (box, mask) in zip(detect(model, images, shapes), alone, strict=True):
        np.testing.assert_allclose(boxes, box, rtol=1e-4, atol=1e-3)
        assert masks.shape == mask.shape
        assert (masks == mask).mean() > 0.999


class Pasting(nn.Layer):
    def __init__(self):
        super().__init__()
        self.paste = MaskPostProcess()

    def forward(self, masks: Tensor, boxes: Tensor, counts: Tensor, sizes: Tensor) -> Tensor:
        return self.paste(masks, boxes, counts, sizes)


def test_masks_are_pasted_in_an_exported_program():
    """``_patch_method``: the branches and loops of what is replaced are part of the program."""
    shapes = {"masks": [None, 4, 4], "boxes": [None, 6], "counts": [1], "sizes": [None, 2]}
    specification = [
        paddle.static.InputSpec(shape, "int32" if name == "counts" else "float32", name)
        for name, shape in shapes.items()
    ]
    program = paddle.jit.to_static(Pasting(), specification, full_graph=True)
    for count, size in ((2, [20.0, 30.0]), (3, [16.0, 8.0])):
        boxes = paddle.to_tensor([[0.0, 0.9, 2.0, 3.0, 9.0, 8.0]] * count)
        inputs = paddle.rand([count, 4, 4]), boxes, paddle.to_tensor([count], "int32"), paddle.to_tensor([size] * count)
        np.testing.assert_array_equal(program(*inputs).numpy(), Pasting()(*inputs).numpy())


def test_boxes_are_drawn_with_their_names():
    """``_draw``."""
    found = {"image_id": 0, "category_id": 1, "bbox": [8, 16, 40, 24], "score": 0.9}
    drawn, unnamed = (
        np.asarray(visualizer.draw_bbox(Image.new("RGB", (64, 48)), 0, {1: name}, [found], 0.5))
        for name in ("cell", "")
    )
    assert drawn[16, 8:49].any(axis=1).all()
    assert drawn[:14].any(axis=2).sum() > unnamed[:14].any(axis=2).sum()


def test_another_version_of_a_toolkit_is_not_patched():
    assert is_patched_version("PaddleDetection", "2.6.0", ("2.6.0", "0.0.0"))
    message = r"PaddleDetection 2\.8\.1 is not patched: the patches are for 2\.6\.0 and 0\.0\.0"
    with pytest.warns(UserWarning, match=message):
        assert not is_patched_version("PaddleDetection", "2.8.1", ("2.6.0", "0.0.0"))
