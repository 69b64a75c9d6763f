"""Comparison of exported files with the model, on real images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from common.errors import UserError, one_line
from common.finite_outputs import require_finite_outputs
from common.inference.export_formats import Run
from common.inference.exportable import Exportable
from common.pale_transformer import STRIDE

__all__ = ["TOLERANCE", "Case", "check", "make_cases", "measure_agreement"]

TOLERANCE = 1e-4  # absolute, or relative to outputs larger than 1


@dataclass(frozen=True)
class Case:
    """Inputs and the expected outputs.

    Attributes:
        name: the image, and how it was changed.
        inputs: by name.
        expected: the model's outputs in eager mode.
    """

    name: str
    inputs: dict[str, np.ndarray]
    expected: list[np.ndarray]


def make_cases(exportable: Exportable, files: Sequence[str], size: tuple[int, int] | None) -> list[Case]:
    """Run the model on each preprocessed image and, if the exported model takes them, on another size and on a batch.

    Args:
        size: height and width, if the exported model takes no other; images are cropped or padded to it.

    Raises:
        UserError: an image cannot be read, nothing is found on any, or the layer to export differs from the model.
    """
    cases = []
    for name, inputs in tqdm([*_all_inputs(exportable, files, size)], disable=None, leave=False):
        tensors = {key: paddle.to_tensor(array) for key, array in inputs.items()}
        try:
            case = Case(name, inputs, _run_eagerly(exportable, tensors))
        except ValueError as error:  # Paddle 2.6 cannot concatenate tensors if a detector finds nothing
            raise UserError(f"{exportable.name} fails on {name}; give other -images ({one_line(error)})") from error
        if exportable.reference:
            reference = Case(name, inputs, exportable.reference(tensors))
            _compare(exportable, reference, case.expected, "the layer to export")
        cases.append(case)
    if all(array.size == 0 for case in cases for array in case.expected):
        raise UserError(
            f"{exportable.name} detects no object on the images, so nothing can be compared; give other -images"
        )
    return cases


def _all_inputs(
    exportable: Exportable, files: Sequence[str], size: tuple[int, int] | None
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    images_name, shape = next(iter(exportable.inputs.items()))
    for number, file in enumerate(files):
        shown = f"{Path(file).name} (image {number + 1})"
        inputs = {name: tensor.numpy() for name, tensor in exportable.inputs_of(file).items()}
        inputs = _fit(inputs, images_name, size) if size else inputs
        yield shown, inputs
        images = inputs[images_name]
        if number == 0 and shape[0] is None:
            both = np.concatenate([images, images[..., ::-1]])
            yield f"{shown} and its mirror image", {**inputs, images_name: both}
        if number == 0 and size is None:
            stride = max(exportable.stride, 8)
            part = [  # of another aspect ratio
                max(STRIDE, int(side * share) // stride * stride)
                for side, share in zip(images.shape[2:], (0.75, 0.5), strict=True)
            ]
            yield f"a part of {shown}", _fit(inputs, images_name, part)


def _fit(inputs: Mapping[str, np.ndarray], images: str, size: Sequence[int]) -> dict[str, np.ndarray]:
    """Crop images at the right and the bottom, or pad them with zeros there."""
    cut = inputs[images][:, :, : size[0], : size[1]]
    missing = [(0, 0), (0, 0), *((0, whole - side) for whole, side in zip(size, cut.shape[2:], strict=True))]
    fitted = {**inputs, images: np.pad(cut, missing)}
    if "im_shape" in inputs:
        fitted["im_shape"] = np.minimum(inputs["im_shape"], np.array([size], inputs["im_shape"].dtype))
    return fitted


@paddle.no_grad()
def _run_eagerly(exportable: Exportable, inputs: Mapping[str, paddle.Tensor]) -> list[np.ndarray]:
    with require_finite_outputs(exportable.layer):
        outputs = exportable.layer(*(inputs[name] for name in exportable.inputs))
    return [output.numpy() for output in (outputs if isinstance(outputs, list) else [outputs])]


def check(exportable: Exportable, run: Run, cases: Sequence[Case], name: str) -> dict[str, float]:
    """Compare an exported file with the model.

    Args:
        run: the file in its runtime.
        name: of the file, for messages.

    Returns:
        The largest difference in each case, relative to outputs larger than 1.

    Raises:
        UserError: one exceeds :data:`TOLERANCE`, the outputs have other shapes, or the file does not run.
    """
    differences = {}
    for case in tqdm(cases, disable=None, leave=False):
        try:
            found = run(case.inputs)
        except Exception as error:  # each runtime has its own
            raise UserError(
                f"{name} fails on {case.name}; give -size HEIGHT WIDTH, or another size ({one_line(error)})"
            ) from error
        differences[case.name] = _compare(exportable, case, found, name)
    return differences


def measure_agreement(exportable: Exportable, run: Run, cases: Sequence[Case]) -> dict[str, float | None]:
    """``exportable.agreement`` in each case, for a file whose runtime computes in lower precision."""
    assert exportable.agreement
    return {case.name: exportable.agreement(case.expected, run(case.inputs)) for case in cases}


def _compare(exportable: Exportable, case: Case, found: list[np.ndarray], name: str) -> float:
    """The largest difference.

    Raises:
        UserError: it is too large, or the outputs have other shapes.
    """
    shapes, expected_shapes = ([list(array.shape) for array in arrays] for arrays in (found, case.expected))
    empty = all(array.size == 0 for array in (*found, *case.expected))
    if shapes != expected_shapes and not empty:
        raise UserError(
            f"the outputs of {name} for {case.name} are {shapes}, those of the model {expected_shapes}; if few objects "
            "with scores near a threshold are missing or added, give other -images"
        )
    found = case.expected if empty else exportable.same_order(case.expected, found)
    difference = max(
        float((np.abs(one - other) / np.maximum(1, np.abs(one))).max(initial=0))
        for one, other in zip(case.expected, found, strict=True)
    )
    if not difference <= TOLERANCE:  # true for NaN, too
        raise UserError(
            f"{name} differs from the model by {difference:.1e} for {case.name}, more than {TOLERANCE:.0e}; if it is "
            "little more, from rounding in a large image, give smaller -images"
        )
    return difference
