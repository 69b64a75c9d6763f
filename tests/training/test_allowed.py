"""Configurations of weights that somebody else may have made: what is accepted, and that nothing of the rest runs."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from argparse import Namespace

import pytest
import yaml

from common.errors import UserError
from common.tasks import TASKS
from common.training.allowed import BACKBONE, section
from semantic_segmentation import pale_backbone
from tests.helpers.model_options import MODEL_OPTIONS
from tests.helpers.programs import ROOT
from tests.helpers.tiny_detection import FILES
from tests.helpers.tiny_runs import load

CONFIGS = [
    (task, path)
    for task in TASKS
    for path in sorted((ROOT / task / "configs").glob("*.y*ml"))
    if "\nOUTPUT:" in path.read_text()
]


def of_weights(task: str, text: str, *opts: str):
    return TASKS[task].config().of_weights(text, "the weights", Namespace(cfg=None, opts=opts))


# ---- what is accepted


@pytest.mark.parametrize(("task", "path"), CONFIGS, ids=lambda value: getattr(value, "stem", ""))
def test_every_configuration_of_ours_may_be_in_weights(task, path):
    spec = TASKS[task].config()
    config = load(spec, "-cfg", path)
    kept = of_weights(task, spec.dump(config))
    assert spec.dump(kept) == spec.dump(load(spec, "-cfg", path, *_without_files(task)))


def _without_files(task: str) -> list[str]:
    """Flags that set the keys that weights do not pass on to their defaults."""
    defaults = TASKS[task].config().defaults()
    keys = {"OUTPUT": defaults.OUTPUT, "DEVICE": ""}
    if task == "image_classification":
        keys |= {"DATA.DATA_PATH": "''", "TOKEN_LABEL.MAPS": "''"}
    return ["-opts", *(word for key, value in keys.items() for word in (key, value or "''"))]


DOCUMENT = (ROOT / "docs" / "paddleseg.md").read_text(encoding="utf-8")
MODELS = [values["model"] for values in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["type"])
def test_every_documented_model_of_segmentation_may_be_in_weights(model):
    values = yaml.safe_load(TASKS["semantic_segmentation"].config().dump(load(TASKS["semantic_segmentation"].config())))
    assert of_weights("semantic_segmentation", yaml.safe_dump({**values, "model": model})).model == model


@pytest.mark.parametrize("name", [name for name in FILES if name != "coco.yml"])
def test_every_documented_model_of_detection_may_be_in_weights(name):
    chain = [yaml.safe_load(FILES[name])]
    while "_BASE_" in chain[0]:
        chain.insert(0, yaml.safe_load(FILES[chain[0].pop("_BASE_")[0]]))
    sections = {key: value for values in chain for key, value in values.items() if key[0].isupper()}
    config = of_weights("object_detection", yaml.safe_dump({**sections, "architecture": chain[-1]["architecture"]}))
    assert config.architecture == chain[-1]["architecture"]


# ---- what is refused


@pytest.mark.parametrize(
    ("task", "change", "parts"),
    [
        (
            "semantic_segmentation",
            {"model.backbone": {"type": "VisionTransformer", "norm_layer": "print()"}},
            ["model.backbone names 'VisionTransformer', which is not on the list", "with -cfg"],
        ),
        ("semantic_segmentation", {"model": {"norm": "x"}}, ["model names 'norm'"]),
        (
            "object_detection",
            {"EvalReader": {"sample_transforms": [{"DecodeCache": {"cache_root": "x"}}]}},
            ["EvalReader.sample_transforms[0] names 'DecodeCache'"],
        ),
        ("object_detection", {"COTLoss": {"name": "x"}}, ["'COTLoss' is not on the list"]),
        ("object_detection", {"FPN": {"out_channel": 10**9}}, ["FPN.out_channel is 1000000000", "from 1 to 512"]),
        ("image_classification", {"DATA.IMAGE_SIZE": 2048}, ["DATA.IMAGE_SIZE is 2048", "from 32 to 1024"]),
    ],
)
def test_the_message_names_what_is_refused_and_cfg_is_trusted(task, change, parts, tmp_path):
    spec = TASKS[task].config()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"BASE": str(spec.default_file), **change}))
    trusted = Namespace(cfg=str(tmp_path / "config.yaml"), opts=[])
    hostile = spec.dump(spec.of_weights(None, "the weights", trusted))
    with pytest.raises(UserError) as caught:
        of_weights(task, hostile)
    for part in ["the configuration of the weights is refused", *parts]:
        assert part in str(caught.value)


def test_a_dotted_key_is_no_way_around_the_list():
    spec = TASKS["semantic_segmentation"].config()
    text = spec.dump(load(spec)) + "model.backbone.norm_layer: print()\n"
    with pytest.raises(UserError, match=r"model\.backbone names 'norm_layer'"):
        of_weights("semantic_segmentation", text)


def test_what_the_user_gives_is_not_restricted():
    spec = TASKS["image_classification"].config()
    text = spec.dump(
        load(spec, "-opts", "DATA.DATASET", "folder", "DATA.DATA_PATH", "somewhere", "OUTPUT", "elsewhere")
    )
    config = of_weights("image_classification", text, "DATA.IMAGE_SIZE", "2048")
    assert (config.DATA.IMAGE_SIZE, config.DATA.DATA_PATH, config.OUTPUT) == (2048, "", spec.defaults().OUTPUT)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_nothing_runs_and_nothing_is_opened_for_a_hostile_configuration(task, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.hostile_configs", task, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *cases, memory = map(json.loads, result.stdout.splitlines())
    hostile = [case for case in cases if case["what"].startswith("hostile")]
    assert len(hostile) >= 50
    assert [case for case in hostile if case["end"] != "refused"] == []
    assert [case for case in cases if case not in hostile and case["end"] != "opened"] == []
    assert [case for case in cases if case["events"]] == []
    assert memory["end"] < 1500


def test_weights_may_set_the_options_of_the_model():
    section(BACKBONE)(MODEL_OPTIONS, "backbone")
    section(BACKBONE)(dict.fromkeys(("num_heads", "pale_size", "image_size")), "backbone")
    assert set(inspect.signature(pale_backbone.PaleTransformer).parameters) == set(BACKBONE)
