"""What PaddleSeg 2.8.0, of 2023, needs to train and evaluate on the Paddle of today.

:data:`MENDS` is the whole list. Importing this module tries each original function and replaces those, and only those,
that do not work here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddleseg.models.losses import CrossEntropyLoss
from paddleseg.transforms import RandomPaddingCrop
from paddleseg.transforms.functional import crop
from paddleseg.utils import metrics

from common.toolkits.patches import GRAD_SCALER, Mend, apply_mends

__all__ = ["MENDS"]

# `paddleseg.core.train` is the function: the package hides the module of that name behind it.
_train_module = importlib.import_module("paddleseg.core.train")


# ---- CrossEntropyLoss


def _average_loss(
    self: CrossEntropyLoss, logit: Tensor, label: Tensor, semantic_weights: Tensor | None, loss: Tensor
) -> Tensor:
    """Average the losses of the pixels, as PaddleSeg does.

    It divides by the sum of the class weights of the pixels that count: those not ignored or, without
    ``avg_non_ignore``, all. With ``top_k_percent_pixels`` only the hardest pixels take part.

    Args:
        logit: ``[B, H, W, classes]``, not used.
        label: ``[B, H, W]``, int64.
        semantic_weights: factor of each pixel's loss, ``[B, H, W]``.
        loss: ``[B, H, W]``, class weights included.
    """
    counted = label != self.ignore_index if self.avg_non_ignore else paddle.ones_like(label, dtype="bool")
    mask = counted.astype("float32")
    loss = loss.reshape(mask.shape) * mask
    if semantic_weights is not None:
        loss = loss * semantic_weights
    weights = paddle.ones_like(mask)
    if self.weight is not None:
        weights = self.weight.gather((label * counted.astype(label.dtype)).flatten()).reshape(mask.shape)
    if self.top_k_percent_pixels == 1.0:
        return loss.mean() / ((mask * weights).mean() + self.EPS)
    hardest, indices = loss.flatten().topk(int(self.top_k_percent_pixels * loss.size))
    return hardest.mean() / (weights.flatten().gather(indices).mean() + self.EPS)


def _averages_losses(average: Callable) -> bool:
    label = paddle.to_tensor([[[0, 1, 255]]])
    loss = paddle.to_tensor([[[1.0, 6.0, 0.0]]])
    logit = paddle.zeros([1, 1, 3, 2])
    plain, weighted = (
        float(average(CrossEntropyLoss(weight=weight), logit, label, None, loss)) for weight in (None, [1.0, 3.0])
    )
    return abs(plain - 7 / 2) < 1e-4 and abs(weighted - 7 / 4) < 1e-4


# ---- core.train's log


_original_loss_computation = _train_module.loss_computation


def _losses_of_one_element(*args: Any, **kwargs: Any) -> list[Tensor]:
    """Give each loss the shape [1]: ``train`` logs ``loss.numpy()[0]``."""
    return [loss.reshape([1]) for loss in _original_loss_computation(*args, **kwargs)]


def _gives_losses_to_log(loss_computation: Callable) -> bool:
    def mean(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mean()

    losses = {"types": [mean], "coef": [0.5]}
    (loss,) = loss_computation([paddle.ones([1, 1, 2, 2])], paddle.zeros([1, 2, 2], "int64"), None, losses)
    return loss.numpy()[0] == 0.5


# ---- metrics


def _calculate_area(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """Count the pixels of each class.

    Args:
        pred, label: class indices, ``[B, H, W]`` or ``[B, 1, H, W]``.
        ignore_index: label of the pixels whose prediction does not count.

    Returns:
        int64 ``[num_classes]``: pixels of each class in both, in ``pred``, in ``label``.

    Raises:
        ValueError: the numbers of pixels differ.
    """
    pred, label = pred.flatten().astype("int64"), label.flatten().astype("int64")
    if pred.shape != label.shape:
        raise ValueError(f"pred has {pred.shape[0]} pixels, label {label.shape[0]}")

    def count(classes: Tensor, where: Tensor) -> Tensor:
        where = where.logical_and(classes >= 0).logical_and(classes < num_classes)
        others = paddle.full_like(classes, num_classes)
        return paddle.bincount(paddle.where(where, classes, others), minlength=num_classes + 1)[:num_classes]

    counted = label != ignore_index
    return count(label, counted.logical_and(pred == label)), count(pred, counted), count(label, label == label)


def _counts_pixels(calculate_area: Callable) -> bool:
    pred, label = paddle.to_tensor([[0, 1, 1, 0]]), paddle.to_tensor([[0, 1, 0, 255]])
    return [area.tolist() for area in calculate_area(pred, label, 2)] == [[1, 1], [1, 2], [2, 1]]


# ---- transforms


def _crop_randomly(self: RandomPaddingCrop, data: dict[str, Any]) -> dict[str, Any]:
    """Pad up to the crop's size and crop image and labels alike.

    While one class has ``category_max_ratio`` or more of the pixels, it tries again, up to ``loop_times`` times.
    """
    if data["img"].shape[:2] == self.crop_size:
        return data
    data = self._padding(data)
    size = data["img"].shape[:2]
    box = self._get_crop_coordinates(size)
    if self.category_max_ratio < 1.0:
        for _ in range(self.loop_times):
            labels, counts = np.unique(crop(data["label"], box), return_counts=True)
            counts = counts[labels != self.ignore_index]
            if len(counts) > 1 and counts.max() / counts.sum() < self.category_max_ratio:
                break
            box = self._get_crop_coordinates(size)
    for key in ("img", *data.get("gt_fields", [])):
        data[key] = crop(data[key], box)
    return data


def _crops_the_image(call: Callable) -> bool:
    label = np.arange(30, dtype=np.uint8).reshape(5, 6)
    image = np.stack([label, label + 100, label + 200], axis=-1).astype(np.float32)
    transform = RandomPaddingCrop((3, 2), category_max_ratio=0.75)
    data = call(transform, {"img": image, "label": label, "gt_fields": ["label"]})
    return data["img"].shape == (2, 3, 3) and np.array_equal(data["img"][..., 1], data["label"] + 100.0)


# ---- paddle.flops, with which core.train ends


_original_flops = paddle.flops


def _flops(net: Any, input_size: Sequence[int], custom_ops: dict | None = None, print_detail: bool = False) -> int:
    """Count, and remove what counting leaves behind in the layers."""
    if not isinstance(net, nn.Layer):
        return _original_flops(net, input_size, custom_ops, print_detail)
    layers = net.sublayers(include_self=True)
    buffers, forward = [set(layer._buffers) for layer in layers], net.__dict__.get("forward")
    try:
        return _original_flops(net, input_size, custom_ops, print_detail)
    finally:
        for layer, own in zip(layers, buffers, strict=True):
            for name in set(layer._buffers) - own:
                delattr(layer, name)
        net.__dict__.pop("forward", None)
        if forward is not None:
            net.forward = forward


class _HalfUsed(nn.Layer):
    """Counting visits one of the two layers only."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def _counts_without_trace(flops: Callable) -> bool:
    model = _HalfUsed()
    flops(model, [1, 1, 1, 1])
    return not model.state_dict() and "forward" not in model.__dict__


