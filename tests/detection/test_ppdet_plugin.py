"""PaddleDetection builds, trains and evaluates what the yaml files of docs/paddledetection.md describe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from tests.helpers.model_options import MODEL_OPTIONS, check_model_options
from tests.helpers.programs import ROOT
from tests.helpers.tiny_detection import DOCUMENT, FILES, MODELS, build, make_batch, scoped_config, write_config

# isort: split
import ppdet
from ppdet.core.workspace import create
from ppdet.engine import Trainer

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import load_pretrained, numpy_state
from common.pale_features import PaleFeatures, create_features
from common.pale_transformer import create_model
from object_detection.pale_backbone import PaleTransformer

# A whole training and evaluation; the fast suite has one of them.
each_model = pytest.mark.parametrize(
    "name", [name if name == "mask_rcnn" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)


def train(config: Path, validate: bool = False) -> tuple[paddle.nn.Layer, dict[str, np.ndarray]]:
    """Train as PaddleDetection's own script does; return the model and its first weights."""
    with scoped_config(config) as settings:
        paddle.seed(0)
        trainer = Trainer(settings, mode="train")
        before = numpy_state(trainer.model)
        trainer.train(validate)
    return trainer.model, before


def trainable(model: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def saved(folder: Path, name: str) -> Path:
    return folder / "out" / f"small_{name}" / "model_final.pdparams"


def drop_objects(folder: Path, images: list[int]) -> None:
    """Remove the objects of some training images."""
    path = folder / "annotations" / "train.json"
    coco = json.loads(path.read_text())
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] - 100 not in images]
    path.write_text(json.dumps(coco))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """PaddleDetection writes the results of an evaluation into the current folder."""
    monkeypatch.chdir(tmp_path)


@each_model
def test_paddledetection_trains_evaluates_and_predicts_the_documented_model(tmp_path, boxes, name):
    drop_objects(boxes, [] if name == "fcos" else [1])
    config = write_config(tmp_path, name, **({"TrainDataset": {"allow_empty": False}} if name == "fcos" else {}))
    model, before = train(config)
    assert set(model.state_dict()) == set(before)
    moved = {key for key, tensor in trainable(model).items() if (tensor.numpy() != before[key]).any()}
    assert set(trainable(model)) == moved
    assert all(np.isfinite(array).all() for array in numpy_state(model).values())

    features = create_features("pale_nano", out_indices=model.backbone.out_indices)
    report = load_pretrained(features, saved(tmp_path, name))
    assert not report.missing + report.mismatched
    for key, array in numpy_state(features).items():
        np.testing.assert_array_equal(array, model.state_dict()[f"backbone.{key}"].numpy(), err_msg=key)
    assert load_pretrained(create_model("pale_nano"), saved(tmp_path, name)).new_parts == ["head", "norm"]
    with scoped_config(config) as settings:
        again = create(settings.architecture)
    assert len(load_pretrained(again, saved(tmp_path, name)).loaded) == len(again.state_dict())
    outputs = []
    for twin in (model, again):
        twin.eval()
        with paddle.no_grad():
            outputs.append(twin(make_batch([0]))["bbox"].numpy())
    np.testing.assert_array_equal(*outputs)

    results = {}
    with scoped_config(config) as settings:
        trainer = Trainer(settings, mode="eval")
        trainer.load_weights(str(saved(tmp_path, name)))
        for head in ("bbox_post_process", "head", "fcos_head"):  # a model that has hardly trained finds little
            if hasattr(trainer.model, head):
                getattr(trainer.model, head).nms.score_threshold = 0.0
        trainer._reset_metrics = lambda: results.update(trainer._metrics[0].get_results())
        trainer.evaluate()
    assert set(results) == ({"bbox", "mask"} if "mask" in name else {"bbox"})
    assert all(0.0 <= values[0] <= 1.0 for values in results.values())
    with scoped_config(config) as settings:
        trainer = Trainer(settings, mode="test")
        trainer.load_weights(str(saved(tmp_path, name)))
        trainer.predict([str(boxes / "val" / "val_1.png")], draw_threshold=0.0, output_dir=str(tmp_path / "drawn"))
    assert (tmp_path / "drawn" / "val_1.png").exists()


@pytest.mark.slow
def test_ema_curves_mixed_precision_and_validation_of_whole_batches_work_with_empty_images(tmp_path, boxes):
    drop_objects(boxes, [0, 1])
    curves = {"use_vdl": True, "vdl_log_dir": str(tmp_path / "curves")}
    settings = {"use_ema": True, "amp": True, "EvalReader": {"batch_size": 2}, **curves}
    model, _ = train(write_config(tmp_path, "cascade_mask_rcnn", **settings), validate=True)
    assert list((tmp_path / "curves").glob("vdlrecords*.log"))
    average = build(tmp_path, "cascade_mask_rcnn")
    load_pretrained(average, saved(tmp_path, "cascade_mask_rcnn"))
    last, mean = (numpy_state(twin)["neck.fpn_res5_sum.weight"] for twin in (model, average))
    assert (mean != last).any()
    np.testing.assert_allclose(mean, last, rtol=0.03, atol=2e-3)  # of few steps, PaddleDetection's mean is not exact


