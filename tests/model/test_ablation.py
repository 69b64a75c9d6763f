"""Other shapes of attention, the sequential form, and learned position encodings."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from common.ablation import ATTENTIONS, POSITION_ENCODINGS, ShapedAttention, groupings
from common.flops import count_flops
from common.pale_attention import PSAttention
from common.pale_transformer import PaleTransformer
from tests.helpers.masked_attention import KINDS, masked_attention, random_map, randomize
from tests.helpers.small_models import SMALL, expected_flops, random_images, small_model, train_twice

SIZES = [(6, 6, 3), (5, 7, 3), (7, 9, (2, 4)), (3, 8, 4), (1, 1, 7)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_shape_equals_masked_attention_over_the_whole_map(attention, biased):
    parts = range(len(KINDS[attention])) if len(KINDS[attention]) > 1 else ()
    for only in (None, *parts):
        for height, width, size in SIZES:
            kinds = groupings(attention, size)
            kinds = kinds if only is None else [kinds[only]]
            layer = ShapedAttention(8, 4, kinds, (height, width) if biased else None)
            layer.to(dtype="float64")
            layer.eval()
            randomize(layer)
            x = random_map(2, height, width, 8)
            expected = masked_attention(layer, x, size, attention, only)
            np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_default_model_has_pales_in_every_block_and_nothing_of_an_ablation():
    blocks = [block for stage in small_model(pale_size=[1, 2, 3, (4, 5)]).stages for block in stage.blocks]
    assert all(type(block.attention) is PSAttention for block in blocks)
    assert [block.attention.pale_size for block in blocks] == [(1, 1), (2, 2), (3, 3), (3, 3), (4, 5)]


def test_attention_settings_say_what_the_weights_do_not():
    assert small_model(pale_size=[1, 2, 3, (4, 5)]).attention_settings == {
        "attention": "pale",
        "pale_size": [1, 2, 3, [4, 5]],
        "parallel": True,
        "num_heads": [2, 2, 2, 2],
    }
    settings = small_model(attention="global", parallel=False).attention_settings
    assert settings == {"attention": "global", "pale_size": [], "parallel": True, "num_heads": [2, 2, 2, 2]}


def test_sequential_blocks_attend_in_rows_and_columns_in_turn():
    rows, columns = groupings("cross", 2)
    model = small_model(depths=(1, 2, 2, 1), attention="cross", parallel=False)
    found = [block.attention.groupings for stage in model.stages for block in stage.blocks]
    assert found == [(rows,), (columns,), (rows,), (columns,), (rows,), (columns,)]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_flops_and_fusion_of_every_shape(attention, parallel):
    settings = {"embed_dim": 8, "depths": (1, 2, 1, 1), "pale_size": [5, 3, (2, 3), 1], "num_classes": 7}
    settings |= {"attention": attention, "parallel": parallel}
    position = {"position_encoding": "cpe" if parallel else "relative", "image_size": (100, 75)}
    model = PaleTransformer(**settings, **position, num_heads=(2, 2, 4, 4))
    assert count_flops(model, 100, 75) == expected_flops(100, 75, **settings, cpe=parallel)
    randomize(model, 0.3)
    model.eval()
    images = random_images(2, 100, 75)
    expected = model(images).numpy()
    model.fuse()
    np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# ---- position encodings

TABLES = {
    "absolute": {"stages.0.blocks.0.position_encoding.table"},
    "relative": {
        f"stages.{stage}.blocks.{block}.attention.position_biases.{part}.table"
        for stage, depth in enumerate(SMALL["depths"])
        for block in range(depth)
        for part in (0, 1)
    },
    "none": set(),
}


@pytest.mark.parametrize("position_encoding", [name for name in POSITION_ENCODINGS if name != "cpe"])
def test_learned_tables_take_the_place_of_the_convolutions(position_encoding):
    """They are trained, not decayed, and initialized from a normal of 0.02."""
    names = set(small_model().state_dict())
    model = small_model(position_encoding=position_encoding, image_size=(64, 96))
    own = set(model.state_dict())
    assert own - names == TABLES[position_encoding]
    assert names - own == {name for name in names if "position_encoding" in name}
    assert model.no_weight_decay() >= TABLES[position_encoding]
    model(random_images(2, 64, 96)).sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith(".table"):
            assert 0.01 < float(parameter.std()) < 0.03
            assert float(parameter.grad.abs().max()) > 0


def test_shapes_of_position_tables():
    """Pales of 2 on maps of 16x24, 8x12, 4x6 and 2x3, whose last is padded to 2x4."""
    absolute = small_model(position_encoding="absolute", image_size=(64, 96))
    assert absolute.stages[0].blocks[0].position_encoding.table.shape == [4, 16, 24]
    relative = small_model(position_encoding="relative", image_size=(64, 96))
    tables = [[bias.table.shape for bias in stage.blocks[0].attention.position_biases] for stage in relative.stages]
    assert tables[0] == [[1, 3, 47], [1, 31, 3]]
    assert tables[3] == [[1, 3, 7], [1, 3, 3]]


@pytest.mark.parametrize("position_encoding", ["absolute", "relative"])
def test_tables_are_interpolated_for_other_images(position_encoding):
    """A table of one value stays so; as a bias of the scores it has no effect, on the map it is a constant."""
    model = randomize(small_model(position_encoding=position_encoding, image_size=64), 0.3)
    without = small_model(position_encoding="none")
    for name, parameter in model.named_parameters():
        if name.endswith(".table"):
            parameter.set_value(paddle.full_like(parameter, 0.5))
    without.set_state_dict({name: value for name, value in model.state_dict().items() if "table" not in name})
    if position_encoding == "absolute":
        norm = without.stages[0].merging.norm
        norm.bias.set_value(norm.bias + 0.5)
    model.eval()
    without.eval()
    images = random_images(2, 40, 96)
    np.testing.assert_allclose(model(images).numpy(), without(images).numpy(), rtol=1e-4, atol=1e-4)


def test_recomputation_with_relative_positions_gives_the_same_gradients():
    settings = {"position_encoding": "relative", "image_size": (40, 32), "attention": "cross"}
    plain, recomputed = (train_twice(randomize(small_model(**settings), 0.3), recompute) for recompute in (False, True))
    for name, expected in plain.items():
        tolerance = 1e-6 * np.abs(expected).max() + 1e-9
        np.testing.assert_allclose(recomputed[name], expected, rtol=1e-5, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"attention": "swin"}, ["attention is 'swin'", *ATTENTIONS]),
        ({"position_encoding": "sine"}, ["position_encoding is 'sine'", *POSITION_ENCODINGS]),
        ({"position_encoding": "absolute"}, ["image_size is None", "'absolute'"]),
        ({"position_encoding": "relative", "image_size": (64, 16)}, ["image_size is (64, 16)", "32"]),
    ],
)
def test_impossible_settings_are_named(settings, parts):
    with pytest.raises(ValueError, match=r"attention|position_encoding|image_size") as caught:
        small_model(**settings)
    for part in parts:
        assert part in str(caught.value)
