"""Partition and merge: inverse to each other, and the tokens of a group are those that its definition names."""

import numpy as np
import paddle
import pytest

from common.layers.attention_shapes import ATTENTIONS, Along, Grouping, attention_groupings, merge, partition

ALL = Along(None)
GROUPINGS = {
    "interlaced rows": Grouping(Along(3, interlaced=True), ALL),
    "interlaced columns": Grouping(ALL, Along(3, interlaced=True)),
    "single rows": Grouping(Along(1, interlaced=True), ALL),
    "single columns": Grouping(ALL, Along(1, interlaced=True)),
    "neighbouring rows": Grouping(Along(3), ALL),
    "neighbouring columns": Grouping(ALL, Along(3)),
    "windows": Grouping(Along(3), Along(2)),
    "grid": Grouping(Along(3, interlaced=True), Along(2, interlaced=True)),
    "interlaced and neighbouring": Grouping(Along(2, interlaced=True), Along(3)),
    "all": Grouping(ALL, ALL),
}


def positions(along: Along, side: int) -> list[list[int]]:
    """The positions of each group along one axis."""
    size = side if along.size is None else along.size
    number = side // size
    if along.interlaced:
        return [list(range(group, side, number)) for group in range(number)]
    return [list(range(group * size, (group + 1) * size)) for group in range(number)]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 6, 6, 2), (2, 6, 12, 4), (3, 12, 6, 6), (2, 18, 6, 2)])
@pytest.mark.parametrize("name", GROUPINGS)
def test_groups_hold_their_tokens_in_row_major_order(name, shape, heads):
    batch, height, width, channels = shape
    x = np.random.default_rng(0).standard_normal(shape)
    expected = [
        np.stack(np.split(x[image][np.ix_(rows, columns)].reshape(-1, channels), heads, axis=-1))
        for image in range(batch)
        for rows in positions(GROUPINGS[name].rows, height)
        for columns in positions(GROUPINGS[name].columns, width)
    ]
    groups = partition(paddle.to_tensor(x), GROUPINGS[name], heads)
    np.testing.assert_array_equal(groups.numpy(), np.stack(expected))
    np.testing.assert_array_equal(merge(groups, GROUPINGS[name], height, width).numpy(), x)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 7, 7, 8), (1, 2, 14, 2)])
def test_maps_no_larger_than_a_group(attention, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    for grouping in attention_groupings(attention, 7):
        fitted = grouping.at_most(*shape[1:3])
        groups = partition(paddle.to_tensor(x), fitted, 2)
        rows, columns = fitted.sides(*shape[1:3])
        assert groups.shape[1:] == [2, rows * columns, shape[3] // 2]
        np.testing.assert_array_equal(merge(groups, fitted, *shape[1:3]).numpy(), x)


def test_a_pair_gives_rows_and_columns_sizes_of_their_own():
    rows, columns = attention_groupings("pale", (3, 5))
    assert (rows.rows.size, rows.columns.size) == (3, None)
    assert (columns.rows.size, columns.columns.size) == (None, 5)
    (window,) = attention_groupings("window", (3, 5))
    assert (window.rows.size, window.columns.size) == (3, 5)


@pytest.mark.parametrize(
    ("attention", "size", "parts"),
    [
        ("pale", 0, ["pale_size is 0", "positive"]),
        ("pale", 2.5, ["pale_size is 2.5", "integer"]),
        ("cross", (7, -1), ["pale_size is (7, -1)", "positive"]),
        ("global", (7,), ["pale_size is (7,)", "pair"]),
        ("window", (7, 7, 7), ["pale_size is (7, 7, 7)", "pair"]),
        ("pale", (7, 2.5), ["pale_size is (7, 2.5)", "integer"]),
        ("swin", 7, ["attention is 'swin'", *ATTENTIONS]),
    ],
)
def test_impossible_arguments_are_named(attention, size, parts):
    with pytest.raises(ValueError, match=r"pale_size|attention") as caught:
        attention_groupings(attention, size)
    for part in parts:
        assert part in str(caught.value)