# ---- the backbone


def test_the_document_starts_with_code_that_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()[-2:]
    assert printed == [line.rpartition("# ")[2] for line in code.splitlines() if "# [" in line]


def test_the_backbone_describes_its_maps_to_paddledetection():
    backbone = PaleTransformer("pale_nano", drop_path_rate=0.2, in_channels=1, out_indices=[1, 3])
    assert isinstance(backbone, PaleFeatures)
    assert [(shape.channels, shape.stride) for shape in backbone.out_shape] == [(40, 8), (160, 32)]
    maps = backbone({"image": paddle.zeros([1, 1, 64, 64])})
    assert [list(x.shape) for x in maps] == [[1, 40, 8, 8], [1, 160, 2, 2]]
    assert backbone.stages[3].blocks[0].drop_path.rate == pytest.approx(0.2)


def test_the_documented_parameter_groups_decay_what_the_backbone_says():
    backbone = PaleTransformer("pale_nano")
    names = {name for name, _ in backbone.named_parameters() if "norm" in name or "bias" in name}
    assert names == backbone.no_weight_decay()
    assert "param_groups: [{params: [norm, bias], weight_decay: 0.0}]\n" in FILES["coco.yml"]


def test_the_options_of_the_model_are_arguments_of_the_backbone(tmp_path):
    check_model_options(build(tmp_path, "retinanet", PaleTransformer=MODEL_OPTIONS).backbone)


def test_a_yaml_file_names_pretrained_weights(tmp_path):
    source = create_features("pale_nano")
    save_file(numpy_state(source), tmp_path / "source.pdparams")
    backbone = {"variant": "pale_nano", "pretrained": str(tmp_path / "source.pdparams")}
    model = build(tmp_path, "retinanet", PaleTransformer=backbone)
    for name, tensor in model.backbone.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), source.state_dict()[name].numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"out_indices": [1, 0]}, ["out_indices is [1, 0]", "rising numbers"]),
        ({"pretrained": "no/such/file.pdparams"}, ["no/such/file.pdparams does not exist"]),
    ],
)
def test_mistakes_in_a_yaml_file_are_named(tmp_path, changes, parts):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (a ValueError or a UserError)
        build(tmp_path, "mask_rcnn", PaleTransformer={"variant": "pale_nano", **changes})
    for part in parts:
        assert part in str(caught.value)


# The beginning of the scripts in a clone of PaddleDetection.
SCRIPT = """from __future__ import absolute_import
# top
import os
import sys
sys.path.insert(0, os.path.abspath(os.path.join(__file__, *([".."] * 2))))
# path
import warnings
warnings.filterwarnings("ignore")
import numpy
import paddle
# paddle
from ppdet.core.workspace import create, global_config
from ppdet.modeling import RoIAlign
# ppdet
import ppdet
assert ppdet.__file__.startswith(sys.path[0]), ppdet.__file__
assert "PaleTransformer" in global_config
assert RoIAlign.forward.__module__ == "common.toolkits.ppdet_patches"
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["top", "path", "paddle", "ppdet"])
def test_the_import_may_stand_anywhere_in_a_script_of_paddledetection(tmp_path, place):
    (tmp_path / "tools").mkdir()
    (tmp_path / "ppdet").symlink_to(Path(ppdet.__file__).parent)
    script = tmp_path / "tools" / "train.py"
    script.write_text(SCRIPT.replace(f"# {place}\n", "import object_detection.pale_backbone\n"))
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ppdet", "tools"]  # nothing was downloaded


@pytest.mark.slow
def test_one_import_in_a_fresh_process_is_all(tmp_path):
    """It prints nothing, keeps Pillow strict and PaddleDetection's logger, and needs none of its optional packages.

    A second import, of the installed package beside the checkout, changes nothing.
    """
    (tmp_path / "pale_transformer").symlink_to(ROOT / "common")
    packages = ["visualdl", "Cython", "lap", "motmetrics", "pyclipper", "shapely", "terminaltables", "typeguard"]
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({packages}))\n"
        "import object_detection.pale_backbone\n"
        "from PIL import ImageFile\n"
        "from ppdet.core.workspace import global_config\n"
        "from ppdet.engine.trainer import logger\n"
        "from ppdet.modeling import RoIAlign\n"
        "assert 'PaleTransformer' in global_config\n"
        "assert RoIAlign.forward.__module__ == 'common.toolkits.ppdet_patches'\n"
        "assert not ImageFile.LOAD_TRUNCATED_IMAGES\n"
        "before = global_config['PaleTransformer']\n"
        "import pale_transformer.paddledet\n"
        "assert global_config['PaleTransformer'] is before\n"
        "assert RoIAlign.forward_without_patch.__module__.startswith('ppdet.')\n"
        "logger.info('still here')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.endswith("INFO: still here\n")
