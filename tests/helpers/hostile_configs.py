"""Weights of a task with hostile configurations, opened as the tools open them, and what ran meanwhile.

    python -m tests.helpers.hostile_configs TASK FOLDER

prints a JSON object per configuration: what it was, how opening it ended, and the audit events that it caused.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.tasks import TASKS
from tests.helpers.tiny_runs import load
from tools.predict import open_weights

_TRAP = "trap"  # what no configuration may open
_RUNS = f"(__import__('os').system('touch {_TRAP}'), nn.LayerNorm)[1]"
_VALUES = [_RUNS, dict.fromkeys(("type", "name"), "VisionTransformer") | {"norm_layer": _RUNS}, 10**9, [[_TRAP]]]

# Where each task has the values above, and which other sections it is given. None of these may be accepted.
_PLACES = {
    "image_classification": """
        MODEL.NAME MODEL.ATTENTION MODEL.POSITION_ENCODING MODEL.PALE_SIZE MODEL.NUM_HEADS MODEL DATA.IMAGE_SIZE
        DATA.CROP_PCT DATA.MEAN DATA.STD DATA.BATCH_SIZE_EVAL DATA.NUM_WORKERS DATA.INTERPOLATION TRAIN.BETAS model
    """,
    "semantic_segmentation": """
        model model.type model.backbone model.backbone.type model.backbone.variant model.backbone.norm_layer
        model.backbone.drop_path_rate model.backbone.in_channels model.channels model.pool_sizes model.norm
        model.decoder val_dataset.img_channels
        val_dataset.transforms val_dataset.transforms.0 val_dataset.transforms.0.type val_dataset.transforms.0.mean
        test_config test_config.crop_size test_config.stride test_config.scales
    """,
    "object_detection": """
        architecture MaskRCNN MaskRCNN.backbone MaskRCNN.neck MaskRCNN.bbox_head MaskRCNN.bbox_post_process
        PaleTransformer.variant PaleTransformer.norm FPN.out_channel FPN.norm_type RPNHead.anchor_generator.strides
        BBoxHead.head BBoxHead.loss_cot BBoxPostProcess.nms BBoxPostProcess.nms.name MaskFeat.out_channel
        COTLoss EvalReader.sample_transforms EvalReader.sample_transforms.0 EvalReader.batch_transforms
    """,
}
_SECTIONS: dict[str, list[dict[str, Any]]] = {
    "image_classification": [],
    "semantic_segmentation": [
        {"model.backbone": {"type": "VisionTransformer", "norm_layer": _RUNS}},
        {"model.backbone": {"type": "CAE", "norm_layer": _RUNS}},
        {"model.backbone": {"type": "ResNet50_vd", "pretrained": _TRAP}},
        {"model": {"_inherited_": False, "type": "PPLiteSeg", "backbone": {"type": "STDC1"}, "arm_type": _RUNS}},
        {"model.head": {"type": "PaleTransformer", "pretrained": _TRAP}},
        {"val_dataset.transforms": [{"type": "GenerateInstanceTargets", "num_classes": _RUNS}]},
    ],
    "object_detection": [
        {"EvalReader.sample_transforms": [{"DecodeCache": {"cache_root": _TRAP}}]},
        {"EvalReader.sample_transforms": [{"Decode": {}, "os": {}}]},
        {"MaskRCNN.neck": "CustomCSPPAN", "CustomCSPPAN": {"stage_fn": _RUNS, "block_fn": _RUNS}},
        {"MaskRCNN.backbone": "SwinTransformer", "SwinTransformer": {"pretrained": _TRAP}},
        {"MaskRCNN.backbone": "VisionTransformer", "VisionTransformer": {"norm_layer": _RUNS}},
        {"MaskRCNN.backbone": {"name": "ConvNeXt", "pretrained": _TRAP}},
        {"BBoxPostProcess.nms": {"name": "TransEncoder", "act_fn": _RUNS}},
    ],
}
# Read by nothing that opens weights.
_IGNORED = {
    "image_classification": [
        {key: _TRAP} for key in ("MODEL.PRETRAINED", "DATA.DATA_PATH", "TOKEN_LABEL.MAPS", "OUTPUT", "DEVICE")
    ],
    "semantic_segmentation": [
        {key: _TRAP} for key in ("model.pretrained", "model.backbone.pretrained", "val_dataset.dataset_root")
    ]
    + [{"train_dataset.transforms": [{"type": _RUNS}]}, {"loss.types": [{"type": _RUNS}]}],
    "object_detection": [
        {"PaleTransformer.pretrained": _TRAP},
        {"TrainReader.sample_transforms": [{"DecodeCache": {"cache_root": _TRAP}}]},
        {"TrainDataset.name": _RUNS, "LearningRate.schedulers": [_RUNS]},
    ],
}
_TEXTS = [
    f"a: !!python/object/apply:os.system ['touch {_TRAP}']",
    "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
    "a: " + "[" * 5000,
    "a: " + "9" * 5000,
    "a: 0x" + "f" * 5000,
    "&a {a: *a}",
    "a: 1\n" * 2,
    "a: " + "x" * 10**6,
    "a: !!timestamp 2026-01-01",
    "? {a: 1}\n: 2",
    "5: 5",
    "[]",
    "\x00",
]


def main(name: str, folder: Path) -> None:
    spec = TASKS[name].config()
    config = load(spec, "-device", "cpu")
    weights = numpy_state(TASKS[name].build_model()(config, 2))
    image = folder / "image.png"
    Image.new("RGB", (64, 48)).save(image)

    def write(text: str) -> None:
        state = {"model": weights, "task": name, "config": text, "class_names": ["a", "b"]}
        save_file(state, folder / "weights.pdparams")

    def open_written() -> None:
        """What tools/predict.py does, up to the input of the model."""
        options = Namespace(
            pretrained=str(folder / "weights.pdparams"), weights="", class_names=None, cfg=None, opts=[], device="cpu"
        )
        open_weights(options)[1].preprocess(str(image))

    text = spec.dump(config)
    write(text)
    open_written()  # imports everything
    events: list[str] = []
    sys.addaudithook(lambda event, values: events.append(f"{event} {values!s:.200}") if _runs(event, values) else None)
    for what, hostile in _cases(name, text):
        write(hostile)
        events.clear()
        try:
            open_written()
            end = "opened"
        except UserError as error:
            end = "refused" if "\n" not in str(error) and len(str(error)) < 1000 else f"refused badly: {error}"
        except Exception as error:
            end = f"{type(error).__name__}: {error}"
        print(json.dumps({"what": what, "end": end, "events": events.copy()}))
    # Not ru_maxrss, which a process inherits from the one that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"what": "megabytes", "end": int(peak[1]) // 1024}))


def _cases(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A description and the text of each configuration."""
    values = yaml.safe_load(text)
    changes = [{place: value} for place, value in product(_PLACES[name].split(), _VALUES)]
    for change in changes + _SECTIONS[name]:
        yield f"hostile: {str(change)[:120]}", _changed(values, change)
    for change in _IGNORED[name]:
        yield f"ignored: {change}", _changed(values, change)
    for hostile in _TEXTS:
        yield f"hostile: {hostile[:120]}", hostile


def _changed(values: dict[str, Any], change: dict[str, Any]) -> str:
    values = copy.deepcopy(values)
    for place, value in change.items():
        node: Any = values
        *above, last = (int(part) if part.isdecimal() else part for part in place.split("."))
        for part in above:
            node = node[part] if isinstance(node, list) else node.setdefault(part, {})
        node[last] = value
    return json.dumps(values)  # which is yaml, too


def _runs(event: str, values: tuple) -> bool:
    """Whether an audit event is one that opening weights must not cause."""
    if event == "open":
        path, mode, flags = values
        return bool(flags & 3) or _TRAP in str(path) or any(letter in str(mode) for letter in "wax+")
    if event == "compile":
        return values[0] is not None
    if event == "exec":
        return values[0].co_filename == "<string>"
    return event.startswith(("os.", "subprocess.", "socket.", "pickle.", "import", "shutil.")) and event not in (
        "os.listdir",
        "os.scandir",
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
