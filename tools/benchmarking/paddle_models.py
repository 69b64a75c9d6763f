"""Paddle models, ours and paddleclas's, in eager mode, as static graphs, in Paddle Inference and in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F

from common.errors import UserError
from common.flops import count_flops
from common.inference.inference_program import load_program, save_program
from common.inference.onnx_export import export_onnx
from common.pale_attention import fuse
from common.pale_transformer import create_model, list_models
from common.runtime.device import select_device
from tools.benchmarking.onnx_session import load_onnx, quantize
from tools.benchmarking.paddleclas_models import create_paddleclas_model
from tools.benchmarking.runner import Runner, TimedRunner
from tools.benchmarking.subjects import Model

# What paddleclas builds Swin-T and CSWin-T with; it costs time in training only.
DROP_PATH = 0.2
# What Paddle Inference calls the dtypes.
_PRECISIONS = {"float32": "Float32", "float16": "Half", "bfloat16": "Bfloat16"}


def build(subject: Model) -> Runner:
    """Build a model with random weights in its runtime.

    Raises:
        UserError: the model or the device does not exist, or what the runtime needs is not installed.
    """
    model, images, flops = prepare(subject)
    if subject.in_onnx:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            export_onnx(model, file, {"images": [None, *images.shape[1:]]}, ["logits"])
            if subject.runtime == "onnxruntime_int8":
                file = quantize(file)
            return TimedRunner(load_onnx(file, [images.numpy()], subject.threads), flops, subject.batch)
    if subject.runtime == "inference":
        step = _inference(model, images, subject)
    else:
        if subject.runtime == "static":
            model = paddle.jit.to_static(model, full_graph=True)
        step = _train_step(model, images) if subject.mode == "train" else _forward(model, images)
    return TimedRunner(step if subject.device == "cpu" else _on_gpu(step, subject.dtype), flops, subject.batch)


def prepare(subject: Model) -> tuple[paddle.nn.Layer, paddle.Tensor, int | None]:
    """The model on its device, fused or to be trained, its images, and the floating-point operations of a run."""
    select_device(subject.device)
    paddle.set_flags({"FLAGS_use_stride_kernel": subject.strided})
    paddle.seed(0)
    model, flops = _create(subject)
    if subject.mode == "train":
        model.train()
    else:
        fuse(model)  # as tools/predict.py does; peers have nothing of the kind
    return model, paddle.randn([subject.batch, 3, subject.image_size, subject.image_size]), flops


def _on_gpu(step: Callable[[], Any], dtype: str) -> Callable[[], None]:
    """Run a step in mixed precision unless the dtype is float32, and wait for the GPU."""

    def run() -> None:
        with paddle.amp.auto_cast(enable=dtype != "float32", dtype="float16" if dtype == "float32" else dtype):
            step()
        paddle.device.synchronize()

    return run


def _create(subject: Model) -> tuple[paddle.nn.Layer, int | None]:
    """The model, and the floating-point operations of one run where they are counted."""
    library, _, name = subject.model.rpartition(":")
    if library == "paddleclas":
        return create_paddleclas_model(name), None  # its attention multiplies in functions, which cannot be counted
    if library or name not in list_models():
        raise UserError(
            f"unknown model {subject.model!r}; choose {', '.join(list_models())}, paddleclas:NAME or timm:NAME"
        )
    model = create_model(name, drop_path_rate=DROP_PATH)
    model.set_recompute(subject.recompute)
    # Counted on another model, because Paddle 2.6 cannot trace one twice.
    forward = 2 * subject.batch * count_flops(create_model(name), subject.image_size, subject.image_size)
    return model, forward if subject.mode == "forward" else 3 * forward  # the backward pass takes two such


def _forward(model: paddle.nn.Layer, images: paddle.Tensor) -> Callable[[], paddle.Tensor]:
    @paddle.no_grad()
    def step() -> paddle.Tensor:
        return model(images)

    return step


def _train_step(model: paddle.nn.Layer, images: paddle.Tensor) -> Callable[[], paddle.Tensor]:
    labels = paddle.randint(0, 1000, [images.shape[0]])
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters(), weight_decay=0.05)

    def step() -> paddle.Tensor:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss

    return step


def _inference(model: paddle.nn.Layer, images: paddle.Tensor, subject: Model) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = save_program(model, folder, {"images": images.shape})
        run_program = load_program(*files, subject.device, _PRECISIONS[subject.dtype], subject.threads)
    return partial(run_program, {"images": images.numpy()})
