"""The rows of the performance table: what is measured, against what, and how good it should be."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.subjects import Model, Subject

__all__ = ["ROWS", "Comparison", "Row"]

Measurements = Mapping[str, Measurement]  # by the subject's name


@dataclass(frozen=True)
class Comparison:
    """One figure with its target.

    Attributes:
        figure: what it is.
        needs: names of the subjects that it is computed from.
        compute: gives the figure from their measurements.
        target: its limit.
        at_most: whether the figure must not be above the limit, or not below it.
    """

    figure: str
    needs: tuple[str, ...]
    compute: Callable[[Measurements], float]
    target: float
    at_most: bool = True

    def is_met(self, value: float) -> bool:
        return (operator.le if self.at_most else operator.ge)(value, self.target)


@dataclass(frozen=True)
class Row:
    """One row: its subjects take turns."""

    number: int
    title: str
    subjects: tuple[Subject, ...]
    comparisons: tuple[Comparison, ...]


def fastest(measurements: Measurements, names: Sequence[str]) -> Measurement:
    return min((measurements[name] for name in names), key=lambda measurement: measurement.median)


def _time_ratio(ours: str, theirs: Sequence[str], target: float) -> Comparison:
    """Our median time over the best of theirs."""
    return Comparison(
        f"time of {ours} / {theirs[0]}",
        (ours, *theirs),
        lambda measured: measured[ours].median / fastest(measured, theirs).median,
        target,
    )


_OURS = "pale_tiny"
_STRIDED = " strided"


def _paddle_peers(template: Model) -> tuple[Model, ...]:
    """Ours, and the peers of paddleclas with Paddle's stride kernels off and on: what suits them better counts."""
    peers = [
        replace(template, name=peer + (_STRIDED if strided else ""), model=peer, strided=strided)
        for peer in ("paddleclas:swin_tiny", "paddleclas:cswin_tiny")
        for strided in (False, True)
    ]
    return (template, *peers)


def _against_paddle_peers(swin: float, cswin: float) -> tuple[Comparison, ...]:
    return tuple(
        _time_ratio(_OURS, (peer, peer + _STRIDED), target)
        for peer, target in (("paddleclas:swin_tiny", swin), ("paddleclas:cswin_tiny", cswin))
    )


_EAGER = Model(name=_OURS, model=_OURS)
_ONNX = replace(_EAGER, runtime="onnxruntime")


def _timm_peers(template: Model, *peers: str) -> tuple[Model, ...]:
    return (template, *(replace(template, name=peer, model=peer) for peer in peers))


ROWS: tuple[Row, ...] = (
    Row(1, "eager forward of 8", _paddle_peers(_EAGER), _against_paddle_peers(1.0, 0.8)),
    Row(2, "train step of 4", _paddle_peers(replace(_EAGER, mode="train", batch=4)), _against_paddle_peers(1.15, 1.0)),
    Row(
        3,
        "ONNX Runtime, forward of 8",
        _timm_peers(_ONNX, "timm:swin_tiny", "timm:davit_tiny"),
        (_time_ratio(_OURS, ["timm:swin_tiny"], 0.85), _time_ratio(_OURS, ["timm:davit_tiny"], 1.0)),
    ),
)
