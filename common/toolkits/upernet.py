"""UPerNet (arXiv 1807.10221) as for the paper's ADE20K results: mmsegmentation's UPerHead, width 512 [C].

PaddleSeg's own UPerNet differs: another auxiliary head, ``align_corners``, no dropout, and 9.5M unused parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddleseg.cvlibs import manager

from ..checkpoints.loading import load_pretrained

__all__ = ["FCNHead", "PaleUPerNet", "UPerHead"]


class ConvBNReLU(nn.Sequential):
    """Convolution with "same" padding and no bias -> BatchNorm -> ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        # Paddle's KaimingNormal has no fan_out mode [A: mmsegmentation's].
        fan_out = paddle.ParamAttr(initializer=nn.initializer.KaimingNormal(fan_in=out_channels * kernel_size**2))
        super().__init__(
            nn.Conv2D(
                in_channels, out_channels, kernel_size, padding=kernel_size // 2, weight_attr=fan_out, bias_attr=False
            ),
            nn.BatchNorm2D(out_channels),
            nn.ReLU(),
        )


class PyramidPooling(nn.Layer):
    """Concatenate a map with its averages over 1x1, 2x2, ... regions, and fuse (PSPNet, arXiv 1612.01105)."""

    def __init__(self, in_channels: int, channels: int, pool_sizes: Sequence[int], align_corners: bool):
        super().__init__()
        self.pool_sizes, self.align_corners = tuple(pool_sizes), align_corners
        self.convs = nn.LayerList([ConvBNReLU(in_channels, channels, 1) for _ in pool_sizes])
        self.fusion = ConvBNReLU(in_channels + len(self.pool_sizes) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, channels, H, W]``."""
        pooled = [conv(_adaptive_avg_pool(x, self.pool_sizes[i])) for i, conv in enumerate(self.convs)]
        pooled = [_resize(level, x, self.align_corners) for level in pooled]
        return self.fusion(paddle.concat([x, *pooled], axis=1))


class UPerHead(nn.Layer):
    """Pyramid pooling on the last map, a feature pyramid over all maps, their fusion, and the classifier ``cls``."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        pool_sizes: Sequence[int],
        dropout: float,
        align_corners: bool,
    ):
        super().__init__()
        self.align_corners = align_corners
        *earlier, last = in_channels
        self.pyramid_pooling = PyramidPooling(last, channels, pool_sizes, align_corners)
        self.laterals = nn.LayerList([ConvBNReLU(width, channels, 1) for width in earlier])
        self.outputs = nn.LayerList([ConvBNReLU(channels, channels, 3) for _ in earlier])
        self.fusion = ConvBNReLU(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2D(dropout)
        self.cls = _classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map NCHW feature maps, finest first, to logits ``[B, num_classes, H, W]`` at the size of the finest."""
        levels = [lateral(maps[i]) for i, lateral in enumerate(self.laterals)]
        levels.append(self.pyramid_pooling(maps[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + _resize(levels[i], levels[i - 1], self.align_corners)
        levels = [convolution(levels[i]) for i, convolution in enumerate(self.outputs)] + levels[-1:]
        finest = levels[0]
        x = paddle.concat([finest] + [_resize(level, finest, self.align_corners) for level in levels[1:]], axis=1)
        return self.cls(self.dropout(self.fusion(x)))


class FCNHead(nn.Layer):
    """The auxiliary head: one 3x3 convolution and the classifier ``cls`` [C: the paper's number of parameters]."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels, 3)
        self.dropout = nn.Dropout2D(dropout)
        self.cls = _classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to logits ``[B, num_classes, H, W]``."""
        return self.cls(self.dropout(self.conv(x)))


@manager.MODELS.add_component
class PaleUPerNet(nn.Layer):
    """A backbone with UPerNet's head and an auxiliary head, which is used in training only.

    Args:
        num_classes: outputs of both classifiers.
        backbone: returns a list of feature maps, and has their widths as ``out_channels`` or, as in PaddleSeg,
            ``feat_channels``. :mod:`common.paddleseg` registers Pale Transformers in PaddleSeg.
        channels: width of the head [C: 512].
        aux_channels: width of the auxiliary head [C: 256].
        pool_sizes: regions along a side, for each level of the pyramid pooling.
        dropout: rate of the 2-D dropout before the classifiers [A: mmsegmentation].
        aux_in_index: index of the map that the auxiliary head reads.
        align_corners: for all interpolations, see ``paddle.nn.functional.interpolate``.
        pretrained: weights of a whole model or of a backbone, see
            :func:`common.checkpoints.loading.load_pretrained`. Classifiers for another number of classes are skipped.

    Raises:
        ValueError: an argument is out of range; the message names it.
        common.errors.UserError: the weights cannot be found or downloaded, are unsafe or damaged, or do not fit.
    """

    head_prefixes = ("decode_head.cls.", "auxiliary_head.cls.")

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        channels: int = 512,
        aux_channels: int = 256,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        aux_in_index: int = 2,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        widths = getattr(backbone, "feat_channels", None) or backbone.out_channels
        for name, value in (("num_classes", num_classes), ("channels", channels), ("aux_channels", aux_channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a positive integer")
        if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout!r}; it must be a number in [0, 1]")
        if not 0 <= aux_in_index < len(widths):
            raise ValueError(f"aux_in_index is {aux_in_index}; the maps are 0 to {len(widths) - 1}")
        self.num_classes, self.aux_in_index, self.align_corners = num_classes, aux_in_index, align_corners
        self.backbone = backbone
        self.decode_head = UPerHead(widths, channels, num_classes, pool_sizes, dropout, align_corners)
        self.auxiliary_head = FCNHead(widths[aux_in_index], aux_channels, num_classes, dropout)
        if pretrained:
            load_pretrained(self, pretrained)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``[B, C, H, W]``, H and W at least 32, to a list of logits ``[B, num_classes, H, W]``.

        The list has one entry; in training, the logits of the auxiliary head are the second.
        """
        maps = self.backbone(images)
        logits = [self.decode_head(maps)]
        if self.training:
            logits.append(self.auxiliary_head(maps[self.aux_in_index]))
        return [_resize(x, images, self.align_corners) for x in logits]


def _classifier(channels: int, num_classes: int) -> nn.Conv2D:
    """Pointwise convolution, initialized with N(0, 0.01^2) and a bias of 0 [A: mmsegmentation]."""
    normal = paddle.ParamAttr(initializer=nn.initializer.Normal(std=0.01))
    return nn.Conv2D(channels, num_classes, 1, weight_attr=normal)


def _adaptive_avg_pool(x: Tensor, regions: int) -> Tensor:
    """``F.adaptive_avg_pool2d``; in graphs two matrix products, because ONNX has no adaptive pooling."""
    if paddle.in_dynamic_mode():
        return F.adaptive_avg_pool2d(x, regions)
    down, across = (_region_weights(paddle.shape(x)[axis], regions) for axis in (2, 3))
    return paddle.matmul(paddle.matmul(down, x), across, transpose_y=True)


def _region_weights(length: Tensor, regions: int) -> Tensor:
    """Weights of each position of an axis in the mean of each region, float32 ``[regions, length]``.

    Region i begins at ``floor(i * length / regions)`` and ends before ``ceil((i + 1) * length / regions)``.
    """
    length = length.astype("int64")
    number = paddle.arange(regions, dtype="int64").unsqueeze(1)
    first, end = number * length // regions, ((number + 1) * length + regions - 1) // regions
    place = paddle.arange(length, dtype="int64").unsqueeze(0)
    inside = paddle.logical_and(place >= first, place < end).astype("float32")
    return inside / (end - first).astype("float32")


def _resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Interpolate bilinearly to the height and width of another NCHW tensor."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)
