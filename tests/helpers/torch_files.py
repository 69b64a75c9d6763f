"""Files as ``torch.save`` writes them, without PyTorch: a pickle of protocol 2 and its storages in a zip."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


class Storage:
    """The numbers of an entry of the zip, as the pickle names them."""

    def __init__(self, kind: str, key: int, count: int):
        self.kind, self.key, self.count = kind, key, count


class Tensor:
    """A tensor whose every part the test chooses."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any):
        self.parts = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return _rebuild_tensor_v2, self.parts


def _rebuild_tensor_v2(*_: Any) -> None:
    """What the pickle calls; only its name counts."""


_rebuild_tensor_v2.__module__ = "torch._utils"


def write_torch_file(
    path: Path,
    value: Any,
    storages: Sequence[np.ndarray | bytes] = (),
    entries: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    leave_out: Collection[str] = (),
) -> None:
    """Write a value whose arrays become tensors.

    Args:
        storages: what the value's own ``Storage`` objects are about, by their keys.
        entries: further entries of the zip, or others in the place of the usual ones.
        leave_out: entries that are not written.
    """
    torch, utils, stored = ModuleType("torch"), ModuleType("torch._utils"), list(storages)
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in (*STORAGES.values(), "BFloat16Storage", "UntypedStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return "storage", getattr(torch, value.kind), str(value.key), "cuda:0", value.count
            return None

        def reducer_override(self, value):
            if not isinstance(value, np.ndarray):
                return NotImplemented
            stored.append(value)
            storage = Storage(STORAGES[value.dtype.name], len(stored) - 1, value.size)
            strides = tuple(stride // value.itemsize for stride in value.strides)
            return Tensor(storage, 0, value.shape, strides).__reduce__()

    buffer = io.BytesIO()
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        Pickler(buffer, 2).dump(value)
    parts = {"data.pkl": buffer.getvalue(), "byteorder": b"little", "version": b"3\n"}
    parts |= {f"data/{key}": data if isinstance(data, bytes) else data.tobytes() for key, data in enumerate(stored)}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (parts | dict(entries or {})).items():
            if name not in leave_out:
                archive.writestr(f"{path.stem}/{name}", data)
