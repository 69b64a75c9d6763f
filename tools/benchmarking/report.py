"""What was measured, as records: a table on the terminal, the columns of a CSV file, and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.benchmarking.comparisons import Comparison, Measurements, gemm_rate
from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.output import MACHINE, Record, digits, pyplot, save_figure, table

__all__ = ["COLUMNS", "comparison_records", "draw", "markdown", "measurement_records", "suite_markdown"]

_SETTINGS = (
    *("runtime", "mode", "batch", "image_size", "dtype", "device", "threads", "strided", "recompute"),
    *("ranks", "photos"),
)
# A record is one figure: a measured time, a comparison, or what could not be measured and why (note).
COLUMNS = (
    *("row", "title", "figure", "value", "unit", "low", "high", "rounds", "values", "target", "met"),
    *("images_per_second", "gflops_per_second", "gemm_share", "memory_growth_mb", "memory_peak_mb", "note"),
    *_SETTINGS,
    "versions",
    *MACHINE,
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
        bound = "<=" if comparison.at_most else ">="
        records.append(
            {
                "figure": comparison.figure,
                "value": value,
                "unit": comparison.unit,
                "values": None if missing else _values(comparison, measured),
                "target": None if comparison.target is None else f"{bound} {comparison.target:g}",
                "met": None if missing else comparison.is_met(value),
                "note": f"without {', '.join(missing)}" if missing else None,
            }
        )
    return records


def _values(comparison: Comparison, measured: Measurements) -> str:
    """The two values of a comparison, such as ``0.943 s / 0.909 s``."""
    left, right = (f"{digits(value)} {comparison.value_unit}".strip() for value in comparison.values(measured))
    return f"{left} {comparison.sign} {right}"


def suite_markdown(records: Sequence[Record]) -> str:
    """The figures of the suite with what they are computed from, below a line on how much the times vary."""
    times = [record for record in records if record.get("low") is not None]
    spread, worst = max(
        (max(record["high"] / record["value"], 2 - record["low"] / record["value"]) - 1, index)
        for index, record in enumerate(times)
    )
    turns = [record["rounds"] for record in times]
    intro = (
        f"Medians of {min(turns)} to {max(turns)} turns. Half of the turns of each lay within {100 * spread:.0f} % of "
        f"their median; {times[worst]['figure']} in row {times[worst]['row']} varied that much, the others less."
    )
    rows = [
        [
            str(record["row"]),
            record["title"],
            record["figure"],
            _equation(record) if record["values"] else record["note"],
            record["target"] or "",
            "missed" if record["met"] is False else "",
        ]
        for record in records
        if "values" in record
    ]
    header = ["row", "what", "figure", "measured", "aim", ""]
    return f"{intro}\n\n{table(header, rows, header)}"


def _equation(record: Record) -> str:
    unit = "" if record["unit"] == "x" else f" {record['unit']}"
    return f"{record['values']} = {digits(record['value'])}{unit}"


def markdown(records: Sequence[Record]) -> str:
    """A table of the columns that have something to say."""
    cells = [{key: _cell(record, key) for key in _SHOWN} for record in records]
    kept = [key for key in _SHOWN if any(row[key] for row in cells)]
    words = [_SHOWN[key] for key in kept if key in _WORDS]
    return table([_SHOWN[key] for key in kept], [[row[key] for key in kept] for row in cells], words)


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


def draw(records: Sequence[Record], file: Path) -> None:
    """Draw the figures that have targets, each over its target, or without any the measured times."""
    measured = [record for record in records if record["value"] is not None]
    compared = [record for record in measured if record.get("target")]
    shown = compared or [record for record in measured if record["unit"] == "s"]
    figure, axes = pyplot().subplots(figsize=(10, 1.2 + 0.35 * len(shown)), layout="constrained")
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
    save_figure(figure, file)


def _draw_targets(axes, places: Sequence[int], shown: Sequence[Record]) -> None:
    values = [record["value"] / float(record["target"].split()[1]) for record in shown]
    bars = axes.barh(places, values, color=["tab:green" if record["met"] else "tab:red" for record in shown])
    axes.bar_label(bars, [f"{_cell(record, 'value')} ({record['target']})" for record in shown], padding=4)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("measured / target (green: met)")
