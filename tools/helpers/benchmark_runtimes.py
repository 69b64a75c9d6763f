"""What tools/benchmark.py measures: models of three libraries, and the runtimes that execute them."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from common.errors import UserError
from common.inference.export_formats import export_onnx, load_program, open_onnx, open_openvino, save_program
from common.pale_transformer import create_model, list_models

__all__ = ["RUNTIMES", "Case", "Step", "is_possible", "peer_versions"]

ROOT = Path(__file__).resolve().parents[2]
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"

Step = Callable[[], Any]  # one forward pass or one train step, finished when it returns

peer_versions: set[str] = set()  # of timm and PyTorch, after an export


@dataclass(frozen=True)
class Case:
    """One model in one runtime.

    Attributes:
        model: a name of ``create_model``, ``paddleclas:NAME`` or ``timm:NAME``.
        runtime: a key of ``RUNTIMES``.
        mode: ``infer``, a forward pass; or ``train``: forward, cross entropy, backward, a step of AdamW.
        batch: images in a batch.
        size: height and width of the images.
        threads: threads to compute with on the CPU.
        device: ``cpu``, ``gpu`` or ``gpu:N``.
        amp: automatic mixed precision in bfloat16.
    """

    model: str
    runtime: str
    mode: str
    batch: int
    size: int
    threads: int
    device: str
    amp: bool


def is_possible(case: Case) -> bool:
    """Whether the runtime supports the model, the mode and the precision."""
    if case.runtime in ("eager", "static"):
        return not case.model.startswith("timm:")
    if case.mode == "train" or case.amp:
        return False
    return case.runtime != "inference" or not case.model.startswith("timm:")


# ---- models


def _build_model(case: Case) -> nn.Layer:
    """Build a Paddle model of 1000 classes with random weights.

    Raises:
        UserError: the model does not exist, or paddleclas is not installed.
    """
    paddle.seed(0)
    library, _, name = case.model.rpartition(":")
    if library == "paddleclas":
        model = _build_paddleclas_model(name)
    elif library or name not in list_models():
        raise UserError(f"unknown model {case.model}; choose {', '.join(list_models())}, paddleclas:NAME or timm:NAME")
    else:
        model = create_model(name, drop_path_rate=0.2)  # as the peers
        if case.mode == "infer":
            model.fuse()  # as predictions and exported models are
    model.train() if case.mode == "train" else model.eval()
    return model


_BACKBONES = "paddleclas.ppcls.arch.backbone"
# Name after "paddleclas:" -> module in the folder of backbones, and function.
PADDLECLAS_MODELS = {
    "swin_tiny": ("legendary_models.swin_transformer", "SwinTransformer_tiny_patch4_window7_224"),
    "cswin_tiny": ("model_zoo.cswin_transformer", "CSWinTransformer_tiny_224"),
    "convnext_tiny": ("model_zoo.convnext", "ConvNeXt_tiny"),
}


def _build_paddleclas_model(name: str) -> nn.Layer:
    if name not in PADDLECLAS_MODELS:
        raise UserError(f"unknown model paddleclas:{name}; choose {', '.join(PADDLECLAS_MODELS)}")
    _stub_paddleclas()
    module_name, function = PADDLECLAS_MODELS[name]
    return getattr(importlib.import_module(f"{_BACKBONES}.{module_name}"), function)()


def _stub_paddleclas() -> None:
    """Register empty parent packages: the real ones import what its backbones do not need and is not installed."""
    if _BACKBONES in sys.modules:
        return
    package = importlib.util.find_spec("paddleclas")
    if package is None or package.origin is None:
        raise UserError("paddleclas is not installed: pip install --no-deps paddleclas==2.6.0")
    parents = ["paddleclas", "paddleclas.ppcls", "paddleclas.ppcls.utils", "paddleclas.ppcls.arch", _BACKBONES]
    for name in (*parents, f"{_BACKBONES}.legendary_models", f"{_BACKBONES}.model_zoo"):
        module = types.ModuleType(name)
        module.__path__ = [str(Path(package.origin).parents[1].joinpath(*name.split(".")))]
        sys.modules[name] = module


def _export_onnx(case: Case, file: Path) -> None:
    if not case.model.startswith("timm:"):
        # Any size, as tools/export.py writes by default where that is possible.
        is_open = case.model in list_models() and not paddle.__version__.startswith("2.")
        side = None if is_open else case.size
        export_onnx(_build_model(case), file, {"images": [None, 3, side, side]}, ["logits"])
        return
    script = Path(__file__).with_name("export_timm.py")
    command = [PEER_PYTHON, script, case.model.removeprefix("timm:"), str(case.batch), str(case.size), file]
    if not PEER_PYTHON.exists():
        raise UserError(f"{case.model} needs .venv-peers with timm; docs/performance.md has the commands")
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"cannot export {case.model}: {(result.stderr.strip().splitlines() or ['no message'])[-1]}")
    peer_versions.add(result.stdout.strip().splitlines()[-1])


# ---- runtimes: each builds the model of a case and returns its step


def _images(case: Case) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((case.batch, 3, case.size, case.size)).astype(np.float32)


def _eager(case: Case, model: nn.Layer | None = None) -> Step:
    model = model or _build_model(case)
    images = paddle.to_tensor(_images(case))
    step = _train_step(model, images) if case.mode == "train" else lambda: model(images)

    def run() -> None:
        with paddle.amp.auto_cast(enable=case.amp, dtype="bfloat16"), paddle.set_grad_enabled(case.mode == "train"):
            step()
        if case.device != "cpu":
            paddle.device.synchronize()

    return run


def _train_step(model: nn.Layer, images: paddle.Tensor) -> Step:
    labels = paddle.randint(0, 1000, [images.shape[0]])
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters(), weight_decay=0.05)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def _static(case: Case) -> Step:
    return _eager(case, paddle.jit.to_static(_build_model(case), full_graph=True))


def _paddle_inference(case: Case) -> Step:
    images = _images(case)
    with tempfile.TemporaryDirectory() as folder:
        files = save_program(_build_model(case), folder, {"images": images.shape})
        program = load_program(*files, case.device, threads=case.threads)
    return lambda: program({"images": images})


def _onnx_runtime(case: Case) -> Step:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _export_onnx(case, file)
        session = open_onnx(file, case.threads, case.device)
    inputs = {"images": _images(case)}
    return lambda: session.run(None, inputs)


def _openvino(case: Case, precision: str) -> Step:
    inputs = {"images": _images(case)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _export_onnx(case, file)
        model = open_openvino(file, precision, case.threads)
    return lambda: model(inputs)


# What -runtime can name. To add one, add its function here, and what it cannot do to is_possible.
RUNTIMES: dict[str, Callable[[Case], Step]] = {
    "eager": _eager,
    "static": _static,
    "inference": _paddle_inference,
    "onnxruntime": _onnx_runtime,
    "openvino_f32": partial(_openvino, precision="f32"),
    "openvino_bf16": partial(_openvino, precision="bf16"),
}
