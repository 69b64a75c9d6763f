"""Pictures of what models look at: the computed maps against their definitions, and the program's output."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import paddle
import pytest
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.pale_transformer import PaleTransformer
from tests.helpers.programs import ROOT
from tools import visualize
from tools.helpers.visualize_attention import (
    _attended,
    attention_rollout,
    groups_of_token,
    observed_attention,
    token_at,
)
from tools.helpers.visualize_gradients import ReceptiveField, grad_cam, receptive_fields

SMALL = {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 2, 2), "pale_size": 2, "num_classes": 5}


def small_model(**overrides):
    paddle.seed(0)
    model = PaleTransformer(**{**SMALL, **overrides})
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        if not parameter.stop_gradient:  # statistics of a BatchNorm are parameters, too
            parameter.set_value(rng.normal(0, 0.3, parameter.shape).astype("float32"))
    model.eval()
    return model


def random_images(height, width, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal((1, 3, height, width)).astype("float32"))


# ---- groups


@pytest.mark.parametrize(
    ("attention", "expected", "texts"),
    [  # 5x7 tokens are padded to 6x8, with 3 and 4 pales of 2
        ("pale", [lambda r, c: r % 3 == 1, lambda r, c: c % 4 == 2], ["2 rows, 3 apart", "2 columns, 4 apart"]),
        ("axial", [lambda r, c: r == 4, lambda r, c: c == 6], ["1 row", "1 column"]),
        ("cross", [lambda r, c: r // 2 == 2, lambda r, c: c // 2 == 3], ["2 rows", "2 columns"]),
        ("window", [lambda r, c: (r // 2 == 2) & (c // 2 == 3)], ["window of 2x2"]),
        ("global", [lambda r, c: r >= 0], ["whole map of 5x7"]),
    ],
)
def test_groups_are_those_of_the_definition(attention, expected, texts):
    groups = groups_of_token(small_model(attention=attention), 0, 5, 7, token=(4, 6))
    sides = (6, 8) if attention in ("pale", "cross", "window") else (5, 7)
    for group, rule in zip(groups, expected, strict=True):
        np.testing.assert_array_equal(group.tokens, np.broadcast_to(rule(*np.ogrid[: sides[0], : sides[1]]), sides))
    assert [group.describe() for group in groups] == texts


def test_groups_of_the_sequential_form_are_those_of_all_blocks():
    groups = groups_of_token(small_model(parallel=False, depths=(2, 1, 1, 1)), 0, 5, 7, token=(4, 6))
    assert [(group.kind, group.tokens.shape) for group in groups] == [("rows", (6, 7)), ("columns", (5, 8))]


# ---- attention


@pytest.mark.parametrize("attention", ["pale", "window"])
def test_the_weights_of_a_token_make_its_output(attention):
    model = small_model(attention=attention)
    layers = [block.attention for stage in model.stages for block in stage.blocks]
    passes = []
    for layer in layers:
        layer.register_forward_post_hook(lambda layer, inputs, output: passes.append((inputs[0], output)))
    with paddle.no_grad(), observed_attention(model) as blocks:
        model(random_images(64, 64))
    for layer, block, (x, output) in zip(layers, blocks, passes, strict=True):
        row, column = token_at((45, 13), model.out_strides[block.stage], block.height, block.width)
        weights, to_padding = block.of_token((row, column))
        value = layer.qkv(x)[2].numpy()[0]
        values = np.split(value, layer.num_heads, axis=-1)
        mixed = [np.nansum(w[..., None] * v, axis=(0, 1)) for w, v in zip(weights, values, strict=True)]
        expected = layer.projection(paddle.to_tensor(np.concatenate(mixed)[None]))[0]
        np.testing.assert_allclose(output[0, row, column], expected, atol=1e-4)
        assert not to_padding.any()


def test_what_goes_to_padding_is_told_and_the_model_is_left_as_it_was():
    model, images = small_model(), random_images(36, 44)
    before = model(images).numpy()
    with paddle.no_grad(), observed_attention(model) as blocks:
        model(images)
    weights, to_padding = blocks[0].of_token((0, 0))
    assert weights.shape == (2, 9, 11)
    assert to_padding.min() > 0
    np.testing.assert_allclose(np.nansum(weights, (1, 2)) + to_padding, 1, atol=1e-5)
    np.testing.assert_array_equal(model(images).numpy(), before)
    assert len(blocks) == sum(SMALL["depths"])  # the second pass was not observed


def test_relevance_follows_the_weights_of_all_tokens():
    model = small_model()
    with paddle.no_grad(), observed_attention(model) as blocks:
        model(random_images(64, 64))
    block = blocks[1]
    relevance = np.random.default_rng(0).random((block.height, block.width), np.float32)
    expected = np.zeros_like(relevance)
    for token in np.ndindex(*relevance.shape):
        expected += relevance[token] * np.nansum(block.of_token(token)[0], axis=0) / 2  # two heads, one of each half
    found = _attended(relevance, block, [weights.mean(1).numpy() for weights in block.weights])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rollout_of_a_class_follows_its_gradient():
    model, images = small_model(), random_images(72, 64)
    maps = [attention_rollout(model, images, lambda x, label=label: model(x)[0, label]) for label in (0, 1)]
    assert all(heat.shape == (72, 64) and heat.min() > -1e-6 for heat in maps)
    assert abs(maps[0] / maps[0].sum() - maps[1] / maps[1].sum()).max() > 1e-6
    assert not attention_rollout(model, images, lambda x: 0 * model(x)[0, 0]).round(7).any()
    assert all(parameter.grad is None or not parameter.grad.abs().sum() for parameter in model.parameters())


# ---- gradients


def test_grad_cam_is_that_of_a_linear_score():
    model, images = small_model(), random_images(96, 64)
    weights = np.random.default_rng(1).standard_normal(32).astype("float32")

    def score():
        features = model.forward_features(images)[3]
        return (features.mean([2, 3])[0] * paddle.to_tensor(weights)).sum()

    heat = grad_cam(model, score)
    features = model.forward_features(images)[3][0].numpy()
    expected = np.maximum(np.tensordot(weights / (3 * 2), features, 1), 0)
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)


def test_the_receptive_field_of_windows_ends_where_theirs_does():
    model = small_model(attention="window", position_encoding="none")
    first, *_, last = receptive_fields(model, [random_images(96, 96), random_images(96, 96, 1)])
    assert first.center == (48, 48)
    seen = np.argwhere(first.shares > 0)
    # Tokens 12 and 13 of each axis, a convolution of 3x3 around them, patches of 7 pixels: 4 * 11 - 3 to 4 * 14 + 3.
    assert (seen.min(0).tolist(), seen.max(0).tolist()) == ([41, 41], [59, 59])
    np.testing.assert_allclose([first.shares.sum(), last.shares.sum()], 1, rtol=1e-5)


def test_the_radius_contains_the_share():
    shares = np.zeros((9, 11), np.float32)
    shares[4, 5], shares[4, 8], shares[0, 5] = 0.6, 0.3, 0.1
    field = ReceptiveField(shares, (5, 4))
    assert [field.radius(share) for share in (0.5, 0.85, 0.99)] == [0, 3, 4]


# ---- the program


def write_image(path, height=44, width=60):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path)
    return path


def show(capsys, *flags):
    visualize.main([*map(str, flags), "-json"])
    return json.loads(capsys.readouterr().out)


def check_pictures(found, kinds):
    written = {kind: path for result in found for kind, path in result["pictures"].items()}
    assert list(written) == kinds
    for path in written.values():
        with Image.open(path) as image:
            assert image.width == 990
            assert 150 < image.height < 3000


def test_a_classifier_is_shown_in_all_ways(tmp_path, capsys):
    found = show(
        capsys, ROOT / "docs/digit.png", "-pretrained", "mnist5k", "-at", 20, 4, "-stages", 2, 4, "-out", tmp_path
    )
    kinds = ["pale", "attention_stage2", "attention_stage4", "grad_cam", "rollout", "receptive_field"]
    check_pictures(found, kinds)
    assert found[0]["name"] == "7"
    assert found[0]["pale"][0]["token"] == [0, 2]
    assert found[0]["grad_cam"] == {"stage": 2}  # the fourth map has one token
    assert [row["stage"] for row in found[1]["receptive_field"]] == [1, 2, 3, 4]


def save_weights(task, config_module, build_model, file, path):
    config = config_module.CONFIG.load(Namespace(cfg=file, opts=[]))
    state = {"task": task, "config": config_module.CONFIG.dump(config), "class_names": ["a", "b", "c"]}
    save_file({**state, "model": numpy_state(build_model(config, 3))}, path)
    return path


def test_a_segmenter_is_shown_by_its_backbone_and_classes(tmp_path, capsys, squares_config):
    from semantic_segmentation import config
    from semantic_segmentation.components import build_model

    weights = save_weights("semantic_segmentation", config, build_model, squares_config, tmp_path / "w.pdparams")
    flags = (write_image(tmp_path / "i.png"), "-pretrained", weights, "-out", tmp_path / "out")
    found = show(capsys, *flags, "-stages", 2, "-show", "attention", "grad_cam")
    check_pictures(found, ["attention_stage2", "grad_cam"])
    assert found[0]["name"] in "abc"
    with pytest.raises(UserError, match="-show rollout is not available for semantic_segmentation; choose from pale"):
        show(capsys, *flags, "-show", "rollout")
    with pytest.raises(UserError, match="-label d is not a class; the classes are a, b, c"):
        show(capsys, *flags, "-show", "grad_cam", "-label", "d")


def test_a_detector_is_shown_by_its_backbone(tmp_path, capsys, boxes_config):
    from object_detection import config
    from object_detection.components import build_model

    weights = save_weights("object_detection", config, build_model, boxes_config, tmp_path / "w.pdparams")
    flags = (write_image(tmp_path / "i.png"), "-pretrained", weights, "-out", tmp_path / "out")
    found = show(capsys, *flags, "-stages", 3, "-show", "pale", "attention")
    check_pictures(found, ["pale", "attention_stage3"])
    assert found[0]["pale"][0]["map"] == [4, 4]  # 44x60 pixels are padded to 64x64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either -pretrained or -variant"),
        (["-variant", "pale_tony"], "pale_tony"),
        (["-variant", "pale_nano", "-stages", 5], "numbered from 1 to 4"),
        (["-variant", "pale_nano", "-at", 100, 2], "the model sees 60x44"),
        (
            ["-variant", "pale_nano", "-show", "attention"],
            "for a variant with random weights; choose from pale",
        ),
    ],
)
def test_mistakes_are_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        visualize.main([str(write_image(tmp_path / "i.png")), *map(str, flags), "-out", str(tmp_path / "out")])


def test_receptive_fields_need_images_of_one_size(tmp_path):
    images = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png", 40, 40)
    with pytest.raises(UserError, match="images of one size, not of 40x40 and 60x44"):
        visualize.main([*map(str, images), "-variant", "pale_nano", "-show", "receptive_field", "-out", str(tmp_path)])
