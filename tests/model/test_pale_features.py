"""The backbone of dense prediction, and the exchange of weights between it, classification models and whole models."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import Checkpoint, load_pretrained, load_weights, numpy_state
from common.errors import UserError
from common.pale_features import PaleFeatures, create_features
from common.pale_transformer import VARIANTS, PaleTransformer, create_model
from common.training.optimizer import parameter_groups

SMALL = {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 2, 2), "pale_size": 2}


def make_features(seed=0, **overrides) -> PaleFeatures:
    paddle.seed(seed)
    return randomize(PaleFeatures(**{**SMALL, **overrides}), seed)


def make_classifier(seed=0, num_classes=5) -> PaleTransformer:
    paddle.seed(seed)
    return randomize(PaleTransformer(**SMALL, num_classes=num_classes), seed)


def randomize(model, seed):
    """Leave no norm and no bias at its initial value, so that what was loaded shows; and switch to evaluation."""
    rng = np.random.default_rng(seed)
    for name, tensor in model.state_dict().items():
        if len(tensor.shape) == 1:
            value = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, 0.3, tensor.shape)
            tensor.set_value(value.astype("float32"))
    model.eval()
    return model


def random_images(batch, height, width, channels=3):
    values = np.random.default_rng(0).standard_normal((batch, channels, height, width))
    return paddle.to_tensor(values.astype("float32"))


def trainable(model):
    return {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}


# ---- outputs


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 97)])
def test_maps_are_the_stages_outputs_normalised(height, width):
    model = make_features()
    images = random_images(2, height, width)
    maps = model(images)
    assert model.out_strides == (4, 8, 16, 32)
    for x, raw, norm, channels, stride in zip(
        maps, model.forward_features(images), model.out_norms, model.out_channels, model.out_strides, strict=True
    ):
        assert x.shape == [2, channels, math.ceil(height / stride), math.ceil(width / stride)]
        raw = raw.numpy().transpose(0, 2, 3, 1)
        normalised = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-5)
        expected = normalised * norm.weight.numpy() + norm.bias.numpy()
        np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("indices", [(3,), (1, 2, 3), [0, 3]])
def test_chosen_outputs_are_those_of_all_and_have_their_norms_and_names(indices):
    every, some = make_features(1), make_features(2, out_indices=indices)
    report = load_weights(some, Checkpoint("file", numpy_state(every)), fine_tune=True)
    assert not report.missing + report.new_parts
    images = random_images(1, 32, 64)
    maps = every(images)
    for x, index in zip(some(images), indices, strict=True):
        np.testing.assert_array_equal(x.numpy(), maps[index].numpy())
    assert {name.split(".")[1] for name in trainable(some) if name.startswith("out_norms.")} == set(map(str, indices))
    sum(x.mean() for x in some(images)).backward()
    assert {name for name, parameter in some.named_parameters() if parameter.grad is not None} == trainable(some)


def test_maps_do_not_depend_on_the_rest_of_the_batch():
    model = make_features(drop_path_rate=0.5)
    images = random_images(3, 45, 38)
    together = model(images)
    for index in range(3):
        for alone, x in zip(model(images[index : index + 1]), together, strict=True):
            np.testing.assert_allclose(alone.numpy()[0], x.numpy()[index], rtol=1e-4, atol=1e-5)


def test_stages_have_the_classification_models_names_and_there_is_nothing_else_but_the_norms():
    names, classifier = set(make_features().state_dict()), set(make_classifier().state_dict())
    norms = {f"out_norms.{number}.{kind}" for number in range(4) for kind in ("weight", "bias")}
    assert names - classifier == norms
    assert classifier - names == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_every_parameter_gets_a_gradient():
    model = make_features()
    model.train()
    sum((x * x).mean() for x in model(random_images(2, 32, 64))).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable(model)


def test_recompute_reaches_the_blocks():
    model = create_features("pale_nano", recompute=True, depths=(1, 1, 1, 1))
    runs = []
    model.stages[1].blocks[0].norm1.register_forward_post_hook(lambda *_: runs.append(1))
    sum(x.mean() for x in model(random_images(1, 32, 32))).backward()
    assert len(runs) == 2


# ---- what the model tells the trainer


def test_norms_of_the_outputs_are_the_last_layer_and_undecayed():
    model = make_features()
    assert {model.layer_id(name) for name in trainable(model) if name.startswith("out_norms.")} == {6}
    assert {model.layer_id(name) for name in trainable(model)} == set(range(model.num_layers)) == set(range(7))
    assert {name for name in trainable(model) if name.startswith("out_norms.")} <= model.no_weight_decay()
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(trainable(model))
    last = [group for group in groups if group["learning_rate"] == 1.0]
    assert [group["weight_decay"] for group in last] == [0.0]
    assert len(last[0]["params"]) == 8
    with pytest.raises(ValueError, match=r"'norm\.weight' is no parameter"):
        model.layer_id("norm.weight")


def test_there_is_no_head_to_reset():
    model = make_features()
    names = set(model.state_dict())
    with pytest.raises(ValueError, match="num_classes is 3"):
        model.reset_head(3)
    assert set(model.state_dict()) == names


# ---- create_features


@pytest.mark.parametrize("variant", ["pale_nano", "pale_tiny"])
def test_variants_have_their_channels(variant):
    model = create_features(variant)
    assert model.out_channels == tuple(VARIANTS[variant]["embed_dim"] * 2**stage for stage in range(4))
    assert model.depths == VARIANTS[variant]["depths"]


def test_arguments_reach_the_model():
    model = create_features("pale_nano", drop_path_rate=0.3, in_channels=1, depths=(1, 1, 1, 1))
    assert model.stages[3].blocks[0].drop_path.rate == pytest.approx(0.3)
    assert [x.shape[1] for x in model(random_images(1, 32, 32, channels=1))] == [20, 40, 80, 160]


@pytest.mark.parametrize(
    ("variant", "overrides", "parts"),
    [
        ("pale_huge", {}, ["'pale_huge'", *VARIANTS]),
        ("pale_nano", {"num_classes": 3}, ["pale_nano", "'num_classes'"]),
        ("pale_nano", {"drop_path_rate": 1.5}, ["drop_path_rate is 1.5"]),
        ("pale_nano", {"in_channels": 0}, ["in_channels is 0"]),
        *(
            ("pale_nano", {"out_indices": wrong}, [f"out_indices is {wrong!r}", "with 3 among them"])
            for wrong in ([], [0, 1], [3, 2], [3, 3], [-1, 3], [3, 4])
        ),
    ],
)
def test_impossible_backbones_are_refused_by_name_and_value(variant, overrides, parts):
    with pytest.raises(ValueError, match=r"is|choose|multiple values") as caught:
        create_features(variant, **overrides)
    for part in parts:
        assert part in str(caught.value)


def test_released_classification_weights_are_found_by_their_tag_and_the_report_says_what_stays_new(capsys):
    model = create_features("pale_nano", pretrained="mnist5k")
    expected = numpy_state(create_model("pale_nano", pretrained="mnist5k"))
    output = capsys.readouterr().out.partition("weights ")[2].partition("weights ")[0]
    for part in ("8 missing", "4 unexpected", "missing: out_norms.0.weight", "unexpected: head.weight"):
        assert part in output
    assert "new out_norms: to be trained before use" in output
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(array, expected.get(name, float(name.endswith("weight"))), err_msg=name)


def test_weights_that_do_not_exist_are_said(tmp_path):
    with pytest.raises(UserError, match="flowers"):
        create_features("pale_nano", pretrained="flowers")
    with pytest.raises(UserError, match="no checkpoint at"):
        create_features("pale_nano", pretrained=tmp_path / "none.pdparams")


# ---- exchange of weights


def whole(backbone, **others) -> dict:
    """The weights of a whole segmentation or detection model around a backbone."""
    weights = {f"backbone.{name}": array for name, array in numpy_state(backbone).items()}
    return weights | {"decode_head.cls.weight": np.zeros((2, 2, 1, 1), np.float32)} | others


def assert_stages_equal(model, source):
    for name, array in numpy_state(source).items():
        if name.startswith("stages."):
            np.testing.assert_array_equal(model.state_dict()[name].numpy(), array, err_msg=name)


def test_classification_weights_load_into_the_backbone_and_leave_its_norms_new(tmp_path):
    source, model = make_classifier(1), make_features(2)
    before = numpy_state(model)
    save_file({"model": numpy_state(source), "epoch": 3}, tmp_path / "classifier.pdparams")
    report = load_pretrained(model, tmp_path / "classifier")
    assert_stages_equal(model, source)
    for name in trainable(model):
        if name.startswith("out_norms."):
            np.testing.assert_array_equal(model.state_dict()[name].numpy(), before[name], err_msg=name)
    assert report.new_parts == ["out_norms"]
    assert sorted(report.unexpected) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]


@pytest.mark.parametrize("wrap", [whole, numpy_state], ids=["of a whole model", "bare"])
def test_dense_weights_load_into_the_backbone_with_its_norms(tmp_path, wrap):
    source, model = make_features(1), make_features(2)
    save_file(wrap(source), tmp_path / "dense.pdparams")
    report = load_pretrained(model, tmp_path / "dense")
    for name, array in numpy_state(source).items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), array, err_msg=name)
    assert not report.missing + report.unexpected + report.mismatched + report.new_parts


@pytest.mark.parametrize("wrap", [whole, numpy_state], ids=["of a whole model", "bare"])
def test_dense_weights_load_into_a_classification_model_whose_head_and_norm_stay_new(tmp_path, wrap):
    source, model = make_features(1), make_classifier(2)
    before = numpy_state(model)
    save_file(wrap(source), tmp_path / "dense.pdparams")
    report = load_pretrained(model, tmp_path / "dense")
    assert_stages_equal(model, source)
    for name in ("head.weight", "head.bias", "norm.weight", "norm.bias"):
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), before[name], err_msg=name)
    assert report.new_parts == ["head", "norm"]
    assert "new head, norm: to be trained before use" in str(report)
    assert len(report.unexpected) == 8
    with pytest.raises(UserError, match="does not fit"):
        load_pretrained(model, tmp_path / "dense", replace_head=False)


def test_dense_weights_without_norms_leave_all_norms_new():
    source, model = make_features(1), make_features(2)
    weights = {name: array for name, array in whole(source).items() if ".out_norms.1" not in name}
    before = numpy_state(model)
    assert load_weights(model, Checkpoint("file", weights), fine_tune=True).new_parts == ["out_norms"]
    assert_stages_equal(model, source)
    np.testing.assert_array_equal(model.out_norms[0].weight.numpy(), before["out_norms.0.weight"])


@pytest.mark.parametrize("wrap", [whole, numpy_state], ids=["of a whole model", "bare"])
@pytest.mark.parametrize("source", [make_features, make_classifier])
@pytest.mark.parametrize("target", [make_features, make_classifier])
def test_a_stage_that_is_missing_is_an_error_that_changes_nothing(source, target, wrap):
    model = target(2)
    before = numpy_state(model)
    weights = {name: array for name, array in wrap(source(1)).items() if "stages.3.blocks.0.norm2" not in name}
    with pytest.raises(UserError, match=r"the first difference is stages\.3\.blocks\.0\.norm2\.weight") as caught:
        load_weights(model, Checkpoint("some/file", weights), fine_tune=True)
    assert "\n" not in str(caught.value)
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("wrap", [whole, numpy_state], ids=["of a whole model", "bare"])
def test_weights_of_another_variant_are_named(wrap):
    weights = wrap(create_features("pale_nano"))
    with pytest.raises(UserError, match="these are pale_nano weights"):
        load_weights(make_features(), Checkpoint("file", weights), fine_tune=True)


class Around(nn.Layer):
    """A model around a backbone, as PaddleSeg and PaddleDetection build them."""

    head_prefixes = ("cls.",)

    def __init__(self, backbone: PaleFeatures, classes: int):
        super().__init__()
        self.backbone, self.neck, self.cls = backbone, nn.Linear(2, 2), nn.Linear(2, classes)


def test_whole_models_take_whole_weights_and_may_keep_the_head_that_they_name():
    source = Around(make_features(1), 3)
    same, other = Around(make_features(2), 3), Around(make_features(3), 4)
    assert not load_weights(same, Checkpoint("file", numpy_state(source))).new_parts
    for name, array in numpy_state(source).items():
        np.testing.assert_array_equal(same.state_dict()[name].numpy(), array, err_msg=name)
    own = numpy_state(other)
    report = load_weights(other, Checkpoint("file", numpy_state(source)), fine_tune=True)
    assert report.new_parts == ["cls"]
    assert "new cls: to be trained before use" in str(report)
    for name, array in numpy_state(other).items():
        expected = own[name] if name.startswith("cls.") else source.state_dict()[name].numpy()
        np.testing.assert_array_equal(array, expected, err_msg=name)
    with pytest.raises(UserError, match=r"another number of classes: cls\.weight \(2, 3\) for \(2, 4\)"):
        load_weights(Around(make_features(), 4), Checkpoint("file", numpy_state(source)))


def test_what_does_not_fit_a_whole_model_is_named():
    model = Around(make_features(), 3)
    with pytest.raises(UserError, match="these are pale_nano weights"):
        load_weights(model, Checkpoint("file", whole(create_features("pale_nano"))), fine_tune=True)
    with pytest.raises(UserError, match="of a backbone alone"):
        load_weights(model, Checkpoint("file", numpy_state(make_features(1))))
    with pytest.raises(UserError, match="not the weights of a Pale Transformer"):
        load_weights(model, Checkpoint("file", {"conv1.weight": np.zeros((3, 3), np.float32)}), fine_tune=True)
    load_weights(model, Checkpoint("file", numpy_state(make_classifier(1))), fine_tune=True)
    assert_stages_equal(model.backbone, make_classifier(1))
