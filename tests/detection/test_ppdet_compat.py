"""Each mend of PaddleDetection is needed here, and only where it says; and models learn and detect with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image
from ppdet.modeling.heads.roi_extractor import RoIAlign
from ppdet.modeling.proposal_generator import target_layer
from ppdet.optimizer.optimizer import OptimizerBuilder
from ppdet.utils import visualizer

from common.toolkits.patches import Mend, apply_mends
from object_detection import ppdet_compat
from object_detection.ppdet_compat import MENDS, import_ppdet
from tests.helpers.programs import ROOT
from tests.helpers.tiny_detection import DOCUMENT, build, make_batch

each_mend = pytest.mark.parametrize("mend", MENDS, ids=lambda mend: mend.name)
R_CNNS = ["mask_rcnn", "cascade_mask_rcnn"]


def broken_here(mend: Mend) -> bool:
    return paddle.__version__.startswith(mend.broken_on)


# ---- the table


@each_mend
def test_a_mend_is_needed_exactly_where_it_says(mend):
    """Fails with a PaddleDetection or Paddle that has mended itself: remove the mend then, or correct ``broken_on``."""
    assert mend.needed() == broken_here(mend)


@each_mend
def test_what_is_put_in_place_works_and_is_in_place_only_where_it_is_needed(mend):
    assert mend.works(mend.replacement)
    assert getattr(mend.owner, mend.attribute) is (mend.replacement if broken_here(mend) else mend.original)


@each_mend
def test_documentation_names_the_mend_with_its_reason(mend):
    on = ", ".join(version.rstrip(".") for version in mend.broken_on)
    assert f"| `{mend.name}` | {mend.reason} | {on} |\n" in DOCUMENT


def test_trying_the_originals_uses_up_neither_random_numbers_nor_names(capsys):
    def draw() -> tuple[list, int]:
        name = nn.Linear(1, 1, bias_attr=False).weight.name
        return [paddle.rand([2]).tolist(), np.random.rand(2).tolist()], int(name.removeprefix("linear_").split(".")[0])

    states = paddle.get_rng_state(), np.random.get_state()
    numbers, layer = draw()
    paddle.set_rng_state(states[0])
    np.random.set_state(states[1])
    apply_mends(MENDS)
    assert draw() == (numbers, layer + 1)
    assert capsys.readouterr().out == ""


# ---- learning


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Callable[[str, int], nn.Layer]:
    """Build each model once, and give it without gradients."""
    built: dict[tuple[str, int], nn.Layer] = {}

    def get(name: str, classes: int) -> nn.Layer:
        if (name, classes) not in built:
            built[name, classes] = build(tmp_path_factory.mktemp(name), name, num_classes=classes)
        model = built[name, classes]
        model.train()
        for parameter in model.parameters():
            parameter.clear_gradient()
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
    assert losses["loss"] == pytest.approx(sum(losses.values()) - losses["loss"], rel=1e-5)
    return losses


BATCHES = {
    "one image": {"objects": [2]},
    "two images": {"objects": [2, 1]},
    "no objects": {"objects": [0]},
    "two images without objects": {"objects": [0, 0]},
    "first without objects": {"objects": [0, 2]},
    "last without objects": {"objects": [2, 0]},
    "objects without area": {"objects": [1, 2], "flat": True},
    "crowds": {"objects": [2, 1], "crowds": 1},
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("model", [*R_CNNS, "retinanet"])
def test_gradients_are_finite(models, model, classes, batch):
    losses = learn(models(model, classes), make_batch(classes=classes, **BATCHES[batch]))
    if sum(BATCHES[batch]["objects"]) == 0:
        assert all(loss == 0.0 for name, loss in losses.items() if "reg" in name or "mask" in name)


def move_proposals(model: nn.Layer, by: float = 1e4) -> None:
    """Move every proposal out of the image, where it is clipped to a box without area."""
    deltas = np.zeros(model.rpn_head.rpn_rois_delta.bias.shape, "float32")
    deltas[0::4] = by
    model.rpn_head.rpn_rois_delta.bias.set_value(deltas)


def move_refined_boxes(model: nn.Layer) -> None:
    """Move what the first stage of a cascade makes of its boxes out of the image."""
    model.bbox_head.bbox_delta_stage0.bias.set_value(np.array([1e6, 0.0, 0.0, 0.0], "float32"))


@pytest.mark.parametrize("objects", [[2, 0], [0]], ids=str)
@pytest.mark.parametrize(
    ("model", "change"),
    [("mask_rcnn", move_proposals), ("cascade_mask_rcnn", move_proposals), ("cascade_mask_rcnn", move_refined_boxes)],
)
def test_gradients_are_finite_without_a_proposal_of_any_area(tmp_path, model, change, objects):
    model = build(tmp_path, model)
    change(model)
    learn(model, make_batch(objects))
    model.eval()
    with paddle.no_grad():
        assert np.isfinite(model(make_batch(objects))["bbox"].numpy()).all()


@pytest.mark.parametrize("objects", [[2, 0], [0]], ids=str)
@pytest.mark.parametrize("model", R_CNNS)
def test_one_proposal_an_image_is_enough(tmp_path, model, objects):
    model = build(tmp_path, model)
    for generator in (model.rpn_head.train_proposal, model.rpn_head.test_proposal):
        generator.pre_nms_top_n = generator.post_nms_top_n = 1
    learn(model, make_batch(objects))


@pytest.mark.parametrize("model", R_CNNS)
def test_weights_that_are_not_finite_do_not_end_the_process(tmp_path, model):
    model = build(tmp_path, model)
    move_proposals(model, np.nan)
    assert np.isnan(float(model(make_batch([2]))["loss"]))


FAILURES = {
    "RPNHead._gen_proposal": ("mask_rcnn", {}, ValueError),
    "target_layer.generate_proposal_target": ("mask_rcnn", {}, ValueError),
    "target.label_box": ("mask_rcnn", {"crowds": 1}, TypeError),
    "target_layer.generate_mask_target": ("mask_rcnn", {}, ValueError),
    "CascadeHead._get_rois_from_boxes": ("cascade_mask_rcnn", {}, ValueError),
    "RetinaHead.get_loss": ("retinanet", {"objects": [0]}, ValueError),
    "RoIAlign.forward": ("mask_rcnn", {"objects": [0]}, AssertionError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_learning_fails_without_the_mend(tmp_path, monkeypatch, name):
    (mend,) = (mend for mend in MENDS if mend.name.endswith(name))
    monkeypatch.setattr(mend.owner, mend.attribute, mend.original)
    model, batch, error = FAILURES[name]
    model = build(tmp_path, model)
    if name == "RoIAlign.forward":
        move_proposals(model)
    batch = make_batch(**{"objects": [2, 1], **batch})
    if broken_here(mend):
        with pytest.raises(error):
            learn(model, batch)
    else:
        learn(model, batch)


# ---- features of boxes


def align(boxes: list[list[float]], function: Callable = RoIAlign.forward, aligned: bool = True) -> np.ndarray:
    """Features ``[boxes, 2, 4, 4]`` of boxes on maps of strides 4 and 8 of a 64x64 image."""
    rng = np.random.default_rng(0)
    maps = [paddle.to_tensor(rng.standard_normal((1, 2, side, side)).astype("float32")) for side in (16, 8)]
    extractor = RoIAlign(4, [0.25, 0.125], end_level=1, canconical_level=3, canonical_size=32, aligned=aligned)
    counts = paddle.to_tensor([len(boxes)], "int32")
    return function(extractor, maps, [paddle.to_tensor(boxes, "float32")], counts).numpy()


GOOD = [[0.0, 0.0, 8.0, 8.0], [3.0, 5.0, 60.0, 50.0], [20.5, 20.5, 21.5, 22.0]]
WITHOUT_AREA = [[0.0, 0.0, 0.0, 0.0], [8.0, 4.0, 8.0, 40.0], [0.0, 0.0, 1e-9, 5.0]]
IMPOSSIBLE = [[9.0, 9.0, 1.0, 20.0], [np.nan, 0.0, 8.0, 8.0], [np.nan] * 4]


@pytest.mark.parametrize("aligned", [False, True])
def test_features_of_boxes_are_the_originals(aligned):
    np.testing.assert_array_equal(align(GOOD, aligned=aligned), align(GOOD, ppdet_compat._original_align, aligned))


def test_boxes_without_area_have_no_features_among_others():
    boxes = [box for group in zip(GOOD, WITHOUT_AREA, IMPOSSIBLE, strict=True) for box in group]
    features = align(boxes)
    np.testing.assert_array_equal(features[0::3], align(GOOD))
    assert not features[1::3].any()
    assert not features[2::3].any()


# ---- targets


def test_an_object_in_a_crowd_is_learned_and_the_crowd_is_not():
    boxes = paddle.to_tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 50.0]])
    crowd = paddle.to_tensor([[0], [1]], "int32")
    rois, labels, *_ = target_layer.generate_proposal_target(
        [boxes], [paddle.zeros([2, 1], "int32")], [boxes], 8, 1.0, 0.5, 0.5, 1, is_crowd=[crowd]
    )
    for box, label in zip(rois[0].tolist(), labels[0].tolist(), strict=True):
        assert label == (0 if box == boxes[0].tolist() else 1)


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


# ---- detection


def detect(model: nn.Layer, images: np.ndarray, shapes: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and masks of each image, whose original sizes are ``shapes``."""
    sizes = np.full((len(images), 2), images.shape[2:], "float32")
    batch = {"image": images, "im_shape": sizes, "scale_factor": sizes / np.array(shapes, "float32")}
    with paddle.no_grad():
        outputs = model({name: paddle.to_tensor(array) for name, array in batch.items()})
    ends = np.cumsum(outputs["bbox_num"].numpy())
    boxes, masks = (np.split(outputs[name].numpy(), ends[:-1]) for name in ("bbox", "mask"))
    return [(b, m[:, :height, :width]) for b, m, (height, width) in zip(boxes, masks, shapes, strict=True)]


