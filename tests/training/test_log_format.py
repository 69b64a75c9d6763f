"""What a run prints: aligned columns, what differs from the configuration's file, each line once, the next commands."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from common.runtime.verbosity import choose_verbosity
from common.tasks import TASKS
from common.training.log_format import duration, labeled, metric_columns, number, progress_line
from common.training.next_commands import next_commands
from common.training.run_folder import RunFolder
from image_classification.classification import Classification
from tests.helpers.commands import check_command
from tests.helpers.programs import ROOT
from tests.helpers.tiny_runs import load, run


@pytest.fixture(autouse=True)
def normal_verbosity():
    yield
    choose_verbosity()


def test_a_number_of_any_size_has_at_most_six_columns():
    for value in [0.0, *np.geomspace(1e-30, 1e30, 1000)]:
        text = number(value)
        assert len(text) <= 6
        assert float(text) == pytest.approx(value, rel=0.06 if "." in text else 0.34), text


def test_times_are_short():
    assert [duration(seconds) for seconds in (7.4, 67, 600, 3599.6)] == ["0:07", "1:07", "10:00", "1:00:00"]


@pytest.mark.parametrize("steps", [1, 1251])
def test_columns_stay_where_they_are(steps):
    found = set()
    for reached, loss, accuracy in ((1, 12.0, 0.0), (50, 1e-5, 9.96), (300, 1234.5, 100.0)):
        text = f"{metric_columns({'loss': loss, 'top1': accuracy}, 1)}  lr {number(loss)}"
        for part in (reached, "train", "val")[steps == 1 :]:
            line = progress_line("epoch", reached, 300, part, steps, text)
            assert re.match(r"\[\d\d:\d\d:\d\d\] epoch ", line)
            found.add(tuple(line.index(name) for name in ("/300  ", "loss", "top-1", "lr ")))
    assert len(found) == 1


def test_the_lines_of_a_run_are_aligned_and_none_is_printed_twice(shapes_config, capsys):
    run(Classification, shapes_config, "-batch_size", 12, "-opts", "LOG_INTERVAL", 1, "TRAIN.EMA_DECAY", 0.5)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    places = [line[11:].partition("  loss")[0] for line in lines]
    expected = [f"epoch {epoch}/2  {part:5}" for epoch in (1, 2) for part in ("1/3", "2/3", "train", "val", "EMA")]
    assert places == expected  # the mean of an epoch stands for its last step
    for parts in ({"1/3", "2/3", "train"}, {"val", "EMA"}):
        of_kind = [line for line in lines if line.split()[3] in parts]
        columns = ("loss", "top-1", "  lr ", " img/s") if "train" in parts else ("loss", "top-1", "  (")
        assert len({tuple(line.index(name) for name in columns) for line in of_kind}) == 1


@pytest.mark.parametrize(
    ("task", "flags", "changes"),
    [
        ("image_classification", ["-epochs", 3, "-output", "x"], ["TRAIN.EPOCHS 3 (was 16)"]),
        ("image_classification", ["-pretrained", "a", "-eval"], ["MODEL.PRETRAINED a (was nothing)"]),
        ("semantic_segmentation", ["-opts", "model.channels", 64], ["model.channels 64 (was 48)"]),
        ("object_detection", [], []),
    ],
)
def test_only_what_differs_from_the_file_is_a_change(task, flags, changes):
    spec = TASKS[task].config()
    assert spec.changes(load(spec, *flags), str(spec.default_file)) == changes


@pytest.mark.parametrize("example", ["", "a folder/it's.png"])
def test_the_next_commands_can_be_pasted(tmp_path, shapes_config, monkeypatch, example):
    monkeypatch.chdir(tmp_path)
    task = Classification(load(Classification.config_spec, "-cfg", shapes_config))
    commands = next_commands(task, RunFolder(tmp_path / "a run", 0), SimpleNamespace(example=example), False)
    assert list(commands) == ["evaluate", "predict", "export", "visualize", "resume"]
    for command in commands.values():
        python, script, *_ = shlex.split(command)
        assert shutil.which(python) == sys.executable
        check_command(re.sub(r"\S*/((image_classification|tools)/)", r"\1", command.partition("\n")[0]))
        assert (tmp_path / script).is_file()
        assert f"'{tmp_path}/a run/" in command  # as it was given, and quoted
    assert (example or str(ROOT / "docs" / "digit.png")) in shlex.split(commands["predict"])


def test_a_quiet_run_prints_warnings_and_the_result(shapes, shapes_config, capsys):
    run(Classification, shapes_config, "-quiet", "-lr", 1e-3, "-opts", "TRAIN.EPOCHS", 1, "TRAIN.FREEZE", "[stem]")
    warning, *copies, best = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: TRAIN.FREEZE keeps random weights")
    assert all("copies of training images" in line for line in copies)
    assert best.startswith("best: ")


def test_a_verbose_run_prints_the_whole_configuration_and_all_metrics(shapes_config, capsys):
    run(Classification, shapes_config, "-verbose", "-opts", "TRAIN.EPOCHS", 1)
    output = capsys.readouterr().out
    assert "\nKEEP_CHECKPOINTS: " in output
    assert re.search(r"  val .* ece +[\d.]+ .*images 21", output)


def test_further_lines_stand_below_the_text_of_a_label():
    assert labeled("data", "one\ntwo") == "data: one\n      two"
