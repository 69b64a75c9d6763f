"""Pale-shaped attention against its definition: one attention over the whole map, masked to the interlaced lines."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common.pale_attention import (
    PSAttention,
    SeparableProjection,
    merge_columns,
    merge_rows,
    partition_columns,
    partition_rows,
)


def random_map(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def randomize(layer, seed=0):
    """Give every parameter and buffer a value that shows when it is left out."""
    rng = np.random.default_rng(seed)
    for name, tensor in layer.state_dict().items():
        value = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, 0.6, tensor.shape)
        tensor.set_value(value.astype(str(tensor.dtype).removeprefix("paddle.")))
    return layer


def make_attention(dim=8, num_heads=4, pale_size=2, dtype="float64", training=False, fused=None):
    layer = PSAttention(dim, num_heads, pale_size, fused)
    layer.to(dtype=dtype)
    layer.train() if training else layer.eval()
    return randomize(layer)


def trainable(layer):
    """Names and parameters without BatchNorm's statistics, which Paddle counts among the parameters."""
    return [(name, parameter) for name, parameter in layer.named_parameters() if not parameter.stop_gradient]


# ---- partition and merge

LINES = {"rows": (partition_rows, merge_rows), "columns": (partition_columns, merge_columns)}


def index_map(batch, height, width):
    """A map of two channels that hold the row and the column, 100 times the image added."""
    rows, columns = np.indices((height, width))
    image = 100 * np.arange(batch)[:, None, None, None]
    return paddle.to_tensor(image + np.stack([rows, columns], -1))


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 4, 4, 3), 2),
        ((2, 6, 6, 3), 2),
        ((2, 6, 6, 3), 3),
        ((3, 6, 12, 5), 3),
        ((3, 12, 6, 5), 6),
        ((2, 7, 7, 1), 7),
        ((2, 5, 5, 4), 1),
        ((1, 1, 1, 2), 1),
    ],
)
def test_merge_is_the_inverse_of_partition(lines, shape, size):
    partition, merge = LINES[lines]
    x = random_map(*shape)
    height, width = shape[1:3]
    groups = partition(paddle.to_tensor(x), size)
    number = (height if lines == "rows" else width) // size
    assert groups.shape == [shape[0] * number, 1, height * width // number, shape[3]]
    np.testing.assert_array_equal(merge(groups, size, height, width).numpy(), x)

    groups = paddle.to_tensor(random_map(*groups.shape, seed=1))
    np.testing.assert_array_equal(partition(merge(groups, size, height, width), size).numpy(), groups.numpy())


@pytest.mark.parametrize("lines", LINES)
def test_heads_are_parts_of_the_channels(lines):
    partition, merge = LINES[lines]
    x = paddle.to_tensor(random_map(2, 6, 12, 8))
    groups = partition(x, 3, heads=4)
    parts = [partition(x[..., 2 * head : 2 * head + 2], 3)[:, 0].numpy() for head in range(4)]
    np.testing.assert_array_equal(groups.numpy(), np.stack(parts, axis=1))
    np.testing.assert_array_equal(merge(groups, 3, 6, 12).numpy(), x.numpy())


@pytest.mark.parametrize(("height", "width", "size", "batch"), [(6, 4, 2, 1), (6, 4, 3, 3), (12, 5, 4, 2)])
def test_group_holds_interlaced_rows_in_row_major_order(height, width, size, batch):
    groups = partition_rows(index_map(batch, height, width), size).numpy()[:, 0]
    spacing = height // size
    for image in range(batch):
        for pale in range(spacing):
            tokens = [(row, column) for row in range(pale, height, spacing) for column in range(width)]
            np.testing.assert_array_equal(groups[image * spacing + pale] - 100 * image, tokens)


@pytest.mark.parametrize(("height", "width", "size", "batch"), [(4, 6, 2, 1), (4, 6, 3, 3), (5, 12, 4, 2)])
def test_group_holds_interlaced_columns_in_row_major_order(height, width, size, batch):
    groups = partition_columns(index_map(batch, height, width), size).numpy()[:, 0]
    spacing = width // size
    for image in range(batch):
        for pale in range(spacing):
            tokens = [(row, column) for row in range(height) for column in range(pale, width, spacing)]
            np.testing.assert_array_equal(groups[image * spacing + pale] - 100 * image, tokens)


# ---- PSAttention against one masked attention over all tokens


def reference_projection(layer: SeparableProjection, x, training):
    """Depthwise 3x3 with zeros around the map, BatchNorm, pointwise; NumPy, ``[B, H, W, C]``."""
    weight = layer.depthwise.weight.numpy()[:, 0]
    height, width = x.shape[1:3]
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    x = sum(x[:, i : i + height, j : j + width] * weight[:, i, j] for i in range(3) for j in range(3))
    norm = layer.norm
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if training else (norm._mean.numpy(), norm._variance.numpy())
    x = (x - mean) / np.sqrt(variance + 1e-5) * norm.weight.numpy() + norm.bias.numpy()
    return x @ layer.pointwise.weight.numpy() + layer.pointwise.bias.numpy()


def reference_attention(query, key, value, heads, visible):
    """Multi-head attention of ``[B, L, C]`` tokens; ``visible[i, j]``: token i sees token j."""
    outputs = []
    for q, k, v in zip(*(np.split(t, heads, axis=-1) for t in (query, key, value)), strict=True):
        scores = np.where(visible, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(scores / scores.sum(-1, keepdims=True) @ v)
    return np.concatenate(outputs, -1)


def reference(layer: PSAttention, x, pale_size):
    """PS-Attention by its definition: a token of the row half sees the tokens whose row is congruent modulo N."""
    batch, height, width, channels = x.shape
    pale_rows, pale_columns = min(pale_size[0], height), min(pale_size[1], width)
    x = np.pad(x, [(0, 0), (0, -height % pale_rows), (0, -width % pale_columns), (0, 0)])
    padded = x.shape[1:3]
    qkv = [reference_projection(part, x, layer.training) for part in (layer.query, layer.key, layer.value)]
    qkv = [t.reshape(batch, -1, channels) for t in qkv]
    halves = []
    for half, (line, pale) in enumerate(zip(np.indices(padded), (pale_rows, pale_columns), strict=True)):
        group = line.ravel() % (padded[half] // pale)
        channels_of_half = slice(half * channels // 2, (half + 1) * channels // 2)
        parts = [t[..., channels_of_half] for t in qkv]
        halves.append(reference_attention(*parts, layer.num_heads // 2, group[:, None] == group))
    x = np.concatenate(halves, -1).reshape(batch, *padded, channels)[:, :height, :width]
    return x @ layer.projection.weight.numpy() + layer.projection.bias.numpy()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "pale_size"),
    [
        (6, 6, 2),
        (6, 6, 3),
        (4, 8, 2),
        (8, 4, 4),
        (5, 7, 3),
        (7, 6, 2),
        (6, 7, 3),
        (9, 9, 7),
        (6, 8, (3, 2)),
        (7, 9, (2, 4)),
        (7, 9, (4, 2)),
        (3, 3, 7),
        (2, 9, 4),
        (9, 2, 4),
        (1, 1, 7),
        (5, 6, 1),
    ],
)
def test_equals_masked_attention_over_the_whole_map(height, width, pale_size, training):
    layer = make_attention(pale_size=pale_size, training=training)
    x = random_map(2, height, width, 8)
    sides = (pale_size, pale_size) if isinstance(pale_size, int) else pale_size
    expected = reference(layer, x, sides)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dim", "num_heads"), [(8, 2), (8, 8), (12, 6), (20, 4)])
def test_equals_masked_attention_for_any_heads(dim, num_heads):
    layer = make_attention(dim, num_heads)
    x = random_map(2, 4, 6, dim)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), reference(layer, x, (2, 2)), rtol=1e-9, atol=1e-9)


def test_float32_is_as_exact_as_float32_can_be():
    layer = make_attention(pale_size=3, dtype="float32")
    x = random_map(2, 7, 5, 8).astype("float32")
    output = layer(paddle.to_tensor(x))
    assert output.dtype == paddle.float32
    np.testing.assert_allclose(output.numpy(), reference(layer, x.astype("float64"), (3, 3)), rtol=1e-4, atol=1e-5)


# ---- fused and plain


@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 7), (2, 2)])
def test_fused_equals_plain(height, width, monkeypatch):
    fused_calls = []
    real = F.scaled_dot_product_attention

    def spy(*args, **kwargs):
        fused_calls.append(args[0].shape)
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    results = []
    for fused in (False, True):
        layer = make_attention(pale_size=3, dtype="float32", fused=fused, training=True)
        x = paddle.to_tensor(random_map(2, height, width, 8).astype("float32"), stop_gradient=False)
        output = layer(x)
        (output * paddle.to_tensor(random_map(*output.shape, seed=1).astype("float32"))).sum().backward()
        gradients = {name: parameter.grad.numpy() for name, parameter in trainable(layer)}
        results.append({"output": output.numpy(), "input": x.grad.numpy()} | gradients)
        assert len(fused_calls) == (2 if fused else 0)
    for name, plain in results[0].items():
        np.testing.assert_allclose(results[1][name], plain, rtol=1e-5, atol=1e-5 * abs(plain).max(), err_msg=name)


