"""Token labeling: MixToken, targets, loss, auxiliary head, and training with label maps of a model."""

from __future__ import annotations

import importlib
import re
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common.checkpoints.file_format import load_file
from common.checkpoints.loading import Checkpoint, deployed_state, load_weights, numpy_state
from common.errors import UserError
from common.pale_features import create_features
from common.pale_transformer import build_variant, create_model
from common.training.sampler import SampleKey
from image_classification.classification import Classification
from image_classification.datasets import build_dataset
from image_classification.label_map_alignment import Geometry, sampling_weights
from image_classification.label_map_annotator import WholeImage, token_logits
from image_classification.label_maps import LabelMapInfo, LabelMaps, create_label_maps
from image_classification.loaders import build_train_loader
from image_classification.token_labeling import (
    TokenLabelTransformer,
    draw_mixed_tokens,
    mix_classes,
    mix_tokens,
    token_label_loss,
    token_targets,
)
from image_classification.transforms import EvalTransform, TrainTransform
from tests.classification.test_classification import train
from tests.helpers.classification_config import make_config
from tests.helpers.programs import fails, run_program
from tests.helpers.tiny_runs import assert_same_training
from tests.training.test_config import load

LAUNCHER = "image_classification/main_multi_gpu.py"
MAKE_MAPS = "tools/make_label_maps.py"
CLASSES = 5


def rng(seed=0):
    return np.random.default_rng(seed)


def make_images(size=3, height=96, width=128, seed=0):
    return paddle.to_tensor(rng(seed).standard_normal((size, 3, height, width)).astype(np.float32))


@pytest.fixture(scope="module")
def model():
    paddle.seed(0)
    model = build_variant(TokenLabelTransformer, "pale_nano", num_classes=CLASSES)
    model.eval()
    return model


# ---- MixToken


def test_the_patch_embedding_is_mixed_in_whole_tokens_of_the_final_map(model):
    images, mixed = make_images(), np.zeros((3, 4), bool)
    mixed[1:, 2:] = True
    seen = []
    hook = model.stages[0].blocks[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    logits, token_logits = model(images, mixed)
    hook.remove()
    assert (logits.shape, token_logits.shape) == ([3, CLASSES], [3, 3, 4, CLASSES])
    embedding = model.stages[0].merging(images.transpose([0, 2, 3, 1])).numpy()
    assert embedding.shape[1:3] == (24, 32)
    expected = embedding.copy()
    expected[:, 8:, 16:] = np.roll(embedding, 1, 0)[:, 8:, 16:]
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-6)
    assert not model.stages[0].merging._forward_post_hooks


def test_with_all_tokens_mixed_the_logits_are_those_of_the_previous_sample(model):
    images = make_images()
    plain = model(images)
    for mixed, expected in ((np.zeros((3, 4), bool), plain), (np.ones((3, 4), bool), plain.roll(1, 0))):
        logits, token_logits = model(images, mixed)
        np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=1e-5)
        x = model.norm(model.forward_features(images)[-1].transpose([0, 2, 3, 1]))
        tokens = model.aux_head(x.roll(1, 0) if mixed.all() else x)
        np.testing.assert_allclose(token_logits.numpy(), tokens.numpy(), atol=1e-5)


def test_images_and_labels_are_mixed_alike():
    """Samples of one color each: the color of a token is its target."""
    images = paddle.to_tensor(np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 64, 96), np.float32))
    labels = np.broadcast_to(np.arange(4)[:, None, None], (4, 2, 3))
    for seed in range(20):
        mixed = draw_mixed_tokens(2, 3, 1.0, rng(seed))
        colors = mix_tokens(images.transpose([0, 2, 3, 1]), mixed)
        targets = mix_tokens(F.one_hot(paddle.to_tensor(labels.copy()), 4), mixed)
        np.testing.assert_array_equal(colors[:, ::32, ::32, 0].numpy(), targets.argmax(-1).numpy())
        classes = mix_classes(F.one_hot(paddle.arange(4), 4), mixed)
        np.testing.assert_allclose(classes.numpy(), targets.mean([1, 2]).numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="9x8"):
        mix_tokens(paddle.zeros([2, 9, 8, 1]), np.ones((4, 4), bool))


# ---- targets and loss


