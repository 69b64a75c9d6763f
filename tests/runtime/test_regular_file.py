"""Nothing that is no regular file is read, and no line without end: neither a wait for ever nor a full memory."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest

from common.checkpoints.file_format import load_file
from common.checkpoints.released import list_weights
from common.data.image_file import load_rgb
from common.errors import UserError
from common.inference.exported_model import CONFIG, LABELS, ExportedModel
from common.runtime.csv_table import append_rows
from common.runtime.regular_file import open_regular, read_lines
from common.training.results import Result
from image_classification.archive_file import list_archive
from image_classification.config import CONFIG as CLASSIFICATION
from image_classification.datasets import build_dataset
from image_classification.idx_files import _read_idx
from image_classification.label_maps import _read_array
from object_detection.coco_file import read_annotations
from semantic_segmentation.datasets import _find_files
from tools.helpers.markdown import read_section
from tools.plot_curves import read_records


def read_segmentation_list(path: Path) -> None:
    _find_files("Dataset", {"dataset_root": str(path.parent), "train_path": path.name}, "train", "train_dataset")


def read_registry(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALE_WEIGHTS", str(path))
        list_weights()


READERS = {
    "val_list.txt": lambda path: build_dataset("list", path.parent, "val"),
    "train-labels-idx1-ubyte.gz": lambda path: _read_idx(path.parent, path.stem, 1),
    "val.tar": lambda path: list(list_archive(path)),
    "train.txt": read_segmentation_list,
    "train.json": lambda path: read_annotations(path, "TrainDataset"),
    "config.yaml": lambda path: CLASSIFICATION.load(Namespace(cfg=str(path), opts=[])),
    "log.jsonl": lambda path: read_records(path.parent, "train"),
    "results.csv": lambda path: append_rows(path, Result, []),
    "weights.json": read_registry,
    "document.md": lambda path: read_section(path, "ablation"),
    "best.pdparams": load_file,
    "image.png": load_rgb,
    "images.npy": lambda path: _read_array(path.parent, "images", "S", (1,)),
}


MAKE = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "proc": lambda path: path.symlink_to("/proc/self/status"),  # /proc/kmsg would be waited for
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_or_a_device_is_refused(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises((UserError, OSError), match=r"(?i)not a regular file|do(es)? not exist|has neither"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", [LABELS, CONFIG])
def test_an_export_with_a_pipe_is_refused(tmp_path, name):
    exported = ExportedModel.__new__(ExportedModel)
    exported.file = tmp_path / "model.onnx"
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="Not a regular file; export the model again"):
        exported._read_lines(name)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".json"])
def test_an_export_whose_model_is_a_link_to_proc_is_refused(tmp_path, suffix):
    for name in (f"model{suffix}", "model.bin", "model.pdiparams", CONFIG, LABELS):
        (tmp_path / name).symlink_to("/proc/self/status")
    exported = ExportedModel.__new__(ExportedModel)
    exported.file = tmp_path / f"model{suffix}"
    exported.card = Namespace(files={})  # a stranger's card need not have hashes
    with pytest.raises(UserError, match="is not a regular file; export the model again"):
        exported._check_files()


@pytest.mark.parametrize("name", ["val_list.txt", "train.txt", "log.jsonl"])
def test_a_line_without_end_is_refused(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 36)  # zeros that take no space on the disk
    with pytest.raises((UserError, OSError), match="A line has more than 65,536 characters"):
        READERS[name](tmp_path / name)


def test_lines_are_read_as_python_reads_them(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("a\r\nb\u2028c\n\nd".encode())
    assert list(read_lines(path)) == ["a", "b\u2028c", "", "d"]
    with open_regular(path, "rb") as file:
        assert file.read(2) == b"a\r"


@pytest.mark.parametrize("name", ["config.yaml", "weights.json"])
def test_a_link_to_itself_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).symlink_to(name)
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        READERS[name](tmp_path / name)
