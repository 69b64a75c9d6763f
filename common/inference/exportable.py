"""The description of a model that a task gives to ``tools/export.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from paddle import Tensor, nn

__all__ = ["Arrays", "Exportable", "Output"]

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Output:
    """An output of the model.

    Attributes:
        name: in ONNX files and in the model card.
        shape: a number, or the name of an open dimension, for each dimension.
        meaning: in one line.
    """

    name: str
    shape: Sequence[int | str]
    meaning: str


@dataclass(frozen=True)
class Exportable:
    """A model to export.

    Attributes:
        name: of the model.
        labels: names of the classes.
        layer: takes the inputs in their order, and returns the outputs as a tensor or a list of tensors.
        inputs: name and shape of each; the first are the images, ``[batch, channels, height, width]``. None is open.
        outputs: in their order.
        inputs_of: turns an image file into inputs of these names.
        preprocessing: the steps of ``inputs_of`` in plain values.
        postprocessing: what the user of the exported model has to do, in a few sentences.
        stride: heights and widths must be multiples of it.
        usual_size: height and width of preprocessed images, if they are always the same.
        size_key: the configuration key of ``usual_size``.
        takes_usual_size_only: the model can take no other size.
        reference: the outputs of the task's own model, where ``layer`` is another implementation of it.
        same_order: brings outputs into the order of the expected ones, ``same_order(expected, found)``, where the order
            is not defined.
        agreement: how well outputs in bfloat16 agree with the expected ones, ``agreement(expected, found)``, 0 to 1;
            None if there is nothing to compare.
        agreement_name: what that is.
    """

    name: str
    labels: Sequence[str]
    layer: nn.Layer
    inputs: dict[str, list[int | None]]
    outputs: Sequence[Output]
    inputs_of: Callable[[str], dict[str, Tensor]]
    preprocessing: dict[str, Any]
    postprocessing: str
    stride: int = 1
    usual_size: tuple[int, int] | None = None
    size_key: str = ""
    takes_usual_size_only: bool = False
    reference: Callable[[dict[str, Tensor]], Arrays] | None = None
    same_order: Callable[[Arrays, Arrays], Arrays] = field(default=lambda expected, found: found)
    agreement: Callable[[Arrays, Arrays], float | None] | None = None
    agreement_name: str = ""
