"""Pictures of what models look at: the computed maps against their definitions, and what the program writes."""

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
from common.pale_transformer import PaleTransformer, create_model
from tests.helpers.programs import ROOT
from tools import visualize
from tools.visualizing.attention_maps import attention_rollout, token_attention
from tools.visualizing.gradients import ReceptiveField, grad_cam, receptive_fields
from tools.visualizing.token_groups import groups_of_stage

SMALL = {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 2, 2), "pale_size": 2, "num_classes": 5}


def small_model(**overrides):
    paddle.seed(0)
    model = PaleTransformer(**{**SMALL, **overrides})
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        if not parameter.stop_gradient:  # a BatchNorm's statistics are
            parameter.set_value(rng.normal(0, 0.3, parameter.shape).astype("float32"))
    model.eval()
    return model


def random_images(height, width, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal((1, 3, height, width)).astype("float32"))


# ---- groups


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("pale", [lambda r, c: r % 3 == 1, lambda r, c: c % 4 == 2]),  # 5x7 is padded to 6x8, in 3 and 4 pales of 2
        ("axial", [lambda r, c: r == 4, lambda r, c: c == 6]),
        ("cross", [lambda r, c: r // 2 == 2, lambda r, c: c // 2 == 3]),
        ("window", [lambda r, c: (r // 2 == 2) & (c // 2 == 3)]),
        ("global", [lambda r, c: r >= 0]),
    ],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_groups_are_those_of_the_definition(attention, expected, parallel):
    depths = (2, 1, 1, 1)
    model = small_model(attention=attention, parallel=parallel, depths=depths)
    groups = groups_of_stage(model, 0, 5, 7, row=4, column=6)
    padded = (6, 8) if attention in ("pale", "cross", "window") else (5, 7)
    padded = (padded,) * len(expected)
    if not parallel and attention in ("pale", "cross"):
        padded = (6, 7), (5, 8)  # each block pads what it groups
    assert len(groups) == len(expected)
    for group, rule, sides in zip(groups, expected, padded, strict=True):
        assert group.tokens.shape == sides
        np.testing.assert_array_equal(group.tokens, np.broadcast_to(rule(*np.ogrid[: sides[0], : sides[1]]), sides))


def test_a_pale_says_how_far_apart_its_lines_are():
    rows, columns = groups_of_stage(create_model("pale_tiny", num_classes=0), 0, 56, 70, 3, 4)
    assert rows.describe() == {"name": "rows", "rows": 7, "columns": 70, "row_spacing": 8, "column_spacing": 1}
    assert columns.describe() == {"name": "columns", "rows": 56, "columns": 7, "row_spacing": 1, "column_spacing": 10}


# ---- attention


@pytest.mark.parametrize("attention", ["pale", "cross", "window", "global"])
def test_the_weights_of_a_token_make_its_output(attention):
    model = small_model(attention=attention)
    images, pixel = random_images(64, 64), (45, 13)
    blocks = [block.attention for stage in model.stages for block in stage.blocks]
    seen = {}
    for number, layer in enumerate(blocks):
        layer.register_forward_post_hook(lambda _, x, y, number=number: seen.update({number: (x[0], y)}))
    found = [attention for stage in token_attention(model, lambda: model(images), pixel) for attention in stage]
    strides = [stride for stride, depth in zip(model.out_strides, model.depths, strict=True) for _ in range(depth)]
    for number, (layer, shown, stride) in enumerate(zip(blocks, found, strides, strict=True)):
        x, output = seen[number]
        values = np.concatenate([part.numpy() for part in layer.value(x)], -1)[0]
        values = np.split(values, layer.num_heads, axis=-1)
        mixed = [np.nansum(w[..., None] * v, axis=(0, 1)) for w, v in zip(shown.weights, values, strict=True)]
        expected = layer.projection(paddle.to_tensor(np.concatenate(mixed)[None]))[0]
        np.testing.assert_allclose(output[0, 13 // stride, 45 // stride], expected, atol=1e-4)
        np.testing.assert_allclose(np.nansum(shown.weights, (1, 2)), 1, atol=1e-5)
        assert not shown.to_padding.any()


def test_what_goes_to_padding_is_told_and_the_model_is_left_as_it_was():
    model, images = small_model(), random_images(36, 44)
    before = model(images).numpy()
    (first, *_), *_ = token_attention(model, lambda: model(images), (0, 0))
    assert first.weights.shape == (2, 9, 11)
    assert first.to_padding.min() > 0
    np.testing.assert_allclose(np.nansum(first.weights, (1, 2)) + first.to_padding, 1, atol=1e-5)
    np.testing.assert_array_equal(model(images).numpy(), before)
    assert all(block.attention.attention.fused is None for stage in model.stages for block in stage.blocks)


def test_rollout_of_even_attention_is_even():
    model = small_model()
    for name, parameter in model.named_parameters():
        if ".query." in name:
            parameter.set_value(paddle.zeros_like(parameter))
    heat = attention_rollout(model, random_images(64, 128))
    np.testing.assert_allclose(heat, 1 / (64 * 128), rtol=1e-3)
    assert 0.3 < attention_rollout(model, random_images(72, 90)).sum() < 1  # padded tokens are attended to


def test_rollout_of_a_class_follows_its_gradient():
    model, images = small_model(), random_images(64, 64)
    maps = [attention_rollout(model, images, lambda x, label=label: model(x)[0, label]) for label in (0, 1)]
    assert all(heat.min() > -1e-6 for heat in maps)
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
    assert first.centre == (48, 48)
    seen = np.argwhere(first.shares > 0)
    # Tokens 12 and 13 of each axis, a convolution of 3x3 around them, patches of 7 pixels: 4 * 11 - 3 to 4 * 14 + 3.
    assert (seen.min(0).tolist(), seen.max(0).tolist()) == ([41, 41], [59, 59])
    np.testing.assert_allclose([first.shares.sum(), last.shares.sum()], 1, rtol=1e-5)


def test_the_radius_holds_the_share():
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


def check_pictures(found, folder, kinds):
    written = {kind: path for result in found for kind, path in result["pictures"].items()}
    assert list(written) == kinds
    for path in map(type(folder), written.values()):
        assert path.parent == folder
        with Image.open(path) as image:
            assert image.width == 990
            assert 150 < image.height < 3000


def test_a_classifier_is_shown_in_all_ways(tmp_path, capsys):
    found = show(capsys, ROOT / "docs/digit.png", "-pretrained", "mnist5k", "-at", 20, 4, "-out", tmp_path / "out")
    stages = [f"attention_stage{stage}" for stage in (1, 2, 3, 4)]
    check_pictures(found, tmp_path / "out", ["pale", *stages, "grad_cam", "rollout", "receptive_field"])
    assert found[0]["name"] == "7"
    assert found[0]["pale"][0]["token"] == [1, 5]
    assert found[0]["grad_cam"] == {"stage": 3}  # the fourth map has one token
    assert [row["stage"] for row in found[1]["receptive_field"]] == [1, 2, 3, 4]


def test_a_segmenter_is_shown_by_its_backbone_and_classes(tmp_path, capsys, squares_config):
    from semantic_segmentation.components import build_model
    from semantic_segmentation.config import CONFIG

    config = CONFIG.load(Namespace(cfg=squares_config, opts=[]))
    state = {"task": "semantic_segmentation", "config": CONFIG.dump(config), "class_names": ["a", "b", "c"]}
    save_file({**state, "model": numpy_state(build_model(config, 3))}, tmp_path / "w.pdparams")
    flags = (write_image(tmp_path / "i.png"), "-pretrained", tmp_path / "w.pdparams", "-out", tmp_path / "out")
    found = show(capsys, *flags, "-stages", 2, 4, "-show", "pale", "attention", "grad_cam")
    check_pictures(found, tmp_path / "out", ["pale", "attention_stage2", "attention_stage4", "grad_cam"])
    assert found[0]["name"] in "abc"
    with pytest.raises(UserError, match="of pixels, not of the mean"):
        show(capsys, *flags, "-show", "rollout")
    with pytest.raises(UserError, match="-label d is no class; known are a, b, c"):
        show(capsys, *flags, "-show", "grad_cam", "-label", "d")


def test_a_detector_is_shown_by_its_backbone(tmp_path, capsys, boxes_config):
    from object_detection.components import build_model
    from object_detection.config import CONFIG

    config = CONFIG.load(Namespace(cfg=boxes_config, opts=[]))
    state = {"task": "object_detection", "config": CONFIG.dump(config), "class_names": ["a", "b", "c"]}
    save_file({**state, "model": numpy_state(build_model(config, 3))}, tmp_path / "w.pdparams")
    flags = (write_image(tmp_path / "i.png"), "-pretrained", tmp_path / "w.pdparams", "-out", tmp_path / "out")
    found = show(capsys, *flags, "-stages", 3, "-show", "pale", "attention")
    check_pictures(found, tmp_path / "out", ["pale", "attention_stage3"])
    assert found[0]["pale"][0]["map"] == [4, 4]  # 44x60 pixels are padded to 64x64
    with pytest.raises(UserError, match="of boxes, which are chosen after them; choose of pale, attention"):
        show(capsys, *flags, "-show", "grad_cam")


def test_a_variant_without_weights_shows_its_pales(tmp_path, capsys):
    found = show(
        capsys, write_image(tmp_path / "i.png"), "-variant", "pale_nano", "-show", "pale", "-out", tmp_path / "o"
    )
    check_pictures(found, tmp_path / "o", ["pale"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either -pretrained or -variant"),
        (["-variant", "pale_tony"], "pale_tony"),
        (["-variant", "pale_nano", "-stages", 5], "numbered from 1 to 4"),
        (["-variant", "pale_nano", "-at", 100, 2], "the model sees 60x44"),
        (["-variant", "pale_nano", "-show", "attention"], "has learnt nothing; choose of pale"),
        (["-pretrained", "mnist5k", "-show", "grad_cam", "-label", "ten"], "-label ten is no class; known are"),
    ],
)
def test_mistakes_are_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        visualize.main([str(write_image(tmp_path / "i.png")), *map(str, flags), "-out", str(tmp_path / "out")])


def test_an_exported_model_is_told_to_be_one(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match=r"is exported already; give the weights, which its model_card\.json names"):
        visualize.main([str(write_image(tmp_path / "i.png")), "-pretrained", str(tmp_path)])


def test_receptive_fields_need_images_of_one_size(tmp_path):
    images = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png", 40, 40)
    with pytest.raises(UserError, match="images of one size, not of 40x40 and 60x44"):
        visualize.main([*map(str, images), "-variant", "pale_nano", "-show", "receptive_field", "-out", str(tmp_path)])
