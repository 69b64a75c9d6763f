"""Mask R-CNN in the paper's setting: its size and cost."""

from __future__ import annotations

import math
import re
from argparse import Namespace

import paddle
import pytest

from common.flops import params
from common.pale_transformer import VARIANTS
from object_detection import flops as detector_flops
from object_detection.components import build_model
from object_detection.config import CONFIG
from object_detection.flops import count_detector_flops
from tests.helpers.programs import ROOT
from tests.segmentation.test_upernet import backbone_flops
from tools.helpers.markdown import read_section
from tools.helpers.paper_figures import find_figure

PAPER = ("pale_tiny", "pale_small", "pale_base")
LEVELS = (4, 8, 16, 32, 64)  # strides of the pyramid


def load(name: str, *options: str):
    return CONFIG.load(Namespace(cfg=CONFIG.default_file.with_name(f"{name}.yml"), opts=options))


def mask_rcnn_flops(
    name, height, width, proposals=1000, masks=100, channels=256, hidden=1024, outline=256, convolutions=4, classes=80
):
    """Multiply-adds and the norms' operations, written out by hand."""
    areas = [math.ceil(height / stride) * math.ceil(width / stride) for stride in LEVELS]
    widths = [VARIANTS[name]["embed_dim"] * 2**stage for stage in range(4)]
    pyramid = sum(area * (width * channels + 9 * channels**2) for area, width in zip(areas, widths, strict=False))
    anchors = 3
    first_stage = sum(areas) * (9 * channels**2 + channels * anchors * (1 + 4))
    box = 7 * 7 * channels * hidden + hidden**2 + hidden * (classes + 1 + 4 * classes)
    convolved = 14 * 14 * 9 * (channels * outline + (convolutions - 1) * outline**2)
    mask = convolved + 14 * 14 * 4 * outline**2 + 28 * 28 * outline * classes
    flops, norms = backbone_flops(name, height, width)
    return flops + pyramid + first_stage + proposals * box + masks * mask, norms


@pytest.mark.parametrize("name", PAPER)
def test_parameters_are_the_papers(name):
    config = load(f"mask_rcnn_{name}_1x_coco")
    with paddle.LazyGuard():  # counting needs no initial values
        model = build_model(config, config.num_classes)
    assert f"{params(model) / 1e6:.0f}" == find_figure("object_detection", name, "params").text


@pytest.mark.parametrize("name", PAPER)
def test_multiply_adds_at_800x1280_are_the_papers(name):
    flops, norms = mask_rcnn_flops(name, 800, 1280)
    figure = find_figure("object_detection", name, "flops")
    assert (flops + norms) / 1e9 == pytest.approx(figure.value, abs=figure.last_digit)
    assert flops / 1e9 == pytest.approx(figure.value, rel=0.004)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (160, 224)])
def test_the_count_is_exactly_the_formula(height, width):
    model = build_model(load("mask_rcnn_pale_nano_nuclei"), 3)
    sizes = {"channels": 64, "hidden": 128, "outline": 64, "convolutions": 2, "classes": 3}
    flops, norms = mask_rcnn_flops("pale_nano", height, width, proposals=7, masks=5, **sizes)
    assert count_detector_flops(model, height, width, proposals=7, masks=5) == flops
    assert count_detector_flops(model, height, width, proposals=7, masks=5, norms=True) == flops + norms
    assert model.training


@pytest.mark.slow
def test_the_command_prints_the_count_of_the_whole_models_as_the_document_has_it(capsys):
    detector_flops.main()
    printed = re.findall(r"^\| `(\w+)` \| ([\d.]+)M \| ([\d.]+)G \| ([\d.]+)G \|$", capsys.readouterr().out, re.M)
    assert [row[0] for row in printed] == list(PAPER)
    for name, _, with_norms, without in printed:
        flops, norms = mask_rcnn_flops(name, 800, 1280)
        assert (with_norms, without) == (f"{(flops + norms) / 1e9:.1f}", f"{flops / 1e9:.1f}")
    document = ROOT / "docs" / "paper.md"
    rows = re.findall(r"^\| `(\w+)` .* ([\d.]+)M, ([\d.]+)G \|$", read_section(document, "object_detection"), re.M)
    assert [(name, f"{float(params):.1f}", flops) for name, params, flops in rows] == [row[:3] for row in printed]
    without = "/".join(row[3] for row in printed)
    assert f"{without}G (`python -m object_detection.flops`" in document.read_text(encoding="utf-8")
