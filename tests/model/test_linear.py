"""The linear layer with the bias inside the product against Paddle's."""

import warnings

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from common.layers.linear import Linear


def random_tensor(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return paddle.to_tensor(values.astype("float32"), stop_gradient=False)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_linear_layer_of_paddle(shape, bias):
    layer = Linear(5, 7, bias_attr=None if bias else False)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.set_value(random_tensor(*parameter.shape, seed=10 + seed).detach())

    def run(linear):
        x = random_tensor(*shape)
        y = linear(x)
        (y * random_tensor(*y.shape, seed=1).detach()).sum().backward()
        results = [tensor.numpy() for tensor in (y, x.grad, *(p.grad for p in layer.parameters()))]
        layer.clear_gradients()
        return results

    expected = run(lambda x: F.linear(x, layer.weight, layer.bias))
    for value, other in zip(run(layer), expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


def test_is_exported_as_the_linear_layer_of_paddle():
    """The layer's own gradient must not get into a program."""
    layer = Linear(5, 7)
    x = random_tensor(2, 3, 5).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = paddle.jit.to_static(
            layer, input_spec=[paddle.static.InputSpec([None, 3, 5], "float32")], full_graph=True
        )
    np.testing.assert_allclose(program(x).numpy(), F.linear(x, layer.weight, layer.bias).numpy(), atol=1e-6)


def test_without_gradients_nothing_is_recorded():
    with paddle.no_grad():
        y = Linear(5, 7)(random_tensor(2, 5))
    assert y.stop_gradient
    assert isinstance(Linear(5, 7), nn.Linear)