def numpy_targets(classes, scores, weights, num_classes):
    targets = np.zeros((*weights.shape[:2], num_classes))
    for image, (of_classes, of_scores) in enumerate(zip(classes, scores, strict=True)):
        for cell, (top, kept) in enumerate(zip(of_classes, of_scores, strict=True)):
            cells = np.full(num_classes, (1 - kept.sum()) / (num_classes - len(top)))
            cells[top] = kept
            targets[image] += weights[image, :, cell, None] * cells
        targets[image] += (1 - weights[image].sum(1, keepdims=True)) / num_classes
    return targets


def make_map(size=2, cells=12, top=3, seed=0):
    generator = rng(seed)
    classes = np.argsort(generator.random((size, cells, CLASSES)), -1)[..., :top]
    scores = generator.dirichlet(np.ones(CLASSES), (size, cells))[..., :top].astype(np.float32)
    geometry = Geometry()
    geometry.crop((3, 2, 28, 20), (40, 30))
    geometry.warp(((1, 0.3, 5), (0, 1, -3)), (64, 64))
    weights = np.stack([sampling_weights(geometry, (3, 4), (2, 2))] * size)
    assert weights.sum(-1).min() < 0.99
    return classes, scores, weights


def test_targets_are_the_plain_formula():
    classes, scores, weights = make_map()
    targets = token_targets(*map(paddle.to_tensor, (classes, scores, weights)), CLASSES)
    assert targets.dtype == paddle.float32
    np.testing.assert_allclose(targets.numpy(), numpy_targets(classes, scores, weights, CLASSES), atol=1e-6)
    np.testing.assert_allclose(targets.numpy().sum(-1), 1, atol=1e-6)
    outside = token_targets(*map(paddle.to_tensor, (classes, scores, 0 * weights)), CLASSES)
    np.testing.assert_allclose(outside.numpy(), 1 / CLASSES, atol=1e-7)
    all_classes = np.array([[[1, 0, 2]]]), np.array([[[0.5, 0.25, 0.25]]], np.float32), np.ones((1, 1, 1), np.float32)
    np.testing.assert_array_equal(token_targets(*map(paddle.to_tensor, all_classes), 3).numpy(), [[[0.25, 0.5, 0.25]]])


def test_loss_is_the_plain_formula():
    generator = rng()
    logits, token_logits = (
        generator.standard_normal((*shape, CLASSES)).astype("float16") for shape in ((2,), (2, 3, 4))
    )
    class_targets, targets = (
        generator.dirichlet(np.ones(CLASSES), shape).astype(np.float32) for shape in ((2,), (2, 3, 4))
    )
    loss = token_label_loss(*map(paddle.to_tensor, (logits, token_logits, class_targets, targets)), 0.5)
    expected = [
        -(target * np.log(np.exp(x) / np.exp(x).sum(-1, keepdims=True))).sum(-1).mean()
        for x, target in ((logits.astype(float), class_targets), (token_logits.astype(float), targets))
    ]
    assert loss.dtype == paddle.float32
    assert float(loss) == pytest.approx(expected[0] + 0.5 * expected[1], rel=1e-5)


# ---- the auxiliary head


def test_the_evaluated_model_is_the_plain_one(model):
    plain = create_model("pale_nano", num_classes=CLASSES)
    assert set(numpy_state(model)) - set(numpy_state(plain)) == {"aux_head.weight", "aux_head.bias"}
    assert deployed_state(model).keys() == numpy_state(plain).keys()
    report = load_weights(plain, Checkpoint("training state", numpy_state(model)))
    assert "skipped aux_head: not used by this model" in str(report)
    assert not report.unexpected
    plain.eval()
    np.testing.assert_array_equal(plain(make_images()).numpy(), model(make_images()).numpy())
    assert not load_weights(plain, Checkpoint("weights", deployed_state(model))).left_out
    features = create_features("pale_nano")
    report = load_weights(features, Checkpoint("training state", numpy_state(model)), fine_tune=True)
    assert report.left_out == ["aux_head"]


