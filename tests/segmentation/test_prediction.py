"""What predictions of segmentation read and write: names, sizes, and which files are left alone."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import Checkpoint, numpy_state
from common.data.image_file import check_name, read_image
from common.errors import UserError
from common.inference.predictor import PredictOptions, find_images
from common.pictures.own_pictures import is_own_picture, save_picture
from common.runtime import command_line as entry_point
from semantic_segmentation.components import build_model
from semantic_segmentation.prediction import Segmenter
from tests.helpers.programs import run_program
from tests.segmentation.test_segmentation import PREDICT, load

NOT_UTF8 = os.fsdecode(b"\xff\xe9.png")
SHORT = "[{type: ResizeByShort, short_size: 40, max_size: 64}, {type: Normalize}]"


def random_image(height=40, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.fixture
def build(squares_config):
    """Builds a segmenter of random weights with these transforms."""

    def build(transforms="[{type: Normalize}]"):
        config = load("-cfg", squares_config, "-opts", "val_dataset.transforms", transforms)
        paddle.seed(0)
        state = {"model": numpy_state(build_model(config, 3)), "class_names": ["background", "天空", "green"]}
        return Segmenter.from_checkpoint(Checkpoint.from_state(state, "random"), config)

    return build


def predict(segmenter, *files, out):
    return list(segmenter.predict([str(file) for file in files], PredictOptions(out=out)))


# ---- which files are images


def test_folders_are_no_images_whatever_their_names(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    random_image().save(tmp_path / "folder.png" / "a.png")
    assert find_images([str(tmp_path)]) == ([str(tmp_path / "folder.png" / "a.png")], 0)


def test_own_pictures_in_a_folder_are_left_out_and_those_named_are_not(tmp_path):
    random_image().save(tmp_path / "a.png")
    save_picture(random_image(), tmp_path / "b.png")
    own = str(tmp_path / "b.png")
    assert find_images([str(tmp_path)]) == ([str(tmp_path / "a.png")], 1)
    assert find_images([str(tmp_path), own]) == ([str(tmp_path / "a.png"), own], 1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"no image in .* but 1 that this project wrote; known are"):
        find_images([str(tmp_path)])


@pytest.mark.parametrize("mode", ["RGB", "P", "I;16", "L"])
def test_own_pictures_of_any_mode_are_known_again_also_when_cut_off(tmp_path, mode):
    path = tmp_path / "a.png"
    image = random_image().convert("L" if mode == "I;16" else mode)
    (Image.fromarray(np.asarray(image, np.uint16)) if mode == "I;16" else image).save(path)
    assert not is_own_picture(path)
    save_picture(Image.open(path), path)
    assert is_own_picture(path)
    assert Image.open(path).mode == mode
    path.write_bytes(path.read_bytes()[:200])
    assert is_own_picture(path)
    path.write_bytes(path.read_bytes()[8:])
    assert not is_own_picture(path)
    assert not is_own_picture(tmp_path / "missing.png")


# ---- names


@pytest.mark.parametrize("name", ["a.png", "天空.jpg", "a%05d.png", "new\nline.bmp", NOT_UTF8])
def test_images_of_any_name_are_read(tmp_path, name):
    path = tmp_path / name
    random_image().save(path, **({"quality": 100} if name.endswith("jpg") else {}))
    np.testing.assert_array_equal(read_image(str(path)), np.asarray(Image.open(path)))


def test_what_is_no_image_is_none(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path, tmp_path / "missing.png", tmp_path / "empty.png", tmp_path / "text.png"):
        assert read_image(str(path)) is None


def test_paddleseg_cannot_read_names_that_are_not_utf8(monkeypatch):
    for name in ("a.png", "天空.png", "?.png"):
        check_name(name)
    with pytest.raises(UserError, match="is not UTF-8, which PaddleSeg cannot read; rename it"):
        check_name(NOT_UTF8)
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("latin-1"))  # OpenCV would look for another name
    with pytest.raises(UserError, match=r"image né\.png has a name that is not UTF-8"):
        check_name("né.png")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("as_json", [True, False])
def test_names_that_the_terminal_cannot_show_are_printed_all_the_same(tmp_path, build, monkeypatch, encoding, as_json):
    segmenter = build()
    folder = tmp_path / "né"
    folder.mkdir()
    random_image().save(folder / NOT_UTF8)
    monkeypatch.setattr(sys, "path", [*sys.path])
    predict_program = importlib.import_module("tools.predict")
    monkeypatch.setattr(predict_program, "open_weights", lambda arguments: ("semantic_segmentation", segmenter, None))
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(entry_point, "_leave", lambda code: pytest.fail(f"exit code {code}"))  # it would end the tests
    flags = [str(folder), "-pretrained", "random", "-out", str(tmp_path / "out"), *(["-json"] if as_json else [])]
    entry_point.run(predict_program.main, flags)
    output = stdout.buffer.getvalue().decode(encoding)
    if as_json:
        (entry,) = json.loads(output)
        assert entry["image"] == str(folder / NOT_UTF8)
        assert {row["name"] for row in entry["classes"]} <= {"background", "天空", "green"}
    else:
        assert output.startswith(f"{tmp_path}/{'né' if encoding == 'utf-8' else 'n' + chr(92) + 'xe9'}/\\udcff\\udce9")


# ---- what is written where


def test_neither_images_nor_other_files_of_the_user_are_overwritten(tmp_path, build):
    segmenter = build()
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "a_labels.png", "b.png", "b_overlay.png")):
        random_image(seed=number).save(folder / name)
    (folder / "c_colours.png").symlink_to(tmp_path / "nowhere")
    random_image().save(folder / "c.png")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.exists()}

    results = predict(segmenter, *(folder / name for name in ("a.png", "b.png", "c.png")), out=folder)
    assert [Path(result["labels"]).name for result in results] == [f"{name}_2_labels.png" for name in "abc"]
    again = predict(segmenter, *(folder / name for name in ("a.png", "b.png", "c.png")), out=folder)
    assert again == results
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not (tmp_path / "nowhere").exists()
    images, left_out = find_images([str(folder)])
    assert sorted(Path(image).name for image in images) == sorted(before)
    assert left_out == 9


def test_own_pictures_that_are_images_of_this_run_stay(tmp_path, build):
    random_image().save(tmp_path / "a.png")
    save_picture(random_image(seed=1), tmp_path / "a_overlay.png")
    before = (tmp_path / "a_overlay.png").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    first, _ = predict(build(), tmp_path / "a.png", tmp_path / "link" / "a_overlay.png", out=tmp_path)
    assert Path(first["overlay"]).name == "a_2_overlay.png"
    assert (tmp_path / "a_overlay.png").read_bytes() == before


def test_pictures_of_the_run_before_are_replaced_and_those_of_this_run_are_not(tmp_path, build):
    files = [tmp_path / part / "a.png" for part in ("one", "two")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        random_image(40 + number, 30).save(file)
    for _ in range(2):
        results = predict(build(), *files, out=tmp_path / "out")
        assert [Path(result["labels"]).name for result in results] == ["a_labels.png", "a_2_labels.png"]
        assert [Image.open(result["labels"]).size for result in results] == [(30, 40), (30, 41)]
    assert len(list((tmp_path / "out").iterdir())) == 6


# ---- transforms


def test_an_image_that_the_transforms_cannot_take_is_one_line_and_the_others_are_labelled(tmp_path, build):
    random_image(1, 9000).save(tmp_path / "long.png")
    random_image().save(tmp_path / "a.png")
    long, other = predict(build(SHORT), tmp_path / "long.png", tmp_path / "a.png", out=tmp_path / "out")
    assert f"image {tmp_path}/long.png: val_dataset.transforms cannot take 9000x1 pixels (" in long["error"]
    assert "\n" not in long["error"]
    assert "labels" in other


def test_an_image_that_takes_too_much_memory_is_one_line_and_the_others_are_labelled(tmp_path, build, monkeypatch):
    segmenter, label = build(), Segmenter.label

    def label_small(self, image):
        if image.shape[0] > 40:
            raise MemoryError("(ResourceExhausted) Fail to alloc memory")
        return label(self, image)

    monkeypatch.setattr(Segmenter, "label", label_small)
    random_image(41, 30).save(tmp_path / "large.png")
    random_image().save(tmp_path / "a.png")
    large, other = predict(segmenter, tmp_path / "large.png", tmp_path / "a.png", out=tmp_path / "out")
    assert large["error"] == f"image {tmp_path}/large.png of 30x41 pixels takes too much memory; cut it into parts"
    assert "labels" in other


def test_a_long_image_does_not_change_how_the_next_is_resized(build):
    segmenter, image = build(SHORT), np.asarray(random_image(60, 60))
    before = segmenter.label(image)
    segmenter.label(np.asarray(random_image(20, 300)))
    np.testing.assert_array_equal(segmenter.label(image), before)


def test_the_program_says_what_it_left_out_and_what_it_could_not_predict(tmp_path, squares_config):
    config = load("-cfg", squares_config, "-opts", "val_dataset.transforms", SHORT)
    state = {"model": numpy_state(build_model(config, 3)), "task": "semantic_segmentation", "config": config.dump()}
    save_file(state, tmp_path / "random.pdparams")
    (tmp_path / "photos").mkdir()
    random_image(1, 9000).save(tmp_path / "photos" / "long.png")
    random_image().save(tmp_path / "photos" / NOT_UTF8)
    save_picture(random_image(), tmp_path / "photos" / "own.png")
    result = run_program(PREDICT, "photos", "-pretrained", "random.pdparams", cwd=tmp_path)
    assert result.returncode == 2, result.stdout
    assert "left out 1 pictures that this project wrote" in result.stdout
    assert "error: 1 of 2 images could not be predicted: image photos/long.png: val_dataset.transforms" in result.stdout
    assert "Traceback" not in result.stdout
    assert len(list((tmp_path / "predictions").iterdir())) == 3


def test_weights_for_another_number_of_classes_are_named_with_the_remedy(squares_config):
    checkpoint = Checkpoint("other.pdparams", {"cls.weight": np.zeros(1, np.float32)}, class_names=["a", "b"])
    with pytest.raises(UserError, match=r"num_classes is 3, but other\.pdparams has 2 classes; set it to 2"):
        Segmenter.from_checkpoint(checkpoint, load("-cfg", squares_config, "-opts", "model.num_classes", "3"))
