"""The parts of a document that hold what was measured, each with what it was measured on and by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.benchmarking.output import Record
from tools.helpers.markdown import read_section, replace_section

__all__ = ["require_places", "write_table"]


def require_places(document: Path, names: Iterable[str]) -> None:
    """See that a document has the marks of each table, before anything is measured.

    Raises:
        UserError: it cannot be read, or lacks one.
    """
    for name in names:
        read_section(document, _section(name))


def write_table(document: Path, name: str, table: str, records: Sequence[Record], machine: Record) -> None:
    """Put a table in its place, with the commit, the day, the machine and the versions below it.

    Raises:
        UserError: the document cannot be read or written, or has no such place.
    """
    packages = {package for record in records if record.get("versions") for package in record["versions"].split(", ")}
    by = [f"commit {machine['git']}"] if machine["git"] else []
    by += [machine["date"].partition("T")[0], machine["cpu"], f"{machine['cores']} cores"]
    by += [f"Python {machine['python']}", *sorted(packages)]
    replace_section(document, _section(name), f"{table}\n\nProduced by: {', '.join(by)}.")


def _section(name: str) -> str:
    return f"performance {name}"
