"""Export a trained model for Paddle Inference, ONNX Runtime and OpenVINO, and check the files on real images.

    python tools/export.py -pretrained output/pale_nano_mnist5k/best.pdparams
    python tools/export.py -pretrained output/upernet_pale_nano_nuclei/best.pdparams -images my_images
    python tools/export.py -pretrained output/mask_rcnn_pale_nano_nuclei/best.pdparams -formats openvino -size 512 512

Writes the files of the formats, labels.txt, preprocessing.json, config.yaml and model_card.json to the folder -out.
Classifiers and segmenters take batches; detectors take one image, include NMS, and return small masks, which
tools/predict.py enlarges. docs/deployment.md shows how to run them without this project. Prints "OK" if each file
agrees with the model to 1e-4 on every image; otherwise nothing is written. If the processor computes in bfloat16,
OpenVINO's file is run in that, too, and the model card says how well its results agree.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/, tools/ and the folders of the tasks are

from common.errors import UserError, one_line, printable  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.verbosity import is_quiet  # noqa: E402
from common.tasks import TASKS  # noqa: E402
from common.training.config import MAX_SIDE, add_weights_flags  # noqa: E402

if TYPE_CHECKING:
    from common.inference.exportable import Exportable
    from tools.helpers.export_checks import Case

# The keys of common.inference.export_formats.FORMATS, whose import takes seconds.
_FORMATS = ("paddle", "onnx", "openvino")
_DEFAULT_FORMATS = ("paddle", "onnx")
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # of scikit-learn
_MOST_IMAGES = 8


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    from common.inference.exported_model import (
        CARD,
        CONFIG,
        LABELS,
        PREPROCESSING,
        refuse_exported,
        refuse_other_files,
        replace_exported,
    )
    from tools.helpers.export_card import make_card
    from tools.helpers.export_checks import make_cases
    from tools.predict import open_weights

    out: Path = arguments.out
    refuse_exported(arguments.pretrained)
    refuse_other_files(out)
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"-out {out}: Paddle cannot write to a folder whose name is not UTF-8; give another") from None
    images = _find_images(arguments.images)
    task, predictor, checkpoint = open_weights(arguments, fused=False)
    exportable: Exportable = TASKS[task].exportable()(predictor)
    channels = next(iter(exportable.inputs.values()))[1]
    if channels != 3 and not arguments.images:
        raise UserError(f"{exportable.name} takes images of {channels} channels; give some of them as -images")
    size = _fixed_size(arguments.size, exportable)
    inputs = {
        name: [*shape[:2], *size] if size and len(shape) == 4 else list(shape)
        for name, shape in exportable.inputs.items()
    }
    _tell(f"running {exportable.name} on {', '.join(Path(image).name for image in images)}")
    cases = make_cases(exportable, images, size)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as temporary:
            folder = Path(temporary)
            try:
                checks, agreement, left_out = _write_formats(folder, arguments.formats, exportable, inputs, cases)
            except Exception:
                _require_space(folder, Path(tempfile.gettempdir()))  # the libraries do not tell that a disk is full
                raise
            texts = {
                LABELS: "".join(f"{label}\n" for label in exportable.labels),
                PREPROCESSING: _as_json({"exif_orientation": "apply first", **exportable.preprocessing}),
                CONFIG: TASKS[task].config().dump(predictor.config),
            }
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            card = make_card(
                task, exportable, inputs, checkpoint, sorted(folder.iterdir()), checks, agreement, left_out
            )
            # What UTF-8 cannot express, such as bytes of file names, thus becomes an escape of JSON.
            (folder / CARD).write_text(_as_json(card), encoding="utf-8", errors="backslashreplace")
            for file in replace_exported(folder, out):
                print(printable(str(file)))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; give another -out") from error
    largest = max(max(differences.values()) for differences in checks.values())
    print(f"OK: {', '.join(checks)}, {len(cases)} checks of each format, largest difference {largest:.1e}")


def _require_space(*folders: Path) -> None:
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(2**20))
        except OSError as error:
            raise UserError(
                f"cannot write to {folder}: {error.strerror}; free space, or give another -out or TMPDIR"
            ) from error


def _write_formats(
    folder: Path,
    wanted: Sequence[str] | None,
    exportable: Exportable,
    inputs: dict[str, list[int | None]],
    cases: Sequence[Case],
) -> tuple[dict[str, dict[str, float]], dict[str, float | None], dict[str, str]]:
    """Write and check the wanted formats; without a choice, those of ``_DEFAULT_FORMATS`` that can be written.

    Returns:
        The result of :func:`tools.helpers.export_checks.check` for each, that of
        :func:`tools.helpers.export_checks.measure_agreement`, and why formats were left out.
    """
    from common.inference.export_formats import FORMATS, computes_in_bfloat16, open_openvino, save_program
    from tools.helpers.export_checks import check, measure_agreement

    checks: dict[str, dict[str, float]] = {}
    agreement: dict[str, float | None] = {}
    left_out: dict[str, str] = {}
    _tell("tracing the model with Paddle")
    try:
        graph, weights = save_program(exportable.layer, folder, inputs)
    except (UserError, OSError):
        raise
    except Exception as error:  # tracing a model can fail anywhere
        raise UserError(
            f"Paddle cannot trace {exportable.name}; give -size HEIGHT WIDTH, or another size ({one_line(error)})"
        ) from error
    for name in wanted or _DEFAULT_FORMATS:
        try:
            file = FORMATS[name].convert(graph, weights, folder, [output.name for output in exportable.outputs])
        except UserError as error:
            if wanted:
                raise
            left_out[name] = str(error)
            _tell(f"warning: no {name} file: {error}")
            continue
        except OSError:
            raise
        except Exception as error:  # of any library; it may have removed what filled the disk
            raise UserError(
                f"cannot convert the model to {name} ({one_line(error)}); check the free space of "
                f"-out and of {tempfile.gettempdir()}, or leave out {name} of -formats"
            ) from error
        checks[name] = check(exportable, FORMATS[name].open(file, "cpu"), cases, file.name)
        _tell(f"{file.name}: {len(cases)} checks, largest difference {max(checks[name].values()):.1e}")
        if name == "openvino" and computes_in_bfloat16():
            agreement = measure_agreement(exportable, open_openvino(file, "bf16"), cases)
            values = [value for value in agreement.values() if value is not None]
            least = f"{min(values):.1%} at worst" if values else "nothing to compare in these images; give others"
            _tell(f"{file.name} in bfloat16: {exportable.agreement_name}: {least}")
    if "paddle" not in checks:
        graph.unlink()
        weights.unlink()
    return checks, agreement, left_out


def _fixed_size(asked: Sequence[int] | None, exportable: Exportable) -> tuple[int, int] | None:
    """Height and width that the exported files take; None for any.

    Raises:
        UserError: the model cannot take the size, or one is needed.
    """
    import paddle

    from common.pale_transformer import STRIDE

    if asked and len(asked) > 2:
        raise UserError(f"-size {' '.join(map(str, asked))}: give one number, or height and width")
    size = (asked[0], asked[-1]) if asked else None
    if size and exportable.usual_size not in (None, size):
        height, width = exportable.usual_size
        raise UserError(
            f"-size {size[0]} {size[1]}: images are preprocessed to {height} by {width} pixels; set "
            f"{exportable.size_key} to change that"
        )
    if size and (not STRIDE <= min(size) <= max(size) <= MAX_SIDE or any(side % exportable.stride for side in size)):
        multiples = f" and multiples of {exportable.stride}" if exportable.stride > 1 else ""
        raise UserError(f"-size {size[0]} {size[1]}: sides must be from {STRIDE} to {MAX_SIDE}{multiples}")
    if size or exportable.takes_usual_size_only:
        return size or exportable.usual_size
    if paddle.__version__.startswith("2."):
        if exportable.usual_size is None:
            raise UserError("PaddlePaddle 2 cannot export models for any image size; give -size HEIGHT WIDTH")
        shown = " x ".join(map(str, exportable.usual_size))
        _tell(f"the image size is fixed to {shown}, because PaddlePaddle 2 cannot export models for any size")
        return exportable.usual_size
    return None


def _find_images(paths: Sequence[str] | None) -> list[str]:
    from common.inference.predictor import find_images

    if paths:
        images = find_images(paths)
        count = min(len(images), _MOST_IMAGES)
        return [images[number * len(images) // count] for number in range(count)]  # of class folders, from all of them
    folder = importlib.resources.files("sklearn.datasets") / "images"
    return [str(folder / name) for name in _PHOTOGRAPHS]


def _tell(message: str) -> None:
    if message.startswith("warning: ") or not is_quiet():
        print(printable(message), file=sys.stderr, flush=True)


def _as_json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__, "0 success, 2 invalid input or an exported file that differs from the model, 1 other errors"
    )
    add_weights_flags(parser)
    out = "output folder, where an earlier export is replaced (default: %(default)s)"
    parser.add_flag("out", type=Path, default=Path("exported"), help=out)
    formats = "required formats (default: paddle, and onnx if it can be converted)"
    parser.add_flag("formats", nargs="+", choices=_FORMATS, help=formats)
    size = "fix the size of images, one number or height and width (default: any size)"
    parser.add_flag("size", type=int, nargs="+", metavar="PIXELS", help=size)
    images = f"files or folders to check on; {_MOST_IMAGES} of them are taken (default: 2 photographs of scikit-learn)"
    parser.add_flag("images", nargs="+", metavar="IMAGE", help=images)
    return parser


if __name__ == "__main__":
    run(main)
