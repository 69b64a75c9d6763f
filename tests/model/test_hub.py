"""The entry points of paddle.hub."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import pytest

from common.checkpoints.loading import load_pretrained
from common.errors import UserError
from common.pale_transformer import create_model, list_models
from tests.helpers.programs import ROOT


def test_hub_lists_and_explains_the_models():
    assert paddle.hub.list(str(ROOT), source="local") == sorted([*list_models(), "pale_features"])
    for name in list_models():
        assert f"Build {name}: images" in paddle.hub.help(str(ROOT), name, source="local")


def test_hub_builds_what_create_model_builds():
    model = paddle.hub.load(str(ROOT), "pale_nano", source="local", pretrained="mnist5k")
    same = create_model("pale_nano", pretrained="mnist5k")
    loaded = create_model("pale_nano", num_classes=10)
    load_pretrained(loaded, "mnist5k")
    assert loaded.default_cfg == same.default_cfg  # the preprocessing is that of the weights
    model.eval()
    same.eval()
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype("float32"))
    np.testing.assert_array_equal(model(images).numpy(), same(images).numpy())
    assert paddle.hub.load(str(ROOT), "pale_nano", source="local", num_classes=3).num_classes == 3
    maps = paddle.hub.load(str(ROOT), "pale_features", source="local", variant="pale_nano")(images)
    assert [features.shape[1] for features in maps] == [20, 40, 80, 160]
    with pytest.raises(UserError, match="there are mnist5k, fashion_mnist"):
        paddle.hub.load(str(ROOT), "pale_nano", source="local", pretrained="cifar")


def test_hub_needs_no_checkout_on_the_path(tmp_path):
    code = f"import paddle; print(type(paddle.hub.load({str(ROOT)!r}, 'pale_nano', source='local')).__name__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "PaleTransformer"
