"""The backbone for dense prediction: its maps, its norms, and the exchange of weights with classifiers."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import Checkpoint, load_weights, numpy_state
from common.errors import UserError
from common.flops import params
from common.pale_features import create_features
from common.pale_transformer import PaleFeatures, PaleTransformer, create_model
from common.training.optimizer import parameter_groups
from tests.helpers.small_models import SMALL, evaluating, random_images, small_model


def make_features(seed=0, **overrides) -> PaleFeatures:
    paddle.seed(seed)
    arguments = {name: value for name, value in SMALL.items() if name != "num_classes"}
    return randomize(PaleFeatures(**arguments | overrides), seed)


def make_classifier(seed=0) -> PaleTransformer:
    return randomize(small_model(seed), seed)


def randomize(model, seed):
    """Leave no norm and no bias at its initial value, so that what was loaded shows; and switch to evaluation."""
    rng = np.random.default_rng(seed)
    for name, tensor in model.state_dict().items():
        if len(tensor.shape) == 1:
            value = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, 0.3, tensor.shape)
            tensor.set_value(value.astype("float32"))
    return evaluating(model)


def trainable(model):
    return {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def norms_of(names):
    return {name for name in names if name.startswith("out_norms.")}


# ---- outputs


def test_maps_are_the_normalized_outputs_of_the_stages():
    model, images = make_features(), random_images(2, 33, 97)
    maps = model(images)
    assert model.out_strides == (4, 8, 16, 32)
    for x, raw, norm, channels, stride in zip(
        maps, model.forward_features(images), model.out_norms, model.out_channels, model.out_strides, strict=True
    ):
        assert x.shape == [2, channels, math.ceil(33 / stride), math.ceil(97 / stride)]
        raw = raw.numpy().transpose(0, 2, 3, 1)
        normalized = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-5)
        expected = normalized * norm.weight.numpy() + norm.bias.numpy()
        np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_chosen_outputs_have_the_values_and_the_names_that_they_have_among_all():
    every, some = make_features(1), make_features(2, out_indices=[1, 3])
    report = load_weights(some, Checkpoint("file", numpy_state(every)), fine_tune=True)
    assert not report.missing + report.new_parts
    images = random_images(2, 32, 64)
    for x, index in zip(some(images), (1, 3), strict=True):
        np.testing.assert_array_equal(x.numpy(), every(images)[index].numpy())
    sum(x.mean() for x in some(images)).backward()
    assert {name for name, parameter in some.named_parameters() if parameter.grad is not None} == trainable(some)


SUBSETS = [subset for size in range(1, 5) for subset in combinations(range(4), size)]


@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_every_subset_of_the_stages_is_what_the_classifier_has_there(stages):
    classifier, images = make_classifier(1), random_images(2, 33, 64)
    model = make_features(2, out_indices=stages)
    report = load_weights(model, Checkpoint("file", numpy_state(classifier)), fine_tune=True)
    assert report.left_out == [f"stages.{stage}" for stage in range(stages[-1] + 1, 4)]
    maps, expected = model(images), classifier.forward_features(images)
    for x, stage in zip(maps, stages, strict=True):
        same = model.out_norms[stage](expected[stage].transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])
        np.testing.assert_array_equal(x.numpy(), same.numpy())
    sum((x * x).mean() for x in maps).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable(model)
    assert model.num_layers == 2 + sum(SMALL["depths"][: stages[-1] + 1])
    assert {model.layer_id(name) for name in trainable(model)} == set(range(model.num_layers))


def test_stages_that_are_not_needed_are_not_in_the_model():
    whole = create_model("pale_nano", features_only=True)
    early = create_model("pale_nano", features_only=True, out_indices=(-3,), pretrained="mnist5k")
    assert [x.shape for x in early(random_images(1, 64))] == [[1, 40, 8, 8]]
    assert not [name for name in early.state_dict() if name.startswith(("stages.2", "stages.3"))]
    assert params(early) < params(whole) / 5


def test_the_classes_of_a_new_head_are_not_guessed(tmp_path):
    backbone = {f"backbone.{name}": array for name, array in numpy_state(small_model()).items() if "head" not in name}
    save_file(backbone, tmp_path / "detector.pdparams")
    with pytest.raises(ValueError, match=r"detector.pdparams has no classifier; give num_classes"):
        create_model("pale_nano", pretrained=tmp_path / "detector.pdparams")


def test_a_backbone_has_the_features_of_its_last_stage_and_no_head():
    model = make_features(out_indices=(1,))
    (*_, last) = model.forward_features(random_images(1, 64))
    assert model.num_features == last.shape[1]
    with pytest.raises(ValueError, match="has no head"):
        model.forward_head(last)


def test_negative_indices_count_from_the_last_stage():
    assert make_features(out_indices=(-4, 1, -1)).out_indices == (0, 1, 3)


def test_it_differs_from_the_classifier_in_the_norms_alone():
    names, classifier = set(make_features().state_dict()), set(make_classifier().state_dict())
    assert names - classifier == norms_of(names)
    assert classifier - names == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_norms_of_the_outputs_are_in_the_last_layer_and_undecayed():
    model = make_features()
    assert {model.layer_id(name) for name in norms_of(trainable(model))} == {model.num_layers - 1}
    assert norms_of(trainable(model)) <= model.no_weight_decay()
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    assert [len(group["params"]) for group in groups if group["learning_rate"] == 1.0] == [8]
    with pytest.raises(ValueError, match="num_classes is 3"):
        model.reset_head(3)


def test_arguments_reach_the_model():
    model = create_features("pale_nano", drop_path_rate=0.3, in_channels=1, recompute=True, depths=(1, 1, 1, 1))
    assert model.stages[3].blocks[0].drop_path.rate == pytest.approx(0.3)
    runs = []
    model.stages[1].blocks[0].norm1.register_forward_post_hook(lambda *_: runs.append(1))
    maps = model(paddle.ones([1, 1, 32, 32]))
    assert [x.shape[1] for x in maps] == [20, 40, 80, 160]
    sum(x.mean() for x in maps).backward()
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"num_classes": 3}, "num_classes is 3"),
        ({"drop_path_rate": 1.5}, "drop_path_rate is 1.5"),
        ({"out_indices": [0, 4]}, r"out_indices is \[0, 4\].*from 0 to 3"),
        ({"out_indices": [-5]}, r"out_indices is \[-5\].*from -4"),
        ({"out_indices": []}, r"out_indices is \[\]"),
        ({"out_indices": [3, 3]}, r"out_indices is \[3, 3\]"),
        ({"out_indices": 3}, "out_indices is 3; give rising numbers"),
    ],
)
def test_invalid_arguments_are_named(overrides, part):
    with pytest.raises(ValueError, match=part):
        create_features("pale_nano", **overrides)


# ---- exchange of weights


def whole(backbone) -> dict:
    """The weights of a whole segmentation or detection model around a backbone."""
    weights = {f"backbone.{name}": array for name, array in numpy_state(backbone).items()}
    return weights | {"decode_head.cls.weight": np.zeros((2, 2, 1, 1), np.float32)}


def assert_loaded(model, weights, before=None):
    """The model has these weights and, for other names, those that it had before."""
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(array, weights[name] if name in weights else before[name], err_msg=name)


def test_released_weights_of_a_classifier_load_into_the_backbone(capsys):
    model = create_features("pale_nano", pretrained="mnist5k")
    output = capsys.readouterr().out
    assert "8 missing, 4 unexpected" in output
    assert "new out_norms: train it before use" in output
    new = {name: np.float32(name.endswith("weight")) for name in norms_of(model.state_dict())}
    assert_loaded(model, numpy_state(create_model("pale_nano", pretrained="mnist5k")), new)
    with pytest.raises(UserError, match="flowers"):
        create_features("pale_nano", pretrained="flowers")


@pytest.mark.parametrize("wrap", [whole, numpy_state], ids=["of a whole model", "bare"])
def test_dense_weights_load_into_backbones_and_classifiers(wrap):
    source = make_features(1)
    checkpoint, weights = Checkpoint("file", wrap(source)), numpy_state(source)
    model = make_features(2)
    assert not load_weights(model, checkpoint, fine_tune=True).wrong
    assert_loaded(model, weights)
    classifier = make_classifier(2)
    before = numpy_state(classifier)
    assert load_weights(classifier, checkpoint, fine_tune=True).new_parts == ["head", "norm"]
    assert_loaded(classifier, weights, before)
    with pytest.raises(UserError, match="does not fit"):
        load_weights(classifier, checkpoint)


@pytest.mark.parametrize("make", [make_features, make_classifier])
def test_a_missing_stage_is_an_error_that_changes_nothing(make):
    model = make(2)
    before = numpy_state(model)
    weights = {name: array for name, array in whole(make_features(1)).items() if "stages.3.blocks.0.norm2" not in name}
    with pytest.raises(UserError, match=r"stages\.3\.blocks\.0\.norm2\.weight"):
        load_weights(model, Checkpoint("some/file", weights), fine_tune=True)
    assert_loaded(model, before)


class Around(nn.Layer):
    """A model around a backbone, as PaddleSeg and PaddleDetection build them."""

    head_prefixes = ("cls.",)

    def __init__(self, backbone: PaleFeatures, classes: int = 3):
        super().__init__()
        self.backbone, self.neck, self.cls = backbone, nn.Linear(2, 2), nn.Linear(2, classes)


def test_whole_models_take_whole_weights_and_may_keep_the_head_that_they_name():
    source, other = Around(make_features(1)), Around(make_features(3), 4)
    own, weights = numpy_state(other), numpy_state(source)
    assert load_weights(other, Checkpoint("file", weights), fine_tune=True).new_parts == ["cls"]
    assert_loaded(other, {name: array for name, array in weights.items() if not name.startswith("cls.")}, own)
    with pytest.raises(UserError, match="does not fit"):
        load_weights(other, Checkpoint("file", weights))


def test_what_does_not_fit_a_whole_model_is_named():
    model, classifier = Around(make_features()), numpy_state(make_classifier(1))
    with pytest.raises(UserError, match="these are pale_nano weights"):
        load_weights(model, Checkpoint("file", whole(create_features("pale_nano"))), fine_tune=True)
    with pytest.raises(UserError, match="only a classifier or a backbone"):
        load_weights(model, Checkpoint("file", numpy_state(make_features(1))))
    with pytest.raises(UserError, match="not the weights of a Pale Transformer"):
        load_weights(model, Checkpoint("file", {"conv1.weight": np.zeros((3, 3), np.float32)}), fine_tune=True)
    before = numpy_state(model.backbone)
    load_weights(model, Checkpoint("file", classifier), fine_tune=True)
    assert_loaded(model.backbone, classifier, before)
