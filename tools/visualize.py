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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/, tools/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.config import add_weights_flags  # noqa: E402
from common.entry_point import ArgumentParser, run, select_device  # noqa: E402
from common.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    from paddle import Tensor
    from PIL import Image

    from tools.visualizing.subject import ClassScore, Subject

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

    from common.picture_folder import PictureFolder
    from common.prediction import find_images

    files, left_out = find_images(arguments.images)
    if left_out:
        print(f"left out {left_out} pictures that this project wrote; name such files to have them", file=sys.stderr)
    task, look = _open_model(arguments)
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
                about, images = _DRAW[kind](subject, task, arguments)
                result |= about
                drawn |= images
        result["pictures"] = pictures.save(file, drawn) if drawn else {}
        results.append(result)
        _tell(arguments, result)
    if inputs:
        name = files[0] if len(files) == 1 else f"{len(files)}_images"
        about, drawn = _draw_receptive_fields(subject, inputs)
        results.append({"image": None if len(files) > 1 else name, **about, "pictures": pictures.save(name, drawn)})
        _tell(arguments, results[-1])
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))


def _tell(arguments: Namespace, result: dict[str, Any]) -> None:
    if not arguments.json:
        for path in result["pictures"].values():
            tqdm.write(f"{result['image'] or 'all images'} -> {path}", file=sys.stdout)


def _open_model(arguments: Namespace) -> tuple[str | None, Callable[[str], Subject]]:
    """The task of the model, and what puts an image in front of it."""
    from tools.visualizing.gradients import backbone_of
    from tools.visualizing.subject import Subject

    if arguments.variant:
        task, model, names, preprocess = None, *_untrained(arguments)
    else:
        from common.exported_model import refuse_exported
        from tools.predict import build_predictor

        refuse_exported(arguments.pretrained)
        task, predictor = build_predictor(arguments)
        model, names, preprocess = predictor.model, predictor.class_names or [], predictor.preprocess
    backbone_of(model)

    def look(file: str) -> Subject:
        images, picture = preprocess(file)
        height, width = picture.shape[:2]
        pixel = arguments.at or (width / 2, height / 2)
        if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
            raise UserError(f"-at {pixel[0]} {pixel[1]} is outside of {file}, of which the model sees {width}x{height}")
        return Subject(model, images, picture, tuple(pixel), names)

    return task, look


def _untrained(arguments: Namespace) -> tuple[Any, list[str], Callable]:
    import numpy as np
    import paddle

    from common.image_file import read_image
    from common.pale_transformer import create_model

    select_device(arguments.device or "")
    paddle.seed(0)
    try:
        model = create_model(arguments.variant, num_classes=0)
    except ValueError as error:
        raise UserError(str(error)) from error
    model.eval()

    def preprocess(file: str) -> tuple[Tensor, np.ndarray]:
        picture = read_image(file)
        if picture is None or min(picture.shape[:2]) < 32:
            raise UserError(f"{file} is no image of 32x32 pixels or more")
        normalised = (picture / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        return paddle.to_tensor(normalised.transpose(2, 0, 1)[None]), picture

    return model, [], preprocess


def _draw_pales(subject: Subject, task: str | None, arguments: Namespace):
    from tools.visualizing.figures import draw_groups
    from tools.visualizing.gradients import backbone_of
    from tools.visualizing.token_groups import groups_of_stage, token_at

    backbone = backbone_of(subject.model)
    height, width = subject.picture.shape[:2]
    stages = [stage - 1 for stage in arguments.stages]
    strides = [backbone.out_strides[stage] for stage in stages]
    sides = [(-(-height // stride), -(-width // stride)) for stride in strides]
    tokens = [token_at(subject.pixel, stride, *side) for stride, side in zip(strides, sides, strict=True)]
    groups = [
        groups_of_stage(backbone, stage, *side, *token)
        for stage, side, token in zip(stages, sides, tokens, strict=True)
    ]
    about = [
        {
            "stage": stage + 1,
            "stride": stride,
            "map": list(side),
            "token": list(token),
            "groups": [group.describe() for group in found],
        }
        for stage, stride, side, token, found in zip(stages, strides, sides, tokens, groups, strict=True)
    ]
    return {"pale": about}, {"pale": draw_groups(subject.picture, stages, strides, tokens, groups)}


def _draw_attention(subject: Subject, task: str | None, arguments: Namespace):
    from tools.visualizing.attention_maps import token_attention
    from tools.visualizing.figures import draw_attention
    from tools.visualizing.gradients import backbone_of
    from tools.visualizing.token_groups import token_at

    backbone = backbone_of(subject.model)
    found = token_attention(subject.model, lambda: backbone.forward_features(subject.images), subject.pixel)
    drawn = {}
    for stage in arguments.stages:
        stride = backbone.out_strides[stage - 1]
        blocks = dict(enumerate(found[stage - 1]))
        token = token_at(subject.pixel, stride, *blocks[0].weights.shape[1:])
        drawn[f"attention_stage{stage}"] = draw_attention(subject.picture, stage - 1, stride, token, blocks)
    return {}, drawn


def _draw_grad_cam(subject: Subject, task: str | None, arguments: Namespace):
    from tools.visualizing.figures import draw_heat
    from tools.visualizing.gradients import grad_cam

    score = _score(subject, task, arguments)
    stage = arguments.stages[-1]
    heat = grad_cam(subject.model, lambda: score.of(subject.images), stage - 1)
    title = f"Grad-CAM of stage {stage}: {score.text}"
    return _about(score), {"grad_cam": draw_heat(subject.picture, heat, title, "largest")}


def _draw_rollout(subject: Subject, task: str | None, arguments: Namespace):
    from tools.visualizing.attention_maps import attention_rollout
    from tools.visualizing.figures import draw_heat

    score = _score(subject, task, arguments)
    heat = attention_rollout(subject.model, subject.images, score.of)
    return _about(score), {"rollout": draw_heat(subject.picture, heat, f"attention rollout: {score.text}", "largest")}


def _draw_receptive_fields(subject: Subject, inputs: Sequence[Tensor]) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    from tools.visualizing.figures import draw_receptive_fields
    from tools.visualizing.gradients import receptive_fields

    sizes = sorted({tuple(images.shape[2:]) for images in inputs})
    if len(sizes) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise UserError(f"-show receptive_field takes images of one size, not of {shown}; crop them, or give one")
    fields = receptive_fields(subject.model, tqdm(inputs, disable=not sys.stderr.isatty(), leave=False))
    about = [
        {"stage": stage + 1, "radius_50": field.radius(0.5), "radius_95": field.radius(0.95)}
        for stage, field in enumerate(fields)
    ]
    return {"receptive_field": about}, {"receptive_field": draw_receptive_fields(fields, len(inputs))}


_DRAW = {"pale": _draw_pales, "attention": _draw_attention, "grad_cam": _draw_grad_cam, "rollout": _draw_rollout}


def _score(subject: Subject, task: str | None, arguments: Namespace) -> ClassScore:
    from tools.visualizing.subject import classification_score, segmentation_score

    of_task = classification_score if task == "image_classification" else segmentation_score
    return of_task(subject, arguments.label)


def _about(score: ClassScore) -> dict[str, Any]:
    return {"label": score.label, "name": score.name}


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
        help="pale, attention: which; grad_cam: the last of them (default: 1 2 3 4)",
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
