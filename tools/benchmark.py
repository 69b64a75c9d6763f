"""Measure the speed of models, ours and their peers, in several runtimes.

    python tools/benchmark.py pale_tiny paddleclas:swin_tiny paddleclas:cswin_tiny
    python tools/benchmark.py pale_tiny -runtime eager static inference onnxruntime
    python tools/benchmark.py pale_tiny pale_small -mode train -batch 4 8 -csv speed.csv
    python tools/benchmark.py pale_tiny timm:swin_tiny timm:davit_tiny -runtime onnxruntime openvino_bf16 -batch 1

MODEL is a name of create_model, paddleclas:NAME (swin_tiny, cswin_tiny, convnext_tiny) or timm:NAME (any model of timm,
in ONNX Runtime and OpenVINO). All models and runtimes take turns, so that a machine that slows down slows all of them;
the table has the median and the minimum over the turns. Times are compared with the first model in the same runtime
or, if there is one model, with its first runtime.
"""

from __future__ import annotations

import csv
import gc
import io
import os
import platform
import shlex
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and tools/ are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.atomic_file import write_text  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.device import select_device  # noqa: E402
from common.runtime.folders import refuse_existing  # noqa: E402
from tools.helpers.markdown import markdown_table, read_section, replace_section  # noqa: E402

if TYPE_CHECKING:
    from tools.helpers.benchmark_runtimes import Case, Step

# Those of tools/helpers/benchmark_runtimes.py.
_MOST_THREADS = 1024
RUNTIMES = ("eager", "static", "inference", "onnxruntime", "openvino_f32", "openvino_bf16")
MODES = ("infer", "train")
SECTION = "benchmark"  # of the document that -into names
WARMUP = 2  # runs before the first turn
MIN_TURN = 0.5  # seconds: a turn repeats a short run and takes the median
PAUSE = 0.25  # seconds between turns: OpenMP's threads keep a core busy for 0.2 s after their last work
PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddleclas", "paddle2onnx", "onnxruntime", "openvino", "numpy")


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read when Paddle is imported
    device = select_device(arguments.device)
    records: list[dict[str, Any]] = []
    try:
        for cases in _groups(arguments, device):
            records += _records(_measure(cases, arguments.rounds))
    finally:  # what was measured before an error or an interruption is not lost
        if records:
            print(_table(records))
            if arguments.csv:
                _write_csv(arguments.csv, records)
    if arguments.into:
        command = shlex.join(["python", "tools/benchmark.py", *argv])
        note = f"Median and minimum of {arguments.rounds} turns. {_machine(arguments.threads)}. `{command}`"
        replace_section(arguments.into, SECTION, f"{_table(records)}\n\n{note}")


def _check(arguments: Namespace) -> None:
    """Refuse impossible flags before anything is measured."""
    for name, least in {"rounds": 1, "threads": 1, "batch": 1, "size": 32}.items():
        values = getattr(arguments, name)
        for value in values if isinstance(values, list) else [values]:
            if value < least:
                raise UserError(f"-{name} is {value}; it must be at least {least}")
    if arguments.threads > _MOST_THREADS:  # OpenMP would end the process
        raise UserError(f"-threads is {arguments.threads}; it must be at most {_MOST_THREADS}")
    for name in ("models", "runtime", "mode", "batch", "size"):
        values = getattr(arguments, name)
        if len(set(values)) < len(values):
            raise UserError(f"{name} {' '.join(map(str, values))}: duplicates are not allowed")
    if arguments.csv:
        refuse_existing(arguments.csv, "-csv")
    if arguments.into:
        read_section(arguments.into, SECTION)  # complains if there is none


def _groups(arguments: Namespace, device: str) -> list[list[Case]]:
    """The cases that take turns together: all possible ones of a mode, a batch size and an image size.

    Raises:
        UserError: nothing is possible for a model.
    """
    from tools.helpers.benchmark_runtimes import Case, is_possible

    groups = []
    for mode, size, batch in product(arguments.mode, arguments.size, arguments.batch):
        cases = [
            Case(model, runtime, mode, batch, size, arguments.threads, device, arguments.amp)
            for runtime, model in product(arguments.runtime, arguments.models)
        ]
        groups.append([case for case in cases if is_possible(case)])
    missing = set(arguments.models) - {case.model for cases in groups for case in cases}
    if missing:
        raise UserError(
            f"{sorted(missing)[0]}: none of -runtime {' '.join(arguments.runtime)} can run it with -mode "
            f"{' '.join(arguments.mode)}{' -amp' * arguments.amp}; timm: needs onnxruntime or openvino; train and -amp "
            "need eager or static"
        )
    return groups


# ---- measuring


@dataclass
class Subject:
    """A built case.

    Attributes:
        memory: the most bytes of Paddle's allocator during a run, weights and optimizer included; None if not counted.
        seconds: of one run, for each turn.
    """

    case: Case
    step: Step
    memory: int | None
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def build(cls, case: Case) -> Subject:
        from tools.helpers.benchmark_runtimes import RUNTIMES

        gc.collect()  # what earlier subjects left must not be freed while this one is counted
        before = _memory(case, "current_value")
        step = RUNTIMES[case.runtime](case)
        for _ in range(WARMUP):
            _memory(case, "reset_peak_value")
            step()
        peak = _memory(case, "peak_value")
        return cls(case, step, None if peak is None else peak - before)

    def take_turn(self) -> None:
        runs: list[float] = []
        while sum(runs) < MIN_TURN:
            began = time.perf_counter()
            self.step()
            runs.append(time.perf_counter() - began)
        self.seconds.append(statistics.median(runs))


