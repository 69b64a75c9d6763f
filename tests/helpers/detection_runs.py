"""Configurations and runs of object detection for its tests, in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yacs.config import CfgNode

from common.errors import UserError
from object_detection.config import CONFIG
from object_detection.detection import Detection
from tests.helpers import tiny_runs

LAUNCHER = "object_detection/main_multi_gpu.py"
_BASES = {"mask_rcnn.yml", "cascade_mask_rcnn.yml", "retinanet.yml", "coco_1x.yml", "coco_3x.yml"}
CONFIGS = [path for path in sorted(CONFIG.default_file.parent.glob("*.yml")) if path.name not in _BASES]

load: Callable[..., CfgNode] = partial(tiny_runs.load, CONFIG)


def run(config: Path, *flags: object) -> dict[str, Any]:
    """Do what the launcher does."""
    return tiny_runs.run(Detection, config, *flags)


def assert_told(function: Callable[[], Any], *parts: str) -> str:
    """Expect a ``UserError`` of one line that has all parts, and return it."""
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message
