"""The folder that ``tools/export.py`` writes: a model, and all that is needed to run it without this project.

::

    inference.json, inference.pdiparams   for Paddle Inference (inference.pdmodel before Paddle 3)
    model.onnx                            for ONNX Runtime and others
    model.xml, model.bin                  for OpenVINO
    labels.txt                            one class per line, in the order of the model's outputs
    preprocessing.json                    the preprocessing of an image
    config.yaml                           the configuration of the training
    model_card.json                       the model, its inputs and outputs, and how it was checked
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import paddle
from paddle import Tensor

from ..checkpoints.download import sha256_of
from ..checkpoints.released import list_tags
from ..data.class_names import MAX_CLASSES, printable_names
from ..errors import UserError, one_line
from ..runtime.folders import locked
from ..runtime.regular_file import is_regular, read_lines
from ..schema import Range, check_value, read_json
from .export_formats import FORMATS, open_openvino

__all__ = [
    "CARD",
    "CONFIG",
    "LABELS",
    "PREPROCESSING",
    "ExportedModel",
    "find_exported",
    "refuse_exported",
    "refuse_other_files",
    "replace_exported",
]

CARD = "model_card.json"
CONFIG = "config.yaml"
LABELS = "labels.txt"
PREPROCESSING = "preprocessing.json"
_MAX_TEXT = 2**24  # bytes of LABELS and CONFIG


@dataclass(frozen=True)
class _File:
    sha256: str | None = None


@dataclass(frozen=True)
class _Port:
    """An input or output; open dimensions of its shape are names."""

    name: str
    shape: list[int | str]


@dataclass(frozen=True)
class Card:
    """What programs need of a model card."""

    task: str
    classes: Annotated[int, Range(1, MAX_CLASSES)]
    files: dict[str, _File]
    inputs: list[_Port]
    outputs: list[_Port]


_MODEL_FILES = [name for form in FORMATS.values() for name in (*form.names, *form.other_names)]


def find_exported(source: str) -> Path | None:
    """The model file of an exported folder, or the file itself; None if the source is something else, such as weights.

    Raises:
        UserError: a folder contains no exported model.
    """
    path = Path(source)
    if source in list_tags():
        return None
    names = [name for form in FORMATS.values() for name in form.names]
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"{source} contains no exported model ({' or '.join(names)}); create one with tools/export.py, or give "
            "a file of weights, such as best.pdparams"
        )
    return path if path.name in names or path.suffix == ".onnx" else None


def refuse_exported(source: str) -> None:
    """Refuse an exported model where weights are needed.

    Raises:
        UserError: the source is an exported model, or a folder.
    """
    if find_exported(source):
        raise UserError(f"-pretrained {source} is an exported model; give the weights that are named in its {CARD}")


def refuse_other_files(folder: Path) -> None:
    """Refuse a folder in which an export would overwrite other files, such as a run's ``config.yaml``.

    Raises:
        UserError: the folder has files of these names, and no model card of an export.
    """
    names = [] if _is_card(folder / CARD) else [*_MODEL_FILES, LABELS, PREPROCESSING, CONFIG, CARD]
    others = [name for name in names if (folder / name).exists()]
    if others:
        raise UserError(
            f"{folder} contains files that are not from tools/export.py ({', '.join(others)}); give another -out"
        )


def _is_card(path: Path) -> bool:
    """Whether a file is the model card of an export; other programs have files of that name, too."""
    try:
        check_value(read_json(path, CARD), Card, CARD)
    except (OSError, UserError):
        return False
    return True


def replace_exported(new: Path, folder: Path) -> list[Path]:
    """Move the files of an exported model into a folder, in place of those of an earlier export.

    Returns:
        The files in their new place.

    Raises:
        UserError: see :func:`refuse_other_files`.
        OSError: a file cannot be moved or removed.
    """
    # The card comes last: if this is interrupted, the old card still marks the folder as an export.
    files = sorted(new.iterdir(), key=lambda file: (file.name == CARD, file.name))
    with locked(folder):  # two exports may end at the same moment
        refuse_other_files(folder)
        moved = [file.replace(folder / file.name) for file in files]
        for name in set(_MODEL_FILES) - {file.name for file in moved}:
            (folder / name).unlink(missing_ok=True)
    return moved


class ExportedModel:
    """An exported model in its runtime.

    Args:
        file: from :func:`find_exported`.
        device: Paddle's name of it, as from ``paddle.device.get_device()``; OpenVINO always runs on the CPU.
        precision: for OpenVINO, see :func:`common.inference.export_formats.open_openvino`.

    Attributes:
        card: the part of ``model_card.json`` that programs need.
        config: the configuration of the training, as yaml.
        class_names: in the order of the outputs.

    Raises:
        UserError: files are missing or damaged, or the runtime cannot load the model.
    """

    def __init__(self, file: Path, device: str = "cpu", precision: str | None = None):
        if not file.is_file():
            raise UserError(f"no such file: {file}; create it with tools/export.py")
        self.file = file
        self.card = self._read_card()
        self._check_files()
        self.config, self.class_names = "\n".join(self._read_lines(CONFIG)), self._read_labels()
        if file.suffix == ".xml":
            self._run = open_openvino(file, precision)
        elif precision:
            raise UserError(f"-precision {precision}: only OpenVINO has a choice; {file.name} computes in f32")
        else:
            self._run = FORMATS["onnx" if file.suffix == ".onnx" else "paddle"].open(file, device)

    def require(self, *outputs: str) -> None:
        """Raise ``UserError`` if the model does not have these outputs, named in the card."""
        missing = set(outputs) - {port.name for port in self.card.outputs}
        if missing:
            raise UserError(f"{self.file.parent / CARD} names no output {min(missing)}; export the model again")

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the model; inputs and outputs have the names in the card.

        Raises:
            UserError: the inputs have wrong shapes, the runtime fails, or the outputs are others than in the card.
        """
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        if not all(port.name in arrays and _fits(arrays[port.name].shape, port.shape) for port in self.card.inputs):
            taken = ", ".join(f"{port.name} {port.shape}" for port in self.card.inputs)
            raise UserError(
                f"{self.file} needs inputs of shape {taken}, not {shapes}; use images of that size, or export the "
                "model without -size"
            )
        try:
            outputs = self._run(arrays)
        except Exception as error:
            raise UserError(f"{self.file} fails on {shapes}: {one_line(error)}") from error
        ports = self.card.outputs
        if len(outputs) != len(ports) or not all(
            isinstance(array, np.ndarray) and array.dtype == np.float32 and _fits(array.shape, port.shape)
            for array, port in zip(outputs, ports, strict=True)
        ):
            raise UserError(f"{self.file} has other outputs than {CARD} describes; export the model again")
        return {port.name: paddle.to_tensor(array) for array, port in zip(outputs, ports, strict=True)}

    def check_shape(self, outputs: Mapping[str, Tensor], name: str, shape: Sequence[int | None]) -> None:
        """Raise ``UserError`` if one of the outputs has another shape than the task needs; None is any side."""
        found = outputs[name].shape
        if len(found) != len(shape) or any(want not in (None, side) for side, want in zip(found, shape, strict=True)):
            raise UserError(f"{self.file}: {name} has the shape {found}, not {list(shape)}; export the model again")

    def _read_lines(self, name: str) -> list[str]:
        path = self.file.parent / name
        try:
            if path.stat().st_size > _MAX_TEXT:
                raise OSError(errno.EFBIG, f"It has more than {_MAX_TEXT:,} bytes")
            return list(read_lines(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"cannot read {path} of {self.file.name}: {reason}; export the model again") from error

    def _check_files(self) -> None:
        """Compare the files with the card, since a damaged file need not fail.

        Paddle Inference computes NaN without weights, half a configuration is a valid one, and so are labels in another
        order.
        """
        weights = {".onnx": [], ".xml": [".bin"]}.get(self.file.suffix, [".pdiparams"])
        for name in [self.file.name, *(self.file.stem + suffix for suffix in weights), CONFIG, LABELS]:
            path = self.file.parent / name
            if not path.is_file():
                raise UserError(f"no such file: {path} of {self.file.name}; export the model again")
            if not is_regular(path):  # a runtime would wait for it
                raise UserError(f"{path} is not a regular file; export the model again")
            described = self.card.files[name].sha256 if name in self.card.files else None
            if described and described != sha256_of(path):
                raise UserError(f"{path} is not the file that {CARD} describes; export the model again")

    def _read_labels(self) -> list[str]:
        labels = self._read_lines(LABELS)
        if len(labels) != self.card.classes:
            raise UserError(
                f"{self.file.parent / LABELS} has {len(labels)} lines and the model {self.card.classes} classes; "
                "export the model again"
            )
        return printable_names(labels)

    def _read_card(self) -> Card:
        path = self.file.parent / CARD
        try:
            return check_value(read_json(path, f"the model card {path}"), Card, f"the model card {path}")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; export the model again") from error
        except UserError as error:
            raise UserError(f"{error}; export the model again") from error


def _fits(shape: Sequence[int], taken: Sequence[int | str]) -> bool:
    """Whether an input takes arrays of a shape. Open dimensions of the input are names."""
    return len(shape) == len(taken) and all(
        side == want or isinstance(want, str) for side, want in zip(shape, taken, strict=True)
    )
