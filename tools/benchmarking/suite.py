"""The rows of the performance table: what is measured, against what, and how good it should be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tools.benchmarking.comparisons import Comparison, Measurements, gemm_rate, time_ratio
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
        comparisons: the figures of the table, with their targets.
        max_rounds: turns that suffice, where each is long and is itself a median of several.
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
    exported = ("timm:swin_tiny", "timm:davit_tiny")
    return (
        _against_peers(1, "eager forward of 8", _EAGER, {"paddleclas:swin_tiny": 1.0, "paddleclas:cswin_tiny": 0.8}),
        _against_peers(2, "train step of 4", _TRAINING, {"paddleclas:swin_tiny": 1.15, "paddleclas:cswin_tiny": 1.0}),
        _against_peers(3, "ONNX Runtime, forward of 8", _EXPORTED, {"timm:swin_tiny": 0.85, "timm:davit_tiny": 1.0}),
        Row(
            4,
            "ONNX Runtime, share of the rate of a 2048x2048x2048 product",
            (_EXPORTED, *_peers(_EXPORTED, exported), *_GEMMS),
            (_gemm_share(OURS, 0.9), *map(_gemm_share, exported)),
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


def _gemm_share(model: str, target: float | None = None) -> Comparison:
    return Comparison(
        f"rate of {model} / GEMM",
        (model, *(gemm.name for gemm in _GEMMS)),
        lambda measured: (measured[model].flops_per_second / 1e9, gemm_rate(measured) / 1e9),
        target,
        at_most=False,
        value_unit="GFLOP/s",
    )


def _recomputation() -> Row:
    plain = replace(_TRAINING, batch=16)
    saving = replace(plain, name=f"{OURS} recomputed", recompute=True)

    def memory(figure: str, attribute: str) -> Comparison:
        def values(measured: Measurements) -> tuple[float, float]:
            return tuple(getattr(measured[model.name], attribute) / 2**20 for model in (saving, plain))

        return Comparison(f"{figure} with / without", (plain.name, saving.name), values, 0.45, value_unit="MB")

    comparisons = (
        memory("peak memory of the process", "memory_peak"),
        memory("growth of memory", "memory_growth"),
        time_ratio([saving.name], [plain.name], 1.35),
    )
    return Row(6, "train step of 16 with recomputation", (plain, saving), comparisons)


def _growth_with_the_image() -> Row:
    """The same number of pixels in larger images: the time should grow as the counted operations do."""
    by_size = [
        replace(_EAGER, name=f"{OURS} {batch}x{size}x{size}", batch=batch, image_size=size)
        for size, batch in ((224, 16), (448, 4), (896, 1))
    ]

    def growth(small: Model, large: Model) -> Comparison:
        def values(measured: Measurements) -> tuple[float, float]:
            before, after = measured[small.name], measured[large.name]
            return after.median / before.median, after.flops / before.flops

        figure = f"growth of time / of FLOPs, {small.image_size} to {large.image_size}"
        return Comparison(figure, (small.name, large.name), values, 1.15, value_unit="")

    return Row(
        7, "eager forward of as many pixels in larger images", tuple(by_size), tuple(map(growth, by_size, by_size[1:]))
    )


def _reading(paddleclas_source: str) -> Row:
    ours, theirs = Reader(name="our reader"), Reader(name="PaddleClas's reader", source=paddleclas_source)
    return Row(8, "ImageNet training transforms on one core", (ours, theirs), (_rate_ratio(ours, theirs, 1.5),))


def _two_ranks() -> Row:
    one, two = Ranks(name="1 rank", ranks=1), Ranks(name="2 ranks", ranks=2)
    rate = _rate_ratio(two, one, 1.8)
    return Row(9, "training pale_nano on MNIST-5k, one thread a rank", (one, two), (rate,), max_rounds=3)


def _rate_ratio(ours: Subject, theirs: Subject, target: float) -> Comparison:
    return Comparison(
        f"images/s of {ours.name} / {theirs.name}",
        (ours.name, theirs.name),
        lambda measured: (measured[ours.name].images_per_second, measured[theirs.name].images_per_second),
        target,
        at_most=False,
        value_unit="images/s",
    )


def _first_prediction() -> Row:
    prediction = FirstPrediction(name=f"tools/predict.py, {OURS}", model=OURS)
    importing = PaddleImport(name="import paddle")
    rest = Comparison(
        "first prediction beyond importing paddle",
        (prediction.name, importing.name),
        lambda measured: (measured[prediction.name].median, measured[importing.name].median),
        1.0,
        sign="-",
    )
    return Row(10, "first prediction", (prediction, importing), (rest,))
