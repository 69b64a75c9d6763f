"""Layers against their definitions, and the fast forms for CPUs against the plain ones."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common.layers import cpu_kernels
from common.layers.attention import ScaledDotProductAttention
from common.layers.channels_last import BatchNorm, DepthwiseConv2D, Linear
from common.layers.drop_path import DropPath
from common.layers.learned_positions import resample
from common.layers.padding import pad_to_groups


def random_tensor(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return paddle.to_tensor(values.astype("float32"), stop_gradient=False)


def randomize(layer):
    for seed, parameter in enumerate(layer.parameters()):
        parameter.set_value(random_tensor(*parameter.shape, seed=10 + seed).detach())
    return layer


def output_and_gradients(run, layer, *shapes):
    """The output of ``run``, and the gradients of a fixed weighted sum of it."""
    inputs = [random_tensor(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    y = run(*inputs)
    (y * random_tensor(*y.shape, seed=9).detach()).sum().backward()
    tensors = {"output": y, **{f"input {i}": x.grad for i, x in enumerate(inputs)}}
    tensors |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    results = {name: tensor.numpy() for name, tensor in tensors.items()}
    layer.clear_gradients()
    return results


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 5, 7, 4), {}),
        ((3, 5, 7, 4), {"kernel_size": 5, "bias": False}),
        ((2, 8, 6, 4), {"multiplier": 3}),
        ((2, 1, 1, 4), {"multiplier": 3, "bias": False}),
    ],
)
def test_depthwise_convolution_is_that_of_each_image_and_output(shape, options, on_cpu, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "serve", lambda x: on_cpu)
    layer = randomize(DepthwiseConv2D(4, **options))

    def plain(x):
        kernels = layer.weight.split(layer.multiplier)
        padding = layer.weight.shape[-1] // 2
        outputs = [F.conv2d(x.transpose([0, 3, 1, 2]), kernel, padding=padding, groups=4) for kernel in kernels]
        y = paddle.concat(outputs, 1).transpose([0, 2, 3, 1])
        return y if layer.bias is None else y + layer.bias

    assert_close(output_and_gradients(layer, layer, shape), output_and_gradients(plain, layer, shape))


def test_images_of_a_batch_do_not_leak_into_their_neighbors():
    layer = randomize(DepthwiseConv2D(3, 5, multiplier=2))
    x = random_tensor(3, 4, 5, 3).detach()
    before = layer(x).numpy()
    x[1] = float("nan")
    after = layer(x).numpy()
    assert np.isnan(after[1]).all()
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size is 2"):
        DepthwiseConv2D(3, 2)


@pytest.mark.parametrize("bias", [None, False])
def test_linear_equals_paddles(bias):
    layer = randomize(Linear(5, 7, bias_attr=bias))
    found = output_and_gradients(layer, layer, (2, 3, 4, 5))
    assert_close(found, output_and_gradients(lambda x: F.linear(x, layer.weight, layer.bias), layer, (2, 3, 4, 5)))


def test_a_traced_program_holds_paddles_own_operations():
    """The fast forms have gradients of their own, which must not get into a program."""
    layers = paddle.nn.Sequential(DepthwiseConv2D(5, multiplier=3), Linear(15, 7))
    x = random_tensor(2, 3, 4, 5).detach()
    expected = layers(x).numpy()
    specification = [paddle.static.InputSpec([None, None, None, 5], "float32")]
    program = paddle.jit.to_static(layers, specification, full_graph=True)
    np.testing.assert_allclose(program(x).numpy(), expected, atol=1e-6)


def test_a_traced_batch_norm_has_no_channels_last_operator():
    """paddle2onnx takes that operator for a channels-first one."""
    layer = BatchNorm(5)
    for tensor in (layer.weight, layer.bias, layer._mean, layer._variance):
        tensor.set_value(paddle.rand([5]) + 0.5)
    layer.eval()
    x = random_tensor(2, 3, 4, 5).detach()
    specification = [paddle.static.InputSpec([None, None, None, 5], "float32")]
    program = paddle.jit.to_static(BatchNorm.forward.__get__(layer), specification, full_graph=True)
    assert "NHWC" not in str(program.concrete_program.main_program)
    np.testing.assert_allclose(program(x).numpy(), layer(x).numpy(), rtol=1e-5, atol=1e-6)


def test_fused_attention_equals_the_plain_formula():
    layers = [ScaledDotProductAttention(fused) for fused in (False, True)]
    results = [output_and_gradients(layer, layer, *[(4, 2, 6, 8)] * 3) for layer in layers]
    assert_close(results[1], results[0])


@pytest.mark.parametrize(
    ("height", "width", "group", "padded"),
    [(6, 6, (2, 3), (6, 6)), (5, 7, (3, 2), (6, 8)), (3, 9, (7, 7), (3, 14)), (5, 5, (1, 1), (5, 5))],
)
def test_padding_appends_zeros_until_the_groups_divide_the_map(height, width, group, padded):
    x = random_tensor(2, height, width, 3).detach()
    y, sides, size = pad_to_groups(x, group, (height, width))
    assert sides == (min(group[0], height), min(group[1], width))
    assert tuple(y.shape[1:3]) == size == padded
    np.testing.assert_array_equal(y[:, :height, :width].numpy(), x.numpy())
    assert float(y.abs().sum()) == pytest.approx(float(x.abs().sum()))


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    paddle.seed(0)
    samples, rate = 20_000, 0.25
    layer = DropPath(rate)
    outputs = layer(paddle.ones([samples, 2, 1, 3])).numpy().reshape(samples, 6)
    assert (outputs == outputs[:, :1]).all()
    np.testing.assert_allclose(np.unique(outputs), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    assert outputs[:, 0].mean() == pytest.approx(1.0, abs=4 * math.sqrt(rate / (1.0 - rate) / samples))
    layer.eval()
    assert (layer(paddle.ones([9, 2])) == 1).all()


def test_resampled_tables_keep_slopes_along_rows_and_columns():
    """Nearly, as Paddle's cubic interpolation does not keep them exactly, and away from the edges."""
    rows, columns = np.indices((16, 24)) + 0.5
    table = paddle.to_tensor(np.stack([rows / 16, columns / 24]))
    assert resample(table, 16, 24) is table
    found = resample(table, 32, 12).numpy()
    new_rows, new_columns = np.indices((32, 12)) + 0.5
    inner = np.s_[4:-4, 2:-2]
    np.testing.assert_allclose(found[0][inner], (new_rows / 32)[inner], atol=0.01)
    np.testing.assert_allclose(found[1][inner], (new_columns / 12)[inner], atol=0.01)
