"""Measure models against each other, in turn, or (-suite) every row of the performance table, or (-study) one closely.

    python tools/benchmark.py pale_tiny paddleclas:swin_tiny
    python tools/benchmark.py pale_tiny -mode train -batch 4 -runtime eager static
    python tools/benchmark.py pale_tiny timm:swin_tiny timm:davit_tiny -runtime onnxruntime -batch 1
    python tools/benchmark.py -suite -rows 1 3
    python tools/benchmark.py pale_tiny -study profile growth
    python tools/benchmark.py -study clusters -gpus 8 64

Every model gets a process of its own, and all take turns; medians count. The first model is compared with the others.
paddleclas:NAME is swin_tiny, cswin_tiny or convnext_tiny, timm:NAME any model of timm. The table goes to stdout,
benchmark.csv and benchmark.png to -out.

The studies are of this project's models: profile says what bounds each stage and part, arithmetic or bytes; growth how
cost grows with image, batch and ranks; clusters what training on many GPUs would take, computed and not measured. Each
prints a table and writes performance_NAME.csv to -out, the first two performance_NAME.png as well.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and tools/ are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from tools.benchmarking import studies  # noqa: E402
from tools.benchmarking.documents import require_places, write_table  # noqa: E402
from tools.benchmarking.output import Record, write_csv  # noqa: E402
from tools.benchmarking.subjects import DTYPES, MODES, RUNTIMES, Gemm, Model, Subject, gemms, variants  # noqa: E402

if TYPE_CHECKING:  # it imports numpy, for which -h need not wait
    from tools.benchmarking.interleaving import Measurement

# Flags that describe what is run; the rows of the suite say so themselves.
MODEL_FLAGS = ("runtime", "mode", "batch", "image_size", "dtype", "device", "threads", "recompute")
_SUITE = "suite"  # what documents call the place of its table
LEAST = {"rounds": 1, "warmup": 1, "threads": 1, "batch": 1, "image_size": 32}


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)

    from tools.benchmarking.machine import describe_machine

    machine = describe_machine()
    with tqdm(disable=not sys.stderr.isatty(), leave=False, bar_format="{desc} [{elapsed}]") as line:
        records, text = (_studies if arguments.study else _comparisons)(arguments, machine, line)
    print(json.dumps({"machine": machine, "records": records}, indent=2) if arguments.json else text)


def _comparisons(arguments: Namespace, machine: Record, line: tqdm) -> tuple[list[Record], str]:
    """Measure models or the suite and write CSV and picture; return the records and the table."""
    from tools.benchmarking import report

    records: list[Record] = []
    for new_records in (_suite if arguments.suite else _models)(arguments, line):
        records += new_records
        write_csv(records, machine, arguments.out / "benchmark.csv", report.COLUMNS)  # a later row may fail
    if all(record["value"] is None for record in records):
        raise UserError("nothing could be measured; the lines above say why")
    report.draw(records, arguments.out / "benchmark.png")
    if arguments.into:
        write_table(arguments.into, _SUITE, report.suite_markdown(records), records, machine)
    return records, report.markdown(records)


def _studies(arguments: Namespace, machine: Record, line: tqdm) -> tuple[list[Record], str]:
    return studies.make(arguments, machine, partial(_in_turn, arguments, line))


def _in_turn(arguments: Namespace, line: tqdm, subjects: Sequence[Subject], rounds: int) -> list[Measurement]:
    """Measure subjects as the flags say; products of libraries that are not installed may be missing."""
    from tools.benchmarking.interleaving import measure

    progress = line.set_description_str
    return measure(subjects, rounds, arguments.warmup, arguments.peer_python, progress, _leave_out_gemm)


def _leave_out_gemm(subject: Subject, error: UserError) -> None:
    """Go without the product of a library that is not installed."""
    if not isinstance(subject, Gemm):
        raise error


def _check(arguments: Namespace) -> None:
    """Reject what cannot be meant before anything is measured."""
    studies.check(arguments)
    if not arguments.study and bool(arguments.models) == arguments.suite:
        raise UserError("name the models to measure, or give -suite; one of the two")
    given = [name for name in MODEL_FLAGS if getattr(arguments, name)]
    if arguments.suite and given:
        raise UserError(f"-suite says itself what it runs; leave out -{' -'.join(given)}")
    if arguments.rows and not arguments.suite:
        raise UserError("-rows chooses rows of the suite; add -suite")
    if arguments.into:
        places = [_SUITE] if arguments.suite else arguments.study
        if not places:
            raise UserError("-into is for the tables of -suite and -study; add one of them")
        require_places(arguments.into, places)
    for name, least in (LEAST | studies.LEAST).items():
        values = getattr(arguments, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < least:
                raise UserError(f"-{name} is {value}; it must be at least {least}")
    for name in ("models", "runtime", *studies.LISTS):
        values = getattr(arguments, name) or []
        repeated = {str(value) for value in values if values.count(value) > 1}
        if repeated:
            raise UserError(f"{', '.join(sorted(repeated))} stands twice among the {name}; name each once")


def _models(arguments: Namespace, line: tqdm) -> Iterator[list[Record]]:
    """Measure the models of the command line, and the rate of the machine's products of matrices."""
    from tools.benchmarking.comparisons import time_ratio
    from tools.benchmarking.report import comparison_records, measurement_records

    chosen = {name: getattr(arguments, name) for name in MODEL_FLAGS if getattr(arguments, name)}
    runtimes = chosen.pop("runtime", [Model.runtime])
    models = [
        Model(name=name if len(runtimes) == 1 else f"{name} {runtime}", model=name, runtime=runtime, **chosen)
        for name in arguments.models
        for runtime in runtimes
    ]
    first, *others = [[variant.name for variant in variants(model)] for model in models]
    subjects = [variant for model in models for variant in variants(model)]
    products = gemms(models[0].threads, models[0].device, models[0].dtype)

    results = _in_turn(arguments, line, [*subjects, *products], arguments.rounds)
    measured = {result.subject.name: result for result in results}
    ratios = [time_ratio(first, names) for names in others]
    yield [*measurement_records(measured), *comparison_records(ratios, measured)]


