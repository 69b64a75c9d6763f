"""PS-Attention against one attention over the whole map, masked by coordinates."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from common.pale_attention import PSAttention, column_groups, merge_column_groups, merge_row_groups, row_groups
from tests.helpers.masked_attention import masked_attention, random_map, randomize


def make_attention(dim=8, num_heads=4, pale_size=2, dtype="float64", training=False) -> PSAttention:
    layer = PSAttention(dim, num_heads, pale_size)
    layer.to(dtype=dtype)
    layer.train() if training else layer.eval()
    return randomize(layer)


def test_groups_hold_interlaced_rows_and_columns():
    """A map of 6x4 whose tokens are numbered row by row; one head."""
    x = paddle.arange(24).reshape([1, 6, 4, 1])
    rows = row_groups(x, 2, *x.shape[1:3], 1)[:, 0, :, 0].tolist()
    assert rows == [[4 * row + column for row in (group, group + 3) for column in range(4)] for group in range(3)]
    columns = column_groups(x, 2, *x.shape[1:3], 1)[:, 0, :, 0].tolist()
    assert columns == [[4 * row + column for row in range(6) for column in (group, group + 2)] for group in range(2)]


def test_merging_is_the_inverse_of_grouping():
    x = paddle.to_tensor(random_map(2, 6, 8, 12))
    rows, columns = row_groups(x, 3, 6, 8, 4), column_groups(x, 2, 6, 8, 4)
    assert rows.shape == [2 * 2, 4, 3 * 8, 3]
    assert columns.shape == [2 * 4, 4, 6 * 2, 3]
    np.testing.assert_array_equal(merge_row_groups(rows, 3, 6, 8).numpy(), x.numpy())
    np.testing.assert_array_equal(merge_column_groups(columns, 2, 6, 8).numpy(), x.numpy())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "pale_size"),
    [(6, 6, 3), (4, 8, 2), (5, 7, 3), (7, 9, (4, 2)), (9, 9, 7), (3, 3, 7), (2, 9, 4), (1, 1, 7), (5, 6, 1)],
)
def test_equals_masked_attention_over_the_whole_map(height, width, pale_size, training):
    layer = make_attention(pale_size=pale_size, training=training)
    x = random_map(2, height, width, 8)
    expected = masked_attention(layer, x, pale_size)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("dim", "num_heads"), [(8, 2), (8, 8), (12, 6)])
def test_equals_masked_attention_for_any_heads(dim, num_heads):
    layer = make_attention(dim, num_heads)
    x = random_map(2, 4, 6, dim)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), masked_attention(layer, x, 2), rtol=1e-9, atol=1e-9)


def test_float32_is_exact_up_to_rounding():
    layer = make_attention(pale_size=3, dtype="float32")
    x = random_map(2, 7, 5, 8).astype("float32")
    output = layer(paddle.to_tensor(x))
    assert output.dtype == paddle.float32
    np.testing.assert_allclose(output.numpy(), masked_attention(layer, x.astype("float64"), 3), rtol=1e-4, atol=1e-5)


def test_gradients_equal_finite_differences():
    layer = make_attention(dim=4, num_heads=2, pale_size=2, training=True)
    x = paddle.to_tensor(random_map(1, 3, 4, 4), stop_gradient=False)
    weights = paddle.to_tensor(random_map(1, 3, 4, 4, seed=1))

    def loss():
        return (layer(x) * weights).sum()

    loss().backward()
    step = 1e-5
    trainable = [(name, parameter) for name, parameter in layer.named_parameters() if not parameter.stop_gradient]
    for name, tensor in [("input", x), *trainable]:
        values = tensor.numpy()
        differences = np.zeros_like(values)
        for position in np.ndindex(values.shape):
            sides = []
            for sign in (1, -1):
                moved = values.copy()
                moved[position] += sign * step
                with paddle.no_grad():
                    tensor.set_value(moved)
                    sides.append(float(loss()))
            differences[position] = (sides[0] - sides[1]) / (2 * step)
        with paddle.no_grad():
            tensor.set_value(values)
        np.testing.assert_allclose(tensor.grad.numpy(), differences, rtol=1e-6, atol=1e-7, err_msg=name)


# Pales of 2 on maps of 8 x 10: four groups of rows, five of columns. The 3x3 convolutions carry a pixel to its
# neighbors, so three groups of each half change, or two at the map's edge. A map of 7 x 9 is padded to 8 x 10, and its
# last row and column reach the padding's. Each entry: map, pixel, groups of rows that change, groups of columns.
@pytest.mark.parametrize(
    ("size", "pixel", "rows", "columns"),
    [
        ((8, 10), (3, 4), {2, 3, 0}, {3, 4, 0}),
        ((8, 10), (0, 0), {0, 1}, {0, 1}),
        ((7, 9), (6, 8), {1, 2, 3}, {2, 3, 4}),
    ],
)
def test_a_pixel_changes_its_row_groups_in_one_half_and_its_column_groups_in_the_other(size, pixel, rows, columns):
    layer = make_attention()
    layer.projection.weight.set_value(np.eye(8))
    x = random_map(1, *size, 8)
    changed = x.copy()
    changed[0, pixel[0], pixel[1]] += 1.0
    before, after = (layer(paddle.to_tensor(t)).numpy()[0] for t in (x, changed))
    reached = np.zeros((*size, 8), bool)
    reached[..., :4] = np.isin(np.arange(size[0]) % 4, list(rows))[:, None, None]
    reached[..., 4:] = np.isin(np.arange(size[1]) % 5, list(columns))[:, None]
    np.testing.assert_array_equal(abs(after - before) > 1e-12, reached)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((8, 3), ["num_heads is 3", "even"]),
        ((8, 0), ["num_heads is 0", ">= 2"]),
        ((10, 4), ["num_heads 4", "dim 10"]),
        ((8, 4, 0), ["pale_size is 0", "positive"]),
        ((8, 4, (7, 2.5)), ["pale_size is (7, 2.5)", "integer"]),
        ((8, 4, (7, 7, 7)), ["pale_size is (7, 7, 7)", "pair"]),
    ],
)
def test_impossible_arguments_are_named(arguments, parts):
    with pytest.raises(ValueError, match=r"num_heads|pale_size") as caught:
        PSAttention(*arguments)
    for part in parts:
        assert part in str(caught.value)
