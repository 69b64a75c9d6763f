"""Pale Transformer: the model, and everything that more than one task uses. Installed, this is ``pale_transformer``."""

from __future__ import annotations

import os
import warnings
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
    "transforms_for": "transforms",
}

# What Paddle says when it is imported, builds a BatchNorm, traces a model or connects: nothing that a user can act on.
os.environ.setdefault("GLOG_minloglevel", "2")
for _message in (
    "No ccache found",
    "When training, we now always track global mean",
    "Tensor do not have 'place' interface",
):
    warnings.filterwarnings("ignore", message=_message)


def __getattr__(name: str) -> Any:
    """Import the model at the first access: importing Paddle takes seconds, which ``-h`` does not need."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        # The package does not require Paddle: its builds for CPUs and GPUs have different names.
        raise ImportError(
            "PaddlePaddle is not installed: pip install paddlepaddle==3.3.1 (CPU), or the paddlepaddle-gpu for your "
            "version of CUDA, see https://www.paddlepaddle.org.cn/en/install/quick"
        ) from None
