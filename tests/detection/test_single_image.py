"""Detection without control flow: it finds what PaddleDetection's models find, and says what it cannot do."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import paddle
import pytest

from common.errors import UserError
from object_detection.masks import RleMasks, with_rle_masks
from object_detection.single_image import SingleImageDetector
from tests.helpers import tiny_detection

FASTER_RCNN = {
    "architecture": "FasterRCNN",
    "FasterRCNN": {
        "backbone": "PaleTransformer",
        "neck": "FPN",
        "rpn_head": "RPNHead",
        "bbox_head": "BBoxHead",
        "bbox_post_process": "BBoxPostProcess",
    },
}
# The first convolutions' weights are small, so that all scores would be almost equal.
_DECISIVE = ("rpn_rois", "bbox_score", "bbox_delta", "mask_fcn_logits", "retina_cls", "retina_reg")


def build(folder, name, **sections):
    model = tiny_detection.build(folder, name, **sections)
    for parameter_name, parameter in model.named_parameters():
        if any(part in parameter_name for part in _DECISIVE) and parameter.ndim > 1:
            parameter.set_value(parameter * 20)
        if "retina_cls.bias" in parameter_name:
            parameter.set_value(paddle.full_like(parameter, -1.0))
    model.eval()
    return model


def inputs(height=128, width=160):
    rng = np.random.default_rng(0)
    return {
        "image": paddle.to_tensor(rng.standard_normal((1, 3, height, width), np.float32)),
        "im_shape": paddle.to_tensor([[height - 3.0, width - 7.0]]),
        "scale_factor": paddle.to_tensor([[1.5, 1.4]]),
    }


@paddle.no_grad()
def assert_same(model, batch, least=1):
    """Compare with the model itself: boxes by score, and masks pasted into the image."""
    detector = SingleImageDetector(model)
    names = ("boxes", "masks")[: 1 + detector.has_masks]
    found = dict(zip(names, detector(*batch.values()), strict=True))
    if detector.has_masks:
        model.mask_post_process = RleMasks()
    expected = model(dict(batch))
    rows = expected["bbox"].numpy()
    height, width = np.floor(batch["im_shape"].numpy() / batch["scale_factor"].numpy() + 0.5)[0]
    rows[:, 2:] = rows[:, 2:].clip(0, [width, height, width, height])  # RetinaNet's boxes reach beyond the image
    order = np.argsort(-rows[:, 1], kind="stable")
    order = order[(rows[order, 4:] > rows[order, 2:4]).all(axis=1)]
    assert len(order) >= least
    assert np.allclose(found["boxes"].numpy(), rows[order], rtol=1e-4, atol=1e-4)
    if detector.has_masks:
        masks = with_rle_masks(found, batch["im_shape"], batch["scale_factor"], 0.5)["mask"]
        assert masks == [expected["mask"][number] for number in order]
        assert len({mask["counts"] for mask in masks}) > 1


UNALIGNED = {"roi_extractor": {"resolution": 7, "sampling_ratio": 0, "aligned": False}}


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("mask_rcnn", {}),
        ("mask_rcnn", {"BBoxHead": UNALIGNED}),
        ("cascade_mask_rcnn", {}),
        ("retinanet", {}),
        ("retinanet", {"RetinaHead": {"nms": {"name": "MultiClassNMS", "nms_top_k": 20, "nms_threshold": 0.1}}}),
    ],
)
def test_it_finds_what_the_model_finds(tmp_path, name, sections):
    assert_same(build(tmp_path, name, **sections), inputs(), least=10)


def test_a_model_without_masks_finds_the_same(tmp_path):
    assert_same(build(tmp_path, "mask_rcnn", **FASTER_RCNN), inputs(96, 64), least=10)


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 2 cannot join tensors without elements")
@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
def test_there_may_be_nothing_to_find(tmp_path, name):
    detector = SingleImageDetector(build(tmp_path, name))
    detector.nms.score_threshold = 2.0
    with paddle.no_grad():
        outputs = detector(*inputs().values())
    assert [output.shape[0] for output in outputs] == [0] * len(outputs)


def test_other_models_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="FCOS cannot be exported; choose from FasterRCNN, MaskRCNN"):
        SingleImageDetector(tiny_detection.build(tmp_path, "fcos"))
    model = build(tmp_path, "mask_rcnn")
    model.bbox_post_process.nms = object()
    with pytest.raises(UserError, match="choose MultiClassNMS"):
        SingleImageDetector(model)
    model.neck = None
    with pytest.raises(UserError, match="MaskRCNN without a neck cannot be exported"):
        SingleImageDetector(model)


@pytest.mark.parametrize(
    ("model", "owner", "setting", "value"),
    [
        ("mask_rcnn", "bbox_head", "with_pool", True),
        ("mask_rcnn", "rpn_head.test_proposal", "pre_nms_top_n", -1),
        ("cascade_mask_rcnn", "bbox_head", "reg_class_agnostic", False),
        ("retinanet", "head.nms", "nms_eta", 0.9),
    ],
)
def test_settings_that_cannot_be_exported_are_refused(tmp_path, model, owner, setting, value):
    built = build(tmp_path, model)
    setattr(attrgetter(owner)(built), setting, value)
    with pytest.raises(UserError, match=rf"\w+\.{setting} cannot be exported with this value; use the default"):
        SingleImageDetector(built)
