"""Weights by name: what is released, what is not, and the user's own table."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.checkpoints.released import list_tags, list_weights, resolve_weights
from common.errors import UserError
from common.pale_transformer import create_model
from common.tasks import TASKS
from tools.predict import open_weights

FIGURE = {"metric": "mIoU", "value": 91.5, "tested_on": "mine"}


def test_unknown_tags_and_imagenet_weights_are_refused():
    with pytest.raises(UserError, match="no ImageNet weights of pale_tiny: the paper's authors released none"):
        create_model("pale_tiny", pretrained=True)

    with pytest.raises(UserError, match="mnist5k, fashion_mnist"):
        create_model("pale_nano", pretrained="mnist6k")

    with pytest.raises(UserError, match="the released weights 'mnist5k' are for pale_nano, not pale_tiny; give"):
        create_model("pale_tiny", pretrained="mnist5k")


@pytest.mark.parametrize(
    "name",
    [
        "mnist5k",
        "nuclei",
        pytest.param("he_nuclei", marks=pytest.mark.slow),  # downloads 39 MB
        "object_detection/nuclei",
    ],
)
def test_a_tag_alone_gives_the_model_that_has_the_figure_of_the_table(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the evaluation of detection writes files
    row = list_weights()[list_tags().index(name)]
    flags = Namespace(pretrained=name, weights="", class_names=None, cfg=None, device="cpu", opts=[])
    task, predictor, checkpoint = open_weights(flags)  # as tools/predict.py does
    assert task == row.task
    assert checkpoint.path.stat().st_size < 6e6
    _, evaluator = TASKS[task].task()(predictor.config).build_evaluation(checkpoint)
    assert predictor.class_names == list(evaluator.class_names)
    metrics = evaluator.evaluate(predictor.model, last=False).metrics
    assert metrics[row.metric] == pytest.approx(row.value, abs=1.0)  # AP depends on rounding


def test_weights_of_two_tasks_may_have_the_same_tag(tmp_path, monkeypatch):
    rows = [
        {"model": "pale_nano", "tag": "cells", "location": f"{task}.pdparams", "task": task, **FIGURE}
        for task in ("semantic_segmentation", "object_detection")
    ]
    (tmp_path / "registry.json").write_text(json.dumps(rows))
    monkeypatch.setenv("PALE_WEIGHTS", str(tmp_path / "registry.json"))
    assert list_tags()[:2] == ["cells", "object_detection/cells"]
    names = [
        Path(resolve_weights("pale_nano", tag, task)).stem
        for tag, task in [("cells", ""), ("cells", "object_detection"), ("object_detection/cells", "")]
    ]
    assert names == ["semantic_segmentation", "object_detection", "object_detection"]


def test_a_path_wins_with_and_without_suffix(tmp_path):
    save_file(numpy_state(create_model("pale_nano", num_classes=4)), tmp_path / "own.pdparams")
    for path in (tmp_path / "own.pdparams", tmp_path / "own", str(tmp_path / "own")):
        assert create_model("pale_nano", pretrained=path).num_classes == 4


def test_a_registry_adds_rows(tmp_path, monkeypatch):
    save_file(numpy_state(create_model("pale_nano", num_classes=4)), tmp_path / "flowers.pdparams")
    row = {"model": "pale_nano", "tag": "flowers", "location": "flowers.pdparams", **FIGURE}
    remote = {**row, "tag": "remote", "location": "https://host/x.pdparams#sha256=" + 64 * "0"}
    old = {"model": "pale_nano", "tag": "old", "location": "old.pdparams", "top1": 90.0, "tested_on": "flowers"}
    (tmp_path / "registry.json").write_text(json.dumps([row, remote, old]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALE_WEIGHTS", "registry.json")
    assert create_model("pale_nano", pretrained="flowers").num_classes == 4
    assert resolve_weights("pale_nano", "remote") == remote["location"]
    assert "flowers" not in [row.tag for row in list_weights("pale_tiny")]
    assert [(row.metric, row.value) for row in list_weights() if row.tag == "old"] == [("top1", 90.0)]


PATH_AS_TAG = (
    '[{"model": "m", "tag": "runs/best.pdparams", "location": "w", "metric": "top1", "value": 1, "tested_on": ""}]'
)


@pytest.mark.parametrize("text", ["{", '[{"model": "pale_nano"}]', '[{"model": 1}]', "7", PATH_AS_TAG])
def test_a_damaged_registry_is_named(tmp_path, monkeypatch, text):
    (tmp_path / "registry.json").write_text(text)
    monkeypatch.setenv("PALE_WEIGHTS", str(tmp_path / "registry.json"))
    with pytest.raises(UserError, match=r"registry\.json"):
        list_weights()
    monkeypatch.setenv("PALE_WEIGHTS", str(tmp_path / "missing.json"))
    with pytest.raises(UserError, match=r"missing\.json"):
        list_weights()
