"""What -h says of every program: its flags, examples that it understands, and exit codes."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys

import pytest

from common.runtime.command_line import ArgumentParser
from tests.helpers.programs import ROOT

TOOLS = sorted(file.stem for file in (ROOT / "tools").glob("*.py") if "__main__" in file.read_text(encoding="utf-8"))
TASKS = ("image_classification", "object_detection", "semantic_segmentation")


def parser_of(program: str) -> ArgumentParser:
    """The parser of a tool, or of the launcher of a task."""
    if program not in TASKS:
        return importlib.import_module(f"tools.{program}")._parser()
    parser = ArgumentParser(
        ast.get_docstring(ast.parse((ROOT / program / "main_multi_gpu.py").read_text()), clean=False)
    )
    importlib.import_module(f"{program}.config").CONFIG.add_flags(parser)
    return parser


@pytest.mark.parametrize("program", [*TOOLS, *TASKS])
def test_help_explains_every_flag_and_the_exit_codes(program):
    parser = parser_of(program)
    shown = parser.format_help()
    assert all(action.help for action in parser._actions)
    assert not re.search(r"-(\w+).*, --\1\b", shown)
    assert re.search(r"^Exit codes: 0 done", shown, re.MULTILINE)
    assert max(map(len, shown.partition("\nexamples:")[0].splitlines())) <= 120


@pytest.mark.parametrize("program", [*TOOLS, *TASKS])
def test_the_examples_are_understood(program):
    parser = parser_of(program)
    examples = re.findall(r"^    (python .+)$", parser.epilog.replace("\\\n", " "), re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example, comments=True)
        (program_at,) = [number for number, word in enumerate(words) if word.endswith(f"{program}.py")] or [
            words.index(f"{program}/main_multi_gpu.py")
        ]
        parser.parse_args(words[program_at + 1 :])


def test_a_launcher_shows_what_the_default_file_says():
    shown = " ".join(parser_of("image_classification").format_help().split())
    assert "[DATA.BATCH_SIZE = 64]" in shown
    assert "[OUTPUT = output/pale_nano_mnist5k]" in shown
    assert "[TRAIN.LAST_EPOCH]" in shown  # says what one command is to do: no value of a run


@pytest.mark.parametrize(
    ("program", "usage", "needed"),
    [
        (
            "image_classification/main_multi_gpu.py",
            "python -m paddle.distributed.launch image_classification/main_multi_gpu.py [flags]\n",
            "common.training.launcher",
        ),
        ("tools/predict.py", "predict.py ", "common.runtime.command_line"),
        ("tools/visualize.py", "visualize.py ", "common.runtime.command_line"),
    ],
)
def test_help_does_not_wait_for_paddle(program, usage, needed):
    command = [sys.executable, "-X", "importtime", ROOT / program, "-h"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"usage: {usage}")
    assert needed in result.stderr
    assert not re.search(r"\bpaddle$", result.stderr, re.MULTILINE)
