"""AdamW's groups, seen in the weights after a step, the learning rate of a step, and clipping."""

import functools
import math

import numpy as np
import paddle
import pytest

from common.errors import UserError
from common.pale_transformer import PaleTransformer
from common.training.optimizer import (
    build_optimizer,
    clip_gradients,
    parameter_groups,
    warmup_cosine,
    with_cooldown,
)

LR, DECAY, LAYER_DECAY = 0.01, 0.5, 0.7
COSINE = {"total_steps": 101, "warmup_steps": 21, "base_lr": 1.0, "warmup_lr": 0.1}


def make_model():
    return PaleTransformer(embed_dim=4, depths=(1, 1, 2, 1), num_heads=(2, 2, 2, 2), pale_size=2, num_classes=3)


def make_adamw(model, learning_rate, weight_decay, layer_decay=1.0):
    section = {"type": "AdamW", "weight_decay": weight_decay}
    return build_optimizer(section, model, layer_decay, learning_rate=learning_rate)


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def step_from_ones(model, optimizer, gradient):
    """Set every weight to 1 and every gradient to the given value, step, and return the weights."""
    for parameter in trainable(model).values():
        parameter.set_value(paddle.ones_like(parameter))
        parameter.grad = paddle.full_like(parameter, gradient)
    optimizer.step()
    return {name: parameter.numpy() for name, parameter in trainable(model).items()}


# ---- learning rate


def test_the_rate_rises_linearly_then_falls_along_a_cosine():
    rates = [warmup_cosine(step, 101, 21, 1.0, 0.1, 0.01) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[7] == pytest.approx(0.1 + 0.9 / 3)
    assert rates[21] == pytest.approx(1.0)
    # The cosine runs over the 79 steps from 21 to 100.
    assert rates[60] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 39 / 79)))
    assert rates[100] == pytest.approx(0.01)
    differences = np.diff(rates)
    np.testing.assert_allclose(differences[:21], differences[0])
    assert (differences[21:] < 0).all()
    assert warmup_cosine(500, 101, 21, 1.0, 0.1, 0.01) == pytest.approx(0.01)


def test_the_rate_without_warm_up_begins_at_its_base():
    assert [warmup_cosine(step, 11, 0, 1.0, 0.1, 0.01) for step in (0, 5, 10)] == pytest.approx([1.0, 0.505, 0.01])
    assert warmup_cosine(0, 1, 0, 1.0, 0.1, 0.01) == 1.0


def test_a_cooldown_keeps_the_rate_that_the_schedule_ends_with():
    schedule = functools.partial(warmup_cosine, **COSINE, end_lr=0.01)
    rate = with_cooldown(schedule, 101)
    assert [rate(step) for step in (0, 60, 100)] == [schedule(step) for step in (0, 60, 100)]
    assert [rate(step) for step in (101, 500)] == pytest.approx([0.01, 0.01])


def test_a_schedule_that_ends_at_zero_is_followed_by_a_hundredth_of_its_highest_rate():
    rate = with_cooldown(functools.partial(warmup_cosine, **COSINE, end_lr=0.0), 101)
    assert rate(100) == pytest.approx(0.0)
    assert rate(101) == pytest.approx(0.01, rel=0.01)


def test_a_cooldown_is_no_restart_of_the_schedule():
    rate = with_cooldown(lambda step: 1.0 - 0.1 * (step % 10), 20)
    assert [rate(step) for step in (19, 20, 30)] == pytest.approx([0.1, 0.1, 0.1])


# ---- groups


def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = make_model()
    for parameter in model.stages[0].parameters():
        parameter.stop_gradient = True
    grouped = [p.name for group in parameter_groups(model, DECAY, LAYER_DECAY) for p in group["params"]]
    assert sorted(grouped) == sorted(parameter.name for parameter in trainable(model).values())
    groups = parameter_groups(make_model(), DECAY)
    assert sorted((group["weight_decay"], group["learning_rate"]) for group in groups) == [(0.0, 1.0), (DECAY, 1.0)]