def _suite(arguments: Namespace, line: tqdm) -> Iterator[list[Record]]:
    """Measure the rows, one after the other."""
    from tools.benchmarking.interleaving import measure
    from tools.benchmarking.report import comparison_records, measurement_records
    from tools.benchmarking.suite import rows

    by_number = {row.number: row for row in rows(str(arguments.paddleclas_source))}
    unknown = sorted(set(arguments.rows) - set(by_number))
    if unknown:
        raise UserError(f"-rows {unknown[0]}: there is no such row; the rows are {min(by_number)} to {max(by_number)}")
    for number in sorted(set(arguments.rows) or by_number):
        row = by_number[number]
        if line.disable:
            print(f"row {number}: {row.title}", file=sys.stderr, flush=True)
        left_out: list[Record] = []

        def leave_out(subject: Subject, error: UserError, left_out: list = left_out) -> None:
            tqdm.write(f"left out {error}", file=sys.stderr)
            left_out.append({"figure": subject.name, "value": None, "unit": "s", "note": str(error)})

        def progress(text: str, number: int = number) -> None:
            line.set_description_str(f"row {number}: {text}")

        results = measure(
            row.subjects,
            min(arguments.rounds, row.max_rounds or arguments.rounds),
            arguments.warmup,
            arguments.peer_python,
            progress,
            leave_out,
        )
        measured = {result.subject.name: result for result in results}
        new_records = [*measurement_records(measured), *left_out, *comparison_records(row.comparisons, measured)]
        yield [{"row": row.number, "title": row.title, **record} for record in new_records]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    what = parser.add_argument_group("what is measured")
    what.add_argument("models", nargs="*", metavar="MODEL", help="pale_tiny and the like, paddleclas:NAME or timm:NAME")
    parser.add_flag("suite", what, action="store_true", help="the rows of the performance table, instead of models")
    parser.add_flag("rows", what, nargs="+", type=int, default=[], metavar="N", help="only these rows of the suite")
    runtimes = f"one or more of {', '.join(RUNTIMES)}"
    studies.add_flags(parser)
    how = parser.add_argument_group("how models run")
    parser.add_flag(
        "runtime", how, nargs="+", choices=RUNTIMES, metavar="NAME", help=f"{runtimes} (default: {Model.runtime})"
    )
    parser.add_flag("mode", how, choices=MODES, help=f"train has backward and AdamW (default: {Model.mode})")
    parser.add_flag("batch", how, type=int, metavar="N", help=f"images in a batch (default: {Model.batch})")
    parser.add_flag("image_size", how, type=int, metavar="N", help=f"pixels of a side (default: {Model.image_size})")
    parser.add_flag("dtype", how, choices=DTYPES, help=f"halves by AMP on GPUs (default: {Model.dtype})")
    parser.add_flag("recompute", how, action="store_true", help="train with recomputation")
    parser.add_flag("device", how, help=f"cpu, gpu or gpu:N (default: {Model.device})")
    parser.add_flag("threads", how, type=int, metavar="N", help=f"of each process (default: {Model.threads})")
    turns = parser.add_argument_group("turns")
    parser.add_flag("rounds", turns, type=int, default=9, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_flag("warmup", turns, type=int, default=2, metavar="N", help="runs before that (default: %(default)s)")
    peers = parser.add_argument_group("peers")
    parser.add_flag(
        "peer_python",
        peers,
        type=Path,
        default=Path(".venv-peers/bin/python"),
        metavar="FILE",
        help="the Python that has timm (default: %(default)s)",
    )
    parser.add_flag(
        "paddleclas_source",
        peers,
        type=Path,
        default=Path("PaddleClas"),
        metavar="FOLDER",
        help="a checkout of PaddleClas, for its reader in row 8 (default: %(default)s)",
    )
    output = parser.add_argument_group("output")
    parser.add_flag(
        "out",
        output,
        type=Path,
        default=Path("output/benchmark"),
        metavar="FOLDER",
        help="for CSV and picture (default: %(default)s)",
    )
    into = "document that takes the tables, between the marks <!-- begin performance NAME --> and <!-- end ... -->"
    text = f"{into}; NAME is {_SUITE} or a study, whose picture goes beside it"
    parser.add_flag("into", output, type=Path, metavar="FILE", help=text)
    parser.add_flag("json", output, action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    run(main)
