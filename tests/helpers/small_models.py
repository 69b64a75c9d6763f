"""A small Pale Transformer, what it costs by the closed form, and two steps of its training."""

from __future__ import annotations

import math

import numpy as np
import paddle

from common.checkpoints.loading import numpy_state
from common.layers.variants import VARIANTS
from common.pale_transformer import PaleTransformer

SMALL = {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 2, 2), "pale_size": 2, "num_classes": 5}


def small_model(seed=0, **overrides):
    paddle.seed(seed)
    return PaleTransformer(**{**SMALL, **overrides})


def evaluating(model):
    """Switch to evaluation mode; ``eval`` returns nothing before Paddle 3."""
    model.eval()
    return model


def random_images(batch, height, width=None, seed=0):
    values = np.random.default_rng(seed).standard_normal((batch, 3, height, width or height))
    return paddle.to_tensor(values.astype("float32"))


def group_lengths(attention, h, w, s_r, s_c):
    """Tokens in a group, of each part of the channels."""
    return {
        "pale": [s_r * w, h * s_c],
        "axial": [w, h],
        "cross": [s_r * w, h * s_c],
        "window": [s_r * s_c],
        "global": [h * w],
    }[attention]


def expected_flops(
    height, width, embed_dim, depths, pale_size, num_classes=1000, attention="pale", parallel=True, cpe=True
):
    """O = hwc(4c + 27 + 2 L), L the mean length of the groups, and what surrounds it: 2 L = s_c h + s_r w for pales.

    Padding, to multiples of a group's sides where it does not cover all, costs all of O but the projection.
    """
    total, c_in = 0, 3
    for stage, depth in enumerate(depths):
        c, kernel, stride = embed_dim * 2**stage, *((3, 2) if stage else (7, 4))
        h, w = height, width = math.ceil(height / stride), math.ceil(width / stride)
        total += h * w * c * kernel**2 * c_in
        s_r, s_c = np.minimum(pale_size[stage] if isinstance(pale_size, list) else pale_size, (h, w)).tolist()
        padded = {"axial": (h, w), "global": (h, w)}.get(
            attention, (s_r * math.ceil(h / s_r), s_c * math.ceil(w / s_c))
        )
        for block in range(sum(depths[:stage]), sum(depths[:stage]) + depth):
            hp, wp = padded
            if not parallel and attention in ("pale", "cross"):
                hp, wp = (h, wp) if block % 2 else (hp, w)
            lengths = group_lengths(attention, hp, wp, s_r, s_c)
            lengths = lengths if parallel else [lengths[block % len(lengths)]]
            total += hp * wp * c * (4 * c + 27) - (hp * wp - h * w) * c * c
            total += 2 * hp * wp * c * sum(lengths) // len(lengths)
            total += 9 * h * w * c * cpe + 8 * h * w * c**2
        c_in = c
    return total + c_in * num_classes


def variant_flops(name, height, width):
    return expected_flops(height, width, *(VARIANTS[name][key] for key in ("embed_dim", "depths", "pale_size")))


def train_twice(model, recompute, drop_path_seed=3):
    """Two steps of gradient descent; return logits, gradients, and the state after them."""
    model.train()
    model.set_recompute(recompute)
    optimizer = paddle.optimizer.SGD(0.05, parameters=model.parameters())
    results = {}
    for step in range(2):
        paddle.seed(drop_path_seed + step)
        logits = model(random_images(4, 40, 32, seed=step))
        (logits * paddle.to_tensor([[1.0, -2.0, 3.0, 0.5, 1.5]])).mean().backward()
        results[f"logits {step}"] = logits.numpy()
        for name, parameter in model.named_parameters():
            if not parameter.stop_gradient:
                results[f"gradient {step} {name}"] = parameter.grad.numpy()
        optimizer.step()
        optimizer.clear_grad()
    return results | numpy_state(model)
