"""Measure the time of models against each other, or (-suite) every row of the performance table.

python tools/benchmark.py pale_tiny paddleclas:swin_tiny -batch 8
python tools/benchmark.py pale_tiny timm:swin_tiny -runtime onnxruntime
python tools/benchmark.py -suite -rows 1 3
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and tools/ are

from common.entry_point import ArgumentParser, run  # noqa: E402
from common.errors import UserError  # noqa: E402

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "numpy", "onnxruntime", "paddle2onnx", "paddleclas")


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if bool(arguments.models) == arguments.suite:
        raise UserError("name models to compare, or give -suite")
    for name, least in (("rounds", 1), ("warmup", 1), ("threads", 1), ("batch", 1), ("image_size", 32)):
        if getattr(arguments, name) < least:
            raise UserError(f"-{name} is {getattr(arguments, name)}; it must be at least {least}")

    from tqdm import tqdm

    from tools.benchmarking import report
    from tools.benchmarking.machine import describe_machine, installed_versions

    machine = describe_machine() | {"versions": installed_versions(PACKAGES)}
    records: list[dict[str, Any]] = []
    with tqdm(disable=not sys.stderr.isatty(), leave=False, bar_format="{desc} [{elapsed}]") as line:
        measured = _suite(arguments, line) if arguments.suite else _comparison(arguments, line)
        for new_records in measured:
            records += new_records
            report.write_csv(records, machine, arguments.out / "benchmark.csv")
    report.draw(records, arguments.out / "benchmark.png")
    print(
        json.dumps({"machine": machine, "records": records}, indent=2) if arguments.json else report.markdown(records)
    )


def _comparison(arguments: Namespace, line):
    from tools.benchmarking import report
    from tools.benchmarking.interleaving import measure
    from tools.benchmarking.subjects import Model

    settings = ("runtime", "mode", "batch", "image_size", "dtype", "device", "threads", "recompute")
    chosen = {name: getattr(arguments, name) for name in settings}
    subjects = [Model(name=name, model=name, **chosen) for name in arguments.models]
    measured = measure(subjects, arguments.rounds, arguments.warmup, arguments.peer_python, line.set_description_str)
    yield report.measurement_records(measured)


def _suite(arguments: Namespace, line):
    from tools.benchmarking import report
    from tools.benchmarking.interleaving import measure
    from tools.benchmarking.suite import ROWS

    for row in ROWS:
        if arguments.rows and row.number not in arguments.rows:
            continue

        def progress(text: str, number: int = row.number) -> None:
            line.set_description_str(f"row {number}: {text}")

        measured = measure(row.subjects, arguments.rounds, arguments.warmup, arguments.peer_python, progress)
        yield [
            *report.measurement_records(measured, row=row.number, title=row.title),
            *report.comparison_records(row, {result.subject.name: result for result in measured}),
        ]


def _parser() -> ArgumentParser:
    from tools.benchmarking.subjects import DTYPES, MODES, RUNTIMES

    summary, _, examples = __doc__.partition("\n\n")
    parser = ArgumentParser(
        description=summary,
        epilog=f"Examples:\n{examples}\nExit codes: 0 done, 2 wrong input, 1 anything else.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="pale_nano, pale_tiny, ..., paddleclas:NAME or timm:NAME"
    )
    parser.add_flag("suite", action="store_true", help="measure the rows of the performance table")
    parser.add_flag("rows", nargs="+", type=int, default=[], metavar="N", help="only these rows of the suite")
    parser.add_flag("runtime", choices=RUNTIMES, default="eager", help="where models run (default: %(default)s)")
    parser.add_flag("mode", choices=MODES, default="forward", help="what is timed (default: %(default)s)")
    parser.add_flag("batch", type=int, default=8, help="images in a batch (default: %(default)s)")
    parser.add_flag("image_size", type=int, default=224, help="side in pixels (default: %(default)s)")
    parser.add_flag("dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    parser.add_flag("recompute", action="store_true", help="train our models with recomputation")
    parser.add_flag("device", default="cpu", help="cpu, gpu or gpu:N (default: %(default)s)")
    parser.add_flag("threads", type=int, default=2, help="threads of each process (default: %(default)s)")
    parser.add_flag("rounds", type=int, default=9, help="turns of each subject (default: %(default)s)")
    parser.add_flag("warmup", type=int, default=2, help="runs before the first round (default: %(default)s)")
    parser.add_flag(
        "peer_python",
        type=Path,
        default=Path(".venv-peers/bin/python"),
        help="Python that has timm (default: %(default)s)",
    )
    parser.add_flag(
        "out", type=Path, default=Path("output/benchmark"), help="folder of CSV and picture (default: %(default)s)"
    )
    parser.add_flag("json", action="store_true", help="print JSON instead of a table")
    parser.add_flag("debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    run(main)
