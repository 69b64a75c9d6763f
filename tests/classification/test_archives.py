"""Class folders in archives are the same data as the folders themselves."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from image_classification.classification import Classification, _hash_data
from image_classification.datasets import build_dataset
from image_classification.loaders import build_eval_loader, build_train_loader
from tests.helpers.classification_config import make_config
from tests.helpers.dataset_cases import fails, save_image
from tests.helpers.tiny_runs import assert_same_training, run


def pack(path: Path, names: dict[str, Path]) -> Path:
    """Write files into an archive, the last name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = reversed(names.items())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, file in members:
                archive.write(file, name)
    else:
        with tarfile.open(path, "w") as tar:
            for name, file in members:
                tar.add(file, name)
    return path


def files_of(folder: Path, prefix: str = "") -> dict[str, Path]:
    return {f"{prefix}{path.relative_to(folder)}": path for path in sorted(folder.rglob("*")) if path.is_file()}


def one_file(split: Path, root: Path, suffix: str, prefix: str) -> None:
    pack(root / f"{split.name}{suffix}", files_of(split, prefix))


def shards(split: Path, root: Path) -> None:
    files = list(files_of(split, f"{split.name}/").items())
    for number in range(3):  # each with images of each class
        pack(root / f"{split.name}-{number}{'.zip' if number == 1 else '.tar'}", dict(files[number::3]))


def shards_in_folder(split: Path, root: Path) -> None:
    files = list(files_of(split).items())
    for number in range(2):
        pack(root / split.name / f"part{number}.tar", dict(files[number::2]))


def one_class_each(split: Path, root: Path) -> None:
    for folder in split.iterdir():
        pack(root / split.name / f"{folder.name}.tar", files_of(folder))


FORMS = {
    "tar": lambda split, root: one_file(split, root, ".tar", "./"),
    "tar of the folder": lambda split, root: one_file(split, root, ".tar", f"{split.name}/"),
    "tar of folders around": lambda split, root: one_file(split, root, ".tar", f"photos/{split.name}/"),
    "tar of other folders around": lambda split, root: one_file(split, root, ".tar", "home/me/photos/"),
    "zip": lambda split, root: one_file(split, root, ".zip", ""),
    "shards": shards,
    "shards in the folder": shards_in_folder,
    "one class each": one_class_each,
}


def packed(folder: Path, root: Path, form: str) -> Path:
    for split in ("train", "val"):
        FORMS[form](folder / split, root)
    return root


def batches(folder: Path, workers: int) -> list[dict]:
    config = make_config(NUM_WORKERS=workers, RAND_AUGMENT="rand-m9-mstd0.5-inc1")
    train, sampler = build_train_loader(config, build_dataset("folder", folder, "train"))
    sampler.set_range(1)
    return [*train, *build_eval_loader(config, build_dataset("folder", folder, "val"))]


@pytest.mark.parametrize("form", FORMS)
def test_the_data_is_that_of_the_folder(tmp_path, shapes, form):
    archives = packed(shapes, tmp_path / "packed", form)
    for split in ("train", "val"):
        folder, archive = (build_dataset("folder", path, split) for path in (shapes, archives))
        assert archive.class_names == folder.class_names
        assert _hash_data(archive) == _hash_data(folder)
    for workers in (0, 2):
        for batch, other in zip(batches(archives, workers), batches(shapes, 0), strict=True):
            np.testing.assert_array_equal(batch["images"].numpy(), other["images"].numpy())
            np.testing.assert_array_equal(batch["labels"].numpy(), other["labels"].numpy())


@pytest.mark.slow
def test_a_run_continues_from_folder_to_archive_bitwise(tmp_path, shapes, shapes_config, capsys):
    archives = packed(shapes, tmp_path / "packed", "tar")
    run(Classification, shapes_config, "-output", tmp_path / "whole", "-opts", "CHECKPOINT_EVERY", "1",
        "KEEP_CHECKPOINTS", "2")  # fmt: skip
    state = tmp_path / "whole" / "epoch_0001.pdparams"
    capsys.readouterr()
    run(Classification, shapes_config, "-data_path", archives, "-resume", state, "-output", tmp_path / "parts")
    output = capsys.readouterr().out
    assert "after epoch 1" in output
    assert "differs from the interrupted run" not in output
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


