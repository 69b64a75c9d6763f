"""Multiply-adds of Mask R-CNN, counted as in the paper.

python -m object_detection.flops        # the table of the paper's three models at 800x1280
"""

from __future__ import annotations

from paddle import Tensor, nn

from common.flops import count_layer_flops, params

__all__ = ["count_detector_flops", "detector_parts"]


class _Dense(nn.Layer):
    """The layers that run once per image: backbone, FPN, and the convolutions of the RPN."""

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.backbone, self.neck, self.rpn_head = model.backbone, model.neck, model.rpn_head

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.rpn_head.rpn_feat(self.neck(self.backbone({"image": images})))
        head = self.rpn_head
        return [convolution(x) for x in maps for convolution in (head.rpn_rois_score, head.rpn_rois_delta)]


class _BoxHead(nn.Layer):
    """The layers that run once per proposal."""

    def __init__(self, head: nn.Layer):
        super().__init__()
        self.head, self.score, self.delta = head.head, head.bbox_score, head.bbox_delta

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.head(x)
        return self.score(x), self.delta(x)


def count_detector_flops(
    model: nn.Layer, height: int, width: int, proposals: int = 1000, masks: int = 100, norms: bool = False
) -> int:
    """Multiply-adds of one forward pass of a Mask R-CNN.

    Args:
        model: one of PaddleDetection's ``MaskRCNN``.
        height, width: of the image, in pixels.
        proposals: inputs of the box head [C: the paper's FLOPs need 1000].
        masks: inputs of the mask head [C: the paper's FLOPs need 100].
        norms: see :func:`common.flops.flops_by_layer`.
    """
    parts = detector_parts(model, height, width, proposals, masks)
    return sum(count * count_layer_flops(layer, [1, *shape], norms) for layer, shape, count in parts)


def detector_parts(
    model: nn.Layer, height: int, width: int, proposals: int, masks: int
) -> list[tuple[nn.Layer, list[int], int]]:
    """The layers that a Mask R-CNN runs for one image: a layer, the shape of an input, and the number of inputs."""
    box_head, mask_head, channels = model.bbox_head, model.mask_head, model.neck.out_channel
    box_side, mask_side = box_head.roi_extractor.resolution, mask_head.roi_extractor.resolution
    mask_layers = nn.Sequential(mask_head.head, mask_head.mask_fcn_logits)
    return [
        (_Dense(model), [3, height, width], 1),
        (_BoxHead(box_head), [channels, box_side, box_side], proposals),
        (mask_layers, [channels, mask_side, mask_side], masks),
    ]


def main() -> None:
    from argparse import Namespace

    from object_detection.components import build_model
    from object_detection.config import CONFIG

    print("| backbone | params | multiply-adds at 800x1280 | without norms |\n|----------|-------:|------:|------:|")
    for name in ("pale_tiny", "pale_small", "pale_base"):
        file = CONFIG.default_file.with_name(f"mask_rcnn_{name}_1x_coco.yml")
        config = CONFIG.load(Namespace(cfg=file, opts=[]))
        model = build_model(config, config.num_classes)
        with_norms, without = (count_detector_flops(model, 800, 1280, norms=norms) / 1e9 for norms in (True, False))
        print(f"| `{name}` | {params(model) / 1e6:.1f}M | {with_norms:.1f}G | {without:.1f}G |", flush=True)


if __name__ == "__main__":
    main()