def test_training_may_start_from_weights_without_the_head():
    target = build_variant(TokenLabelTransformer, "pale_nano", num_classes=CLASSES)
    plain, other = (create_model("pale_nano", num_classes=classes) for classes in (CLASSES, 2))
    for source, new in (
        (plain, ["aux_head"]),
        (create_features("pale_nano"), ["head", "norm", "aux_head"]),
        (other, ["head", "aux_head"]),
    ):
        assert load_weights(target, Checkpoint("file", numpy_state(source)), fine_tune=True).new_parts == new
    with pytest.raises(UserError, match=r"its head differs.*: aux_head"):
        load_weights(target, Checkpoint("plain", numpy_state(plain)))


def test_both_heads_get_gradients_and_are_in_the_last_layer(model):
    assert {"aux_head.bias", "head.bias"} <= model.no_weight_decay()
    assert model.layer_id("aux_head.weight") == model.layer_id("head.weight") == model.num_layers - 1
    trained = build_variant(TokenLabelTransformer, "pale_nano", num_classes=CLASSES)
    logits, token_logits = trained(make_images(2, 64, 64), np.eye(2, dtype=bool))
    (logits.sum() + token_logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in trained.parameters() if not parameter.stop_gradient)
    trained.reset_head(3)
    assert trained.aux_head.weight.shape[1] == trained.head.weight.shape[1] == 3


# ---- the annotator


def test_the_mean_of_the_token_logits_is_the_models_prediction(model):
    images = make_images()
    logits = token_logits(model, images)
    assert logits.shape == [3, 3, 4, CLASSES]
    np.testing.assert_allclose(logits.mean([1, 2]).numpy(), model(images).numpy(), atol=1e-5)


def test_the_annotator_sees_the_whole_image(shapes):
    dataset, config = build_dataset("folder", shapes, "train"), make_config(IMAGE_SIZE=64)
    array = WholeImage(config)(dataset.load(0))
    assert array.shape == (3, 64, 64)
    square = dataset.load(0).resize((64, 64), 3)
    np.testing.assert_array_equal(array, EvalTransform(make_config(IMAGE_SIZE=64, CROP_PCT=1.0))(square))


# ---- batches


@pytest.fixture
def maps(tmp_path, shapes):
    """Label maps of :func:`shapes`: each cell has a class of its own, number modulo 3, for certain."""
    dataset = build_dataset("folder", shapes, "train")
    info = LabelMapInfo(36, 4, 5, 1, 3, None, "pale_nano", "best.pdparams", "0" * 64, 64)
    with create_label_maps(tmp_path / "maps", info, dataset.names()) as arrays:
        arrays["classes"][:] = (np.arange(20).reshape(1, 4, 5, 1) + np.arange(36).reshape(36, 1, 1, 1)) % 3
        arrays["scores"][:] = 1
    return tmp_path / "maps"


def mapped_loader(shapes, maps, **changes):
    dataset = build_dataset("folder", shapes, "train")
    return build_train_loader(make_config(IMAGE_SIZE=64, **changes), dataset, LabelMaps(maps, dataset, 3))


