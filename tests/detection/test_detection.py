"""Object detection from the launcher's flags to metrics, on one rank and on several."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from pycocotools import mask as rle_masks

from common.checkpoints.file_format import load_file
from common.checkpoints.loading import Checkpoint, read_checkpoint
from common.inference.predictor import PredictOptions
from common.training.run import run_task
from object_detection import detection
from object_detection.config import CONFIG
from object_detection.detection import Detection
from object_detection.pictures import detections_beside_truth
from object_detection.prediction import Detector
from tests.helpers.detection_runs import LAUNCHER, assert_told, load, run
from tests.helpers.made_up_data import COLORS
from tests.helpers.programs import ROOT, cpu_seconds, fails, next_commands, run_program


def records(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


# ---- a run


@pytest.mark.slow
def test_train_evaluate_predict_and_resume_by_the_commands_that_training_prints(tmp_path, boxes, boxes_config):
    backbone = tmp_path / "backbone.pdparams"
    shutil.copy(ROOT / "common" / "checkpoints" / "released_weights" / "pale_nano_mnist5k.pdparams", backbone)
    options = ("-opts", "TRAIN.EMA_DECAY", "0.9", "PaleTransformer.pretrained", backbone)
    output = run_program(LAUNCHER, "-cfg", boxes_config, "-verbose", *options, cwd=tmp_path).stdout
    assert "Traceback" not in output
    lines = [line.partition("] ")[2] for line in output.splitlines() if line.startswith("[")]
    assert len(set(lines)) == len(lines), "no line comes twice, of a logger of PaddleDetection neither"
    assert {line.partition(" ")[0].partition(".")[0] for line in lines} == {"ppdet", "epoch"}
    backbone.unlink()  # from now on, the weights come from elsewhere
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        "best.pdparams", "latest.pdparams", "epoch_0001.pdparams", "epoch_0002.pdparams", "config.yaml", "log.jsonl",
        "visualdl", "pictures", "data_check.json", "val_bbox.json", "val_segm.json", "val_ema_bbox.json",
        "val_ema_segm.json", ".lock", "last.pdparams",
    }  # fmt: skip
    steps = records(folder, "train")
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    parts = {"loss_rpn_cls", "loss_rpn_reg", "loss_bbox_cls", "loss_bbox_reg", "loss_mask"}
    for record in steps:
        assert record["loss"] == pytest.approx(sum(record[name] for name in parts), rel=1e-5)
    validations = {kind: records(folder, kind) for kind in ("val", "val_ema")}
    for rows in validations.values():
        assert [(row["epoch"], row["images"]) for row in rows] == [(1.0, 3), (2.0, 3)]
    best = max(row["box_AP"] for rows in validations.values() for row in rows)
    assert f"box AP {best:.2f} after epoch" in output
    table = (
        r"each class, AP in percent\nclass +objects +box AP +mask AP\n"
        r"red +3 +[\d.]+ +[\d.]+\ngreen +2 +[\d.]+ +[\d.]+\nblue +0 +- +-\n"
    )
    assert re.search(rf"epoch 2/2  val +box AP .*\nval, {table}", output), "the table of the classes below their mean"
    assert re.search(rf"epoch 2/2  EMA +box AP .*\nval_ema, {table}", output)
    events = next((folder / "visualdl").glob("vdlrecords.*")).read_bytes()
    assert all(tag in events for tag in (b"train/loss_mask", b"val/box_AP50", b"val_ema/mask_AP", b"val/image 100"))
    drawn = {"train_samples.png", "val_image_100.png", "val_ema_image_100.png"}
    assert {path.name for path in (folder / "pictures").iterdir()} == drawn
    state = load_file(folder / "best")
    assert (state["task"], state["class_names"]) == ("object_detection", ["red", "green", "blue"])
    assert CONFIG.from_text(state["config"], "best") == CONFIG.from_text((folder / "config.yaml").read_text(), "file")

    commands = next_commands(output)
    of_run = {path: path.read_bytes() for path in folder.glob("val_*.json")}
    evaluated = run_program(*commands["evaluate"], cwd=tmp_path).stdout
    assert re.search(rf"box_AP {best:.6g} .*\neval, {table}", evaluated), evaluated
    assert {path: path.read_bytes() for path in folder.glob("val_*.json")} == of_run, "those of the run stay"
    assert len(records(folder, "val")) == 2, "an evaluation is no part of the run"

    image = boxes / "val" / "val_1.png"
    predicted = run_program(
        "tools/predict.py",
        image,
        *commands["predict"][2:],
        "--json",
        "-threshold",
        "0.05",
        "-out",
        tmp_path / "found",
        cwd=tmp_path,
    )
    (entry,) = json.loads(predicted.stdout)
    assert entry["detections"]
    rows = [row for row in json.loads((folder / "eval_bbox.json").read_text()) if row["image_id"] == 101]
    for row, ours in zip(rows, entry["detections"], strict=True):
        x1, y1, x2, y2 = ours["box"]
        assert row["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
        assert (row["score"], row["category_id"]) == (pytest.approx(ours["score"], abs=1e-4), [7, 3, 12][ours["label"]])
        assert rle_masks.decode(ours["segmentation"]).shape == (48, 64)

    shorter = fails(LAUNCHER, "-cfg", boxes_config, "-resume", "auto", "-epochs", "1", cwd=tmp_path)
    assert "is at step 4, but this run ends at step 2; raise epoch" in shorter
    resumed = run_program(*commands["resume"], cwd=tmp_path).stdout
    assert "after epoch 2/3" in resumed, resumed
    assert "epoch 3/3  1/2" in resumed
    assert not re.search(r"^(RESUME|EVAL|CHECK_DATA):", (folder / "config.yaml").read_text(), re.MULTILINE)
    assert "length of the run was 4, is 6" in resumed


def test_flags_reach_the_run(tmp_path, boxes, boxes_config, capsys):
    shutil.move(boxes, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved" / "train", tmp_path / "more" / "train")  # a folder of other images
    flags = ("-data_path", tmp_path / "moved", "-batch_size", 1, "-accum_iter", 2, "-epochs", 1, "-num_classes", 4)
    options = ("-opts", "PaleTransformer.recompute", "true", "TRAIN.LAYER_DECAY", "0.5", "TRAIN.EMA_DECAY", "0.5")
    best = run(boxes_config, *flags, "-seed", "5", "-amp", "bfloat16", "-output", tmp_path / "flags", *options)
    assert best["images"] == 3
    assert "validation images of 4 classes: red, green, blue, 3 (" in capsys.readouterr().out
    assert [record["step"] for record in records(tmp_path / "flags", "train")] == [1, 2]
    state = load_file(tmp_path / "flags" / "latest")
    assert state["class_names"] == ["red", "green", "blue", "3"]
    assert state["model"]["bbox_head.bbox_score.weight"].shape[1] == 5
    assert state["conditions"]["seed"] == 5
    assert "AMP: bfloat16" in state["config"]
    assert state["ema_updates"] == 2
    assert any((state["model"][name] != state["model_ema"][name]).any() for name in state["model"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sections", "kinds"),
    [
        (
            "cascade_mask_rcnn",
            "CascadeTwoFCHead: {out_channel: 32}\nMaskFeat: {num_convs: 1, out_channel: 16}\n"
            "architecture: CascadeRCNN\n",
            ["box", "mask"],
        ),
        (
            "retinanet",
            "RetinaHead: {conv_feat: {feat_in: 32, feat_out: 32, num_convs: 1}}\narchitecture: RetinaNet\n",
            ["box"],
        ),
    ],
)
def test_the_other_models_train_evaluate_and_predict(tmp_path, boxes, boxes_config, name, sections, kinds):
    path = tmp_path / "other.yml"
    bases = f"_BASE_: [{boxes_config}, {CONFIG.default_file.with_name(name)}.yml]\n"
    path.write_text(f"{bases}FPN: {{out_channel: 32}}\nBBoxAssigner: {{batch_size_per_im: 16}}\n{sections}")
    best = run(path, "-epochs", "1")
    assert all(f"{kind}_AP" in best for kind in kinds)
    assert ("mask_AP" in best) == ("mask" in kinds)
    report = tmp_path / "report"
    evaluate = ("-eval", "-pretrained", tmp_path / "out" / "best", "-report", report)
    assert run(path, *evaluate)["box_AP"] == best["box_AP"]
    assert {file.name for file in report.iterdir()} == {"classes.csv", "precision_recall.csv", "precision_recall.png"}
    state = read_checkpoint(tmp_path / "out" / "best.pdparams")
    detector = Detector.from_checkpoint(state, CONFIG.of_weights(state.config, "best", Namespace(cfg=None, opts=[])))
    options = PredictOptions(threshold=0.0, out=tmp_path / "found")
    (entry,) = detector.predict([str(boxes / "val" / "val_0.png")], options)
    assert all(row["name"] in COLORS and ("segmentation" in row) == ("mask" in kinds) for row in entry["detections"])


@pytest.mark.slow
def test_the_bare_command_finds_the_nuclei_within_ten_minutes(tmp_path):
    """One of the three seeds of docs/results.md."""
    began = cpu_seconds()
    result = run_program(LAUNCHER, "-output", tmp_path / "out", ranks=1, cwd=tmp_path, timeout=900)
    assert result.returncode == 0, result.stdout
    assert cpu_seconds() - began < 600
    last = records(tmp_path / "out", "val")[-1]
    assert last["box_AP50"] >= 60.0
    assert last["mask_AP50"] >= 55.0


# ---- pictures


def test_pictures_are_named_after_the_image_whatever_the_rank_and_not_made_without_a_log(
    tmp_path, boxes, boxes_config, monkeypatch
):
    task = Detection(load("-cfg", boxes_config, "-opts", "PICTURES", "4"))
    (model, validation), drawn = task.build_evaluation(Checkpoint("none", {})), []

    def draw(image, found, truth, *arguments):
        drawn.append((image, truth))
        return detections_beside_truth(image, found, truth, *arguments)

    monkeypatch.setattr(detection, "detections_beside_truth", draw)
    validation.evaluate(model)
    assert not drawn

    # As rank 0 of 2, whose shard is images 0 and 2.
    monkeypatch.setattr(detection, "world_size", lambda: 2)
    task.log.open(tmp_path / "log")
    validation.evaluate(model)
    task.log.close()
    names = {path.name for path in (tmp_path / "log" / "pictures").iterdir()}
    assert names == {"val_image_100.png", "val_image_102.png"}
    for number, (image, truth) in zip((0, 2), drawn, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(boxes / "val" / f"val_{number}.png")))
        for box, label in zip(truth.boxes.astype(int), truth.labels, strict=True):
            assert tuple(image[box[1], box[0]]) == COLORS[["red", "green", "blue"][label]]
    assert len(truth.labels) == 1, "the other is a crowd"


# ---- bad input


def spoil_image(boxes: Path) -> str:
    (boxes / "train" / "train_1.png").write_bytes(b"no image")
    return "train_1.png"


def spoil_category(boxes: Path) -> str:
    path = boxes / "annotations" / "val.json"
    coco = json.loads(path.read_text())
    coco["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(coco))
    return "val.json: annotation 1"


def reorder_categories(boxes: Path) -> str:
    path = boxes / "annotations" / "val.json"
    coco = json.loads(path.read_text())
    coco["categories"].reverse()
    path.write_text(json.dumps(coco))
    return "category 1 is 7 'red'"


@pytest.mark.parametrize("spoil", [spoil_image, spoil_category, reorder_categories])
def test_wrong_data_is_one_line_that_names_the_file_before_training_starts(tmp_path, boxes, boxes_config, spoil):
    assert_told(partial(run, boxes_config), spoil(boxes))
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_check_data_lists_everything_that_is_wrong_and_counts_the_classes(tmp_path, boxes, boxes_config, capsys):
    assert run(boxes_config, "-check_data") == {"problems": 0.0}
    output = capsys.readouterr().out
    assert "train data: 5 images of 48x48 to 64x64 pixels (1 without objects), 8 objects, 0 crowds" in output
    assert re.search(r"green +2 +2 +0 +0\n", output)
    assert "are both in" not in output
    assert not (tmp_path / "out").exists()
    same = ("EvalDataset.image_dir", "train", "EvalDataset.anno_path", "annotations/train.json")
    run(boxes_config, "-check_data", "-opts", *same)
    assert "warning: 5 images are both in the training and in the validation data" in capsys.readouterr().out
    names = [spoil(boxes) for spoil in (spoil_image, spoil_category)]
    assert_told(partial(run, boxes_config, "-check_data"), "the data has 2 problems")
    output = capsys.readouterr().out
    assert all(name in output for name in names), output


NOT_FINITE = ["is not finite at step 2", "Last good checkpoint: none"]
ONE_WARM_UP = "[{name: PiecewiseDecay, milestones: [1]}, {name: LinearWarmup, steps: 1000}]"
HUGE = "[{Decode: {}}, {Resize: {target_size: [256, 99999]}}]"
ONE_MILESTONE = "[{name: PiecewiseDecay, milestones: 1.5}, {name: LinearWarmup, steps: 1}]"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["-data_path", "nowhere"], ["TrainDataset.dataset_dir: nowhere is not a folder"]),
        (["-num_classes", "2"], ["has 3 categories, num_classes is 2"]),
        (["-batch_size", "0"], ["TrainReader.batch_size is 0"]),
        (["-batch_size", "9"], ["5 training images are too few", "batch size 9"]),
        (
            ["-opts", "EvalReader.sample_transforms", HUGE],
            ["sample_transforms.1.Resize.target_size.1 is 99999", "8192"],
        ),
        (["-eval", "-pretrained", "mnist5k"], ["only a classifier", "give the weights of a whole model"]),
        (["-opts", "metric", "VOC"], ["metric is 'VOC'"]),
        (["-opts", "architecture", "YOLOv3"], ["YOLOv3 is missing"]),
        (["-opts", "MaskRCN", "{neck: FPN}"], ["no component MaskRCN; did you mean MaskRCNN?"]),
        (["-opts", "MaskRCNN.nek", "FPN"], ["MaskRCNN has no nek; did you mean neck?", "rpn_head"]),
        (["-opts", "PaleTransformer.drop_path_rate", "abc"], ["PaleTransformer.drop_path_rate is 'abc'", "a number"]),
        (
            ["-opts", "PaleTransformer.in_channels", "4"],
            ["the first training step fails", "the model needs [B, 4, H, W]"],
        ),
        (["-opts", "BBoxPostProcess.nms.keep_topk", "1"], ["nms (MultiClassNMS) has no keep_topk", "keep_top_k"]),
        (["-opts", "MaskPostProcess.binary_thresh", "0.2"], ["binary_thresh is 0.2", "from 0.5"]),
        (["-opts", "TrainDataset.name", "VOCDataSet"], ["TrainDataset.name is 'VOCDataSet'", "COCODataSet"]),
        (["-opts", "TrainDataset.annopath", "x"], ["unknown key annopath", "anno_path"]),
        (["-opts", "TrainDataset.repeat", "1.5"], ["TrainDataset.repeat is 1.5", "a positive integer"]),
        (["-opts", "EvalReader.sample_transforms", "[{Decode: {}}]"], ["first validation image fails", "EvalReader"]),
        (["-opts", "LearningRate.base_lr", "1e30", "LearningRate.schedulers.1.start_factor", "1.0"], NOT_FINITE),
        (["-opts", "LearningRate.base_lr", "-1"], ["LearningRate has the learning rate -0.1 at step 0"]),
        (["-opts", "LearningRate.schedulers", ONE_MILESTONE], ["LearningRate: ", "'float'"]),
        (["-opts", "LearningRate.schedulers", "[{name: CosineDecay}]"], ["has no warm-up", "use_warmup: false"]),
        (["-opts", "LearningRate.schedulers", ONE_WARM_UP], ["warm-up ends after the first milestone"]),
        (["-opts", "OptimizerBuilder.optimizer.type", "SGD"], ["optimizer.type is 'SGD'", "AdamW"]),
        (["-opts", "OptimizerBuilder.clip_grad_by_norm", "1"], ["clip_grad_by_norm is not used", "TRAIN.GRAD_CLIP"]),
    ],
    ids=" ".join,
)
def test_wrong_settings_are_one_line_that_names_them(tmp_path, boxes_config, flags, parts):
    assert_told(partial(run, boxes_config, *flags), *parts)
    assert parts is NOT_FINITE or not (tmp_path / "out" / "log.jsonl").exists()


def test_an_image_that_breaks_after_the_check_ends_the_run_with_its_name(boxes, boxes_config):
    task, image = Detection(load("-cfg", boxes_config, "-epochs", "1")), boxes / "train" / "train_0.png"
    check = task.preflight
    task.preflight = lambda training: (check(training), image.write_bytes(b"no image"))
    assert_told(partial(run_task, task), image.name)


def test_weights_that_number_the_classes_otherwise_are_not_evaluated(tmp_path, boxes_config):
    task, weights = Detection(load("-cfg", boxes_config)), tmp_path / "weights.pdparams"
    model, _ = task.build_evaluation(Checkpoint("none", {}))

    def evaluate(*names):
        paddle.save({"model": model.state_dict(), "class_names": list(names)}, str(weights))
        return run(boxes_config, "-eval", "-pretrained", weights)

    place = f"class 1 is 'green' in the data and 'blue' in {weights}"
    assert_told(lambda: evaluate("red", "blue", "green"), place, "order")
    assert evaluate("another", "green", "blue")["images"] == 3  # the same class by another name
