"""Models, schedules and optimizers out of the configurations of object detection, and what is refused by name."""

from __future__ import annotations

import copy
import re
from functools import partial

import numpy as np
import paddle
import pytest
from ppdet.core.workspace import create, global_config, load_config

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import Checkpoint, load_weights, numpy_state, read_checkpoint
from common.errors import UserError
from common.pale_transformer import create_model
from common.training.optimizer import build_optimizer, parameter_groups
from object_detection.components import build_model, build_schedule, optimizer_section, scoped_config
from object_detection.config import CONFIG
from object_detection.datasets import build_transforms
from tests.helpers.config_marks import read_marks
from tests.helpers.detection_runs import CONFIGS, assert_told, load

# One of each model; those of pale_small and pale_base differ in the variant.
EACH = [path for path in CONFIGS if not re.search("pale_small|pale_base", path.stem)]
NANO = ("-opts", "PaleTransformer.variant", "pale_nano")


def snapshot() -> dict:
    """The content of PaddleDetection's global configuration."""
    return {
        name: copy.deepcopy(dict(value)) if isinstance(value, dict) else value for name, value in global_config.items()
    }


@pytest.fixture
def untouched():
    """Restore PaddleDetection's global configuration after the test."""
    before = {name: value.copy() if hasattr(value, "copy") else value for name, value in global_config.items()}
    yield
    global_config.clear()
    global_config.update(before)


# ---- the configurations


@pytest.mark.parametrize("path", EACH, ids=lambda path: path.stem)
def test_a_configuration_builds_the_model_that_paddledetection_builds_of_it(path, untouched):
    config = load("-cfg", path, *NANO)  # the configurations differ in the heads
    assert f"output/{path.stem}" == config.OUTPUT
    assert CONFIG.from_text(CONFIG.dump(config), "dump") == config
    theirs = load_config(str(path))
    theirs.PaleTransformer["variant"] = "pale_nano"
    assert (theirs.architecture, theirs.epoch) == (config.architecture, config.epoch)
    assert theirs.get("num_classes", 0) == config.num_classes
    for name in config:
        if name in CONFIG.open_sections:
            assert {key: theirs[name][key] for key in config[name]} == config[name], name
    theirs["num_classes"] = config.num_classes or 1
    with paddle.LazyGuard():  # only names and shapes are compared
        expected = create(theirs.architecture)
        model = build_model(config, theirs["num_classes"])
    assert type(model).__name__ == config.architecture
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}
    # Heads see maps of very different statistics, of which BatchNorm would keep one average.
    assert not [name for name in shapes if name.endswith("._mean") and not name.startswith("backbone.")]
    for reader in ("TrainReader", "EvalReader"):
        build_transforms(config, reader, 3)
    rate = build_schedule(config, 100)
    assert rate(0) < rate(99) <= config.LearningRate.base_lr
    assert rate(100 * config.epoch - 1) < 0.011 * config.LearningRate.base_lr
    if path.stem.endswith("_coco"):  # elsewhere our cosine ends with the run
        scheduler = create("LearningRate")(100)
        for step in (0, 250, 600, 100 * config.epoch - 1):
            scheduler.step(step)
            assert rate(step) == pytest.approx(scheduler())
    optimizer = build_optimizer(optimizer_section(config), model)
    assert {group["weight_decay"] for group in optimizer._param_groups} == {0.0, 0.05}


@pytest.mark.parametrize("path", sorted(CONFIG.default_file.parent.glob("*.yml")), ids=lambda path: path.stem)
def test_every_value_of_a_configuration_carries_a_mark(path):
    header, unmarked = read_marks(path, "_BASE_|variant|num_classes|name|dataset_dir|image_dir|anno_path|data_fields")
    whole = re.search(r"everything is[\s#]+\[A: \w+\]|[Mm]odel(, data)? and recipe are ours", header)
    assert whole or not unmarked


# ---- models


def test_models_are_built_one_after_another_and_nothing_is_left_behind(untouched):
    scoped = load("-opts", "FPN.out_channel", "48", "BBoxPostProcess.nms.keep_top_k", "7")
    before = snapshot()
    first = build_model(load(), 1)
    assert first.neck.out_channel == 64
    assert build_model(scoped, 2).neck.out_channel == 48
    retina = build_model(load("-cfg", CONFIG.default_file.with_name("retinanet_pale_tiny_1x_coco.yml"), *NANO), 3)
    assert retina.neck.out_channel == 256
    assert snapshot() == before
    again = build_model(load(), 1)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in first.state_dict().items()
    }
    assert again.bbox_post_process.nms.keep_top_k == 100


