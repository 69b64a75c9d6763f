"""The output of -h of every program: its flags, valid examples, and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from common.tasks import TASKS
from tests.helpers.commands import TOOLS, check_command, parser_of
from tests.helpers.programs import ROOT


@pytest.mark.parametrize("program", [*TOOLS, *TASKS])
def test_help_explains_every_flag_the_exit_codes_and_has_valid_examples(program):
    parser = parser_of(program)
    shown = parser.format_help()
    assert all(action.help for action in parser._actions)
    assert not re.search(r"-(\w+).*, --\1\b", shown)
    assert re.search(r"^Exit codes: 0 success", shown, re.MULTILINE)
    assert max(map(len, shown.partition("\nexamples:")[0].splitlines())) <= 120
    examples = re.findall(r"^    (python .+)$", parser.epilog.replace("\\\n", " "), re.MULTILINE)
    assert examples
    assert all(check_command(example) for example in examples)


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_help_is_a_flag_with_one_dash_or_two(flag, capsys):
    with pytest.raises(SystemExit, match="0"):
        parser_of("predict").parse_args([flag])
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_launcher_shows_the_values_of_the_default_file():
    shown = " ".join(parser_of("image_classification").format_help().split())
    assert "[DATA.BATCH_SIZE = 64]" in shown
    assert "[OUTPUT = output/pale_nano_mnist5k]" in shown


@pytest.mark.parametrize("program", ["image_classification/main_multi_gpu.py", "tools/predict.py"])
def test_help_does_not_import_paddle(program):
    command = [sys.executable, "-X", "importtime", ROOT / program, "-h"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: ")
    assert "common.runtime.command_line" in result.stderr
    assert not re.search(r"\bpaddle$", result.stderr, re.MULTILINE)


def test_help_shows_the_tags_of_a_registry_as_they_are(tmp_path, monkeypatch):
    row = {"model": "pale_nano", "tag": "50 % of %(prog)s", "location": "x.pdparams"}
    row |= {"metric": "top1", "value": 1, "tested_on": "x"}
    (tmp_path / "registry.json").write_text(json.dumps([row]))
    monkeypatch.setenv("PALE_WEIGHTS", str(tmp_path / "registry.json"))
    assert row["tag"] in " ".join(parser_of("predict").format_help().split())
