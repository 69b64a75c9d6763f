"""Draw what a model looks at: pales, attention, Grad-CAM, attention rollout, and the effective receptive field.

    python tools/visualize.py docs/digit.png -pretrained mnist5k
    python tools/visualize.py photo.jpg -variant pale_tiny -at 320 200
    python tools/visualize.py photo.jpg -pretrained output/finetune_folder/best.pdparams -show grad_cam -label roses
    python tools/visualize.py slides -pretrained output/upernet_pale_nano_nuclei/best.pdparams -show attention -stages 3

IMAGE is a file or a folder. pale: which tokens one token attends to, in each stage; attention: its attention weights,
for each block and head of a stage; grad_cam and rollout: which parts of the image support a class; receptive_field:
which pixels influence the center of each stage's map, as the mean over all images. docs/visualization.md explains the
pictures.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/, tools/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.training.config import add_weights_flags  # noqa: E402

if TYPE_CHECKING:
    from PIL import Image

    from tools.helpers.visualize_model import Subject

# The pictures of each task's models; None is a variant with random weights.
KINDS = {
    "image_classification": ("pale", "attention", "grad_cam", "rollout", "receptive_field"),
    "semantic_segmentation": ("pale", "attention", "grad_cam", "receptive_field"),
    "object_detection": ("pale", "attention", "receptive_field"),
    None: ("pale", "receptive_field"),
}
# What -json prints of a picture, and the pictures by kind.
Drawn = tuple[dict[str, Any], dict[str, "Image.Image"]]


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if (arguments.pretrained is None) == (arguments.variant is None):
        raise UserError("give either -pretrained or -variant")
    if any(not 1 <= stage <= 4 for stage in arguments.stages):
        raise UserError(f"-stages {' '.join(map(str, arguments.stages))}: stages are numbered from 1 to 4")

    # These import Paddle, for which neither -h nor a mistake should wait.
    from common.inference.predictor import find_images
    from common.pictures.picture_folder import PictureFolder
    from tools.helpers.visualize_model import open_model

    files = find_images(arguments.images, arguments.out)
    task, read = open_model(arguments)
    kinds = arguments.show or KINDS[task]
    for kind in kinds:
        if kind not in KINDS[task]:
            of = task or "a variant with random weights"
            raise UserError(f"-show {kind} is not available for {of}; choose from {', '.join(KINDS[task])}")
    pictures = PictureFolder(arguments.out, files)
    results: list[dict[str, Any]] = []

    def save(image: str, about: dict[str, Any], drawn: dict[str, Image.Image]) -> None:
        results.append({"image": image, **about, "pictures": pictures.save(image, drawn)})
        if not arguments.json:
            for path in results[-1]["pictures"].values():
                tqdm.write(f"{image} -> {path}", file=sys.stdout)

    subjects = []
    for file in tqdm(files, disable=len(files) == 1 or not sys.stderr.isatty(), leave=False, unit="image"):
        subject = read(file)
        about, drawn = {}, {}
        for kind in kinds:
            if kind == "receptive_field":
                subjects.append(subject)
            else:
                more_about, more_drawn = DRAW[kind](subject, arguments)
                about |= more_about
                drawn |= more_drawn
        if drawn:
            save(file, about, drawn)
    if subjects:
        save(files[0] if len(files) == 1 else f"{len(files)}_images", *_receptive_fields(subjects))
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))


def _pale(subject: Subject, arguments: Namespace) -> Drawn:
    from tools.helpers.visualize_attention import groups_of_token, token_at
    from tools.helpers.visualize_figures import draw_groups

    backbone = subject.backbone
    stages = [stage - 1 for stage in arguments.stages]
    strides = [backbone.out_strides[stage] for stage in stages]
    sides = [tuple(-(-side // stride) for side in subject.picture.shape[:2]) for stride in strides]
    tokens = [token_at(subject.pixel, stride, *side) for stride, side in zip(strides, sides, strict=True)]
    groups = [
        groups_of_token(backbone, stage, *side, token) for stage, side, token in zip(stages, sides, tokens, strict=True)
    ]
    about = [
        {"stage": stage + 1, "map": list(side), "token": list(token), "groups": [group.describe() for group in found]}
        for stage, side, token, found in zip(stages, sides, tokens, groups, strict=True)
    ]
    return {"pale": about}, {"pale": draw_groups(subject.picture, stages, strides, tokens, groups)}


def _attention(subject: Subject, arguments: Namespace) -> Drawn:
    import paddle

    from tools.helpers.visualize_attention import observed_attention, token_at
    from tools.helpers.visualize_figures import draw_attention

    backbone = subject.backbone
    with paddle.no_grad(), observed_attention(subject.model) as blocks:
        backbone.forward_features(subject.images)
    drawn = {}
    for number in arguments.stages:
        of_stage = [block for block in blocks if block.stage == number - 1]
        stride = backbone.out_strides[number - 1]
        token = token_at(subject.pixel, stride, of_stage[0].height, of_stage[0].width)
        weights = [block.of_token(token) for block in of_stage]
        drawn[f"attention_stage{number}"] = draw_attention(subject.picture, number - 1, stride, token, weights)
    return {}, drawn


def _grad_cam(subject: Subject, arguments: Namespace) -> Drawn:
    from tools.helpers.visualize_figures import draw_heat
    from tools.helpers.visualize_gradients import grad_cam
    from tools.helpers.visualize_model import class_score

    name, text, score = class_score(subject, arguments.label)
    strides = subject.backbone.out_strides
    side = max(subject.picture.shape[:2])
    # A map of one token, such as the fourth of a 32x32 digit, does not locate anything.
    stage = next((n for n in reversed(arguments.stages) if side > strides[n - 1]), arguments.stages[-1])
    heat = grad_cam(subject.model, lambda: score(subject.images), stage - 1)
    picture = draw_heat(subject.picture, heat, f"Grad-CAM of stage {stage}: {text}")
    return {"name": name, "grad_cam": {"stage": stage}}, {"grad_cam": picture}


def _rollout(subject: Subject, arguments: Namespace) -> Drawn:
    from tools.helpers.visualize_attention import attention_rollout
    from tools.helpers.visualize_figures import draw_heat
    from tools.helpers.visualize_model import class_score

    name, text, score = class_score(subject, arguments.label)
    heat = attention_rollout(subject.model, subject.images, score)
    return {"name": name}, {"rollout": draw_heat(subject.picture, heat, f"attention rollout: {text}")}


# The pictures of single images.
DRAW = {"pale": _pale, "attention": _attention, "grad_cam": _grad_cam, "rollout": _rollout}


def _receptive_fields(subjects: Sequence[Subject]) -> Drawn:
    """The picture of all images together.

    Raises:
        UserError: their sizes differ.
    """
    from tools.helpers.visualize_figures import draw_receptive_fields
    from tools.helpers.visualize_gradients import receptive_fields

    sizes = sorted({tuple(subject.images.shape[2:]) for subject in subjects})
    if len(sizes) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise UserError(f"-show receptive_field needs images of one size, not of {shown}; crop them, or give one")
    inputs = [subject.images for subject in subjects]
    fields = receptive_fields(subjects[0].model, tqdm(inputs, disable=not sys.stderr.isatty(), leave=False))
    about = [
        {"stage": number, "radius_50": field.radius(0.5), "radius_95": field.radius(0.95)}
        for number, field in enumerate(fields, 1)
    ]
    return {"receptive_field": about}, {"receptive_field": draw_receptive_fields(fields, len(subjects))}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder of images")
    model = add_weights_flags(parser, required=False)
    variant = "instead of -pretrained: pale_tiny or another variant, with random weights"
    parser.add_flag("variant", model, metavar="NAME", help=variant)
    what = parser.add_argument_group("what is drawn")
    every = KINDS["image_classification"]
    kinds = f"one or more of {', '.join(every)} (default: all that the model supports)"
    parser.add_flag("show", what, nargs="+", choices=every, metavar="KIND", help=kinds)
    at = "pale, attention: pixel of the model's input whose token is shown (default: the center)"
    parser.add_flag("at", what, nargs=2, type=float, metavar=("X", "Y"), help=at)
    stages = "pale, attention: stages; grad_cam: the last of them whose map has several tokens (default: 1 2 3 4)"
    parser.add_flag("stages", what, nargs="+", type=int, default=[1, 2, 3, 4], metavar="N", help=stages)
    label = "grad_cam, rollout: class by name or number (default: the most probable; of a segmenter, the class at -at)"
    parser.add_flag("label", what, metavar="CLASS", help=label)
    output = parser.add_argument_group("output")
    out = "folder for the pictures (default: %(default)s)"
    parser.add_flag("out", output, type=Path, default=Path("visualizations"), metavar="FOLDER", help=out)
    parser.add_flag("json", output, action="store_true", help="print a JSON array instead of text")
    return parser


if __name__ == "__main__":
    run(main)
