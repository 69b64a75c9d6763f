"""Compute what training each row of the paper's tables takes: operations, memory, and hours on A100 and H100.

    python tools/training_cost.py
    python tools/training_cost.py -rows 'mask_rcnn*' -a100 0.15
    python tools/training_cost.py -into docs/reproduction.md

Nothing is measured on a GPU: multiply-adds and kept tensors are counted from the code, the share of a GPU's peak that
training reaches is assumed (-a100, -h100), and what libraries take is left out. Counting all rows takes 5
minutes and 6 GB of memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # where common/, tools/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
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

    from common.runtime.device import select_device
    from tools.costing.counts import count_training
    from tools.costing.gpus import A100, H100

    select_device("cpu")
    gpus = replace(A100, utilisation=arguments.a100), replace(H100, utilisation=arguments.h100)
    counted: dict[Path, TrainingCounts] = {}
    with tqdm(paths, disable=not sys.stderr.isatty(), leave=False, unit="row") as bar:
        for path in bar:
            bar.set_description(path.stem)
            counted[path] = count_training(path)
    headings = header(gpus)
    lines = [line(path, counts, gpus) for path, counts in counted.items()]
    table = markdown_table(headings, lines, right=range(1, len(headings)))
    if arguments.into:
        replace_section(arguments.into, SECTION, table)
        print(f"wrote the table into {arguments.into}")
    elif arguments.json:
        print(json.dumps([record(path, counts, gpus) for path, counts in counted.items()], indent=2))
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


def record(path: Path, counts: TrainingCounts, gpus: Sequence[Gpu]) -> dict[str, Any]:
    """What a configuration's training takes, for programs, and what it was computed from.

    ``flops`` count multiplication and addition, ``gigabytes`` are of each GPU; ``hours`` by GPU and number of them.
    """
    from tools.costing.gpus import training_flops, training_gigabytes, training_hours

    return {
        "configuration": str(path.relative_to(ROOT)),
        **asdict(counts),
        "flops": training_flops(counts),
        "gigabytes": training_gigabytes(counts),
        "utilisation": {gpu.name: gpu.utilisation for gpu in gpus},
        "hours": {gpu.name: {number: training_hours(counts, gpu, number) for number in (1, 8)} for gpu in gpus},
    }


def line(path: Path, counts: TrainingCounts, gpus: Sequence[Gpu]) -> list[str]:
    """A row of the table: :func:`record` in the columns of :func:`header`."""
    found = record(path, counts, gpus)
    return [
        f"`{found['configuration']}`",
        f"{counts.parameters / 1e6:.1f}M",
        f"{counts.forward / 1e9:.1f}G",
        f"{counts.images / 1e6:.1f}M",
        f"{found['flops'] / 1e18:.1f}e18",
        digits(found["gigabytes"]),
        *(f"{digits(hours)} h" for of_gpu in found["hours"].values() for hours in of_gpu.values()),
    ]


def digits(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_flag("rows", nargs="+", default=["*"], metavar="NAME", help="configurations, as 'pale_*' (default: all)")
    for gpu, share in (("a100", 0.08), ("h100", 0.04)):
        parser.add_flag(gpu, type=float, default=share, metavar="SHARE", help="of its peak (default: %(default)s)")
    parser.add_flag("into", type=Path, metavar="FILE", help="document to write the table into, between its marks")
    parser.add_flag("json", action="store_true", help="print a JSON array of the rows, with all digits, instead")
    return parser


if __name__ == "__main__":
    run(main)
