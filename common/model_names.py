"""Names of the variants, and the arguments that they stand for."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

from .checkpoints.released import list_weights
from .layers.variants import VARIANTS

__all__ = ["list_models", "variant_settings"]


def list_models(pattern: str = "*", pretrained: str | bool = False) -> list[str]:
    """Names of the variants of ``create_model``, smallest first, then those of ``register_model``.

    Args:
        pattern: shell pattern, such as ``"pale_s*"``.
        pretrained: ``True`` for the variants with released weights, a tag for those with weights of that data set; see
            :func:`common.checkpoints.released.list_weights`.
    """
    names = fnmatch.filter(VARIANTS, pattern)
    if pretrained is False:
        return names
    with_weights = {row.model for row in list_weights() if pretrained in (True, row.tag)}
    return [name for name in names if name in with_weights]


def variant_settings(name: str, **overrides: Any) -> dict[str, Any]:
    """Arguments of the model for a variant, with overrides; an override of None changes nothing.

    Raises:
        ValueError: unknown name.
    """
    if name not in VARIANTS:
        close = difflib.get_close_matches(str(name), VARIANTS, n=1, cutoff=0.75)
        meant = f"did you mean {close[0]}? Available:" if close else "choose one of"
        raise ValueError(f"unknown model {name!r}; {meant} {', '.join(list_models())}")
    return {**VARIANTS[name], **{key: value for key, value in overrides.items() if value is not None}}
