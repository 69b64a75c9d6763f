"""What tools/export.py writes: the same answers in both formats as from the weights, and nothing that disagrees."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from PIL import Image

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.inference.export_formats import convert_program, save_program
from common.inference.exportable import Exportable, Output
from common.inference.exported_model import ExportedModel, find_exported, open_file, replace_exported
from object_detection.exporting import _same_order
from object_detection.single_image import SingleImageDetector
from semantic_segmentation.upernet import _region_weights
from tests.detection.test_single_image import build as build_decisive
from tests.detection.test_single_image import inputs
from tools import export, predict
from tools.exporting.checking import check, make_cases

HAS_ONNX = importlib.util.find_spec("paddle2onnx") is not None
FORMATS = ("paddle", "onnx") if HAS_ONNX else ("paddle",)
NAMES = ("background", "nucleus")  # as many as the default configuration of segmentation has
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


def save_weights(path, task, opts=(), class_names=("sky", "roof", "tree")):
    """Random weights of the task's default configuration whose answers are not all alike."""
    config = importlib.import_module(f"{task}.config").CONFIG
    config_now = config.load(Namespace(cfg=str(config.default_file), opts=list(opts)))
    paddle.seed(0)
    module = "pale_backbone" if task == "image_classification" else "components"
    model = importlib.import_module(f"{task}.{module}").build_model(config_now, len(class_names))
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("rpn_rois", "bbox_score", "bbox_delta")) and parameter.ndim > 1:
            parameter.set_value(parameter * 20)
    state = {"task": task, "config": config.dump(config_now), "class_names": list(class_names)}
    save_file({"model": numpy_state(model), **state}, path)
    return path


def predictions(capsys, source, photographs, out):
    predict.main([str(photographs), "-pretrained", str(source), "-out", str(out), "-threshold", "0.05", "-json"])
    return json.loads(capsys.readouterr().out)


def fixed(*size):
    """What PaddlePaddle 2 needs, which cannot leave the size open."""
    return ["-size", *map(str, size)] if PADDLE_2 else []


def run_export(capsys, *flags):
    export.main([str(flag) for flag in flags])
    return capsys.readouterr()


# ---- the three tasks


@pytest.mark.slow
def test_a_classifier_answers_alike_in_both_formats(tmp_path, capsys, photographs):
    weights = save_weights(tmp_path / "best.pdparams", "image_classification", ["DATA.IMAGE_SIZE", "48"])
    out = tmp_path / "exported"
    said = run_export(capsys, "-pretrained", weights, "-images", photographs, "-out", out)
    assert said.out.splitlines()[-1].startswith(f"OK: {' and '.join(FORMATS)}, ")
    card = json.loads((out / "model_card.json").read_text())
    assert card["name"] == "pale_nano"
    assert card["outputs"][0]["shape"] == ["batch", 3]
    assert (out / "labels.txt").read_text() == "sky\nroof\ntree\n"
    assert json.loads((out / "preprocessing.json").read_text())["crop_centre_to"] == [48, 48]
    for differences in card["checked_against_eager_mode"]["largest_differences"].values():
        assert 0 < max(differences.values()) < 1e-4
        assert any("mirror" in name for name in differences)
        assert PADDLE_2 or any("a part of" in name for name in differences)
    expected = predictions(capsys, weights, photographs, tmp_path)
    for file in (out, out / "model.onnx")[: len(FORMATS)]:
        for row, found in zip(expected, predictions(capsys, file, photographs, tmp_path), strict=True):
            pairs = list(zip(row["predictions"], found["predictions"], strict=True))
            assert all(one["name"] == other["name"] for one, other in pairs)
            assert np.allclose([one["score"] for one, _ in pairs], [other["score"] for _, other in pairs], atol=1e-5)


