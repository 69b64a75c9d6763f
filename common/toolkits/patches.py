"""Replace functions of PaddleSeg and PaddleDetection that fail with a newer Paddle than they were written for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import paddle

__all__ = ["apply", "is_patched_version", "minimize", "namespace"]


def apply(owner: Any, name: str, replacement: Any, paddle_versions: tuple[str, ...] = ("2.6", "3.")) -> None:
    """Set an attribute of a module or a class, if the installed version of Paddle needs it.

    Args:
        owner: the module or class.
        name: its attribute.
        replacement: the new value.
        paddle_versions: prefixes of the versions of Paddle that need the patch.
    """
    if paddle.__version__.startswith(paddle_versions):
        setattr(owner, name, replacement)


def is_patched_version(toolkit: str, installed: str, patched: Sequence[str]) -> bool:
    """Whether the installed toolkit is a version that the patches were written for; if not, warn."""
    if installed not in patched:
        versions = " and ".join(patched)
        warnings.warn(f"{toolkit} {installed} is not patched: the patches are for {versions}", stacklevel=2)
    return installed in patched


def namespace(module: Any, **replacements: Any) -> SimpleNamespace:
    """The names of a module, some of them replaced; to be set as a global of another module that uses it."""
    return SimpleNamespace(**{**vars(module), **replacements})


_original_minimize = paddle.amp.GradScaler.minimize


def minimize(self: paddle.amp.GradScaler, optimizer: paddle.optimizer.Optimizer, *args: Any, **kwargs: Any) -> tuple:
    """``GradScaler.minimize`` for both toolkits' training loops.

    Without it: TypeError for an optimizer with parameter groups. Paddle 2.6 and 3.
    """
    if not isinstance(optimizer._parameter_list[0], dict):
        return _original_minimize(self, optimizer, *args, **kwargs)
    self.step(optimizer)
    self.update()
    return None, None
