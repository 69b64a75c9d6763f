"""PaddleSeg builds, trains and evaluates what the yaml files of docs/paddleseg.md describe."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from paddleseg.core import evaluate, train
from paddleseg.cvlibs import Config, SegBuilder, manager
from paddleseg.utils import logger
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import load_pretrained, numpy_state
from common.pale_features import PaleFeatures, create_features
from semantic_segmentation.pale_backbone import PaleTransformer
from tests.helpers.model_options import MODEL_OPTIONS, check_model_options
from tests.helpers.programs import ROOT

DOCUMENT = (ROOT / "docs" / "paddleseg.md").read_text(encoding="utf-8")
EXAMPLES = {
    example["model"]["type"]: example
    for example in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
}
# Each head is trained and evaluated; the fast suite has one of them.
each_head = pytest.mark.parametrize(
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


def trainable(model: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


# ---- training and evaluation


def test_the_documented_heads_are_the_papers_and_three_of_paddlesegs():
    assert list(EXAMPLES) == ["PaleUPerNet", "UPerNet", "SegFormer", "DeepLabV3P"]


@each_head
def test_paddleseg_trains_and_evaluates_each_head_and_its_weights_are_loaded(tmp_path, monkeypatch, capsys, head):
    monkeypatch.setattr(sys.modules["paddleseg.core.train"].time, "sleep", lambda _: None)
    monkeypatch.setattr(logger, "log_level", 2)  # PaddleSeg's own, which our training changes
    config = Config(str(write_config(make_images(tmp_path), head)))
    builder = SegBuilder(config)
    model, before = builder.model, numpy_state(builder.model)
    settings = {"iters": config.iters, "batch_size": config.batch_size, "save_interval": 3, "log_iters": 1}
    train(model, builder.train_dataset, builder.val_dataset, builder.optimizer, str(tmp_path / "out"),
          losses=builder.loss, **settings)  # fmt: skip
    log = re.findall(r"\[TRAIN\].*loss: ([\d.]+)", capsys.readouterr().out)
    assert len(log) == 3
    assert all(0.0 < float(loss) < 10.0 for loss in log)
    moved = {name for name, tensor in trainable(model).items() if (tensor.numpy() != before[name]).any()}
    unused = {"UPerNet": ("head.conv_last.",), "DeepLabV3P": ("backbone.out_norms.1.", "backbone.out_norms.2.")}
    expected = {name for name in trainable(model) if name.startswith(unused.get(head, ()))}
    assert set(trainable(model)) - moved == expected

    whole, features = tmp_path / "out" / "iter_3" / "model.pdparams", create_features("pale_nano")
    report = load_pretrained(features, whole)
    assert not report.missing + report.unexpected + report.mismatched
    for name, array in numpy_state(features).items():
        np.testing.assert_array_equal(array, model.state_dict()[f"backbone.{name}"].numpy(), err_msg=name)
    again = SegBuilder(config).model
    assert len(load_pretrained(again, whole).loaded) == len(again.state_dict()) == len(before)
    for inference in INFERENCE.values():
        miou, accuracy, *_ = evaluate(model, builder.val_dataset, **inference)
        assert 0.0 <= miou <= accuracy <= 1.0
        expected, *_ = evaluate(again, builder.val_dataset, print_detail=False, **inference)
        assert miou == pytest.approx(expected, abs=1e-6)


class Prediction(paddle.nn.Layer):
    """The layer that PaddleSeg's export script wraps a model in."""

    def __init__(self, model: paddle.nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.model(images)[0].argmax(1)


def build_uneven(folder: Path) -> paddle.nn.Layer:
    """A model in evaluation mode whose BatchNorms have statistics, as after training."""
    model = SegBuilder(Config(str(write_config(make_images(folder), "PaleUPerNet")))).model
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._mean.set_value(paddle.randn(layer._mean.shape) * 0.1)
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
    model.eval()
    return model


@pytest.mark.slow
@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 2 cannot leave the sides open")
def test_a_model_is_exported_for_images_of_any_size(tmp_path):
    model = Prediction(build_uneven(tmp_path))
    model.eval()
    batches = [paddle.randn(shape) for shape in ([1, 3, 64, 70], [2, 3, 97, 64])]
    expected = [model(images).numpy() for images in batches]
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec), str(tmp_path / "exported"))
    program = paddle.jit.load(str(tmp_path / "exported"))
    for images, labels in zip(batches, expected, strict=True):
        assert (program(images).numpy() == labels).mean() > 0.99


@pytest.mark.slow
def test_paddles_onnx_export_needs_no_preparation_of_the_model(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("paddle2onnx")
    if importlib.util.find_spec("polygraphy"):  # paddle2onnx 2 has it install packages
        monkeypatch.setattr("polygraphy.config.AUTOINSTALL_DEPS", False)
    model = build_uneven(tmp_path)
    spec = [paddle.static.InputSpec([1, 3, 64, 70], "float32", "images")]
    paddle.onnx.export(model, str(tmp_path / "model"), input_spec=spec, opset_version=16)
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 70)).astype("float32")
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"images": images})
    (expected,) = model(paddle.to_tensor(images))
    assert np.abs(found - expected.numpy()).max() < 1e-4 < np.abs(found).max()


# ---- the backbone


def test_the_backbone_describes_its_maps_to_paddleseg():
    backbone = manager.BACKBONES["PaleTransformer"](variant="pale_nano", drop_path_rate=0.2, in_channels=1)
    assert isinstance(backbone, PaleFeatures)
    assert backbone.feat_channels == [20, 40, 80, 160]
    assert [x.shape[1] for x in backbone(paddle.zeros([1, 1, 32, 32]))] == backbone.feat_channels
    assert backbone.stages[3].blocks[0].drop_path.rate == pytest.approx(0.2)
    assert manager.BACKBONES["PaleTransformer"] is PaleTransformer


def test_the_options_of_the_model_are_arguments_of_the_backbone(tmp_path):
    path = write_config(make_images(tmp_path), "SegFormer")
    settings = yaml.safe_load(path.read_text())
    settings["model"]["backbone"].update(MODEL_OPTIONS)
    path.write_text(yaml.safe_dump(settings))
    check_model_options(SegBuilder(Config(str(path))).model.backbone)


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


def test_a_mistake_in_a_yaml_file_is_named(tmp_path):
    path = write_config(make_images(tmp_path), "PaleUPerNet")
    settings = yaml.safe_load(path.read_text())
    settings["model"]["backbone"]["drop_path_rate"] = 2.0
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(RuntimeError, match=r"drop_path_rate is 2\.0"):
        SegBuilder(Config(str(path))).model  # noqa: B018 (PaddleSeg builds on access)
