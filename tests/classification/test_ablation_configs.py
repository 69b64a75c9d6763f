"""The configurations of the ablations differ from each other in the model alone."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from image_classification.config import CONFIG

FOLDER = CONFIG.default_file.parent
ON_IMAGENET = [FOLDER / "pale_tiny_224.yaml", *sorted(FOLDER.glob("ablation/*.yaml"))]
SMALL = sorted(path for path in FOLDER.glob("ablation_small/*.yaml") if path.stem != "base")


@pytest.mark.parametrize("paths", [ON_IMAGENET, SMALL], ids=["imagenet", "small"])
def test_rows_differ_in_the_model_alone(paths):
    configs = [CONFIG.load(Namespace(cfg=str(path), opts=[])) for path in paths]
    assert len({config.MODEL.dump() for config in configs}) == len(paths) > 10
    for path, config in zip(paths, configs, strict=True):
        assert Path(config.OUTPUT).name == path.stem
        same = configs[0].clone()
        same.defrost()
        same.MODEL, same.OUTPUT = config.MODEL, config.OUTPUT
        assert same == config
