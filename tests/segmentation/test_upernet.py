"""UPerNet in the paper's setting: its size and cost, its outputs, its weights, and what it tells the trainer."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import Checkpoint, load_pretrained, load_weights, numpy_state
from common.errors import UserError
from common.flops import count_flops, params
from common.pale_features import PaleFeatures, create_features
from common.pale_transformer import VARIANTS, PaleTransformer
from common.training.optimizer import parameter_groups
from common.training.paper_figures import find_figure
from semantic_segmentation.upernet import PaleUPerNet
from tests.model.test_pale_transformer import expected_flops

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
    assert f"{params(model) / 1e6:.0f}" == find_figure("semantic_segmentation", name, "params").text


def backbone_flops(name, height, width):
    """Multiply-adds and the norms' operations of the backbone without a classifier, with a LayerNorm on each map."""
    row = VARIANTS[name]
    layer_norms = batch_norms = 0
    for stage, depth in enumerate(row["depths"]):
        c, h, w = row["embed_dim"] * 2**stage, math.ceil(height / 2 ** (stage + 2)), math.ceil(width / 2 ** (stage + 2))
        s_r, s_c = min(row["pale_size"], h), min(row["pale_size"], w)
        layer_norms += (2 + 2 * depth) * h * w * c
        batch_norms += 3 * depth * s_r * math.ceil(h / s_r) * s_c * math.ceil(w / s_c) * c
    flops = expected_flops(height, width, row["embed_dim"], row["depths"], row["pale_size"], num_classes=0)
    return flops, 5 * layer_norms + 2 * batch_norms


def model_flops(name, height, width, channels=512, classes=150, pools=(1, 2, 3, 6)):
    """Multiply-adds and the norms' operations: the backbone without classifier, and the convolutions of the head."""
    widths = [VARIANTS[name]["embed_dim"] * 2**stage for stage in range(4)]
    areas = [math.ceil(height / stride) * math.ceil(width / stride) for stride in (4, 8, 16, 32)]
    bins = sum(pool**2 for pool in pools)
    pyramid = bins * widths[3] * channels + 9 * areas[3] * (widths[3] + len(pools) * channels) * channels
    laterals = sum(area * width * channels for area, width in zip(areas[:3], widths[:3], strict=True))
    outputs = sum(9 * area * channels**2 for area in areas[:3])
    fusion = 9 * areas[0] * 4 * channels**2
    flops, norms = backbone_flops(name, height, width)
    batch_norms = channels * (bins + areas[3] + 2 * sum(areas[:3]) + areas[0])
    return flops + pyramid + laterals + outputs + fusion + areas[0] * channels * classes, norms + 2 * batch_norms


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in PAPER])
def test_multiply_adds_at_512x2048_without_the_auxiliary_head_are_the_papers(name):
    model = PaleUPerNet(150, create_features(name))
    flops, norms = model_flops(name, 512, 2048)
    assert count_flops(model, 512, 2048, norms=True) == flops + norms
    figure = find_figure("semantic_segmentation", name, "flops")
    assert (flops + norms) / 1e9 == pytest.approx(figure.value, abs=figure.last_digit)
    assert flops / 1e9 == pytest.approx(figure.value, rel=0.002)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (65, 90)])
def test_multiply_adds_of_other_sizes_are_exactly_the_formula(height, width):
    model = PaleUPerNet(7, create_features("pale_nano"), channels=16)
    flops, norms = model_flops("pale_nano", height, width, channels=16, classes=7)
    assert count_flops(model, height, width) == flops
    assert count_flops(model, height, width, norms=True) == flops + norms


# ---- outputs


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 97)])
def test_logits_have_the_images_size_and_training_adds_the_auxiliary_ones(height, width):
    model = make_model()
    assert [x.shape for x in model(random_images(2, height, width))] == [[2, 3, height, width]]
    model.train()
    assert [x.shape for x in model(random_images(2, height, width))] == [[2, 3, height, width]] * 2


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
@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 70)])
def test_logits_are_those_of_upernet(height, width, align_corners):
    model = make_model(align_corners=align_corners)
    images = random_images(2, height, width)
    (logits,) = model(images)
    np.testing.assert_allclose(logits.numpy(), reference_logits(model, images).numpy(), rtol=1e-4, atol=1e-5)
    assert logits.numpy().std(axis=(2, 3)).min() > 1e-3


