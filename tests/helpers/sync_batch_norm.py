"""Run on two ranks: their synchronized BatchNorm equals one BatchNorm of both batches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.distributed as dist  # noqa: E402
from paddle import nn  # noqa: E402

from common.layers.channels_last import BatchNorm  # noqa: E402
from common.runtime.command_line import run  # noqa: E402
from common.runtime.distributed import rank, world_size  # noqa: E402
from common.training.sync_batch_norm import SyncBatchNorm, synchronize_batch_norm  # noqa: E402

BATCH, CHANNELS = 3, 4


def check(build, shape) -> None:
    rng = np.random.default_rng(0)
    # Each rank's values have another mean and another deviation, and none is 0.
    values = rng.standard_normal((world_size(), BATCH, *shape)) * np.array([1.0, 3.0])[:, None, None, None, None]
    values = (values + np.array([5.0, -2.0])[:, None, None, None, None]).astype("float32")
    factors = rng.standard_normal(values.shape).astype("float32")
    whole, model = build(), nn.Sequential(build())
    for layer in (whole, model[0]):
        layer.weight.set_value(np.linspace(0.5, 2.0, CHANNELS).astype("float32"))
        layer.bias.set_value(np.linspace(-1.0, 1.0, CHANNELS).astype("float32"))
    names = list(model.state_dict())
    synchronize_batch_norm(model)
    assert type(model[0]) is SyncBatchNorm
    assert list(model.state_dict()) == names

    def outputs(layer, x, factor):
        x = paddle.to_tensor(x, stop_gradient=False)
        y = layer(x)
        (y * paddle.to_tensor(factor)).sum().backward()
        return y, x.grad

    expected, expected_gradient = outputs(whole, values.reshape(-1, *shape), factors.reshape(-1, *shape))
    found, gradient = outputs(model[0], values[rank()], factors[rank()])
    own = slice(rank() * BATCH, (rank() + 1) * BATCH)
    for parameter in (model[0].weight, model[0].bias):
        dist.all_reduce(parameter.grad)
    pairs = {
        "output": (found, expected[own]),
        "gradient": (gradient, expected_gradient[own]),
        **{name: (getattr(model[0], name), getattr(whole, name)) for name in ("_mean", "_variance")},
        **{name: (getattr(model[0], name).grad, getattr(whole, name).grad) for name in ("weight", "bias")},
    }
    for name, (own_values, other) in pairs.items():
        np.testing.assert_allclose(own_values.numpy(), other.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
    for layer in (whole, model):
        layer.eval()
    ranks_apart = paddle.to_tensor(values[rank()])
    if rank() == 0:  # evaluation does not wait for the other rank
        np.testing.assert_allclose(model(ranks_apart).numpy(), whole(ranks_apart).numpy(), rtol=1e-5, atol=1e-5)


def main(argv: Sequence[str]) -> None:
    check(lambda: nn.BatchNorm2D(CHANNELS), (CHANNELS, 5, 3))
    check(lambda: BatchNorm(CHANNELS), (5, 3, CHANNELS))
    print(f"rank {rank()}: equal", flush=True)


if __name__ == "__main__":
    run(main)
