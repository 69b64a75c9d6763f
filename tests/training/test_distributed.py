"""What ranks tell each other."""

from __future__ import annotations

import time

import pytest

from common.runtime import distributed
from common.runtime.distributed import gather_bytes, gather_lines
from tests.helpers.programs import ROOT, run_program
from tests.helpers.thread_ranks import run_ranks

PROGRAM = f"""
import sys
sys.path[0] = {str(ROOT)!r}
from common.runtime.distributed import gather_bytes, init_process_group, rank

watch = init_process_group()
print("gathered", gather_bytes(b""), gather_bytes(bytes([0, 200, 255]) * rank()), gather_bytes(b"a" * (3 - rank())))
watch.close()
"""


def test_one_process_gathers_its_own():
    assert gather_bytes(b"\0\xff") == [b"\0\xff"]
    assert gather_bytes(b"") == [b""]
    assert gather_lines(["a", "b c"]) == ["a", "b c"]
    assert gather_lines([]) == []


@pytest.mark.parametrize("own", [[b"", b"", b""], [b"abc", b"", b"\0\xff"]])
def test_bytes_of_any_lengths_are_gathered(monkeypatch, own):
    results = run_ranks(monkeypatch, [], lambda: gather_bytes(own[distributed.rank()]), 3)
    assert results == [own] * 3


def test_lines_are_gathered_in_the_order_of_ranks(monkeypatch):
    own = [[], ["image ä.jpg", ""], ["bad\udcff name"]]
    results = run_ranks(monkeypatch, [], lambda: gather_lines(own[distributed.rank()]), 3)
    assert results == [["image ä.jpg", "", "bad\\udcff name"]] * 3


class SlowStore:
    """A key-value store that, like Paddle's client, is not made for two threads at once; it notes when they are."""

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
    """A watch of a job where rank 0 has failed already, its store, and a list of the codes that it exits with."""
    store, exits = SlowStore(), []
    monkeypatch.setenv("PADDLE_MASTER", "127.0.0.1:1")
    monkeypatch.setattr(distributed.core, "TCPStore", lambda *_: store)
    monkeypatch.setattr(distributed.FailureWatch, "_INTERVAL", 0.05)

    def leave(exit_code):
        exits.append(exit_code)
        raise SystemExit  # ends the thread

    monkeypatch.setattr(distributed.os, "_exit", leave)
    return distributed.FailureWatch(), store, exits


def test_two_failing_ranks_use_the_store_in_turn(watched, capsys):
    """A rank that fails announces it while its watch reads that another one did."""
    watch, store, exits = watched
    deadline = time.monotonic() + 10
    while not exits and time.monotonic() < deadline:
        watch._beats(range(3))
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


@pytest.mark.slow
def test_ranks_gather_bytes(tmp_path):
    (tmp_path / "gather.py").write_text(PROGRAM)
    result = run_program(str(tmp_path / "gather.py"), ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    expected = str([b"", b""]) + " " + str([b"", bytes([0, 200, 255])]) + " " + str([b"aaa", b"aa"])
    assert f"gathered {expected}" in result.stdout
    assert f"gathered {expected}" in (tmp_path / "log/workerlog.1").read_text()