def _measure(cases: Sequence[Case], rounds: int) -> list[Subject]:
    if not cases:
        return []
    subjects = [Subject.build(case) for case in _progress(cases, "building")]
    for _ in _progress(range(rounds), f"{cases[0].mode}, batch {cases[0].batch}, {cases[0].size}x{cases[0].size}"):
        for subject in subjects:
            time.sleep(PAUSE)
            subject.take_turn()
    return subjects


def _memory(case: Case, what: str) -> int | None:
    """A statistic of Paddle's allocator; None where Paddle does not compute or, before version 3, counts no peak."""
    from paddle.base import core

    on_cpu = case.device == "cpu"
    function = getattr(core, f"{'host' if on_cpu else 'device'}_memory_stat_{what}", None)
    if function is None or case.runtime not in ("eager", "static"):
        return None
    return function("Allocated", 0 if on_cpu else int(case.device.partition(":")[2] or 0))


def _progress(items: Sequence, text: str) -> Iterator:
    return iter(tqdm(items, text, disable=not sys.stderr.isatty(), leave=False))


# ---- reporting


def _records(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Plain values of each subject of one group."""
    several_models = len({subject.case.model for subject in subjects}) > 1
    records = []
    for subject in subjects:
        first = next(s for s in subjects if not several_models or s.case.runtime == subject.case.runtime)
        median = statistics.median(subject.seconds)
        records.append(
            {
                **asdict(subject.case),
                "turns": len(subject.seconds),
                "median_seconds": median,
                "min_seconds": min(subject.seconds),
                "ratio": median / statistics.median(first.seconds),
                "images_per_second": subject.case.batch / median,
                "memory_mb": None if subject.memory is None else subject.memory / 2**20,
            }
        )
    return records


def _table(records: Sequence[dict[str, Any]]) -> str:
    header = ["model", "runtime", "mode", "batch", "size", "median, ms", "min, ms", "time / first", "images/s", "MB"]
    rows = [
        [
            *(str(record[name]) for name in ("model", "runtime", "mode", "batch", "size")),
            *(_milliseconds(record[name]) for name in ("median_seconds", "min_seconds")),
            f"{record['ratio']:.2f}",
            f"{record['images_per_second']:.1f}",
            "" if record["memory_mb"] is None else f"{record['memory_mb']:.0f}",
        ]
        for record in records
    ]
    return markdown_table(header, rows, right=range(3, len(header)))


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2f}"


def _write_csv(file: Path, records: Sequence[dict[str, Any]]) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [*records[0], "machine"])
    writer.writeheader()
    writer.writerows(record | {"machine": _machine(record["threads"])} for record in records)
    write_text(file, table.getvalue())


def _machine(threads: int) -> str:
    """Processor, threads, versions, commit and date."""
    from common.runtime.machine import code_version, cpu_model, installed_versions
    from tools.helpers.benchmark_runtimes import peer_versions

    where = f"{cpu_model()}, {os.cpu_count()} cores, {threads} threads, Python {platform.python_version()}"
    versions = [f"{package} {version}" for package, version in installed_versions(PACKAGES).items()]
    return ", ".join([where, *versions, *sorted(peer_versions), f"project {code_version()}", str(date.today())])


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    what = parser.add_argument_group("models and inputs")
    what.add_argument(
        "models", nargs="+", metavar="MODEL", help="pale_tiny or another variant, paddleclas:NAME or timm:NAME"
    )
    several = {"nargs": "+", "metavar": "N", "type": int}
    names = f"one or more of {', '.join(RUNTIMES)} (default: eager)"
    parser.add_flag("runtime", what, nargs="+", choices=RUNTIMES, default=["eager"], metavar="NAME", help=names)
    modes = "infer: forward; train: forward, backward and AdamW (default: infer)"
    parser.add_flag("mode", what, nargs="+", choices=MODES, default=["infer"], help=modes)
    parser.add_flag("batch", what, default=[8], help="images in a batch (default: 8)", **several)
    parser.add_flag("size", what, default=[224], help="height and width of the images (default: 224)", **several)
    how = parser.add_argument_group("measurement")
    parser.add_flag("rounds", how, type=int, default=9, metavar="N", help="turns per model (default: %(default)s)")
    parser.add_flag("threads", how, type=int, default=2, metavar="N", help="on CPUs (default: %(default)s)")
    parser.add_flag("device", how, default="cpu", help="cpu, gpu or gpu:N (default: %(default)s)")
    parser.add_flag("amp", how, action="store_true", help="mixed precision in bfloat16, in eager and static")
    output = parser.add_argument_group("output")
    parser.add_flag("csv", output, type=Path, metavar="FILE", help="write all figures to this file; it must not exist")
    into = f"write the table into this document, between <!-- begin {SECTION} --> and <!-- end {SECTION} -->"
    parser.add_flag("into", output, type=Path, metavar="FILE", help=into)
    return parser


if __name__ == "__main__":
    run(main)
