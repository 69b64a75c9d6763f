"""Pretrained weights for images with another number of channels."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from common.checkpoints.file_format import save_file
from common.checkpoints.first_convolution import adapt_channels
from common.checkpoints.loading import Checkpoint, load_pretrained, load_weights, numpy_state
from common.errors import UserError
from common.pale_features import create_features
from common.pale_transformer import create_model
from tests.helpers.small_models import evaluating, small_model


def gray(channels):
    image = np.random.default_rng(0).standard_normal((2, 1, 32, 48)).astype("float32")
    return paddle.to_tensor(np.repeat(image, channels, axis=1))


@pytest.mark.parametrize(("old", "channels"), [(3, 1), (3, 6), (1, 3), (1, 4), (3, 3)])
def test_equal_channels_give_what_they_gave_before(old, channels):
    source = evaluating(small_model(seed=1, in_channels=old))
    model = evaluating(small_model(seed=2, in_channels=channels))
    report = load_weights(model, Checkpoint("file", numpy_state(source)), fine_tune=True)
    expected = source(gray(old)).numpy()
    np.testing.assert_allclose(model(gray(channels)).numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    if channels != old:
        assert report.adapted == [f"stages.0.merging.conv.weight (4, {old}, 7, 7) to (4, {channels}, 7, 7)"]


def test_channels_are_repeated_in_their_order():
    weight = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    assert adapt_channels(weight, 5).ravel().tolist() == pytest.approx([0, 0.6, 1.2, 0, 0.6])
    assert adapt_channels(weight, 2).ravel().tolist() == pytest.approx([0, 1.5])
    assert adapt_channels(weight.astype(np.float16), 4).dtype == np.float16


def test_every_way_to_pretrained_weights_adapts_and_says_so(tmp_path, capsys):
    sources = [create_model("pale_nano", pretrained="mnist5k", in_chans=1)]
    sources.append(create_features("pale_nano", pretrained="mnist5k", in_channels=1))
    sources.append(create_model("pale_nano", in_channels=1, num_classes=10))
    capsys.readouterr()
    load_pretrained(sources[2], "mnist5k")
    adapted = "stages.0.merging.conv.weight (20, 3, 7, 7) to (20, 1, 7, 7)"
    assert f"  adapted to the channels of the images: {adapted}\n" in capsys.readouterr().out
    weight = create_model("pale_nano", pretrained="mnist5k").stages[0].merging.conv.weight
    for model in sources:
        np.testing.assert_allclose(
            model.stages[0].merging.conv.weight.numpy(), weight.numpy().sum(1, keepdims=True), rtol=1e-5, atol=1e-6
        )
    whole = {f"backbone.{name}": array for name, array in numpy_state(sources[1]).items()}
    save_file(whole, tmp_path / "dense.pdparams")
    dense = create_features("pale_nano", pretrained=tmp_path / "dense.pdparams", in_channels=4)
    assert dense.stages[0].merging.conv.weight.shape == [20, 4, 7, 7]


def test_weights_that_are_used_as_they_are_are_not_adapted():
    model, checkpoint = small_model(in_channels=1), Checkpoint("file", numpy_state(small_model()))
    with pytest.raises(UserError, match=r"stages\.0\.merging\.conv\.weight \(4, 3, 7, 7\) for \(4, 1, 7, 7\)"):
        load_weights(model, checkpoint)


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (5, 3, 7, 7), (4, 0, 7, 7), (4, 3)])
def test_another_convolution_is_not_adapted(shape):
    weights = numpy_state(small_model()) | {"stages.0.merging.conv.weight": np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match="does not fit"):
        load_weights(small_model(in_channels=1), Checkpoint("file", weights), fine_tune=True)