def test_a_folder_is_preferred_to_an_archive_beside_it(tmp_path, shapes):
    pack(shapes / "train.tar", files_of(shapes / "val"))
    pack(shapes / "train" / "red.tar", files_of(shapes / "val"))
    assert len(build_dataset("folder", shapes, "train")) == 36


def test_one_split_may_be_an_archive_and_the_other_a_folder(tmp_path, shapes):
    one_file(shapes / "val", shapes, ".zip", "")
    shutil.rmtree(shapes / "val" / "red")
    shutil.move(shapes / "val", tmp_path / "val")
    val = build_dataset("folder", shapes, "val")
    assert (val.class_names, np.bincount(val.labels).tolist()) == (["blue", "green", "red"], [7, 7, 7])


def test_more_archives_are_read_than_may_be_open(tmp_path, shapes, monkeypatch):
    monkeypatch.setattr("image_classification.archives._OPEN_FILES", 1)
    val = build_dataset("folder", packed(shapes, tmp_path / "packed", "one class each"), "val")
    expected = build_dataset("folder", shapes, "val")
    for index in (0, 20, 1, 10, 20):
        assert val.load(index).tobytes() == expected.load(index).tobytes()


def test_a_broken_image_is_named_with_its_archive(tmp_path, shapes):
    (shapes / "val" / "green" / "00.png").write_bytes(b"no image")
    archives = packed(shapes, tmp_path / "packed", "tar")
    dataset = build_dataset("folder", archives, "val")
    with pytest.raises(UserError, match=r"cannot read image val/green/00.png in .*val.tar: its content is none of"):
        dataset.load(7)
    (archives / "val.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image val/green/01.png in .*val.tar: its bytes in the archive"):
        dataset.load(8)


def test_deep_images_in_archives_give_the_same_warning(tmp_path):
    for name in ("val/cat/1.png", "val/dog/1.png"):
        save_image(tmp_path / name)
    Image.fromarray(np.full((6, 8), 4095, np.uint16)).save(tmp_path / "val" / "cat" / "1.png")
    one_file(tmp_path / "val", tmp_path / "packed", ".tar", "")
    (warning,) = build_dataset("folder", tmp_path / "packed", "val").warnings()
    assert "1 of 2 inspected images have more than 8 bits" in warning
    assert "such as val/cat/1.png in " in warning


def test_mistakes_are_one_line(tmp_path):
    save_image(tmp_path / "1.png")
    image = tmp_path / "1.png"
    twice, flat, empty, packed, none = (tmp_path / name for name in ("twice", "flat", "empty", "gz", "none"))
    for number in (0, 1):
        pack(twice / f"val-{number}.tar", {"cat/1.png": image, f"dog/{number}.png": image})
    fails(["'val/cat/1.png'", "val-0.tar and again in", "val-1.tar"], "folder", twice, "val")
    pack(flat / "val.tar", {"1.png": image})
    fails(["val.tar", "'1.png' is in no class folder"], "folder", flat, "val")
    pack(empty / "val.tar", {"cat/notes.txt": image})
    fails(["val.tar has no images"], "folder", empty, "val")
    packed.mkdir()
    (packed / "val.tar.gz").touch()
    fails(["no class folders", "val.tar.gz cannot be used", "uncompress it"], "folder", packed, "val")
    pack(none / "train.tar", {"photos/train/cat/1.png": image, "photos/val/cat/1.png": image})
    fails(["has train and val, which are splits"], "folder", none, "train")
    (none / "train.tar").unlink()
    pack(none / "val.tar", {"cat/1.png": image, "dog/1.png": image})
    (none / "train.tgz").touch()
    fails(["has no train split", "train.tgz cannot be used"], "folder", none, "train")


def test_a_class_may_be_called_as_the_split(tmp_path):
    save_image(tmp_path / "1.png")
    names = dict.fromkeys(("train/1.png", "bus/1.png"), tmp_path / "1.png")
    pack(tmp_path / "packed" / "train.tar", names)
    assert build_dataset("folder", tmp_path / "packed", "train").class_names == ["bus", "train"]
