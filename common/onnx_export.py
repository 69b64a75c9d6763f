"""Write a model as an ONNX file, with paddle2onnx."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from pathlib import Path

import paddle
from paddle import nn

from common.errors import UserError, one_line

__all__ = ["export_onnx"]

OPSET = 17  # the first with a LayerNormalization


def export_onnx(model: nn.Layer, path: str | Path, image_size: int | None = None) -> None:
    """Export what a model computes in evaluation.

    The file takes ``images`` float32 ``[batch, 3, height, width]``, with any batch. The model itself stays as it is.

    Args:
        model: maps such images to one tensor.
        path: of the ONNX file; its folder is made.
        image_size: fixes height and width in pixels, which lets runtimes prepare more; None leaves both open.

    Raises:
        UserError: paddle2onnx is not installed, cannot convert the model, or the file cannot be written.
    """
    try:
        # paddle2onnx lets polygraphy install packages behind one's back, unless polygraphy was configured before.
        import paddle2onnx
        import polygraphy.config  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-export.txt") from error
    path = Path(path)
    model = copy.deepcopy(model)
    model.eval()
    if hasattr(model, "fuse"):
        model.fuse()
    _replace_channels_last_norms(model)
    spec = paddle.static.InputSpec([None, 3, image_size, image_size], "float32", "images")
    with tempfile.TemporaryDirectory() as folder:
        paddle.jit.save(model, f"{folder}/model", input_spec=[spec])
        program = next(file for file in Path(folder).iterdir() if file.suffix in (".json", ".pdmodel"))
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                onnx_model = paddle2onnx.export(
                    str(program), f"{folder}/model.pdiparams", opset_version=OPSET, optimize_tool="None"
                )
            except Exception as error:
                raise UserError(f"paddle2onnx cannot convert {type(model).__name__}: {one_line(error)}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx_model)


class _Affine(nn.Layer):
    """What a BatchNorm is in evaluation, on channels-last maps."""

    def __init__(self, norm: nn.BatchNorm2D):
        super().__init__()
        scale = norm.weight / (norm._variance + norm._epsilon).sqrt()
        self.register_buffer("scale", scale.detach())
        self.register_buffer("shift", (norm.bias - norm._mean * scale).detach())

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x * self.scale + self.shift


def _replace_channels_last_norms(layer: nn.Layer) -> None:
    """Write each channels-last BatchNorm as a product and a sum: paddle2onnx takes their axes for channels-first."""
    for name, child in layer.named_children():
        if isinstance(child, nn.BatchNorm2D) and child._data_format == "NHWC":
            setattr(layer, name, _Affine(child))
        else:
            _replace_channels_last_norms(child)
