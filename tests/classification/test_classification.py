"""Image classification from the launcher's flags to metrics, on one rank and on several."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.checkpoints.file_format import load_file, save_file
from common.errors import UserError
from image_classification.classification import Classification
from tests.helpers.made_up_data import make_shapes
from tests.helpers.programs import ROOT, fails, next_commands, run_program
from tests.helpers.tiny_configs import write_shapes, write_shapes_config
from tests.helpers.tiny_runs import assert_same_training, run
from tools import predict

LAUNCHER = "image_classification/main_multi_gpu.py"
PREDICT = "tools/predict.py"


def train(config: Path, *flags: object, ranks: int = 0) -> str:
    result = run_program(LAUNCHER, "-cfg", config, *flags, ranks=ranks, cwd=config.parent)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def best(tmp_path_factory) -> Path:
    """The weights after one epoch on the shapes; 3 classes."""
    folder = tmp_path_factory.mktemp("trained")
    write_shapes(folder)
    run(Classification, write_shapes_config(folder), "-opts", "TRAIN.EPOCHS", "1")
    return folder / "out" / "best.pdparams"


def refusal(config: Path, *flags: object) -> str:
    with pytest.raises(UserError) as refused:
        run(Classification, config, *flags)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- one rank


def test_frozen_parts_stay_bitwise_while_the_rest_trains_and_a_resumed_run_is_identical(tmp_path, shapes_config, best):
    options = ("-opts", "TRAIN.FREEZE", "[stem, stages.1, norm_eval]", "TRAIN.EMA_DECAY", "0.9")
    options = (*options, "CHECKPOINT_EVERY", "1", "KEEP_CHECKPOINTS", "2")
    run(Classification, shapes_config, "-pretrained", best, "-output", tmp_path / "a", *options)
    before, after = load_file(best)["model"], load_file(tmp_path / "a" / "latest.pdparams")
    frozen = ("stages.0.merging.", "stages.1.")
    trained = {name for name in before if not (name.startswith(frozen) or name.endswith(("._mean", "._variance")))}
    for part in ("model", "model_ema"):
        moved = {name for name in before if after[part][name].tobytes() != before[name].tobytes()}
        assert moved <= trained
        # The last map is one token, so its queries and keys have no gradient.
        assert not [name for name in trained - moved if not re.match(r"stages\.3\..*\.(query|key)\.bias", name)]
    assert not [name for name in after["optimizer"] if name.startswith(frozen)]
    resume = ("-resume", tmp_path / "a" / "epoch_0001.pdparams")
    run(Classification, shapes_config, *resume, "-output", tmp_path / "b", *options)
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("patterns", "named"),
    [("[stages.9]", "TRAIN.FREEZE: 'stages.9' matches no parameter"), ("['*']", "every parameter is frozen")],
)
def test_wrong_freezing_is_refused(shapes_config, patterns, named):
    assert named in refusal(shapes_config, "-opts", "TRAIN.FREEZE", patterns)


@pytest.mark.slow
def test_train_evaluate_predict_and_resume_by_the_commands_that_training_prints(tmp_path, shapes, shapes_config):
    output = train(shapes_config, "-opts", "TRAIN.EMA_DECAY", "0.9", "TRAIN.EPOCHS", "3")
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} >= {
        "best.pdparams", "latest.pdparams", "epoch_0003.pdparams", "config.yaml", "log.jsonl", "visualdl",
    }  # fmt: skip
    best = float(re.search(r"best: +top-1 ([\d.]+) ", output)[1])
    assert best > 90.0
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"train", "val", "val_ema"}
    assert max(record["top1"] for record in records if "top1" in record) == pytest.approx(best, abs=0.01)
    for name in ("best", "latest"):
        state = load_file(folder / name)
        assert "SEED: 0" in state["config"]
        assert state["class_names"] == ["blue", "green", "red"]
        assert state["versions"].keys() == {"pale-transformer-paddle", "paddle", "numpy"}

    commands = next_commands(output)
    evaluated = run_program(*commands["evaluate"], cwd=tmp_path)
    assert f"top1 {best:.6g}" in evaluated.stdout, evaluated.stdout

    image = shapes / "val" / "red" / "00.png"
    predicted = run_program(PREDICT, image, *commands["predict"][2:], "--json", cwd=tmp_path)
    (entry,) = json.loads(predicted.stdout)
    assert entry["image"] == str(image)
    assert {prediction["name"] for prediction in entry["predictions"]} == {"red", "green", "blue"}
    assert sum(prediction["score"] for prediction in entry["predictions"]) == pytest.approx(1.0, abs=1e-4)

    assert "\nOK: paddle, onnx, " in run_program(*commands["export"], cwd=tmp_path).stdout
    assert run_program(*commands["visualize"], cwd=tmp_path).returncode == 0
    assert {path.name for path in (folder / "visualized").iterdir()} >= {"00_pale.png", "00_grad_cam.png"}
    resumed = run_program(*commands["resume"], cwd=tmp_path)
    assert "after epoch 3" in resumed.stdout
    assert "epoch 4/4  train" in resumed.stdout
    assert "epoch 3/4 train" not in resumed.stdout
    assert "learning rate jumps" not in resumed.stdout


def test_the_same_seed_gives_the_same_weights_whatever_the_number_of_workers(tmp_path, shapes_config):
    options = ("-opts", "TRAIN.EPOCHS", "1", "AUG.ERASING", "0.5", "DATA.NUM_WORKERS")
    run(Classification, shapes_config, "-output", tmp_path / "a", *options, 0)
    run(Classification, shapes_config, "-output", tmp_path / "b", *options, 2)
    a, b = (load_file(tmp_path / name / "latest.pdparams")["model"] for name in "ab")
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_fine_tuning_on_other_classes_replaces_the_head_and_says_so(tmp_path, shapes_config, best, capsys):
    make_shapes(tmp_path / "two", 6)
    shutil.rmtree(tmp_path / "two" / "red")
    run(Classification, shapes_config, "-data_path", tmp_path / "two", "-pretrained", best.with_suffix(""),
        "-output", tmp_path / "tuned", "-opts", "TRAIN.LAYER_DECAY", "0.8", "TRAIN.EPOCHS", "1")  # fmt: skip
    assert "new head" in capsys.readouterr().out
    assert load_file(tmp_path / "tuned" / "best")["model"]["head.weight"].shape[1] == 2


def test_the_average_is_evaluated_predicted_with_and_fine_tuned_unless_the_weights_are_chosen(
    tmp_path, shapes_config, best
):
    state, both = load_file(best), tmp_path / "both.pdparams"
    average = {name: 0 * array if name.startswith("head.") else array for name, array in state["model"].items()}
    save_file({**state, "model_ema": average}, both)
    expected = run(Classification, shapes_config, "-eval", "-pretrained", best)
    for flags, loss in (((), math.log(3)), (("-weights", "model"), expected["loss"])):
        metrics = run(Classification, shapes_config, "-eval", "-pretrained", both, *flags)
        assert metrics["loss"] == pytest.approx(loss, abs=1e-4)
        arguments = predict._parser().parse_args(["x.png", "-pretrained", str(both), *flags])
        classifier = predict.open_weights(arguments)[1]
        run(Classification, shapes_config, "-pretrained", both, *flags, "-overwrite",
            "-opts", "TRAIN.EPOCHS", "1", "TRAIN.BASE_LR", "1e-9", "TRAIN.WARMUP_LR", "1e-9",
            "TRAIN.END_LR", "0")  # fmt: skip
        tuned = load_file(tmp_path / "out" / "last.pdparams")["model"]["head.weight"]
        for weight in (classifier.model.head.weight.numpy(), tuned):
            assert (abs(weight).max() < 1e-3) == (not flags)


def test_weights_store_their_attention_and_are_not_used_with_another(tmp_path, shapes, shapes_config, best):
    options = ("MODEL.ATTENTION", "window", "MODEL.POSITION_ENCODING", "relative")
    run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", "1", *options)
    of_windows, latest = tmp_path / "out" / "best.pdparams", tmp_path / "out" / "latest.pdparams"
    evaluate = ("-eval", "-pretrained", of_windows)
    run(Classification, shapes_config, *evaluate, "-image_size", 48, "-opts", *options)  # positions are interpolated
    for flags, other, named in (
        (evaluate, "global", "attention=window, not global"),
        (evaluate, "cross", "attention=window, not cross"),
        (("-resume", latest), "global", "attention=window, not global"),
        (("-resume", latest), "cross", "attention=window, not cross"),
    ):
        assert named in refusal(shapes_config, *flags, "-opts", "MODEL.ATTENTION", other, *options[2:])
    resume = ("-resume", latest, "-image_size", 48, "-opts", *options)
    assert "resume with the original image size" in refusal(shapes_config, *resume)
    resume = ("-resume", best.with_name("latest.pdparams"), "-overwrite", "-opts", "MODEL.PARALLEL", "False")
    assert "parallel=True, not False" in refusal(shapes_config, *resume)


def test_evaluation_needs_no_training_set_and_skips_broken_images_only_when_asked(shapes, shapes_config, best):
    shutil.rmtree(shapes / "train")
    broken = shapes / "val" / "green" / "03.png"
    broken.write_bytes(broken.read_bytes()[:300])
    message = refusal(shapes_config, "-eval", "-pretrained", best)
    assert str(broken) in message
    assert "SKIP_BROKEN" in message
    metrics = run(Classification, shapes_config, "-eval", "-pretrained", best, "-opts", "DATA.SKIP_BROKEN", "True")
    assert (metrics["images"], metrics["skipped"]) == (20, 1)


def test_predict_reads_what_it_can_and_names_the_rest(tmp_path, shapes, best):
    (tmp_path / "broken.png").write_text("no image")
    flags = (shapes / "val" / "red", tmp_path / "broken.png", "-pretrained", best)
    result = run_program(PREDICT, *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout.count(" %  ") == 7 * 3
    assert "1 of 8 images could not be predicted" in result.stdout
    assert str(tmp_path / "broken.png") in result.stdout


def test_wrong_input_is_one_line_that_names_it(tmp_path, shapes_config, best):
    (tmp_path / "taken").write_text("")
    evaluate = ("-eval", "-pretrained", best)
    for flags, named in (
        (["-data_path", "/no/such/folder"], "/no/such/folder"),
        (["-batch_size", "1000"], "36 training images"),
        (["-pretrained", "missing.pdparams"], "missing.pdparams"),
        (["-eval"], "-pretrained"),
        ([*evaluate, "-opts", "MODEL.NAME", "pale_tiny"], "pale_nano weights"),
        (
            [*evaluate, "-dataset", "mnist5k", "-data_path", ""],
            "mnist5k names 10 classes but the model has 3",
        ),
        (["-resume", best], "resume from latest"),
    ):
        assert named in refusal(shapes_config, *flags)
    with pytest.raises(OSError, match="taken"):  # the launcher makes one line of it
        run(Classification, shapes_config, "-output", tmp_path / "taken" / "out")


def test_debug_shows_the_traceback(tmp_path):
    assert "missing.yaml" in fails(LAUNCHER, "-cfg", "missing.yaml", cwd=tmp_path)
    result = run_program(LAUNCHER, "-cfg", "missing.yaml", "-debug", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" in result.stdout


# ---- wrong data


def break_train_image(shapes: Path) -> tuple[list, str]:
    image = shapes / "train" / "green" / "05.png"
    image.write_bytes(image.read_bytes()[:200])
    return ["-data_path", shapes], str(image)


def empty_a_class(shapes: Path) -> tuple[list, str]:
    (shapes / "train" / "yellow").mkdir()
    return ["-data_path", shapes], "yellow"


def lose_a_label(shapes: Path) -> tuple[list, str]:
    (shapes / "train_list.txt").write_text("train/red/00.png 2\ntrain/red/01.png\n")
    return ["-dataset", "imagenet2012", "-data_path", shapes, "-opts", "MODEL.NUM_CLASSES", "3"], "line 2"


@pytest.mark.parametrize("spoil", [break_train_image, empty_a_class, lose_a_label])
def test_wrong_data_is_one_line_that_names_the_file(shapes, shapes_config, spoil):
    flags, named = spoil(shapes)
    assert named in refusal(shapes_config, *flags)


# ---- variants of a validation split


@pytest.fixture
def variant(tmp_path, best) -> Path:
    """Two of the three classes in folders with their numbers: 5 green (1) and 4 red images (2)."""
    make_shapes(tmp_path / "made", 5)
    for name, number in (("green", 1), ("red", 2)):
        shutil.copytree(tmp_path / "made" / name, tmp_path / "variant" / "val" / str(number))
    (tmp_path / "variant" / "val" / "2" / "00.png").unlink()
    for path in (tmp_path / "variant").rglob("*.png"):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    return tmp_path / "variant"


def only_blue(best: Path, path: Path) -> Path:
    """Weights that find blue most probable, then red, whatever the image."""
    state = load_file(best)
    state["model"]["head.weight"] = 0 * state["model"]["head.weight"]
    state["model"]["head.bias"] = np.array([3, 1, 2], "float32")
    save_file(state, path)
    return path


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_subset_of_the_classes_and_several_labels_are_evaluated_and_recorded(
    tmp_path, shapes_config, best, variant, ranks
):
    weights, record = only_blue(best, tmp_path / "blue.pdparams"), tmp_path / "results.csv"
    evaluate = ("-eval", "-pretrained", weights, "-data_path", variant, "-record", record)
    labels = [[1], [0, 1], [2], [], [2, 1], [2], [0], [], [1]]  # of 1_00 to 1_04 and 2_01 to 2_04
    (tmp_path / "real.json").write_text(json.dumps(labels))
    real = ("DATA.LABELS_JSON", tmp_path / "real.json")
    found = []
    for options in ((), ("DATA.CLASS_SUBSET", "True"), real, (*real, "DATA.CLASS_SUBSET", "True")):
        flags = (*evaluate, *(("-opts", *options) if options else ()))
        if ranks:
            figures = re.search(r"top1 (\S+) .*images (\d+)\n", train(shapes_config, *flags, ranks=ranks))
            found.append((float(figures[1]), int(figures[2])))
        else:
            metrics = run(Classification, shapes_config, *flags)
            found.append((metrics["top1"], metrics["images"]))
    expected = [(0, 9), (400 / 9, 9), (200 / 7, 7), (300 / 7, 7)]
    assert found == [(pytest.approx(top1, rel=1e-5), images) for top1, images in expected]
    data_sets = [line.split(",top1,")[0] for line in record.read_text().splitlines() if ",top1," in line]
    assert data_sets == [
        "pale_nano,folder variant",
        'pale_nano,"folder variant, only its 2 classes compete"',
        'pale_nano,"folder variant, labels of real.json"',
        'pale_nano,"folder variant, only its 2 classes compete, labels of real.json"',
    ]


def test_a_subset_and_several_labels_are_for_evaluation_only(shapes_config):
    assert "DATA.CLASS_SUBSET is True; it needs -eval" in refusal(shapes_config, "-opts", "DATA.CLASS_SUBSET", "True")
    assert "x.json; it needs -eval" in refusal(shapes_config, "-opts", "DATA.LABELS_JSON", "x.json")


@pytest.mark.parametrize("data", ["", "train"])
@pytest.mark.parametrize("flags", [["-output"], ["-eval", "-pretrained", "mnist5k", "-report"]])
def test_an_output_folder_that_would_become_a_class_is_refused_before_it_is_made(shapes, shapes_config, data, flags):
    output = shapes / "train" / "runs" / "one"
    with pytest.raises(UserError, match=rf"would become a class; give another {flags[-1]}"):
        run(Classification, shapes_config, "-data_path", shapes / data, *flags, output)
    assert not output.parent.exists()


def test_a_report_of_several_valid_labels_is_refused(tmp_path, shapes_config, best):
    options = ("-report", tmp_path / "report", "-opts", "DATA.LABELS_JSON", tmp_path / "real.json")
    (tmp_path / "real.json").write_text(json.dumps([[0]] * 21))
    for folder in (tmp_path / "shapes" / "val").iterdir():
        for path in folder.iterdir():
            path.rename(folder / f"{folder.name}{path.name}")
    assert "leave one of them out" in refusal(shapes_config, "-eval", "-pretrained", best, *options)


def test_weights_without_class_names_take_folders_with_numbers(tmp_path, shapes_config, best, variant, capsys):
    state = load_file(only_blue(best, tmp_path / "blue.pdparams"))
    state["model"]["head.bias"] = np.array([1, 3, 2], "float32")
    del state["class_names"]
    save_file(state, tmp_path / "nameless.pdparams")
    metrics = run(Classification, shapes_config, "-eval", "-pretrained", tmp_path / "nameless", "-data_path", variant)
    assert metrics["top1"] == pytest.approx(500 / 9)
    assert "the names of the class folders are taken as class numbers" in capsys.readouterr().out


# ---- several ranks


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", "recompute", "sync_bn", "sync_bn recompute", "weighted"])
def test_two_ranks_and_accumulation_give_the_gradient_of_the_whole_batch(tmp_path, mode):
    result = run_program("tests/helpers/ddp_gradients.py", *mode.split(), ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "rank 0: gradients equal" in result.stdout


@pytest.mark.slow
def test_two_ranks_with_synchronized_batch_norm_resume_to_identical_weights(tmp_path, shapes_config):
    options = ("-opts", "TRAIN.SYNC_BN", "True", "TRAIN.FREEZE", "[stages.0]", "TRAIN.EMA_DECAY", "0.9")
    options += ("TRAIN.ACCUM_ITER", "2", "MODEL.RECOMPUTE", "True", "CHECKPOINT_EVERY", "1", "KEEP_CHECKPOINTS", "2")
    train(shapes_config, "-output", tmp_path / "a", *options, ranks=2)
    own, other = load_file(tmp_path / "a" / "epoch_0001.pdparams")["rank_statistics"][0]
    np.testing.assert_array_equal(own, other)  # of both ranks
    resume = ("-resume", tmp_path / "a" / "epoch_0001.pdparams")
    output = train(shapes_config, *resume, "-output", tmp_path / "b", *options, ranks=2)
    assert "differs from" not in output
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_three_ranks_give_the_metrics_and_the_report_of_one(tmp_path, shapes, shapes_config, best):
    (shapes / "val" / "red" / "00.png").unlink()  # 20 images do not divide by 3
    evaluate = ("-eval", "-pretrained", best, "-report")
    outputs = [train(shapes_config, *evaluate, tmp_path / str(ranks), ranks=ranks) for ranks in (0, 3)]
    one, three = (re.search(r"top1 (\S+)  loss (\S+)  ece (\S+)  images (\d+)", output) for output in outputs)
    assert one[4] == three[4] == "20"
    assert one[1] == three[1]
    assert [float(text) for text in three.group(2, 3)] == pytest.approx([float(one[2]), float(one[3])], rel=1e-4)
    wrong = [(tmp_path / str(ranks) / "errors.csv").read_text().splitlines() for ranks in (0, 3)]
    assert sorted(line.rpartition(",")[0] for line in wrong[0]) == sorted(line.rpartition(",")[0] for line in wrong[1])
    for name in ("classes.csv", "confusion.csv", "confusion.png"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["-batch_size", "0"], ["-pretrained", "missing.pdparams"]])  # found first, and last
def test_wrong_input_ends_every_rank_with_one_line_and_code_2(tmp_path, shapes_config, flags):
    named = {"-batch_size": "DATA.BATCH_SIZE is 0", "-pretrained": "missing.pdparams"}[flags[0]]
    assert named in fails(LAUNCHER, "-cfg", shapes_config, *flags, ranks=2, cwd=tmp_path)


@pytest.mark.slow
def test_ranks_with_other_settings_stop_at_once(tmp_path, shapes_config):
    # The ranks of one launch share their flags, so the program makes the configuration depend on the rank.
    program = tmp_path / "unlike.py"
    source = (ROOT / LAUNCHER).read_text().replace(
        "sys.path[0] = str(Path(__file__).resolve().parents[1])",
        f"import os\nsys.path[0] = {str(ROOT)!r}\nsys.argv += ['-seed', os.environ['PADDLE_TRAINER_ID']]",
    )  # fmt: skip
    program.write_text(source)
    message = fails(str(program), "-cfg", shapes_config, ranks=2, cwd=tmp_path)
    assert "rank 1 was started with other settings, code or data than rank 0: SEED is 1, not 0" in message


@pytest.mark.slow
def test_an_error_of_one_rank_only_ends_all_with_its_message(tmp_path, shapes, shapes_config, best):
    broken = shapes / "val" / "blue" / "01.png"  # the second image: rank 1 reads it, ranks 0 and 2 do not
    broken.write_bytes(b"")
    message = fails(LAUNCHER, "-cfg", shapes_config, "-eval", "-pretrained", best, ranks=3, cwd=tmp_path)
    assert str(broken) in message
    assert "rank 1" in message


@pytest.mark.slow
def test_the_ranks_agree_on_batchnorm_statistics_when_they_evaluate(tmp_path, shapes_config):
    train(shapes_config, "-opts", "TRAIN.EPOCHS", "1", ranks=2)
    record = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])
    evaluated = train(shapes_config, "-eval", "-pretrained", tmp_path / "out" / "latest.pdparams")
    assert record["kind"] == "val"
    assert record["loss"] == pytest.approx(float(re.search(r"loss (\S+)", evaluated)[1]), rel=1e-3)


def test_images_of_both_splits_and_classes_of_one_name_are_named(tmp_path, shapes, shapes_config, capsys):
    images = sorted(path.relative_to(shapes) for path in shapes.glob("train/*/*"))
    for split in ("train", "val"):
        (shapes / f"{split}_list.txt").write_text("".join(f"{path} {n % 2}\n" for n, path in enumerate(images)))
    (shapes / "class_names.txt").write_text("cat\ncat\n")
    run(Classification, shapes_config, "-dataset", "list", "-data_path", shapes, "-opts", "TRAIN.EPOCHS", "1")
    output = capsys.readouterr().out
    assert "\nwarning: classes 0, 1 are all called 'cat'\n" in output
    assert "\nwarning: 36 images are both in the training and in the validation data, such as train/" in output