# ---- gradients


@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_finite_differences(training):
    layer = make_attention(dim=4, num_heads=2, pale_size=2, training=training)
    x = paddle.to_tensor(random_map(1, 3, 4, 4), stop_gradient=False)
    weights = paddle.to_tensor(random_map(1, 3, 4, 4, seed=1))

    def loss():
        return (layer(x) * weights).sum()

    loss().backward()
    step = 1e-5
    for name, tensor in [("input", x), *trainable(layer)]:
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


# ---- receptive field


def changed_tokens(layer, height, width, pixel):
    """Change one pixel; return how far each channel of each token moves, ``[H, W, C]``."""
    x = random_map(1, height, width, layer.dim)
    moved = x.copy()
    moved[0, pixel[0], pixel[1]] += 1.0
    before, after = (layer(paddle.to_tensor(t)).numpy()[0] for t in (x, moved))
    return abs(after - before)


# Pales of 2 on maps of 8 x 10: four groups of rows, five of columns. The 3x3 convolutions carry a pixel to its
# neighbours, so three groups of each half move, or two at the map's edge. A map of 7 x 9 is padded to 8 x 10, and its
# last row and column reach the padding's. Each entry: map, pixel, groups of rows that move, groups of columns.
FIELDS = [
    ((8, 10), (3, 4), {2, 3, 0}, {3, 4, 0}),
    ((8, 10), (5, 7), {0, 1, 2}, {1, 2, 3}),
    ((8, 10), (0, 0), {0, 1}, {0, 1}),
    ((8, 10), (7, 9), {2, 3}, {3, 4}),
    ((7, 9), (6, 8), {1, 2, 3}, {2, 3, 4}),
    ((7, 9), (0, 4), {0, 1}, {3, 4, 0}),
]


