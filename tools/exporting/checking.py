"""An exported file beside the model that it was made of, on real images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import paddle
from tqdm import tqdm

from common.errors import UserError, one_line
from common.inference.exportable import Exportable
from common.pale_transformer import STRIDE

__all__ = ["TOLERANCE", "Case", "check", "make_cases"]

T = TypeVar("T")
TOLERANCE = 1e-4  # of an output, or of its size where that is more than 1


@dataclass(frozen=True)
class Case:
    """Inputs, and what the model makes of them.

    Attributes:
        name: the image, and what was done to it.
        inputs: by name.
        expected: the outputs in eager mode.
    """

    name: str
    inputs: dict[str, np.ndarray]
    expected: list[np.ndarray]


def make_cases(exportable: Exportable, files: Sequence[str], size: tuple[int, int] | None) -> list[Case]:
    """Put images through the model: each as it is preprocessed, one in another size, and two in a batch.

    The last two only where the exported model takes any size, and any number of images.

    Args:
        size: height and width, if the exported model takes no other; images are cut or padded to it.

    Raises:
        UserError: an image cannot be read, there is nothing to compare, or the layer to export differs from the model.
    """
    cases = []
    for name, inputs in _with_progress([*_all_inputs(exportable, files, size)]):
        tensors = {key: paddle.to_tensor(array) for key, array in inputs.items()}
        try:
            case = Case(name, inputs, _run_eagerly(exportable, tensors))
        except ValueError as error:  # of Paddle's; version 2.6 cannot join tensors where a detector finds nothing
            raise UserError(f"{exportable.name} fails on {name}; give other -images ({one_line(error)})") from error
        if exportable.reference:
            _compare(exportable, Case(name, inputs, exportable.reference(tensors)), case.expected, "the form to export")
        cases.append(case)
    if all(array.size == 0 for case in cases for array in case.expected):
        raise UserError(
            f"{exportable.name} finds nothing on the images, so nothing can be compared; give other -images"
        )
    return cases


def _all_inputs(
    exportable: Exportable, files: Sequence[str], size: tuple[int, int] | None
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    name_of_images, shape = next(iter(exportable.inputs.items()))
    for number, file in enumerate(files):
        shown = f"{Path(file).name} (image {number + 1})"
        inputs = {name: tensor.numpy() for name, tensor in exportable.inputs_of(file).items()}
        inputs = _fit(inputs, name_of_images, size) if size else inputs
        yield shown, inputs
        images = inputs[name_of_images]
        if number == 0 and shape[0] is None:
            both = np.concatenate([images, images[..., ::-1]])
            yield f"{shown} and its mirror image", {**inputs, name_of_images: both}
        if number == 0 and size is None:
            stride = max(exportable.stride, 8)
            height, width = (
                max(STRIDE, int(side * share) // stride * stride) for side, share in _shares(images.shape[2:])
            )
            yield f"a part of {shown}", _fit(inputs, name_of_images, (height, width))


def _shares(sides: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Each side, and how much of it to take: unlike shares, so that the part has other proportions."""
    return zip(sides, (0.75, 0.5), strict=True)


def _fit(inputs: Mapping[str, np.ndarray], images: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Cut the right and the bottom of images off, or pad them with zeros."""
    cut = inputs[images][:, :, : size[0], : size[1]]
    missing = [(0, 0), (0, 0), *((0, whole - side) for whole, side in zip(size, cut.shape[2:], strict=True))]
    fitted = {**inputs, images: np.pad(cut, missing)}
    if "im_shape" in inputs:
        fitted["im_shape"] = np.minimum(inputs["im_shape"], np.array([size], inputs["im_shape"].dtype))
    return fitted


@paddle.no_grad()
def _run_eagerly(exportable: Exportable, inputs: Mapping[str, paddle.Tensor]) -> list[np.ndarray]:
    outputs = exportable.layer(*(inputs[name] for name in exportable.inputs))
    return [output.numpy() for output in (outputs if isinstance(outputs, list) else [outputs])]


def check(
    exportable: Exportable,
    run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]],
    cases: Sequence[Case],
    name: str,
) -> dict[str, float]:
    """Compare an exported file with the model.

    Args:
        run: the file in its runtime.
        name: of the file, for messages.

    Returns:
        The largest difference in each case, as a share of the output where that is more than 1.

    Raises:
        UserError: one is larger than :data:`TOLERANCE`, the outputs are of other shapes, or the file does not run.
    """
    differences = {}
    for case in _with_progress(cases):
        try:
            found = run(case.inputs)
        except Exception as error:  # runtimes have many
            raise UserError(
                f"{name} fails on {case.name}; give -size HEIGHT WIDTH, or another one ({one_line(error)})"
            ) from error
        differences[case.name] = _compare(exportable, case, found, name)
    return differences


def _compare(exportable: Exportable, case: Case, found: list[np.ndarray], name: str) -> float:
    """The largest difference.

    Raises:
        UserError: it is too large, or the outputs are of other shapes.
    """
    shapes, expected_shapes = ([list(array.shape) for array in arrays] for arrays in (found, case.expected))
    empty = all(array.size == 0 for array in (*found, *case.expected))
    if shapes != expected_shapes and not empty:
        raise UserError(
            f"{name} gives outputs of {shapes} for {case.name}, the model {expected_shapes}; it is wrong or, if few "
            "objects of scores near a threshold are missing or added, try other -images"
        )
    found = case.expected if empty else exportable.same_order(case.expected, found)
    difference = max(map(_difference, case.expected, found))
    if not difference <= TOLERANCE:  # nor is a NaN
        raise UserError(f"{name} differs from the model by {difference:.1e} for {case.name}, more than {TOLERANCE:.0e}")
    return difference


def _with_progress(items: Sequence[T]) -> Iterable[T]:
    return tqdm(items, disable=not sys.stderr.isatty(), leave=False, unit="check")


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float((np.abs(expected - found) / np.maximum(1, np.abs(expected))).max(initial=0))
