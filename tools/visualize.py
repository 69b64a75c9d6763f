"""Draw what a model looks at: pales, attention, Grad-CAM, attention rollout, and the effective receptive field.

    python tools/visualize.py docs/digit.png -pretrained mnist5k
    python tools/visualize.py photo.jpg -variant pale_tiny -at 320 200
    python tools/visualize.py photo.jpg -pretrained output/photos/best.pdparams -show grad_cam -label roses
    python tools/visualize.py slides -pretrained output/upernet_pale_nano_nuclei/best.pdparams -show attention -stages 3

IMAGE is a file or a folder. pale: which tokens one token attends to, in each stage; attention: its attention weights,
for each block and head of a stage; grad_cam and rollout: which parts of the image support a class; receptive_field:
which pixels influence the center of each stage's map, as the mean over all images. docs/visualization.md explains the
pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/, tools/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError, printable  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.verbosity import is_quiet  # noqa: E402
from common.training.config import add_weights_flags  # noqa: E402

# The pictures of each task's models; None is a variant with random weights.
KINDS = {
    "image_classification": ("pale", "attention", "grad_cam", "rollout", "receptive_field"),
    "semantic_segmentation": ("pale", "attention", "grad_cam", "receptive_field"),
    "object_detection": ("pale", "attention", "receptive_field"),
    None: ("pale", "receptive_field"),
}


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if (arguments.pretrained is None) == (arguments.variant is None):
        raise UserError("give either -pretrained or -variant")
    if any(not 1 <= stage <= 4 for stage in arguments.stages):
        raise UserError(f"-stages {' '.join(map(str, arguments.stages))}: stages are numbered from 1 to 4")

    # These import Paddle, for which neither -h nor a mistake should wait.
    from common.finite_outputs import require_finite_outputs
    from common.inference.predictor import find_images
    from common.pictures.picture_folder import PictureFolder
    from tools.helpers.visualize_figures import DRAW, draw_receptive_fields
    from tools.helpers.visualize_model import open_model

    files = find_images(arguments.images, arguments.out)
    task, read = open_model(arguments)
    kinds = arguments.show or KINDS[task]
    for kind in kinds:
        if kind not in KINDS[task]:
            of = task or "a variant with random weights"
            raise UserError(f"-show {kind} is not available for {of}; choose from {', '.join(KINDS[task])}")
    folder = PictureFolder(arguments.out, files)
    subjects = []
    for file in tqdm(files, disable=is_quiet() or None, leave=False, unit="image"):
        subjects.append(read(file))
        pictures = {}
        for kind in kinds:
            if kind != "receptive_field":
                with require_finite_outputs(subjects[-1].model):
                    pictures |= DRAW[kind](subjects[-1])
        for path in folder.save(file, pictures).values():
            tqdm.write(printable(f"{file} -> {path}"), file=sys.stdout)
    if "receptive_field" in kinds:
        name = files[0] if len(files) == 1 else f"{len(files)}_images"
        for path in folder.save(name, draw_receptive_fields(subjects)).values():
            print(printable(f"{name} -> {path}"))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder of images")
    model = add_weights_flags(parser, required=False)
    variant = "instead of -pretrained: pale_tiny or another variant, with random weights"
    parser.add_flag("variant", model, metavar="NAME", help=variant)
    what = parser.add_argument_group("pictures")
    every = KINDS["image_classification"]
    kinds = f"one or more of {', '.join(every)} (default: all that the model supports)"
    parser.add_flag("show", what, nargs="+", choices=every, metavar="KIND", help=kinds)
    at = "pale, attention: pixel of the model's input whose token is shown (default: the center)"
    parser.add_flag("at", what, nargs=2, type=float, metavar=("X", "Y"), help=at)
    stages = "pale, attention: stages; grad_cam: the last of them whose map has several tokens (default: 1 2 3 4)"
    parser.add_flag("stages", what, nargs="+", type=int, default=[1, 2, 3, 4], metavar="N", help=stages)
    label = "grad_cam, rollout: class by name or number (default: the most probable; of a segmenter, the class at -at)"
    parser.add_flag("label", what, metavar="CLASS", help=label)
    out = "folder for the pictures (default: %(default)s)"
    parser.add_flag("out", what, type=Path, default=Path("visualizations"), metavar="FOLDER", help=out)
    return parser


if __name__ == "__main__":
    run(main)
