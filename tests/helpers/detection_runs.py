"""Configurations, batches and tasks of object detection for its tests, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from yacs.config import CfgNode

from common.errors import UserError
from common.runtime.command_line import ArgumentParser
from object_detection.config import CONFIG
from object_detection.detection import Detection

LAUNCHER = "object_detection/main_multi_gpu.py"
CONFIGS = [path for path in sorted(CONFIG.default_file.parent.glob("*.yml")) if "\nOUTPUT:" in path.read_text()]


def load(*flags: object) -> CfgNode:
    """The configuration that the launcher would make of its flags."""
    parser = ArgumentParser()
    CONFIG.add_flags(parser)
    return CONFIG.load(parser.parse_args([str(flag) for flag in flags]))


def run(config: Path, *flags: object) -> dict[str, float]:
    """What the launcher does, in this process."""
    return Detection(load("-cfg", config, *flags)).run()


def assert_told(function: Callable[[], Any], *parts: str) -> str:
    """Expect a ``UserError`` of one line that has all parts, and return it."""
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message
