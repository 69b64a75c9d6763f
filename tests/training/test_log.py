"""How far a look at all data is, where no terminal can show a bar: under Paddle's launcher."""

from __future__ import annotations

import numpy as np
import pytest

from common.training import log as training_log
from common.training.log import TrainingLog


@pytest.mark.parametrize(("lines", "expected"), [(True, ["checking: 1 of 2", "checking: 2 of 2"]), (False, [])])
def test_progress_is_lines_where_there_is_no_terminal(monkeypatch, capsys, lines, expected):
    monkeypatch.setattr(training_log, "_INTERVALS", {"delay": 1e-9, "mininterval": 0.0})
    with TrainingLog(None).progress(2, "checking", lines=lines) as bar:
        bar.update(1)
        bar.update(1)
    out, err = capsys.readouterr()
    assert [line.partition(",")[0] for line in out.splitlines() if line.strip()] == expected
    assert not err


def test_a_short_look_prints_nothing(capsys):
    with TrainingLog(None).progress(2, "checking") as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


def test_batches_pass_under_a_bar(capsys):
    log = TrainingLog(None)
    batches = log.over(["a", "b"], "val")
    assert next(batches) == "a"
    assert list(batches) == ["b"]
    assert "error" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_only_for_visualdl_goes_there_or_nowhere(tmp_path, kept):
    log = TrainingLog(tmp_path / "run" if kept else None)
    assert log.has_visualdl == kept
    log.histogram("weights/a", 1, np.arange(3.0))
    log.picture("val/images", 1, np.zeros((2, 2, 3), np.uint8))
    log.close()
    assert [file.name for file in tmp_path.rglob("*.png")] == ["val_images.png"] * kept
