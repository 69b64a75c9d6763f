"""Train or evaluate a Pale Transformer that labels every pixel, on one rank or many.

    python -m paddle.distributed.launch semantic_segmentation/main_multi_gpu.py [-cfg YAML] [flags]

Without flags it trains UPerNet on pale_nano to find cell nuclei (configs/upernet_pale_nano_nuclei.yml).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the launcher puts this folder there, not the project's

from common.entry_point import ArgumentParser, run  # noqa: E402
from semantic_segmentation.config import CONFIG  # noqa: E402


def main(argv: Sequence[str]) -> None:
    parser = ArgumentParser(description=__doc__.partition("\n\n")[0], epilog="Exit codes: 0 done, 2 wrong input.")
    CONFIG.add_flags(parser)
    config = CONFIG.load(parser.parse_args(argv))

    from semantic_segmentation.segmentation import Segmentation  # after the flags, so that -h answers at once

    Segmentation(config).run()


if __name__ == "__main__":
    run(main)
