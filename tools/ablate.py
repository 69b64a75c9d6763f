"""Train several configurations of image classification with several seeds, and compare their accuracies.

    python tools/ablate.py -jobs 2
    python tools/ablate.py -report
    python tools/ablate.py -report -results results/ablation.csv -into docs/ablation.md
    python tools/ablate.py my_configs -seeds 0 1 2 3 4 -output output/mine -opts TRAIN.EPOCHS 5

Each run is a process of image_classification/main_multi_gpu.py on one thread, and becomes one line of the results file.
After an interruption, the same command continues: finished runs are skipped, the others resume from their last
checkpoint. To repeat a finished run, delete its line from the results file and its folder.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # where common/, tools/ and the folders of the tasks are

from yacs.config import CfgNode  # noqa: E402

from common.errors import StoppedBySignal, UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.csv_table import append_rows, read_table  # noqa: E402
from image_classification.config import CONFIG  # noqa: E402
from tools.helpers.markdown import markdown_table, replace_section  # noqa: E402
from tools.plot_curves import read_records  # noqa: E402

LAUNCHER = ROOT / "image_classification" / "main_multi_gpu.py"
DEFAULT_CONFIGS = ROOT / "image_classification" / "configs" / "ablation_small"
BASE = "base.yaml"  # shared by the configurations of a folder, and not one of them
REFERENCE = "shape_pale"  # of the default configurations
SECTION = "ablation"  # the part of a document that the table replaces
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Result:
    """One finished run, a line of the results file.

    Attributes:
        row: name of the configuration file, without suffix.
        seed: random seed of the run.
        top1: validation accuracy in percent after the last epoch.
        params: number of trainable values.
        multiply_adds: of the forward pass on one image.
        code_version: see :func:`common.runtime.machine.code_version`.
        machine: see :func:`common.runtime.machine.describe_device`.
        date: when the run finished, in UTC.
    """

    row: str
    seed: int
    top1: float
    params: int
    multiply_adds: int
    code_version: str
    machine: str
    date: str


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        name: name of the configuration file, without suffix.
        file: the yaml file.
        config: its values.
    """

    name: str
    file: Path
    config: CfgNode

    @cached_property
    def costs(self) -> tuple[int, int]:
        """Parameters and multiply-adds; the data set is opened for its number of classes."""
        from common.flops import count_flops, params
        from image_classification.datasets import build_dataset
        from image_classification.pale_backbone import build_model

        data = self.config.DATA
        classes = self.config.MODEL.NUM_CLASSES
        classes = classes or build_dataset(data.DATASET, data.DATA_PATH or None, "val").num_classes
        model = build_model(self.config, classes)
        return params(model), count_flops(model, data.IMAGE_SIZE, data.IMAGE_SIZE)


class Job:
    """One run: a configuration with a seed.

    Args:
        options: ``KEY VALUE ...``, which override the configuration.
        output: folder of all runs.
    """

    def __init__(self, row: Row, seed: int, options: Sequence[str], output: Path):
        self.row, self.seed, self.options = row, seed, options
        self.folder = output / row.name / f"seed{seed}"
        self.log = self.folder.with_suffix(".log")
        self.process: subprocess.Popen | None = None

    def __str__(self) -> str:
        return f"{self.row.name} seed {self.seed}"

    def start(self) -> None:
        """Start the launcher, which resumes if the run was interrupted."""
        command = [sys.executable, str(LAUNCHER), "-cfg", str(self.row.file.resolve()), "-seed", str(self.seed)]
        command += ["-output", str(self.folder.resolve()), "-resume", "auto"]
        command += ["-opts", *self.options] if self.options else []
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this program only, which passes it on
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def top1(self) -> float:
        """Accuracy after the last epoch, of the averaged weights if the run averages them.

        Raises:
            UserError: the run failed, or its log does not reach the last epoch.
        """
        if self.process.returncode:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise UserError(f"{(errors or lines or ['no output'])[-1]}; the whole output is in {self.log}")
        train = self.row.config.TRAIN
        last = read_records(self.folder, "val_ema" if train.EMA_DECAY else "val")[-1]
        if last["epoch"] != train.EPOCHS:
            raise UserError(f"the log of {self.folder} ends with epoch {last['epoch']:g} of {train.EPOCHS}")
        return round(last["top1"], 4)


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.jobs < 1:
        raise UserError(f"-jobs is {arguments.jobs}; it must be at least 1")
    if min(arguments.seeds) < 0 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"-seeds {' '.join(map(str, arguments.seeds))}: seeds must be different and not negative")
    if arguments.into and not arguments.report:
        raise UserError("-into needs -report")
    file = arguments.results or arguments.output / "results.csv"
    if arguments.report:
        table = report(read_table(file, Result), file, arguments.reference)
        print(table)
        if arguments.into:
            replace_section(arguments.into, SECTION, table)
    else:
        train_all(arguments, file)


def find_rows(paths: Sequence[Path], options: Sequence[str]) -> list[Row]:
    """Read the configurations in files and folders.

    Raises:
        UserError: one is missing or invalid, or two have the same name.
    """
    rows: dict[str, Row] = {}
    for path in paths:
        files = sorted(path.glob("*.yaml"), key=lambda file: _natural(file.stem)) if path.is_dir() else [path]
        for file in files:
            if path.is_dir() and file.name == BASE:
                continue
            if file.stem in rows:
                raise UserError(f"{rows[file.stem].file} and {file} have the same name; rename one")
            config = CONFIG.load(Namespace(cfg=str(file), opts=list(options)))
            rows[file.stem] = Row(file.stem, file, config)
    if not rows:
        raise UserError(f"{' '.join(map(str, paths))} has no configuration *.yaml")
    return list(rows.values())


