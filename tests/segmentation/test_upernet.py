"""UPerNet: its size and cost in the paper's setting, outputs, initial values and weights."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import load_pretrained, numpy_state
from common.errors import UserError
from common.flops import count_flops, params
from common.pale_features import PaleFeatures, create_features
from common.pale_transformer import PaleTransformer
from common.toolkits.upernet import PaleUPerNet
from tools.helpers.paper_figures import printed

PAPER = ("pale_tiny", "pale_small", "pale_base")
SMALL = {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 2, 2), "pale_size": 2}


def make_model(seed=0, num_classes=3, randomized=True, **settings) -> PaleUPerNet:
    paddle.seed(seed)
    model = PaleUPerNet(num_classes, PaleFeatures(**SMALL), **{"channels": 8, "aux_channels": 6, **settings})
    if randomized:
        rng = np.random.default_rng(seed)
        for name, tensor in model.state_dict().items():
            value = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, 0.3, tensor.shape)
            tensor.set_value(value.astype("float32"))
    model.eval()
    return model


def random_images(batch, height, width, seed=0):
    values = np.random.default_rng(seed).standard_normal((batch, 3, height, width))
    return paddle.to_tensor(values.astype("float32"))


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


# ---- size and cost


@pytest.mark.parametrize("name", PAPER)
def test_parameters_are_the_papers(name):
    with paddle.LazyGuard():  # counting needs no initial values
        model = PaleUPerNet(150, create_features(name))
    assert f"{params(model) / 1e6:.0f}" == printed("semantic_segmentation")[name, "params"].text


@pytest.mark.slow
def test_multiply_adds_at_512x2048_without_the_auxiliary_head_are_the_papers():
    model = PaleUPerNet(150, create_features("pale_tiny"))
    figure = printed("semantic_segmentation")["pale_tiny", "flops"]
    assert figure.agrees(count_flops(model, 512, 2048, norms=True) / 1e9)


# ---- outputs


def test_logits_have_the_images_size_and_training_adds_the_auxiliary_ones():
    model = make_model()
    assert [x.shape for x in model(random_images(2, 33, 47))] == [[2, 3, 33, 47]]
    model.train()
    assert [x.shape for x in model(random_images(2, 33, 47))] == [[2, 3, 33, 47]] * 2


def reference_logits(model, images):
    """UPerNet written out for four maps, on the model's own convolutions."""
    c1, c2, c3, c4 = model.backbone(images)
    head = model.decode_head

    def resize(x, like):
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=model.align_corners)

    pools = [nn.AdaptiveAvgPool2D(size)(c4) for size in (1, 2, 3, 6)]
    pools = [resize(conv(x), c4) for conv, x in zip(head.pyramid_pooling.convs, pools, strict=True)]
    p4 = head.pyramid_pooling.fusion(paddle.concat([c4, *pools], axis=1))
    p3 = head.laterals[2](c3) + resize(p4, c3)
    p2 = head.laterals[1](c2) + resize(p3, c2)
    p1 = head.laterals[0](c1) + resize(p2, c1)
    p1, p2, p3 = head.outputs[0](p1), head.outputs[1](p2), head.outputs[2](p3)
    fused = head.fusion(paddle.concat([p1, resize(p2, p1), resize(p3, p1), resize(p4, p1)], axis=1))
    return resize(head.cls(fused), images)


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_are_those_of_upernet(align_corners):
    model = make_model(align_corners=align_corners)
    images = random_images(2, 45, 70)
    (logits,) = model(images)
    np.testing.assert_allclose(logits.numpy(), reference_logits(model, images).numpy(), rtol=1e-4, atol=1e-5)
    assert logits.numpy().std(axis=(2, 3)).min() > 1e-3


