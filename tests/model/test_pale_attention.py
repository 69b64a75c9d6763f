"""Attention within groups against its definition: one attention over the whole map, masked by coordinates."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common.layers.attention_shapes import ATTENTIONS, Along, Grouping, attention_groupings
from common.pale_attention import PSAttention, SeparableProjection


def random_map(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def randomize(layer, seed=0):
    """Give every parameter and buffer a value that shows when it is left out."""
    rng = np.random.default_rng(seed)
    for name, tensor in layer.state_dict().items():
        value = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, 0.6, tensor.shape)
        tensor.set_value(value.astype(str(tensor.dtype).removeprefix("paddle.")))
    return layer


def make_attention(
    dim=8, num_heads=4, pale_size=2, dtype="float64", training=False, fused=None, attention="pale", only=None, **options
):
    """A layer of random values; ``only`` takes one of the groupings, for all channels, as the sequential form does."""
    groupings = attention_groupings(attention, pale_size)
    groupings = groupings if only is None else groupings[only : only + 1]
    layer = PSAttention(dim, num_heads, groupings, fused, **options)
    layer.to(dtype=dtype)
    layer.train() if training else layer.eval()
    return randomize(layer)


def trainable(layer):
    """Names and parameters without BatchNorm's statistics, which Paddle counts among the parameters."""
    return [(name, parameter) for name, parameter in layer.named_parameters() if not parameter.stop_gradient]


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


def reference_attention(query, key, value, heads, visible, biases):
    """Multi-head attention of ``[B, L, C]`` tokens; ``visible[i, j]``: token i sees token j; ``biases[head, i, j]``."""
    outputs = []
    for head, (q, k, v) in enumerate(zip(*(np.split(t, heads, axis=-1) for t in (query, key, value)), strict=True)):
        scores = np.where(visible, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + biases[head], -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(scores / scores.sum(-1, keepdims=True) @ v)
    return np.concatenate(outputs, -1)


def along(kind, position, side, size):
    """Group and place within the group of the tokens at these positions along one axis, by the paper's words."""
    if kind == "all":
        return 0 * position, position
    if kind == "interlaced":
        spacing = side // size
        return position % spacing, position // spacing
    return position // size, position % size


KINDS = {
    "pale": [("interlaced", "all"), ("all", "interlaced")],
    "axial": [("interlaced", "all"), ("all", "interlaced")],
    "cross": [("neighbours", "all"), ("all", "neighbours")],
    "window": [("neighbours", "neighbours")],
    "global": [("all", "all")],
}


def reference(layer: PSAttention, x, pale_size, attention="pale", only=None):
    """The layer by its definition: in each part of the channels, a token sees the tokens of its group."""
    batch, height, width, channels = x.shape
    kinds = KINDS[attention] if only is None else KINDS[attention][only : only + 1]
    sides = np.array([height, width])
    sizes = np.ones(2, int) if attention == "axial" else np.minimum(pale_size, sides)
    split = [any(kind[axis] != "all" for kind in kinds) for axis in (0, 1)]
    pads = np.where(split, -sides % sizes, 0)
    x = np.pad(x, [(0, 0), (0, pads[0]), (0, pads[1]), (0, 0)])
    padded = x.shape[1:3]
    qkv = [reference_projection(part, x, layer.training) for part in (layer.query, layer.key, layer.value)]
    qkv = [t.reshape(batch, -1, channels) for t in qkv]
    heads, attended = layer.num_heads // len(kinds), []
    for part, kind in enumerate(kinds):
        lines = np.indices(padded).reshape(2, -1)
        pairs = [along(kind[axis], lines[axis], padded[axis], sizes[axis]) for axis in (0, 1)]
        groups, places = zip(*pairs, strict=True)
        visible = (groups[0][:, None] == groups[0]) & (groups[1][:, None] == groups[1])
        biases = np.zeros((heads, 1, 1))
        if layer.position_biases is not None:
            table = layer.position_biases[part].table.numpy()
            rows, columns = (place[:, None] - place for place in places)
            biases = table[:, rows + table.shape[1] // 2, columns + table.shape[2] // 2]
        of_part = [np.split(t, len(kinds), axis=-1)[part] for t in qkv]
        attended.append(reference_attention(*of_part, heads, visible, biases))
    x = np.concatenate(attended, -1).reshape(batch, *padded, channels)[:, :height, :width]
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


SIZES = [(6, 6, 3), (5, 7, 3), (9, 9, 7), (7, 9, (2, 4)), (3, 8, 4), (1, 1, 7)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("only", [None, 0, 1])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_grouping_equals_masked_attention_over_the_whole_map(attention, only, biased):
    if only == 1 and len(KINDS[attention]) == 1:
        pytest.skip("there is one grouping")
    for height, width, size in SIZES:
        map_size = (height, width) if biased else None
        layer = make_attention(pale_size=size, attention=attention, only=only, map_size=map_size)
        x = random_map(2, height, width, 8)
        expected = reference(layer, x, (size, size) if isinstance(size, int) else size, attention, only)
        np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_fusing_leaves_the_outputs_of_every_grouping(attention):
    layer = make_attention(pale_size=3, attention=attention, map_size=(5, 7))
    x = paddle.to_tensor(random_map(2, 5, 7, 8))
    expected = layer(x).numpy()
    layer.fuse()
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_bias_for_another_map_is_interpolated(attention):
    layer = make_attention(pale_size=3, attention=attention, map_size=(6, 6))
    for bias in layer.position_biases:
        bias.table.set_value(paddle.full_like(bias.table, 3.0))
    x = random_map(2, 8, 5, 8)
    unbiased = make_attention(pale_size=3, attention=attention)
    unbiased.set_state_dict({name: t for name, t in layer.state_dict().items() if "table" not in name})
    outputs = [each(paddle.to_tensor(x)).numpy() for each in (layer, unbiased)]
    np.testing.assert_allclose(*outputs, rtol=1e-9, atol=1e-9)  # a constant, which softmax takes away


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


@pytest.mark.parametrize(
    ("training", "options"), [(False, {}), (True, {}), (True, {"map_size": (3, 4), "fused": True})]
)
def test_gradients_equal_finite_differences(training, options):
    layer = make_attention(dim=4, num_heads=2, pale_size=2, training=training, **options)
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
    ("dim", "num_heads", "attention", "parts"),
    [
        (8, 3, "pale", ["num_heads is 3", "even"]),
        (9, 1, "pale", ["num_heads is 1", "even"]),
        (8, 0, "pale", ["num_heads is 0", ">= 2"]),
        (8, -2, "pale", ["num_heads is -2", ">= 2"]),
        (8, 0, "window", ["num_heads is 0", ">= 1"]),
        (10, 4, "pale", ["num_heads 4", "dim 10"]),
    ],
)
def test_impossible_arguments_are_named(dim, num_heads, attention, parts):
    with pytest.raises(ValueError, match="num_heads") as caught:
        PSAttention(dim, num_heads, attention_groupings(attention))
    for part in parts:
        assert part in str(caught.value)


def test_groupings_that_no_padding_suits_are_refused():
    groupings = (Grouping(Along(2), Along(None)), Grouping(Along(3), Along(None)))
    with pytest.raises(ValueError, match=r"unlike sizes .* \[2, 3\]"):
        PSAttention(8, 4, groupings)
