"""Models whose weights come from a file: nothing is drawn that the file has, and nothing stays without values."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.file_format import save_file
from common.checkpoints.lazy_model import build_lazily
from common.checkpoints.loading import load_weights, numpy_state
from common.errors import UserError
from common.pale_transformer import PaleTransformer, create_model


@pytest.fixture
def drawn(monkeypatch):
    """The shapes that are filled with random numbers."""
    shapes = []
    for name in ("TruncatedNormal", "Normal", "XavierNormal", "XavierUniform", "KaimingNormal", "KaimingUniform"):
        kind = getattr(nn.initializer, name)

        def forward(self, parameter, block=None, original=kind.forward):
            shapes.append(tuple(parameter.shape))
            return original(self, parameter, block)

        monkeypatch.setattr(kind, "forward", forward)
    return shapes


def make_model(num_classes: int) -> PaleTransformer:
    return PaleTransformer(4, (1, 1, 1, 1), (2, 2, 2, 2), 2, num_classes=num_classes)


def test_pretrained_weights_are_all_that_a_model_gets(drawn):
    model = create_model("pale_nano", pretrained="mnist5k")
    assert not drawn
    assert all(np.isfinite(array).all() for array in numpy_state(model).values())


def test_a_new_head_is_initialised_like_any(drawn):
    model = create_model("pale_nano", num_classes=300, pretrained="mnist5k")
    assert set(drawn) == {(160, 300)}
    weight = model.head.weight.numpy()
    assert weight.std() == pytest.approx(0.02 if paddle.__version__ >= "3" else 0.0176, rel=0.05)  # 2.6 cuts the tails
    assert not model.head.bias.numpy().any()


def test_what_a_file_lacks_is_initialised_and_can_be_trained():
    full = make_model(3)
    weights = {name: array for name, array in numpy_state(full).items() if ".attention." not in name}
    with paddle.LazyGuard():
        model = make_model(3)
    report = load_weights(model, weights, "a file", strict=False)
    assert report.missing
    for name, array in numpy_state(model).items():
        if name in weights or name.endswith((".bias", ".norm.weight", "._mean", "._variance")):
            np.testing.assert_array_equal(array, numpy_state(full)[name], err_msg=name)
        else:
            assert 0.001 < array.std() < 0.04, name
    model(paddle.ones([1, 3, 32, 32])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if not parameter.stop_gradient)


def test_evaluation_and_prediction_draw_nothing(drawn, shapes_config, tmp_path):
    from image_classification.classification import Classification
    from image_classification.config import CONFIG
    from image_classification.prediction import Classifier

    config = CONFIG.load(Namespace(cfg=shapes_config, opts=[]))
    state = {"model": numpy_state(create_model("pale_nano", num_classes=3))}
    drawn.clear()
    Classifier.from_weights(state, "weights", config)
    save_file(state, tmp_path / "weights.pdparams")
    config.defrost()
    config.MODEL.PRETRAINED = str(tmp_path / "weights.pdparams")
    assert 0 <= Classification(config).evaluate()["top1"] <= 100
    assert not drawn


class Plain(nn.Layer):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)


class Reading(Plain):
    """As some models of the toolkits do."""

    def __init__(self):
        super().__init__()
        self.total = float(self.linear.weight.sum())


def test_a_toolkits_model_is_built_without_values_unless_it_reads_them(drawn):
    weights = numpy_state(Plain())
    drawn.clear()
    model = build_lazily(Plain)
    load_weights(model, weights, "a file")
    assert not drawn
    np.testing.assert_array_equal(model.linear.weight.numpy(), weights["linear.weight"])
    assert np.isfinite(build_lazily(Reading).total)
    assert drawn == [(2, 3)]
    assert Plain().linear.weight.numpy().shape == (2, 3)  # the guard is off again


def test_what_cannot_be_built_says_why():
    def build() -> nn.Layer:
        raise UserError("num_classes is 0")

    with pytest.raises(UserError, match="num_classes is 0"):
        build_lazily(build)
