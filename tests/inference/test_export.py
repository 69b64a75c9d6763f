"""tools/export.py: exported models predict as the weights do, and files that disagree are not written."""

from __future__ import annotations

import copy
import errno
import importlib.util
import json
import shutil
import signal
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.inference import export_formats
from common.inference.export_formats import FORMATS, save_program
from common.inference.exportable import Exportable, Output
from common.inference.exported_model import Card, ExportedModel, _Port, find_exported, replace_exported
from common.pale_transformer import create_model
from common.runtime.folders import locked
from common.tasks import TASKS
from object_detection.exporting import _same_order, _share_found_again
from object_detection.single_image import SingleImageDetector
from tests.detection.test_single_image import build as build_decisive
from tests.detection.test_single_image import inputs
from tools import export, predict
from tools.helpers.export_checks import check, make_cases

CARD = '{"task": "image_classification", "classes": 2, "files": {}, "inputs": [], "outputs": []}'
WRITABLE = ("paddle", "onnx", "openvino") if importlib.util.find_spec("paddle2onnx") else ("paddle",)
PADDLE_2 = paddle.__version__.startswith("2.")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two small parts of a photograph, one higher than wide."""
    from sklearn.datasets import load_sample_image

    folder = tmp_path_factory.mktemp("photographs")
    pixels = load_sample_image("china.jpg")
    Image.fromarray(pixels[100:196, 50:178]).save(folder / "roof.png")
    Image.fromarray(pixels[200:328, 300:364]).save(folder / "stairs.png")
    return folder


def save_weights(path, task, opts=(), class_names=("background", "nucleus")):
    """Random weights of the task's default configuration that give different outputs for different images."""
    form = TASKS[task].config()
    config = form.load(Namespace(cfg=str(form.default_file), opts=list(opts)))
    paddle.seed(0)
    model = TASKS[task].build_model()(config, len(class_names))
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("rpn_rois", "bbox_score", "bbox_delta")) and parameter.ndim > 1:
            parameter.set_value(parameter * 10)
    figures = {"note": "\udcff"}  # what UTF-8 cannot express
    state = {"task": task, "config": form.dump(config), "class_names": list(class_names), "figures": figures}
    save_file({"model": numpy_state(model), **state}, path)
    return path


def run_export(capsys, *flags):
    export.main([str(flag) for flag in flags])
    return capsys.readouterr()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photographs):
    """An export of a classifier for images of 32x32 pixels, in Paddle's format."""
    folder = tmp_path_factory.mktemp("export")
    names = ("玫瑰 花", "next\u2028line", "", "two\nlines")
    weights = save_weights(folder / "best.pdparams", "image_classification", class_names=names)
    flags = ["-size", "32", "-formats", "paddle", "-images", str(photographs / "roof.png")]
    export.main(["-pretrained", str(weights), "-out", str(folder / "out"), *flags])
    return folder / "out"


# ---- the three tasks


def same_class(row, found):
    pairs = list(zip(row["predictions"], found["predictions"], strict=True))
    assert all(one["name"] == other["name"] for one, other in pairs)
    assert np.allclose([one["score"] for one, _ in pairs], [other["score"] for _, other in pairs], atol=1e-5)


def same_pixels(row, found):
    labels, others = (np.asarray(Image.open(item["labels"])) for item in (row, found))
    assert (labels != others).mean() < 1e-3
    assert len(np.unique(labels)) > 1


def same_objects(row, found):
    assert len(row["detections"]) > 10
    for one, other in zip(row["detections"], found["detections"], strict=True):
        assert one["label"] == other["label"]
        assert np.allclose([one["score"], *one["box"]], [other["score"], *other["box"]], atol=0.01)
    masks, others = ([item["segmentation"] for item in rows["detections"]] for rows in (row, found))
    assert np.mean([one == other for one, other in zip(masks, others, strict=True)]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "opts", "paddle_2_size", "same"),
    [
        ("image_classification", ["DATA.IMAGE_SIZE", "48"], [], same_class),
        (
            "semantic_segmentation",
            ["test_config", "{is_slide: true, crop_size: [64, 64], stride: [48, 48]}"],
            ["-size", "64", "64"],
            same_pixels,
        ),
        ("object_detection", [], ["-size", "256", "256"], same_objects),
    ],
)
def test_exported_models_predict_as_the_weights_do(tmp_path, capsys, photographs, task, opts, paddle_2_size, same):
    weights, out = save_weights(tmp_path / "best.pdparams", task, opts), tmp_path / "exported"
    size = paddle_2_size if PADDLE_2 else []
    said = run_export(capsys, "-pretrained", weights, "-images", photographs, "-out", out, "-formats", *WRITABLE, *size)
    assert said.out.splitlines()[-1].startswith(f"OK: {', '.join(WRITABLE)}, ")
    card = json.loads((out / "model_card.json").read_text())
    assert (card["task"], card["classes"]) == (task, 2)
    assert (out / "labels.txt").read_text() == "background\nnucleus\n"

    def predictions(source, folder, *precision):
        flags = ["-pretrained", str(source), "-out", str(tmp_path / folder), "-threshold", "0.05", "-json"]
        predict.main([str(photographs), *flags, *precision])
        return json.loads(capsys.readouterr().out)

    expected = predictions(weights, "a")
    sources = [(out,), (out / "model.onnx",), (out / "model.xml", "-precision", "f32")]
    for source, *precision in sources[: len(WRITABLE)]:
        for row, found in zip(expected, predictions(source, "b", *precision), strict=True):
            same(row, found)
    agreement = card["openvino_in_bfloat16"]["agreement"]  # empty if the processor has no bfloat16
    assert all(value is None or 0.2 < value <= 1 for value in agreement.values())  # of random weights


