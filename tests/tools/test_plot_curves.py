"""Curves of the logs of runs, which may be anybody's."""

from __future__ import annotations

import json
import os

import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.errors import UserError
from tools import plot_curves

TRAIN = {"kind": "train", "step": 5, "epoch": 0.5, "loss": 2.0}
VAL = {"kind": "val", "step": 10, "epoch": 1.0, "loss": 2.0, "top1": 90.0}


def plot(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    plot_curves.main([str(tmp_path), "-out", str(tmp_path / "curves.png")])


def lines(*records):
    return "\n".join(map(json.dumps, records)).encode()


def test_values_that_were_not_finite_are_left_out(tmp_path):
    without_loss = {name: value for name, value in TRAIN.items() if name != "loss"}
    plot(tmp_path, lines(TRAIN, without_loss, {**TRAIN, "epoch": 0.7}, VAL))
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height


def test_the_axis_has_whole_epochs(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    plot(tmp_path, lines(TRAIN, {**TRAIN, "epoch": 1.0}, VAL, {**VAL, "epoch": 3.0}))
    for axes in shown[0].axes:
        assert axes.get_title()
        places = axes.get_xticks()
        assert (places == places.round()).all()
        assert axes.get_xlim()[0] == 0


def test_a_link_to_a_missing_file_is_kept(tmp_path):
    (tmp_path / "curves.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"curves\.png exists already"):
        plot(tmp_path, lines(TRAIN, VAL))
    assert (tmp_path / "curves.png").is_symlink()


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    (tmp_path / "_seed1").mkdir()
    plot(tmp_path / "_seed1", lines(TRAIN, VAL))
    (legend,) = shown[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [" _seed1: 90.00 %"]


def test_an_existing_file_is_kept(tmp_path):
    (tmp_path / "curves.png").write_text("mine")
    with pytest.raises(UserError, match=r"curves\.png exists already; give another -out, or delete it"):
        plot(tmp_path, lines(TRAIN, VAL))
    assert (tmp_path / "curves.png").read_text() == "mine"


def test_a_folder_may_have_any_name(tmp_path, capsys):
    run = tmp_path / os.fsdecode(b"$\\frac$ \xff\x1b\n")
    run.mkdir()
    plot(run, lines(TRAIN, VAL))
    assert (run / "curves.png").exists()
    assert r"\xff\x1b\n/curves.png" in capsys.readouterr().out.replace(r"\udcff", r"\xff")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" + lines(TRAIN, VAL),
        b"[" * 100_000,
        lines(TRAIN, VAL, 5),
        lines(TRAIN, VAL, {**VAL, "top1": 10**400}),
        lines(TRAIN, {**VAL, "top1": "high"}),
        lines(TRAIN, {**VAL, "epoch": [1]}),
    ],
    ids=range(6),
)
def test_a_damaged_log_is_an_error_of_the_user(tmp_path, content):
    with pytest.raises(UserError):
        plot(tmp_path, content)