@pytest.mark.slow
def test_a_segmenter_answers_alike_in_both_formats_in_windows_of_any_size(tmp_path, capsys, photographs):
    sliding = "{is_slide: true, crop_size: [64, 64], stride: [48, 48]}"
    weights = save_weights(tmp_path / "best.pdparams", "semantic_segmentation", ["test_config", sliding], NAMES)
    out = tmp_path / "exported"
    run_export(capsys, "-pretrained", weights, "-images", photographs, "-out", out, *fixed(64, 64))
    assert "is_slide" in json.loads((out / "model_card.json").read_text())["postprocessing"]
    expected = predictions(capsys, weights, photographs, tmp_path / "a")
    for file in (out, out / "model.onnx")[: len(FORMATS)]:
        found = predictions(capsys, file, photographs, tmp_path / "b")
        for row, other in zip(expected, found, strict=True):
            labels, others = (np.asarray(Image.open(item["labels"])) for item in (row, other))
            assert (labels != others).mean() < 1e-3
            assert len(np.unique(labels)) > 1


@pytest.mark.slow
def test_a_detector_answers_alike_in_both_formats(tmp_path, capsys, photographs):
    weights = save_weights(tmp_path / "best.pdparams", "object_detection")
    out = tmp_path / "exported"
    run_export(capsys, "-pretrained", weights, "-images", photographs, "-out", out, *fixed(256, 256))
    card = json.loads((out / "model_card.json").read_text())
    assert [row["name"] for row in card["outputs"]] == ["boxes", "masks"]
    assert card["inputs"][0]["shape"][0] == 1
    expected = predictions(capsys, weights, photographs, tmp_path / "a")
    assert len(expected[0]["detections"]) > 10
    for file in (out, out / "model.onnx")[: len(FORMATS)]:
        for row, found in zip(expected, predictions(capsys, file, photographs, tmp_path / "b"), strict=True):
            for one, other in zip(row["detections"], found["detections"], strict=True):
                assert one["label"] == other["label"]
                assert np.allclose([one["score"], *one["box"]], [other["score"], *other["box"]], atol=0.01)
            masks, others = ([item["segmentation"] for item in rows["detections"]] for rows in (row, found))
            assert np.mean([one == other for one, other in zip(masks, others, strict=True)]) > 0.9


HARD = {  # what converters have got wrong: unaligned features, a limit before the suppression, equal scores
    "mask_rcnn": {
        "BBoxHead": {"roi_extractor": {"resolution": 7, "sampling_ratio": 0, "aligned": False}},
        "BBoxPostProcess": {"nms": {"name": "MultiClassNMS", "nms_top_k": 5, "nms_threshold": 0.9}},
    },
    "retinanet": {"RetinaHead": {"nms": {"name": "MultiClassNMS", "nms_top_k": 20, "nms_threshold": 0.1}}},
}


