"""What an ablation shows: a table and a picture of the rows against one of them, with the uncertainty of the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from tools.ablation.results import Result
from tools.markdown_table import markdown_table

__all__ = ["Comparison", "Summary", "draw", "markdown", "records", "summarise"]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A row over its seeds.

    Attributes:
        row: its name.
        top1: accuracies in % after the last epoch, one a seed.
        params, multiply_adds: see :class:`tools.ablation.rows.Counts`.
    """

    row: str
    top1: tuple[float, ...]
    params: int
    multiply_adds: int

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds; ``None`` for one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """The rows against one of them.

    The seeds' spread is taken to be the same for every row, so that it is estimated from all of them: with three seeds
    a row's own standard deviation says little. The intervals hold together: with a probability of at least 95 % none of
    them misses its true difference (Bonferroni).

    Attributes:
        reference: what the others are compared with.
        others: in the order of the results.
        deviation: standard deviation of a run, pooled over the rows; ``None`` if no row has two seeds.
        freedom: degrees of freedom of that estimate.
    """

    reference: Summary
    others: tuple[Summary, ...]
    deviation: float | None
    freedom: int

    def difference(self, row: Summary) -> float:
        """Mean of the row less that of the reference, in percentage points."""
        return row.mean - self.reference.mean

    def half_width(self, row: Summary) -> float | None:
        """Half of the interval of the difference, or ``None`` if there is no estimate of the spread."""
        if self.deviation is None:
            return None
        from scipy.stats import t

        quantile = t.ppf(1 - (1 - _CONFIDENCE) / (2 * len(self.others)), self.freedom)
        return float(quantile) * self.deviation * (1 / len(row.top1) + 1 / len(self.reference.top1)) ** 0.5


def summarise(results: Sequence[Result], reference: str) -> Comparison:
    """Put the runs of each row together.

    Raises:
        UserError: the reference is missing, or the runs of a row are of different configurations.
    """
    runs: dict[str, list[Result]] = {}
    for result in results:
        runs.setdefault(result.row, []).append(result)
    if reference not in runs:
        raise UserError(f"no results of {reference}, which the others are compared with; there are {', '.join(runs)}")
    for row, found in runs.items():
        if len({result.fingerprint for result in found}) > 1:
            raise UserError(f"{row} has runs of different configurations; run it again with -rerun")
    rows = {
        row: Summary(row, tuple(result.top1 for result in found), found[0].params, found[0].multiply_adds)
        for row, found in runs.items()
    }
    freedom = sum(len(row.top1) - 1 for row in rows.values())
    squares = sum((top1 - row.mean) ** 2 for row in rows.values() for top1 in row.top1)
    deviation = (squares / freedom) ** 0.5 if freedom else None
    others = tuple(summary for row, summary in rows.items() if row != reference)
    return Comparison(rows[reference], others, deviation, freedom)


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """What :func:`markdown` shows, for programs: a dict for each row, the reference first, with all digits.

    ``difference`` and ``half_width`` of its interval are ``None`` for the reference.
    """
    return [
        {
            **asdict(row),
            "mean": row.mean,
            "deviation": row.deviation,
            "difference": None if row is comparison.reference else comparison.difference(row),
            "half_width": None if row is comparison.reference else comparison.half_width(row),
        }
        for row in (comparison.reference, *comparison.others)
    ]


def markdown(comparison: Comparison) -> str:
    """A table, the reference first; differences whose interval leaves out 0 are bold."""
    header = ["row", "params", "multiply-adds", "seeds", "top-1, mean and standard deviation"]
    header.append(f"difference to `{comparison.reference.row}`")
    rows = []
    for row in (comparison.reference, *comparison.others):
        spread = "" if row.deviation is None else f" ± {row.deviation:.2f}"
        costs = f"{row.params / 1e6:.3f}M", f"{row.multiply_adds / 1e6:.2f}M"
        difference = "" if row is comparison.reference else _difference(comparison, row)
        rows.append([f"`{row.row}`", *costs, str(len(row.top1)), f"{row.mean:.2f}{spread}", difference])
    table = markdown_table(header, rows, right=range(1, len(header)))
    if not comparison.others:
        return table
    if comparison.deviation is None:
        return f"{table}\n\nOne seed a row: how much of a difference is chance, only more -seeds can tell."
    return (
        f"{table}\n\nStandard deviation of a run, pooled over the rows: {comparison.deviation:.2f} "
        f"({comparison.freedom} degrees of freedom). All intervals together hold with a probability of at least "
        f"{100 * _CONFIDENCE:.0f} %; bold differences are those whose interval leaves out 0."
    )


def _difference(comparison: Comparison, row: Summary) -> str:
    difference, half_width = comparison.difference(row), comparison.half_width(row)
    if half_width is None:
        return f"{difference:+.2f}"
    text = f"{difference:+.2f} ± {half_width:.2f}"
    return f"**{text}**" if abs(difference) > half_width else text


def draw(comparison: Comparison, file: Path) -> None:
    """Draw every run as a dot and, about the mean of each row, the interval of its difference to the reference.

    Raises:
        UserError: the picture cannot be written; its suffix chooses the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reference, rows = comparison.reference, (comparison.reference, *comparison.others)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes.axvline(reference.mean, color="tab:blue", linewidth=1, label=f"mean of {reference.row}")
    for place, row in enumerate(rows):
        axes.plot(row.top1, [place] * len(row.top1), "o", markersize=4, alpha=0.6, color="tab:blue")
        half_width = None if row is reference else comparison.half_width(row)
        clear = half_width is not None and abs(comparison.difference(row)) > half_width
        colour = "tab:red" if clear else "black"
        axes.errorbar(row.mean, place, xerr=half_width, fmt="|", markersize=12, capsize=3, color=colour)
    axes.set_yticks(range(len(rows)), [row.row for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    intervals = comparison.deviation is not None and comparison.others
    explanation = f", {100 * _CONFIDENCE:.0f} % interval of the difference to the line (red: leaves it out)"
    axes.set_xlabel(f"top-1 in %: runs (dots), mean{explanation if intervals else ''}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {file}: {error}") from error
    finally:
        plt.close(figure)
