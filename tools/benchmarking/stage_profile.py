"""What bounds each stage of a model, arithmetic or bytes: a profile against what the machine can do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from tools.benchmarking.comparisons import Measurements, gemm_rate
from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.output import MACHINE, Record, pyplot, save_figure, table
from tools.benchmarking.subjects import Copy, Profile, Subject, gemms

__all__ = ["COLUMNS", "DEFAULT_MODELS", "draw", "markdown", "study"]

DEFAULT_MODELS = ("pale_tiny",)
ALL = "all"  # the part, or the stage, that is the sum of the others
COLUMNS = (
    *("model", "batch", "image_size", "stage", "part", "multiply_adds", "bytes", "flop_per_byte"),
    *("arithmetic_seconds", "bytes_seconds", "bound", "bound_seconds", "seconds", "low", "high", "share_of_time"),
    *("share_of_bound", "gemm_flops_per_second", "copy_bytes_per_second", "threads", "device", "rounds", "versions"),
    *MACHINE,
)
_COPY = "copy"


def study(options: Namespace, measure: Callable[[Sequence[Subject], int], list[Measurement]]) -> list[Record]:
    """Profile the models one after the other; the machine's products and copies take turns with each.

    Args:
        options: of the command line: ``models``, ``batch``, ``image_size``, ``threads``, ``device``, ``rounds``.
        measure: runs subjects in turn, for so many rounds.
    """
    settings = {name: getattr(options, name) for name in ("batch", "image_size", "threads", "device")}
    records = []
    for name in options.models:
        profile = Profile(name=name, model=name, **{key: value for key, value in settings.items() if value})
        copy = Copy(name=_COPY, threads=profile.threads, device=profile.device)
        measured = measure([profile, copy, *gemms(profile.threads, profile.device)], options.rounds)
        records += profile_records({measurement.subject.name: measurement for measurement in measured}, profile)
    return records


def profile_records(measured: Measurements, profile: Profile) -> list[Record]:
    """A record of each part, one of each stage and one of the model; medians of the rounds.

    A part's bound is the longer of two times: of its operations at the rate of the machine's best product of matrices,
    and of its bytes at the rate of a copy. A stage's bound is the sum of its parts'.
    """
    measurement, copy = measured[profile.name], measured[_COPY]
    flop_rate, byte_rate = gemm_rate(measured), copy.subject.bytes_moved / copy.median
    parts = []
    for rounds in zip(*measurement.parts, strict=True):
        first, seconds = rounds[0], [each["seconds"] for each in rounds]
        arithmetic, moving = 2 * first["multiply_adds"] / flop_rate, first["bytes"] / byte_rate
        times = {"arithmetic_seconds": arithmetic, "bytes_seconds": moving, "bound_seconds": max(arithmetic, moving)}
        bound = "arithmetic" if arithmetic > moving else "bytes"
        parts.append({**first, **times, "bound": bound, "seconds": median(seconds)})
    records = []
    for stage, of_stage in groupby(parts, key=lambda part: part["stage"]):
        of_stage = list(of_stage)
        records += of_stage if len(of_stage) == 1 else [*of_stage, _sum(of_stage, stage)]
    low, high = measurement.quartiles
    records.append({**_sum(parts, ALL), "low": low, "high": high})
    common = {
        **{name: getattr(profile, name) for name in ("model", "batch", "image_size", "threads", "device")},
        "gemm_flops_per_second": flop_rate,
        "copy_bytes_per_second": byte_rate,
        "rounds": len(measurement.seconds),
        "versions": measurement.versions,
    }
    total = records[-1]["seconds"]
    return [{**common, **record, **_shares(record, total)} for record in records]


def _sum(parts: Sequence[Record], stage: str) -> Record:
    """The whole of some parts; what bounds it is what bounds the parts that need most of its bound."""
    keys = ("multiply_adds", "bytes", "arithmetic_seconds", "bytes_seconds", "bound_seconds", "seconds")
    record = {"stage": stage, "part": ALL, **{key: sum(part[key] for part in parts) for key in keys}}
    arithmetic = sum(part["bound_seconds"] for part in parts if part["bound"] == "arithmetic")
    return {**record, "bound": "arithmetic" if 2 * arithmetic > record["bound_seconds"] else "bytes"}


def _shares(record: Record, total: float) -> Record:
    return {
        "flop_per_byte": 2 * record["multiply_adds"] / record["bytes"],
        "share_of_time": record["seconds"] / total,
        "share_of_bound": record["bound_seconds"] / record["seconds"],
    }


def markdown(records: Sequence[Record]) -> str:
    """A sentence on the machine and a table for each model."""
    return "\n\n".join(
        _markdown_of_model(list(of_model)) for _, of_model in groupby(records, key=lambda record: record["model"])
    )


def _markdown_of_model(records: Sequence[Record]) -> str:
    first = records[0]
    flop_rate, byte_rate = first["gemm_flops_per_second"] / 1e9, first["copy_bytes_per_second"] / 1e9
    intro = (
        f"{first['model']}, eager forward of {first['batch']} images of {first['image_size']}x{first['image_size']}. "
        f"The machine multiplies matrices at {flop_rate:.0f} GFLOP/s and copies at {byte_rate:.0f} GB/s, "
        f"so that arithmetic bounds what does more than {flop_rate / byte_rate:.1f} operations for a byte."
    )
    stages = [record for record in records if record["part"] == ALL or record["stage"] == record["part"]]
    parts = [record for record in records if record not in stages]
    return "\n\n".join([intro, _table(stages, ("stage",)), _table(parts, ("stage", "part"))])


def _table(records: Sequence[Record], names: tuple[str, ...]) -> str:
    header = [*names, "G multiply-adds", "MB", "FLOP/byte", "bound by", "bound, ms", "time, ms", "of all time"]
    header.append("bound / time")
    rows = [
        [
            *(record[name] for name in names),
            f"{record['multiply_adds'] / 1e9:.3f}" if record["multiply_adds"] else "",
            f"{record['bytes'] / 1e6:.1f}",
            f"{record['flop_per_byte']:.1f}" if record["multiply_adds"] else "",
            record["bound"],
            f"{1e3 * record['bound_seconds']:.1f}",
            f"{1e3 * record['seconds']:.1f}",
            f"{100 * record['share_of_time']:.1f} %",
            f"{100 * record['share_of_bound']:.0f} %",
        ]
        for record in records
    ]
    return table(header, rows, (*names, "bound by"))


def draw(records: Sequence[Record], file: Path) -> None:
    """Draw the first model: the time of each stage's parts beside their bounds, and the roofline."""
    records = [record for record in records if record["model"] == records[0]["model"]]
    parts = [record for record in records if record["part"] != ALL]
    names = list(dict.fromkeys(record["part"] for record in parts))
    colours = dict(zip(names, pyplot().get_cmap("tab10").colors, strict=False))
    figure, (bars, roofline) = pyplot().subplots(1, 2, figsize=(11, 5), layout="constrained")
    _draw_bars(bars, parts, colours)
    _draw_roofline(roofline, parts, colours)
    handles = [pyplot().Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    first = records[0]
    figure.suptitle(
        f"{first['model']}, eager forward of {first['batch']} images of {first['image_size']}x{first['image_size']}, "
        f"{first['threads']} threads"
    )
    save_figure(figure, file)


def _draw_bars(axes, parts: Sequence[Record], colours: dict[str, tuple]) -> None:
    labels, width = [], 0.36
    for place, (stage, of_stage) in enumerate(groupby(parts, key=lambda part: part["stage"])):
        labels.append(f"stage {stage}" if stage.isdigit() else stage)
        of_stage = list(of_stage)
        for key, shift in (("seconds", -0.2), ("bound_seconds", 0.2)):
            left = 0.0
            for part in of_stage:
                milliseconds = 1e3 * part[key]
                hatch = None if key == "seconds" else "////"
                bar = {"left": left, "color": colours[part["part"]], "hatch": hatch, "edgecolor": "white"}
                axes.barh(place + shift, milliseconds, width, linewidth=0.4, **bar)
                left += milliseconds
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="ms")
    axes.set_title("measured; hatched below: the bound", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)