MENDS: tuple[Mend, ...] = (
    Mend(
        CrossEntropyLoss,
        "_post_process_loss",
        _average_loss,
        "multiplies float32 by int64, which Paddle 3 refuses: TypeError",
        ("3.",),
        _averages_losses,
        CrossEntropyLoss._post_process_loss,
    ),
    Mend(
        _train_module,
        "loss_computation",
        _losses_of_one_element,
        "gives losses of shape [], of which `paddleseg.core.train` logs the element [0]: IndexError",
        ("2.6", "3."),
        _gives_losses_to_log,
        _original_loss_computation,
    ),
    Mend(
        metrics,
        "calculate_area",
        _calculate_area,
        "concatenates tensors of shape []: ValueError in `paddleseg.core.evaluate`",
        ("2.6", "3."),
        _counts_pixels,
        metrics.calculate_area,
    ),
    Mend(
        RandomPaddingCrop,
        "__call__",
        _crop_randomly,
        "with `category_max_ratio` below 1, puts the labels in the image's place or leaves the image uncropped",
        ("2.6", "3."),
        _crops_the_image,
        RandomPaddingCrop.__call__,
    ),
    GRAD_SCALER,
    Mend(
        paddle,
        "flops",
        _flops,
        "leaves `total_ops` and `total_params` in the state_dict, for layers that it did not reach, and a bound "
        "`forward`, which copies of the model would share; `paddleseg.core.train` ends with it",
        ("2.6", "3."),
        _counts_without_trace,
        _original_flops,
    ),
)


apply_mends(MENDS)
