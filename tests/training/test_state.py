"""An optimizer's state that fits any process."""

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.loading import Checkpoint, load_weights, numpy_state
from common.errors import UserError
from common.pale_transformer import PaleTransformer
from common.training.optimizer import build_optimizer
from common.training.state import load_optimizer_state, optimizer_state


def make_model(seed=0, depths=(1, 1, 1, 1)):
    paddle.seed(seed)
    return PaleTransformer(4, depths, (2, 2, 2, 2), 2, num_classes=3)


def make_optimizer(model):
    return build_optimizer({"type": "AdamW", "weight_decay": 0.05}, model, layer_decay=0.8, learning_rate=0.01)


def train(model, optimizer, steps):
    model.train()
    for step in steps:
        images = np.random.default_rng(step).standard_normal((2, 3, 32, 32)).astype("float32")
        loss = nn.functional.cross_entropy(model(paddle.to_tensor(images)), paddle.to_tensor([step % 3, 1]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()


def test_training_resumes_bitwise_from_a_saved_state_among_other_layers(tmp_path):
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, range(3))
    save_file(
        {"model": numpy_state(model), "optimizer": optimizer_state(optimizer, model)}, tmp_path / "state.pdparams"
    )
    train(model, optimizer, range(3, 6))

    nn.Sequential(nn.Linear(2, 2), nn.Conv2D(1, 1, 3), nn.BatchNorm2D(1), nn.LayerNorm(2))
    again = make_model(seed=9)
    assert {p.name for p in again.parameters()}.isdisjoint(p.name for p in model.parameters())
    state = load_file(tmp_path / "state.pdparams")
    assert state["optimizer"]["head.weight/moment1"].shape == (32, 3)
    resumed = make_optimizer(again)
    load_weights(again, Checkpoint("state", state["model"]))
    load_optimizer_state(resumed, again, state["optimizer"])
    train(again, resumed, range(3, 6))

    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), array, err_msg=name)
    moments, expected = optimizer_state(resumed, again), optimizer_state(optimizer, model)
    assert moments.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(moments[name], array, err_msg=name)

    forgetful = make_model(seed=9)
    load_weights(forgetful, Checkpoint("state", state["model"]))
    train(forgetful, make_optimizer(forgetful), range(3, 6))
    assert (forgetful.head.weight.numpy() != model.head.weight.numpy()).any()


def test_a_state_fits_other_optimizers_of_the_same_model():
    """Paddle numbers the accumulators of a parameter through all optimizers of the process."""
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, range(2))
    weights, state = numpy_state(model), optimizer_state(optimizer, model)
    train(model, optimizer, range(2, 4))
    expected = numpy_state(model)
    for other in (make_optimizer(model), optimizer):  # one that has stepped, too
        load_weights(model, Checkpoint("state", weights))
        load_optimizer_state(other, model, state)
        train(model, other, range(2, 4))
        for name, array in numpy_state(model).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert optimizer_state(other, model).keys() == state.keys()


def test_parameter_whose_name_begins_like_another():
    names = ("w", "w_2")
    model = nn.LayerList([nn.Linear(2, 2, paddle.ParamAttr(name=name), False) for name in names])
    optimizer = paddle.optimizer.AdamW(0.1, parameters=model.parameters())
    for number, layer in enumerate(model, 1):
        layer.weight.grad = paddle.full([2, 2], float(number))
    optimizer.step()
    state = optimizer_state(optimizer, model)
    assert len(state) == 2 * 4
    for number in range(2):
        np.testing.assert_allclose(state[f"{number}.weight/moment1"], 0.1 * (number + 1), rtol=1e-5)


def test_a_parameter_that_was_frozen_when_the_state_was_saved_trains_on_as_in_one_run():
    whole, parts = make_model(), make_model()
    optimizer = make_optimizer(whole)  # of all parameters
    for model in (whole, parts):
        model.stages[0].merging.conv.weight.stop_gradient = True
    before = make_optimizer(parts)
    train(whole, optimizer, [1, 2])
    train(parts, before, [1, 2])
    state = optimizer_state(before, parts)
    again = make_model()
    again.set_state_dict(parts.state_dict())
    after = make_optimizer(again)
    load_optimizer_state(after, again, state)
    for model, own in ((whole, optimizer), (again, after)):
        model.stages[0].merging.conv.weight.stop_gradient = False
        train(model, own, [3, 4])
    assert not np.array_equal(*(model.stages[0].merging.conv.weight.numpy() for model in (whole, parts)))
    for name, value in numpy_state(whole).items():
        np.testing.assert_array_equal(value, numpy_state(again)[name], err_msg=name)


def test_state_from_before_the_first_step():
    model = make_model()
    assert optimizer_state(make_optimizer(model), model) == {}
    optimizer = make_optimizer(model)
    load_optimizer_state(optimizer, model, {})
    train(model, optimizer, range(1))


def test_state_of_another_models_optimizer_names_the_parameter():
    model, other = make_model(), make_model(depths=(1, 1, 2, 1))
    optimizer = make_optimizer(other)
    train(other, optimizer, range(1))
    with pytest.raises(UserError, match=r"stages\.2\.blocks\.1\."):
        load_optimizer_state(make_optimizer(model), model, optimizer_state(optimizer, other))


@pytest.mark.parametrize(
    ("kind", "change", "part"),
    [
        ("moment1", lambda array: array * np.nan, "not between"),
        ("moment1", lambda array: np.full(array.shape, 1e300), "not between"),
        ("moment2", lambda array: array - 1, "not between 0 and"),
        ("beta1_pow_acc", lambda array: array * 0 + 1, "not between 0 and 1"),
        ("momentum", lambda array: array, "'momentum', unknown to AdamW"),
    ],
)
def test_an_optimizer_state_that_would_spoil_the_weights_is_refused(kind, change, part):
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, range(1))
    state = optimizer_state(optimizer, model)
    old = state.pop("head.bias/moment1" if kind == "momentum" else f"head.bias/{kind}")
    with pytest.raises(UserError, match=part):
        load_optimizer_state(make_optimizer(model), model, {**state, f"head.bias/{kind}": change(old)})
