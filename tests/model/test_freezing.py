"""What freezing keeps as it is, and that everything else trains as before."""

import numpy as np
import paddle
import pytest
from paddle import nn

from common.layers.channels_last import BatchNorm
from common.layers.drop_path import DropPath
from common.layers.freezing import freeze
from common.pale_features import PaleFeatures
from tests.helpers.masked_attention import randomize
from tests.helpers.small_models import SMALL, random_images, small_model

STATISTICS = ("._mean", "._variance")


class Dense(nn.Layer):
    """A backbone in a model around it."""

    def __init__(self):
        super().__init__()
        self.backbone = PaleFeatures(**{name: value for name, value in SMALL.items() if name != "num_classes"})
        self.head = nn.Linear(3, 2)


def trainable(model):
    return {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def state(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in state(model).items() if value.tobytes() != before[name].tobytes()}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["stem"], ["stages.0.merging."]),
        (["stages.0"], ["stages.0."]),
        (["stages.[01]", "head.bias"], ["stages.0.", "stages.1.", "head.bias"]),
        (["stages.*.norm2.*"], [f"stages.{i}.blocks.{j}.norm2." for i in range(4) for j in range(2)]),
        (["backbone"], ["stages.", "norm."]),
        (["norm_eval"], []),
    ],
)
def test_patterns_freeze_the_parameters_that_they_name(patterns, expected):
    model = small_model()
    before = trainable(model)
    model.freeze(*patterns)
    assert before - trainable(model) == {name for name in before if name.startswith(tuple(expected))}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stages.0", "backbone.stages.0."),
        ("backbone.stages.0", "backbone.stages.0."),
        ("stem", "backbone.stages.0.merging."),
        ("backbone", "backbone.stages."),
        ("head", "head."),
    ],
)
def test_names_inside_the_backbone_of_a_dense_model(pattern, expected):
    model = Dense()
    before = trainable(model)
    freeze(model, [pattern])
    assert before - trainable(model) == {name for name in before if name.startswith(expected)}


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_frozen_layers_stand_still_and_pass_on_the_right_gradient(stage):
    whole, partly = (randomize(small_model(), 0.3) for _ in range(2))
    partly.freeze(f"stages.{stage}")
    before = state(partly)
    for model in (whole, partly):
        model.train()
    for layer in whole.stages[stage].sublayers():
        if isinstance(layer, BatchNorm):
            layer.eval()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=[p for p in partly.parameters() if not p.stop_gradient])
    for model in (whole, partly):
        (model(random_images(4, 64)) ** 2).sum().backward()
    expected = dict(whole.named_parameters())
    for name, parameter in partly.named_parameters():
        if parameter.stop_gradient:
            assert parameter.grad is None, name
        else:
            own, other = parameter.grad.numpy(), expected[name].grad.numpy()
            np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4 * np.abs(other).max() + 1e-4, err_msg=name)
    optimizer.step()
    moved = changed(partly, before)
    assert moved == {name for name in before if not name.startswith(f"stages.{stage}.")}


def test_norm_eval_keeps_the_statistics_of_the_backbone_and_trains_everything():
    model = randomize(small_model(), 0.3)
    names = trainable(model)
    model.freeze("norm_eval")
    before = state(model)
    model.train()
    (model(random_images(4, 64)) ** 2).sum().backward()
    assert not changed(model, before)
    assert any(name.endswith(STATISTICS) for name in before)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names


def test_only_frozen_blocks_stop_dropping_paths():
    model = small_model(drop_path_rate=0.5)
    before = [layer.rate for layer in model.sublayers() if isinstance(layer, DropPath)]
    model.freeze("stages.2.blocks.1", "stages.3.blocks.0.mlp")
    after = [layer.rate for layer in model.sublayers() if isinstance(layer, DropPath)]
    assert before[3] > 0
    assert after == [*before[:3], 0.0, before[4]]


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("stages.9", "did you mean stages."),
        ("norm_evl", "did you mean norm_eval"),
        ("xyz", "its parts are stages, norm"),
        ("*.qkv.norm.weight", "BatchNorm stages.1.blocks.0.attention.qkv.norm can only be frozen together"),
    ],
)
def test_wrong_patterns_are_refused_before_anything_is_frozen(pattern, named):
    model = small_model()
    before = trainable(model)
    with pytest.raises(ValueError, match=r"frozen together|matches no parameter") as refused:
        model.freeze("stages.0", pattern)
    assert named in str(refused.value)
    assert trainable(model) == before
