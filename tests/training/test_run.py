"""What ranks must have in common, and what a resumed run compares."""

import numpy as np
import pytest

from common.errors import UserError
from common.training import run
from common.training.data_hash import data_hash
from image_classification.classification import Classification
from image_classification.config import CONFIG
from tests.helpers import tiny_runs
from tests.helpers.tiny_runs import load


def values(*flags):
    return CONFIG.values_of_all_ranks(load(CONFIG, *flags))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["-eval", "-pretrained", "x"], "EVAL is True, not False"),
        (["-opts", "LOG_INTERVAL", "7"], "LOG_INTERVAL is 7, not"),
        (["-opts", "VALIDATE_EVERY", "7"], "VALIDATE_EVERY is 7, not"),
        (["-opts", "LATEST_EVERY", "7"], "LATEST_EVERY is 7, not"),
        (["-resume", "auto"], "RESUME is 'auto', not ''"),
    ],
)
def test_settings_that_steer_collective_operations_must_be_equal(monkeypatch, flags, name):
    monkeypatch.setattr(run, "gather_objects", lambda own: [values(), own])
    with pytest.raises(UserError, match=f"rank 1 .*{name}"):
        run._require_equal_ranks(values(*flags))


def test_paths_and_readers_may_differ(monkeypatch):
    monkeypatch.setattr(run, "gather_objects", lambda own: [values(), own])
    run._require_equal_ranks(values("-data_path", "/elsewhere", "-opts", "DATA.NUM_WORKERS", "1"))


def test_the_hash_of_data_sees_names_labels_and_their_order():
    names, labels = np.array([b"a.png", b"b.png"]), np.array([0, 1])
    hashes = {
        data_hash(["cat", "dog"], names, labels),
        data_hash(["dog", "cat"], names, labels),
        data_hash(["cat", "dog"], names[::-1], labels),
        data_hash(["cat", "dog"], names, labels[::-1]),
    }
    assert len(hashes) == 4
    assert data_hash(["cat", "dog"], names.copy(), labels.copy()) in hashes


def test_a_resumed_run_refuses_another_order_of_classes_and_reports_other_images(shapes, shapes_config, capsys):
    run_flags = ("-opts", "TRAIN.EPOCHS")
    tiny_runs.run(Classification, shapes_config, *run_flags, 1)
    next((shapes / "train" / "blue").iterdir()).unlink()
    tiny_runs.run(Classification, shapes_config, "-resume", "auto", *run_flags, 2)
    assert "differs from the interrupted run: training data was" in capsys.readouterr().out
    for split in ("train", "val"):
        (shapes / split / "blue").rename(shapes / split / "zebra")
    with pytest.raises(UserError, match=r"class 0 is 'green' in the data and 'blue' in .*latest\.pdparams"):
        tiny_runs.run(Classification, shapes_config, "-resume", "auto", *run_flags, 3)
