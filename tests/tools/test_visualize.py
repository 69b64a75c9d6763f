"""Pictures of what models look at: the computed maps against their definitions, and the program's output."""

from __future__ import annotations

import re
from argparse import Namespace

import numpy as np
import paddle
import pytest
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.pale_transformer import PaleTransformer
from common.tasks import TASKS
from tests.helpers.programs import ROOT
from tools import visualize
from tools.helpers import visualize_figures
from tools.helpers.visualize_attention import (
    _attended,
    attention_rollout,
    describe_group,
    groups_of_token,
    observed_attention,
    token_at,
)
from tools.helpers.visualize_figures import _draw_heat, draw_pale
from tools.helpers.visualize_gradients import ReceptiveField, grad_cam, receptive_fields
from tools.helpers.visualize_model import Subject

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
        np.testing.assert_array_equal(group, np.broadcast_to(rule(*np.ogrid[: sides[0], : sides[1]]), sides))
    assert [describe_group(group)[1] for group in groups] == texts


def test_groups_of_the_sequential_form_are_those_of_all_blocks():
    groups = groups_of_token(small_model(parallel=False, depths=(2, 1, 1, 1)), 0, 5, 7, token=(4, 6))
    assert [(describe_group(group)[0], group.shape) for group in groups] == [("rows", (6, 7)), ("columns", (5, 8))]


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


def check_pictures(folder, names):
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert 800 < image.width < 2000
            assert 150 < image.height < 3000


def test_panels_of_all_stages_have_one_size():
    picture = np.zeros((44, 60, 3), np.uint8)  # padded differently in each stage
    subject = Subject(None, small_model(), [], random_images(44, 60), picture, (30, 20), [1, 2, 3], None)
    panels = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize_figures, "_as_image", lambda figure: panels.extend(figure.axes[:3]))
        draw_pale(subject)
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1


def test_a_wide_title_is_not_cut():
    flat = np.zeros((32, 32, 3), np.uint8), np.ones((2, 2))
    narrow, wide = (_draw_heat(*flat, "Grad-CAM", name) for name in ("cat", "W" * 60))
    assert wide.width > narrow.width
    assert (np.asarray(wide)[:, -1] == 255).all()


def test_a_classifier_is_shown_in_all_ways(tmp_path, capsys):
    digit = ROOT / "docs/digit.png"
    flags = ["-pretrained", "mnist5k", "-at", "20", "4", "-stages", "2", "4", "-out", str(tmp_path)]
    visualize.main([str(digit), *flags])
    kinds = ("pale", "attention_stage2", "attention_stage4", "grad_cam", "rollout", "receptive_field")
    paths = [tmp_path / f"digit_{kind}.png" for kind in kinds]
    check_pictures(tmp_path, {path.name for path in paths})
    assert capsys.readouterr().out.splitlines() == [f"{digit} -> {path}" for path in paths]


def test_a_map_that_is_0_everywhere_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tools.helpers.visualize_figures.grad_cam", lambda *_: np.zeros((4, 4), np.float32))
    flags = ["-pretrained", "mnist5k", "-show", "grad_cam", "-out", str(tmp_path / "out")]
    visualize.main([str(write_image(tmp_path / "i.png")), *flags])
    assert re.search(
        r"^warning: .*%: Grad-CAM of stage \d is 0 everywhere; choose other -stages$", capsys.readouterr().err
    )


def test_dollars_in_a_class_name_are_no_formula():
    assert _draw_heat(np.zeros((32, 32, 3), np.uint8), np.ones((2, 2)), "Grad-CAM", r"$\frac{$").size


@pytest.mark.parametrize("task", ["semantic_segmentation", "object_detection"])
def test_other_tasks_are_shown_by_their_backbone(tmp_path, task, request):
    config_file = request.getfixturevalue({"semantic_segmentation": "squares_config"}.get(task, "boxes_config"))
    form = TASKS[task].config()
    config = form.load(Namespace(cfg=config_file, opts=[]))
    state = {"task": task, "config": form.dump(config), "class_names": ["a", "b", "c"]}
    save_file({**state, "model": numpy_state(TASKS[task].build_model()(config, 3))}, tmp_path / "w.pdparams")
    out = tmp_path / "out"
    flags = [str(write_image(tmp_path / "i.png")), "-pretrained", str(tmp_path / "w.pdparams"), "-out", str(out)]
    kinds = ["attention", "grad_cam" if task == "semantic_segmentation" else "pale"]
    visualize.main([*flags, "-stages", "3", "-show", *kinds])
    check_pictures(out, {"i_attention_stage3.png", f"i_{kinds[1]}.png"})
    if task == "semantic_segmentation":  # the others resize
        small = write_image(tmp_path / "small.png")
        Image.open(small).crop((0, 0, 40, 20)).save(small)
        with pytest.raises(UserError, match=r"small\.png has 40x20 pixels; the model needs at least 32x32"):
            visualize.main([str(small), *flags[1:]])
    with pytest.raises(UserError, match=f"-show rollout is not available for {task}; choose from pale"):
        visualize.main([*flags, "-show", "rollout"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either -pretrained or -variant"),
        (["-variant", "pale_tony"], "pale_tony"),
        (["-variant", "pale_nano", "-stages", "5"], "numbered from 1 to 4"),
        (["-variant", "pale_nano", "-at", "100", "2"], "60x44 pixels"),
        (["-variant", "pale_nano", "-show", "attention"], "for a variant with random weights; choose from pale"),
        (
            ["-pretrained", "mnist5k", "-show", "grad_cam", "-label", "d"],
            "-label d is not a class; the classes are 0,",
        ),
    ],
)
def test_mistakes_are_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        visualize.main([str(write_image(tmp_path / "i.png")), *flags, "-out", str(tmp_path / "out")])


def test_receptive_fields_need_images_of_one_size(tmp_path):
    images = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png", 40, 40)
    with pytest.raises(UserError, match="images of one size, not of 40x40 and 60x44"):
        visualize.main([*map(str, images), "-variant", "pale_nano", "-show", "receptive_field", "-out", str(tmp_path)])