def test_only_weights_shrink_without_gradients():
    model = make_model()
    weights = step_from_ones(model, make_adamw(model, LR, DECAY), gradient=0.0)
    undecayed = {name for name in weights if name.endswith(".bias") or ".norm" in name or name.startswith("norm.")}
    assert 0 < len(undecayed) < len(weights)
    for name, values in weights.items():
        expected = 1.0 if name in undecayed else 1.0 - LR * DECAY
        np.testing.assert_allclose(values, expected, rtol=1e-6, err_msg=name)


def test_layer_decay_scales_update_and_weight_decay_and_follows_set_lr():
    # The first step of Adam moves a weight by the rate, whatever the size of its gradient. Depths (1, 1, 2, 1) make
    # layers 0 to 6.
    powers = {
        "stages.0.merging.conv.weight": 6,
        "stages.0.merging.norm.bias": 6,
        "stages.0.blocks.0.mlp.fc1.weight": 5,
        "stages.1.merging.conv.weight": 4,
        "stages.2.blocks.0.norm1.weight": 3,
        "stages.2.blocks.1.attention.projection.weight": 2,
        "stages.3.blocks.0.position_encoding.weight": 1,
        "norm.weight": 0,
        "head.weight": 0,
    }
    model = make_model()
    weights = step_from_ones(model, make_adamw(model, LR, 0.0, LAYER_DECAY), gradient=1.0)
    for name, power in powers.items():
        np.testing.assert_allclose(1.0 - weights[name], LR * LAYER_DECAY**power, rtol=1e-4, err_msg=name)
    optimizer = make_adamw(model, 1.0, DECAY, LAYER_DECAY)
    optimizer.set_lr(LR)
    weights = step_from_ones(model, optimizer, gradient=0.0)
    for name, power in (("stages.0.merging.conv.weight", 6), ("head.weight", 0)):
        np.testing.assert_allclose(1.0 - weights[name], LR * DECAY * LAYER_DECAY**power, rtol=1e-4, err_msg=name)


# ---- the section


def test_a_section_sets_the_arguments():
    optimizer = build_optimizer({"type": "AdamW", "weight_decay": 0.2, "beta1": 0.5, "beta2": 0.6}, make_model())
    assert (optimizer._beta1, optimizer._beta2) == (0.5, 0.6)
    assert {group["weight_decay"] for group in optimizer._param_groups} == {0.0, 0.2}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "SGD"}, "solver.type is 'SGD'; choose one of AdamW"),
        ({"type": "AdamW", "weight_decy": 0.1}, "unknown key weight_decy"),
        ({"type": "AdamW", "weight_decay": -1}, "solver.weight_decay is -1"),
        ({"type": "AdamW", "beta2": True}, "solver.beta2 is True"),
    ],
)
def test_a_wrong_section_is_refused_by_name(section, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(section, make_model(), name="solver")


# ---- clipping


def gradients_of(model):
    return np.concatenate([parameter.grad.numpy().ravel() for parameter in trainable(model).values()])


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])  # the branch; the tensors stay on the CPU
@pytest.mark.parametrize("limit", [0.0, 0.5, 1e9])
def test_gradients_are_clipped_by_their_global_norm(limit, device, monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    model = make_model()
    model(paddle.randn([2, 3, 32, 32])).square().sum().backward()
    before = gradients_of(model).astype(np.float64)
    norm = np.sqrt((before**2).sum())
    assert 0.5 < norm < 1e9
    assert float(clip_gradients(model.parameters(), limit)) == pytest.approx(norm, rel=1e-4)
    expected = before * (0.5 / norm) if limit == 0.5 else before
    np.testing.assert_allclose(gradients_of(model), expected, rtol=1e-4, atol=1e-9)


def test_a_norm_that_is_not_finite_is_returned_as_such():
    model = make_model()
    model(paddle.ones([1, 3, 32, 32])).sum().backward()
    model.head.bias.grad = paddle.to_tensor([0.0, math.nan, 0.0])
    assert not math.isfinite(float(clip_gradients(model.parameters(), 1.0)))
