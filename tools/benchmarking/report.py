"""What was measured, as records: a table on the terminal, a CSV file and a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarking.comparisons import Comparison, Measurements, gemm_rate
from tools.benchmarking.interleaving import Measurement

__all__ = ["COLUMNS", "comparison_records", "draw", "markdown", "measurement_records", "write_csv"]

Record = dict[str, Any]

_SETTINGS = (
    *("runtime", "mode", "batch", "image_size", "dtype", "device", "threads", "strided", "recompute"),
    *("ranks", "photos"),
)
_MACHINE = ("date", "git", "cpu", "cores", "memory_gb", "system", "python")
# A record is one figure: a measured time, a comparison, or what could not be measured and why (note).
COLUMNS = (
    *("row", "title", "figure", "value", "unit", "low", "high", "rounds", "target", "met"),
    *("images_per_second", "gflops_per_second", "gemm_share", "memory_growth_mb", "memory_peak_mb", "note"),
    *_SETTINGS,
    "versions",
    *_MACHINE,
)
# What the table on the terminal shows, in its words. Numbers stand to the right.
_SHOWN = {
    "row": "row",
    "title": "what",
    "figure": "figure",
    "value": "median",
    "quartiles": "quartiles",
    "images_per_second": "images/s",
    "gflops_per_second": "GFLOP/s",
    "gemm_share": "of GEMM",
    "memory_growth_mb": "memory growth",
    "memory_peak_mb": "memory peak",
    "target": "target",
    "met": "met",
}
_WORDS = ("title", "figure", "target", "met")


def measurement_records(measured: Measurements) -> list[Record]:
    """A record of each subject: its time with the quartiles, and what follows from it."""
    rate = gemm_rate(measured)
    return [_measurement_record(measurement, rate) for measurement in measured.values()]


def _measurement_record(measurement: Measurement, gemm: float | None) -> Record:
    low, high = measurement.quartiles
    flops = measurement.flops_per_second
    return {
        "figure": measurement.subject.name,
        "value": measurement.median,
        "unit": "s",
        "low": low,
        "high": high,
        "rounds": len(measurement.seconds),
        "images_per_second": measurement.images_per_second,
        "gflops_per_second": flops and flops / 1e9,
        "gemm_share": flops / gemm if flops and gemm else None,
        "memory_growth_mb": _megabytes(measurement.memory_growth),
        "memory_peak_mb": _megabytes(measurement.memory_peak),
        "versions": measurement.versions,
        **{name: getattr(measurement.subject, name, None) for name in _SETTINGS},
    }


def _megabytes(value: int | None) -> float | None:
    return None if value is None else value / 2**20


def comparison_records(comparisons: Iterable[Comparison], measured: Measurements) -> list[Record]:
    """A record of each comparison; where a subject is missing, with a note in place of a value."""
    records = []
    for comparison in comparisons:
        missing = [name for name in comparison.needs if name not in measured]
        value = None if missing else comparison.compute(measured)
        sign = "<=" if comparison.at_most else ">="
        records.append(
            {
                "figure": comparison.figure,
                "value": value,
                "unit": comparison.unit,
                "target": None if comparison.target is None else f"{sign} {comparison.target:g}",
                "met": None if missing else comparison.is_met(value),
                "note": f"without {', '.join(missing)}" if missing else None,
            }
        )
    return records


def markdown(records: Sequence[Record]) -> str:
    """A table of the columns that have something to say."""
    cells = [{key: _cell(record, key) for key in _SHOWN} for record in records]
    kept = [key for key in _SHOWN if any(row[key] for row in cells)]
    lines = [[_SHOWN[key] for key in kept], *([row[key] for key in kept] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if key in _WORDS else "-" * (width - 1) + ":" for key, width in zip(kept, widths, strict=True)]
    aligned = (
        [
            cell.ljust(width) if key in _WORDS else cell.rjust(width)
            for cell, key, width in zip(line, kept, widths, strict=True)
        ]
        for line in lines
    )
    first, *others = (f"| {' | '.join(line)} |" for line in aligned)
    return "\n".join([first, f"| {' | '.join(rule)} |", *others])


def _cell(record: Record, key: str) -> str:
    value = record.get(key)
    if key == "quartiles":
        return f"{record['low']:.3g} to {record['high']:.3g}" if record.get("low") is not None else ""
    if key == "value":
        return "not measured" if value is None else f"{value:.3g} {record['unit']}"
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "gemm_share":
        return f"{100 * value:.0f} %"
    if key in ("memory_growth_mb", "memory_peak_mb"):
        return f"{value:.0f} MB"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_csv(records: Sequence[Record], machine: Mapping[str, Any], file: Path) -> None:
    """Write all records, each with what it was measured on."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows({**machine, **record} for record in records)


def draw(records: Sequence[Record], file: Path) -> None:
    """Draw the figures that have targets, each over its target, or without any the measured times."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [record for record in records if record["value"] is not None]
    compared = [record for record in measured if record.get("target")]
    shown = compared or [record for record in measured if record["unit"] == "s"]
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.35 * len(shown)), layout="constrained")
    # Places, not names, because rows may have figures of the same name.
    places = range(len(shown))
    names = [f"{record['row']}: {record['figure']}" if "row" in record else record["figure"] for record in shown]
    if compared:
        _draw_targets(axes, places, shown)
    else:
        values = [record["value"] for record in shown]
        spread = [[r["value"] - r["low"] for r in shown], [r["high"] - r["value"] for r in shown]]
        bars = axes.barh(places, values, xerr=spread, capsize=3)
        axes.bar_label(bars, [f"{value:.3g} s" for value in values], padding=4)
        axes.set_xlabel("seconds, median and quartiles")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_targets(axes, places: Sequence[int], shown: Sequence[Record]) -> None:
    values = [record["value"] / float(record["target"].split()[1]) for record in shown]
    bars = axes.barh(places, values, color=["tab:green" if record["met"] else "tab:red" for record in shown])
    axes.bar_label(bars, [f"{_cell(record, 'value')} ({record['target']})" for record in shown], padding=4)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("measured / target (green: met)")
