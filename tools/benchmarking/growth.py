"""How the cost of a model grows with the image, the batch and the ranks, against its counted operations."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.output import MACHINE, Record, digits, pyplot, save_figure, table
from tools.benchmarking.subjects import MODES, Model, Ranks, Subject

__all__ = ["COLUMNS", "DEFAULT_MODELS", "draw", "markdown", "study"]

DEFAULT_MODELS = ("pale_tiny",)
# What fits into 16 GB when all of a sweep wait for their turns.
SIZES = {"forward": (112, 160, 224, 320, 448, 640, 896), "train": (112, 160, 224, 320, 448, 640)}  # one image
BATCHES = {"forward": (1, 2, 4, 8, 16, 32), "train": (1, 2, 4, 8, 16)}
RANKS = (1, 2)
RANKS_MODEL = "pale_nano"  # what the launcher of image classification trains
BY_SIZE, BY_BATCH, BY_RANKS = "image size", "batch", "ranks"
COLUMNS = (
    *("sweep", "model", "mode", "batch", "image_size", "ranks", "seconds", "low", "high", "seconds_per_image"),
    *("images_per_second", "gflop_per_image", "gflops_per_second", "memory_growth", "threads", "device", "rounds"),
    *("versions", *MACHINE),
)


def study(options: Namespace, measure: Callable[[Sequence[Subject], int], list[Measurement]]) -> list[Record]:
    """Measure one sweep after the other; the members of each take turns.

    Args:
        options: of the command line: ``models``, ``sizes``, ``batches``, ``ranks``, ``image_size`` (of the sweep over
            batches), ``threads``, ``device``, ``rounds``.
        measure: runs subjects in turn, for so many rounds: one for the ranks, whose runs are long and have medians of
            their own.
    """
    return [
        _record(sweep, measurement)
        for sweep, subjects in sweeps(options)
        for measurement in measure(subjects, 1 if sweep == BY_RANKS else options.rounds)
    ]


def sweeps(options: Namespace) -> Iterator[tuple[str, list[Subject]]]:
    """What varies, and the subjects: models in forward passes and train steps; ranks on CPUs only."""
    settings = {key: getattr(options, key) for key in ("threads", "device") if getattr(options, key)}
    for name in options.models:
        for mode in MODES:
            by_size = [(1, size) for size in options.sizes or SIZES[mode]]
            by_batch = [(batch, options.image_size or Model.image_size) for batch in options.batches or BATCHES[mode]]
            for sweep, shapes in ((BY_SIZE, by_size), (BY_BATCH, by_batch)):
                subjects = [
                    Model(
                        name=f"{name} {mode} {batch}x{size}x{size}",
                        **{"model": name, "mode": mode, "batch": batch, "image_size": size, **settings},
                    )
                    for batch, size in shapes
                ]
                yield sweep, subjects
    if settings.get("device", "cpu") == "cpu":
        yield BY_RANKS, [Ranks(name=f"{ranks} ranks", ranks=ranks) for ranks in options.ranks or RANKS]


def _record(sweep: str, measurement: Measurement) -> Record:
    subject, (low, high) = measurement.subject, measurement.quartiles
    per_image = 1.0 / measurement.images_per_second
    return {
        "sweep": sweep,
        "model": getattr(subject, "model", RANKS_MODEL),
        "mode": getattr(subject, "mode", "train"),
        **{name: getattr(subject, name, None) for name in ("batch", "image_size", "ranks")},
        "seconds": measurement.median,
        "low": low,
        "high": high,
        "seconds_per_image": per_image,
        "images_per_second": measurement.images_per_second,
        "gflop_per_image": measurement.flops and measurement.flops / measurement.images / 1e9,
        "gflops_per_second": measurement.flops and measurement.flops_per_second / 1e9,
        "memory_growth": measurement.memory_growth,
        "threads": subject.threads,
        "device": subject.device,
        "rounds": len(measurement.seconds),
        "versions": measurement.versions,
    }


def markdown(records: Sequence[Record]) -> str:
    """One table of all sweeps."""
    header = ["by", "model", "pass", "image", "batch", "ranks", "time, ms", "an image, ms", "images/s"]
    header += ["GFLOP an image", "GFLOP/s", "memory, MB"]
    rows = [
        [
            record["sweep"],
            record["model"],
            record["mode"],
            *(str(record[key] or "") for key in ("image_size", "batch", "ranks")),
            digits(1e3 * record["seconds"]),
            digits(1e3 * record["seconds_per_image"]),
            digits(record["images_per_second"]),
            digits(record["gflop_per_image"]) if record["gflop_per_image"] else "",
            f"{record['gflops_per_second']:.0f}" if record["gflops_per_second"] else "",
            f"{record['memory_growth'] / 2**20:.0f}" if record["memory_growth"] is not None else "",
        ]
        for record in records
    ]
    return table(header, rows, ("by", "model", "pass"))


def draw(records: Sequence[Record], file: Path) -> None:
    """Draw the time of an image of the first model by its size and by the batch, and the rate by the ranks."""
    first = records[0]
    of_first = [record for record in records if record["model"] == first["model"]]
    by_size, by_batch = ([record for record in of_first if record["sweep"] == sweep] for sweep in (BY_SIZE, BY_BATCH))
    ranks = [record for record in records if record["sweep"] == BY_RANKS]
    figure, panels = pyplot().subplots(1, 2 + bool(ranks), figsize=(11, 3.8), layout="constrained")
    _draw_times(panels[0], by_size, "image_size")
    panels[0].set(xlabel="pixels of a side, one image at a time", yscale="log")
    _draw_times(panels[1], by_batch, "batch")
    size = by_batch[0]["image_size"]
    panels[1].set(xlabel=f"images of {size}x{size} in a batch", ylim=(0, None))
    if ranks:
        _draw_rates(panels[2], ranks)
    figure.suptitle(f"{first['model']}, {first['threads']} threads" + f"; {RANKS_MODEL} on ranks" * bool(ranks))
    save_figure(figure, file)


def _draw_times(axes, records: Sequence[Record], key: str) -> None:
    """The time of an image, and what it would be if it grew as the operations do from the usual image or batch."""
    for mode, colour in zip(MODES, ("tab:blue", "tab:orange"), strict=True):
        line = [record for record in records if record["mode"] == mode]
        values = [record[key] for record in line]
        times = [[1e3 * record[which] / record["batch"] for record in line] for which in ("seconds", "low", "high")]
        spread = [np.subtract(times[0], times[1]), np.subtract(times[2], times[0])]
        axes.errorbar(values, times[0], spread, marker="o", markersize=4, capsize=2, color=colour, label=mode)
        usual = min(line, key=lambda record: abs(record[key] - getattr(Model, key)))
        rate = usual["seconds_per_image"] / usual["gflop_per_image"]
        counted = [1e3 * rate * record["gflop_per_image"] for record in line]
        axes.plot(values, counted, "--", linewidth=1, color=colour, label=f"{mode}, as FLOPs grow")
    axes.set(xscale="log", ylabel="ms an image")
    ticks = sorted({record[key] for record in records})
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_rates(axes, records: Sequence[Record]) -> None:
    counts, rates = ([record[key] for record in records] for key in ("ranks", "images_per_second"))
    axes.plot(counts, rates, marker="o", markersize=4, color="tab:orange", label="train")
    even = [rates[0] * count / counts[0] for count in counts]
    axes.plot(counts, even, "--", linewidth=1, color="tab:orange", label="train, in proportion to the ranks")
    axes.set(xlabel="ranks, one thread each", ylabel="images/s", ylim=(0, None))
    axes.legend(fontsize="small", loc="lower right")
    axes.set_xticks(counts, counts)
    axes.grid(alpha=0.3)
