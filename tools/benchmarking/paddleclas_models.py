"""Models of paddleclas, loaded from its files: importing the package itself asks for much that they do not need."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from paddle import nn

from common.errors import UserError
from tools.benchmarking.stub_packages import register_packages

__all__ = ["MODELS", "create_paddleclas_model"]

# The name after "paddleclas:" -> module below ppcls.arch.backbone, and its function.
MODELS = {
    "swin_tiny": ("legendary_models.swin_transformer", "SwinTransformer_tiny_patch4_window7_224"),
    "cswin_tiny": ("model_zoo.cswin_transformer", "CSWinTransformer_tiny_224"),
    "convnext_tiny": ("model_zoo.convnext", "ConvNeXt_tiny"),
}
_BACKBONES = "paddleclas.ppcls.arch.backbone"
_PACKAGES = (
    *("paddleclas", "paddleclas.ppcls", "paddleclas.ppcls.utils", "paddleclas.ppcls.arch", _BACKBONES),
    *(f"{_BACKBONES}.legendary_models", f"{_BACKBONES}.model_zoo"),
)


def create_paddleclas_model(name: str) -> nn.Layer:
    """Build a model of 1000 classes with random weights.

    Args:
        name: a key of MODELS.

    Raises:
        UserError: paddleclas is not installed, or the name is unknown.
    """
    if name not in MODELS:
        raise UserError(f"unknown peer paddleclas:{name}; choose one of {', '.join(MODELS)}")
    package = importlib.util.find_spec("paddleclas")  # finds it without importing it
    if package is None:
        raise UserError("paddleclas is not installed: pip install --no-deps -r requirements-peers-paddle.txt")
    register_packages(Path(package.origin).parents[1], *_PACKAGES)
    module, function = MODELS[name]
    return getattr(importlib.import_module(f"{_BACKBONES}.{module}"), function)()
