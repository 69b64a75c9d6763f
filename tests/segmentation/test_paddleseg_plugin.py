"""PaddleSeg builds, trains and evaluates what the yaml files of docs/paddleseg.md describe."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from paddleseg.core import evaluate, train
from paddleseg.cvlibs import Config, SegBuilder, manager
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import load_pretrained, numpy_state
from common.pale_features import PaleFeatures, create_features
from common.pale_transformer import create_model
from semantic_segmentation.pale_backbone import PaleTransformer
from tests.helpers.programs import ROOT

DOCUMENT = (ROOT / "docs" / "paddleseg.md").read_text(encoding="utf-8")
EXAMPLES = {
    example["model"]["type"]: example
    for example in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
}
# A whole training and evaluation; the fast suite has one of them.
each_head_trained = pytest.mark.parametrize(
    "head", [head if head == "PaleUPerNet" else pytest.param(head, marks=pytest.mark.slow) for head in EXAMPLES]
)
INFERENCE = {
    "whole": {},
    "sliding": {"is_slide": True, "crop_size": [40, 32], "stride": [24, 20]},
    "scales and flips": {"aug_eval": True, "scales": [0.75, 1.0], "flip_horizontal": True},
}


def make_images(folder: Path) -> Path:
    """Write six 70x50 images of a red and a blue square on noise, their masks, and a list."""
    rng, lines = np.random.default_rng(0), []
    for number in range(6):
        image, mask = rng.integers(0, 60, (50, 70, 3)).astype(np.uint8), np.zeros((50, 70), np.uint8)
        image[5:30, 5:30], mask[5:30, 5:30] = (220, 30, 30), 1
        image[20:45, 40:65], mask[20:45, 40:65] = (30, 30, 220), 2
        mask[:2] = 255
        Image.fromarray(image).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}_mask.png")
        lines.append(f"{number}.png {number}_mask.png")
    (folder / "list.txt").write_text("\n".join(lines))
    return folder


def write_config(folder: Path, head: str) -> Path:
    """Write the documented sections for three classes and ``pale_nano``, and what else a run needs."""
    model = {**EXAMPLES[head]["model"], "num_classes": 3}
    model["backbone"] = {**model["backbone"], "variant": "pale_nano"}
    width = {"PaleUPerNet": "channels", "UPerNet": "channels", "SegFormer": "embedding_dim"}.get(head)
    if width:
        model[width] = 32

    def dataset(mode: str, *transforms: dict) -> dict:
        return {
            "type": "Dataset",
            "dataset_root": str(folder),
            "num_classes": 3,
            "mode": mode,
            f"{mode}_path": str(folder / "list.txt"),
            "transforms": [*transforms, {"type": "Normalize"}],
        }

    crop = {"type": "RandomPaddingCrop", "crop_size": [48, 32], "category_max_ratio": 0.75}
    settings = {
        "batch_size": 2,
        "iters": 3,
        "train_dataset": dataset("train", {"type": "ResizeStepScaling"}, crop, {"type": "RandomHorizontalFlip"}),
        "val_dataset": dataset("val"),
        "optimizer": {
            "type": "AdamW",
            "weight_decay": 0.01,
            "custom_cfg": [{"name": "norm", "weight_decay_mult": 0.0}],
        },
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 1e-3, "end_lr": 0.0, "power": 1.0},
        "model": model,
        "loss": EXAMPLES[head]["loss"],
    }
    path = folder / f"{head}.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(config: Path, output: Path, **settings) -> tuple[paddle.nn.Layer, dict[str, np.ndarray]]:
    """Train as PaddleSeg's own script does; return the model and its first weights."""
    builder = SegBuilder(Config(str(config)))
    before = numpy_state(builder.model)
    train(
        builder.model,
        builder.train_dataset,
        val_dataset=builder.val_dataset,
        optimizer=builder.optimizer,
        losses=builder.loss,
        save_dir=str(output),
        iters=builder.config.iters,
        batch_size=builder.config.batch_size,
        save_interval=3,
        log_iters=1,
        **settings,
    )
    return builder.model, before


