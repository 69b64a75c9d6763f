"""The moving average of weights and of BatchNorm's statistics."""

import numpy as np
import paddle
import pytest
from paddle import nn

from common.training.ema import ModelEma


class Model(nn.Layer):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1D(2)
        self.register_buffer("calls", paddle.zeros([1], "int64"))


def values(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def move(model, seed):
    """Stand in for an optimizer step: new values everywhere."""
    rng = np.random.default_rng(seed)
    for tensor in model.state_dict().values():
        tensor.set_value((10 * rng.standard_normal(tensor.shape)).astype(tensor.numpy().dtype))


def test_starts_as_a_copy_in_eval_mode_without_gradients():
    model = Model()
    ema = ModelEma(model, 0.9)
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(ema.model)[name], value)
    assert not ema.model.norm.training
    assert all(parameter.stop_gradient for parameter in ema.model.parameters())
    assert model.training
    assert not model.linear.weight.stop_gradient


# (1 + t) / (10 + t) = 0.1, 2/11, 3/12, ... until the limit is smaller.
@pytest.mark.parametrize(
    ("decay", "used"), [(0.9999, [1 / 10, 2 / 11, 3 / 12, 4 / 13]), (0.2, [1 / 10, 2 / 11, 0.2, 0.2])]
)
def test_formula_with_warm_up_for_weights_and_statistics(decay, used):
    model = Model()
    ema = ModelEma(model, decay)
    expected = values(model)
    for step, factor in enumerate(used):
        move(model, step)
        before = values(model)
        ema.update(model)
        current, averaged = values(model), values(ema.model)
        for name in before:
            np.testing.assert_array_equal(current[name], before[name], err_msg=name)  # the model is not touched
        expected = {name: factor * expected[name] + (1 - factor) * current[name] for name in expected}
        assert {"linear.weight", "linear.bias", "norm._mean", "norm._variance"} < set(averaged)
        for name in set(averaged) - {"calls"}:
            np.testing.assert_allclose(averaged[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(averaged["calls"], current["calls"])
    assert ema.updates == len(used)


def test_weights_that_stand_still_have_themselves_as_average():
    model = Model()
    move(model, 0)
    ema = ModelEma(model, 0.9)
    for _ in range(3):
        ema.update(model)
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(ema.model)[name], value, err_msg=name)


def test_looking_at_the_average_changes_nothing():
    model = Model()
    seen, unseen = ModelEma(model, 0.9), ModelEma(model, 0.9)
    for seed in range(3):
        move(model, seed)
        seen.update(model)
        unseen.update(model)
        assert seen.model is seen.model
    for name, value in values(seen.model).items():
        np.testing.assert_array_equal(values(unseen.model)[name], value, err_msg=name)