@pytest.mark.slow
@pytest.mark.skipif(PADDLE_2, reason="Paddle 2 cannot leave the sides open")
@pytest.mark.parametrize("name", HARD)
def test_detectors_agree_in_their_less_usual_settings_on_flat_images_and_where_nothing_is_found(tmp_path, name):
    layer = SingleImageDetector(build_decisive(tmp_path, name, **HARD[name]))
    shapes = {"image": [1, 3, None, None], "im_shape": [1, 2], "scale_factor": [1, 2]}
    nothing = SingleImageDetector(layer.model)
    nothing.nms = copy.copy(layer.nms)
    nothing.nms.score_threshold = 2.0
    for kind, detector in (("some", layer), ("nothing", nothing)):
        folder = tmp_path / kind
        graph, weights = save_program(detector, folder, shapes)
        files = [graph]
        if HAS_ONNX:
            convert_program(graph, weights, folder / "model.onnx", ["boxes", "masks"][: 1 + detector.has_masks])
            files.append(folder / "model.onnx")
        for batch in (inputs(), inputs(64, 96), {**inputs(), "image": paddle.full([1, 3, 128, 160], 0.3)}):
            with paddle.no_grad():
                expected = [output.numpy() for output in detector(*batch.values())]
            assert (len(expected[0]) > 5) == (kind == "some")
            for file in files:
                found = open_file(file)({key: value.numpy() for key, value in batch.items()})
                assert [array.shape for array in found] == [array.shape for array in expected]
                for one, other in zip(expected, _same_order(expected, found), strict=True):
                    assert np.allclose(one, other, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_a_fixed_size_is_said_to_those_who_bring_another(tmp_path, capsys, photographs):
    weights = save_weights(tmp_path / "best.pdparams", "semantic_segmentation", class_names=NAMES)
    out = tmp_path / "exported"
    flags = ["-formats", "paddle", "-size", "64", "96", "-json"]
    said = run_export(capsys, "-pretrained", weights, "-images", photographs, "-out", out, *flags)
    card = json.loads(said.out)
    assert card["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 3, 64, 96]}]
    assert set(card["files"]) >= {"inference.pdiparams"}
    assert not (out / "model.onnx").exists()
    with pytest.raises(
        UserError, match=r"takes images \['batch', 3, 64, 96\], and was given images \[1, 3, 96, 128\]; bring"
    ):
        predictions(capsys, out, photographs, tmp_path)


# ---- what is refused


def test_a_folder_without_an_export_and_an_export_as_weights(tmp_path):
    with pytest.raises(UserError, match="holds no exported model"):
        find_exported(str(tmp_path))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match="is exported already; give the weights"):
        export.main(["-pretrained", str(tmp_path / "model.onnx")])
    assert find_exported("mnist5k") is None
    assert find_exported(str(tmp_path / "best.pdparams")) is None


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("no json", "is no model card"),
        ('{"task": 1, "inputs": [], "outputs": []}', "task is 1"),
        (
            '{"task": "image_classification", "inputs": [], "outputs": [], "files": {}, "classes": "two"}',
            "classes is 'two'",
        ),
        (
            '{"task": "image_classification", "inputs": [{"name": "", "shape": []}], "outputs": []}',
            "has no name or shape",
        ),
    ],
)
def test_a_damaged_card(tmp_path, card, problem):
    with pytest.raises(UserError, match=r"no such file: .*model\.onnx; write it with tools/export\.py"):
        ExportedModel(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match=r"cannot read .*model_card\.json, which belongs to model\.onnx: No such"):
        ExportedModel(tmp_path / "model.onnx")
    (tmp_path / "model_card.json").write_text(card)
    with pytest.raises(UserError, match=problem):
        ExportedModel(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["-size", "31"], "-size 31 31: images come as 32 by 32 pixels; set DATA.IMAGE_SIZE to change that"),
        (["-size", "32", "32", "64"], "-size 32 32 64: give one number, or height and width"),
        (["-size", "32", "64"], "-size 32 64: images come as 32 by 32"),
        (["-images", "nowhere"], "no such image or folder: nowhere"),
    ],
)
def test_wrong_flags(tmp_path, flags, problem):
    with pytest.raises(UserError, match=problem):
        export.main(["-pretrained", "mnist5k", "-out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_learned_positions_fix_the_size(tmp_path, capsys, photographs):
    opts = ["MODEL.POSITION_ENCODING", "absolute"]
    weights = save_weights(tmp_path / "best.pdparams", "image_classification", opts)
    flags = ["-images", photographs, "-out", tmp_path / "out", "-formats", "paddle", "-json"]
    card = json.loads(run_export(capsys, "-pretrained", weights, *flags).out)
    assert card["inputs"][0]["shape"] == ["batch", 3, 32, 32]


def test_sides_of_a_fixed_size(doubling):
    assert export._fixed_size([64], doubling) == (64, 64)
    assert export._fixed_size([64, 40], doubling) == (64, 40)
    with pytest.raises(UserError, match="-size 64 31: sides must be at least 32"):
        export._fixed_size([64, 31], doubling)
    with pytest.raises(UserError, match="multiples of 32"):
        export._fixed_size([64, 40], replace(doubling, stride=32))


def test_files_of_others_are_not_overwritten(tmp_path, photographs):
    (tmp_path / "config.yaml").write_text("of a training")
    with pytest.raises(UserError, match=r"holds config\.yaml of something else .* give another -out"):
        export.main(["-pretrained", "mnist5k", "-out", str(tmp_path), "-images", str(photographs)])
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_released_weights_are_meant_by_their_tag_even_where_a_folder_is_called_so(tmp_path, monkeypatch):
    (tmp_path / "mnist5k").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_exported("mnist5k") is None


# ---- the check itself


class Doubling(nn.Layer):
    def forward(self, images):
        return images * 2


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
    assert len({case.name for case in cases}) == 4
    assert check(doubling, lambda inputs: [inputs["images"] * 2], cases, "it") == dict.fromkeys(
        (case.name for case in cases), 0.0
    )
    assert [case.inputs["images"].shape[2:] for case in make_cases(doubling, files, (64, 160))] == [(64, 160)] * 3


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (lambda images: images * 2.001, r"it differs from the model by 5\.0e-04 for roof\.png \(image 1\), more than"),
        (lambda images: images * np.nan, "differs from the model by nan"),
        (lambda images: images[:, :, 1:], r"it gives outputs of \[\[1, 3, 95, 128\]\] for roof\.png"),
        (lambda images: images @ images, r"it fails on roof\.png \(image 1\); give -size .* \(matmul"),
    ],
)
def test_what_differs_is_refused(doubling, photographs, run, problem):
    cases = make_cases(doubling, [str(photographs / "roof.png")], None)
    with pytest.raises(UserError, match=problem):
        check(doubling, lambda inputs: [run(inputs["images"])], cases, "it")


