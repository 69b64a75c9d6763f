"""Print every table of the paper: its figures, ours beside them, the difference, and how ours came about.

    python tools/paper_tables.py                   # all tables
    python tools/paper_tables.py imagenet coco     # two of them
    python tools/paper_tables.py -json             # the same for programs
    python tools/paper_tables.py -check            # are the counted figures the paper's?
    python tools/paper_tables.py -markdown         # write the tables that README.md and other documents include
    python tools/paper_tables.py -markdown -check  # are these up to date?

Parameters and multiply-adds are counted from the code now; accuracies come from results/*.csv, which "-eval -record" of
the launchers appends to. Hours of an A100 are computed, see docs/reproduction.md.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # where common/, tools/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402

T = TypeVar("T")

NAMES = ("imagenet", "ade20k", "coco", "ablations", "neighbours", "here")


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    _check_arguments(arguments)

    from common.runtime.device import select_device

    select_device("cpu")
    if arguments.markdown:
        _check_documents() if arguments.check else _write_documents()
    elif arguments.check:
        _check_counts()
    else:
        _print_tables(arguments.tables or NAMES, arguments.json)


def _check_arguments(arguments: Namespace) -> None:
    unknown = [name for name in arguments.tables if name not in NAMES]
    if unknown:
        raise UserError(f"there is no table {unknown[0]!r}; choose of {', '.join(NAMES)}")
    if (arguments.check or arguments.markdown) and (arguments.tables or arguments.json):
        raise UserError("-check and -markdown take all tables; leave TABLE and -json out")


def _print_tables(names: Sequence[str], as_json: bool) -> None:
    from tools.paper.rows import TABLES
    from tools.paper.text import CONVENTION, as_text

    printed = {}
    for name in names:
        rows = [*_with_progress(TABLES[name](), name)]
        if as_json:
            printed[name] = [row.as_record() for row in rows]
        else:
            print(f"{as_text(name, rows)}\n", flush=True)
    print(json.dumps(printed, indent=2) if as_json else CONVENTION)


def _check_counts() -> None:
    from tools.paper.rows import PAPER_TABLES, counted_rows
    from tools.paper.text import as_text

    count = off = 0
    for name, task in PAPER_TABLES.items():
        rows = [*_with_progress(counted_rows(task), name)]
        print(f"{as_text(name, rows)}\n", flush=True)
        count += len(rows)
        off += sum(row.is_off for row in rows)
    verdict = f"{off} of {count} counted figures differ" if off else f"none of {count} counted figures differs"
    print(f"{verdict} from the paper's by more than one in the last digit that it prints")
    if off:
        raise SystemExit(1)


def _write_documents() -> None:
    from tools.paper.documents import write_sections

    changed = write_sections()
    for document in changed:
        print(f"wrote {document.relative_to(ROOT)}")
    if not changed:
        print("all documents are up to date")


def _check_documents() -> None:
    from tools.paper.documents import outdated

    found = outdated()
    for document, name in found:
        print(f"{document.relative_to(ROOT)}: the table {name!r} is not up to date")
    print("python tools/paper_tables.py -markdown writes them" if found else "all documents are up to date")
    if found:
        raise SystemExit(1)


def _with_progress(rows: Iterable[T], title: str) -> Iterable[T]:
    """Tell on a terminal that something goes on: counting takes seconds a model."""
    return tqdm(rows, title, disable=not sys.stderr.isatty(), leave=False, bar_format="{desc}: {n} rows [{elapsed}]")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__,
        "0 done; 1 with -check: a counted figure differs from the paper's by more than one in the last digit that is "
        "printed or, with -markdown, a document is not up to date; 2 wrong input",
    )
    printing = parser.add_argument_group("what is printed")
    printing.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_flag("json", printing, action="store_true", help="an object with a list of rows for each table")
    doing = parser.add_argument_group("what is done instead")
    parser.add_flag("check", doing, action="store_true", help="compare, and exit with 1 where something differs")
    parser.add_flag("markdown", doing, action="store_true", help="write the tables of the documents; -check compares")
    return parser


if __name__ == "__main__":
    run(main)