HARD = {  # settings that converters get wrong: unaligned features, a limit before NMS, equal scores
    "mask_rcnn": {
        "BBoxHead": {"roi_extractor": {"resolution": 7, "sampling_ratio": 0, "aligned": False}},
        "BBoxPostProcess": {"nms": {"name": "MultiClassNMS", "nms_top_k": 5, "nms_threshold": 0.9}},
    },
    "retinanet": {"RetinaHead": {"nms": {"name": "MultiClassNMS", "nms_top_k": 20, "nms_threshold": 0.1}}},
}


@pytest.mark.slow
@pytest.mark.skipif(PADDLE_2, reason="Paddle 2 cannot leave the sides open")
@pytest.mark.parametrize("name", HARD)
def test_detectors_agree_with_unusual_settings_on_flat_images_and_without_objects(tmp_path, name):
    layer = SingleImageDetector(build_decisive(tmp_path, name, **HARD[name]))
    shapes = {"image": [1, 3, None, None], "im_shape": [1, 2], "scale_factor": [1, 2]}
    nothing = SingleImageDetector(layer.model)
    nothing.nms = copy.copy(layer.nms)
    nothing.nms.score_threshold = 2.0
    for kind, detector in (("some", layer), ("nothing", nothing)):
        folder = tmp_path / kind
        program = save_program(detector, folder, shapes)
        names = ["boxes", "masks"][: 1 + detector.has_masks]
        runs = [FORMATS[form].open(FORMATS[form].convert(*program, folder, names), "cpu") for form in WRITABLE]
        for batch in (inputs(), inputs(64, 96), {**inputs(), "image": paddle.full([1, 3, 128, 160], 0.3)}):
            with paddle.no_grad():
                expected = [output.numpy() for output in detector(*batch.values())]
            assert (len(expected[0]) > 5) == (kind == "some")
            for run in runs:
                found = run({key: value.numpy() for key, value in batch.items()})
                assert [array.shape for array in found] == [array.shape for array in expected]
                for one, other in zip(expected, _same_order(expected, found), strict=True):
                    assert np.allclose(one, other, rtol=1e-3, atol=1e-2)


def test_objects_are_found_again_with_their_label_and_place():
    rows = np.array([[0, 0.9, 0, 0, 10, 10], [1, 0.8, 20, 20, 30, 30], [1, 0.3, 0, 0, 5, 5]], np.float32)
    moved = rows + np.array([0, -0.1, 1, 0, 1, 0], np.float32)
    relabeled = rows.copy()
    relabeled[1, 0] = 0
    assert _share_found_again([rows], [moved]) == 1
    assert _share_found_again([rows], [relabeled]) == 0.5
    assert _share_found_again([rows], [rows[2:]]) == 0
    assert _share_found_again([rows[2:]], [rows]) is None


