"""Weights by name: what is released, what is not, and the user's own table."""

from __future__ import annotations

import json

import pytest

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.checkpoints.released import list_weights, resolve_weights
from common.errors import UserError
from common.pale_transformer import create_model


def test_unknown_tags_and_imagenet_weights_are_refused():
    with pytest.raises(UserError, match="no ImageNet weights of pale_tiny: the paper's authors released none"):
        create_model("pale_tiny", pretrained=True)

    with pytest.raises(UserError, match="mnist5k, fashion_mnist"):
        create_model("pale_nano", pretrained="mnist6k")

    with pytest.raises(UserError, match="the released weights 'mnist5k' are for pale_nano, not pale_tiny; give"):
        create_model("pale_tiny", pretrained="mnist5k")


@pytest.mark.parametrize("row", list_weights(), ids=lambda row: row.tag)
def test_released_weights_load_with_the_classes_they_were_trained_on(row, capsys):
    assert create_model(row.model, pretrained=row.tag).num_classes == 10
    assert "0 missing, 0 unexpected" in capsys.readouterr().out


def test_a_path_wins_with_and_without_suffix(tmp_path):
    save_file(numpy_state(create_model("pale_nano", num_classes=4)), tmp_path / "own.pdparams")
    for path in (tmp_path / "own.pdparams", tmp_path / "own", str(tmp_path / "own")):
        assert create_model("pale_nano", pretrained=path).num_classes == 4


def test_a_registry_adds_rows(tmp_path, monkeypatch):
    save_file(numpy_state(create_model("pale_nano", num_classes=4)), tmp_path / "flowers.pdparams")
    row = {"model": "pale_nano", "tag": "flowers", "location": "flowers.pdparams"}
    row |= {"metric": "top1", "value": 91.5, "tested_on": "mine"}
    remote = {**row, "tag": "remote", "location": "https://host/x.pdparams#sha256=" + 64 * "0"}
    (tmp_path / "registry.json").write_text(json.dumps([row, remote]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALE_WEIGHTS", "registry.json")
    assert create_model("pale_nano", pretrained="flowers").num_classes == 4
    assert resolve_weights("pale_nano", "remote") == remote["location"]
    assert "flowers" not in [row.tag for row in list_weights("pale_tiny")]


@pytest.mark.parametrize("text", ["{", '[{"model": "pale_nano"}]', '[{"model": 1}]', "7"])
def test_a_damaged_registry_is_named(tmp_path, monkeypatch, text):
    (tmp_path / "registry.json").write_text(text)
    monkeypatch.setenv("PALE_WEIGHTS", str(tmp_path / "registry.json"))
    with pytest.raises(UserError, match=r"registry\.json"):
        list_weights()
    monkeypatch.setenv("PALE_WEIGHTS", str(tmp_path / "missing.json"))
    with pytest.raises(UserError, match=r"missing\.json"):
        list_weights()
