"""Which process runs a test when, where the suite runs in two of them (pytest-xdist)."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the suite; none for files or tests that were named, of which one wants to see the output."""
    return 2 if config.args == config.getini("testpaths") else 0


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "not slow":
        config.option.maxschedchunk = 1  # few tests at a time, so that no process gets most of the slow ones


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the quick tests last, which share out well, and first those for which all others wait."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("alone", "slow")])


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """Let no other process run a test while one that is marked ``alone`` runs."""
    if worker_id == "master":
        yield
        return
    kind = fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH
    folder = tmp_path_factory.getbasetemp().parent  # the one that the processes share
    with (folder / "gate.lock").open("w") as gate, (folder / "room.lock").open("w") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)  # whoever waits for the room keeps the next ones from entering
        fcntl.flock(room, kind)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # closing is not enough where a forked process has it open
