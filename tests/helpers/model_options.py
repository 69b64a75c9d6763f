"""The options of docs/reproduction.md that the backbones of both toolkits take, all different from the variant's."""

from __future__ import annotations

from paddle import nn

from common.ablation import ShapedAttention
from common.pale_features import PaleFeatures

MODEL_OPTIONS = {
    "num_heads": [4, 4, 8, 8],
    "pale_size": 3,
    "attention": "cross",
    "parallel": False,
    "position_encoding": "relative",
    "image_size": [64, 96],
    "stage_norms": False,
}


def check_model_options(backbone: PaleFeatures) -> None:
    """Assert that a backbone was built with all of :data:`MODEL_OPTIONS`."""
    chosen = ("attention", "parallel", "num_heads")
    expected = {name: MODEL_OPTIONS[name] for name in chosen} | {"pale_size": [3, 3, 3, 3]}
    assert backbone.attention_settings == expected
    assert not [stage for stage in backbone.stages if isinstance(stage.merging.norm, nn.LayerNorm)]
    attentions = [stage.blocks[0].attention for stage in backbone.stages]
    assert all(isinstance(attention, ShapedAttention) for attention in attentions)
    assert [attention.num_heads for attention in attentions] == MODEL_OPTIONS["num_heads"]
    assert all(attention.position_biases is not None for attention in attentions)
