"""A training state that version 0.1.0 wrote, in files/: two steps of a small model, and what its third step gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from common.checkpoints.loading import load_pretrained, numpy_state, read_state
from common.checkpoints.renames import rename_keys
from common.pale_transformer import PaleTransformer
from common.training.batch_norm import get_statistics
from common.training.optimizer import build_optimizer
from common.training.state import load_optimizer_state

FILE = Path(__file__).parent / "files" / "training_state_0_1_0.pdparams"


@pytest.fixture
def model() -> PaleTransformer:
    return PaleTransformer(embed_dim=2, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), pale_size=2, num_classes=3)


def test_weights_and_optimizer_of_0_1_0_go_on_as_they_did_there(model):
    state = read_state(FILE)
    report = load_pretrained(model, FILE)
    assert not report.missing + report.unexpected + report.mismatched
    np.testing.assert_array_equal(state["rank_statistics"][0][0], get_statistics(model))  # of the model, on rank 0
    optimizer = build_optimizer({"type": "AdamW", "weight_decay": 0.05}, model, learning_rate=1e-2)
    load_optimizer_state(optimizer, model, state["optimizer"])
    model.train()
    images = paddle.to_tensor(state["images"])
    (model(images) * paddle.to_tensor([[1.0, -2.0, 3.0]])).sum().backward()
    optimizer.step()
    found, expected = numpy_state(model), rename_keys(state["after_the_next_step"])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if "key.bias" not in name:  # softmax ignores it: Adam scales up the rounding of its gradient
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    model.eval()
    np.testing.assert_allclose(model(images).numpy(), state["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "_layers.", "model."])
def test_the_name_of_a_wrapper_is_removed_from_all_parameters(prefix):
    weights = {"head.weight": np.ones(2, np.float32), "head.bias": np.zeros(1, np.float32)}
    assert list(rename_keys({prefix + name: array for name, array in weights.items()})) == list(weights)
    partly = {prefix + "head.weight": weights["head.weight"], "other": weights["head.bias"]}
    assert list(rename_keys(partly)) == list(partly)
