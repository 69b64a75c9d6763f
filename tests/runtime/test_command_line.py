"""Messages of errors quote what they name as it is, and print no control characters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.runtime.command_line import ArgumentParser
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


@pytest.mark.parametrize(
    ("ending", "target", "code", "said"),
    [
        ("", "pipe", 128 + signal.SIGPIPE, ""),
        ("raise SystemExit", "pipe", 128 + signal.SIGPIPE, ""),
        ("raise UserError('stop')", "pipe", 2, "error: stop\n"),
        ("", "/dev/full", 2, "error: No space left on device; check path, permissions and free space\n"),
        ("raise UserError('stop')", "/dev/full", 2, "error: stop\n"),
    ],
)
def test_what_nobody_reads_or_no_disk_takes_is_no_traceback(ending, target, code, said):
    program = f"""
from common.errors import UserError
from common.runtime.command_line import run

def main(argv):
    print("a line")
    {ending}

run(main, [])
"""
    if target == "pipe":
        reader, output = os.pipe()
        os.close(reader)
    else:
        output = os.open(target, os.O_WRONLY)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
    os.close(output)
    assert (result.returncode, result.stderr) == (code, said)


@pytest.mark.parametrize(
    ("number", "error"),  # what Paddle's tracer raises, and what the tools make of it
    [
        (signal.SIGTERM, "KeyboardInterrupt('In transformed code')"),
        (signal.SIGHUP, "UserError('Paddle cannot trace the model')"),
        (signal.SIGTERM, "SystemError('returned a result with an exception set')"),
    ],
)
def test_a_signal_removes_what_is_unfinished_also_after_the_import_of_paddle(tmp_path, number, error):
    program = f"""
import signal
from pathlib import Path
from common.errors import UserError
from common.runtime.atomic_file import replace_file
from common.runtime.command_line import run

def main(argv):
    import paddle

    with replace_file(Path({str(tmp_path / "file")!r})):
        try:
            signal.raise_signal({int(number)})
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGHUP)  # as a terminal that is closed sends it again
            raise {error}

run(main, [])
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert not list(tmp_path.iterdir())
    assert (result.returncode, result.stderr.splitlines()[-1]) == (128 + number, "error: interrupted")
    assert "Traceback" not in result.stderr


def test_an_interruption_amid_the_import_of_paddle_is_no_import_error(tmp_path):
    (tmp_path / "paddle.py").write_text(
        "import signal\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    raise ImportError('initialization failed')\n"
    )
    program = f"""
import sys
from common.runtime.command_line import run

def main(argv):
    sys.path.insert(0, {str(tmp_path)!r})
    import paddle

run(main, [])
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (128 + signal.SIGINT, "error: interrupted\n")


def test_an_empty_path_is_not_the_current_folder():
    parser = ArgumentParser("A program.")
    parser.add_flag("out", parser.add_argument_group("output"), type=Path)
    assert parser.parse_args(["-out", "."]).out == Path()
    with pytest.raises(UserError, match="-out: the path is empty"):
        parser.parse_args(["-out", ""])


@pytest.mark.parametrize("first", ["", "import cv2\n"])
def test_programs_look_for_no_library_in_the_current_folder(first):
    code = (
        f"{first}import os\n"
        "from common.runtime.command_line import run\n"
        "run(lambda argv: (__import__('cv2'), print(os.environ['LD_LIBRARY_PATH'].split(':'))))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0
    assert "''" not in result.stdout


def test_the_settings_of_matplotlib_in_the_current_folder_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "matplotlibrc")  # whoever reads it waits
    program = (
        f"sys.path[0] = {str(ROOT)!r}; from common.runtime.command_line import run; import os; "
        "run(lambda argv: (__import__('matplotlib.pyplot'), print(os.getcwd())))"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {program}"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, f"{tmp_path}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_rank_that_is_done_is_ended_neither_by_a_signal_nor_by_a_crash_of_paddle(number):
    """All ranks get the signals of a terminal; a rank in some hundred has crashed in C++ destructors after its work."""
    program = f"""
import atexit, os
from common.runtime import failure_watch
from common.runtime.command_line import run

class Watch:
    def close(self):
        os.kill(os.getpid(), {int(number)})
        print("all ranks are done")

failure_watch.FailureWatch, failure_watch.init_process_group = Watch, lambda: None
atexit.register(os.abort)  # as a destructor might
run(lambda argv: None, [])
"""
    environment = os.environ | {"PADDLE_TRAINERS_NUM": "2"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout == "all ranks are done\n"
    assert result.returncode == 0
