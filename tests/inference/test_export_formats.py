"""Saved programs and ONNX files compute the same as the model, for any batch and, if open, any size."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import paddle
import pytest
from paddle import nn

from common.errors import UserError
from common.inference import export_formats
from common.inference.export_formats import convert_to_onnx, export_onnx, load_program, open_openvino, save_program
from common.pale_transformer import create_model
from tests.helpers.programs import ROOT


@pytest.fixture(scope="module")
def model():
    """A short pale_nano with BatchNorm statistics of its own."""
    paddle.seed(0)
    model = create_model("pale_nano", num_classes=10, depths=(1, 1, 2, 1))
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._mean.set_value(paddle.randn(layer._mean.shape))
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
    model.eval()
    return model


def test_a_saved_program_is_of_a_fused_copy(model, tmp_path):
    images = paddle.rand([2, 3, 32, 32])
    graph, weights = save_program(model, tmp_path / "new", {"images": [None, 3, 32, 32]})
    assert (graph.parent, weights.name) == (tmp_path / "new", "inference.pdiparams")
    assert "batch_norm" not in graph.read_text(errors="replace")
    assert [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    program = paddle.jit.load(str(graph.with_suffix("")))
    with paddle.no_grad():
        assert np.allclose(program(images).numpy(), model(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 2 cannot leave the sides open")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"attention": "axial", "parallel": False}, marks=pytest.mark.slow),
        pytest.param({"attention": "window"}, marks=pytest.mark.slow),
    ],
    ids=["pale", "axial", "window"],
)
def test_a_program_takes_images_of_any_size(settings, tmp_path):
    paddle.seed(0)
    model = create_model("pale_nano", num_classes=10, depths=(1, 1, 1, 1), **settings)
    model.eval()
    graph, _ = save_program(model, tmp_path, {"images": [None, 3, None, None]})
    program = paddle.jit.load(str(graph.with_suffix("")))
    for batch, height, width in ((1, 64, 64), (2, 40, 129), (3, 32, 32)):
        images = paddle.rand([batch, 3, height, width])
        with paddle.no_grad():
            assert np.allclose(program(images).numpy(), model(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_program_with_learned_positions_takes_images_of_one_size(tmp_path):
    paddle.seed(0)
    settings = {"position_encoding": "relative", "image_size": 64, "depths": (1, 1, 1, 1)}
    model = create_model("pale_nano", num_classes=10, **settings)
    model.eval()
    images = paddle.rand([2, 3, 40, 72])
    graph, _ = save_program(model, tmp_path, {"images": [None, 3, 40, 72]})
    with paddle.no_grad():
        found = paddle.jit.load(str(graph.with_suffix("")))(images).numpy()
        assert np.allclose(found, model(images).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="fixed image size"):
        save_program(model, tmp_path / "open", {"images": [None, 3, None, None]})


def check_equal(model: nn.Layer, file, *shapes: tuple[int, int, int]) -> None:
    """Compare ONNX Runtime with eager mode on batches of ``(batch, height, width)``."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch, height, width in shapes:
        images = rng.standard_normal((batch, 3, height, width), np.float32)
        with paddle.no_grad():
            expected = model(paddle.to_tensor(images)).numpy()
        (found,) = session.run(["logits"], {"images": images})
        assert np.abs(found - expected).max() < 1e-4
        assert np.abs(expected).max() > 1e-2


