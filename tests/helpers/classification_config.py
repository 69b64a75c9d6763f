"""A configuration of image classification for small images."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from image_classification.config import default_config


def make_config(**changes: Any) -> CfgNode:
    """Return the default configuration for images of 32 pixels, read without worker processes.

    Args:
        changes: keys of ``DATA``, ``AUG``, ``TRAIN`` or of the configuration itself, and their values.
    """
    config = default_config()
    config.DATA.IMAGE_SIZE, config.DATA.BATCH_SIZE, config.DATA.BATCH_SIZE_EVAL = 32, 6, 4
    config.DATA.NUM_WORKERS = 0
    for key, value in changes.items():
        node = next(node for node in (config.DATA, config.AUG, config.TRAIN, config) if key in node)
        node[key] = value
    return config
