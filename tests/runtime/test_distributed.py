"""Collective operations."""

from __future__ import annotations

import pytest

from common.runtime.distributed import gather_objects
from tests.helpers.programs import ROOT, run_program

PROGRAM = f"""
import sys
import time
sys.path[0] = {str(ROOT)!r}
from common.runtime.command_line import run


def main(argv):
    from common.runtime.distributed import gather_objects, rank

    if rank() == 0:
        time.sleep(33)  # Gloo itself gives up after 30 s
    print("gathered", gather_objects([]), gather_objects("bad\\udcff name" * rank()))


run(main)
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