@pytest.mark.parametrize(("size", "pixel", "row_groups", "column_groups"), FIELDS)
def test_a_pixel_moves_its_rows_groups_in_one_half_and_its_columns_groups_in_the_other(
    size, pixel, row_groups, column_groups
):
    layer = make_attention()
    layer.projection.weight.set_value(np.eye(8))
    moved = changed_tokens(layer, *size, pixel)
    for row, column in np.ndindex(size):
        for half, reached in ((slice(0, 4), row % 4 in row_groups), (slice(4, 8), column % 5 in column_groups)):
            if reached:
                assert (moved[row, column, half] > 1e-9).all(), (row, column, half)
            else:
                assert (moved[row, column, half] <= 1e-14).all(), (row, column, half)


@pytest.mark.parametrize(("size", "pixel", "row_groups", "column_groups"), FIELDS)
def test_a_pixel_moves_exactly_the_union_of_both_halves(size, pixel, row_groups, column_groups):
    moved = changed_tokens(make_attention(), *size, pixel)
    rows, columns = np.indices(size)
    expected = np.isin(rows % 4, list(row_groups)) | np.isin(columns % 5, list(column_groups))
    assert not expected.all()
    np.testing.assert_array_equal((moved > 1e-9).all(-1), expected)
    np.testing.assert_array_equal((moved > 1e-14).any(-1), expected)


# ---- mixed precision, errors


def test_bfloat16_auto_cast_runs_and_is_finite():
    """Not how exact it is: on CPUs Paddle's auto_cast leaves the layer in float32."""
    layer = make_attention(pale_size=3, dtype="float32", training=True)
    x = paddle.to_tensor(random_map(2, 7, 5, 8).astype("float32"), stop_gradient=False)
    with paddle.amp.auto_cast(dtype="bfloat16"):
        output = layer(x)
    output.astype("float32").sum().backward()
    assert output.shape == [2, 7, 5, 8]
    assert np.isfinite(output.astype("float32").numpy()).all()
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(
    ("dim", "num_heads", "pale_size", "parts"),
    [
        (8, 3, 7, ["num_heads is 3", "even"]),
        (9, 1, 7, ["num_heads is 1", "even"]),
        (8, 0, 7, ["num_heads is 0", ">= 2"]),
        (8, -2, 7, ["num_heads is -2", ">= 2"]),
        (10, 4, 7, ["num_heads 4", "dim 10"]),
        (8, 2, 0, ["pale_size is 0", "positive"]),
        (8, 2, 2.5, ["pale_size is 2.5", "integer"]),
        (8, 2, (7, -1), ["pale_size is (7, -1)", "positive"]),
        (8, 2, (7,), ["pale_size is (7,)", "pair"]),
        (8, 2, (7, 7, 7), ["pale_size is (7, 7, 7)", "pair"]),
        (8, 2, (7, 2.5), ["pale_size is (7, 2.5)", "integer"]),
    ],
)
def test_impossible_arguments_are_named(dim, num_heads, pale_size, parts):
    with pytest.raises(ValueError, match=r"num_heads|pale_size") as caught:
        PSAttention(dim, num_heads, pale_size)
    for part in parts:
        assert part in str(caught.value)
