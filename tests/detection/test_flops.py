"""Parameters and multiply-adds of Mask R-CNN in the paper's setting."""

from __future__ import annotations

import math
from argparse import Namespace

import paddle
import pytest

from common.flops import params
from common.pale_transformer import VARIANTS
from object_detection.components import build_model
from object_detection.config import CONFIG
from object_detection.flops import count_detector_flops
from tests.helpers.programs import ROOT
from tests.helpers.small_models import expected_flops
from tools.helpers.paper_figures import printed

PAPER = ("pale_tiny", "pale_small", "pale_base")
LEVELS = (4, 8, 16, 32, 64)  # strides of the pyramid


def load(name: str, *options: str):
    return CONFIG.load(Namespace(cfg=CONFIG.default_file.with_name(f"{name}.yml"), opts=options))


def mask_rcnn_flops(
    name, height, width, proposals=1000, masks=100, channels=256, hidden=1024, outline=256, convolutions=4, classes=80
):
    """Multiply-adds without those of the norms, written out by hand."""
    areas = [math.ceil(height / stride) * math.ceil(width / stride) for stride in LEVELS]
    widths = [VARIANTS[name]["embed_dim"] * 2**stage for stage in range(4)]
    pyramid = sum(area * (width * channels + 9 * channels**2) for area, width in zip(areas, widths, strict=False))
    anchors = 3
    first_stage = sum(areas) * (9 * channels**2 + channels * anchors * (1 + 4))
    box = 7 * 7 * channels * hidden + hidden**2 + hidden * (classes + 1 + 4 * classes)
    convolved = 14 * 14 * 9 * (channels * outline + (convolutions - 1) * outline**2)
    mask = convolved + 14 * 14 * 4 * outline**2 + 28 * 28 * outline * classes
    row = VARIANTS[name]
    backbone = expected_flops(height, width, row["embed_dim"], row["depths"], row["pale_size"], num_classes=0)
    return backbone + pyramid + first_stage + proposals * box + masks * mask


@pytest.mark.parametrize("name", PAPER)
def test_parameters_are_the_papers(name):
    config = load(f"mask_rcnn_{name}_1x_coco")
    with paddle.LazyGuard():  # counting needs no initial values
        model = build_model(config, config.num_classes)
    assert f"{params(model) / 1e6:.0f}" == printed("object_detection")[name, "params"].text


def test_multiply_adds_at_800x1280_are_the_papers_and_the_documents():
    flops = {name: mask_rcnn_flops(name, 800, 1280) / 1e9 for name in PAPER}
    for name in PAPER:  # the paper's include the norms
        assert flops[name] == pytest.approx(float(printed("object_detection")[name, "flops"].text), rel=0.004)
    document = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert f"{'/'.join(f'{flops[name]:.1f}' for name in PAPER)}G (`python -m object_detection.flops`" in document


@pytest.mark.slow
def test_the_count_is_exactly_the_formula():
    model = build_model(load("mask_rcnn_pale_nano_nuclei"), 3)
    sizes = {"channels": 64, "hidden": 128, "outline": 64, "convolutions": 2, "classes": 3}
    expected = mask_rcnn_flops("pale_nano", 64, 96, proposals=7, masks=5, **sizes)
    assert count_detector_flops(model, 64, 96, proposals=7, masks=5) == expected
    assert model.training
