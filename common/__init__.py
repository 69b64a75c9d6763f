"""Pale Transformer: the model, and everything that more than one task uses."""

from __future__ import annotations

from typing import Any

import numpy  # noqa: F401  (before paddle: the zlib that paddle 2.6 loads breaks Pillow's PNG reader otherwise)

from .runtime.cpu_settings import use_fast_gemm

__version__ = "0.2.0"
__all__ = [
    "PSAttention",
    "PaleFeatures",
    "PaleTransformer",
    "__version__",
    "create_model",
    "list_models",
    "register_model",
    "set_cpu_settings",
    "transforms_for",
]

use_fast_gemm()

_MODULES = {
    "PSAttention": "pale_attention",
    "PaleFeatures": "pale_transformer",
    "PaleTransformer": "pale_transformer",
    "create_model": "pale_transformer",
    "list_models": "model_names",
    "register_model": "layers.variants",
    "set_cpu_settings": "runtime.cpu_settings",
    "transforms_for": "inference.transforms",
}


def __getattr__(name: str) -> Any:
    """Import the model at the first access: importing Paddle takes seconds, which ``-h`` does not need."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
