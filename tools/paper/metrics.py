"""How the figures of the tables are called and written."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COUNTED", "METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A kind of figure.

    Attributes:
        digits: behind the point.
    """

    name: str
    unit: str = "%"
    digits: int = 1

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}"


METRICS = {
    "params": Metric("parameters", "M", 2),
    "flops": Metric("multiply-adds", "G", 2),
    "top1": Metric("top-1"),
    "top5": Metric("top-5"),
    "top1_token_labels": Metric("top-1 token labels"),
    "mIoU": Metric("mIoU"),
    "mIoU_multi_scale": Metric("mIoU multi-scale"),
    **{f"{kind}_{metric}": Metric(f"{kind} {metric}") for kind in ("box", "mask") for metric in ("AP", "AP50", "AP75")},
}
COUNTED = ("params", "flops")  # from the code; the others are measured