def test_the_layer_to_export_has_to_agree_with_the_model(doubling, photographs):
    files = [str(photographs / "roof.png")]
    twice, thrice = ((lambda inputs, times=times: [inputs["images"].numpy() * times]) for times in (2, 3))
    assert make_cases(replace(doubling, reference=twice), files, None)
    with pytest.raises(UserError, match="the form to export differs from the model"):
        make_cases(replace(doubling, reference=thrice), files, None)


def test_what_finds_nothing_is_not_compared(doubling, photographs):
    class Nothing(nn.Layer):
        def forward(self, images):
            return images[:0]

    with pytest.raises(UserError, match="doubling finds nothing on the images, so nothing can be compared"):
        make_cases(replace(doubling, layer=Nothing()), [str(photographs / "roof.png")], None)


def test_images_on_which_the_model_itself_fails_are_named(doubling, photographs):
    class Failing(nn.Layer):
        def forward(self, images):
            raise ValueError("nothing\nto join")

    with pytest.raises(
        UserError, match=r"doubling fails on roof\.png \(image 1\); give other -images \(nothing to join\)"
    ):
        make_cases(replace(doubling, layer=Failing()), [str(photographs / "roof.png")], None)


def test_a_file_that_disagrees_is_an_error_though_its_format_was_not_asked_for(tmp_path, monkeypatch, photographs):
    def convert(graph, weights, path, outputs):
        path.touch()

    opened = sys.modules["common.inference.exported_model"].open_file
    monkeypatch.setattr(sys.modules["common.inference.onnx_export"], "convert_program", convert)
    monkeypatch.setattr(
        sys.modules["common.inference.exported_model"],
        "open_file",
        lambda file: (lambda inputs: [np.ones((1, 10))]) if file.suffix == ".onnx" else opened(file),
    )
    with pytest.raises(UserError, match=r"model\.onnx (gives outputs|differs)"):
        export.main(["-pretrained", "mnist5k", "-out", str(tmp_path), "-images", str(photographs)])
    assert not any(tmp_path.iterdir())


def test_a_failed_check_leaves_an_earlier_export_as_it_was(tmp_path, monkeypatch, photographs):
    (tmp_path / "model_card.json").write_text("an earlier one")
    (tmp_path / "inference.json").write_text("its graph")
    monkeypatch.setattr(sys.modules["tools.exporting.checking"], "TOLERANCE", 0.0)
    flags = ["-pretrained", "mnist5k", "-out", str(tmp_path), "-formats", "paddle", "-images", str(photographs)]
    with pytest.raises(UserError, match=r"inference\.\w+ differs from the model by .* more than 0e"):
        export.main(flags)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model_card.json": "an earlier one",
        "inference.json": "its graph",
    }


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("of a training run")
    with pytest.raises(UserError, match=r"holds config\.yaml of something else .*; give another -out"):
        export.main(["-pretrained", "mnist5k", "-out", str(tmp_path)])
    assert (tmp_path / "config.yaml").read_text() == "of a training run"


def test_what_paddle_cannot_trace_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, photographs):
    def fail(*arguments):
        raise ValueError("(InvalidArgument) the width\nmust be the height")

    flags = ["-pretrained", "mnist5k", "-out", str(tmp_path / "new" / "out"), "-images", str(photographs)]
    monkeypatch.setattr(sys.modules["common.inference.inference_program"], "save_program", fail)
    with pytest.raises(UserError, match=r"cannot write pale_nano as a program; give -size .*width must be the height"):
        export.main(flags)
    assert not (tmp_path / "new").exists()


