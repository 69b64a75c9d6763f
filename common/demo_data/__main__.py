"""Make small real data sets in the formats of users' own data, or download what they are made of.

    python -m common.demo_data photos he_masks he_boxes

They are written to data/NAME at the repository root, or to $PALE_DATA/NAME if that is set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import UserError, printable
from . import wheels
from .folders import FOLDERS


def main(argv: Sequence[str]) -> None:
    from ..runtime.command_line import ArgumentParser  # here, because it changes settings of the process

    parser = ArgumentParser(__doc__, prog="python -m common.demo_data")
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help=f"one or more of {', '.join([*FOLDERS, *wheels.WHEELS])}"
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = parser.parse_args(argv).names
    for name in names:
        if name not in FOLDERS and name not in wheels.WHEELS:
            raise UserError(f"unknown demo data {name!r}: choose from {', '.join([*FOLDERS, *wheels.WHEELS])}")
    for name in names:
        print(printable(f"{name}: {FOLDERS[name]() if name in FOLDERS else wheels.fetch(name)}"))


if __name__ == "__main__":
    from ..runtime.command_line import run

    run(main)