# ---- sizes


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["-size", "31"], "-size 31 31: images are preprocessed to 32 by 32 pixels; set DATA.IMAGE_SIZE"),
        (["-size", "32", "32", "64"], "-size 32 32 64: give one number, or height and width"),
        (["-images", "nowhere"], "no such image or folder: nowhere"),
        (["-out", "a\udcff"], "Paddle cannot write to a folder whose name is not UTF-8"),
    ],
)
def test_wrong_flags(tmp_path, flags, problem):
    with pytest.raises(UserError, match=problem):
        export.main(["-pretrained", "mnist5k", "-out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_an_export_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch, photographs):
    monkeypatch.setattr(export, "_write_formats", lambda *_: signal.raise_signal(signal.SIGINT))
    out, image = tmp_path / "out", photographs / "roof.png"
    with pytest.raises(KeyboardInterrupt):
        export.main(["-pretrained", "mnist5k", "-out", str(out), "-images", str(image)])
    assert not list(out.iterdir())


def test_names_of_images_cannot_steer_the_terminal(capsys):
    export._tell("running pale_nano on a\x1b[2J\u202e.png")
    assert capsys.readouterr().err == "running pale_nano on a\\x1b[2J\\u202e.png\n"


def test_sides_of_a_fixed_size(doubling):
    assert export._fixed_size([64], doubling) == (64, 64)
    assert export._fixed_size([64, 40], doubling) == (64, 40)
    assert export._fixed_size(None, replace(doubling, usual_size=(32, 48), takes_usual_size_only=True)) == (32, 48)
    for side in (31, 8193):
        with pytest.raises(UserError, match=f"-size 64 {side}: sides must be from 32 to 8192"):
            export._fixed_size([64, side], doubling)
    with pytest.raises(UserError, match="multiples of 32"):
        export._fixed_size([64, 40], replace(doubling, stride=32))


def test_a_model_of_one_size_keeps_the_names_of_its_classes_and_refuses_other_sizes(exported):
    card = json.loads((exported / "model_card.json").read_text())
    assert card["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 3, 32, 32]}]
    assert card["weights"]["figures"] == {"note": "\udcff"}
    assert not (exported / "model.onnx").exists()
    model = ExportedModel(find_exported(str(exported)))
    assert model.class_names == ["玫瑰 花", r"next\u2028line", "", r"two\nlines"]
    assert model(images=paddle.zeros([2, 3, 32, 32]))["logits"].shape == [2, 4]
    with pytest.raises(
        UserError, match=r"shape images \['batch', 3, 32, 32\], not images \[1, 3, 64, 32\]; use images"
    ):
        model(images=paddle.zeros([1, 3, 64, 32]))


# ---- the comparison


class Doubling(nn.Layer):
    def forward(self, images):
        return images * 2


class Nothing(nn.Layer):
    def forward(self, images):
        return images[:0]


class Failing(nn.Layer):
    def forward(self, images):
        raise ValueError("nothing\nto join")


@pytest.fixture
def doubling():
    def inputs_of(file):
        return {"images": paddle.to_tensor(np.asarray(Image.open(file)).transpose(2, 0, 1)[None] / np.float32(255))}

    outputs = [Output("twice", ["batch", 3, "height", "width"], "twice the images")]
    return Exportable("doubling", [], Doubling(), {"images": [None, 3, None, None]}, outputs, inputs_of, {}, "")


def test_every_image_a_batch_and_another_size_are_compared(doubling, photographs):
    files = [str(photographs / "roof.png"), str(photographs / "stairs.png")]
    cases = make_cases(doubling, files, None)
    shapes = [case.inputs["images"].shape for case in cases]
    assert shapes == [(1, 3, 96, 128), (2, 3, 96, 128), (1, 3, 72, 64), (1, 3, 128, 64)]
    found = check(doubling, lambda inputs: [inputs["images"] * 2], cases, "it")
    assert found == dict.fromkeys((case.name for case in cases), 0.0)
    assert len(found) == 4
    assert [case.inputs["images"].shape[2:] for case in make_cases(doubling, files, (64, 160))] == [(64, 160)] * 3


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (lambda images: images * 2.001, r"it differs from the model by 5\.0e-04 for roof\.png \(image 1\), more than"),
        (lambda images: images * np.nan, "differs from the model by nan"),
        (lambda images: images[:, :, 1:], r"outputs of it for roof\.png \(image 1\) are \[\[1, 3, 95, 128\]\]"),
        (lambda images: images @ images, r"it fails on roof\.png \(image 1\); give -size .* \(matmul"),
    ],
)
def test_differences_are_refused(doubling, photographs, run, problem):
    cases = make_cases(doubling, [str(photographs / "roof.png")], None)
    with pytest.raises(UserError, match=problem):
        check(doubling, lambda inputs: [run(inputs["images"])], cases, "it")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"reference": lambda inputs: [inputs["images"].numpy() * 3]}, "the layer to export differs from the model"),
        (
            {"layer": Nothing()},
            "doubling detects no object on the images, so nothing can be compared; give other -images",
        ),
        ({"layer": Failing()}, r"doubling fails on roof\.png \(image 1\); give other -images \(nothing to join\)"),
    ],
)
def test_a_model_that_cannot_be_compared_is_refused(doubling, photographs, changes, problem):
    with pytest.raises(UserError, match=problem):
        make_cases(replace(doubling, **changes), [str(photographs / "roof.png")], None)


