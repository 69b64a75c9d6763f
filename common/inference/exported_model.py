"""A folder that ``tools/export.py`` wrote: a model, and what it takes to run it without this project.

::

    inference.json, inference.pdiparams   for Paddle Inference (inference.pdmodel before Paddle 3)
    model.onnx                            for ONNX Runtime and others
    labels.txt                            one class a line, in the order of the model's outputs
    preprocessing.json                    what is done to an image before it goes in
    config.yaml                           the configuration that the model was trained with
    model_card.json                       what the model is, its inputs and outputs, and how it was checked
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ..checkpoints.download import sha256_of
from ..checkpoints.released import list_weights
from ..errors import UserError, one_line
from .inference_program import GRAPHS, PROGRAM_FILES, load_program
from .onnx_session import open_onnx

__all__ = [
    "CARD",
    "CONFIG",
    "LABELS",
    "ONNX",
    "PREPROCESSING",
    "ExportedModel",
    "find_exported",
    "open_file",
    "refuse_exported",
    "refuse_other_files",
    "replace_exported",
]

CARD = "model_card.json"
CONFIG = "config.yaml"
LABELS = "labels.txt"
ONNX = "model.onnx"
PREPROCESSING = "preprocessing.json"


def find_exported(source: str) -> Path | None:
    """The file to run if a source is an exported folder or a file in one; None for anything else, such as weights.

    Of a folder, that is Paddle's if it has it, else the ONNX file.

    Raises:
        UserError: a folder holds no exported model.
    """
    path = Path(source).expanduser()
    if any(row.tag == source for row in list_weights()):
        return None
    if path.is_dir():
        file = next((path / name for name in (*GRAPHS, ONNX) if (path / name).is_file()), None)
        if file is None:
            raise UserError(f"{source} holds no exported model ({GRAPHS[0]} or {ONNX}); write one with tools/export.py")
        return file
    return path if path.name in (*GRAPHS, ONNX) or path.suffix == ".onnx" else None


def refuse_exported(source: str) -> None:
    """Stop where weights are needed and a source is an exported model.

    Raises:
        UserError: it is, or it is a folder.
    """
    if find_exported(source):
        raise UserError(f"-pretrained {source} is exported already; give the weights, which its {CARD} names")


def replace_exported(new: Path, folder: Path) -> list[Path]:
    """Move the files of an exported model into a folder, and remove those of an earlier one there.

    Returns:
        The files, where they now are.

    Raises:
        UserError: see :func:`refuse_other_files`.
        OSError: one cannot be moved or removed.
    """
    refuse_other_files(folder)
    for name in (*PROGRAM_FILES, ONNX):
        (folder / name).unlink(missing_ok=True)
    # The card comes last: should this stop half-way, the old one says that the folder was an export.
    files = sorted(new.iterdir(), key=lambda file: (file.name == CARD, file.name))
    return [file.replace(folder / file.name) for file in files]


def refuse_other_files(folder: Path) -> None:
    """Stop where an export would replace files of these names that are of no export, as a run's ``config.yaml``.

    Raises:
        UserError: the folder has such files, and no card.
    """
    names = [] if (folder / CARD).exists() else [*PROGRAM_FILES, ONNX, LABELS, PREPROCESSING, CONFIG]
    others = [name for name in names if (folder / name).exists()]
    if others:
        raise UserError(f"{folder} holds {', '.join(others)} of something else (no {CARD}); give another -out")


def open_file(file: Path, device: str = "cpu") -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """Open a file of a model in its runtime.

    Args:
        file: an ONNX file, or a graph beside its weights.
        device: ``cpu``, ``gpu`` or ``gpu:N``.

    Returns:
        A function from the inputs by name to the outputs in their order.

    Raises:
        UserError: a package is missing, or the runtime cannot load it.
    """
    if file.suffix == ".onnx":
        session = open_onnx(file, device=device)
        return lambda inputs: session.run(None, dict(inputs))
    return load_program(file, file.with_suffix(".pdiparams"), device)


class ExportedModel:
    """A model in its runtime.

    Args:
        file: from :func:`find_exported`.
        device: Paddle's name of it, as ``paddle.device.get_device()`` gives it.

    Attributes:
        card: what is in ``model_card.json``.
        config: the configuration it was trained with, as yaml.
        class_names: of the outputs, in their order.

    Raises:
        UserError: files are missing or damaged, or the runtime cannot load the model.
    """

    def __init__(self, file: Path, device: str = "cpu"):
        if not file.is_file():
            raise UserError(f"no such file: {file}; write it with tools/export.py")
        self.file = file
        self.card = self._read_card()
        self._check_files()
        self.config, self.class_names = self._read(CONFIG), self._read_labels()
        self._run = open_file(file, device)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run it; inputs and outputs by the names in the card.

        Raises:
            UserError: the inputs are of other shapes than the model takes, or the runtime fails.
        """
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        if not all(_fits(arrays[row["name"]].shape, row["shape"]) for row in self.card["inputs"]):
            taken = ", ".join(f"{row['name']} {row['shape']}" for row in self.card["inputs"])
            raise UserError(
                f"{self.file} takes {taken}, and was given {shapes}; bring such images, or export it without -size"
            )
        try:
            outputs = self._run(arrays)
        except Exception as error:
            raise UserError(f"{self.file} fails on {shapes}: {one_line(error)}") from error
        names = [row["name"] for row in self.card["outputs"]]
        return {name: paddle.to_tensor(array) for name, array in zip(names, outputs, strict=True)}

    def _read(self, name: str) -> str:
        path = self.file.parent / name
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"cannot read {path}, which belongs to {self.file.name}: {reason}; export the model again"
            ) from error

    def _check_files(self) -> None:
        """Compare with the card what, when it is damaged, need not fail.

        Paddle Inference computes NaN without the file of weights, and half a configuration is one, too.
        """
        weights = [] if self.file.suffix == ".onnx" else [f"{self.file.stem}.pdiparams"]
        for name in [self.file.name, *weights, CONFIG]:
            path = self.file.parent / name
            if not path.is_file():
                raise UserError(f"no such file: {path}, which belongs to {self.file.name}; export the model again")
            described = self.card["files"].get(name, {}).get("sha256")
            if described and described != sha256_of(path):
                raise UserError(f"{path} is not the file that {CARD} describes; export the model again")

    def _read_labels(self) -> list[str]:
        labels = self._read(LABELS).removesuffix("\n").split("\n")  # splitlines knows more ends than files have
        if len(labels) != self.card["classes"]:
            raise UserError(
                f"{self.file.parent / LABELS} has {len(labels)} lines and the model {self.card['classes']} classes; "
                "export the model again"
            )
        return labels

    def _read_card(self) -> dict[str, Any]:
        try:
            card = json.loads(self._read(CARD))
            if not all(row["name"] and row["shape"] for row in [*card["inputs"], *card["outputs"]]):
                raise ValueError("an input or output has no name or shape")
            if not isinstance(card["task"], str):
                raise ValueError(f"task is {card['task']!r}")
            if not all(isinstance(row, dict) for row in card["files"].values()):
                raise ValueError("files have no descriptions")
            if not isinstance(card["classes"], int):
                raise ValueError(f"classes is {card['classes']!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.file.parent / CARD} is no model card of this project ({error}); export the model again"
            ) from error
        return card


def _fits(shape: Sequence[int], taken: Sequence[int | str]) -> bool:
    """Whether an array of a shape can go into an input, some of whose dimensions may be open, and have a name."""
    return len(shape) == len(taken) and all(
        side == want or isinstance(want, str) for side, want in zip(shape, taken, strict=True)
    )
