"""The configurations of the ablations: FLOPs are those of the closed form, and no two models are equal."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from common.flops import count_flops
from common.pale_transformer import VARIANTS
from image_classification.config import CONFIG
from image_classification.pale_backbone import build_model
from tests.helpers.small_models import expected_flops

FOLDER = CONFIG.default_file.parent
ON_IMAGENET = sorted(FOLDER.glob("ablation/*.yaml"))
SMALL = sorted(path for path in FOLDER.glob("ablation_small/*.yaml") if path.stem != "base")


def load(path: Path):
    return CONFIG.load(Namespace(cfg=str(path), opts=[]))


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem != "shape_window")) for path in SMALL],
    ids=lambda path: path.stem,
)
def test_flops_are_the_closed_form(path):
    config = load(path)
    variant, size = VARIANTS[config.MODEL.NAME], config.DATA.IMAGE_SIZE
    sizes = config.MODEL.PALE_SIZE or [variant["pale_size"]]
    expected = expected_flops(
        size,
        size,
        variant["embed_dim"],
        variant["depths"],
        sizes if len(sizes) == len(variant["depths"]) else sizes[0],
        num_classes=9,
        attention=config.MODEL.ATTENTION,
        parallel=config.MODEL.PARALLEL,
        cpe=config.MODEL.POSITION_ENCODING == "cpe",
    )
    assert count_flops(build_model(config, 9), size, size) == expected


@pytest.mark.parametrize("paths", [[FOLDER / "pale_tiny_224.yaml", *ON_IMAGENET], SMALL], ids=["imagenet", "small"])
def test_the_rows_differ_only_in_the_model(paths):
    configs = [load(path) for path in paths]
    assert len({config.MODEL.dump() for config in configs}) == len(paths) > 10
    for path, config in zip(paths, configs, strict=True):
        assert Path(config.OUTPUT).name == path.stem
        same = configs[0].clone()
        same.defrost()
        same.MODEL, same.OUTPUT = config.MODEL, config.OUTPUT
        assert same == config