# ---- the folder


@pytest.fixture
def stubs(monkeypatch):
    """Files of a program that are empty, and formats that run mnist5k's weights."""
    model = create_model("pale_nano", pretrained="mnist5k")
    model.eval()

    def save_program(layer, folder, inputs):
        for name in ("inference.json", "inference.pdiparams"):
            (folder / name).touch()
        return folder / "inference.json", folder / "inference.pdiparams"

    def convert(graph, weights, folder, outputs):
        (folder / "model.onnx").touch()
        return folder / "model.onnx"

    def run(inputs):
        with paddle.no_grad():
            return [model(paddle.to_tensor(inputs["images"])).numpy()]

    monkeypatch.setattr(export_formats, "save_program", save_program)
    monkeypatch.setitem(FORMATS, "paddle", replace(FORMATS["paddle"], open=lambda *_: run))
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], convert=convert, open=lambda *_: run))


def test_failures_write_nothing_and_leave_an_earlier_export(tmp_path, stubs, monkeypatch, photographs):
    def fail(*arguments):
        raise ValueError("(InvalidArgument) the width\nmust be the height")

    (tmp_path / "model_card.json").write_text(CARD)
    wrong = replace(FORMATS["onnx"], open=lambda *_: lambda inputs: [np.ones((len(inputs["images"]), 10))])
    flags = ["-pretrained", "mnist5k", "-out", str(tmp_path), "-images", str(photographs)]
    for name, value, problem in (
        ("FORMATS", {**FORMATS, "onnx": wrong}, r"model\.onnx differs from the model by"),
        ("save_program", fail, r"cannot trace pale_nano; give -size .*width must be the height"),
    ):
        monkeypatch.setattr(export_formats, name, value)
        with pytest.raises(UserError, match=problem):
            export.main(flags)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model_card.json": CARD}


def test_a_full_disk_is_named_whatever_the_libraries_say(tmp_path, stubs, monkeypatch, photographs):
    monkeypatch.setattr(export_formats, "save_program", Mock(side_effect=RuntimeError("iostream error")))
    monkeypatch.setattr(tempfile, "TemporaryFile", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot write to .*tmp.*: No space left on device; free space"):
        export.main(["-pretrained", "mnist5k", "-out", str(tmp_path), "-images", str(photographs)])
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    failing = replace(FORMATS["onnx"], convert=Mock(side_effect=ValueError("Wire format was corrupt")))
    monkeypatch.setitem(FORMATS, "onnx", failing)
    with pytest.raises(UserError, match=r"cannot convert the model to onnx \(Wire .*check the free space of "):
        export.main(["-pretrained", "mnist5k", "-out", str(tmp_path), "-images", str(photographs)])


def test_a_format_that_cannot_be_written_is_left_out_unless_it_is_required(
    tmp_path, stubs, capsys, monkeypatch, photographs
):
    def refuse(*arguments):
        raise UserError("paddle2onnx is not installed")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], convert=refuse))
    flags = ["-pretrained", "mnist5k", "-out", str(tmp_path), "-images", str(photographs)]
    said = run_export(capsys, *flags)
    assert "warning: no onnx file: paddle2onnx is not installed" in said.err
    assert "OK: paddle, 4 checks of each format, " in said.out
    left_out = json.loads((tmp_path / "model_card.json").read_text())["left_out"]
    assert left_out == {"onnx": "paddle2onnx is not installed"}
    with pytest.raises(UserError, match="paddle2onnx is not installed"):
        export.main([*flags, "-formats", "onnx"])


def test_files_of_others_are_not_overwritten_and_those_of_an_earlier_export_are(tmp_path):
    new, folder = tmp_path / "new", tmp_path / "folder"
    for place, names in ((new, ["model.onnx", "model_card.json"]), (folder, ["inference.json", "notes.txt"])):
        place.mkdir()
        for name in names:
            (place / name).write_text(place.name)
    problem = r"not from tools/export\.py \(inference\.json.*\); give another -out"
    with pytest.raises(UserError, match=problem):
        export.main(["-pretrained", "mnist5k", "-out", str(folder)])
    with pytest.raises(UserError, match=problem):
        replace_exported(new, folder)
    (folder / "model_card.json").write_text('{"model": "of another program"}')
    with pytest.raises(UserError, match=r"not from tools/export\.py \(inference\.json, model_card\.json\); give"):
        replace_exported(new, folder)
    (folder / "model_card.json").write_text(CARD)
    assert replace_exported(new, folder) == [folder / "model.onnx", folder / "model_card.json"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "model.onnx": "new",
        "model_card.json": "new",
        "notes.txt": "folder",
    }