@pytest.mark.parametrize("model", R_CNNS)
def test_images_together_are_detected_as_each_alone(tmp_path, model):
    if paddle.__version__ < "3" and model == "mask_rcnn":
        pytest.skip("Paddle 2.6 cannot distribute the boxes of a batch in which an image has none")
    model = build(tmp_path, model)
    model.eval()
    paddle.seed(1)
    for name, parameter in model.named_parameters():
        if "bbox_score" in name:  # so that what is found depends on the image
            parameter.set_value(paddle.randn(parameter.shape) * (2.0 if name.endswith("weight") else 0.0))
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 96)).astype("float32")
    images[1] = 0.0
    shapes = [(64, 96), (40, 60), (100, 150)]
    post_process = model.bbox_post_process
    post_process.nms.score_threshold = 0.5
    alone = [detect(model, images[i : i + 1], shapes[i : i + 1])[0] for i in range(3)]
    counts = [int((boxes[:, 1] > 0).sum()) for boxes, _ in alone]
    assert min(counts) == 0 < max(counts), counts
    for (boxes, masks), (box, mask) in zip(detect(model, images, shapes), alone, strict=True):
        np.testing.assert_allclose(boxes, box, rtol=1e-4, atol=1e-3)
        assert masks.shape == mask.shape
        assert (masks == mask).mean() > 0.999


