"""Builds the classifier of a configuration."""

from __future__ import annotations

from yacs.config import CfgNode

from common.errors import UserError
from common.pale_transformer import PaleTransformer, build_variant
from image_classification.token_labeling import TokenLabelTransformer

__all__ = ["build_model"]


def build_model(config: CfgNode, num_classes: int, token_labels: bool = False) -> PaleTransformer:
    """Build the model of the section ``MODEL``.

    Args:
        config: of the task.
        num_classes: outputs of the head.
        token_labels: add the auxiliary head for training with token labels.

    Raises:
        UserError: the name or a value is invalid.
    """
    sizes = config.MODEL.PALE_SIZE
    own_size = {"pale_size": sizes if len(sizes) > 1 else sizes[0]} if sizes else {}
    own_heads = {"num_heads": config.MODEL.NUM_HEADS} if config.MODEL.NUM_HEADS else {}
    kind = TokenLabelTransformer if token_labels else PaleTransformer
    try:
        model = build_variant(
            kind,
            config.MODEL.NAME,
            num_classes=num_classes,
            drop_path_rate=config.MODEL.DROP_PATH,
            attention=config.MODEL.ATTENTION,
            parallel=config.MODEL.PARALLEL,
            position_encoding=config.MODEL.POSITION_ENCODING,
            image_size=config.DATA.IMAGE_SIZE,
            stage_norms=config.MODEL.STAGE_NORMS,
            **own_size,
            **own_heads,
        )
    except ValueError as error:
        raise UserError(f"MODEL: {error}") from error
    model.set_recompute(config.MODEL.RECOMPUTE)
    return model
