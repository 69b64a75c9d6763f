"""Token labeling (arXiv 2104.10858): every token of the final map has a target of its own.

The details of Pale Transformer's token labeling are not published. The references are LV-ViT, which introduced the
method, and UniFormer (arXiv 2201.09450), a hierarchy without a class token as ours [A: LV-ViT, UniFormer]:

- The class of the image is predicted from the mean of the tokens, as without token labeling. A second linear layer, the
  auxiliary head, predicts the class of each token.
- MixToken replaces a box of tokens by those of another image after the patch embedding. UniFormer draws the box on that
  map, of stride 4, and rounds it for the targets, which are then wrong at the edge of the box. Here the box is drawn on
  the final map, of stride 32, so that embedding and targets have the same box [A: as in VOLO (arXiv 2106.13112)].
- At inference, LV-ViT and UniFormer add half of the maximum of the tokens' logits. Here the auxiliary head is used in
  training only, and the evaluated model is the paper's [A: ours].
"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from common.pale_transformer import PaleTransformer
from image_classification.mixup import cutmix_box

__all__ = [
    "TokenLabelTransformer",
    "draw_mixed_tokens",
    "mix_classes",
    "mix_tokens",
    "token_label_loss",
    "token_targets",
]


class TokenLabelTransformer(PaleTransformer):
    """A Pale Transformer with an auxiliary head for its tokens; it has the arguments of the base class.

    Its weights have the names of the base class, plus ``aux_head``, which ``training_only_prefixes`` excludes from
    evaluation and released weights.
    """

    head_prefixes = (*PaleTransformer.head_prefixes, *PaleTransformer.training_only_prefixes)

    def forward(self, images: Tensor, mixed: np.ndarray | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Map images ``[B, C, H, W]`` to logits ``[B, num_classes]``, as the base class does.

        With ``mixed``, bool ``[h, w]``, :func:`mix_tokens` is applied after the patch embedding, and the logits of the
        tokens, ``[B, h, w, num_classes]``, are returned as well.
        """
        if mixed is None:
            return PaleTransformer.forward(self, images)  # Paddle 2.6 cannot trace super()
        embedding = self.stages[0].merging.register_forward_post_hook(lambda layer, inputs, x: mix_tokens(x, mixed))
        try:
            *_, x = self._stage_outputs(images)
        finally:
            embedding.remove()
        x = self.norm(x)
        return self.head(x.mean([1, 2])), self.aux_head(x)

    def reset_head(self, num_classes: int) -> None:
        """Replace both heads."""
        super().reset_head(num_classes)
        self.aux_head = self.build_head()


def draw_mixed_tokens(height: int, width: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the box of MixToken on the final map, as CutMix does.

    Args:
        height, width: of the final map.
        alpha: the box covers about 1 - lambda of the map, lambda ~ Beta(alpha, alpha); 0 mixes nothing.
        rng: random generator.

    Returns:
        bool ``[height, width]``, true inside the box.
    """
    mixed = np.zeros((height, width), bool)
    if alpha:
        (top, bottom, left, right), _ = cutmix_box(height, width, float(rng.beta(alpha, alpha)), rng)
        mixed[top:bottom, left:right] = True
    return mixed


def mix_tokens(x: Tensor, mixed: np.ndarray) -> Tensor:
    """Replace the tokens in ``mixed`` by those of the previous sample in the batch (the last one for the first).

    Args:
        x: ``[B, H, W, C]``, where H and W are multiples of h and w, such as the patch embedding.
        mixed: bool ``[h, w]``, on the final map.

    Raises:
        ValueError: H and W are not multiples of h and w.
    """
    stride, rest = divmod(x.shape[1], mixed.shape[0])
    if rest or x.shape[2] != stride * mixed.shape[1]:
        raise ValueError(f"a map of {x.shape[1]}x{x.shape[2]} is not a multiple of the tokens {mixed.shape}")
    if not mixed.any():
        return x
    mask = paddle.to_tensor(mixed.repeat(stride, 0).repeat(stride, 1)[None, :, :, None])
    return paddle.where(mask, x.roll(1, 0), x)


def mix_classes(targets: Tensor, mixed: np.ndarray) -> Tensor:
    """Mix the targets of images, ``[B, classes]``, by the share of the tokens that :func:`mix_tokens` replaces."""
    share = float(mixed.mean())
    return targets * (1 - share) + targets.roll(1, 0) * share


@paddle.no_grad()
def token_targets(classes: Tensor, scores: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Compute the target probabilities of the tokens.

    LV-ViT stores logits, sets those below the top to 0, and applies softmax after RoIAlign, so that the result depends
    on a constant offset of the logits, which training does not determine. Here probabilities are stored and averaged,
    and the rest of the probability is spread evenly over the other classes [A: ours].

    Args:
        classes: int64 ``[B, map cells, top]``.
        scores: float32 ``[B, map cells, top]``, their probabilities.
        weights: float32 ``[B, tokens, map cells]`` of
            :func:`image_classification.label_map_alignment.sampling_weights`. Where a row sums to less than 1, the rest
            is outside the image, where all classes are equally probable [A: LV-ViT].
        num_classes: number of classes.

    Returns:
        float32 ``[B, tokens, num_classes]``; a row sums to 1, up to rounding.
    """
    rest = (1 - scores.sum(-1, keepdim=True)).clip(min=0) / max(1, num_classes - scores.shape[-1])
    cells = paddle.put_along_axis(rest.tile([1, 1, num_classes]), classes, scores, -1)
    return paddle.bmm(weights, cells) + (1 - weights.sum(-1, keepdim=True)) / num_classes


def token_label_loss(
    logits: Tensor, token_logits: Tensor, class_targets: Tensor, targets: Tensor, weight: float
) -> Tensor:
    """Cross-entropy of the image + ``weight`` x mean cross-entropy of the tokens [A: LV-ViT].

    Args:
        logits: ``[B, classes]``.
        token_logits: ``[B, h, w, classes]``.
        class_targets: probabilities ``[B, classes]``.
        targets: probabilities of the same shape as ``token_logits``.
        weight: of the tokens [A: LV-ViT's 0.5].
    """
    image_loss = F.cross_entropy(logits.astype("float32"), class_targets, soft_label=True)
    return image_loss + weight * F.cross_entropy(token_logits.astype("float32"), targets, soft_label=True)
