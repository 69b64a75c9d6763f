"""The studies of this project's models: their flags, what cannot be meant, and how one is made and written."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from common.errors import UserError
from common.runtime.command_line import ArgumentParser
from tools.benchmarking.documents import write_table
from tools.benchmarking.output import Record, write_csv
from tools.benchmarking.subjects import Subject

if TYPE_CHECKING:  # it imports numpy, for which -h need not wait
    from tools.benchmarking.interleaving import Measurement

__all__ = ["LEAST", "LISTS", "add_flags", "check", "make"]

# The module of each. It has DEFAULT_MODELS, COLUMNS of its CSV file, functions study and markdown, and draw if there
# is a picture.
_MODULES = {"profile": "stage_profile", "growth": "growth", "clusters": "clusters"}
# Flags of one study each: the study, their least value, and what they are.
_FLAGS = {
    "sizes": ("growth", 32, "pixels of a side"),
    "batches": ("growth", 1, "images in a batch"),
    "ranks": ("growth", 1, "ranks on the CPU"),
    "gpus": ("clusters", 1, "how many there are"),
}
LEAST = {name: least for name, (_, least, _) in _FLAGS.items()}
LISTS = ("study", *_FLAGS)  # flags that take several different values


def add_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("studies")
    names = f"one or more of {', '.join(_MODULES)}"
    parser.add_flag("study", group, nargs="+", choices=_MODULES, default=[], metavar="NAME", help=names)
    for name, (study, _, text) in _FLAGS.items():
        parser.add_flag(name, group, nargs="+", type=int, metavar="N", help=f"{study}: {text}")


def check(arguments: Namespace) -> None:
    """Reject what cannot be meant.

    Raises:
        UserError: a flag does not go with the studies, or needs one that was not named.
    """
    for name, (study, _, _) in _FLAGS.items():
        if getattr(arguments, name) and study not in arguments.study:
            raise UserError(f"-{name} is for -study {study}; add that")
    if not arguments.study:
        return
    if arguments.suite:
        raise UserError("-suite and -study are two things; leave one out")
    given = [name for name in ("runtime", "mode", "dtype", "recompute") if getattr(arguments, name)]
    if given:
        raise UserError(f"-study says itself how models run; leave out -{' -'.join(given)}")
    peers = [name for name in arguments.models if ":" in name]
    if peers:
        raise UserError(f"-study is of this project's models; leave out {', '.join(peers)}")


def make(
    arguments: Namespace,
    machine: Record,
    measure: Callable[[Sequence[Subject], int], list[Measurement]],
) -> tuple[list[Record], str]:
    """Make the studies one after the other, and write ``performance_NAME.csv`` of each and its picture.

    Args:
        arguments: of the command line.
        machine: what they run on.
        measure: runs subjects in turn, for so many rounds.

    Returns:
        All records, and their tables.
    """
    records, tables = [], []
    for name in arguments.study:
        study = importlib.import_module(f"tools.benchmarking.{_MODULES[name]}")
        options = Namespace(**{**vars(arguments), "models": arguments.models or study.DEFAULT_MODELS})
        found = study.study(options, measure)
        write_csv(found, machine, arguments.out / f"performance_{name}.csv", study.COLUMNS)
        if hasattr(study, "draw"):
            folder = arguments.into.parent if arguments.into else arguments.out
            study.draw(found, folder / f"performance_{name}.png")
        records += [{"study": name, **record} for record in found]
        tables.append(study.markdown(found))
        if arguments.into:
            write_table(arguments.into, name, tables[-1], found, machine)
    return records, "\n\n".join(tables)
