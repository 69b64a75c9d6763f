"""What was measured as a table on the terminal, a CSV file and a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.suite import Row

__all__ = ["COLUMNS", "comparison_records", "draw", "markdown", "measurement_records", "write_csv"]

# One record is one figure: a measured time, or a comparison with its target.
COLUMNS = (
    *("row", "title", "figure", "value", "unit", "low", "high", "rounds", "target", "met"),
    *("gflops_per_second", "images_per_second", "runtime", "mode", "batch", "image_size", "dtype", "device"),
    *("threads", "strided", "recompute"),
    *("date", "git", "cpu", "cores", "memory_gb", "system", "python", "versions", "peer_versions"),
)
_SETTINGS = ("runtime", "mode", "batch", "image_size", "dtype", "device", "threads", "strided", "recompute")


def measurement_records(measurements: Iterable[Measurement], **shared: Any) -> list[dict[str, Any]]:
    """A record of each subject's time, with its quartiles."""
    records = []
    for measurement in measurements:
        low, high = measurement.quartiles
        rate, images = measurement.flops_per_second, measurement.images
        records.append(
            {
                **shared,
                "figure": measurement.subject.name,
                "value": measurement.median,
                "unit": "s",
                "low": low,
                "high": high,
                "rounds": len(measurement.seconds),
                "gflops_per_second": rate and rate / 1e9,
                "images_per_second": images and images / measurement.median,
                **{name: getattr(measurement.subject, name, None) for name in _SETTINGS},
            }
        )
    return records


def comparison_records(row: Row, measurements: Mapping[str, Measurement]) -> list[dict[str, Any]]:
    """A record of each comparison of a row whose subjects were all measured."""
    records = []
    for comparison in row.comparisons:
        if all(name in measurements for name in comparison.needs):
            value = comparison.compute(measurements)
            records.append(
                {
                    "row": row.number,
                    "title": row.title,
                    "figure": comparison.figure,
                    "value": value,
                    "unit": "x",
                    "target": f"{'<=' if comparison.at_most else '>='} {comparison.target:g}",
                    "met": comparison.is_met(value),
                }
            )
    return records


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A table of the columns that have something to say."""
    shown = {
        "row": "row",
        "title": "what",
        "figure": "figure",
        "value": "median",
        "quartiles": "quartiles",
        "images_per_second": "images/s",
        "gflops_per_second": "GFLOP/s",
        "target": "target",
        "met": "met",
    }
    rows = [{key: _cell(record, key) for key in shown} for record in records]
    kept = [key for key in shown if any(row[key] for row in rows)]
    lines = [[shown[key] for key in kept], *([row[key] for key in kept] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(kept))]
    rule = [
        ("-" * (width - 1) + ":") if key in _NUMBERS else "-" * width for key, width in zip(kept, widths, strict=True)
    ]
    lines.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if key in _NUMBERS else cell.ljust(width)
            for cell, width, key in zip(line, widths, kept, strict=True)
        )
        + " |"
        for line in lines
    )


_NUMBERS = ("row", "value", "quartiles", "images_per_second", "gflops_per_second")


def _cell(record: Mapping[str, Any], key: str) -> str:
    if key == "quartiles":
        return f"{record['low']:.4g} to {record['high']:.4g}" if "low" in record else ""
    value = record.get(key)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" + (f" {record['unit']}" if key == "value" else "")
    return str(value)


def write_csv(records: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], file: Path) -> None:
    """Write all records with the machine's columns; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows({**machine, **record} for record in records)


def draw(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the comparisons as bars from 0 to their share of the target, or, without any, the measured times."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    compared = [record for record in records if record.get("target")]
    shown = compared or records
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.35 * len(shown)), layout="constrained")
    labels = [f"{record.get('row', '')} {record.get('title', '')}: {record['figure']}".strip(" :") for record in shown]
    if compared:
        limits = [float(record["target"].split()[1]) for record in shown]
        values = [record["value"] / limit for record, limit in zip(shown, limits, strict=True)]
        colours = ["tab:green" if record["met"] else "tab:red" for record in shown]
        bars = axes.barh(labels, values, color=colours)
        axes.bar_label(bars, [f"{record['value']:.3g} ({record['target']})" for record in shown], padding=3)
        axes.axvline(1.0, color="black", linewidth=1)
        axes.set_xlabel("measured / target")
        axes.margins(x=0.2)
    else:
        values = [record["value"] for record in shown]
        spread = [[r["value"] - r["low"] for r in shown], [r["high"] - r["value"] for r in shown]]
        axes.barh(labels, values, xerr=spread, capsize=3)
        axes.set_xlabel("seconds (median and quartiles)")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
