"""Predict classes, objects, or the class of every pixel, depending on the task of the weights.

    python tools/predict.py IMAGE... -pretrained output/pale_nano_mnist5k/best.pdparams
    python tools/predict.py IMAGE... -pretrained exported/pale_nano/model.xml

IMAGE is a file or a folder. Weights of this project contain their configuration; others need -cfg. Exported models are
run by Paddle Inference or, .onnx files, by ONNX Runtime or, .xml files, by OpenVINO.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError, printable  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.device import select_device  # noqa: E402
from common.runtime.verbosity import is_quiet, is_verbose  # noqa: E402
from common.tasks import TASKS  # noqa: E402
from common.training.config import WEIGHTS, add_weights_flags, read_yaml_with_bases  # noqa: E402

if TYPE_CHECKING:
    from common.checkpoints.loading import Checkpoint
    from common.inference.predictor import Predictor


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"-top is {arguments.top}; it must be at least 1")
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"-threshold is {arguments.threshold:g}; it must be between 0 and 1")

    from common.data.image_file import deep_image_warning, other_files_warning
    from common.inference.exported_model import find_exported
    from common.inference.predictor import PredictOptions, find_images

    others: list[str] = []
    files = find_images(arguments.images, arguments.out, others)
    if others:
        print(printable(f"warning: {other_files_warning(others)}"), file=sys.stderr)
    exported = find_exported(arguments.pretrained)
    if arguments.precision and not exported:
        raise UserError(f"-precision {arguments.precision}: only OpenVINO's model.xml of tools/export.py has a choice")
    predictor = _open_exported(exported, arguments) if exported else open_weights(arguments)[1]
    if warning := deep_image_warning(len(files), files.__getitem__, files.__getitem__):
        print(printable(f"warning: {warning}"), file=sys.stderr)
    options = PredictOptions(arguments.top, arguments.threshold, arguments.out)
    results, errors = [], []
    for result in tqdm(
        predictor.predict(files, options),
        total=len(files),
        disable=len(files) == 1 or is_quiet() or not sys.stderr.isatty(),
        leave=False,
        unit="image",
    ):
        results.append(result)
        if "error" in result:
            errors.append(result["error"])
        elif not arguments.json:
            shown = {key: printable(value) if isinstance(value, str) else value for key, value in result.items()}
            tqdm.write(predictor.describe(shown), file=sys.stdout)
            sys.stdout.flush()
    if arguments.json:
        # What UTF-8 cannot express, bytes of file names that are no text, is then printed as JSON's own escapes.
        ensure_ascii = sys.stdout.encoding.lower() != "utf-8"
        text = json.dumps(results, indent=2, ensure_ascii=ensure_ascii, allow_nan=False)
        # File names may have control characters of terminals that JSON does not escape.
        print("".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text))
    if errors:
        raise UserError(f"{len(errors)} of {len(files)} images could not be predicted: {'; '.join(errors)}")


def open_weights(arguments: Namespace, fused: bool = True) -> tuple[str, Predictor, Checkpoint]:
    """Read the weights of ``-pretrained``.

    Args:
        arguments: those of :func:`common.training.config.add_weights_flags`.
        fused: see :meth:`common.inference.predictor.Predictor.from_checkpoint`.

    Returns:
        The task that they were trained for, the predictor and the checkpoint.

    Raises:
        UserError: the weights cannot be read, or do not fit the configuration.
    """
    checkpoint = read_weights(arguments)
    task = checkpoint.task or _task_of_config(arguments.cfg)
    _check_task(task, checkpoint.source)
    config = TASKS[task].config().of_weights(checkpoint.config, checkpoint.source, arguments)
    if is_verbose():
        print("\n".join(map(printable, config.dump().split("\n"))), file=sys.stderr)
    if not checkpoint.class_names:  # as in weights of PaddleSeg and PaddleDetection
        print(
            printable(f"warning: {checkpoint.source} names no classes, but numbers; give -class_names FILE"),
            file=sys.stderr,
        )
    select_device(config.DEVICE)
    try:
        return task, TASKS[task].predictor().from_checkpoint(checkpoint, config, fused), checkpoint
    except UserError as error:
        if not arguments.class_names:
            raise
        names = len(checkpoint.class_names or ())
        raise UserError(f"with the {names} names of -class_names {arguments.class_names}: {error}") from error


def read_weights(arguments: Namespace) -> Checkpoint:
    """Read ``-pretrained`` with the names of its classes, which may be in ``-class_names``.

    Raises:
        UserError: one of them cannot be read, or the weights have other names.
    """
    from common.checkpoints.loading import read_checkpoint
    from common.data.class_names import has_names, read_class_names

    checkpoint = read_checkpoint(arguments.pretrained, ema=WEIGHTS[arguments.weights])
    file: Path | None = arguments.class_names
    if file is None:
        return checkpoint
    if has_names(checkpoint.class_names):
        raise UserError(f"-class_names {file}: {checkpoint.source} names its classes; leave it out")
    names, _ = read_class_names(file.parent, [file.name]) or ([], file)
    if not names:
        raise UserError(f"-class_names {file}: no such file, or no names in it")
    return replace(checkpoint, class_names=names)


def _open_exported(file: Path, arguments: Namespace) -> Predictor:
    """The predictor of a file that :func:`common.inference.exported_model.find_exported` found."""
    import paddle

    from common.inference.exported_model import ExportedModel

    for flag in ("weights", "class_names"):
        if value := getattr(arguments, flag):
            raise UserError(f"-{flag} {value}: {file} is an exported model; give it to tools/export.py")
    select_device(arguments.device or "")
    exported = ExportedModel(file, paddle.device.get_device(), arguments.precision)
    task = exported.card.task
    _check_task(task, str(file))
    config = TASKS[task].config().of_weights(exported.config, str(file), arguments)
    return TASKS[task].predictor().from_exported(exported, config)


def _check_task(task: str, source: str) -> None:
    if task not in TASKS:
        raise UserError(f"{source} has the unknown task {task!r}; choose from {', '.join(TASKS)}")


def _task_of_config(cfg: str | None) -> str:
    """The task of a configuration file, for weights that do not name theirs."""
    files = read_yaml_with_bases(Path(cfg)) if cfg else ()
    keys = {key for values, _ in files for key in values}
    return next((task for task in TASKS if TASKS[task].own_key in keys), "image_classification")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__,
        "0 success, 2 invalid input (if an image cannot be read, the others are still predicted), 1 other errors",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder of images")
    add_weights_flags(parser)
    parser.add_flag("top", type=int, default=5, help="classification: classes to show (default: %(default)s)")
    parser.add_flag(
        "threshold",
        type=float,
        default=0.5,
        help="detection: score from which an object is shown, 0 to 1 (default: %(default)s)",
    )
    parser.add_flag(
        "out",
        type=Path,
        default=Path("predictions"),
        help="detection and segmentation: folder for pictures (default: %(default)s)",
    )
    precision = "of OpenVINO's model.xml (default: what OpenVINO prefers on this processor)"
    parser.add_flag("precision", choices=("f32", "bf16"), help=precision)
    parser.add_flag("json", action="store_true", help="print one JSON array instead of text")
    return parser


if __name__ == "__main__":
    run(main)
