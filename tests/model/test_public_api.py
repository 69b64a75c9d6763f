"""What others build on: types of everything public, and the entry points of paddle.hub."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from common.errors import UserError
from common.pale_transformer import create_model, list_models
from tests.helpers.programs import ROOT

PACKAGES = ("common", "image_classification", "object_detection", "semantic_segmentation", "tools")


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
            yield f"{prefix}{node.name}", node


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_says_its_types(package):
    assert (ROOT / package / "py.typed").is_file()
    untyped, functions = [], 0
    for file in sorted((ROOT / package).rglob("*.py")):
        for name, node in public_functions(ast.parse(file.read_text(encoding="utf-8")).body):
            found = node.args
            arguments = [*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg]
            bare = [a.arg for a in arguments if a and not a.annotation and a.arg not in ("self", "cls")]
            if bare or (node.returns is None and node.name != "__init__"):
                untyped.append(f"{file.relative_to(ROOT)}: {name}")
            functions += 1
    assert not untyped
    assert functions > 20


def test_hub_lists_and_explains_the_models():
    assert paddle.hub.list(str(ROOT), source="local") == sorted([*list_models(), "pale_features"])
    for name in list_models():
        assert f"Build {name}: images" in paddle.hub.help(str(ROOT), name, source="local")


def test_hub_builds_what_create_model_builds():
    model = paddle.hub.load(str(ROOT), "pale_nano", source="local", pretrained="mnist5k")
    same = create_model("pale_nano", pretrained="mnist5k")
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
