"""Collective operations, and the watch that ends all ranks when one fails."""

from __future__ import annotations

import time

import pytest

from common.runtime import failure_watch
from common.runtime.distributed import gather_objects
from tests.helpers.programs import ROOT, run_program

PROGRAM = f"""
import sys
sys.path[0] = {str(ROOT)!r}
from common.runtime.distributed import gather_objects, rank
from common.runtime.failure_watch import init_process_group

watch = init_process_group()
print("gathered", gather_objects([]), gather_objects("bad\\udcff name" * rank()))
watch.close()
"""


def test_a_single_process_gathers_its_own():
    assert gather_objects(["a", 1]) == [["a", 1]]


@pytest.mark.slow
def test_ranks_gather_objects(tmp_path):
    (tmp_path / "gather.py").write_text(PROGRAM)
    result = run_program(str(tmp_path / "gather.py"), ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    expected = str([[], []]) + " " + str(["", "bad\udcff name"])
    assert expected in result.stdout
    assert expected in (tmp_path / "log/workerlog.1").read_text()


# ---- the watch


class SlowStore:
    """A key-value store that, like Paddle's client, must not be used by two threads at once, and notes if it is."""

    def __init__(self):
        self.values, self.users, self.shared = {"failures": 1, "failure": b"2 rank 0: no images"}, 0, False

    def _use(self, result):
        self.users += 1
        self.shared |= self.users > 1
        time.sleep(0.004)
        self.users -= 1
        return result

    def set(self, key, value):
        self._use(self.values.__setitem__(key, value.encode()))

    def get(self, key):
        return self._use(self.values[key])

    def add(self, key, count):
        self.values[key] = self.values.get(key, 0) + count
        return self._use(self.values[key])


@pytest.fixture
def watched(monkeypatch):
    """A watch of a job where rank 0 has already failed, its store, and a list of its exit codes."""
    store, exits = SlowStore(), []
    monkeypatch.setenv("PADDLE_MASTER", "127.0.0.1:1")
    monkeypatch.setattr(failure_watch.core, "TCPStore", lambda *_: store)
    monkeypatch.setattr(failure_watch.FailureWatch, "_INTERVAL", 0.05)

    def leave(exit_code):
        exits.append(exit_code)
        raise SystemExit  # ends the thread

    monkeypatch.setattr(failure_watch.os, "_exit", leave)
    return failure_watch.FailureWatch(), store, exits


def test_two_failing_ranks_do_not_use_the_store_at_once(watched, capsys):
    watch, store, exits = watched
    deadline = time.monotonic() + 10
    while not exits and time.monotonic() < deadline:
        watch._heartbeats(range(3))
        time.sleep(0.002)
    watch.announce("the same", 2)
    watch.close()
    assert exits == [2]
    assert capsys.readouterr().out == "error: rank 0: no images\n"
    assert store.values["failure"] == b"2 rank 0: the same"
    assert not store.shared


def test_a_rank_that_reports_its_own_failure_does_not_report_another(watched, capsys):
    watch, store, exits = watched
    watch.take_over()
    time.sleep(0.4)
    assert not exits
    assert store.values["heartbeat 0"] > 0
    watch._reporting.release()
    watch.close()
    assert exits == [2]
    assert capsys.readouterr().out == "error: rank 0: no images\n"
