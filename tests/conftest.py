"""What several tests need: a tiny data set for each task, and a configuration that trains on it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers import tiny_configs
from tests.helpers.scheduling import pytest_collection_modifyitems, pytest_xdist_auto_num_workers  # noqa: F401 (hooks)

# ``nohup`` or a shell's ``&`` may have set these signals to be ignored, which the programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A class-per-folder data set with 3 x 12 training and 3 x 7 validation images."""
    return tiny_configs.write_shapes(tmp_path)


@pytest.fixture
def shapes_config(tmp_path: Path, shapes: Path) -> Path:
    """A configuration that trains pale_nano on :func:`shapes` for two epochs in about a second."""
    return tiny_configs.write_shapes_config(tmp_path)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """The folder of :func:`tests.helpers.made_up_data.make_squares`."""
    return tiny_configs.write_squares(tmp_path)


@pytest.fixture
def squares_config(tmp_path: Path, squares: Path) -> Path:
    """A configuration that trains a small UPerNet on :func:`squares` for 8 steps in a few seconds."""
    return tiny_configs.write_squares_config(tmp_path)


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """The folder of :func:`tests.helpers.made_up_data.make_boxes`."""
    return tiny_configs.write_boxes(tmp_path)


@pytest.fixture
def boxes_config(tmp_path: Path, boxes: Path) -> Path:
    """A configuration that trains a small Mask R-CNN on :func:`boxes` for two epochs in a few seconds."""
    return tiny_configs.write_boxes_config(tmp_path)
