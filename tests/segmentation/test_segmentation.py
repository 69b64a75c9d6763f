"""Semantic segmentation from the launcher's flags to metrics, on one rank and on several."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddleseg.cvlibs import Config, SegBuilder
from PIL import Image

from common.checkpoints.file_format import load_file
from common.checkpoints.loading import Checkpoint
from common.errors import UserError
from common.training.optimizer import parameter_groups
from semantic_segmentation import segmentation
from semantic_segmentation.components import build_losses, build_model, build_schedule
from semantic_segmentation.config import CONFIG
from semantic_segmentation.pictures import prediction_beside_truth
from semantic_segmentation.segmentation import Segmentation
from tests.helpers import tiny_runs
from tests.helpers.programs import ROOT, cpu_seconds, fails, next_commands, run_program, start_program
from tests.helpers.tiny_configs import write_squares, write_squares_config
from tests.helpers.tiny_runs import assert_same_training, kill, run, wait_for_steps

LAUNCHER = "semantic_segmentation/main_multi_gpu.py"
PREDICT = "tools/predict.py"
PADDED = "[{type: Padding, target_size: [90, 70]}, {type: Normalize}]"
CONFIGS = sorted(CONFIG.default_file.parent.glob("*.yml"))

load = functools.partial(tiny_runs.load, CONFIG)


@pytest.fixture(scope="module")
def best(tmp_path_factory) -> Path:
    """The weights after four steps on the squares; 3 classes."""
    folder = tmp_path_factory.mktemp("trained")
    write_squares(folder)
    run(Segmentation, write_squares_config(folder), "-iters", "4")
    return folder / "out" / "best.pdparams"


def refusal(*flags: object) -> str:
    with pytest.raises(UserError) as refused:
        run(Segmentation, *flags)
    message = str(refused.value)
    assert len(message.splitlines()) == 1, message
    return message


def train(config: Path, *flags: object, ranks: int = 0) -> str:
    result = run_program(LAUNCHER, "-cfg", config, *flags, ranks=ranks, cwd=config.parent)
    assert result.returncode == 0, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def test_frozen_parts_stay_bitwise_while_the_rest_trains(tmp_path, squares_config, best):
    run(Segmentation, squares_config, "-iters", "2", "-pretrained", best, "-opts", "TRAIN.FREEZE", "[backbone]")
    before, after = (load_file(path)["model"] for path in (best, tmp_path / "out" / "latest.pdparams"))
    moved = {name for name in before if after[name].tobytes() != before[name].tobytes()}
    assert moved == {name for name in before if not name.startswith("backbone.stages.")}


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


def test_epochs_are_counted_in_steps_of_all_ranks_unless_nothing_is_trained(squares_config, monkeypatch, capsys):
    images = len(Segmentation(load("-cfg", squares_config))._build_dataset("train_dataset"))
    monkeypatch.setattr(segmentation, "world_size", lambda: 3)
    flags = ("-cfg", squares_config, "-epochs", 5, "-batch_size", 2, "-accum_iter", 2)
    task = Segmentation(load(*flags))
    assert task.config.iters == math.ceil(5 * images / 12)
    assert capsys.readouterr().out == f"EPOCHS 5 sets iters to {task.config.iters}, instead of 8\n"
    assert "EPOCHS" not in CONFIG.dump(task.config)
    assert Segmentation(load(*flags, "-eval", "-pretrained", "x")).config.iters == 8


def test_a_cooldown_trains_on_new_samples(squares_config):
    task = Segmentation(load("-cfg", squares_config, "-opts", "TRAIN.COOLDOWN", 3))
    sampler = task.build_training(resumed=False).sampler
    assert sampler.steps_per_epoch == 8 + 3


def test_the_number_of_classes_of_data_that_always_has_as_many_may_be_given():
    config = load("-num_classes", 2)
    assert Segmentation(config)._build_dataset("val_dataset").num_classes == 2
    with pytest.raises(UserError, match="num_classes is 3, but Nuclei always has 2 classes"):
        Segmentation(load("-num_classes", 3))._build_dataset("val_dataset")


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
    shutil.copy(ROOT / "common" / "checkpoints" / "released_weights" / "pale_nano_mnist5k.pdparams", backbone)
    output = train(squares_config, "-opts", "TRAIN.EMA_DECAY", "0.9", "model.backbone.pretrained", backbone)
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
    assert f"mIoU {best:.2f} after step" in output
    table = r"each class, in percent\nclass .*\nbackground( +[\d.]+){5}\n"
    assert re.search(rf"step 8/8  val +mIoU .*\nval, {table}", output), "the table of the classes below their mean"
    assert re.search(rf"step 8/8  EMA +mIoU .*\nval_ema, {table}", output)
    assert b"val/image 0" in next((folder / "visualdl").glob("vdlrecords.*")).read_bytes()
    drawn = {"train_samples.png", "val_image_0.png", "val_ema_image_0.png"}
    assert {path.name for path in (folder / "pictures").iterdir()} == drawn
    state = load_file(folder / "best")
    assert (state["task"], state["class_names"]) == ("semantic_segmentation", ["background", "red", "green"])

    commands = next_commands(output)
    evaluated = run_program(*commands["evaluate"], cwd=tmp_path)
    assert re.search(rf"mIoU {best:.6g} .*\neval, {table}", evaluated.stdout), evaluated.stdout

    image = squares / "images" / "val1.png"
    predicted = run_program(
        PREDICT, image, *commands["predict"][2:], "--json", "-out", tmp_path / "pictures", cwd=tmp_path
    )
    (entry,) = json.loads(predicted.stdout)
    assert entry["image"] == str(image)
    labels = np.asarray(Image.open(entry["labels"]))
    assert labels.shape == (44, 60)
    for row in entry["classes"]:
        assert row["share"] == pytest.approx((labels == row["label"]).mean())
    assert sum(row["share"] for row in entry["classes"]) == pytest.approx(1.0)
    assert Image.open(entry["overlay"]).size >= (60, 44)

    shorter = fails(LAUNCHER, "-cfg", squares_config, "-resume", "auto", "-iters", "5", cwd=tmp_path)
    assert "is at step 8, but this run ends at step 5; raise iters" in shorter
    resumed = run_program(*commands["resume"], cwd=tmp_path)
    assert "after step 8/12" in resumed.stdout, resumed.stdout
    assert "step  9/12" in resumed.stdout
    assert not re.search(r"^(RESUME|EVAL|CHECK_DATA):", (folder / "config.yaml").read_text(), re.MULTILINE)
    assert "length of the run was 8, is 12" in resumed.stdout


def test_windows_scales_and_flips_are_options_of_an_evaluation(tmp_path, squares_config, best):
    flags = ("-eval", "-pretrained", best, "-opts", "test_config")
    settings = (
        "{}",
        "{is_slide: true, crop_size: [32, 32], stride: [16, 16]}",
        "{aug_eval: true, scales: [0.75, 1.5], flip_horizontal: true}",
    )
    assert len({run(Segmentation, squares_config, *flags, setting)["mIoU"] for setting in settings}) == 3
    run(Segmentation, squares_config, *flags[:3], "-report", tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"classes.csv", "confusion.csv", "confusion.png"}
    message = refusal(squares_config, *flags, "{is_slide: true}")
    assert "test_config" in message
    assert "crop_size" in message


def test_training_starts_from_a_classifier_or_a_segmenter_of_other_classes(tmp_path, squares_config, best, capsys):
    options = ("-pretrained", "mnist5k", "-iters", "1", "-output", tmp_path / "a", "-opts", "VALIDATE_EVERY", "1")
    run(Segmentation, squares_config, *options)
    assert "new out_norms" in capsys.readouterr().out
    squares = tmp_path / "squares"
    (squares / "labels.txt").write_text("background\nred\ngreen\nblue\n")
    run(Segmentation, squares_config, "-pretrained", best, "-num_classes", "4", "-iters", "1", "-output",
        tmp_path / "tuned", "-opts", "TRAIN.LAYER_DECAY", "0.8")  # fmt: skip
    shown = capsys.readouterr().out
    assert "new decode_head.cls, auxiliary_head.cls" in shown
    assert "validation images of 4 classes: background, red, green, blue (" in shown
    assert load_file(tmp_path / "tuned" / "best")["model"]["decode_head.cls.weight"].shape[0] == 4


@pytest.mark.slow
def test_class_weights_and_absent_classes_have_their_effect(tmp_path, squares, squares_config, capsys):
    for mask in (squares / "masks").glob("*.png"):
        pixels = np.array(Image.open(mask))
        pixels[pixels == 2] = 0
        Image.fromarray(pixels).save(mask)
    losses, output = [], ""
    for weights in ("[1.0, 1.0, 1.0]", "[0.1, 1.0, 5.0]"):
        loss = f"[{{type: CrossEntropyLoss, weight: {weights}, ignore_index: 255}}]"
        flags = ("-overwrite", "-iters", "60", "-opts", "loss.types", loss, "VALIDATE_EVERY", "60")
        run(Segmentation, squares_config, *flags)
        run_output = capsys.readouterr().out
        losses.append(float(re.search(r"loss +([\d.]+)", run_output)[1]))
        output += run_output
    assert "warning: no pixel of the train data is of class 2 green" in output
    assert losses[0] != losses[1]
    flags = ("-eval", "-pretrained", tmp_path / "out" / "best", "-opts", "ABSENT_CLASSES")
    excluded, zero = (run(Segmentation, squares_config, *flags, choice)["mIoU"] for choice in ("exclude", "zero"))
    assert zero == pytest.approx(2 / 3 * excluded, rel=1e-4)


def test_large_images_are_labeled_in_windows_in_bounded_memory(tmp_path, squares, best, monkeypatch):
    from common.checkpoints.loading import read_checkpoint
    from common.inference.predictor import PredictOptions
    from semantic_segmentation import prediction

    checkpoint = read_checkpoint(best)
    segmenter = prediction.Segmenter.from_checkpoint(
        checkpoint, CONFIG.of_weights(checkpoint.config, "best", Namespace(cfg=None, opts=[]))
    )
    image = squares / "images" / "val0.png"
    (whole,) = segmenter.predict([str(image)], PredictOptions(out=tmp_path / "whole"))
    monkeypatch.setattr(prediction, "LARGE", 100)
    (windows,) = segmenter.predict([str(image)], PredictOptions(out=tmp_path / "windows"))
    # The image is smaller than one window, so the labels are the same.
    assert (np.asarray(Image.open(whole["labels"])) == np.asarray(Image.open(windows["labels"]))).all()


@pytest.mark.slow
def test_images_of_the_same_name_do_not_overwrite_each_other(tmp_path, squares, best):
    (tmp_path / "more").mkdir()
    Image.new("L", (40, 50)).save(tmp_path / "more" / "val0.png")
    (tmp_path / "more" / "broken.png").write_bytes(b"no image")
    result = run_program(PREDICT, squares / "images" / "val0.png", tmp_path / "more", "-pretrained", best,
                         "-out", tmp_path / "pictures", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 2, result.stdout
    assert "broken.png" in result.stdout
    assert {path.name for path in (tmp_path / "pictures").glob("*labels.png")} == {
        "val0_labels.png",
        "val0_2_labels.png",
    }


def test_an_evaluation_warns_of_its_data_as_a_check_does(squares, squares_config, capsys):
    for mask in (squares / "masks").glob("val*"):
        Image.new("L", Image.open(mask).size).save(mask)
    task = Segmentation(load("-cfg", squares_config))
    task.build_evaluation(Checkpoint("none", {}))
    assert "warning: no pixel of the val data is of class 1 red, 2 green" in capsys.readouterr().out
    (squares / "labels.txt").unlink()
    _, evaluator = task.build_evaluation(Checkpoint("none", {}, class_names=["sky", "red", "green"]))
    assert evaluator.class_names == ["sky", "red", "green"]
    assert "warning: the data names no classes" in capsys.readouterr().out


def test_pictures_are_named_after_the_image_whatever_the_rank_and_not_made_without_a_log(
    tmp_path, squares_config, monkeypatch
):
    options = ("-opts", "val_dataset.transforms", PADDED, "PICTURES", "4")
    task = Segmentation(load("-cfg", squares_config, *options))
    model, validation = task.build_evaluation(Checkpoint("none", {}))
    drawn = []
    monkeypatch.setattr(
        segmentation,
        "prediction_beside_truth",
        lambda *arguments: drawn.append(arguments) or prediction_beside_truth(*arguments),
    )
    validation.evaluate(model)
    assert not drawn

    # As rank 0 of 2, whose shard is images 0 and 2.
    monkeypatch.setattr(segmentation, "world_size", lambda: 2)
    task.log.open(tmp_path / "log")
    validation.evaluate(model)
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
    assert name in refusal(squares_config)
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_settings_are_tried_before_the_data_is_checked(tmp_path, squares, squares_config):
    spoil_values(squares)
    options = ("-opts", "train_dataset.transforms.0.crop_size", "[16, 16]")
    assert "images are 16x16" in refusal(squares_config, *options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_check_data_lists_everything_that_is_wrong_and_counts_the_classes(tmp_path, squares, squares_config, capsys):
    run(Segmentation, squares_config, "-check_data", "-opts", "val_dataset.val_path", "train.txt")
    assert "warning: 5 images are both in the training and in the validation data" in capsys.readouterr().out
    run(Segmentation, squares_config, "-check_data")
    output = capsys.readouterr().out
    assert "are both in" not in output
    (squares / "masks/other.png").write_bytes((squares / "masks/val0.png").read_bytes())
    (squares / "twice.txt").write_text("images/val0.png masks/val0.png\nimages/val0.png masks/other.png\n")
    run(Segmentation, squares_config, "-check_data", "-opts", "val_dataset.val_path", "twice.txt")
    assert "1 images of the validation data have more than one mask, such as " in capsys.readouterr().out
    (squares / "shared.txt").write_text("images/val0.png masks/val0.png\nimages/val1.png masks/val0.png\n")
    with pytest.raises(UserError, match="1 problem"):  # the images differ in their sizes
        run(Segmentation, squares_config, "-check_data", "-opts", "val_dataset.val_path", "shared.txt")
    assert "1 masks of the validation data belong to more than one image, such as " in capsys.readouterr().out
    (squares / "crossed.txt").write_text("images/val0.png masks/val1.png\nimages/val1.png masks/val0.png\n")
    (squares / "named.txt").write_text("images/val0.png masks/0_mask.png\nimages/val1.png masks/1_mask.png\n")
    for number in (0, 1):
        (squares / f"masks/{number}_mask.png").write_bytes((squares / f"masks/val{number}.png").read_bytes())
    for name, warned in (("crossed", True), ("named", False)):
        with pytest.raises(UserError, match="2 problems") if warned else nullcontext():  # their sizes differ, too
            run(Segmentation, squares_config, "-check_data", "-opts", "val_dataset.val_path", f"{name}.txt")
        line = "2 images of the validation data have the mask with the name of another, such as "
        assert (line in capsys.readouterr().out) == warned
    assert re.search(r"train data: 5 images of 44x44 to 60x60 pixels", output), output
    assert re.search(r"1 +red +[67]\d\d ", output)
    assert not (tmp_path / "out").exists()
    names = [spoil(squares) for spoil in (spoil_values, spoil_mode, spoil_pair, spoil_size)]
    assert "the data has 4 problems" in refusal(squares_config, "-check_data")
    output = capsys.readouterr().out
    assert all(name in output for name in names), output


def test_masks_whose_palettes_contradict_each_other_are_named(squares, squares_config, capsys):
    for split, colors in (("train", [0, 0, 0, 255, 0, 0]), ("val", [255, 0, 0, 0, 0, 0])):
        for path in (squares / "masks").glob(f"{split}*.png"):
            mask = Image.fromarray(np.array(Image.open(path).convert("L")))
            mask.putpalette(colors)
            mask.save(path)
    run(Segmentation, squares_config, "-check_data")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "palette" in line]
    assert "masks/val0.png has the color #ff0000 for class 0, that of " in line
    assert "masks/train0.png #000000: masks are read by index, not by color" in line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-data_path", "nowhere"], "nowhere"),
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
        (["-eval", "-pretrained", "mnist5k"], "only a classifier"),
        (["-resume", "nowhere"], "nowhere"),
        (["-opts", "train_dataset.transforms", "[{type: Normalize}]"], "RandomPaddingCrop"),
        (["-opts", "lr_scheduler.learning_rate", "1e30", "lr_scheduler.warmup_iters", "1"], "not finite"),
    ],
)
def test_wrong_settings_are_one_line_that_names_them(squares_config, flags, named):
    assert named in refusal(squares_config, *flags)


# ---- interruptions, and several ranks


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_killed_run_resumes_to_identical_weights(tmp_path, squares_config, ranks):
    # DeepLabV3P does not use all levels of the backbone, so some parameters get no gradient.
    model = ("{_inherited_: False, type: DeepLabV3P, num_classes: 3, backbone_indices: [0, 3], "
             "backbone: {type: PaleTransformer, variant: pale_nano, drop_path_rate: 0.2}}")  # fmt: skip
    loss = "{_inherited_: False, types: [{type: CrossEntropyLoss}], coef: [1.0]}"
    other = () if ranks else ("model", model, "loss", loss)
    flags = ("-cfg", squares_config, "-accum_iter", "2", "-opts", "TRAIN.EMA_DECAY", "0.9", "LATEST_EVERY", "3",
             "VALIDATE_EVERY", "5", "iters", "12", *other)  # fmt: skip
    straight = run_program(LAUNCHER, "-output", tmp_path / "a", *flags, ranks=ranks, cwd=tmp_path)
    assert straight.returncode == 0, straight.stdout
    process = start_program(LAUNCHER, "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "b", 7)
    kill(process)
    resumed = run_program(LAUNCHER, "-resume", "auto", "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    assert re.search(r"resuming .*latest\.pdparams after step [1-9]\d*/12", resumed.stdout), resumed.stdout
    assert "differs from" not in resumed.stdout
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_evaluation_on_three_ranks_gives_exactly_the_metrics_of_one(squares_config, best):
    one, three = (
        re.findall(r"^.*mIoU.*|^\w+(?: +[\d.-]+){5}$", output, re.MULTILINE)
        for output in (train(squares_config, "-eval", "-pretrained", best, ranks=ranks) for ranks in (1, 3))
    )
    assert len(one) == 4
    assert one == three


@pytest.mark.slow
def test_wrong_data_on_two_ranks_ends_both_with_its_line(tmp_path, squares, squares_config):
    assert spoil_size(squares) in fails(LAUNCHER, "-cfg", squares_config, ranks=2, cwd=tmp_path)


@pytest.mark.slow
def test_the_bare_command_finds_the_nuclei_within_six_minutes(tmp_path):
    """One of the three seeds of docs/results.md."""
    began = cpu_seconds()
    result = run_program(LAUNCHER, "-output", tmp_path / "out", ranks=1, cwd=tmp_path, timeout=900)
    assert result.returncode == 0, result.stdout
    assert cpu_seconds() - began < 360
    assert float(re.findall(r"val +mIoU +([\d.]+)", result.stdout)[-1]) >= 85.0
