"""The programs of the project, run as a user runs them."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def start_program(
    script: str,
    *arguments: object,
    ranks: int = 0,
    cwd: Path = ROOT,
    launch: tuple[str, ...] = (),
) -> subprocess.Popen:
    """Start a script of the project in a process group of its own, under the launcher if ``ranks`` is given.

    ``launch`` are further flags of the launcher.
    """
    command = [sys.executable, str(ROOT / script)]
    if ranks:
        command[1:1] = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), *launch]
        command[3:3] = ["--log_dir", str(cwd / "log")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_program(process: subprocess.Popen) -> None:
    """SIGKILL a program and the ranks it launched, which the launcher puts into sessions of their own."""
    for child in (*psutil.Process(process.pid).children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            child.kill()


def run_program(
    script: str, *arguments: object, ranks: int = 0, cwd: Path = ROOT, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Run a script as :func:`start_program` does, to its end; stdout and stderr come as one text."""
    process = start_program(script, *arguments, ranks=ranks, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_program(process)
        output, _ = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{output}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def next_commands(output: str) -> dict[str, list[str]]:
    """The words after the interpreter of each command that a run prints at its end, by label."""
    found = re.findall(r"^(evaluate|predict|export|visualize|resume): +(.*)", output, re.MULTILINE)
    return {label: shlex.split(command)[1:] for label, command in found}


def cpu_seconds() -> float:
    """CPU time of all programs that this process has started and that have ended.

    A program that computes with one thread takes at most so long where nothing else runs.
    """
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def fails(script: str, *flags: object, ranks: int = 0, cwd: Path) -> str:
    """Run a script, expect exit code 2 and one message without a traceback, and return the message."""
    result = run_program(script, *flags, ranks=ranks, cwd=cwd)
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stdout
    messages = set(re.findall(r"^error: .*", result.stdout, re.MULTILINE))
    assert len(messages) == 1, result.stdout
    return messages.pop()
