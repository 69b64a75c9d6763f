"""Plot the training loss and the validation metric of one or more runs.

    python tools/plot_curves.py output/pale_nano_mnist5k -out mnist5k.png
    python tools/plot_curves.py output/seed0 output/seed1 -out seeds.svg

The runs must be of one task. The metric is the one that selects the best weights: top-1, mIoU or box AP.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ is

from common.errors import UserError, one_line, printable  # noqa: E402
from common.runtime.atomic_file import replace_file  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.folders import refuse_existing  # noqa: E402
from common.runtime.regular_file import read_lines  # noqa: E402
from common.schema import check_value  # noqa: E402

# The metric that selects the best weights of a task -> the unit of the horizontal axis, and its title.
METRICS = {"top1": ("epoch", "top-1"), "mIoU": ("step", "mIoU"), "box_AP": ("epoch", "box AP")}


def read_records(folder: Path, kind: str) -> list[dict]:
    """The records of one kind (``train``, ``val``, ``val_ema``) of a run's ``log.jsonl``, oldest first.

    Raises:
        UserError: the folder has no log, or its log has no such record or is damaged.
    """
    file = folder / "log.jsonl"
    try:
        records = [json.loads(line) for line in read_lines(file)]
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give the -output folder of a run") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    records = check_value(records, list[dict[str, float | str]], str(file))
    chosen = [record for record in records if record.get("kind") == kind]
    if not chosen:
        shorter = ", or with a smaller LOG_INTERVAL" if kind == "train" else ""
        raise UserError(f"{file} has no {kind} record yet; train longer{shorter}")
    return chosen


def _points(records: Sequence[Mapping[str, float | str]], unit: str, metric: str) -> list[tuple[float, float]]:
    """The place and the value of each record that has both; a value that is not finite is not in the log."""
    pairs = [(record.get(unit), record.get(metric)) for record in records]
    return [(x, y) for x, y in pairs if isinstance(x, float) and isinstance(y, float)]


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    refuse_existing(arguments.out, "-out")
    data = [(folder, read_records(folder, "train"), read_records(folder, "val")) for folder in arguments.runs]

    found = [metric for metric in METRICS if all(_points(val, METRICS[metric][0], metric) for _, _, val in data)]
    if not found:
        raise UserError(f"the runs have none of {', '.join(METRICS)} in common; plot runs of one task at a time")
    criterion = found[0]
    unit, title = METRICS[criterion]

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["text.parse_math"] = False  # names of folders may have dollar signs

    # One above the other, so that the texts can be read on a phone, too.
    figure, (loss_axes, metric_axes) = plt.subplots(
        2, 1, figsize=(5.5, 5 + 0.2 * len(data)), sharex=True, layout="constrained"
    )
    for folder, train, val in data:
        name = printable(folder.name)
        name = " " * name.startswith("_") + name  # matplotlib leaves names that begin with _ out of the legend
        loss_axes.plot(*zip(*_points(train, unit, "loss"), strict=True), label=name)
        points = _points(val, unit, criterion)
        label = f"{name}: {max(y for _, y in points):.2f} %"
        metric_axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    loss_axes.set(title="training", ylabel="loss")
    metric_axes.set(title="validation", xlabel=unit, ylabel=f"{title} in %")
    metric_axes.set_xlim(left=0)
    metric_axes.xaxis.get_major_locator().set_params(integer=True)
    lines = metric_axes.get_legend_handles_labels()
    figure.legend(*lines, title="best", loc="outside lower center", frameon=False)  # where it hides no curve
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
    try:
        with replace_file(arguments.out, new=True) as file:
            figure.savefig(file, dpi=180, format=arguments.out.suffix[1:] or "png")
    except Exception as error:  # matplotlib raises any type, of formats and of values too large for an axis
        raise UserError(f"cannot write {arguments.out}: {one_line(error)}") from error
    print(printable(f"wrote {arguments.out}"))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_flag(
        "out",
        type=Path,
        required=True,
        metavar="FILE",
        help="image to write; it must not exist; its suffix determines the format",
    )
    return parser


if __name__ == "__main__":
    run(main)
