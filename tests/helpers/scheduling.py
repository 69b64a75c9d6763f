"""How pytest-xdist distributes the tests over processes."""

from __future__ import annotations

import os

import psutil
import pytest

GIB_PER_WORKER = 4


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many workers as there are cores and memory for; none if files or tests are named on the command line."""
    if config.args != config.getini("testpaths"):
        return 0
    return max(1, min(os.cpu_count() or 1, psutil.virtual_memory().total // (GIB_PER_WORKER << 30)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, so that the workers finish together, and those marked ``alone`` one after another."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.xdist_group("alone"))
