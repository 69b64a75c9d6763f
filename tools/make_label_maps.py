"""Compute the label maps for training with token labels, with any trained classifier of this project.

    python tools/make_label_maps.py -pretrained pale_base.pdparams -data_path imagenet -image_size 384 -out label_maps

Preprocessing and kind of data set are those of the configuration of the weights, unless flags override them; weights do
not say where the data is: -data_path or -cfg does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and the folders of the tasks are

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.device import select_device  # noqa: E402
from common.training.config import add_weights_flags  # noqa: E402
from image_classification.config import CONFIG  # noqa: E402
from image_classification.label_map_alignment import TOKEN_STRIDE  # noqa: E402


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"-top is {arguments.top}; it must be at least 1")

    from common.data.class_names import check_class_order, renamed_classes
    from common.runtime.distributed import world_size
    from common.training.log import TrainingLog
    from image_classification.datasets import build_dataset
    from image_classification.label_map_annotator import annotate
    from image_classification.label_maps import LabelMapInfo
    from image_classification.prediction import Classifier
    from tools.predict import read_weights

    if world_size() > 1:
        raise UserError("label maps are computed by one process; start this without the launcher")
    source = arguments.pretrained
    checkpoint = read_weights(arguments)
    config = CONFIG.of_weights(checkpoint.config, source, arguments)
    if config.DATA.IMAGE_SIZE % TOKEN_STRIDE:
        raise UserError(f"-image_size is {config.DATA.IMAGE_SIZE}; it must be a multiple of {TOKEN_STRIDE}")
    select_device(config.DEVICE)
    annotator = Classifier.from_checkpoint(checkpoint, config)
    num_classes = annotator.model.num_classes
    dataset = build_dataset(config.DATA.DATASET, config.DATA.DATA_PATH or None, arguments.split, num_classes)
    check_class_order(dataset.class_names, checkpoint.class_names, "the data set", source)
    side = config.DATA.IMAGE_SIZE // TOKEN_STRIDE
    info = LabelMapInfo(
        images=len(dataset),
        height=side,
        width=side,
        top=min(arguments.top, num_classes),
        num_classes=num_classes,
        class_names=checkpoint.class_names,
        model=config.MODEL.NAME,
        weights=checkpoint.path.name,
        sha256=checkpoint.sha256,
        image_size=config.DATA.IMAGE_SIZE,
    )
    log = TrainingLog()
    for line in renamed_classes(dataset.class_names, checkpoint.class_names):
        log.line(f"classes: {line}")
    top1 = annotate(annotator.model, config, dataset, arguments.out, info, log)
    log.line(f"{arguments.out}: {info}; its top-1 on these images is {top1:.2f}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add_weights_flags(parser)
    images = parser.add_argument_group("images")
    for name in ("dataset", "data_path", "image_size", "batch_size_eval"):
        flag = CONFIG.flags[name]
        parser.add_flag(
            name, images, type=flag.type, metavar=flag.metavar, help=f"{flag.help} (default: as in the configuration)"
        )
    parser.add_flag(
        "split", images, choices=("train", "val"), default="train", help="images to label (default: %(default)s)"
    )
    maps = parser.add_argument_group("label maps")
    parser.add_flag("out", maps, type=Path, required=True, metavar="FOLDER", help="folder to create")
    parser.add_flag(
        "top", maps, type=int, default=5, metavar="N", help="classes to keep in each cell (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    run(main)
