"""Train configurations of image classification in several seeds, and compare what they reach.

    python tools/ablate.py -jobs 2
    python tools/ablate.py -list
    python tools/ablate.py -report -into docs/ablation.md -plot docs/ablation.png
    python tools/ablate.py my_configs/*.yaml -seeds 0 1 2 3 4 -output output/mine -opts TRAIN.EPOCHS 5

A row is a configuration, a run a row with a seed, in a process of one thread. The same command goes on after an
interruption: it leaves out the runs that are in the results, and the others resume. Ctrl-C lets the runs save first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and tools/ are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from tools.ablation.jobs import Job, exclusive, work  # noqa: E402
from tools.ablation.results import Result, read_results, write_results  # noqa: E402
from tools.ablation.rows import Counts, Row, count, default_files, load_rows  # noqa: E402

SECTION = "ablation"  # the part of a document that the table replaces
Key = tuple[str, int]  # row and seed of a run


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    results = {(result.row, result.seed): result for result in read_results(arguments.results)}
    if arguments.report:
        _report(arguments, list(results.values()))
        return
    rows = load_rows(arguments.configs or default_files(), arguments.opts)
    jobs = [Job(row, seed, arguments.output, arguments.opts) for seed in arguments.seeds for row in rows]
    if arguments.list:
        _list(rows, jobs, results, arguments.json)
        return
    _refuse_changed(jobs, results, arguments)
    with exclusive(arguments.output):
        _run(jobs, results, arguments)


def _check(arguments: Namespace) -> None:
    """Reject what cannot be meant before anything runs."""
    if arguments.jobs < 1:
        raise UserError(f"-jobs is {arguments.jobs}; it must be at least 1")
    if min(arguments.seeds) < 0 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"-seeds {' '.join(map(str, arguments.seeds))}: they must be different and not negative")
    if arguments.results is None:
        arguments.results = arguments.output / "results.csv"
    if not arguments.report and (arguments.into or arguments.plot):
        raise UserError("-into and -plot belong to -report; add it")
    if arguments.json and not (arguments.report or arguments.list):
        raise UserError("-json belongs to -report or -list; add one of them")


# ---- run


def _is_current(row: Row, result: Result | None) -> bool:
    return result is not None and result.fingerprint == row.fingerprint


def _refuse_changed(jobs: Sequence[Job], results: dict[Key, Result], arguments: Namespace) -> None:
    """Stop where results would be replaced by those of another configuration, unless that was asked for."""
    for job in jobs:
        old = results.get((job.row.name, job.seed))
        if old and not _is_current(job.row, old) and not arguments.rerun:
            raise UserError(
                f"{arguments.results} has {job} of another configuration ({old.fingerprint}, now "
                f"{job.row.fingerprint}); replace what has changed with -rerun, or give another -results"
            )


def _run(jobs: Sequence[Job], results: dict[Key, Result], arguments: Namespace) -> None:
    """Do what is not in the results yet, and write each result as soon as it is there."""
    from common.runtime.device import select_device
    from common.runtime.machine import code_version, describe_device

    waiting = [job for job in jobs if not _is_current(job.row, results.get((job.row.name, job.seed)))]
    print(f"{len(jobs)} runs: {len(jobs) - len(waiting)} are finished, {len(waiting)} are left", flush=True)
    if not waiting:
        return
    counts = {name: count(row) for name, row in {job.row.name: job.row for job in waiting}.items()}
    ran_on = code_version(), describe_device(select_device(waiting[0].row.config.DEVICE))
    failed: list[Job] = []
    progress = _Progress(len(jobs), waiting)
    with progress.bar, closing(work(waiting, arguments.jobs, progress.update)) as ended:
        for job in ended:
            try:
                if job.exit_code():
                    raise UserError(job.failure())
                result = _result(job, counts[job.row.name], *ran_on)
            except UserError as error:
                failed.append(job)
                progress.finish(job, f"failed: {str(error).removeprefix('error: ')}; all it said: {job.log}")
                continue
            results[result.row, result.seed] = result
            write_results(results.values(), arguments.results)
            progress.finish(job, f"top-1 {result.top1:.2f}, best {result.best_top1:.2f}")
    if failed:
        names = ", ".join(map(str, failed))
        raise UserError(f"{len(failed)} of {len(waiting)} runs failed ({names}); the same command tries them again")
    print(f"all results are in {arguments.results}")


def _result(job: Job, counts: Counts, version: str, machine: str) -> Result:
    return Result(
        row=job.row.name,
        seed=job.seed,
        **job.figures(),
        params=counts.params,
        multiply_adds=counts.multiply_adds,
        fingerprint=job.row.fingerprint,
        code_version=version,
        machine=machine,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    )


class _Progress:
    """A line for each run that ended and, on a terminal, a bar below them.

    Args:
        total: all runs, finished ones included.
        waiting: those that are to be done.
    """

    def __init__(self, total: int, waiting: Sequence[Job]):
        self._total, self._unfinished, self._last = total, list(waiting), ""
        self._began, self._at_first = time.monotonic(), self._behind()
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=total, disable=hidden, leave=False, bar_format="{percentage:3.0f} %|{bar:20}| {desc}")

    def _behind(self) -> float:
        """Runs behind us, those under way as the part of them that is done."""
        return self._total - len(self._unfinished) + sum(job.share() for job in self._unfinished)

    def _left(self) -> str:
        """How long the rest will take at the pace of what this program has done."""
        behind = self._behind()
        done = behind - self._at_first
        if done <= 0:
            return "time left unknown"
        seconds = (time.monotonic() - self._began) / done * (self._total - behind)
        return f"{timedelta(seconds=round(seconds))} left"

    def update(self) -> None:
        if not self.bar.disable:
            self.bar.n = self._behind()
            ended = self._total - len(self._unfinished)
            self.bar.set_description_str(f"{ended} of {self._total} runs, {self._left()}{self._last}")

    def finish(self, job: Job, outcome: str) -> None:
        self._unfinished.remove(job)
        self._last = f", last: {job}, {outcome}"
        ended = self._total - len(self._unfinished)
        tqdm.write(f"[{ended}/{self._total}] {job}: {outcome}; {self._left()}", file=sys.stdout)
        sys.stdout.flush()


# ---- look


def _list(rows: Sequence[Row], jobs: Sequence[Job], results: dict[Key, Result], as_json: bool) -> None:
    """Print what each row costs and how far its runs are."""
    width = max(len(row.name) for row in rows)
    records = []
    for row in rows:
        states, counts = {}, None
        for job in jobs:
            if job.row is row:
                result = results.get((row.name, job.seed))
                current = result if _is_current(row, result) else None
                counts = Counts(current.params, current.multiply_adds) if current else counts
                states[job.seed] = {
                    "top1": current and current.top1,
                    "share": 1.0 if current else job.share(),
                    "changed": result is not current,
                }
        counts = counts or count(row)
        records.append({"row": row.name, **asdict(counts), "seeds": states})
        if not as_json:
            cost = f"{counts.params / 1e6:.3f}M params  {counts.multiply_adds / 1e6:.2f}M multiply-adds"
            print(f"{row.name:{width}}  {cost}  {'  '.join(map(_state, states.values()))}", flush=True)
    if as_json:
        print(json.dumps(records, indent=2))


def _state(state: Mapping[str, Any]) -> str:
    if state["changed"]:
        return "changed"
    return f"{100 * state['share']:.0f} %" if state["top1"] is None else f"{state['top1']:.2f}"


def _report(arguments: Namespace, results: Sequence[Result]) -> None:
    """Print the table, and write it and the picture where that was asked for."""
    from tools.ablation.report import draw, markdown, records, summarise
    from tools.markdown_section import replace_section

    if arguments.configs:
        raise UserError("-report shows all rows of -results; leave out the configurations")
    if not results:
        raise UserError(f"{arguments.results} has no results yet; run without -report first, or give another -results")
    comparison = summarise(results, arguments.reference)
    table = markdown(comparison)
    print(json.dumps(records(comparison), indent=2) if arguments.json else table)
    if arguments.plot:
        draw(comparison, arguments.plot)
    if arguments.into:
        replace_section(arguments.into, SECTION, table)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__,
        "0 done, 2 wrong input or failed runs, 128 + signal when one made the runs save and leave, 1 anything else",
    )
    what = parser.add_argument_group("what is run")
    what.add_argument(
        "configs",
        nargs="*",
        type=Path,
        metavar="CONFIG",
        help="yaml files, each a row (default: image_classification/configs/ablation_small without its base.yaml)",
    )
    parser.add_flag(
        "seeds", what, nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of every row (default: 0 1 2)"
    )
    parser.add_flag("jobs", what, type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_flag("rerun", what, action="store_true", help="replace results whose configuration has changed")
    parser.add_flag(
        "opts", what, nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...: keys of every row; comes last"
    )
    look = parser.add_argument_group("instead of running")
    parser.add_flag("list", look, action="store_true", help="show what each row costs and how far its runs are")
    parser.add_flag("report", look, action="store_true", help="print the results as a Markdown table")
    parser.add_flag("json", look, action="store_true", help="with -list or -report: print JSON instead")
    parser.add_flag(
        "reference",
        look,
        default="shape_pale",
        metavar="ROW",
        help="with -report: what the others are compared with (default: %(default)s)",
    )
    parser.add_flag(
        "into",
        look,
        type=Path,
        metavar="FILE",
        help=f"with -report: Markdown to put it into, at <!-- begin {SECTION} -->",
    )
    parser.add_flag("plot", look, type=Path, metavar="FILE", help="with -report: picture to draw")
    files = parser.add_argument_group("files")
    parser.add_flag(
        "output",
        files,
        type=Path,
        default=Path("output/ablation"),
        metavar="FOLDER",
        help="of the runs (default: %(default)s)",
    )
    parser.add_flag("results", files, type=Path, metavar="FILE", help="CSV file (default: results.csv in -output)")
    return parser


if __name__ == "__main__":
    run(main)
