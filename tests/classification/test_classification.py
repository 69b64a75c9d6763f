"""Training, evaluation and prediction through the front door, on one rank and on several."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from common.checkpoints.file_format import load_file
from common.errors import UserError
from common.runtime.command_line import ArgumentParser
from image_classification.classification import Classification
from image_classification.config import CONFIG
from tests.helpers.made_up_data import make_shapes
from tests.helpers.programs import ROOT, fails, run_program

LAUNCHER = "image_classification/main_multi_gpu.py"
PREDICT = "tools/predict.py"


def train(config: Path, *flags: object, ranks: int = 0) -> str:
    result = run_program(LAUNCHER, "-cfg", config, *flags, ranks=ranks, cwd=config.parent)
    assert result.returncode == 0, result.stdout
    return result.stdout


def weights(path: Path) -> dict[str, np.ndarray]:
    return pickle.loads(path.read_bytes())["model"]


# ---- one rank


@pytest.mark.slow
def test_train_evaluate_predict_and_resume_by_the_commands_that_training_prints(tmp_path, shapes, shapes_config):
    output = train(shapes_config, "-opts", "TRAIN.EMA_DECAY", "0.9", "TRAIN.EPOCHS", "3")
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} >= {
        "best.pdparams", "latest.pdparams", "epoch_0003.pdparams", "config.yaml", "log.jsonl", "visualdl",
    }  # fmt: skip
    assert output.count("DATASET: folder") == 1
    best = float(re.search(r"best: top1 ([\d.]+) ", output)[1])
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"train", "val", "val_ema"}
    assert max(record["top1"] for record in records if "top1" in record) == pytest.approx(best, abs=0.01)
    assert list((folder / "visualdl").glob("vdlrecords.*"))
    for name in ("best", "latest"):
        state = load_file(folder / name)
        assert "SEED: 0" in state["config"]
        assert state["class_names"] == ["blue", "green", "red"]
        assert state["versions"].keys() == {"pale-transformer-paddle", "paddle", "numpy"}

    commands = dict(re.findall(r"^(evaluate|predict|resume): +python (.*)", output, re.MULTILINE))
    strip = "-m paddle.distributed.launch image_classification/main_multi_gpu.py "
    evaluated = run_program(LAUNCHER, *commands["evaluate"].replace(strip, "").split(), cwd=tmp_path)
    assert f"top1 {best:.6g}" in evaluated.stdout, evaluated.stdout

    image = shapes / "val" / "red" / "00.png"
    flags = commands["predict"].removeprefix("tools/predict.py IMAGE... ").split()
    predicted = run_program(PREDICT, image, *flags, "--json", cwd=tmp_path)
    (entry,) = json.loads(predicted.stdout)
    assert entry["image"] == str(image)
    assert {prediction["name"] for prediction in entry["predictions"]} == {"red", "green", "blue"}
    assert sum(prediction["score"] for prediction in entry["predictions"]) == pytest.approx(1.0, abs=1e-4)

    resumed = run_program(LAUNCHER, *commands["resume"].replace(strip, "").split(), cwd=tmp_path)
    assert "after epoch 3" in resumed.stdout
    assert "epoch 4/6 train" in resumed.stdout
    assert "epoch 3/6 train" not in resumed.stdout


@pytest.mark.slow
def test_the_model_learns(tmp_path, shapes_config):
    output = train(shapes_config, "-opts", "TRAIN.EPOCHS", "6")
    assert float(re.search(r"best: top1 ([\d.]+) ", output)[1]) > 90.0


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, shapes_config):
    options = ("-opts", "AUG.MIXUP", "0.8", "AUG.CUTMIX", "1.0", "MODEL.DROP_PATH", "0.2", "TRAIN.EMA_DECAY", "0.9",
               "KEEP_CHECKPOINTS", "3", "CHECKPOINT_EVERY", "1", "TRAIN.EPOCHS", "2")  # fmt: skip
    straight = tmp_path / "straight"
    train(shapes_config, "-output", straight, *options)
    train(shapes_config, "-output", tmp_path / "again", "-resume", straight / "epoch_0001.pdparams", *options)
    first, second = (
        pickle.loads((folder / "latest.pdparams").read_bytes()) for folder in (straight, tmp_path / "again")
    )
    for part in ("model", "model_ema", "optimizer"):
        assert first[part].keys() == second[part].keys()
        assert all(np.array_equal(first[part][name], second[part][name]) for name in first[part]), part


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_whatever_the_number_of_workers(tmp_path, shapes_config):
    train(shapes_config, "-output", tmp_path / "a", "-opts", "TRAIN.EPOCHS", "1", "AUG.ERASING", "0.5")
    train(shapes_config, "-output", tmp_path / "b", "-opts", "TRAIN.EPOCHS", "1", "AUG.ERASING", "0.5",
          "DATA.NUM_WORKERS", "2")  # fmt: skip
    a, b = weights(tmp_path / "a" / "latest.pdparams"), weights(tmp_path / "b" / "latest.pdparams")
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_fine_tuning_on_other_classes_replaces_the_head_and_says_so(tmp_path, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    make_shapes(tmp_path / "two", 6)
    (tmp_path / "two" / "red").rename(tmp_path / "red")
    output = train(shapes_config, "-data_path", tmp_path / "two", "-pretrained", tmp_path / "out" / "best",
                   "-output", tmp_path / "tuned", "-opts", "TRAIN.LAYER_DECAY", "0.8", "TRAIN.EPOCHS", "1")  # fmt: skip
    assert "new head" in output
    assert weights(tmp_path / "tuned" / "best.pdparams")["head.weight"].shape[1] == 2


@pytest.mark.slow
def test_weights_know_their_attention_and_are_not_used_with_another(tmp_path, shapes, shapes_config):
    options = ("MODEL.ATTENTION", "window", "MODEL.POSITION_ENCODING", "relative")
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1", *options)
    best = tmp_path / "out" / "best.pdparams"
    predicted = run_program(PREDICT, shapes / "val" / "red" / "00.png", "-pretrained", best, cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stdout

    def task(*flags: object, opts=options) -> Classification:
        parser = ArgumentParser()
        CONFIG.add_flags(parser)
        arguments = [*map(str, flags), "-cfg", str(shapes_config), "-opts", *opts]
        return Classification(CONFIG.load(parser.parse_args(arguments)))

    task("-eval", "-pretrained", best).run()
    task("-eval", "-pretrained", best, "-image_size", 48).run()  # the positions are interpolated
    latest = tmp_path / "out" / "latest.pdparams"
    for flags, other, named in (
        (["-eval", "-pretrained", best], "global", "attention window, not global"),
        (["-eval", "-pretrained", best], "cross", "another attention; set MODEL.ATTENTION"),
        (["-resume", latest], "global", "the image size and the attention that it had"),
        (["-resume", latest], "cross", "another attention; set MODEL.ATTENTION"),
        (["-resume", latest, "-image_size", 48], "window", "the image size and the attention that it had"),
    ):
        with pytest.raises(UserError, match=named):
            task(*flags, opts=("MODEL.ATTENTION", other, *options[2:])).run()
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    with pytest.raises(UserError, match="parallel True, not False"):
        task("-resume", latest, opts=("MODEL.PARALLEL", "False")).run()


def test_evaluation_needs_no_training_set_and_skips_broken_images_only_when_asked(tmp_path, shapes, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    for image in (shapes / "train").rglob("*.png"):
        image.unlink()
    for folder in sorted((shapes / "train").rglob("*"), reverse=True):
        folder.rmdir()
    (shapes / "train").rmdir()
    broken = shapes / "val" / "green" / "03.png"
    broken.write_bytes(broken.read_bytes()[:300])
    flags = ("-cfg", shapes_config, "-eval", "-pretrained", tmp_path / "out" / "best.pdparams")
    message = fails(LAUNCHER, *flags, cwd=tmp_path)
    assert str(broken) in message
    assert "SKIP_BROKEN" in message
    skipped = run_program(LAUNCHER, *flags, "-opts", "DATA.SKIP_BROKEN", "True", cwd=tmp_path)
    assert "images 20  skipped 1" in skipped.stdout


def test_predict_reads_what_it_can_and_names_the_rest(tmp_path, shapes, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    (tmp_path / "broken.png").write_text("no image")
    flags = (shapes / "val" / "red", tmp_path / "broken.png", "-pretrained", tmp_path / "out" / "best.pdparams")
    result = run_program(PREDICT, *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout.count(" %  ") == 7 * 3
    assert "1 of 8 images could not be predicted" in result.stdout
    assert str(tmp_path / "broken.png") in result.stdout


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["missing.png", "-pretrained", "missing.pdparams"], "missing.png"),
        ([".", "-pretrained", "missing.pdparams"], "missing.pdparams"),
        ([], "IMAGE"),
    ],
)
def test_predict_names_what_is_missing(shapes, flags, named):
    assert named in fails(PREDICT, *flags, cwd=shapes)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    best = tmp_path / "out" / "best.pdparams"
    message = fails(LAUNCHER, "-cfg", shapes_config, "-eval", "-pretrained", best, "-opts", "MODEL.NAME", "pale_tiny",
                    ranks=0, cwd=tmp_path)  # fmt: skip
    assert "pale_nano weights" in message
    message = fails(LAUNCHER, "-eval", "-pretrained", best, cwd=tmp_path)
    assert "3 classes" in message
    message = fails(LAUNCHER, "-cfg", shapes_config, "-resume", best, cwd=tmp_path)
    assert "latest" in message


# ---- several ranks


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "recompute"])
def test_two_ranks_and_accumulation_give_the_gradient_of_the_whole_batch(tmp_path, mode):
    result = run_program("tests/helpers/ddp_gradients.py", mode, ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "rank 0: gradients equal" in result.stdout


@pytest.mark.slow
def test_one_rank_and_three_ranks_count_the_same_images(tmp_path, shapes, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    (shapes / "val" / "red" / "00.png").unlink()  # 20 images do not divide by 3
    flags = ("-cfg", shapes_config, "-eval", "-pretrained", tmp_path / "out" / "best.pdparams")
    results = [run_program(LAUNCHER, *flags, ranks=ranks, cwd=tmp_path).stdout for ranks in (1, 3)]
    one, three = (re.search(r"top1 (\S+)  loss (\S+)  images (\d+)", text).groups() for text in results)
    assert one[2] == three[2] == "20"
    assert one[0] == three[0]
    assert float(one[1]) == pytest.approx(float(three[1]), rel=1e-4)


WRONG = [
    (["-cfg", "missing.yaml"], "missing.yaml"),
    (["-data_path", "/no/such/folder"], "/no/such/folder"),
    (["-batch_size", "0"], "DATA.BATCH_SIZE is 0"),
    (["-batch_size", "1000"], "36 training images"),
    (["-pretrained", "missing.pdparams"], "missing.pdparams"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "flags", "named"),
    [*((1, *case) for case in WRONG), *((3, *case) for case in (WRONG[0], WRONG[-1]))],  # found first, and last
)
def test_wrong_input_ends_every_rank_with_one_line_and_code_2(tmp_path, shapes_config, ranks, flags, named):
    config = [] if "-cfg" in flags else ["-cfg", shapes_config]
    assert named in fails(LAUNCHER, *config, *flags, ranks=ranks, cwd=tmp_path)


def break_train_image(shapes: Path) -> list:
    image = shapes / "train" / "green" / "05.png"
    image.write_bytes(image.read_bytes()[:200])
    return ["-data_path", shapes], str(image)


def empty_a_class(shapes: Path) -> list:
    (shapes / "train" / "yellow").mkdir()
    return ["-data_path", shapes], "yellow"


def write_list(line: str):
    def write(shapes: Path) -> list:
        (shapes / "train_list.txt").write_text(f"train/red/00.png 2\n{line}\n")
        return ["-dataset", "imagenet2012", "-data_path", shapes, "-opts", "MODEL.NUM_CLASSES", "3"], "line 2"

    return write


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize(
    "spoil",
    [break_train_image, empty_a_class, write_list("train/red/01.png"), write_list("train/red/01.png 7")],
    ids=["truncated image", "empty class", "no label", "label out of range"],
)
def test_wrong_data_ends_every_rank_with_one_line_and_code_2(tmp_path, shapes, shapes_config, ranks, spoil):
    flags, named = spoil(shapes)
    assert named in fails(LAUNCHER, "-cfg", shapes_config, *flags, ranks=ranks, cwd=tmp_path)


def test_debug_shows_the_traceback(tmp_path):
    result = run_program(LAUNCHER, "-cfg", "missing.yaml", "-debug", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" in result.stdout


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_an_output_folder_that_cannot_be_written_is_named(tmp_path, shapes_config, place):
    (tmp_path / "taken").write_text("")
    output = tmp_path / "taken" if place == "a file" else tmp_path / "taken" / "out"
    assert str(tmp_path / "taken") in fails(LAUNCHER, "-cfg", shapes_config, "-output", output, cwd=tmp_path)


@pytest.mark.slow
def test_machines_that_were_started_unlike_stop_at_once(tmp_path, shapes_config):
    # The ranks of one launch share their flags, so the configuration itself is made to depend on the rank.
    program = tmp_path / "unlike.py"
    program.write_text(
        f"import os, sys\nsys.path[0] = {str(ROOT)!r}\n"
        "from common.training.launcher import launch\n"
        "from image_classification.config import CONFIG\n"
        "sys.argv += ['-seed', os.environ['PADDLE_TRAINER_ID']]\n"
        "launch('', CONFIG, 'image_classification.classification:Classification')\n"
    )
    message = fails(str(program), "-cfg", shapes_config, ranks=2, cwd=tmp_path)
    assert "rank 1 was started unlike rank 0" in message


@pytest.mark.slow
def test_an_error_of_one_rank_only_ends_all_with_its_message(tmp_path, shapes, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    broken = shapes / "val" / "blue" / "01.png"  # the second image: rank 1 reads it, ranks 0 and 2 do not
    broken.write_bytes(b"")
    flags = ("-cfg", shapes_config, "-eval", "-pretrained", tmp_path / "out" / "best.pdparams")
    message = fails(LAUNCHER, *flags, ranks=3, cwd=tmp_path)
    assert str(broken) in message
    assert "rank 1" in message


@pytest.mark.slow
def test_more_ranks_than_images_is_an_error(tmp_path, shapes, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    (shapes / "val_list.txt").write_text("val/red/00.png 2\nval/blue/00.png 0\n")
    flags = ("-cfg", shapes_config, "-eval", "-pretrained", tmp_path / "out" / "best.pdparams")
    message = fails(
        LAUNCHER, *flags, "-dataset", "imagenet2012", "-opts", "MODEL.NUM_CLASSES", "3", ranks=3, cwd=tmp_path
    )
    assert "3 ranks for 2 images" in message


@pytest.mark.slow
def test_the_ranks_agree_on_batchnorm_statistics_when_they_evaluate(tmp_path, shapes_config):
    output = train(shapes_config, "-opts", "TRAIN.EPOCHS", "1", ranks=2)
    (figures,) = re.findall(r"epoch 1/1 val +(top1 .*)  \(", output)
    flags = ("-cfg", shapes_config, "-eval", "-pretrained", tmp_path / "out" / "latest.pdparams")
    evaluated = run_program(LAUNCHER, *flags, cwd=tmp_path)
    loss = [float(re.search(r"loss (\S+)", text)[1]) for text in (figures, evaluated.stdout)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-3)
