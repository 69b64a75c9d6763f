"""How much a program prints, as ``-quiet`` and ``-verbose`` say; one choice for the process."""

from __future__ import annotations

__all__ = ["choose_verbosity", "is_quiet", "is_verbose"]

_chosen = {"quiet": False, "verbose": False}


def choose_verbosity(quiet: bool = False, verbose: bool = False) -> None:
    _chosen.update(quiet=quiet, verbose=verbose)


def is_quiet() -> bool:
    """Whether to print only warnings, errors and results."""
    return _chosen["quiet"]


def is_verbose() -> bool:
    """Whether to print the whole configuration, all metrics and what the toolkits log."""
    return _chosen["verbose"]