def test_an_export_waits_for_another_that_moves_its_files_into_the_folder(tmp_path):
    new, folder = tmp_path / "new", tmp_path / "folder"
    for place in (new, folder):
        place.mkdir()
    (new / "model_card.json").write_text(CARD)
    with ThreadPoolExecutor() as pool:
        with locked(folder):
            moving = pool.submit(replace_exported, new, folder)
            time.sleep(0.3)
            assert not list(folder.iterdir())
        assert moving.result() == [folder / "model_card.json"]


def test_sources_that_are_exported_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="contains no exported model"):
        find_exported(str(tmp_path))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match="is an exported model; give the weights"):
        export.main(["-pretrained", str(tmp_path / "model.onnx")])
    (tmp_path / "mnist5k").mkdir()
    assert find_exported("mnist5k") is None  # released weights
    assert find_exported(str(tmp_path / "best.pdparams")) is None


# ---- damaged exports


CARD_WITH_TEXT = CARD.replace("2", '"two"')


def test_missing_and_changed_files_are_named(tmp_path, exported):
    out = shutil.copytree(exported, tmp_path / "out")
    graph = find_exported(str(out))
    for name in ("inference.pdiparams", "config.yaml", "labels.txt", graph.name):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-4])
        with pytest.raises(UserError, match=rf"{name} is not the file that model_card\.json describes; export"):
            ExportedModel(graph)
        (out / name).write_bytes(whole)
    card = json.loads((out / "model_card.json").read_text(encoding="utf-8"))
    card["files"].pop("labels.txt")
    (out / "model_card.json").write_text(json.dumps(card))
    with (out / "labels.txt").open("r+b") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(UserError, match=r"labels\.txt .*more than 16,777,216 bytes; export the model again"):
        ExportedModel(graph)
    (out / "labels.txt").write_text("one\n")
    with pytest.raises(UserError, match=r"labels\.txt has 1 lines and the model 4 classes; export the model again"):
        ExportedModel(graph)
    (out / "inference.pdiparams").unlink()
    with pytest.raises(UserError, match=rf"no such file: .*pdiparams of {graph.name}; export the model again"):
        ExportedModel(graph)


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("no json", "is not valid JSON"),
        ("{}", "task is missing; export the model again"),
        (CARD_WITH_TEXT, "classes is 'two'; it must be a whole"),
    ],
)
def test_a_damaged_card_is_named(tmp_path, card, problem):
    with pytest.raises(UserError, match=r"no such file: .*model\.onnx; create it with tools/export\.py"):
        ExportedModel(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match=r"cannot read .*model_card\.json: No such"):
        ExportedModel(tmp_path / "model.onnx")
    (tmp_path / "model_card.json").write_text(card)
    with pytest.raises(UserError, match=problem):
        ExportedModel(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("image_classification", {"logits": np.zeros((1, 3), np.float32)}),
        ("image_classification", {"logits": np.zeros((1, 2), np.int64)}),
        ("semantic_segmentation", {"logits": np.zeros((1, 300, 32, 64), np.float32)}),
        ("semantic_segmentation", {"logits": np.zeros((1, 2, 8, 8), np.float32)}),
        ("object_detection", {"boxes": np.zeros((6, 5), np.float32)}),
        ("object_detection", {"boxes": np.full((1, 6), 2, np.float32)}),
        ("object_detection", {"boxes": np.ones((2, 6), np.float32), "masks": np.ones((1, 28, 28), np.float32)}),
    ],
    ids=["classes", "integers", "many classes", "size", "no boxes", "label", "masks"],
)
def test_outputs_that_do_not_suit_the_labels_or_the_image_are_refused(task, outputs, tmp_path):
    taken = inputs(32, 64) if task == "object_detection" else {"images": paddle.zeros([1, 3, 32, 64])}
    exported = object.__new__(ExportedModel)
    exported.file, exported.class_names = tmp_path / "model.onnx", ["a", "b"]
    ports = [[_Port(name, ["any"] * value.ndim) for name, value in values.items()] for values in (taken, outputs)]
    exported.card, exported._run = Card(task, 2, {}, *ports), lambda arrays: list(outputs.values())
    form = TASKS[task].config()
    config = form.load(Namespace(cfg=str(form.default_file), opts=[]))
    model = TASKS[task].predictor().from_exported(exported, config).model
    with pytest.raises(UserError, match=r"model\.onnx.*export the model again"):
        model(taken if task == "object_detection" else taken["images"])
