"""Messages of errors quote what they name as it is, and print no control characters."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.programs import ROOT


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        ("UserError('no file a  b\\\\c.png')", r"error: no file a  b\c.png", 2),
        ("OSError(2, 'No such file', 'a  \\x1b[2J')", r"error: a  \x1b[2J: No such file; check path", 2),
        ("MemoryError('cannot allocate')", "error: there is not enough memory (cannot allocate); use smaller", 2),
        ("ValueError('a  b\\nis wrong')", "error: ValueError: a  b is wrong", 1),
    ],
)
def test_an_error_is_printed_as_it_is(error, message, code):
    program = f"""
from common.errors import UserError
from common.runtime.command_line import run

def main(argv):
    raise {error}

run(main, [])
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert message in result.stderr
    assert "\x1b" not in result.stderr
    assert result.returncode == code


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_programs_run_without_standard_streams(tmp_path, closed):
    program = f"""
import sys
from pathlib import Path
from common.errors import UserError
from common.runtime.command_line import run

def main(argv):
    sys.stderr.isatty()
    with Path({str(tmp_path / "file")!r}).open("w") as file:
        assert file.fileno() > 2
    print("a line")
    raise UserError("stop")

run(main, [])
"""
    command = ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, program]
    assert subprocess.run(command, cwd=ROOT).returncode == 2
