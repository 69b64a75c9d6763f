"""Parameter names of earlier versions, so that their weights and training states still load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["rename_keys", "reorder_statistics"]

# (regular expression, replacement), applied in this order to every key. A pattern must not match a name of today.
# Keys of an optimizer's state are "<parameter name>/<accumulator>", so that patterns must not end with "$".
_RENAMES = (
    # 0.1.0: each of query, key and value had a projection of its own; pointwise layers are still one each.
    (r"attention\.(query|key|value)\.pointwise\.", r"attention.qkv.\1."),
    (r"stages\.0\.position_embedding\.", r"stages.0.blocks.0.position_encoding."),
)
# Layers that only wrap a model name it in all parameters: DataParallel of PyTorch and of Paddle, and training loops.
_WRAPPERS = ("module.", "_layers.", "model.")
# 0.1.0: what is one layer with the channels of query, key and value one after the other.
_JOINED = re.compile(r"attention\.(query|key|value)\.(depthwise|norm)\.")


def rename_keys(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Give weights, or the accumulators of an optimizer, the parameter names of this version."""
    for prefix in _WRAPPERS:
        if arrays and all(isinstance(name, str) and name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    renamed: dict[str, Any] = {}
    for name, array in arrays.items():
        if isinstance(name, str):
            if match := _JOINED.search(name):
                names = [name.replace(match[0], f"attention.{each}.{match[2]}.") for each in ("query", "key", "value")]
                parts = [arrays[each] for each in names if isinstance(arrays.get(each), np.ndarray)]
                # What cannot be joined is damaged, and is then missing in the model.
                if len(parts) == len(names) and len({part.shape for part in parts}) == 1:
                    if match[1] == "query":
                        renamed[_JOINED.sub(r"attention.qkv.\2.", name)] = _join(parts)
                    continue
            for pattern, replacement in _RENAMES:
                name = re.sub(pattern, replacement, name)
        renamed[name] = array
    return renamed


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    """Concatenate parameters; of the optimizer's scalars, which are equal, take the first."""
    return np.concatenate(arrays) if arrays[0].size > 1 else arrays[0]


def reorder_statistics(rows: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Bring BatchNorm statistics of ranks, ``[ranks, values]``, from the order of these weights into today's order."""
    places, start = {}, 0
    for name, array in weights.items():
        if str(name).endswith(("._mean", "._variance")) and isinstance(array, np.ndarray):
            places[name] = np.arange(start, start + array.size)
            start += array.size
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != start:
        return rows  # damaged, which shows when they are restored
    return rows[:, np.concatenate(list(rename_keys(places).values()))] if places else rows
