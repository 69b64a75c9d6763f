"""The depthwise convolution over stacked images against the plain one."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common.layers.depthwise_conv import DepthwiseConv2D, convolve_together

CHANNELS = 3


def random_tensor(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return paddle.to_tensor(values.astype("float32"), stop_gradient=False)


def make_layer(kernel_size=3, bias=True):
    layer = DepthwiseConv2D(CHANNELS, kernel_size, bias)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.set_value(random_tensor(*parameter.shape, seed=10 + seed).detach())
    return layer


def plain(layer, x):
    """The same convolution by its definition: each image alone, channels first, zeros around it."""
    kernel_size = layer.weight.shape[-1]
    y = F.conv2d(x.transpose([0, 3, 1, 2]), layer.weight, layer.bias, padding=kernel_size // 2, groups=CHANNELS)
    return y.transpose([0, 2, 3, 1])


def output_and_gradients(run, layer, shape):
    x = random_tensor(*shape)
    y = run(x)
    (y * random_tensor(*shape, seed=1).detach()).sum().backward()
    results = {"output": y, "input": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
    results = {name: tensor.numpy() for name, tensor in results.items()}
    layer.clear_gradients()
    return results


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (2, 2), (5, 7), (8, 6)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_equals_the_plain_convolution(kernel_size, batch, size, bias):
    layer = make_layer(kernel_size, bias)
    shape = (batch, *size, CHANNELS)
    expected = output_and_gradients(lambda x: plain(layer, x), layer, shape)
    assert set(expected) == {"output", "input", "weight"} | ({"bias"} if bias else set())
    for name, value in output_and_gradients(layer, layer, shape).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_the_path_for_gpus_and_exports_equals_the_plain_convolution(kernel_size, size):
    layer = make_layer(kernel_size, bias=False)
    x = random_tensor(3, *size, CHANNELS)
    np.testing.assert_allclose(layer._convolve(x).numpy(), plain(layer, x).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7)])
def test_several_layers_together_equal_each_alone(shape, kernel_size):
    layers = [make_layer(kernel_size, bias=False) for _ in range(3)]
    for seed, layer in enumerate(layers):
        layer.weight.set_value(random_tensor(*layer.weight.shape, seed=20 + seed).detach())

    def run(convolve):
        x = random_tensor(*shape, CHANNELS)
        outputs = convolve(x)
        factors = [random_tensor(*shape, CHANNELS, seed=30 + seed).detach() for seed in range(3)]
        paddle.add_n([(y * factor).sum() for y, factor in zip(outputs, factors, strict=True)]).backward()
        tensors = [*outputs, x.grad, *(layer.weight.grad for layer in layers)]
        results = [tensor.numpy() for tensor in tensors]
        for layer in layers:
            layer.clear_gradients()
        return results

    together = run(lambda x: convolve_together(x, layers))
    alone = run(lambda x: [plain(layer, x) for layer in layers])
    for value, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(paddle.device.get_device() != "cpu", reason="GPUs convolve the batch as it is")
def test_batch_becomes_one_wide_image_on_cpus(monkeypatch):
    shapes, real = [], F.conv2d

    def spy(x, *args, **kwargs):
        shapes.append(x.shape)
        return real(x, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", spy)
    make_layer(5)(random_tensor(4, 6, 7, CHANNELS))
    assert shapes == [[1, CHANNELS, 6, 4 * (7 + 2)]]


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_images_do_not_leak_into_their_neighbours(kernel_size):
    layer = make_layer(kernel_size)
    x = random_tensor(3, 4, 5, CHANNELS).detach()
    before = layer(x).numpy()
    changed = x.clone()
    changed[1] = float("nan")
    after = layer(changed).numpy()
    assert np.isnan(after[1]).all()
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def test_gradients_do_not_leak_into_neighbours():
    layer = make_layer(5)
    x = random_tensor(3, 2, 2, CHANNELS)
    layer(x)[1].sum().backward()
    gradient = x.grad.numpy()
    assert (gradient[1] != 0).all()
    assert (gradient[[0, 2]] == 0).all()


@pytest.mark.parametrize("kernel_size", [0, 2, 4])
def test_even_kernel_is_refused(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size is {kernel_size}"):
        DepthwiseConv2D(CHANNELS, kernel_size)