def trainable(model: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


@pytest.fixture
def no_sleep(monkeypatch):
    """PaddleSeg sleeps for a second after training."""
    monkeypatch.setattr(sys.modules["paddleseg.core.train"].time, "sleep", lambda _: None)


# ---- training and evaluation


@pytest.mark.usefixtures("no_sleep")
@each_head_trained
def test_paddleseg_trains_and_evaluates_the_documented_head_and_what_it_saves_is_read_back(tmp_path, capsys, head):
    config = write_config(make_images(tmp_path), head)
    model, before = run(config, tmp_path / "out")
    log = re.findall(r"\[TRAIN\].*loss: ([\d.]+)", capsys.readouterr().out)
    assert len(log) == 3
    assert all(0.0 < float(loss) < 10.0 for loss in log)
    assert set(before) <= set(model.state_dict())  # paddle.flops adds buffers at the end
    moved = {name for name, tensor in trainable(model).items() if (tensor.numpy() != before[name]).any()}
    unused = {
        "PaleUPerNet": (),
        "UPerNet": ("head.conv_last.",),
        "SegFormer": (),
        "DeepLabV3P": ("backbone.out_norms.1.", "backbone.out_norms.2."),
    }
    assert set(trainable(model)) - moved == {name for name in trainable(model) if name.startswith(unused[head])}

    whole, features = tmp_path / "out" / "iter_3" / "model.pdparams", create_features("pale_nano")
    report = load_pretrained(features, whole)
    assert not report.missing + report.unexpected + report.mismatched
    for name, array in numpy_state(features).items():
        np.testing.assert_array_equal(array, model.state_dict()[f"backbone.{name}"].numpy(), err_msg=name)
    assert load_pretrained(create_model("pale_nano"), whole).new_parts == ["head", "norm"]
    again = SegBuilder(Config(str(config))).model
    assert len(load_pretrained(again, whole).loaded) == len(again.state_dict())

    for settings in INFERENCE.values():
        miou, accuracy, class_iou, *_ = evaluate(model, SegBuilder(Config(str(config))).val_dataset, **settings)
        assert 0.0 <= miou <= accuracy <= 1.0
        assert len(class_iou) == 3
        expected = evaluate(again, SegBuilder(Config(str(config))).val_dataset, print_detail=False, **settings)
        assert miou == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("no_sleep")
def test_the_ema_and_the_curves_of_paddleseg_work(tmp_path):
    model, before = run(
        write_config(make_images(tmp_path), "PaleUPerNet"), tmp_path / "out", use_ema=True, use_vdl=True
    )
    assert list((tmp_path / "out").glob("vdlrecords*.log"))
    average = SegBuilder(Config(str(tmp_path / "PaleUPerNet.yml"))).model
    load_pretrained(average, tmp_path / "out" / "iter_3" / "ema_model.pdparams")
    name = "decode_head.fusion.0.weight"
    first, last, mean = (np.asarray(state[name]) for state in (before, numpy_state(model), numpy_state(average)))
    assert 0.0 < np.abs(mean - first).max() < np.abs(last - first).max()


class Prediction(paddle.nn.Layer):
    """The layer that PaddleSeg's export script wraps a model in."""

    def __init__(self, model: paddle.nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.model(images)[0].argmax(1)


@pytest.mark.slow
def test_a_model_of_fixed_size_is_exported(tmp_path):
    model = Prediction(SegBuilder(Config(str(write_config(make_images(tmp_path), "PaleUPerNet")))).model)
    model.eval()
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((1, 3, 64, 70)).astype("float32"))
    expected = model(images).numpy()
    spec = [paddle.static.InputSpec([1, 3, 64, 70], "float32")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec), str(tmp_path / "exported"))
    exported = paddle.jit.load(str(tmp_path / "exported"))(images).numpy()
    assert (exported == expected).mean() > 0.99


# ---- the backbone


def test_the_backbone_describes_its_maps_to_paddleseg():
    backbone = manager.BACKBONES["PaleTransformer"](variant="pale_nano", drop_path_rate=0.2, in_channels=1)
    assert isinstance(backbone, PaleFeatures)
    assert backbone.feat_channels == [20, 40, 80, 160]
    assert [x.shape[1] for x in backbone(paddle.zeros([1, 1, 32, 32]))] == backbone.feat_channels
    assert backbone.stages[3].blocks[0].drop_path.rate == pytest.approx(0.2)
    assert manager.BACKBONES["PaleTransformer"] is PaleTransformer


def test_a_yaml_file_names_pretrained_weights(tmp_path):
    source = create_features("pale_nano")
    save_file(numpy_state(source), tmp_path / "source.pdparams")
    path = write_config(make_images(tmp_path), "SegFormer")
    settings = yaml.safe_load(path.read_text())
    settings["model"]["backbone"]["pretrained"] = str(tmp_path / "source.pdparams")
    path.write_text(yaml.safe_dump(settings))
    model = SegBuilder(Config(str(path))).model
    for name, array in numpy_state(source).items():
        np.testing.assert_array_equal(model.state_dict()[f"backbone.{name}"].numpy(), array, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"drop_path_rate": 2.0}, ["drop_path_rate is 2.0"]),
        ({"pretrained": "no/such/file.pdparams"}, ["no checkpoint at", "no/such/file.pdparams"]),
    ],
)
def test_mistakes_in_a_yaml_file_are_named(tmp_path, changes, parts):
    path = write_config(make_images(tmp_path), "PaleUPerNet")
    settings = yaml.safe_load(path.read_text())
    settings["model"]["backbone"].update(changes)
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(RuntimeError) as caught:
        SegBuilder(Config(str(path))).model  # noqa: B018 (PaddleSeg builds on access)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.slow
def test_one_import_in_a_fresh_process_is_all():
    """It needs none of PaddleSeg's optional packages."""
    packages = ["filelock", "prettytable", "visualdl", "pandas"]
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({packages}))\n"
        "import semantic_segmentation.pale_backbone\n"
        "from paddleseg.core import train, evaluate\n"
        "from paddleseg.cvlibs import manager\n"
        "from paddleseg.utils import metrics\n"
        "assert 'PaleTransformer' in manager.BACKBONES.components_dict\n"
        "assert 'PaleUPerNet' in manager.MODELS.components_dict\n"
        "assert metrics.calculate_area.__module__ == 'semantic_segmentation.paddleseg_trainer_patches'\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
