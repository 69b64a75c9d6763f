"""BatchNorm over the batches of all ranks."""

import copy

import numpy as np
import pytest
from paddle import nn

from common.training import sync_batch_norm
from common.training.sync_batch_norm import SyncBatchNorm, synchronize_batch_norm
from tests.helpers.masked_attention import randomize
from tests.helpers.programs import run_program
from tests.helpers.small_models import evaluating, random_images, small_model


@pytest.fixture
def two_ranks(monkeypatch):
    monkeypatch.setattr(sync_batch_norm, "world_size", lambda: 2)
    monkeypatch.setattr(sync_batch_norm, "_ranks", lambda: None)


def types(model):
    return [type(layer) for layer in model.sublayers() if isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm))]


@pytest.mark.slow
def test_two_ranks_equal_one_with_both_batches(tmp_path):
    result = run_program("tests/helpers/sync_batch_norm.py", ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "rank 0: equal" in result.stdout


def test_nothing_changes_on_one_rank():
    model = small_model()
    before = types(model)
    synchronize_batch_norm(model)
    assert before == types(model)


@pytest.mark.usefixtures("two_ranks")
def test_names_and_evaluation_stay_and_copies_and_fused_models_work():
    model = evaluating(randomize(small_model(), 0.3))
    images = random_images(2, 64)
    names, expected = list(model.state_dict()), model(images).numpy()
    synchronize_batch_norm(model)
    assert set(types(model)) == {SyncBatchNorm}
    assert list(model.state_dict()) == names
    fused = copy.deepcopy(model)
    fused.fuse()
    for other in (model, copy.deepcopy(model), fused):
        np.testing.assert_allclose(other(images).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("first", ["freeze", "synchronize"])
def test_frozen_statistics_are_not_synchronized(first):
    model = small_model()
    if first == "freeze":
        model.freeze("stages.0")
    synchronize_batch_norm(model)
    model.freeze("stages.0")
    assert SyncBatchNorm not in types(model.stages[0])
    assert set(types(model.stages[1])) == {SyncBatchNorm}
    model.train()
    model.stages[0](random_images(2, 64).transpose([0, 2, 3, 1]))  # needs no other rank