def _draw_roofline(axes, parts: Sequence[Record], colours: dict[str, tuple]) -> None:
    flop_rate, byte_rate = parts[0]["gemm_flops_per_second"] / 1e9, parts[0]["copy_bytes_per_second"] / 1e9
    counted = [part for part in parts if part["multiply_adds"]]
    for part in counted:
        reached = 2e-9 * part["multiply_adds"] / part["seconds"]
        label = f"${part['stage']}$" if part["stage"].isdigit() else "$h$"
        axes.scatter(part["flop_per_byte"], reached, s=70, marker=label, color=colours[part["part"]])
    intensities = [part["flop_per_byte"] for part in counted]
    left, right = min(intensities) / 2, 2 * max(intensities)
    ridge = flop_rate / byte_rate
    axes.plot([left, ridge, right], [left * byte_rate, flop_rate, flop_rate], color="black", linewidth=1)
    axes.annotate(f"{flop_rate:.0f} GFLOP/s", (right, flop_rate), (0, 4), textcoords="offset points", ha="right")
    axes.annotate(f"{byte_rate:.0f} GB/s", (left, left * byte_rate), (12, -3), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="operations for a byte (FLOP/byte)", ylabel="reached, GFLOP/s")
    axes.set_title("digits: stages, h: head", fontsize="medium")
    axes.grid(which="both", alpha=0.2)
