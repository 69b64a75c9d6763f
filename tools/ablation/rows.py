"""The rows of an ablation: configurations that differ in what is compared."""

from __future__ import annotations

import hashlib
import json
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from common.errors import UserError
from image_classification.config import CONFIG

__all__ = ["Counts", "Row", "count", "default_files", "fingerprint", "load_rows", "natural"]

_FOLDER = Path(__file__).resolve().parents[2] / "image_classification" / "configs" / "ablation_small"
_BASE = "base.yaml"  # what the rows have in common, and no row

# Where a run is, and how it is watched, kept and repeated. What it learns does not depend on these.
_WITHOUT_INFLUENCE = {
    *("BASE", "OUTPUT", "SEED", "DEVICE", "LOG_INTERVAL", "LATEST_EVERY", "CHECKPOINT_EVERY", "KEEP_CHECKPOINTS"),
    *("PICTURES", "HISTOGRAMS"),
    *("DATA.DATA_PATH", "DATA.NUM_WORKERS", "DATA.BATCH_SIZE_EVAL", "MODEL.RECOMPUTE"),
}


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        name: the file's, without suffix.
        file: the yaml file.
        config: all its values.
        fingerprint: of those that have a part in what a run learns.
    """

    name: str
    file: Path
    config: CfgNode
    fingerprint: str


@dataclass(frozen=True)
class Counts:
    """What a model costs.

    Attributes:
        params: trainable values.
        multiply_adds: of one image.
    """

    params: int
    multiply_adds: int


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Key that sorts numbers within names by their values: ``size_9`` before ``size_10``."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def default_files() -> list[Path]:
    """The small-scale ablation that comes with the project."""
    return sorted((path for path in _FOLDER.glob("*.yaml") if path.name != _BASE), key=lambda path: natural(path.stem))


def load_rows(files: Sequence[Path], options: Sequence[str]) -> list[Row]:
    """Read configurations of image classification, each a row.

    Args:
        options: ``KEY VALUE ...``, which hold for every row.

    Raises:
        UserError: one is missing or impossible, or two are called the same or say the same.
    """
    rows: list[Row] = []
    for file in files:
        config = CONFIG.load(Namespace(cfg=str(file), opts=list(options)))
        row = Row(file.stem, file, config, fingerprint(config))
        for other in rows:
            if other.name == row.name:
                raise UserError(f"{other.file} and {file} would both be the row {row.name}; rename one")
            if other.fingerprint == row.fingerprint:
                raise UserError(f"{other.file} and {file} are the same configuration; leave one out")
        rows.append(row)
    return rows


def fingerprint(config: CfgNode) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the values that have a part in what a run learns.

    Values at their defaults do not count, so that a key which a later version adds leaves old results valid.
    """
    values, defaults = (yaml.safe_load(CONFIG.dump(node)) for node in (config, CONFIG.defaults()))
    text = json.dumps(_changed(values, defaults), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{dotted key: value}`` of what is not at its default."""
    changed = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            changed |= _changed(value, defaults[name], f"{key}.")
        elif value != defaults[name] and key not in _WITHOUT_INFLUENCE:
            changed[key] = value
    return changed


def count(row: Row) -> Counts:
    """Build the row's model and count what it costs; the data must be there, since it says how many classes there are.

    Raises:
        UserError: the model or the data cannot be had.
    """
    from common.flops import count_flops, params
    from image_classification.datasets import build_dataset
    from image_classification.pale_backbone import build_model

    config, data = row.config, row.config.DATA
    classes = config.MODEL.NUM_CLASSES
    model = build_model(config, classes or build_dataset(data.DATASET, data.DATA_PATH or None, "val").num_classes)
    return Counts(params(model), count_flops(model, data.IMAGE_SIZE, data.IMAGE_SIZE))
