"""Models of paddleclas, loaded from its files: importing the package itself asks for much that they do not need."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

from common.errors import UserError

__all__ = ["MODELS", "create_paddleclas_model"]

# The name after "paddleclas:" -> module below ppcls.arch.backbone, and its function.
MODELS = {
    "swin_tiny": ("legendary_models.swin_transformer", "SwinTransformer_tiny_patch4_window7_224"),
    "cswin_tiny": ("model_zoo.cswin_transformer", "CSWinTransformer_tiny_224"),
    "convnext_tiny": ("model_zoo.convnext", "ConvNeXt_tiny"),
}
_PACKAGES = (
    "paddleclas",
    "paddleclas.ppcls",
    "paddleclas.ppcls.arch",
    "paddleclas.ppcls.arch.backbone",
    "paddleclas.ppcls.arch.backbone.legendary_models",
    "paddleclas.ppcls.arch.backbone.model_zoo",
    "paddleclas.ppcls.utils",
)


def create_paddleclas_model(name: str):
    """Build a model of 1000 classes with random weights.

    Args:
        name: a key of MODELS.

    Raises:
        UserError: paddleclas is not installed, or the name is unknown.
    """
    if name not in MODELS:
        raise UserError(f"unknown peer paddleclas:{name}; choose one of {', '.join(MODELS)}")
    spec = importlib.util.find_spec("paddleclas")  # finds it without importing it
    if spec is None:
        raise UserError(f"paddleclas:{name} needs paddleclas: pip install --no-deps -r requirements-peers-paddle.txt")
    _register_packages(Path(spec.origin).parent)
    module, function = MODELS[name]
    return getattr(importlib.import_module(f"paddleclas.ppcls.arch.backbone.{module}"), function)()


def _register_packages(root: Path) -> None:
    """Put empty packages where their ``__init__.py`` would import everything."""
    for name in _PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)
