"""Semantic segmentation through the front door, on one rank and on several."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddleseg.cvlibs import Config, SegBuilder
from PIL import Image

from common.checkpoints.file_format import load_file
from common.checkpoints.loading import load_weights
from common.errors import UserError
from common.runtime.command_line import ArgumentParser
from common.training.log import TrainingLog
from common.training.optimizer import parameter_groups
from semantic_segmentation import segmentation
from semantic_segmentation.components import build_losses, build_model, build_schedule
from semantic_segmentation.config import CONFIG
from semantic_segmentation.pictures import prediction_beside_truth
from semantic_segmentation.segmentation import Segmentation
from tests.helpers.programs import ROOT, cpu_seconds, fails, run_program, start_program
from tests.training.test_reliability import assert_same_training, kill, wait_for_steps

LAUNCHER = "semantic_segmentation/main_multi_gpu.py"
PREDICT = "tools/predict.py"
PADDED = "[{type: Padding, target_size: [90, 70]}, {type: Normalize}]"
CONFIGS = sorted(CONFIG.default_file.parent.glob("*.yml"))
# Accumulation, EMA and drop path, and an interval that leaves unsaved steps behind.
OPTIONS = ("-accum_iter", "2", "-opts", "model.backbone.drop_path_rate", "0.2", "TRAIN.EMA_DECAY", "0.9",
           "LATEST_EVERY", "3", "VALIDATE_EVERY", "5", "iters")  # fmt: skip


def load(*flags: object):
    parser = ArgumentParser()
    CONFIG.add_flags(parser)
    return CONFIG.load(parser.parse_args([str(flag) for flag in flags]))


def refusal(*flags: object) -> str:
    """What a run in this process is refused with; :func:`fails` starts one of its own, which takes seconds."""
    with pytest.raises(UserError) as refused:
        Segmentation(load(*flags)).run()
    message = str(refused.value)
    assert len(message.splitlines()) == 1, message
    return message


def run(config: Path, *flags: object, ranks: int = 0) -> str:
    result = run_program(LAUNCHER, "-cfg", config, *flags, ranks=ranks, cwd=config.parent)
    assert result.returncode == 0, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def miou(output: str) -> float:
    return float(re.findall(r"mIoU ([\d.]+)", output)[-1])


# ---- configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_whole_and_is_read_by_paddleseg_itself(path):
    own = load("-cfg", path)
    theirs = Config(str(path))
    assert (theirs.batch_size, theirs.iters) == (own.batch_size, own.iters)
    assert theirs.model_cfg["backbone"] == dict(own.model.backbone)
    build_losses(own, 255)
    rate, scheduler = build_schedule(own), SegBuilder(theirs).lr_scheduler
    assert rate(0) == pytest.approx(own.lr_scheduler.get("warmup_start_lr"))
    assert rate(0) == pytest.approx(scheduler())
    if own.model.backbone.get("variant") == "pale_nano":
        logits = build_model(own, own.model.num_classes)(paddle.zeros([1, 3, 64, 64]))
        assert [x.shape for x in logits] == [[1, own.model.num_classes, 64, 64]] * len(own.loss.coef)


def test_the_schedule_warms_up_and_falls_to_nothing():
    rate = build_schedule(load("-cfg", CONFIG.default_file.parent / "upernet_pale_tiny_ade20k_160k.yml"))
    assert rate(1500) == pytest.approx(6e-5)
    assert rate(750) == pytest.approx(3e-5, rel=1e-3)
    assert rate(1500 + 158500 // 2) == pytest.approx(3e-5, rel=1e-3)
    assert rate(160000) == 0.0
    assert rate(750) == pytest.approx(3e-5, rel=1e-3), "the rate of a step does not depend on what was asked before"


def test_layer_decay_and_weight_decay_reach_the_backbone():
    model = build_model(load(), 2)
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    scale = {
        parameter.name: (group["learning_rate"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    names = dict(model.named_parameters())
    assert scale[names["decode_head.cls.weight"].name] == (1.0, 0.05)
    assert scale[names["decode_head.cls.bias"].name] == (1.0, 0.0)
    assert scale[names["backbone.stages.0.merging.conv.weight"].name] == (0.5**7, 0.05)


# ---- one rank


@pytest.mark.slow
def test_train_evaluate_predict_and_resume_by_the_commands_that_training_prints(tmp_path, squares, squares_config):
    backbone = tmp_path / "backbone.pdparams"
    shutil.copy(ROOT / "common" / "released_weights" / "pale_nano_mnist5k.pdparams", backbone)
    output = run(squares_config, "-opts", "TRAIN.EMA_DECAY", "0.9", "model.backbone.pretrained", backbone)
    backbone.unlink()  # from now on, the weights come from elsewhere
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} >= {
        "best.pdparams", "latest.pdparams", "step_0008.pdparams", "config.yaml", "log.jsonl", "visualdl",
        "data_check.json",
    }  # fmt: skip
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, 9))
    assert [record["step"] for record in records if record["kind"] == "val"] == [4, 8]
    best = max(record["mIoU"] for record in records if "mIoU" in record)
    assert f"best: mIoU {best:.2f} after step" in output
    table = r"each class, in percent\nclass .*\nbackground +[\d.]+ +[\d.]+ +[\d.]+\n"
    assert re.search(rf"step 8/8 val +mIoU .*\nval, {table}", output), "the table of the classes below their mean"
    assert re.search(rf"step 8/8 EMA +mIoU .*\nval_ema, {table}", output)
    assert b"val/image 0" in next((folder / "visualdl").glob("vdlrecords.*")).read_bytes()
    drawn = {"train_samples.png", "val_image_0.png", "val_ema_image_0.png"}
    assert {path.name for path in (folder / "pictures").iterdir()} == drawn
    state = load_file(folder / "best")
    assert (state["task"], state["class_names"]) == ("semantic_segmentation", ["background", "red", "green"])

    commands = dict(re.findall(r"^(evaluate|predict|resume): +python (.*)", output, re.MULTILINE))
    strip = f"-m paddle.distributed.launch {LAUNCHER} "
    evaluated = run_program(LAUNCHER, *commands["evaluate"].replace(strip, "").split(), cwd=tmp_path)
    assert re.search(rf"mIoU {best:.6g} .*\nval, {table}", evaluated.stdout), evaluated.stdout

    image = squares / "images" / "val1.png"
    flags = commands["predict"].removeprefix("tools/predict.py IMAGE... ").split()
    predicted = run_program(PREDICT, image, *flags, "--json", "-out", tmp_path / "pictures", cwd=tmp_path)
    (entry,) = json.loads(predicted.stdout)
    assert entry["image"] == str(image)
    labels = np.asarray(Image.open(entry["labels"]))
    assert labels.shape == (44, 60)
    for row in entry["classes"]:
        assert row["share"] == pytest.approx((labels == row["label"]).mean())
    assert sum(row["share"] for row in entry["classes"]) == pytest.approx(1.0)
    assert Image.open(entry["overlay"]).size >= (60, 44)

    shorter = fails(LAUNCHER, "-cfg", squares_config, "-resume", "auto", "-iters", "5", cwd=tmp_path)
    assert "has 8 steps behind it, this run has 5; raise iters" in shorter
    resumed = run_program(LAUNCHER, *commands["resume"].replace(strip, "").split(), cwd=tmp_path)
    assert "after step 8/16" in resumed.stdout, resumed.stdout
    assert "step 9/16" in resumed.stdout
    assert not re.search(r"^(RESUME|EVAL|CHECK_DATA):", (folder / "config.yaml").read_text(), re.MULTILINE)
    assert "length of the run: 8 then, 16 now" in resumed.stdout


@pytest.mark.slow
def test_the_model_learns(squares_config):
    output = run(squares_config, "-iters", "120", "-opts", "VALIDATE_EVERY", "120", "LOG_INTERVAL", "60")
    assert float(re.search(r"step 120/120 val +mIoU ([\d.]+)", output)[1]) > 70.0


@pytest.mark.slow
def test_sliding_windows_scales_and_flips_are_options(tmp_path, squares_config):
    run(squares_config, "-iters", "4")
    flags = ("-eval", "-pretrained", tmp_path / "out" / "best", "-opts", "test_config")
    whole = miou(run(squares_config, *flags, "{}"))
    slide = miou(run(squares_config, *flags, "{is_slide: true, crop_size: [32, 32], stride: [16, 16]}"))
    scales = miou(run(squares_config, *flags, "{aug_eval: true, scales: [0.75, 1.5], flip_horizontal: true}"))
    assert len({whole, slide, scales}) == 3
    message = fails(LAUNCHER, "-cfg", squares_config, *flags, "{is_slide: true}", cwd=tmp_path)
    assert "test_config" in message
    assert "crop_size" in message


@pytest.mark.slow
def test_classes_that_are_absent_are_left_out_of_the_mean_or_count_as_zero(tmp_path, squares, squares_config):
    for mask in (squares / "masks").glob("*.png"):
        pixels = np.array(Image.open(mask))
        pixels[pixels == 2] = 0
        Image.fromarray(pixels).save(mask)
    output = run(squares_config, "-iters", "60", "-opts", "VALIDATE_EVERY", "60")
    assert "warning: no pixel of the train data is of class 2 green" in output
    flags = ("-eval", "-pretrained", tmp_path / "out" / "best", "-opts", "ABSENT_CLASSES")
    excluded, zero = (miou(run(squares_config, *flags, choice)) for choice in ("exclude", "zero"))
    assert zero == pytest.approx(2 / 3 * excluded, rel=1e-4)


@pytest.mark.slow
def test_training_starts_from_a_classifier_a_backbone_or_a_segmenter_of_other_classes(tmp_path, squares_config):
    output = run(squares_config, "-pretrained", "mnist5k", "-iters", "1")
    assert "new out_norms" in output
    best = tmp_path / "out" / "best.pdparams"
    tuned = run(squares_config, "-pretrained", best, "-num_classes", "4", "-iters", "1", "-output", tmp_path / "tuned",
                "-opts", "TRAIN.LAYER_DECAY", "0.8", "train_dataset.dataset_root", four_classes(tmp_path),
                "val_dataset.dataset_root", tmp_path / "four")  # fmt: skip
    assert "new decode_head.cls, auxiliary_head.cls" in tuned
    assert load_file(tmp_path / "tuned" / "best")["model"]["decode_head.cls.weight"].shape[0] == 4
    message = fails(LAUNCHER, "-cfg", squares_config, "-eval", "-pretrained", "mnist5k", cwd=tmp_path)
    assert "mnist5k is a classifier" in message
    assert "leave -eval out" in message


def four_classes(folder: Path) -> Path:
    (folder / "four").mkdir()
    for part in ("images", "masks", "train.txt", "val.txt"):
        (folder / "four" / part).symlink_to(folder / "squares" / part)
    return folder / "four"


@pytest.mark.slow
def test_class_weights_and_the_ignored_value_have_their_effect(tmp_path, squares_config):
    losses = []
    for weights in ("[1.0, 1.0, 1.0]", "[0.1, 1.0, 5.0]"):
        loss = f"[{{type: CrossEntropyLoss, weight: {weights}, ignore_index: 255}}]"
        output = run(squares_config, "-iters", "1", "-opts", "loss.types", loss)
        losses.append(float(re.search(r"loss ([\d.]+)", output)[1]))
    assert losses[0] != losses[1]


def test_large_images_are_labelled_in_windows_in_bounded_memory(tmp_path, squares, squares_config, monkeypatch):
    from common.checkpoints.loading import read_checkpoint
    from common.inference.predictor import PredictOptions
    from semantic_segmentation import prediction

    run(squares_config, "-iters", "2")
    state = read_checkpoint(tmp_path / "out" / "best.pdparams")
    segmenter = prediction.Segmenter.from_weights(state, "best", CONFIG.from_text(state["config"], "best"))
    image = squares / "images" / "val0.png"
    (whole,) = segmenter.predict([str(image)], PredictOptions(out=tmp_path / "whole"))
    monkeypatch.setattr(prediction, "LARGE", 100)
    (windows,) = segmenter.predict([str(image)], PredictOptions(out=tmp_path / "windows"))
    # The image is smaller than one window, so the labels are the same.
    assert (np.asarray(Image.open(whole["labels"])) == np.asarray(Image.open(windows["labels"]))).all()


@pytest.mark.slow
def test_images_of_the_same_name_do_not_overwrite_each_other(tmp_path, squares, squares_config):
    run(squares_config, "-iters", "1")
    (tmp_path / "more").mkdir()
    Image.new("L", (40, 50)).save(tmp_path / "more" / "val0.png")
    (tmp_path / "more" / "broken.png").write_bytes(b"no image")
    result = run_program(PREDICT, squares / "images" / "val0.png", tmp_path / "more", "-pretrained",
                         tmp_path / "out" / "best", "-out", tmp_path / "pictures", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 2, result.stdout
    assert "broken.png" in result.stdout
    assert {path.name for path in (tmp_path / "pictures").glob("*labels.png")} == {
        "val0_labels.png",
        "val0_2_labels.png",
    }


def test_pictures_are_named_after_the_image_whatever_the_rank_and_not_made_without_a_log(
    tmp_path, squares_config, monkeypatch
):
    task = Segmentation(load("-cfg", squares_config, "-opts", "val_dataset.transforms", PADDED))
    model = task.build_evaluation()
    load_weights(model, {}, "no file", strict=False)  # draws what a file would bring
    drawn = []
    monkeypatch.setattr(
        segmentation,
        "prediction_beside_truth",
        lambda *arguments: drawn.append(arguments) or prediction_beside_truth(*arguments),
    )
    task.validate(model, "val")
    assert not drawn

    # As rank 0 of 2, whose share is images 0 and 2.
    monkeypatch.setattr(segmentation, "world_size", lambda: 2)
    task.config.defrost()
    task.config.PICTURES = 4
    task.log = TrainingLog(tmp_path / "log")
    task.validate(model, "val")
    task.log.close()
    names = {path.name for path in (tmp_path / "log" / "pictures").iterdir()}
    assert names == {"val_image_0.png", "val_image_2.png"}
    for number, (image, label, *_) in zip((0, 2), drawn, strict=True):
        pixels = np.asarray(Image.open(tmp_path / "squares" / "images" / f"val{number}.png"))
        assert label.shape == pixels.shape[:2]
        np.testing.assert_array_equal(image, pixels)


# ---- bad input


def spoil_values(squares: Path) -> str:
    Image.fromarray(np.full((60, 44), 7, np.uint8)).save(squares / "masks" / "train2.png")
    return "train2.png"


def spoil_size(squares: Path) -> str:
    Image.fromarray(np.zeros((50, 44), np.uint8)).save(squares / "masks" / "val2.png")
    return "val2.png"


def spoil_mode(squares: Path) -> str:
    Image.fromarray(np.zeros((60, 44, 3), np.uint8)).save(squares / "masks" / "train0.png")
    return "train0.png"


def spoil_pair(squares: Path) -> str:
    (squares / "masks" / "train4.png").unlink()
    return "train4.png"


def spoil_image(squares: Path) -> str:
    (squares / "images" / "train1.png").write_bytes(b"no image")
    return "train1.png"


@pytest.mark.parametrize("spoil", [spoil_values, spoil_size, spoil_mode, spoil_pair, spoil_image])
def test_wrong_data_is_one_line_that_names_the_file_before_training_starts(tmp_path, squares, squares_config, spoil):
    name = spoil(squares)
    assert name in refusal("-cfg", squares_config)
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_settings_are_tried_before_the_data_is_checked(tmp_path, squares, squares_config):
    spoil_values(squares)
    options = ("-opts", "train_dataset.transforms.0.crop_size", "[16, 16]")
    assert "images are 16x16" in refusal("-cfg", squares_config, *options)
    assert not list((tmp_path / "out").iterdir())


def test_check_data_lists_everything_that_is_wrong_and_counts_the_classes(tmp_path, squares, squares_config):
    output = run(squares_config, "-check_data")
    assert re.search(r"train data: 5 images of 44x44 to 60x60 pixels", output), output
    assert re.search(r"1 +red +[67]\d\d ", output)
    assert not (tmp_path / "out").exists()
    names = [spoil(squares) for spoil in (spoil_values, spoil_mode, spoil_pair, spoil_size)]
    result = run_program(LAUNCHER, "-cfg", squares_config, "-check_data", cwd=tmp_path)
    assert result.returncode == 2
    assert all(name in result.stdout for name in names), result.stdout
    assert "error: 4 problems in the data" in result.stdout


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-data_path", "nowhere"], "nowhere"),
        (["-cfg", "nowhere.yml"], "nowhere.yml"),
        (["-batch_size", "0"], "batch_size is 0"),
        (["-iters", "-3"], "iters is -3"),
        (["-opts", "iterations", "3"], "did you mean iters"),
        (["-opts", "model.num_classes", "1"], "num_classes"),
        (["-opts", "optimizer.type", "SGD"], "SGD"),
        (["-opts", "ABSENT_CLASSES", "maybe"], "ABSENT_CLASSES is 'maybe'"),
        (["-opts", "loss.types.0.wieght", "[1, 2, 3]"], "wieght"),
        (["-opts", "loss.types.0.weight", "[1, 2]"], "number of weights = 2"),
        (["-eval"], "-pretrained"),
        (["-eval", "-pretrained", "nowhere"], "nowhere"),
        (["-eval", "-pretrained", "mnist5k"], "mnist5k is a classifier"),
        (["-resume", "nowhere"], "nowhere"),
        (["-opts", "train_dataset.transforms", "[{type: Normalize}]"], "RandomPaddingCrop"),
        (["-opts", "lr_scheduler.learning_rate", "1e30", "lr_scheduler.warmup_iters", "1"], "not finite"),
    ],
)
def test_wrong_settings_are_one_line_that_names_them(squares_config, flags, named):
    assert named in refusal("-cfg", squares_config, *flags)


def test_what_is_refused_ends_the_launcher_with_one_line(tmp_path, squares, squares_config):
    assert "num_classes" in fails(LAUNCHER, "-cfg", squares_config, "-opts", "model.num_classes", "1", cwd=tmp_path)
    assert spoil_values(squares) in fails(LAUNCHER, "-cfg", squares_config, cwd=tmp_path)


# ---- interruptions, and several ranks


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_killed_run_resumes_to_the_weights_of_an_undisturbed_one(tmp_path, squares_config, ranks):
    flags = ("-cfg", squares_config, *OPTIONS, "20")
    straight = run_program(LAUNCHER, "-output", tmp_path / "a", *flags, ranks=ranks, cwd=tmp_path)
    assert straight.returncode == 0, straight.stdout
    process = start_program(LAUNCHER, "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "b", 7)
    kill(process)
    resumed = run_program(LAUNCHER, "-resume", "auto", "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    assert re.search(r"resuming .*latest\.pdparams after step [1-9]\d*/20", resumed.stdout), resumed.stdout
    assert "differs from" not in resumed.stdout
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_model_with_parameters_that_get_no_gradient_resumes_exactly(tmp_path, squares_config):
    model = ("{_inherited_: False, type: DeepLabV3P, num_classes: 3, backbone_indices: [0, 3], "
             "backbone: {type: PaleTransformer, variant: pale_nano}}")  # fmt: skip
    loss = "{_inherited_: False, types: [{type: CrossEntropyLoss}], coef: [1.0]}"
    options = (
        "-opts",
        "model",
        model,
        "loss",
        loss,
        "LATEST_EVERY",
        "3",
        "VALIDATE_EVERY",
        "8",
        "TRAIN.EMA_DECAY",
        "0.9",
    )
    run(squares_config, "-output", tmp_path / "a", *options)
    process = start_program(LAUNCHER, "-cfg", squares_config, "-output", tmp_path / "b", *options, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "b", 4)
    kill(process)
    output = run(squares_config, "-resume", "auto", "-output", tmp_path / "b", *options)
    assert "resuming" in output
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_signal_saves_and_leaves_and_the_run_goes_on_exactly(tmp_path, squares_config):
    flags = ("-cfg", squares_config, *OPTIONS, "20", "LATEST_EVERY", "0", "DATA.NUM_WORKERS", "2")
    run(squares_config, "-output", tmp_path / "a", *flags[2:])
    process = start_program(LAUNCHER, "-output", tmp_path / "b", *flags, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "b", 3)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "-resume auto" in output
    run(squares_config, "-resume", "auto", "-output", tmp_path / "b", *flags[2:])
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_evaluation_on_three_ranks_gives_exactly_the_figures_of_one(tmp_path, squares_config):
    run(squares_config, "-iters", "10")
    flags = ("-eval", "-pretrained", tmp_path / "out" / "best")
    one, three = (re.findall(r"^.*mIoU.*|^\w+ +[\d.]+ +[\d.]+ +[\d.]+$", run(squares_config, *flags, ranks=ranks), re.M)
                  for ranks in (1, 3))  # fmt: skip
    assert len(one) == 4
    assert one == three


@pytest.mark.slow
def test_wrong_data_on_two_ranks_ends_both_with_its_line(tmp_path, squares, squares_config):
    name = spoil_size(squares)
    assert name in fails(LAUNCHER, "-cfg", squares_config, ranks=2, cwd=tmp_path)


@pytest.mark.slow
def test_the_bare_command_finds_the_nuclei_within_six_minutes(tmp_path):
    """One of the three seeds of docs/results.md."""
    began = cpu_seconds()
    result = run_program(LAUNCHER, "-output", tmp_path / "out", ranks=1, cwd=tmp_path, timeout=900)
    assert result.returncode == 0, result.stdout
    assert cpu_seconds() - began < 360
    assert miou(re.findall(r"val +(mIoU [\d.]+)", result.stdout)[-1]) >= 85.0
