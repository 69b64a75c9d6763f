"""Say what is on images: classes, objects, or the class of every pixel. The weights know which.

    python tools/predict.py IMAGE... -pretrained output/pale_nano_mnist5k/best.pdparams
    python tools/predict.py IMAGE... -pretrained exported/pale_nano/model.onnx

IMAGE is a file or a folder. Weights that this project has saved know their configuration; others need -cfg. What
tools/export.py wrote is run by Paddle Inference, or an ONNX file by ONNX Runtime.
"""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and the folders of the tasks are

from tqdm import tqdm  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.device import select_device  # noqa: E402
from common.training.config import add_weights_flags, read_yaml_with_bases  # noqa: E402

if TYPE_CHECKING:
    from common.inference.predictor import Predictor

# The class in the task's prediction.py.
TASKS = {
    "image_classification": "Classifier",
    "object_detection": "Detector",
    "semantic_segmentation": "Segmenter",
}
# A key that only the configuration files of a task have, as its toolkit names the model.
_KEYS = {"architecture": "object_detection", "model": "semantic_segmentation"}


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"-top is {arguments.top}; it must be at least 1")
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"-threshold is {arguments.threshold:g}; it must be between 0 and 1")

    from common.inference.exported_model import find_exported
    from common.inference.predictor import PredictOptions, find_images

    files, left_out = find_images(arguments.images)
    if left_out:
        print(f"left out {left_out} pictures that this project wrote; name such files to have them", file=sys.stderr)
    exported = find_exported(arguments.pretrained)
    predictor = _open_exported(exported, arguments) if exported else build_predictor(arguments)[1]
    options = PredictOptions(arguments.top, arguments.threshold, arguments.out)
    results, errors = [], []
    for result in tqdm(
        predictor.predict(files, options),
        total=len(files),
        disable=len(files) == 1 or not sys.stderr.isatty(),
        leave=False,
        unit="image",
    ):
        results.append(result)
        if "error" in result:
            errors.append(result["error"])
        elif not arguments.json:
            tqdm.write(predictor.describe(result), file=sys.stdout)
            sys.stdout.flush()
    if arguments.json:
        # What UTF-8 cannot express, bytes of file names that are no text, is then printed as JSON's own escapes.
        print(json.dumps(results, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))
    if errors:
        raise UserError(f"{len(errors)} of {len(files)} images could not be predicted: {'; '.join(errors)}")


def build_predictor(
    arguments: Namespace, fused: bool = True, state: Mapping[str, Any] | None = None
) -> tuple[str, Predictor]:
    """The task that the weights of ``-pretrained`` are of, and its predictor with them.

    Args:
        arguments: those of :func:`common.training.config.add_weights_flags`.
        fused: see :meth:`common.inference.predictor.Predictor.from_weights`.
        state: what :func:`common.checkpoints.loading.read_checkpoint` gave for them, where they have been read.

    Raises:
        UserError: the weights cannot be had, or do not fit the configuration.
    """
    from common.checkpoints.loading import read_checkpoint
    from common.checkpoints.released import resolve_weights

    source = arguments.pretrained
    if state is None:
        state = read_checkpoint(resolve_weights(None, source))
    task = _find_task(state, arguments.cfg, source)
    config = importlib.import_module(f"{task}.config").CONFIG.of_weights(state, source, arguments)
    select_device(config.DEVICE)
    return task, _predictor_of(task).from_weights(state, source, config, fused)


def _open_exported(file: Path, arguments: Namespace) -> Predictor:
    """The predictor of an exported model.

    Args:
        file: from :func:`common.inference.exported_model.find_exported`.
    """
    import paddle

    from common.inference.exported_model import ExportedModel

    select_device(arguments.device or "")
    exported = ExportedModel(file, paddle.device.get_device())
    task = exported.card["task"]
    if task not in TASKS:
        raise UserError(f"{file} is of an unknown task, {task!r}; known are {', '.join(TASKS)}")
    state = {"config": exported.config}
    config = importlib.import_module(f"{task}.config").CONFIG.of_weights(state, str(file), arguments)
    return _predictor_of(task).from_exported(exported, config)


def _predictor_of(task: str) -> type[Predictor]:
    return getattr(importlib.import_module(f"{task}.prediction"), TASKS[task])


def _find_task(state: Mapping[str, Any], cfg: str | None, source: str) -> str:
    """The folder of the task that weights or, where these do not say, a configuration file belong to."""
    task = state.get("task")
    if task is None:
        keys = _top_level_keys(Path(cfg).expanduser()) if cfg else set()
        return next((_KEYS[key] for key in _KEYS if key in keys), "image_classification")
    if task not in TASKS:
        raise UserError(f"{source} is of an unknown task, {task!r}; known are {', '.join(TASKS)}")
    return task


def _top_level_keys(path: Path) -> set[str]:
    return {key for values, _ in read_yaml_with_bases(path) for key in values}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__, "0 done, 2 wrong input (what could be read is predicted all the same), 1 anything else"
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
    parser.add_flag("json", action="store_true", help="print one JSON array instead of text")
    return parser


if __name__ == "__main__":
    run(main)