# ---- optimizers and pictures


def test_a_parameter_group_that_matches_nothing_is_left_out():
    layer = nn.Linear(2, 2)
    groups = [{"params": ["nothing"], "weight_decay": 0.5}, {"params": ["bias"], "weight_decay": 0.0}]
    settings = {"type": "AdamW", "weight_decay": 0.1, "param_groups": groups}
    optimizer = OptimizerBuilder(optimizer=settings)(0.1, layer)
    assert [group["params"] for group in optimizer._param_groups] == [[layer.bias], [layer.weight]]
    assert OptimizerBuilder(optimizer={"type": "AdamW"})(0.1, layer)._parameter_list == layer.parameters()


def test_boxes_are_drawn_with_their_names():
    found = {"image_id": 0, "category_id": 1, "bbox": [8, 16, 40, 24], "score": 0.9}
    drawn, unnamed = (
        np.asarray(visualizer.draw_bbox(Image.new("RGB", (64, 48)), 0, {1: name}, [found], 0.5))
        for name in ("cell", "")
    )
    assert drawn[16, 8:49].any(axis=1).all()
    assert not drawn[20:35, 12:44].any()
    assert drawn[:14].any(axis=2).sum() > unnamed[:14].any(axis=2).sum()


# ---- import


def test_importing_prints_what_is_not_about_tracking(tmp_path, monkeypatch, capsys):
    (tmp_path / "chatty.py").write_text("print('Warning: Unable to use lap')\nprint()\nprint('loaded', 3, sep='-')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_ppdet("chatty") is sys.modules.pop("chatty")
    assert capsys.readouterr().out == "\nloaded-3\n"


@pytest.mark.slow
def test_a_fresh_process_prints_nothing_on_import_and_still_logs_and_finds_truncated_images():
    program = (
        "import object_detection.ppdet_compat\nfrom ppdet.engine.trainer import logger\nlogger.info('still here')\n"
        "from PIL import ImageFile\nassert not ImageFile.LOAD_TRUNCATED_IMAGES\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("INFO: still here\n")
    assert len(result.stdout.splitlines()) == 1