def test_the_auxiliary_head_reads_the_map_of_its_index():
    model, images = make_model(aux_in_index=1, dropout=0.0), random_images(2, 64, 64)
    model.train()
    head = model.auxiliary_head
    expected = F.interpolate(head.cls(head.conv(model.backbone(images)[1])), [64, 64], mode="bilinear")
    np.testing.assert_allclose(model(images)[1].numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_dropout_drops_whole_channels_in_training_only():
    model, images, seen = make_model(dropout=0.5), random_images(2, 64, 64), []
    np.testing.assert_array_equal(model(images)[0].numpy(), model(images)[0].numpy())
    model.decode_head.dropout.register_forward_post_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model.train()
    model(images)
    alive, kept = (tensor.numpy().any((2, 3)).sum() for tensor in seen[0])
    assert 0 < kept < alive


def test_every_parameter_gets_a_gradient_from_the_two_losses():
    model = make_model(randomized=False)
    model.train()
    labels = paddle.to_tensor(np.random.default_rng(0).integers(0, 3, (2, 64, 48)))
    losses = [F.cross_entropy(logits, labels, axis=1) for logits in model(random_images(2, 64, 48))]
    (losses[0] + 0.4 * losses[1]).backward()
    without = [name for name, parameter in trainable(model).items() if parameter.grad is None]
    assert not without
    for name, parameter in trainable(model).items():
        assert np.isfinite(parameter.grad.numpy()).all(), name


# ---- arguments and initial values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aux_in_index": 4}, "aux_in_index is 4; the maps are 0 to 3"),
        ({"channels": 0}, "channels is 0; it must be a positive integer"),
        ({"num_classes": "3"}, "num_classes is '3'; it must be a positive integer"),
        ({"dropout": 1.5}, r"dropout is 1.5; it must be a number in \[0, 1\]"),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


def test_initial_values():
    model = make_model(randomized=False, num_classes=40, channels=48, aux_channels=40)
    for prefix, layer in (("decode_head", model.decode_head), ("auxiliary_head", model.auxiliary_head)):
        for name, sublayer in layer.named_sublayers(prefix):
            if isinstance(sublayer, nn.Conv2D) and name.endswith(".cls"):
                assert sublayer.weight.numpy().std() == pytest.approx(0.01, rel=0.1), name
                assert not sublayer.bias.numpy().any(), name
            elif isinstance(sublayer, nn.Conv2D):
                outputs, _, *kernel = sublayer.weight.shape
                expected = math.sqrt(2.0 / (outputs * math.prod(kernel)))
                assert sublayer.weight.numpy().std() == pytest.approx(expected, rel=0.2), name
                assert sublayer.bias is None, name


# ---- weights


def save(model, path):
    save_file({"model": numpy_state(model), "epoch": 1}, path)
    return path


def test_whole_weights_load_into_an_equal_model(tmp_path):
    source = make_model(1)
    path = save(source, tmp_path / "upernet.pdparams")
    model = make_model(2, randomized=False, pretrained=str(path))
    images = random_images(1, 40, 56)
    np.testing.assert_array_equal(model(images)[0].numpy(), source(images)[0].numpy())
    report = load_pretrained(model, path)
    assert len(report.loaded) == len(model.state_dict())
    assert not report.missing + report.unexpected + report.mismatched + report.new_parts


def test_classifiers_for_other_classes_are_left_out_and_the_rest_is_loaded(tmp_path, capsys):
    source, model = make_model(1), make_model(2, num_classes=5)
    path, before = save(source, tmp_path / "upernet.pdparams"), numpy_state(model)
    report = load_pretrained(model, path)
    assert report.new_parts == ["decode_head.cls", "auxiliary_head.cls"]
    assert "new decode_head.cls, auxiliary_head.cls: train it before use" in capsys.readouterr().out
    for name, array in numpy_state(model).items():
        expected = before[name] if ".cls." in name else source.state_dict()[name].numpy()
        np.testing.assert_array_equal(array, expected, err_msg=name)
    with pytest.raises(UserError, match=r"decode_head\.cls\.weight \(3, 8, 1, 1\) for \(5, 8, 1, 1\)"):
        load_pretrained(model, path, replace_head=False)


def test_the_backbone_goes_into_backbones_and_classification_models_and_comes_from_them(tmp_path):
    source = make_model(1)
    path = save(source, tmp_path / "upernet.pdparams")
    features, classifier = PaleFeatures(**SMALL), PaleTransformer(**SMALL, num_classes=5)
    assert not load_pretrained(features, path).new_parts
    assert load_pretrained(classifier, path).new_parts == ["head", "norm"]
    expected = numpy_state(source.backbone)
    for name, array in numpy_state(features).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for name, array in numpy_state(classifier).items():
        if name.startswith("stages."):
            np.testing.assert_array_equal(array, expected[name], err_msg=name)

    model = make_model(2)
    load_pretrained(model, save(classifier, tmp_path / "classifier.pdparams"))
    for name, array in numpy_state(model.backbone).items():
        if name.startswith("stages."):
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
