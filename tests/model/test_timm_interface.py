"""What users of timm expect of a model."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from common.pale_transformer import create_model
from tests.helpers.masked_attention import randomize
from tests.helpers.small_models import SMALL, evaluating, random_images, small_model


def test_default_cfg_describes_the_model():
    model = create_model("pale_nano", depths=(1, 1, 1, 1))
    cfg = model.default_cfg
    assert cfg["input_size"] == (3, 224, 224)
    layers = dict(model.named_sublayers())
    assert layers[cfg["classifier"]] is model.get_classifier()
    assert list(layers[cfg["first_conv"]].weight.shape) == [20, cfg["input_size"][0], 7, 7]
    logits = model(paddle.rand([1, *cfg["input_size"]]))
    assert logits.shape == [1, 1000]
    assert bool(logits.isfinite().all())
    logits.square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in model.named_parameters() if parameter.stop_gradient}


def test_reset_classifier_is_reset_head_and_changes_the_pooling():
    model = evaluating(small_model())
    images = random_images(2, 64)
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert (model.num_classes, model(images).shape) == (7, [2, 7])
    with pytest.raises(ValueError, match="global_pool is ''; it must be 'avg' or, without a classifier"):
        model.reset_classifier(7, "")
    assert model(images).shape == [2, 7]
    model.reset_classifier(0)
    pooled = model(images)
    assert pooled.shape == [2, model.num_features]
    model.reset_classifier(0, "")
    np.testing.assert_allclose(model(images).mean([2, 3]).numpy(), pooled.numpy(), rtol=1e-5, atol=1e-6)
    model.reset_classifier(3, "avg")
    assert model(images).shape == [2, 3]
    assert list(create_model("pale_nano", num_classes=0, global_pool="")(images).shape) == [2, 160, 2, 2]
    with pytest.raises(ValueError, match="global_pool is 'max'"):
        small_model(global_pool="max")


def test_forward_is_the_features_and_the_head():
    model = evaluating(randomize(small_model(), 0.3))
    images = random_images(2, 40, 64)
    last = model.forward_features(images)[-1]
    np.testing.assert_array_equal(model.forward_head(last).numpy(), model(images).numpy())
    np.testing.assert_array_equal(model.forward_head([last * 0, last]).numpy(), model(images).numpy())
    features = model.forward_head(last, pre_logits=True)
    assert features.shape == [2, model.num_features]
    np.testing.assert_array_equal(model.head(features).numpy(), model(images).numpy())


@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_of_blocks_lead_to_those_of_stages_and_to_the_logits(recompute):
    model = randomize(small_model(), 0.3)
    model.set_recompute(recompute)
    model.train(recompute)
    images = random_images(2, 40, 64)
    last, outputs = model.forward_intermediates(images)
    assert len(outputs) == sum(SMALL["depths"])
    expected = model.forward_features(images)
    for x, stage in zip([outputs[place] for place in (0, 1, 3, 4)], expected, strict=True):
        np.testing.assert_array_equal(x.numpy(), stage.numpy())
    again = model.stages[2].blocks[1](outputs[2].transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])
    np.testing.assert_allclose(again.numpy(), outputs[3].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.forward_head(last).numpy(), model(images).numpy())
    for indices in ([1, 3], [-4, -2]):
        chosen = model.forward_intermediates(images, indices)[1]
        for x, place in zip(chosen, (1, 3), strict=True):
            np.testing.assert_array_equal(x.numpy(), outputs[place].numpy())
    assert not any(block._forward_post_hooks for stage in model.stages for block in stage.blocks)


@pytest.mark.parametrize("indices", [[5], [-6], [2, 1], []])
def test_blocks_that_there_are_not_are_named(indices):
    with pytest.raises(ValueError, match=r"indices is .*from 0 to 4, or from -5 to -1"):
        small_model().forward_intermediates(random_images(1, 32), indices)


@pytest.mark.parametrize("out_indices", [(0, 1, 3), (-3, -2)])
def test_feature_info_describes_the_maps_of_a_backbone(out_indices):
    model = create_model("pale_nano", features_only=True, out_indices=out_indices)
    info = model.feature_info
    layers = dict(model.named_sublayers())
    for x, channels, stride, name in zip(
        model(random_images(1, 64)), info.channels(), info.reduction(), info.module_name(), strict=True
    ):
        assert x.shape == [1, channels, 64 // stride, 64 // stride]
        assert name in layers
    assert create_model("pale_nano").feature_info.channels() == [20, 40, 80, 160]
