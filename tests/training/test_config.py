"""The configuration: order of precedence, types, and errors that name the key."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from common.errors import UserError
from common.runtime.command_line import ArgumentParser
from common.runtime.folders import expand_home
from common.tasks import TASKS
from common.training.config import add_weights_flags
from common.training.config_values import find
from image_classification.classification import Classification
from image_classification.config import CONFIG
from image_classification.pale_backbone import build_model
from image_classification.transforms import EvalTransform, TrainTransform
from tests.helpers import tiny_runs

CONFIGS = sorted(CONFIG.default_file.parent.rglob("*.yaml"))


load = functools.partial(tiny_runs.load, CONFIG)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_cfg_the_digits_are_trained():
    config = load()
    assert config.DATA.DATASET == "mnist5k"
    assert config.MODEL.NAME == "pale_nano"


def test_defaults_then_base_then_file_then_flags_then_opts(tmp_path):
    write(tmp_path / "base.yaml", "TRAIN: {EPOCHS: 1, BASE_LR: 0.1, WEIGHT_DECAY: 0.1, ACCUM_ITER: 2, GRAD_CLIP: 1.0}")
    child = write(
        tmp_path / "child.yaml",
        "BASE: base.yaml\nTRAIN: {BASE_LR: 0.2, WEIGHT_DECAY: 0.2, ACCUM_ITER: 3, GRAD_CLIP: 2}",
    )
    config = load("-cfg", child, "-accum_iter", 4, "-opts", "TRAIN.GRAD_CLIP", "4")
    train = config.TRAIN
    assert (train.WARMUP_EPOCHS, train.EPOCHS, train.BASE_LR) == (20.0, 1, 0.2)
    assert (train.ACCUM_ITER, train.GRAD_CLIP) == (4, 4.0)


def test_a_list_of_any_length_takes_another_length_in_place_of_a_files(tmp_path):
    path = write(tmp_path / "own.yaml", "MODEL: {PALE_SIZE: [3], NUM_HEADS: [2, 2, 2, 2]}")
    model = load("-cfg", path, "-opts", "MODEL.PALE_SIZE", "[2, 2, 4, 4]", "MODEL.NUM_HEADS", "[]").MODEL
    assert (model.PALE_SIZE, model.NUM_HEADS) == ([2, 2, 4, 4], [])


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("image_classification", {"lr": "TRAIN.BASE_LR", "epochs": "TRAIN.EPOCHS", "num_classes": "MODEL.NUM_CLASSES"}),
        ("semantic_segmentation", {"lr": "lr_scheduler.learning_rate", "epochs": "EPOCHS",
                                   "num_classes": "model.num_classes"}),
        ("object_detection", {"lr": "LearningRate.base_lr", "epochs": "epoch", "num_classes": "num_classes"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("flag", "value"), [("lr", 0.25), ("epochs", 7), ("num_classes", 3)])
def test_every_task_has_flags_for_rate_epochs_and_classes(task, keys, flag, value):
    config = tiny_runs.load(TASKS[task].config(), f"-{flag}", value)
    assert find(config, keys[flag]) == value


@pytest.mark.parametrize(
    ("flags", "output"),
    [
        ((), "output/own"),
        (("-data_path", "files"), "output/own"),  # those of the file
        (("-data_path", "some/photos/"), "output/own-photos"),
        (("-opts", "DATA.DATA_PATH", "some/photos"), "output/own-photos"),
        (("-dataset", "mnist"), "output/own-mnist"),
        (("-dataset", "idx", "-data_path", "."), "output/own-idx-{here}"),
        (("-data_path", "photos", "-output", "o"), "o"),
    ],
)
def test_the_default_folder_tells_the_configuration_and_other_data(tmp_path, monkeypatch, flags, output):
    monkeypatch.chdir(tmp_path)
    own = write(tmp_path / "own.yaml", "DATA: {DATASET: folder, DATA_PATH: files}")
    assert output.format(here=tmp_path.name) == load("-cfg", own, *flags).OUTPUT


def test_the_default_folders_of_the_configurations_are_different(monkeypatch):
    monkeypatch.chdir(CONFIG.default_file.parent)
    outputs = {path: load("-cfg", path.relative_to(CONFIG.default_file.parent)).OUTPUT for path in CONFIGS}
    assert len(set(outputs.values())) == len(CONFIGS)
    assert outputs[CONFIG.default_file] == "output/pale_nano_mnist5k"


@pytest.mark.parametrize("dash", ["-", "--"])
def test_flags_of_paddlevit_work_with_one_dash_and_two(dash):
    values = {
        "dataset": "folder", "data_path": "d", "batch_size": 3, "batch_size_eval": 5, "image_size": 64, "accum_iter": 2,
        "pretrained": "p", "resume": "r", "last_epoch": 7, "output": "o",
    }  # fmt: skip
    flags = [part for name, value in values.items() for part in (dash + name, value)]
    config = load(*flags, f"{dash}amp", f"{dash}eval")
    data = config.DATA
    assert (data.DATASET, data.DATA_PATH, data.BATCH_SIZE, data.BATCH_SIZE_EVAL, data.IMAGE_SIZE) == (
        "folder", "d", 3, 5, 64,
    )  # fmt: skip
    assert (config.TRAIN.ACCUM_ITER, config.TRAIN.LAST_EPOCH, config.TRAIN.AMP) == (2, 7, "float16")
    assert load(f"{dash}amp", "bfloat16").TRAIN.AMP == "bfloat16"
    assert (config.MODEL.PRETRAINED, config.RESUME, config.OUTPUT, config.EVAL) == ("p", "r", "o", True)


def test_opts_may_stand_anywhere_and_numbers_that_yaml_reads_as_strings_are_numbers():
    config = load(
        "-opts",
        "TRAIN.BASE_LR",
        "1e-3",
        "-seed",
        "7",
        "-opts",
        "DATA.SKIP_BROKEN",
        "True",
        "--opts",
        "TRAIN.EPOCHS",
        "4",
    )
    assert (config.TRAIN.BASE_LR, config.DATA.SKIP_BROKEN, config.TRAIN.EPOCHS, config.SEED) == (1e-3, True, 4, 7)


def test_a_tilde_is_the_home_folder_in_files_flags_and_opts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("SEED: 7")
    (tmp_path / "run.yaml").write_text("BASE: ~/base.yaml\nOUTPUT: ~/runs")
    config = load("-cfg", "~/run.yaml", "-pretrained", "~/a.pdparams", "-opts", "DATA.DATA_PATH", "~/photos")
    paths = (config.OUTPUT, config.MODEL.PRETRAINED, config.DATA.DATA_PATH)
    assert paths == tuple(str(tmp_path / name) for name in ("runs", "a.pdparams", "photos"))
    assert config.SEED == 7


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("TRAIN.EPOCHS: 1\nTRAIN: {EPOCHS: 2}", "sets TRAIN.EPOCHS twice"),
        ("VALIDATE_EPOCHS: 1\nVALIDATE_EVERY: 2", "sets both VALIDATE_EPOCHS and VALIDATE_EVERY"),
    ],
)
def test_a_key_that_a_file_sets_in_two_ways_is_an_error(tmp_path, text, named):
    with pytest.raises(UserError, match=named):
        load("-cfg", str(write(tmp_path / "a.yaml", text)))


@pytest.mark.parametrize("flag", [("-overwrite",), ("-resume", "auto")])
def test_the_configuration_of_a_copied_run_does_not_change_the_original(tmp_path, flag):
    (tmp_path / "copy").mkdir()
    original = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    file = write(tmp_path / "copy" / "config.yaml", f"OUTPUT: {original}")
    flags = ("-cfg", str(file), *flag)
    config = load(*flags)  # the file of a user
    assert config.OUTPUT.endswith("run")
    write(tmp_path / "copy" / "log.jsonl", "")
    with pytest.raises(UserError, match="copied or moved; give -output"):
        load(*flags)
    assert load(*flags, "-output", original).OUTPUT.endswith("run")
    based = write(tmp_path / "based.yaml", "BASE: copy/config.yaml")
    with pytest.raises(UserError, match="copied or moved; give -output"):
        load("-cfg", str(based), *flag)


def test_opts_may_be_said_twice_to_the_tools():
    for times in (1, 2):  # the second time fails if the first has changed the default
        parser = ArgumentParser()
        add_weights_flags(parser)
        flags = ["-opts", "TRAIN.EPOCHS", "3", "-pretrained", "mnist5k", "-opts", "DATA.SKIP_BROKEN", "True"]
        assert parser.parse_args(flags).opts == ["TRAIN.EPOCHS", "3", "DATA.SKIP_BROKEN", "True"], times


@pytest.mark.parametrize(
    ("words", "images", "options"),
    [
        ("-opts EvalReader.x -1 SEED cat.jpg cat.jpg -device cpu", ["cat.jpg"], "EvalReader.x -1 SEED cat.jpg"),
        ("-opts num_classes 3 no/such.jpg photos/1 -device cpu", ["no/such.jpg", "photos/1"], "num_classes 3"),
        ("-opts model {type:X} photos -device cpu", ["photos"], "model {type:X}"),  # which is the name of a folder, too
        ("photos -opts SEED 3 model {type:X}", ["photos"], "SEED 3 model {type:X}"),
        ("-device cpu -opts SEED 3 -- SEED", ["SEED"], "SEED 3"),
    ],
)
def test_files_may_follow_the_options_of_a_tool(tmp_path, monkeypatch, words, images, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").touch()
    for name in ("photos", "model"):
        (tmp_path / name).mkdir()
    parser = ArgumentParser()
    parser.add_argument("images", nargs="+")
    add_weights_flags(parser, required=False)
    arguments = parser.parse_args(words.split())
    assert (arguments.images, arguments.opts) == (images, options.split())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-opts", "TRAIN.EPOCS", "3"], "did you mean TRAIN.EPOCHS"),
        (["-opts", "TRAIN.EPOCHS", "three"], "TRAIN.EPOCHS is 'three'"),
        (["-opts", "TRAIN", "3"], "TRAIN is 3"),
        (["-opts", "TRAIN.EPOCHS"], "'TRAIN.EPOCHS' has no value"),
        (["-opts", "AUG.CROP_SCALE", "[0.1]"], "AUG.CROP_SCALE is [0.1]"),
        (["-opts", "MODEL.PALE_SIZE", "7"], "MODEL.PALE_SIZE is 7; it must be a list of whole numbers"),
        (["-opts", "MODEL.NUM_HEADS", "[2, 4]"], "MODEL.NUM_HEADS is [2, 4]; it must be a list of four numbers"),
        (["-opts", "TRAIN.FREEZE", "stem"], "TRAIN.FREEZE is 'stem'; it must be a list of names"),
        (["-batch_size", "0"], "DATA.BATCH_SIZE is 0"),
        (["-opts", "TRAIN.EMA_DECAY", "1.0"], "TRAIN.EMA_DECAY is 1.0"),
        (["-seed", str(2**32)], "SEED is 4294967296; it must be less than 2**32"),
        (["-opts", "TRAIN.EPOCHS", str(2**64)], "TRAIN.EPOCHS is 18446744073709551616; it must be a whole number"),
        (["-opts", "TRAIN.BASE_LR", "9" * 400], "a number has 400 characters"),
        (["-opts", "TRAIN.BASE_LR", ".nan"], "TRAIN.BASE_LR is nan; it must be a finite number"),
        (["-no_such_flag"], "-no_such_flag"),
        (["-batch_size", "many"], "many"),
        (["-amp", "int8"], "int8"),
        (["-cfg", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(flags, named):
    with pytest.raises(UserError) as caught:
        load(*flags)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("DATA: {BATCHSIZE: 3}", "did you mean DATA.BATCH_SIZE"),
        ("NOTHING: 3", "unknown key NOTHING"),
        ("DATA: 3", "DATA is 3"),
        ("- a\n- b", "is a list"),
        ("a: [", "not a yaml file"),
        ("model: {type: UPerNet}", "has a configuration of semantic_segmentation; give one of this task"),
        ("architecture: MaskRCNN", "has a configuration of object_detection; give one of this task"),
        ("BASE: self.yaml", "includes self.yaml itself"),
        ("BASE: gone.yaml", "self.yaml names it: write a path that is relative"),
        ("BASE: other.yaml", "other.yaml"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, named):
    with pytest.raises(UserError, match=r"self\.yaml|other\.yaml") as caught:
        load("-cfg", write(tmp_path / "self.yaml", text))
    assert named in str(caught.value)


@pytest.mark.parametrize("name", ["~a\0b", "~\ud800"])
def test_a_tilde_before_what_is_no_name_of_a_user_stays(name):
    assert expand_home({"folders": [name]}) == {"folders": [name]}


@pytest.mark.parametrize("side", [31, 100_000])
def test_the_image_size_is_bounded(side):
    with pytest.raises(UserError, match=rf"DATA\.IMAGE_SIZE is {side}; it must be at least 32, .*, and at most 8192"):
        load("-image_size", side)


def test_old_names_of_keys_are_read_everywhere(tmp_path):
    path = write(tmp_path / "old.yaml", "{VALIDATE_EPOCHS: 3, SAVE_EPOCHS: 5}")
    config = load("-cfg", path, "-opts", "SAVE_STEPS", "7")
    assert (config.VALIDATE_EVERY, config.CHECKPOINT_EVERY, config.LATEST_EVERY) == (3, 5, 7)
    kept = CONFIG.from_text("{KEEP_STEPS: 11, VALIDATE_STEPS: 13}", "dump")
    assert (kept.CHECKPOINT_EVERY, kept.VALIDATE_EVERY) == (11, 13)


def test_the_result_is_frozen_and_its_dump_reads_back():
    config = load("-opts", "TRAIN.BASE_LR", "1e-5")
    assert CONFIG.from_text(config.dump(), "dump") == config
    with pytest.raises(AttributeError):
        config.SEED = 3


def test_what_is_kept_of_a_run_does_not_say_what_one_command_did():
    config = load("-eval", "-resume", "auto", "-last_epoch", 3, "-seed", 4)
    text = CONFIG.dump(config)
    assert not {"EVAL", "RESUME", "LAST_EPOCH"} & {line.split(":")[0].strip() for line in text.splitlines()}
    kept = CONFIG.from_text(text, "dump")
    assert (kept.EVAL, kept.RESUME, kept.TRAIN.LAST_EPOCH, kept.SEED) == (False, "", -1, 4)
    assert config.RESUME == "auto"
    assert CONFIG.differences(kept, config) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_configuration_builds_its_model_and_transforms(path):
    config = load("-cfg", path)
    TrainTransform(config)
    EvalTransform(config)
    if config.MODEL.NAME == "pale_nano" or path.stem == "pale_tiny_224":
        build_model(config, 3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["MODEL.ATTENTION", "swin"], "attention is 'swin'"),
        (["MODEL.POSITION_ENCODING", "sine"], "position_encoding is 'sine'"),
        (["MODEL.PALE_SIZE", "[0]"], "pale_size is 0"),
    ],
)
def test_a_model_that_cannot_be_is_named(options, named):
    with pytest.raises(UserError, match=named):
        build_model(load("-opts", *options), 3)


def test_the_rates_scale_with_the_batch_where_the_configuration_says_so():
    flags = ("-cfg", CONFIG.default_file.parent / "pale_tiny_224.yaml", "-batch_size", 64, "-device", "cpu")
    rate = Classification(load(*flags))._learning_rate(steps_per_epoch=10)
    assert rate(10 * 20) == pytest.approx(1e-3 * 64 / 1024)


def test_a_choice_of_weights_without_weights_is_refused():
    with pytest.raises(UserError, match=r"-weights model chooses .*; it needs -pretrained FILE"):
        load("-weights", "model")
    assert load("-weights", "model", "-eval", "-resume", "a.pdparams").MODEL.WEIGHTS == "model"
