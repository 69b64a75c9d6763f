"""Print the tables of the paper with this project's figures beside them, or write them into the documents.

    python tools/paper_tables.py                   # print all tables
    python tools/paper_tables.py -check            # compare the counted figures with the paper's
    python tools/paper_tables.py -markdown         # write the tables of README.md and other documents
    python tools/paper_tables.py -markdown -check  # are those tables up to date?

Parameters and multiply-adds are counted from the code. Accuracies are read from results/*.csv, to which "-eval -record"
of the launchers appends. What is printed is Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/, tools/ and the folders of the tasks are

from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.device import select_device  # noqa: E402


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)

    from tools.helpers.paper_layout import check_counts, print_tables, update_documents

    select_device("cpu")
    if arguments.markdown:
        update_documents(write=not arguments.check)
    elif arguments.check:
        check_counts()
    else:
        print_tables()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__,
        "0 success; 1 with -check: a counted figure differs from the paper's by more than one unit of its last digit "
        "or, with -markdown, a document is out of date; 2 invalid input",
    )
    parser.add_flag("check", action="store_true", help="compare, and exit with 1 if a number differs")
    markdown = "write the tables of the documents; with -check, compare them"
    parser.add_flag("markdown", action="store_true", help=markdown)
    return parser


if __name__ == "__main__":
    run(main)