@pytest.mark.parametrize("index", range(4))
def test_the_auxiliary_head_reads_the_map_that_is_asked_for(index):
    model = make_model(aux_in_index=index, dropout=0.0)
    images = random_images(2, 64, 64)
    model.train()
    _, auxiliary = model(images)
    head = model.auxiliary_head
    expected = head.cls(head.conv(model.backbone(images)[index]))
    expected = F.interpolate(expected, [64, 64], mode="bilinear")
    np.testing.assert_allclose(auxiliary.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_logits_do_not_depend_on_the_rest_of_the_batch():
    model = make_model()
    images = random_images(3, 48, 40)
    (together,) = model(images)
    for index in range(3):
        (alone,) = model(images[index : index + 1])
        np.testing.assert_allclose(alone.numpy()[0], together.numpy()[index], rtol=1e-4, atol=1e-4)


def test_dropout_drops_whole_channels_in_training_only():
    model = make_model(dropout=0.5)
    seen = []
    model.decode_head.dropout.register_forward_post_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    images = random_images(4, 64, 64)
    np.testing.assert_array_equal(model(images)[0].numpy(), model(images)[0].numpy())
    seen.clear()
    model.train()
    model(images)
    ((before, after),) = seen
    alive = before.numpy().any((2, 3))
    kept = after.numpy().any((2, 3))
    assert 0 < kept.sum() < alive.sum()
    np.testing.assert_allclose(after.numpy()[kept], 2 * before.numpy()[kept], rtol=1e-5)


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
    for name in ("decode_head.cls.weight", "auxiliary_head.cls.weight", "backbone.stages.0.merging.conv.weight"):
        assert np.abs(trainable(model)[name].grad.numpy()).max() > 0, name


def test_it_learns_three_colours():
    """Thirty steps on four squares to an image, each in the colour of its class."""
    paddle.seed(0)
    model = PaleUPerNet(3, create_features("pale_nano", depths=(1, 1, 1, 1)), channels=16, aux_channels=16)
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=parameter_groups(model, 0.01))
    rng, losses = np.random.default_rng(0), []
    model.train()
    for _ in range(30):
        labels = rng.integers(0, 3, (4, 2, 2)).repeat(16, axis=1).repeat(16, axis=2)
        images = paddle.to_tensor(np.eye(3, dtype="float32")[labels].transpose(0, 3, 1, 2))
        logits, auxiliary = model(images)
        labels = paddle.to_tensor(labels)
        loss = F.cross_entropy(logits, labels, axis=1) + 0.4 * F.cross_entropy(auxiliary, labels, axis=1)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(1.4 * math.log(3), abs=0.1)
    assert np.mean(losses[-3:]) < 0.6


# ---- arguments and initial values


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"aux_channels": -4}, "aux_channels is -4"),
        ({"pool_sizes": [1, 0]}, r"pool_sizes is \[1, 0\]"),
        ({"pool_sizes": 3}, "pool_sizes is 3; give a list"),
        ({"dropout": 2}, "dropout is 2"),
        ({"aux_in_index": 4}, "aux_in_index is 4; the maps are 0 to 3"),
        ({"aux_in_index": -1}, "aux_in_index is -1"),
    ],
)
def test_impossible_arguments_are_refused_by_name_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        make_model(**settings)


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


def test_no_convolution_has_a_bias_that_its_batchnorm_would_cancel():
    names = {name for name in trainable(make_model()) if name.endswith("bias") and not name.startswith("backbone.")}
    norms = {f"{name}.bias" for name, layer in make_model().named_sublayers() if isinstance(layer, nn.BatchNorm2D)}
    assert names - norms == {"decode_head.cls.bias", "auxiliary_head.cls.bias"}


# ---- what the optimizer makes of it


def test_parameter_groups_hold_every_parameter_once_and_decay_only_weights():
    model = make_model()
    names = {id(parameter): name for name, parameter in trainable(model).items()}
    seen = []
    for group in parameter_groups(model, 0.05, layer_decay=0.5):
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0), name
            part, _, rest = name.partition(".")
            assert group["learning_rate"] == 0.5 ** (6 - (model.backbone.layer_id(rest) if part == "backbone" else 6))
    assert sorted(seen) == sorted(names.values())
    batch_norms = {name for name in names.values() if name.startswith("decode_head.fusion.1.")}
    assert batch_norms == {"decode_head.fusion.1.weight", "decode_head.fusion.1.bias"}


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
    assert "new decode_head.cls, auxiliary_head.cls: to be trained before use" in capsys.readouterr().out
    for name, array in numpy_state(model).items():
        expected = before[name] if ".cls." in name else source.state_dict()[name].numpy()
        np.testing.assert_array_equal(array, expected, err_msg=name)
    with pytest.raises(UserError, match=r"decode_head\.cls\.weight \(3, 8, 1, 1\) for \(5, 8, 1, 1\)"):
        load_pretrained(model, path, replace_head=False)


def test_another_width_is_an_error_that_changes_nothing(tmp_path):
    path, model = save(make_model(1, channels=12), tmp_path / "upernet.pdparams"), make_model(2)
    before = numpy_state(model)
    with pytest.raises(UserError, match=r"upernet\.pdparams does not fit .*decode_head\.") as caught:
        load_pretrained(model, path)
    assert "\n" not in str(caught.value)
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


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
    path = save(classifier, tmp_path / "classifier.pdparams")
    with pytest.raises(UserError, match="of a backbone alone"):
        load_pretrained(model, path, replace_head=False)
    load_pretrained(model, path)
    for name, array in numpy_state(model.backbone).items():
        if name.startswith("stages."):
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_weights_of_another_variant_are_named(tmp_path):
    path = save(PaleUPerNet(3, create_features("pale_nano"), channels=8), tmp_path / "nano.pdparams")
    with pytest.raises(UserError, match="these are pale_nano weights"):
        make_model(pretrained=path)


def test_weights_of_another_number_of_classes_are_named_so():
    weights = numpy_state(make_model())
    with pytest.raises(UserError, match=r"another number of classes: decode_head\.cls\.weight \(3,"):
        load_weights(make_model(num_classes=9), Checkpoint("x.pdparams", weights))