def test_what_paddledetection_had_before_comes_back_to_the_last_value(untouched):
    """Also where it was loaded from a file, and is then changed below the first level, or by an error."""
    load_config(str(CONFIG.default_file))
    before = snapshot()
    with scoped_config({"RPNHead": {"anchor_generator": {"strides": [1]}}, "new": 1}):
        assert global_config["RPNHead"]["anchor_generator"]["strides"] == [1]
    assert snapshot() == before
    with pytest.raises(UserError):
        build_model(load("-opts", "RPNHead.anchor_generator.strides", "5"), 2)
    assert snapshot() == before


def test_pretrained_weights_of_the_backbone_are_read_only_for_training():
    config = load("-opts", "PaleTransformer.pretrained", "nowhere.pdparams")
    build_model(config, 2)
    assert_told(lambda: build_model(config, 2, load_pretrained=True), "nowhere.pdparams")


def test_a_backbone_of_paddledetection_is_trained_by_plain_rules():
    config = load("-opts", "MaskRCNN.backbone", "ResNet", "ResNet", "{depth: 18, freeze_at: -1, norm_type: bn}")
    model = build_model(config, 2)
    groups = build_optimizer(optimizer_section(config), model)._param_groups
    decay = {parameter.name: group["weight_decay"] for group in groups for parameter in group["params"]}
    trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    assert {parameter.ndim > 1: decay[parameter.name] for parameter in trained} == {True: 0.05, False: 0.0}
    assert len(decay) == len(trained)
    assert_told(
        lambda: build_optimizer(optimizer_section(config), model, layer_decay=0.5), "TRAIN.LAYER_DECAY is 0.5", "ResNet"
    )


def test_layer_decay_and_weight_decay_reach_the_backbone():
    model = build_model(load(), 2)
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    scale = {
        parameter.name: (group["learning_rate"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    names = dict(model.named_parameters())
    assert scale[names["bbox_head.bbox_score.weight"].name] == (1.0, 0.05)
    assert scale[names["bbox_head.bbox_score.bias"].name] == (1.0, 0.0)
    assert scale[names["backbone.stages.0.merging.conv.weight"].name] == (0.5**7, 0.05)


# ---- weights


def test_weights_of_a_classifier_go_into_the_backbone(tmp_path):
    source = create_model("pale_nano", num_classes=7)
    save_file({"model": numpy_state(source)}, tmp_path / "classifier.pdparams")
    model = build_model(load(), 2)
    report = load_weights(model, read_checkpoint(tmp_path / "classifier.pdparams"), fine_tune=True)
    assert report.new_parts == ["out_norms"]
    for name in report.loaded:
        loaded, given = (layer.state_dict()[name].numpy() for layer in (model.backbone, source))
        np.testing.assert_array_equal(loaded, given)
    assert len(report.loaded) == len([name for name in model.backbone.state_dict() if "out_norms" not in name])
    with pytest.raises(UserError, match=r"classifier\.pdparams .* contains only a classifier or a backbone"):
        load_weights(model, read_checkpoint(tmp_path / "classifier.pdparams"))


def test_weights_of_another_model_are_refused(tmp_path):
    model = build_model(load(), 2)
    other = build_model(load("-opts", "MaskFeat.num_convs", "1", "FPN.out_channel", "32"), 2)
    save_file({"model": numpy_state(other)}, tmp_path / "other.pdparams")
    told = partial(load_weights, model, read_checkpoint(tmp_path / "other.pdparams"), fine_tune=True)
    assert_told(told, "other.pdparams does not fit the model")


SMALL = ("FPN.out_channel", "32", "TwoFCHead.out_channel", "32", "MaskFeat.out_channel", "16")


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        (
            "mask_rcnn_pale_tiny_1x_coco",
            SMALL,
            ["bbox_head.bbox_delta", "bbox_head.bbox_score", "mask_head.mask_fcn_logits"],
        ),
        (
            "cascade_mask_rcnn_pale_tiny_1x_coco",
            (*SMALL, "CascadeTwoFCHead.out_channel", "32"),
            ["bbox_head.bbox_score_stage", "mask_head.mask_fcn_logits"],
        ),
        (
            "retinanet_pale_tiny_1x_coco",
            (*SMALL[:2], "RetinaHead.conv_feat.feat_in", "32", "RetinaHead.conv_feat.feat_out", "32"),
            ["head.retina_cls"],
        ),
    ],
)
def test_the_heads_of_a_model_of_other_classes_are_replaced_and_the_report_says_so(name, options, parts):
    config = load("-cfg", CONFIG.default_file.with_name(f"{name}.yml"), *NANO, *options)
    arrays, model = numpy_state(build_model(config, 5)), build_model(config, 2)
    report = load_weights(model, Checkpoint("five", arrays), fine_tune=True)
    for key in report.loaded:
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), arrays[key])
    new = sorted({key.rpartition(".")[0].rstrip("012") for key in set(arrays) - set(report.loaded)})
    assert new == sorted(report.new_parts) == parts
    assert f"new {', '.join(report.new_parts)}: train it before use" in str(report)
    assert_told(partial(load_weights, model, Checkpoint("five", arrays)), "five does not fit")
