"""Token labelling (arXiv 2104.10858): every token of the final map learns the classes of its place in the image.

How Pale Transformer's authors did it is not known. The neighbours are LV-ViT, whose method it is, and UniFormer (arXiv
2201.09450), which like ours is a hierarchy without a class token [A: LV-ViT, UniFormer]:

- The class is predicted from the mean of the tokens, as without token labelling; a second linear layer, the auxiliary
  head, predicts the class of each token.
- MixToken replaces a box of tokens by those of another image, behind the patch embedding. UniFormer draws the box on
  that map, of stride 4, and rounds it for the labels, so that tokens at its edge learn what is not there. Here it is
  drawn in tokens of the final map, of stride 32, so that the box of the embedding and that of the labels are the same
  [A: VOLO (arXiv 2106.13112), which aligns its two strides so].
- At inference LV-ViT and UniFormer add half of the tokens' largest logits; here the auxiliary head belongs to training
  alone, and the evaluated model is the paper's [A: ours].
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
    """A Pale Transformer with an auxiliary head for its tokens; the arguments are those of the base class.

    Its weights are the base class's, under the same names, and those of ``aux_head``, which
    ``training_only_prefixes`` keeps out of what is evaluated and released.
    """

    head_prefixes = (*PaleTransformer.head_prefixes, *PaleTransformer.training_only_prefixes)

    def forward(self, images: Tensor, mixed: np.ndarray | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Map images ``[B, C, H, W]`` to logits ``[B, num_classes]``, as the base class does.

        With ``mixed``, bool ``[h, w]``, those tokens of the final map are the neighbour's (:func:`mix_tokens`), and the
        logits of all tokens, ``[B, h, w, num_classes]``, come as well.
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
    """Draw the box of MixToken: CutMix's, in tokens of the final map.

    Args:
        height, width: of the final map.
        alpha: the box takes about 1 - lambda of the map, lambda ~ Beta(alpha, alpha); 0 mixes nothing.
        rng: generator of the draw.

    Returns:
        bool ``[height, width]``, true inside the box.
    """
    mixed = np.zeros((height, width), bool)
    if alpha:
        (top, bottom, left, right), _ = cutmix_box(height, width, float(rng.beta(alpha, alpha)), rng)
        mixed[top:bottom, left:right] = True
    return mixed


def mix_tokens(x: Tensor, mixed: np.ndarray) -> Tensor:
    """Take the tokens in ``mixed`` from the sample before, the first sample's from the last.

    Args:
        x: ``[B, H, W, C]``, a map whose cells divide those of the final map evenly, such as the patch embedding.
        mixed: bool ``[h, w]``, of the final map.

    Raises:
        ValueError: the cells do not divide evenly.
    """
    stride, rest = divmod(x.shape[1], mixed.shape[0])
    if rest or x.shape[2] != stride * mixed.shape[1]:
        raise ValueError(f"a map of {x.shape[1]}x{x.shape[2]} does not divide the {mixed.shape} tokens evenly")
    if not mixed.any():
        return x
    mask = paddle.to_tensor(mixed.repeat(stride, 0).repeat(stride, 1)[None, :, :, None])
    return paddle.where(mask, x.roll(1, 0), x)


def mix_classes(targets: Tensor, mixed: np.ndarray) -> Tensor:
    """Mix the targets of images, ``[B, classes]``, by the share of the tokens that :func:`mix_tokens` takes."""
    share = float(mixed.mean())
    return targets * (1 - share) + targets.roll(1, 0) * share


@paddle.no_grad()
def token_targets(classes: Tensor, scores: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Target probabilities of the tokens.

    LV-ViT keeps logits, takes those that are not among the top for 0, and applies softmax after RoIAlign; what that
    means depends on a constant that training leaves open in all logits of a token. Here probabilities are kept and
    averaged, and what they leave of 1 is shared out evenly among the other classes [A: ours].

    Args:
        classes: int64 ``[B, map cells, top]``.
        scores: float32 ``[B, map cells, top]``, their probabilities.
        weights: float32 ``[B, tokens, map cells]``, see :func:`image_classification.token_sampling.sampling_weights`.
            What a row lacks of 1 is outside the image, where all classes are equally probable [A: LV-ViT].

    Returns:
        float32 ``[B, tokens, num_classes]``; a row sums to 1, up to the scores' rounding.
    """
    rest = (1 - scores.sum(-1, keepdim=True)).clip(min=0) / max(1, num_classes - scores.shape[-1])
    cells = paddle.put_along_axis(rest.tile([1, 1, num_classes]), classes, scores, -1)
    return paddle.bmm(weights, cells) + (1 - weights.sum(-1, keepdim=True)) / num_classes


def token_label_loss(
    logits: Tensor, token_logits: Tensor, class_targets: Tensor, targets: Tensor, weight: float
) -> Tensor:
    """Cross-entropy of the image's class and, weighted, the mean over the tokens of theirs [A: LV-ViT].

    Args:
        logits: ``[B, classes]``.
        token_logits: ``[B, h, w, classes]``.
        class_targets: probabilities ``[B, classes]``.
        targets: probabilities of the same shape as ``token_logits``.
        weight: of the tokens' part [A: LV-ViT's 0.5].
    """
    of_image = F.cross_entropy(logits.astype("float32"), class_targets, soft_label=True)
    return of_image + weight * F.cross_entropy(token_logits.astype("float32"), targets, soft_label=True)
