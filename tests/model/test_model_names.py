"""Variants of users beside ours."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from common import register_model
from common.layers.variants import VARIANTS
from common.pale_transformer import create_model, list_models
from common.training.allowed import BACKBONE
from image_classification.config import default_config
from image_classification.pale_backbone import build_model

MICRO = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "pale_size": 3}


@pytest.fixture
def variants():
    with patch.dict(VARIANTS):  # takes away what the test adds
        yield


@pytest.mark.usefixtures("variants")
def test_a_registered_variant_is_built_like_ours():
    register_model("pale_micro", **MICRO, drop_path_rate=0.2)
    register_model("pale_micro", **MICRO, drop_path_rate=0.2)  # as a notebook does whose cell runs twice
    assert list_models()[-1] == "pale_micro"
    assert list_models("pale_m*") == ["pale_micro"]
    model = create_model("pale_micro", num_classes=2)
    assert (model.out_channels, model.depths) == ((8, 16, 32, 64), (1, 1, 1, 1))
    assert model.stages[3].blocks[0].drop_path.rate == pytest.approx(0.2)
    config = default_config()
    config.MODEL.NAME = "pale_micro"
    assert build_model(config, 2).out_channels == model.out_channels
    BACKBONE["variant"]("pale_micro", "the variant")


@pytest.mark.usefixtures("variants")
def test_a_registered_variant_does_not_replace_another():
    with pytest.raises(ValueError, match="there is a variant 'pale_tiny' with other settings"):
        register_model("pale_tiny", **MICRO)
    assert create_model("pale_nano").out_channels[0] == 20
