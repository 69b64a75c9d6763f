"""The model computes what the unofficial reading does, and docs/reproduction.md agrees with the code."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml

from common.checkpoints.file_format import save_file
from common.pale_transformer import PaleTransformer, create_model
from image_classification.config import CONFIG, default_config
from tests.helpers.programs import ROOT
from tests.helpers.unofficial_reading import logits, random_state, to_our_weights

# ---- the unofficial reading

DEPTHS, HEADS, PALE = (1, 2, 1, 1), (1, 2, 2, 4), 2


def our_logits(name, weights, images, file, **settings):
    """Logits of a model that loads the weights from a file, as users' checkpoints are."""
    save_file(weights, file)
    model = create_model(name, stage_norms=False, pretrained=file, **settings)
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def relative_difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_the_model_computes_what_the_unofficial_reading_computes(tmp_path):
    state = random_state((8, 16, 32, 64), DEPTHS, classes=5)
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 128)).astype(np.float32)
    expected = logits(state, images, HEADS, PALE)
    settings = {"embed_dim": 8, "depths": DEPTHS, "num_heads": [2 * heads for heads in HEADS], "pale_size": PALE}
    found = our_logits("pale_nano", to_our_weights(state), images, tmp_path / "ours.pdparams", **settings)
    assert relative_difference(found, expected) < 2e-5
    # The comparison notices other heads and other pales.
    assert relative_difference(logits(state, images, [2 * heads for heads in HEADS], PALE), expected) > 1e-3
    assert relative_difference(logits(state, images, HEADS, 1), expected) > 1e-3


# Runs in the Python of the peers: argument 1 is the unofficial file, 2 a folder with images.npy.
THEIR_PASS = """
import importlib.util, sys
import numpy as np, torch

code, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("reading", code)
reading = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reading)
torch.manual_seed(0)
model = reading.PS_Transformer(reading.args).eval()
model.softmax = torch.nn.Identity()
with torch.no_grad():
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "bn.weight", "ln.weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(0, tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.3)
    np.savez(f"{folder}/weights.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    np.save(f"{folder}/logits.npy", model(torch.from_numpy(np.load(f"{folder}/images.npy"))).numpy())
"""


@pytest.mark.slow
def test_pale_base_computes_what_the_unofficial_code_computes(tmp_path):
    """Needs PALE_UNOFFICIAL_CODE=.../pale-transformer.py, which is not part of this project, and PyTorch."""
    code, python = os.environ.get("PALE_UNOFFICIAL_CODE"), ROOT / ".venv-peers" / "bin" / "python"
    if not code or not python.exists():
        pytest.skip("needs PALE_UNOFFICIAL_CODE and .venv-peers; see docs/reproduction.md")
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([python, "-c", THEIR_PASS, code, tmp_path], check=True)
    expected = np.load(tmp_path / "logits.npy")
    with np.load(tmp_path / "weights.npz") as state:
        weights = to_our_weights(dict(state))
    found = our_logits("pale_base", weights, images, tmp_path / "ours.pdparams", num_heads=(8, 16, 32, 64))
    print(f"largest difference {np.abs(found - expected).max():.1e} of {np.abs(expected).max():.0f}")
    assert relative_difference(found, expected) < 2e-5


# ---- docs/reproduction.md

TEXT = (ROOT / "docs/reproduction.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text between a heading and the next."""
    return re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", TEXT, re.DOTALL | re.MULTILINE)[1]


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its heading."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def names_defined(path: Path) -> set[str]:
    """Classes, functions and variables of a module, and ``Class.method``."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_part_of_the_paper_is_where_the_map_says():
    for _, file, names in rows("From the paper to the code"):
        (path,) = quoted(file)
        assert quoted(names)
        assert set(quoted(names)) <= names_defined(ROOT / path), path


def config_keys(node, prefix=""):
    for key, value in node.items():
        yield from config_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def test_every_option_of_the_model_exists():
    known = set(inspect.signature(PaleTransformer).parameters) | set(config_keys(default_config()))
    for question, _, _, option in rows("The model"):
        options = quoted(option.partition(":")[0])
        assert options or option.startswith("none"), question
        assert set(options) <= known, question


RECIPES = {
    "Training on ImageNet": "pale_tiny_224.yaml",
    "Training with token labels": "pale_tiny_224_token_label.yaml",
    "Fine-tuning at 384x384": "pale_tiny_384.yaml",
}


@pytest.mark.parametrize("title", RECIPES)
def test_values_of_the_recipe_are_the_configurations(title):
    config = load_config(RECIPES[title])
    for _, text, _, option in rows(title):
        (key,) = quoted(option)
        value, written = value_of(config, key), yaml.safe_load(text)
        assert value == (float(written) if isinstance(value, float) else written), key  # YAML takes 1e-3 for a text


def load_config(name):
    path = ROOT / "image_classification/configs" / name
    return CONFIG.load(Namespace(cfg=str(path), opts=[]))


def value_of(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def differences(name, other):
    one, two = load_config(name), load_config(other)
    return {key for key in config_keys(one) if value_of(one, key) != value_of(two, key)}


@pytest.mark.parametrize(
    ("title", "unlisted"),
    [("Training with token labels", {"TOKEN_LABEL.MAPS", "OUTPUT"}), ("Fine-tuning at 384x384", {"OUTPUT"})],
)
def test_other_recipes_differ_from_the_plain_one_in_their_table_only(title, unlisted):
    listed = {key for row in rows(title) for key in quoted(row[3])}
    assert differences("pale_tiny_224.yaml", RECIPES[title]) - listed == unlisted


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("variant", ["small", "base"])
def test_other_variants_differ_in_stochastic_depth_only(variant, size):
    different = differences(f"pale_tiny_{size}.yaml", f"pale_{variant}_{size}.yaml")
    assert different == {"MODEL.NAME", "MODEL.DROP_PATH", "OUTPUT"}


def test_every_file_and_configuration_that_is_named_exists():
    folders = "common|image_classification|semantic_segmentation|object_detection|tools|tests"
    named = re.findall(rf"\b(?:{folders})/[\w/.{{}},*]+", TEXT)
    assert len(named) > 20
    for name in named:
        name = name.rstrip(".,")
        variants = re.search(r"\{(.*?)\}", name)
        for choice in variants[1].split(",") if variants else [""]:
            path = name.replace(variants[0], choice) if variants else name
            assert list(ROOT.glob(path)), path