def train_all(arguments: Namespace, file: Path) -> None:
    """Do the runs that are not in the results file, and append each result as soon as it is known.

    Raises:
        UserError: a configuration is invalid, or runs failed (the others were finished first).
        StoppedBySignal: SIGINT or SIGTERM was received; the current runs have saved their states.
    """
    from common.runtime.device import select_device
    from common.runtime.machine import code_version, describe_device

    rows = find_rows(arguments.configs or [DEFAULT_CONFIGS], arguments.opts)
    finished = {(result.row, result.seed) for result in read_table(file, Result)}
    jobs = [Job(row, seed, arguments.opts, arguments.output) for seed in arguments.seeds for row in rows]
    waiting = [job for job in jobs if (job.row.name, job.seed) not in finished]
    print(f"{len(jobs)} runs: {len(jobs) - len(waiting)} are finished, {len(waiting)} are left", flush=True)
    if not waiting:
        return
    ran_on = code_version(), describe_device(select_device(waiting[0].row.config.DEVICE))
    for job in waiting:
        _ = job.row.costs  # fails now if the data set is missing
    failed = []
    for number, job in enumerate(run_jobs(waiting, arguments.jobs), len(jobs) - len(waiting) + 1):
        try:
            today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
            result = Result(job.row.name, job.seed, job.top1(), *job.row.costs, *ran_on, today)
        except UserError as error:
            failed.append(job)
            print(f"[{number}/{len(jobs)}] {job} failed: {error}", flush=True)
            continue
        append_rows(file, Result, [result])
        print(f"[{number}/{len(jobs)}] {job}: top-1 {result.top1:.2f}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} runs failed ({', '.join(map(str, failed))}); the same command repeats them")
    print(f"all results are in {file}")


def run_jobs(jobs: Sequence[Job], at_once: int) -> Iterator[Job]:
    """Run all jobs, ``at_once`` at a time, and yield each when its process has ended.

    Raises:
        StoppedBySignal: SIGINT or SIGTERM was received; the current runs have saved their states.
    """
    from common.runtime.signals import StopRequest

    queue, running = list(jobs), []
    with StopRequest() as stop:
        try:
            while (queue or running) and not stop.signal_number:
                while queue and len(running) < at_once:
                    queue[0].start()
                    running.append(queue.pop(0))
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    yield job
        finally:
            for job in running:
                job.process.terminate()  # it saves a checkpoint and exits
            for job in running:
                job.process.wait()
    if stop.signal_number:
        raise StoppedBySignal(stop.signal_number)


def report(results: Sequence[Result], file: Path, reference: str | None) -> str:
    """A Markdown table of the rows' mean accuracies, their deviations, and differences to the reference row.

    Raises:
        UserError: there are no results, or none of the reference.
    """
    if not results:
        raise UserError(f"{file} has no results yet; run without -report first, or give another -results")
    rows: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: _natural(result.row)):
        rows.setdefault(result.row, []).append(result)
    reference = reference or (REFERENCE if REFERENCE in rows else next(iter(rows)))
    if reference not in rows:
        raise UserError(f"{file} has no results of -reference {reference}; there are {', '.join(rows)}")
    means = {row: statistics.mean(result.top1 for result in runs) for row, runs in rows.items()}
    lines = []
    for row in (reference, *(row for row in rows if row != reference)):
        runs = rows[row]
        deviation = f" ± {statistics.stdev(result.top1 for result in runs):.2f}" if len(runs) > 1 else ""
        difference = "" if row == reference else f"{means[row] - means[reference]:+.2f}"
        costs = f"{runs[0].params / 1e6:.3f}M", f"{runs[0].multiply_adds / 1e6:.2f}M"
        lines.append([f"`{row}`", *costs, str(len(runs)), f"{means[row]:.2f}{deviation}", difference])
    header = ["row", "params", "multiply-adds", "seeds", "top-1, mean ± standard deviation"]
    table = markdown_table([*header, f"difference to `{reference}`"], lines, right=range(1, 6))
    freedom = len(results) - len(rows)
    if not freedom:
        return table
    pooled = (sum((result.top1 - means[result.row]) ** 2 for result in results) / freedom) ** 0.5
    return (
        f"{table}\n\nStandard deviation of one run, pooled over all rows: {pooled:.2f} ({freedom} degrees of freedom)."
    )


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that orders numbers by value: ``size_9`` before ``size_10``."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def _end_with_parent() -> None:
    """Send SIGTERM to this process when its parent is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of <sys/prctl.h>


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__, "0 done, 2 wrong input or failed runs, 128 + signal after the runs have saved, 1 anything else"
    )
    parser.add_argument(
        "configs",
        nargs="*",
        type=Path,
        metavar="CONFIG",
        help=f"yaml files or folders of them, without {BASE} (default: image_classification/configs/ablation_small)",
    )
    parser.add_flag("seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of each row (default: 0 1 2)")
    parser.add_flag("jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_flag(
        "output",
        type=Path,
        default=Path("output/ablation"),
        metavar="FOLDER",
        help="for the runs (default: %(default)s)",
    )
    parser.add_flag("results", type=Path, metavar="FILE", help="CSV file (default: results.csv in -output)")
    parser.add_flag("report", action="store_true", help="print the results as a Markdown table instead of training")
    parser.add_flag(
        "reference",
        metavar="ROW",
        help=f"with -report: row that the others are compared with (default: {REFERENCE}, or the first row)",
    )
    parser.add_flag(
        "into", type=Path, metavar="FILE", help=f"with -report: document to update, at <!-- begin {SECTION} -->"
    )
    parser.add_flag("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...: override every row; comes last")
    return parser


if __name__ == "__main__":
    run(main)
