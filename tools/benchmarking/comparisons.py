"""Figures that are computed from several measurements, and their targets."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.subjects import Gemm

__all__ = ["Comparison", "Measurements", "fastest", "gemm_rate", "time_ratio"]

Measurements = Mapping[str, Measurement]  # by the subject's name


@dataclass(frozen=True)
class Comparison:
    """One figure, the ratio or the difference of two values, with a target if it has one.

    Attributes:
        figure: what it is.
        needs: names of the subjects that it is computed from.
        values: gives the two values from their measurements.
        target: its limit, or None.
        at_most: whether the figure must not be above the limit, or not below it.
        value_unit: of both values; empty where they are ratios themselves.
        sign: ``/`` or ``-``, what is done with them.
    """

    figure: str
    needs: tuple[str, ...]
    values: Callable[[Measurements], tuple[float, float]]
    target: float | None = None
    at_most: bool = True
    value_unit: str = "s"
    sign: str = "/"

    @property
    def unit(self) -> str:
        """``x`` for ratios."""
        return "x" if self.sign == "/" else self.value_unit

    def compute(self, measured: Measurements) -> float:
        left, right = self.values(measured)
        return left / right if self.sign == "/" else left - right

    def is_met(self, value: float) -> bool | None:
        """Whether a value of the figure reaches the target; None without one."""
        if self.target is None:
            return None
        return (operator.le if self.at_most else operator.ge)(value, self.target)


def fastest(measured: Measurements, names: Sequence[str]) -> Measurement:
    return min((measured[name] for name in names), key=lambda measurement: measurement.median)


def time_ratio(ours: Sequence[str], theirs: Sequence[str], target: float | None = None) -> Comparison:
    """The median time of one subject over that of another; of the variants of each, the fastest counts."""
    return Comparison(
        f"time of {ours[0]} / {theirs[0]}",
        (*ours, *theirs),
        lambda measured: (fastest(measured, ours).median, fastest(measured, theirs).median),
        target,
    )


def gemm_rate(measured: Measurements) -> float | None:
    """Floating-point operations a second of the best product of matrices, or None if none was measured."""
    products = [measurement for measurement in measured.values() if isinstance(measurement.subject, Gemm)]
    return max((product.flops_per_second for product in products), default=None)
