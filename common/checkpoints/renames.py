"""Parameter names of earlier versions, so that their weights and training states still load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["rename_keys"]

# (regular expression, replacement), applied in this order to every key. A pattern must not match a name of today.
# Keys of an optimizer's state are "<parameter name>/<accumulator>", so that patterns must not end with "$".
_RENAMES: tuple[tuple[str, str], ...] = ()


def rename_keys(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Give weights, or the accumulators of an optimizer, the parameter names of this version."""
    renamed = {}
    for name, array in arrays.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name) if isinstance(name, str) else name
        renamed[name] = array
    return renamed