def test_a_new_export_replaces_all_of_an_earlier_one_and_nothing_else(tmp_path):
    new, folder = tmp_path / "new", tmp_path / "folder"
    for place, names in ((new, ["model.onnx", "model_card.json"]), (folder, ["inference.json", "notes.txt"])):
        place.mkdir()
        for name in names:
            (place / name).write_text(place.name)
    with pytest.raises(UserError, match=r"holds inference\.json of something else"):
        replace_exported(new, folder)
    (folder / "model_card.json").write_text("of an export")
    assert replace_exported(new, folder) == [folder / "model.onnx", folder / "model_card.json"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "model.onnx": "new",
        "model_card.json": "new",
        "notes.txt": "folder",
    }


def test_names_of_classes_are_read_as_they_were(tmp_path, photographs):
    names = ("玫瑰 花", "next\u2028line", "", "two\nlines")
    weights = save_weights(tmp_path / "best.pdparams", "image_classification", class_names=names)
    out = tmp_path / "out"
    export.main(
        ["-pretrained", str(weights), "-out", str(out), "-formats", "paddle", "-images", str(photographs / "roof.png")]
    )
    assert ExportedModel(find_exported(str(out))).class_names == [*names[:3], "two lines"]
    (out / "labels.txt").write_text("one\n")
    with pytest.raises(UserError, match=r"labels\.txt has 1 lines and the model 4 classes; export the model again"):
        ExportedModel(find_exported(str(out)))


def test_files_that_are_gone_or_changed_are_named(tmp_path, photographs):
    export.main(
        [
            "-pretrained",
            "mnist5k",
            "-out",
            str(tmp_path),
            "-formats",
            "paddle",
            "-images",
            str(photographs / "roof.png"),
        ]
    )
    graph, weights = find_exported(str(tmp_path)), tmp_path / "inference.pdiparams"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"pdiparams is not the file that model_card\.json describes; export the model"):
        ExportedModel(graph)
    weights.unlink()
    with pytest.raises(UserError, match=rf"no such file: .*pdiparams, which belongs to {graph.name}; export the model"):
        ExportedModel(graph)
    weights.write_bytes(whole)
    assert len(ExportedModel(graph).class_names) == 10
    config = tmp_path / "config.yaml"
    text = config.read_text()
    config.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"config\.yaml is not the file"):
        ExportedModel(graph)
    config.write_text(text)
    graph.write_text("{}")
    with pytest.raises(UserError, match=rf"{graph.name} is not the file"):
        ExportedModel(graph)


def test_what_cannot_be_converted_is_left_out_unless_it_was_asked_for(tmp_path, capsys, monkeypatch, photographs):
    def refuse(*arguments):
        raise UserError("paddle2onnx is not installed")

    monkeypatch.setattr(sys.modules["common.inference.onnx_export"], "convert_program", refuse)
    flags = ["-pretrained", "mnist5k", "-out", str(tmp_path), "-images", str(photographs)]
    said = run_export(capsys, *flags)
    assert "warning: no model.onnx: paddle2onnx is not installed" in said.err
    assert "OK: paddle, " in said.out
    assert json.loads((tmp_path / "model_card.json").read_text())["left_out"] == {
        "onnx": "paddle2onnx is not installed"
    }
    with pytest.raises(UserError, match="paddle2onnx is not installed"):
        export.main([*flags, "-formats", "onnx"])


@pytest.mark.parametrize("regions", [1, 2, 3, 6])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 16])
def test_averages_over_regions_are_those_of_adaptive_pooling(regions, length):
    x = paddle.rand([1, 2, length, 9])
    down, across = (_region_weights(paddle.to_tensor(side), regions) for side in (length, 9))
    found = paddle.matmul(paddle.matmul(down, x), across, transpose_y=True)
    assert np.allclose(found.numpy(), F.adaptive_avg_pool2d(x, regions).numpy(), atol=1e-6)


def test_the_photographs_to_check_on_are_there():
    assert [Path(file).is_file() for file in export._find_images(None)] == [True, True]