@pytest.mark.slow
def test_a_fixed_size_takes_any_batch_and_leaves_the_model_as_it_was(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("paddle2onnx")
    model.train()
    try:
        before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
        export_onnx(
            model, tmp_path / "new" / "model.onnx", {"images": [None, 3, 40, 40]}, ["logits"]
        )  # the pale does not divide the first map
        assert model.training
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all((after[name].numpy() == value).all() for name, value in before.items())
    finally:
        model.eval()
    check_equal(model, tmp_path / "new" / "model.onnx", (1, 40, 40), (3, 40, 40))
    graph = onnx.load(tmp_path / "new" / "model.onnx").graph
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    assert not any(node.op_type == "Constant" for node in graph.node)
    assert sum(np.prod(tensor.dims) for tensor in graph.initializer) > 1e5  # the weights are where tools look for them
    assert not any(node.op_type == "Pad" for node in graph.node)  # paddle2onnx converts them wrongly


@pytest.mark.slow
def test_an_open_size_takes_maps_smaller_than_the_pale_and_maps_that_it_does_not_divide(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("paddle2onnx")
    export_onnx(model, tmp_path / "model.onnx", {"images": [None, 3, None, None]}, ["logits"])
    check_equal(model, tmp_path / "model.onnx", (1, 64, 64), (2, 32, 32), (3, 96, 72), (1, 40, 129))
    count = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert count["Floor"] == 4 * 2  # groups of rows and of columns, once a stage and not once a block or a tensor
    assert count["Identity"] == 0


@pytest.mark.slow
def test_what_paddle2onnx_cannot_convert_is_one_line(tmp_path):
    pytest.importorskip("paddle2onnx")

    class Unknown(nn.Linear):
        def forward(self, images):
            return paddle.linalg.svd(images @ self.weight)[1]

    with pytest.raises(UserError, match=r"paddle2onnx cannot convert this model: .*(?i:unsupported|not supported)"):
        export_onnx(Unknown(32, 32), tmp_path / "model.onnx", {"images": [None, 3, 32, 32]}, ["logits"])
    assert not (tmp_path / "model.onnx").exists()


def test_a_path_that_paddle_cannot_take_is_one_line(tmp_path):
    graph = tmp_path / os.fsdecode(b"M\xfcller.json")
    graph.write_text("{}")
    with pytest.raises(UserError, match="Paddle Inference cannot load "):
        load_program(graph, graph.with_suffix(".pdiparams"))


def test_a_missing_paddle2onnx_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-export\.txt"):
        convert_to_onnx(tmp_path / "inference.json", tmp_path / "inference.pdiparams", tmp_path / "m.onnx", ["logits"])


@pytest.mark.slow
def test_modules_of_the_present_folder_are_not_imported(model, tmp_path, monkeypatch):
    pytest.importorskip("paddle2onnx")
    (tmp_path / "paddle2onnx.py").write_text("from pathlib import Path\nPath(__file__).with_name('has_run').touch()\n")
    monkeypatch.chdir(tmp_path)
    export_onnx(model, "model.onnx", {"images": [None, 3, 32, 32]}, ["logits"])
    assert not (tmp_path / "has_run").exists()
    assert (tmp_path / "model.onnx").stat().st_size


def test_openvino_computes_the_same_with_three_axes_for_each_size(tmp_path):
    openvino = pytest.importorskip("openvino")
    ops, rng = openvino.opset13, np.random.default_rng(0)
    images = ops.parameter([1, 6, -1, -1], np.float32, name="images")
    kernels = rng.standard_normal((4, 6, 3, 3), np.float32)
    maps = ops.transpose(ops.convolution(images, kernels, [1, 1], [1, 1], [1, 1], [1, 1]), [0, 2, 3, 1])
    plain = openvino.Model([maps], [images])
    openvino.save_model(plain, tmp_path / "model.xml", compress_to_fp16=False)
    expected = export_formats._openvino_core().compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    run = open_openvino(tmp_path / "model.xml", "f32")
    for height, width in ((5, 7), (5, 7), (8, 3)):  # the first, of which the sizes are fixed, again, and another
        image = rng.standard_normal((1, 6, height, width), np.float32)
        (found,) = run({"images": image})
        assert found.shape == (1, height, width, 4)
        np.testing.assert_allclose(found, expected(image)[0], rtol=1e-4, atol=1e-5)
    changed = export_formats._transpose_three_axes(plain)
    axes = [
        op.input_value(1).get_node().get_data().tolist()
        for op in changed.get_ops()
        if op.get_type_name() == "Transpose"
    ]
    assert axes == [[0, 2, 1]]


def test_signals_are_handled_after_another_thread_has_freed_a_model_of_openvino(tmp_path):
    openvino = pytest.importorskip("openvino")
    ops = openvino.opset13
    images = ops.parameter([1, 3, 8, 8], np.float32, name="images")
    openvino.save_model(openvino.Model([ops.relu(images)], [images]), tmp_path / "model.xml")
    code = (
        "import gc, signal, sys, threading\n"
        "import numpy as np\n"
        "from common.inference.export_formats import open_openvino\n"
        f"models = [open_openvino({str(tmp_path / 'model.xml')!r})]\n"
        "models[0]({'images': np.zeros((1, 3, 8, 8), np.float32)})\n"
        "thread = threading.Thread(target=lambda: (models.clear(), gc.collect()))\n"
        "thread.start()\n"
        "thread.join()\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('handled', sys.modules['openvino_telemetry'])\n"  # which would send events
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert (result.returncode, result.stdout) == (0, "handled None\n")


def test_what_openvino_cannot_do_is_told_with_the_remedy(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(UserError, match=r"OpenVINO cannot run .*model\.xml: "):
        open_openvino(tmp_path / "model.xml")
    monkeypatch.setattr(export_formats, "computes_in_bfloat16", lambda: False)
    with pytest.raises(UserError, match=r"-precision bf16: .*give f32"):
        open_openvino(tmp_path / "model.xml", "bf16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(export_formats, "_openvino_core", export_formats._openvino_core.__wrapped__)  # not kept
    with pytest.raises(UserError, match=r"pip install -r requirements-export\.txt"):
        open_openvino(tmp_path / "model.xml")
