"""Configurations of semantic segmentation: what is refused, before any data is read, and what is built of the rest."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from common.errors import UserError, one_line
from common.training.batch_norm import get_statistics
from common.training.dry_run import dry_run_loss
from common.training.optimizer import build_optimizer
from common.training.run import _ends_in_warm_up
from semantic_segmentation.components import build_losses, build_model, build_schedule
from semantic_segmentation.config import CONFIG
from semantic_segmentation.segmentation import Segmentation
from tests.helpers import tiny_runs
from tests.helpers.config_marks import read_marks

CONFIGS = sorted(CONFIG.default_file.parent.glob("*.yml"))


def load(*options: str):
    return tiny_runs.load(CONFIG, "-opts", *options)


def assert_told(function, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        function()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# ---- -opts in lists


def test_numbers_in_a_key_count_the_items_of_a_list():
    config = load(
        *("train_dataset.transforms.1.crop_size", "[64, 96]", "loss.coef.1", "0.3"),
        *("train_dataset.transforms.0.prob", "1", "train_dataset.transforms.4", "{hue_prob: 0.5}"),
    )
    transforms = config.train_dataset.transforms
    assert transforms[1] == {"type": "RandomPaddingCrop", "crop_size": [64, 96]}
    assert transforms[0]["prob"] == 1
    assert transforms[4] == {**load().train_dataset.transforms[4], "hue_prob": 0.5}
    assert config.loss.coef == [1.0, 0.3]
    assert CONFIG.from_text(CONFIG.dump(config), "dump") == config


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("loss.coef.2", "1", "loss.coef is a list of 2 items, with indices from 0; it has no item 2"),
        ("loss.coef.-1", "1", "it has no item -1"),
        ("loss.coef.first", "1", "it has no item first"),
        ("val_dataset.transforms.1.mean", "0", "val_dataset.transforms is a list of 1"),
        ("val_dataset.transforms.0.mean.0.x", "0", "val_dataset.transforms.0.mean.0.x cannot be set to 0"),
        ("model.bakbone.variant", "x", "did you mean model.backbone.variant"),
        ("model", "5", "model is 5"),
    ],
)
def test_keys_that_lead_nowhere(key, value, part):
    assert_told(partial(load, key, value), "-opts", key, part)


# ---- wrong keys and values


BUILDERS = {
    "loss": partial(build_losses, ignore_index=255),
    "lr_scheduler": build_schedule,
    "model": partial(build_model, num_classes=2),
}


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("loss.coeff", "[1, 1]", ["unknown key coeff", "types, coef"]),
        ("loss.coef", "[a, b]", ["loss.coef[0] is 'a'"]),
        ("loss.types.1.wieght", "[1, 1]", ["loss.types[1] (CrossEntropyLoss)", "'wieght'", "weight"]),
        ("loss.types.0.weight", "[1, -2]", ["loss.types[0].weight[1] is -2", ">= 0"]),
        ("loss.coef", "[0, 0]", ["loss.coef is [0, 0]", "at least one weight must be greater than 0"]),
        (
            "loss.types",
            "[{type: MixedLoss, losses: [{type: DiceLoss, weight: [1, -1]}], coef: [1]}]",
            ["loss.types[0].losses[0].weight[1] is -1"],
        ),
        ("loss.types", "[{type: MixedLoss, losses: [{type: DiceLoss}], coef: [-1]}]", ["loss.types[0].coef[0] is -1"]),
        (
            "loss.types",
            "[{type: MixedLoss, losses: [{type: Lovasz}], coef: [1]}]",
            ["loss.types[0].losses[0]: unknown type 'Lovasz'", "LovaszSoftmaxLoss"],
        ),
        (
            "loss.types",
            "[{type: MixedLoss, losses: [{type: DiceLoss, ignore_index: 3}], coef: [1]}]",
            ["loss.types[0].losses[0].ignore_index is 3"],
        ),
        ("lr_scheduler.powr", "2", ["unknown key powr", "power", "warmup_iters"]),
        ("lr_scheduler.learning_rate", "[1]", ["lr_scheduler", "learning rate"]),
        ("lr_scheduler.warmup_iters", "1.5", ["lr_scheduler.warmup_iters is 1.5"]),
        ("lr_scheduler.type", "ReduceOnPlateau", ["ReduceOnPlateau", "only on the step"]),
        ("lr_scheduler", "{_inherited_: False, type: CosineAnnealingDecay, learning_rate: 0.1}", ["T_max"]),
        (
            "lr_scheduler",
            "{_inherited_: False, type: PiecewiseDecay, boundaries: [1], values: [0.1, -0.1]}",
            ["the learning rate -0.1 at step"],
        ),
        ("loss.coef", "[1.0, 0.4, 0.1]", ["2 types and 3 coef"]),
        ("loss.types.0.ignore_index", "0", ["loss.types[0].ignore_index is 0, the data's is 255"]),
        ("model.chanels", "8", ["'chanels'", "channels"]),
        ("model.backbone.variant", "pale_giant", ["'pale_giant'", "pale_tiny"]),
        ("model.type", "UNet", ["model (UNet)", "'channels'", "use_deconv"]),
        ("model.backbone.type", "PaleTransfomer", ["model.backbone: unknown type 'PaleTransfomer'"]),
        ("model.backbone.drop_path_rate", "abc", ["model.backbone (PaleTransformer): drop_path_rate is 'abc'"]),
        ("model.align_corners", "maybe", ["align_corners is 'maybe'", "False"]),
    ],
)
def test_keys_and_values_that_nothing_can_use_are_refused_by_name(key, value, parts):
    build = BUILDERS[key.partition(".")[0]]
    assert_told(lambda: build(load(key, value)), *parts)


@pytest.mark.parametrize("section", ["train_dataset", "val_dataset"])
@pytest.mark.parametrize("value", ["5", "{}", ""])
def test_transforms_are_a_list_wherever_the_configuration_is_read(section, value):
    assert_told(partial(load, f"{section}.transforms", value), f"{section}.transforms is", "list")
    options = SimpleNamespace(cfg=None, opts=[f"{section}.transforms", value])
    assert_told(lambda: CONFIG.of_weights(load().dump(), "x", options), section)


def test_transforms_to_sizes_that_would_fill_the_memory_are_refused():
    key = "train_dataset.transforms.1.crop_size"
    assert_told(partial(load, key, "[100000, 128]"), f"{key}.0 is 100000; it must be at most 8192 pixels")
    load("train_dataset.transforms", "[{type: ResizeByShort, short_size: 8192, max_size: 100000}]")


# ---- what is built


def test_losses_get_the_ignored_value_where_they_take_one():
    config = load("loss.types", "[{type: MixedLoss, losses: [{type: DiceLoss}, {type: KLLoss}], coef: [1, 1]}]")
    mixed = build_losses(config, 7)["types"][0]  # which takes none itself
    assert [loss.ignore_index for loss in mixed.losses] == [7, 7]


def test_a_warm_up_of_no_steps_is_none():
    rate = build_schedule(load("lr_scheduler.warmup_iters", "0"))
    assert rate(0) == pytest.approx(2e-3)


def test_weights_of_the_backbone_are_needed_only_where_they_are_wanted():
    config = load("model.backbone.pretrained", "nowhere.pdparams")
    build_model(config, 2)
    assert_told(lambda: build_model(config, 2, load_pretrained=True), "nowhere.pdparams")


def test_backbones_of_paddleseg_work_and_are_trained_by_plain_rules():
    config = load("model.backbone", "{_inherited_: False, type: ResNet18_vd}")
    model = build_model(config, 2)
    with paddle.no_grad():
        assert [x.shape for x in model(paddle.zeros([2, 3, 32, 64]))] == [[2, 2, 32, 64]] * 2
    decay = {
        parameter.name: group["weight_decay"]
        for group in build_optimizer(config.optimizer, model)._param_groups
        for parameter in group["params"]
    }
    trained = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    assert {trained[name].ndim > 1: decay[trained[name].name] for name in trained} == {True: 0.01, False: 0.0}
    assert len(decay) == len(trained)
    assert_told(
        lambda: build_optimizer(config.optimizer, model, layer_decay=0.5),
        "TRAIN.LAYER_DECAY is 0.5",
        "ResNet_vd",
    )


# ---- the schedule against the run


@pytest.mark.parametrize(("warmup", "rises"), [(299, False), (300, True), (500, True)])
def test_a_warm_up_that_is_not_shorter_than_the_run_is_told(warmup, rises):
    lines = []
    config = SimpleNamespace(TRAIN=SimpleNamespace(COOLDOWN=0))
    task = SimpleNamespace(log=SimpleNamespace(line=lines.append), length_key="iters", config=config)
    rate = build_schedule(load("lr_scheduler.warmup_iters", str(warmup)))
    assert _ends_in_warm_up(task, SimpleNamespace(learning_rate=rate, total_steps=300)) == rises
    assert len(lines) == rises
    assert all("300 steps" in line and "iters" in line for line in lines)


def test_a_length_or_a_rate_of_zero_is_refused():
    assert_told(lambda: tiny_runs.load(CONFIG, "-epochs", 0), "-epochs", "0 must be greater than 0")
    config = tiny_runs.load(CONFIG, "-lr", 0, "-opts", "lr_scheduler.warmup_iters", 0)
    assert_told(lambda: build_schedule(config), "lr_scheduler has the learning rate 0", "give a higher -lr")


# ---- the dry run of a step


class Sum(nn.Layer):
    def __init__(self, *layers: nn.Layer):
        super().__init__()
        self.layers = nn.LayerList(layers)

    def forward(self, x):
        return sum(layer(x) for layer in self.layers)


@pytest.mark.parametrize("layers", [(nn.BatchNorm1D(3),), ()])
def test_a_dry_run_leaves_no_trace(layers):
    model = Sum(nn.Linear(3, 3), *layers)
    before, seen = get_statistics(model).copy(), []

    def loss(model, batch, rng):
        seen.append(model.training)
        return model(batch).sum()

    dry_run_loss(model, loss, paddle.to_tensor(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)))
    assert seen == [True]
    assert np.array_equal(get_statistics(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_failing_dry_run_is_one_line_and_user_errors_stay():
    def told(*_):
        raise UserError("as it is")

    model = nn.Linear(3, 3)
    assert_told(
        lambda: dry_run_loss(model, lambda model, batch, rng: model(batch), paddle.zeros([2, 5])),
        "the first training step",
    )
    with pytest.raises(UserError, match=r"^as it is$"):
        dry_run_loss(model, told, None)


def test_paddles_errors_lose_stack_and_source_position():
    with pytest.raises(ValueError, match="channels") as caught:
        nn.Conv2D(4, 2, 1)(paddle.zeros([1, 3, 4, 4]))
    line = one_line(caught.value)
    assert "channels" in line
    assert not re.search(r"-----|\n|Traceback|\(at ", line)
    assert one_line(KeyError()) == "KeyError"


class FirstIsBroken:
    def __init__(self, side):
        self.side = side

    def __getitem__(self, key):
        if key == 0:
            raise UserError("cannot be read")
        return {"img": np.zeros((3, self.side, self.side), np.float32), "label": np.full((self.side, self.side), 9)}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("loss.types.0.weight", "[1, 2, 3]"), "number of weights = 3"),
        (("train_dataset.transforms.1.crop_size", "[16, 16]"), "images are 16x16"),
        (("loss.types", "[{type: CrossEntropyLoss}]", "loss.coef", "[1]"), "2 outputs in training, but loss has 1"),
    ],
)
def test_settings_that_do_not_fit_together_end_the_dry_run(options, part):
    config = load(*options)
    side = config.train_dataset.transforms[1]["crop_size"][0]
    losses = build_losses(config, 255)
    training = SimpleNamespace(
        model=build_model(config, 2),
        compute_loss=partial(Segmentation._loss, losses=losses, ignore_index=255),
        loader=SimpleNamespace(dataset=FirstIsBroken(side)),
        sampler=[[0, 1]],
    )
    assert_told(lambda: Segmentation._dry_run_step(training), part)
    training.sampler = [[0]]
    assert_told(lambda: Segmentation._dry_run_step(training), "no image", "cannot be read", "-check_data")


# ---- marks


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_value_of_a_configuration_carries_a_mark(path):
    header, unmarked = read_marks(path, r"dataset_root|_base_")
    assert "All values in this file are [A: ours]" in header or not unmarked
