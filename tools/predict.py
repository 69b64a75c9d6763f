"""Say what is on images: the most probable classes of each.

    python tools/predict.py IMAGE... -pretrained output/pale_nano_mnist5k/best.pdparams

IMAGE is a file or a folder. Weights that this project has saved know their configuration; others need -cfg.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and image_classification/ are

from common.entry_point import ArgumentParser, run, select_device  # noqa: E402
from common.errors import UserError  # noqa: E402
from image_classification.config import CONFIG  # noqa: E402


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"-top is {arguments.top}; it must be at least 1")
    if arguments.opts and not arguments.cfg:
        raise UserError("-opts overrides keys of -cfg; give both")
    config = CONFIG.load(arguments) if arguments.cfg else None
    device = config.DEVICE if config and config.DEVICE else arguments.device
    select_device(device or "")

    from image_classification.prediction import Classifier, find_images

    files = find_images(arguments.images)
    results, errors = [], []
    for result in Classifier(arguments.pretrained, config).predict(files, arguments.top):
        results.append(result)
        if "error" in result:
            errors.append(result["error"])
        elif not arguments.json:
            print(result["image"])
            for prediction in result["predictions"]:
                print(f"  {100 * prediction['score']:6.2f} %  {prediction['name']}", flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    if errors:
        raise UserError(f"{len(errors)} of {len(files)} images could not be read: {'; '.join(errors)}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        epilog="Exit codes: 0 done, 2 wrong input (what could be read is predicted all the same).",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder of images")
    parser.add_flag(
        "pretrained",
        required=True,
        help="weights: a file, https://...#sha256=..., or a released tag (mnist5k, fashion_mnist)",
    )
    parser.add_flag("cfg", metavar="YAML", help="its configuration (default: the one inside the weights)")
    parser.add_flag("top", type=int, default=5, help="classes to show (default: %(default)s)")
    parser.add_flag("json", action="store_true", help="print one JSON array instead of text")
    parser.add_flag("device", help="cpu, gpu or gpu:N (default: what Paddle was compiled for and finds)")
    parser.add_flag("opts", nargs="*", default=[], metavar="KEY VALUE", help="override keys of -cfg")
    parser.add_flag("debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    run(main)
