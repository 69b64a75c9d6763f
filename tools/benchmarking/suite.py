"""The rows of the performance table: what is measured, against what, and how good it should be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tools.benchmarking.comparisons import Comparison, gemm_rate, time_ratio
from tools.benchmarking.subjects import (
    FirstPrediction,
    Model,
    PaddleImport,
    Ranks,
    Reader,
    Subject,
    gemms,
    variants,
)

__all__ = ["Row", "rows"]

OURS = "pale_tiny"
_EAGER = Model(name=OURS, model=OURS)
_TRAINING = replace(_EAGER, mode="train", batch=4)
_EXPORTED = replace(_EAGER, runtime="onnxruntime")
_GEMMS = gemms(_EAGER.threads)


@dataclass(frozen=True)
class Row:
    """One row of the table: its subjects take turns.

    Attributes:
        number: what ``-rows`` calls it.
        title: what is measured.
        subjects: in the order of their turns.
        comparisons: the figures that have a target.
        max_rounds: turns that suffice, where each is long and is itself a median of many.
    """

    number: int
    title: str
    subjects: tuple[Subject, ...]
    comparisons: tuple[Comparison, ...]
    max_rounds: int | None = None


def rows(paddleclas_source: str) -> tuple[Row, ...]:
    """All rows.

    Args:
        paddleclas_source: checkout of PaddleClas, for its reader.
    """
    return (
        _against_peers(1, "eager forward of 8", _EAGER, {"paddleclas:swin_tiny": 1.0, "paddleclas:cswin_tiny": 0.8}),
        _against_peers(2, "train step of 4", _TRAINING, {"paddleclas:swin_tiny": 1.15, "paddleclas:cswin_tiny": 1.0}),
        _against_peers(3, "ONNX Runtime, forward of 8", _EXPORTED, {"timm:swin_tiny": 0.85, "timm:davit_tiny": 1.0}),
        Row(
            4,
            "ONNX Runtime, share of the GEMM rate",
            (_EXPORTED, *_peers(_EXPORTED, ("timm:swin_tiny", "timm:davit_tiny")), *_GEMMS),
            (_gemm_share(0.9),),
        ),
        _against_peers(5, "ONNX Runtime, forward of 1", replace(_EXPORTED, batch=1), {"timm:swin_tiny": 0.95}),
        _recomputation(),
        _growth_with_the_image(),
        _reading(paddleclas_source),
        _two_ranks(),
        _first_prediction(),
    )


def _peers(template: Model, names: Iterable[str]) -> tuple[Model, ...]:
    return tuple(variant for name in names for variant in variants(replace(template, name=name, model=name)))


def _against_peers(number: int, title: str, ours: Model, targets: dict[str, float]) -> Row:
    """Our time over that of each peer; ``targets`` are the limits by the peer's name."""
    ratios = (
        time_ratio([ours.name], [peer.name for peer in _peers(ours, [name])], target)
        for name, target in targets.items()
    )
    return Row(number, title, (ours, *_peers(ours, targets)), tuple(ratios))


def _gemm_share(target: float) -> Comparison:
    return Comparison(
        f"rate of {OURS} / GEMM",
        (OURS, *(gemm.name for gemm in _GEMMS)),
        lambda measured: measured[OURS].flops_per_second / gemm_rate(measured),
        target,
        at_most=False,
    )


def _recomputation() -> Row:
    plain = replace(_TRAINING, batch=16)
    saving = replace(plain, name=f"{OURS} recomputed", recompute=True)
    memory = Comparison(
        "growth of memory with / without",
        (plain.name, saving.name),
        lambda measured: measured[saving.name].memory_growth / measured[plain.name].memory_growth,
        0.45,
    )
    time = time_ratio([saving.name], [plain.name], 1.35)
    return Row(6, "train step of 16 with recomputation", (plain, saving), (memory, time))


def _growth_with_the_image() -> Row:
    """The same number of pixels in larger images: the time should grow as the counted operations do."""
    by_size = [
        replace(_EAGER, name=f"{OURS} {batch}x{size}x{size}", batch=batch, image_size=size)
        for size, batch in ((224, 16), (448, 4), (896, 1))
    ]

    def growth(small: Model, large: Model) -> Comparison:
        def compute(measured) -> float:
            before, after = measured[small.name], measured[large.name]
            return (after.median / before.median) / (after.flops / before.flops)

        figure = f"growth of time / of FLOPs, {small.image_size} to {large.image_size}"
        return Comparison(figure, (small.name, large.name), compute, 1.15)

    return Row(7, "larger images", tuple(by_size), tuple(map(growth, by_size, by_size[1:])))


def _reading(paddleclas_source: str) -> Row:
    ours, theirs = Reader(name="our reader"), Reader(name="PaddleClas's reader", source=paddleclas_source)
    rate = Comparison(
        f"images/s of {ours.name} / {theirs.name}",
        (ours.name, theirs.name),
        lambda measured: measured[theirs.name].median / measured[ours.name].median,
        1.5,
        at_most=False,
    )
    return Row(8, "ImageNet training transforms on one core", (ours, theirs), (rate,))


def _two_ranks() -> Row:
    one, two = Ranks(name="1 rank", ranks=1), Ranks(name="2 ranks", ranks=2)
    rate = Comparison(
        "images/s of 2 ranks / 1 rank",
        (one.name, two.name),
        lambda measured: measured[one.name].median / measured[two.name].median,
        1.8,
        at_most=False,
    )
    return Row(9, "training pale_nano on MNIST-5k, one thread a rank", (one, two), (rate,), max_rounds=3)


def _first_prediction() -> Row:
    prediction = FirstPrediction(name=f"tools/predict.py, {OURS}", model=OURS)
    importing = PaddleImport(name="import paddle")
    rest = Comparison(
        "first prediction beyond importing paddle",
        (prediction.name, importing.name),
        lambda measured: measured[prediction.name].median - measured[importing.name].median,
        1.0,
        unit="s",
    )
    return Row(10, "first prediction", (prediction, importing), (rest,))
