"""Draw what a model looks at: pales, attention, Grad-CAM, attention rollout, and the effective receptive field.

    python tools/visualize.py docs/digit.png -pretrained mnist5k
    python tools/visualize.py photo.jpg -variant pale_tiny -at 320 200
    python tools/visualize.py photo.jpg -pretrained output/finetune_folder/best.pdparams -show grad_cam -label roses
    python tools/visualize.py slides -pretrained output/upernet_pale_nano_nuclei/best.pdparams -show attention -stages 3

IMAGE is a file or a folder. pale: which tokens one token attends to, in each stage; attention: how much, for each block
and head of a stage; grad_cam and rollout: which parts of the image speak for a class; receptive_field: which pixels
reach the centre of each stage's map, as the mean over all images. docs/visualization.md explains the pictures.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/, tools/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.training.config import add_weights_flags  # noqa: E402

# What can be shown of the models of each task; None is a variant without weights, which has learnt nothing.
KINDS = {
    "image_classification": ("pale", "attention", "grad_cam", "rollout", "receptive_field"),
    "semantic_segmentation": ("pale", "attention", "grad_cam", "receptive_field"),
    "object_detection": ("pale", "attention", "receptive_field"),
    None: ("pale", "receptive_field"),
}
_WHY_NOT = {
    "semantic_segmentation": "a segmenter's classes are of pixels, not of the mean of the last map",
    "object_detection": "a detector's scores are of boxes, which are chosen after them",
    None: "a -variant without weights has learnt nothing",
}


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if (arguments.pretrained is None) == (arguments.variant is None):
        raise UserError("give either -pretrained or -variant")
    if any(not 1 <= stage <= 4 for stage in arguments.stages):
        raise UserError(f"-stages {' '.join(map(str, arguments.stages))}: they are numbered from 1 to 4")

    # These import Paddle, for which neither -h nor a mistake should wait.
    from common.inference.predictor import find_images
    from common.pictures.picture_folder import PictureFolder
    from tools.visualizing.kinds import DRAW, draw_receptive_fields
    from tools.visualizing.opening import open_model

    files = find_images(arguments.images, arguments.out)
    task, look = open_model(arguments)
    kinds = arguments.show or KINDS[task]
    for kind in kinds:
        if kind not in KINDS[task]:
            raise UserError(f"-show {kind}: {_WHY_NOT[task]}; choose of {', '.join(KINDS[task])}")
    pictures = PictureFolder(arguments.out, files)
    results, inputs = [], []
    for file in tqdm(files, disable=len(files) == 1 or not sys.stderr.isatty(), leave=False, unit="image"):
        subject = look(file)
        result, drawn = {"image": file}, {}
        for kind in kinds:
            if kind == "receptive_field":
                inputs.append(subject.images)
            else:
                about, images = DRAW[kind](subject, task, arguments)
                result |= about
                drawn |= images
        result["pictures"] = pictures.save(file, drawn) if drawn else {}
        results.append(result)
        _tell(arguments, result)
    if inputs:
        name = files[0] if len(files) == 1 else f"{len(files)}_images"
        about, drawn = draw_receptive_fields(subject, inputs)
        results.append({"image": None if len(files) > 1 else name, **about, "pictures": pictures.save(name, drawn)})
        _tell(arguments, results[-1])
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))


def _tell(arguments: Namespace, result: dict[str, Any]) -> None:
    if not arguments.json:
        for path in result["pictures"].values():
            tqdm.write(f"{result['image'] or 'all images'} -> {path}", file=sys.stdout)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder of images")
    model = add_weights_flags(parser, required=False)
    parser.add_flag(
        "variant", model, metavar="NAME", help="instead of -pretrained: pale_tiny or the like with random weights"
    )
    what = parser.add_argument_group("what is drawn")
    every = KINDS["image_classification"]
    parser.add_flag(
        "show",
        what,
        nargs="+",
        choices=every,
        metavar="KIND",
        help=f"one or more of {', '.join(every)} (default: all that the model allows)",
    )
    parser.add_flag(
        "at",
        what,
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="pale, attention: pixel of what the model sees whose token it is about (default: the centre)",
    )
    parser.add_flag(
        "stages",
        what,
        nargs="+",
        type=int,
        default=[1, 2, 3, 4],
        metavar="N",
        help="pale, attention: which; grad_cam: the last of them whose map has several tokens (default: 1 2 3 4)",
    )
    parser.add_flag(
        "label",
        what,
        metavar="CLASS",
        help="grad_cam, rollout: name or number of the class (default: the most probable; of a segmenter, that at -at)",
    )
    output = parser.add_argument_group("output")
    parser.add_flag(
        "out",
        output,
        type=Path,
        default=Path("visualizations"),
        metavar="FOLDER",
        help="for the pictures (default: %(default)s)",
    )
    parser.add_flag("json", output, action="store_true", help="print a JSON array of what is drawn, instead of text")
    return parser


if __name__ == "__main__":
    run(main)
