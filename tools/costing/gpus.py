"""From what a training computes and keeps to hours and gigabytes on GPUs: arithmetic, nothing measured."""

from __future__ import annotations

from dataclasses import dataclass

from tools.costing.counts import TrainingCounts

__all__ = ["A100", "H100", "Gpu", "training_flops", "training_gigabytes", "training_hours"]


@dataclass(frozen=True)
class Gpu:
    """A GPU in half precision.

    Attributes:
        peak: floating-point operations a second that the manufacturer states for dense products.
        utilisation: the share of it that training is taken to reach.
    """

    name: str
    peak: float
    utilisation: float


# An author of Swin trained Swin-B (15.4G multiply-adds) on 16 V100 in about 12 minutes an epoch (issue 68 of
# github.com/microsoft/Swin-Transformer): 8 % of their 125 TFLOP/s. The memory of an H100 is 1.6 times as fast as an
# A100's, its peak 3.2 times. Such models wait for memory more than for arithmetic: half the share can be hoped for.
A100 = Gpu("A100", 312e12, 0.08)
H100 = Gpu("H100", 989e12, 0.04)


def training_flops(counts: TrainingCounts) -> float:
    """Floating-point operations of a training: two a multiply-add, and a backward pass costs two forward passes."""
    return 2.0 * 3.0 * counts.forward * counts.images


def training_hours(counts: TrainingCounts, gpu: Gpu, number: int = 1) -> float:
    """Hours on so many GPUs, as if they lost nothing to communication and never waited for data."""
    return training_flops(counts) / (number * gpu.peak * gpu.utilisation) / 3600


def training_gigabytes(counts: TrainingCounts) -> float:
    """10^9 bytes on each GPU at the configured batch: weights, gradients, AdamW's moments, averages, and what is kept.

    In mixed precision the former stay float32, and what is kept takes two bytes a value. What libraries and the
    allocator take is left out.
    """
    state = counts.parameters * 4 * (4 + counts.averaged)
    return (state + counts.batch * counts.kept / 2) / 1e9
