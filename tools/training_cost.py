"""Compute what training each row of the paper's tables takes: operations, memory, and hours on A100 and H100.

    python tools/training_cost.py
    python tools/training_cost.py -rows 'mask_rcnn*' -a100 0.15
    python tools/training_cost.py -into docs/reproduction.md

Nothing is measured on a GPU: multiply-adds and kept tensors are counted from the code, the share of a GPU's peak that
training reaches is assumed (-a100, -h100), and what libraries take is left out. Counting all rows takes 5
minutes and 6 GB of memory.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # where common/, tools/ and the folders of the tasks are

from common.entry_point import ArgumentParser, run  # noqa: E402
from common.errors import UserError  # noqa: E402
from tools.markdown_section import read_section, replace_section  # noqa: E402
from tools.markdown_table import markdown_table  # noqa: E402

if TYPE_CHECKING:
    from tools.costing.counts import TrainingCounts
    from tools.costing.gpus import Gpu

# The paper's rows, in its order.
CONFIGURATIONS = (
    "image_classification/configs/pale_{variant}_224.yaml",
    "image_classification/configs/pale_{variant}_224_token_label.yaml",
    "semantic_segmentation/configs/upernet_pale_{variant}_ade20k_160k.yml",
    "object_detection/configs/mask_rcnn_pale_{variant}_1x_coco.yml",
)
VARIANTS = ("tiny", "small", "base")
ABLATIONS = "image_classification/configs/ablation/*.yaml"
SECTION = "training_cost.py"


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    for flag in ("a100", "h100"):
        if not 0 < getattr(arguments, flag) <= 1:
            raise UserError(f"-{flag} is {getattr(arguments, flag):g}; it must be above 0 and at most 1")
    paths = [path for path in rows() if any(fnmatch(path.stem, pattern) for pattern in arguments.rows)]
    if not paths:
        raise UserError(f"no row of the paper is called {' or '.join(arguments.rows)}")
    if arguments.into:
        read_section(arguments.into, SECTION)  # complains now if there is none, not after minutes of counting

    from common.entry_point import select_device
    from tools.costing.counts import count_training
    from tools.costing.gpus import A100, H100

    select_device("cpu")
    gpus = replace(A100, utilisation=arguments.a100), replace(H100, utilisation=arguments.h100)
    lines = []
    for path in paths:
        print(path.name, file=sys.stderr, flush=True)
        lines.append(line(path, count_training(path), gpus))
    headings = header(gpus)
    table = markdown_table(headings, lines, right=range(1, len(headings)))
    if arguments.into:
        replace_section(arguments.into, SECTION, table)
        print(f"wrote the table into {arguments.into}")
    else:
        print(table)


def rows() -> list[Path]:
    """The configurations of the paper's rows and of its ablations."""
    of_tables = [ROOT / name.format(variant=variant) for name in CONFIGURATIONS for variant in VARIANTS]
    return of_tables + sorted(ROOT.glob(ABLATIONS))


def header(gpus: Sequence[Gpu]) -> list[str]:
    """The headings of the columns."""
    headings = ["configuration", "params", "forward multiply-adds an image", "images", "operations", "GB a GPU"]
    return headings + [f"{number} {gpu.name}" for gpu in gpus for number in (1, 8)]


def line(path: Path, counts: TrainingCounts, gpus: Sequence[Gpu]) -> list[str]:
    """A row of the table: what a configuration's training takes."""
    from tools.costing.gpus import training_flops, training_gigabytes, training_hours

    hours = [training_hours(counts, gpu, number) for gpu in gpus for number in (1, 8)]
    return [
        f"`{path.relative_to(ROOT)}`",
        f"{counts.parameters / 1e6:.1f}M",
        f"{counts.forward / 1e9:.1f}G",
        f"{counts.images / 1e6:.1f}M",
        f"{training_flops(counts) / 1e18:.1f}e18",
        digits(training_gigabytes(counts)),
        *(f"{digits(value)} h" for value in hours),
    ]


def digits(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_flag("rows", nargs="+", default=["*"], metavar="NAME", help="configurations, as 'pale_*' (default: all)")
    for gpu, share in (("a100", 0.08), ("h100", 0.04)):
        parser.add_flag(gpu, type=float, default=share, metavar="SHARE", help="of its peak (default: %(default)s)")
    parser.add_flag("into", type=Path, metavar="FILE", help="document to write the table into, between its marks")
    return parser


if __name__ == "__main__":
    run(main)
