"""What a task says of a model that ``tools/export.py`` is to write."""

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
    """One of the model's outputs.

    Attributes:
        name: that ONNX files and the model card give it.
        shape: a number, or the name of what it depends on, for each dimension.
        meaning: in one line.
    """

    name: str
    shape: Sequence[int | str]
    meaning: str


@dataclass(frozen=True)
class Exportable:
    """A model, and how it is used.

    Attributes:
        name: of the model.
        labels: its classes.
        layer: takes the inputs in their order, and gives a tensor or a list of them, the outputs.
        inputs: name and shape of each; the first are the images, [batch, 3, height, width]. None is open.
        outputs: in their order.
        inputs_of: turns an image file into inputs of these names.
        preprocessing: what it does, in plain values.
        postprocessing: what is left to whoever uses the exported model, in a few sentences.
        stride: what heights and widths must be a multiple of.
        usual_size: height and width that the preprocessing gives, if they are always the same.
        size_key: of the configuration, which sets them.
        takes_usual_size_only: the model can take no other.
        reference: what the task's own model makes of the inputs, where the layer is another: outputs as the layer's.
        same_order: brings outputs into the order of others, where theirs is not certain: ``same_order(expected,
            found)``.
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
