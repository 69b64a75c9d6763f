"""Parameters whose names have changed, so that weights of former versions load."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

__all__ = ["rename_parameters"]

_QKV = ("query", "key", "value")


def rename_parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the parameters of version 0.1.0 their present names; others stay.

    In 0.1.0, query, key and value had a depthwise convolution and a BatchNorm each, of which there is one now, whose
    channels are those of the three one after the other.
    """
    renamed = {}
    for name, array in arrays.items():
        if match := re.fullmatch(r"(.*attention\.)(query|key|value)\.(depthwise|norm)\.(\w+)", name):
            prefix, part, layer, parameter = match.groups()
            names = [f"{prefix}{each}.{layer}.{parameter}" for each in _QKV]
            if part == "query" and all(each in arrays for each in names):
                renamed[f"{prefix}qkv.{layer}.{parameter}"] = np.concatenate([arrays[each] for each in names])
        else:
            name = re.sub(r"(attention\.)(query|key|value)\.pointwise\.", r"\1qkv.\2.", name)
            name = re.sub(r"(stages\.0\.)position_embedding\.", r"\1blocks.0.position_encoding.", name)
            renamed[name] = array
    return renamed