def test_samples_have_their_map_and_the_weights_of_its_cells(shapes, maps):
    loader, _ = mapped_loader(shapes, maps)
    plain, _ = build_train_loader(make_config(IMAGE_SIZE=64), build_dataset("folder", shapes, "train"))
    for number, index in enumerate((0, 7, 35)):
        key = SampleKey(index, 1, number)
        sample, geometry = loader.dataset[key], Geometry()
        np.testing.assert_array_equal(sample["images"], plain.dataset[key]["images"])
        transform = TrainTransform(make_config(IMAGE_SIZE=64))
        transform(plain.dataset.dataset.load(index), np.random.default_rng([0, 1, number]), geometry)
        np.testing.assert_array_equal(sample["token_weights"], sampling_weights(geometry, (4, 5), (2, 2)))
        np.testing.assert_array_equal(sample["map_classes"][:, 0], (np.arange(20) + index) % 3)
        assert (sample["labels"], sample["errors"]) == (index // 12, "")


def test_a_broken_image_is_replaced_with_its_map_and_a_broken_map_is_named(shapes, maps):
    broken = shapes / "train" / "blue" / "07.png"
    broken.write_bytes(b"")
    sample = mapped_loader(shapes, maps, SKIP_BROKEN=True)[0].dataset[SampleKey(7, 0, 0)]
    np.testing.assert_array_equal(sample["map_classes"][:, 0], (np.arange(20) + 8) % 3)
    assert str(broken) in sample["errors"]

    classes = np.load(maps / "classes.npy")
    classes[20, 0, 0, 0] = 9
    np.save(maps / "classes.npy", classes)
    with pytest.raises(UserError, match=r"label map of .*green/08\.png is damaged"):
        mapped_loader(shapes, maps)[0].dataset[SampleKey(20, 0, 0)]


# ---- the launcher and the tool


def test_settings_that_exclude_token_labels_are_refused_in_training_with_label_maps(shapes):
    flags = ("-label_maps", "maps", "-dataset", "folder", "-data_path", shapes, "-batch_size", 6, "-opts")
    for options, named in (
        (("AUG.MIXUP", "0.8"), "AUG.MIXUP is 0.8; it must be 0"),
        (("DATA.IMAGE_SIZE", "48"), "DATA.IMAGE_SIZE is 48; it must be a multiple of 32"),
    ):
        with pytest.raises(UserError, match=re.escape(named)):
            Classification(load(*flags, *options)).build_training(resumed=False)
        Classification(load(*flags, *options)).build_evaluation(Checkpoint("none", {}))


def test_the_tool_names_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    make_label_maps = importlib.import_module("tools.make_label_maps")
    for flags, named in (
        (["-image_size", "40"], "-image_size is 40; it must be a multiple of 32"),
        (["-top", "0"], "-top is 0"),
    ):
        with pytest.raises(UserError, match=named):
            make_label_maps.main(["-pretrained", "mnist5k", "-out", str(tmp_path / "maps"), *flags])


def make_maps(config, *flags: object) -> str:
    folder = config.parent
    result = run_program(
        MAKE_MAPS, "-pretrained", folder / "teacher" / "best", "-out", folder / "maps", *flags, cwd=folder
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.slow
def test_train_make_maps_train_with_them_resume_and_evaluate(tmp_path, shapes_config):
    train(shapes_config, "-output", tmp_path / "teacher", "-opts", "TRAIN.EPOCHS", "1")
    output = make_maps(shapes_config, "-data_path", tmp_path / "shapes", "-image_size", "128")
    assert "36 maps of 4x4 cells, top 3 of 3 classes, by pale_nano (best.pdparams, SHA-256" in output

    options = ("-label_maps", tmp_path / "maps", "-image_size", "64", "-batch_size", "3", "-accum_iter", "2", "-opts",
               "AUG.RAND_AUGMENT", "rand-m9-mstd0.5-inc1", "AUG.ERASING", "0.3", "AUG.FLIP", "0.5",
               "MODEL.DROP_PATH", "0.2", "TRAIN.EMA_DECAY", "0.9", "TOKEN_LABEL.CLASS_FROM_MAP", "True",
               "KEEP_CHECKPOINTS", "3", "CHECKPOINT_EVERY", "1", "TRAIN.EPOCHS", "3")  # fmt: skip
    student, again = tmp_path / "student", tmp_path / "again"
    output = train(shapes_config, "-output", student, *options, ranks=2)
    assert "label maps: 36 maps of 4x4 cells" in output
    assert "token top-1" in output
    train(shapes_config, "-output", again, "-resume", student / "epoch_0001.pdparams", *options, ranks=2)
    assert_same_training(student, again)
    state = load_file(student / "latest.pdparams")
    assert "aux_head.weight" in state["model"].keys() & state["model_ema"].keys()
    assert "aux_head.weight/moment1" in state["optimizer"]
    assert "aux_head.weight" not in load_file(student / "best.pdparams")["model"]

    best = re.search(r"best: +top-1 ([\d.]+)", output)
    evaluated = train(student / "config.yaml", "-eval", "-pretrained", student / "best.pdparams")
    assert float(re.search(r"best.pdparams: top1 (\S+)", evaluated)[1]) == pytest.approx(float(best[1]), abs=0.01)
    evaluated = train(shapes_config, "-eval", "-pretrained", student / "latest.pdparams", "-image_size", "64")
    assert "skipped aux_head: not used by this model" in evaluated

    message = fails(LAUNCHER, "-cfg", shapes_config, "-resume", student / "latest.pdparams", cwd=tmp_path)
    assert "was trained with token labels (aux_head); resume with the same -label_maps" in message
    output = train(shapes_config, "-output", tmp_path / "plain", "-pretrained", student / "best.pdparams")
    assert "0 missing, 0 unexpected" in output
