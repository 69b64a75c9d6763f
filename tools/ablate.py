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

import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # where common/, tools/ and the folders of the tasks are

from yacs.config import CfgNode  # noqa: E402

from common.errors import StoppedBySignal, UserError, printable  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.csv_table import append_rows, read_table  # noqa: E402
from common.runtime.signals import stop_with_parent  # noqa: E402
from common.training.config_values import find  # noqa: E402
from image_classification.config import CONFIG  # noqa: E402
from tools.helpers.markdown import markdown_table, replace_section  # noqa: E402
from tools.plot_curves import read_records  # noqa: E402

LAUNCHER = ROOT / "image_classification" / "main_multi_gpu.py"
DEFAULT_CONFIGS = ROOT / "image_classification" / "configs" / "ablation_small"
BASE = "base.yaml"  # shared by the configurations of a folder, and not one of them
REFERENCE = "shape_pale"  # the row that the others are compared with; one of the default configurations
SECTION = "ablation"  # the part of a document that the table replaces
POLL_SECONDS = 0.2
# What a resumed run may change, but not the runs of a table.
SETTINGS_OF_A_RESULT = (
    *("MODEL.PRETRAINED", "DATA.DATA_PATH", "DATA.BATCH_SIZE", "AUG.REPEATS"),
    *("TRAIN.EPOCHS", "TRAIN.ACCUM_ITER", "TRAIN.COOLDOWN"),
)


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
        date: when the run finished.
    """

    row: str
    seed: int
    top1: float
    params: int
    multiply_adds: int
    code_version: str
    machine: str
    date: str


@dataclass
class Job:
    """One run: a configuration with a seed.

    Attributes:
        row: name of the configuration file, without suffix.
        file: the yaml file.
        config: its values.
        seed: random seed.
        folder: output folder of the run.
        process: of the launcher, once it was started.
    """

    row: str
    file: Path
    config: CfgNode
    seed: int
    folder: Path
    process: subprocess.Popen | None = None

    def __str__(self) -> str:
        return f"{self.row} seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def require_same_settings(self, results: Path) -> None:
        """Refuse a finished or interrupted run of other settings, if its folder is still there.

        Raises:
            UserError: a setting that influences the result differs.
        """
        if not (self.folder / "config.yaml").is_file():
            return
        then = CONFIG.load(Namespace(cfg=str(self.folder / "config.yaml"), opts=[]))
        differences = CONFIG.differences(then, self.config)
        differences += [
            f"{key} was {find(then, key)}, is {find(self.config, key)}"
            for key in SETTINGS_OF_A_RESULT
            if find(then, key) != find(self.config, key)
        ]
        if differences:
            raise UserError(
                f"{self.folder} has a run of other settings: {differences[0]}; give another -output, or delete this "
                f"folder, and the line of {self} in {results} if there is one, to repeat it"
            )

    def start(self, options: Sequence[str]) -> None:
        """Start the launcher, which resumes if the run was interrupted."""
        command = [sys.executable, str(LAUNCHER), "-cfg", str(self.file.resolve()), "-seed", str(self.seed)]
        command += ["-output", str(self.folder.resolve()), "-resume", "auto"]
        command += ["-opts", *options] if options else []
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this program only, which passes it on
                preexec_fn=stop_with_parent,  # this program may be killed
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
        train = self.config.TRAIN
        last = read_records(self.folder, "val_ema" if train.EMA_DECAY else "val")[-1]
        epochs, epoch, top1 = train.EPOCHS + train.COOLDOWN, last.get("epoch"), last.get("top1")
        if not isinstance(top1, float) or (epoch != epochs and not train.EARLY_STOP):
            at = f"{epoch:g}" if isinstance(epoch, float) else epoch
            raise UserError(f"the log of {self.folder} ends with epoch {at} of {epochs} and top1 {top1}")
        return round(top1, 4)


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
        table = report(read_table(file, Result), file)
        print(table)
        if arguments.into:
            replace_section(arguments.into, SECTION, table)
    else:
        train_all(arguments, file)


def find_configs(paths: Sequence[Path], options: Sequence[str]) -> dict[Path, CfgNode]:
    """Read the configurations in files and folders.

    Raises:
        UserError: one is missing or invalid, or two have the same name.
    """
    files = []
    for path in paths:
        files += sorted(file for file in path.glob("*.yaml") if file.name != BASE) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{' '.join(map(str, paths))} has no configuration *.yaml")
    names = [file.stem for file in files]
    for file in files:
        if names.count(file.stem) > 1:
            raise UserError(f"several configurations are called {file.name}; rename them")
    return {file: CONFIG.load(Namespace(cfg=str(file), opts=list(options))) for file in files}


def costs_of(file: Path, config: CfgNode) -> tuple[int, int]:
    """Parameters and multiply-adds of a configuration; the data set is opened for its number of classes.

    Raises:
        UserError: the model or the data cannot be built; the message names the file.
    """
    from common.flops import count_flops, params
    from image_classification.datasets import build_dataset
    from image_classification.pale_backbone import build_model

    data = config.DATA
    try:
        classes = config.MODEL.NUM_CLASSES or build_dataset(data.DATASET, data.DATA_PATH or None, "val").num_classes
        model = build_model(config, classes)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return params(model), count_flops(model, data.IMAGE_SIZE, data.IMAGE_SIZE)


def train_all(arguments: Namespace, file: Path) -> None:
    """Run what is not yet in the results file, and append each result as soon as it is known.

    Raises:
        UserError: a configuration is invalid, or runs failed (the others were finished first).
        StoppedBySignal: SIGINT, SIGTERM or SIGHUP was received; the current runs have saved their states.
    """
    from common.runtime.device import select_device
    from common.runtime.machine import code_version, describe_device

    configs = find_configs(arguments.configs or [DEFAULT_CONFIGS], arguments.opts)
    finished = {(result.row, result.seed) for result in read_table(file, Result)}
    jobs = [
        Job(path.stem, path, config, seed, arguments.output / path.stem / f"seed{seed}")
        for seed, (path, config) in product(arguments.seeds, configs.items())
    ]
    waiting = [job for job in jobs if (job.row, job.seed) not in finished]
    for job in jobs:
        job.require_same_settings(file)
    total = len(arguments.seeds) * len(configs)
    print(f"{total} runs: {total - len(waiting)} are finished, {len(waiting)} are left", flush=True)
    if not waiting:
        return
    costs = {path.stem: costs_of(path, config) for path, config in configs.items()}  # fails if a data set is missing
    ran_on = code_version(), describe_device(select_device(waiting[0].config.DEVICE))
    failed = []
    for number, job in enumerate(run_jobs(waiting, arguments.jobs, arguments.opts), total - len(waiting) + 1):
        try:
            top1 = job.top1()
        except UserError as error:
            failed.append(job)
            print(printable(f"[{number}/{total}] {job} failed: {error}"), flush=True)
            continue
        if any((result.row, result.seed) == (job.row, job.seed) for result in read_table(file, Result)):
            print(f"[{number}/{total}] {job}: another program has written its result", flush=True)
            continue
        append_rows(file, Result, [Result(job.row, job.seed, top1, *costs[job.row], *ran_on, str(date.today()))])
        print(printable(f"[{number}/{total}] {job}: top-1 {top1:.2f}"), flush=True)
    if failed:
        raise UserError(
            f"{len(failed)} runs failed ({', '.join(map(str, failed))}); run the same command again to repeat them"
        )
    print(printable(f"all results are in {file}"))


def run_jobs(jobs: Sequence[Job], at_once: int, options: Sequence[str]) -> Iterator[Job]:
    """Do all runs, some at a time, and yield each when its process has ended.

    Args:
        at_once: how many at a time.
        options: ``KEY VALUE ...``, which override the configurations.

    Raises:
        StoppedBySignal: SIGINT, SIGTERM or SIGHUP was received; the current runs have saved their states.
    """
    from common.runtime.signals import StopRequest

    queue, running = list(jobs), []
    with StopRequest() as stop:
        try:
            while (queue or running) and not stop.signal_number:
                while queue and len(running) < at_once:
                    queue[0].start(options)
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


def report(results: Sequence[Result], file: Path) -> str:
    """A Markdown table of the rows' mean accuracies, their deviations, and differences to the reference row.

    The reference is ``shape_pale`` or, if it is not there, the first row.

    Raises:
        UserError: there are no results, or a run has two.
    """
    if not results:
        raise UserError(f"{file} has no results yet; run without -report first, or give another -results")
    runs = Counter((result.row, result.seed) for result in results)
    if twice := [f"{row} seed {seed}" for (row, seed), count in runs.items() if count > 1]:
        raise UserError(f"{file} has several results of {', '.join(twice)}; delete all but one")
    rows: dict[str, list[float]] = {}
    costs = {result.row: (result.params, result.multiply_adds) for result in results}
    for result in sorted(results, key=lambda result: (result.row != REFERENCE, result.row)):
        rows.setdefault(result.row, []).append(result.top1)
    reference = next(iter(rows))
    lines, squares = [], 0.0
    for row, values in rows.items():
        mean = statistics.mean(values)
        squares += sum((value - mean) ** 2 for value in values)
        deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        difference = "" if row == reference else f"{mean - statistics.mean(rows[reference]):+.2f}"
        params, multiply_adds = (f"{cost / 1e6:.{digits}f}M" for cost, digits in zip(costs[row], (3, 2), strict=True))
        lines.append([f"`{row}`", params, multiply_adds, str(len(values)), f"{mean:.2f}{deviation}", difference])
    header = ["row", "params", "multiply-adds", "seeds", "top-1, mean ± standard deviation"]
    table = markdown_table([*header, f"difference to `{reference}`"], lines, right=range(1, 6))
    freedom = len(results) - len(rows)
    if not freedom:
        return table
    pooled = (squares / freedom) ** 0.5
    return (
        f"{table}\n\nStandard deviation of one run, pooled over all rows: {pooled:.2f} ({freedom} degrees of freedom)."
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__, "0 success, 2 invalid input or failed runs, 128 + signal number after saving, 1 other errors"
    )
    configs = f"yaml files or folders of them, without {BASE} (default: image_classification/configs/ablation_small)"
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", help=configs)
    parser.add_flag(
        "seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of each row (default: 0 1 2)"
    )
    parser.add_flag("jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    output = "folder of the runs (default: %(default)s)"
    parser.add_flag("output", type=Path, default=Path("output/ablation"), metavar="FOLDER", help=output)
    parser.add_flag("results", type=Path, metavar="FILE", help="CSV file (default: results.csv in -output)")
    parser.add_flag("report", action="store_true", help="print the results as a Markdown table instead of training")
    into = f"with -report: document to update, at <!-- begin {SECTION} -->"
    parser.add_flag("into", type=Path, metavar="FILE", help=into)
    parser.add_opts()
    return parser


if __name__ == "__main__":
    run(main)
