"""The model card: the description of an exported model for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common import __version__
from common.checkpoints.download import sha256_of
from common.checkpoints.loading import Checkpoint
from common.flops import params
from common.inference.exportable import Exportable
from common.runtime.machine import installed_versions
from tools.helpers.export_checks import TOLERANCE

__all__ = ["make_card"]

_FORMAT = 1  # of the card; incremented when programs that read it would have to change
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddle2onnx", "onnxruntime", "openvino", "numpy")


def make_card(
    task: str,
    exportable: Exportable,
    inputs: Mapping[str, Sequence[int | None]],
    checkpoint: Checkpoint,
    files: Sequence[Path],
    checks: Mapping[str, Mapping[str, float]],
    agreement: Mapping[str, float | None],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Make a card.

    Args:
        task: its folder.
        inputs: the shapes that the exported files take.
        checkpoint: the weights.
        files: of the export.
        checks: the largest difference from the model in each case, by format.
        agreement: of OpenVINO in bfloat16 with the model in each case; None where the model
            detects nothing, empty if it was not measured.
        left_out: formats that were not written, and the reason.
    """
    open_sides = ("batch", "channels", "height", "width")
    shapes = {
        name: [open_sides[place] if side is None else side for place, side in enumerate(shape)]
        for name, shape in inputs.items()
    }
    return {
        "format_version": _FORMAT,
        "name": exportable.name,
        "task": task,
        "architecture": "Pale Transformer, arXiv 2112.14000, in an independent implementation",
        "license": "Apache-2.0 (the code; weights have the terms of their data)",
        "parameters": params(exportable.layer),
        "inputs": [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()],
        "sides_multiple_of": exportable.stride,
        "classes": len(exportable.labels),
        "outputs": [{**asdict(output), "dtype": "float32"} for output in exportable.outputs],
        "postprocessing": exportable.postprocessing,
        "weights": {
            "source": checkpoint.source if "://" in checkpoint.source else checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "figures": dict(checkpoint.figures),
            "trained_with": dict(checkpoint.versions),
        },
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files},
        "checked_against_eager_mode": {"tolerance": TOLERANCE, "largest_differences": dict(checks)},
        "openvino_in_bfloat16": {
            "setting": "INFERENCE_PRECISION_HINT bf16",
            "measure": exportable.agreement_name,
            "agreement": dict(agreement),
        },
        "left_out": dict(left_out),
        "exported_with": {"pale-transformer-paddle": __version__, **installed_versions(_PACKAGES)},
        "exported_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    }
