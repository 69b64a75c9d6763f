"""The commands in documents and in the help of programs."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

from common.runtime.command_line import ArgumentParser
from common.tasks import TASKS
from tests.helpers.programs import ROOT

TOOLS = sorted(file.stem for file in (ROOT / "tools").glob("*.py") if "__main__" in file.read_text(encoding="utf-8"))


def parser_of(program: str) -> ArgumentParser:
    """The parser of a tool, or of the launcher of a task."""
    if program in TOOLS:
        return importlib.import_module(f"tools.{program}")._parser()
    launcher = ast.parse((ROOT / program / "main_multi_gpu.py").read_text(encoding="utf-8"))
    parser = ArgumentParser(ast.get_docstring(launcher, clean=False))
    TASKS[program].config().add_flags(parser)
    return parser


def check_command(command: str) -> argparse.Namespace | None:
    """Parse the flags of a command that runs a program of this project, and read its configuration.

    Raises:
        common.errors.UserError: the program does not take the flags, or the configuration is invalid.
    """
    words = shlex.split(command, comments=True)
    for position, word in enumerate(words):
        found = re.fullmatch(r"tools/(\w+)\.py|(\w+)/main_multi_gpu\.py", word)
        if found:
            program = found[1] or found[2]
            arguments = parser_of(program).parse_args(words[position + 1 :])
            if program in TASKS and (ROOT / arguments.cfg).is_file():
                arguments.cfg = str(ROOT / arguments.cfg)
                TASKS[program].config().load(arguments)
            return arguments
    return None


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def commands(document: Path) -> list[str]:
    """The shell commands of a document; those joined with ``&&`` are separate."""
    joined = (block.replace("\\\n", " ") for block in blocks(document, "bash"))
    lines = (line for block in joined for line in block.splitlines() if line.strip())
    return [command for line in lines for command in line.split(" && ")]
