"""What ranks must have in common, and what a resumed run compares."""

import json
import re
import shutil
from argparse import Namespace
from unittest.mock import Mock

import numpy as np
import pytest

from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.pale_transformer import create_model
from common.runtime import distributed
from common.tasks import TASKS
from common.training import data_hash as hashes
from common.training import next_commands, run, run_folder, state
from common.training.data_hash import code_hash, data_hash
from common.training.next_commands import resume_command
from common.training.run_folder import RunFolder
from image_classification.classification import Classification
from image_classification.config import CONFIG
from tests.helpers import tiny_runs
from tests.helpers.thread_ranks import run_ranks
from tests.helpers.tiny_runs import load


def values(*flags):
    return CONFIG.values_of_all_ranks(load(CONFIG, *flags))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["-eval", "-pretrained", "x"], "EVAL is True, not False"),
        (["-opts", "LOG_INTERVAL", "7"], "LOG_INTERVAL is 7, not"),
        (["-opts", "VALIDATE_EVERY", "7"], "VALIDATE_EVERY is 7, not"),
        (["-opts", "LATEST_EVERY", "7"], "LATEST_EVERY is 7, not"),
        (["-resume", "auto"], "RESUME is 'auto', not ''"),
    ],
)
def test_settings_that_steer_collective_operations_must_be_equal(monkeypatch, flags, name):
    monkeypatch.setattr(run, "gather_objects", lambda own: [values(), own])
    with pytest.raises(UserError, match=f"rank 1 .*{name}"):
        run._require_equal_ranks(values(*flags))


def test_paths_and_readers_may_differ(monkeypatch):
    monkeypatch.setattr(run, "gather_objects", lambda own: [values(), own])
    run._require_equal_ranks(values("-output", "/elsewhere", "-opts", "DATA.NUM_WORKERS", "1"))


def test_the_hash_of_data_sees_names_labels_and_their_order():
    names, labels = np.array([b"a.png", b"b.png"]), np.array([0, 1])
    found = {
        data_hash(["cat", "dog"], names, labels),
        data_hash(["dog", "cat"], names, labels),
        data_hash(["cat", "dog"], names[::-1], labels),
        data_hash(["cat", "dog"], names, labels[::-1]),
    }
    assert len(found) == 4
    assert data_hash(["cat", "dog"], names.copy(), labels.copy()) in found


def test_the_hash_of_code_sees_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_ROOT", tmp_path)
    (tmp_path / "common").mkdir()
    found = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        (tmp_path / "common" / name).write_text(text)
        found.add(code_hash())
    assert len(found) == 3


def test_ranks_with_other_code_are_refused(shapes_config, monkeypatch):
    task = Classification(load(CONFIG, "-cfg", shapes_config, "-eval"))
    monkeypatch.setattr(run, "code_hash", lambda: f"of rank {distributed.rank()}")
    found = run_ranks(monkeypatch, [run], lambda: run.run_task(task), 2)
    assert all("the code is of rank 1, not of rank 0" in message for message in found)


def test_a_resumed_run_refuses_another_order_of_classes_and_reports_other_images_and_code(
    shapes, shapes_config, capsys, monkeypatch
):
    run_flags = ("-opts", "TRAIN.EPOCHS")
    tiny_runs.run(Classification, shapes_config, *run_flags, 1)
    next((shapes / "train" / "blue").iterdir()).unlink()
    monkeypatch.setattr(state, "code_hash", lambda: "other")
    tiny_runs.run(Classification, shapes_config, "-resume", "auto", *run_flags, 2)
    output = capsys.readouterr().out
    assert "differs from the interrupted run: training data was" in output
    assert f"differs from the interrupted run: code was {code_hash()}, is other" in output
    for split in ("train", "val"):
        (shapes / split / "blue").rename(shapes / split / "zebra")
    with pytest.raises(UserError, match=r"class 0 is 'green' in the data and 'blue' in .*latest\.pdparams"):
        tiny_runs.run(Classification, shapes_config, "-resume", "auto", *run_flags, 3)


def test_classes_of_another_name_are_named_by_resumed_runs_and_evaluations(tmp_path, shapes, shapes_config, capsys):
    tiny_runs.run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", 1)
    for split in ("train", "val"):
        (shapes / split / "blue").rename(shapes / split / "azure")
    renamed = "class 0 is 'azure' in the data and 'blue' in the weights"
    tiny_runs.run(Classification, shapes_config, "-resume", "auto", "-opts", "TRAIN.EPOCHS", 2)
    shown = capsys.readouterr().out
    assert f"differs from the interrupted run: {renamed}" in shown
    assert re.search(r"the best result so far, top-1 [\d.]+, is of the other validation data", shown)
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "val_list.txt").write_text(f"{next((shapes / 'val' / 'red').iterdir())} 2\n")
    flags = ("-eval", "-pretrained", tmp_path / "out" / "best.pdparams", "-dataset", "list", "-data_path", listed)
    tiny_runs.run(Classification, shapes_config, *flags)
    assert "images: 1 validation images of 3 classes: azure, green, red" in capsys.readouterr().out
    (listed / "class_names.txt").write_text("azure\ncyan\nred\n")
    tiny_runs.run(Classification, shapes_config, *flags)
    shown = capsys.readouterr().out
    assert "warning: class 1 is 'cyan' in the data and 'green' in the weights" in shown
    assert "images: 1 validation images of 3 classes: azure, cyan, red" in shown
    assert "warning: no validation images of 2 classes: azure, cyan" in shown


def test_the_names_of_the_classes_are_kept_where_the_data_has_none(tmp_path, shapes, shapes_config):
    tiny_runs.run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", 1)
    names = load_file(tmp_path / "out" / "best.pdparams")["class_names"]
    for split in ("train", "val"):
        lines = [f"{path} {names.index(path.parent.name)}\n" for path in sorted((shapes / split).rglob("*.png"))]
        (shapes / f"{split}_list.txt").write_text("".join(lines))
    flags = ("-dataset", "list", "-data_path", shapes, "-resume", "auto", "-opts", "TRAIN.EPOCHS", 2)
    tiny_runs.run(Classification, shapes_config, *flags)
    for file in ("best", "last", "latest"):
        assert load_file(tmp_path / "out" / f"{file}.pdparams")["class_names"] == names


@pytest.mark.parametrize(
    ("name", "fixture", "length"),
    [
        ("image_classification", "shapes_config", "TRAIN.EPOCHS"),
        pytest.param("semantic_segmentation", "squares_config", "iters", marks=pytest.mark.slow),
        pytest.param("object_detection", "boxes_config", "epoch", marks=pytest.mark.slow),
    ],
)
def test_fine_tuning_names_the_classes_of_a_head_that_it_keeps(tmp_path, request, capsys, name, fixture, length):
    config, task = request.getfixturevalue(fixture), TASKS[name].task()
    tiny_runs.run(task, config, "-output", tmp_path / "a", "-opts", length, 1)
    weights = tmp_path / "a" / "best.pdparams"
    assert "are both in the training" not in capsys.readouterr().out
    state = load_file(weights)
    first = state["class_names"][0]
    state["class_names"][0] = "owl"
    save_file(state, weights)
    tiny_runs.run(task, config, "-output", tmp_path / "b", "-pretrained", weights, "-opts", length, 1)
    assert f"\nwarning: class 0 is {first!r} in the data and 'owl' in the weights\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "fixture", "length", "key", "value"),
    [
        ("image_classification", "shapes_config", "TRAIN.EPOCHS", "DATA.MEAN", "[0.9, 0.2, 0.1]"),
        (
            "semantic_segmentation",
            "squares_config",
            "iters",
            "val_dataset.transforms",
            "[{type: Normalize, mean: [0.9, 0.2, 0.1]}]",
        ),
        pytest.param(
            *("object_detection", "boxes_config", "epoch", "EvalReader.sample_transforms"),
            "[{Decode: {}}, {Resize: {target_size: [64, 64], keep_ratio: true}}, {Permute: {}}]",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_evaluations_and_predictions_name_other_preprocessing_than_that_of_the_training(
    tmp_path, request, capsys, name, fixture, length, key, value
):
    config, task = request.getfixturevalue(fixture), TASKS[name].task()
    tiny_runs.run(task, config, "-opts", length, 1)
    weights = tmp_path / "out" / "best.pdparams"
    tiny_runs.run(task, config, "-eval", "-pretrained", weights)
    assert "was trained with" not in capsys.readouterr().out
    tiny_runs.run(task, config, "-eval", "-pretrained", weights, "-opts", key, value)
    named = f"warning: {weights} was trained with {key} "
    assert named in capsys.readouterr().out
    text = load_file(weights)["config"]
    for cfg in (None, str(config)):
        TASKS[name].config().of_weights(text, str(weights), Namespace(cfg=cfg, opts=[key, value]))
        assert named in capsys.readouterr().err


def test_an_evaluation_of_two_weights_is_refused(tmp_path, shapes_config):
    with pytest.raises(UserError, match=r"PRETRAINED a\.pdparams and RESUME b\.pdparams; leave out -resume"):
        tiny_runs.run(Classification, shapes_config, "-eval", "-pretrained", "a.pdparams", "-resume", "b.pdparams")


def test_the_printed_command_resumes_on_as_many_cpus(tmp_path, shapes_config, monkeypatch):
    task = Classification(load(CONFIG, "-cfg", shapes_config, "-device", "cpu"))
    monkeypatch.setattr(next_commands, "world_size", lambda: 3)
    assert "--nproc_per_node 3 " in resume_command(task, RunFolder(tmp_path, 0))


def test_what_resume_names_is_looked_for_before_the_folder(tmp_path, shapes_config):
    tiny_runs.run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", 1)
    with pytest.raises(UserError, match="checkpoint Auto does not exist"):
        tiny_runs.run(Classification, shapes_config, "-resume", "Auto")


def test_a_state_of_another_task_is_named_so(tmp_path, shapes_config):
    tiny_runs.run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", 1)
    latest = tmp_path / "out" / "latest.pdparams"
    state = load_file(latest)
    best = {"mIoU": state["best"].pop("top1"), **state["best"]}
    save_file({**state, "task": "semantic_segmentation", "best": best}, latest)
    with pytest.raises(UserError, match="was trained for 'semantic_segmentation', not for image_classification"):
        tiny_runs.run(Classification, shapes_config, "-resume", latest, "-opts", "TRAIN.EPOCHS", 2)


def test_ranks_with_copies_of_other_weights_are_refused(tmp_path, shapes_config, monkeypatch):
    """Two machines may have files of one name, of two runs that came equally far."""
    tiny_runs.run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", 1)
    files = [tmp_path / "out" / "latest.pdparams", tmp_path / "other.pdparams"]
    other = load_file(files[0])
    other["model"]["head.bias"] = other["model"]["head.bias"] + 1
    save_file(other, files[1])
    tasks = [Classification(load(CONFIG, "-cfg", shapes_config, "-resume", file)) for file in files]

    def on_two_ranks(function):
        return run_ranks(monkeypatch, [run], lambda: function(tasks[distributed.rank()]), 2)

    found = on_two_ranks(lambda task: run._find_training_state(task, RunFolder(tmp_path, 0)))
    assert all(message.startswith("the ranks find different training states (of steps [6, 6]") for message in found)
    found = on_two_ranks(run._evaluate)
    assert all("rank 1 was started with other" in message and "SHA-256 of the weights" in message for message in found)


def test_training_and_evaluation_refuse_ranks_with_other_data(tmp_path, shapes, shapes_config, monkeypatch):
    weights = tmp_path / "weights.pdparams"
    save_file(numpy_state(create_model("pale_nano", num_classes=3)), weights)
    other = shutil.copytree(shapes, tmp_path / "other")
    for split in ("train", "val"):
        next((other / split / "red").iterdir()).unlink()
    for start, flags in ((run._train, ()), (run._evaluate, ("-eval", "-pretrained", weights))):
        flags = ("-cfg", shapes_config, *flags, "-data_path")
        tasks = [Classification(load(CONFIG, *flags, data)) for data in (shapes, other)]
        found = run_ranks(monkeypatch, [run, run_folder], lambda: start(tasks[distributed.rank()]), 2)  # noqa: B023
        assert all("rank 1 was started with other" in message and " data is " in message for message in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fixture", "length", "longer", "more"),
    [
        ("image_classification", "shapes_config", "TRAIN.EPOCHS", 4, 1),
        ("semantic_segmentation", "squares_config", "iters", 16, 3),
        ("object_detection", "boxes_config", "epoch", 4, 1),
    ],
)
def test_a_cooldown_continues_a_finished_run_exactly_and_a_longer_schedule_warns(
    tmp_path, request, capsys, name, fixture, length, longer, more
):
    config, task = request.getfixturevalue(fixture), TASKS[name].task()
    cooldown = ("-opts", "TRAIN.COOLDOWN", more)
    tiny_runs.run(task, config, "-output", tmp_path / "a", *cooldown)
    tiny_runs.run(task, config, "-output", tmp_path / "b")
    output = capsys.readouterr().out
    hint = rf"^resume: .*b/latest\.pdparams -opts TRAIN\.COOLDOWN \d+\n.*raising {length} "
    assert re.search(hint, output, re.MULTILINE)
    state = tmp_path / "b" / "latest.pdparams"
    tiny_runs.run(task, config, "-output", tmp_path / "c", "-resume", state, "-opts", length, longer)
    assert re.search(r"learning rate jumps from \S+ to \S+, so .* undo the differences above", capsys.readouterr().out)
    tiny_runs.run(task, config, "-output", tmp_path / "b", "-resume", state, *cooldown)
    assert "jumps" not in capsys.readouterr().out
    a, b = (load_file(tmp_path / folder / "latest.pdparams") for folder in ("a", "b"))
    for part in ("model", "optimizer"):
        assert all(a[part][name].tobytes() == array.tobytes() for name, array in b[part].items())
    assert a["step"] == b["step"]
    rates = [json.loads(line).get("lr") for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert [rate for rate in rates if rate][-1] > 1e-6


def test_the_rate_of_an_epoch_that_is_trained_again_is_no_jump(tmp_path, shapes_config, capsys):
    task, state = TASKS["image_classification"].task(), tmp_path / "a" / "latest.pdparams"
    tiny_runs.run(task, shapes_config, "-output", tmp_path / "a")
    tiny_runs.run(task, shapes_config, "-output", tmp_path / "b", "-resume", state, "-last_epoch", 1)
    output = capsys.readouterr().out
    assert "after epoch 1/2" in output
    assert "jumps" not in output


def test_a_state_with_nothing_left_to_train_replaces_no_other(tmp_path, shapes_config, capsys):
    tiny_runs.run(Classification, shapes_config, "-opts", "CHECKPOINT_EVERY", 1, "KEEP_CHECKPOINTS", 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    resume = ("-resume", tmp_path / "out" / "epoch_0001.pdparams")
    tiny_runs.run(Classification, shapes_config, *resume, "-opts", "TRAIN.EPOCHS", 1)
    assert "the run is already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"-last_epoch is 2, but .*epoch_0001.* has been trained for 1 epochs"):
        tiny_runs.run(Classification, shapes_config, *resume, "-last_epoch", 2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == before


def test_a_run_that_is_killed_in_its_last_validation_repeats_it(tmp_path, shapes_config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            f"{Classification.__module__}.ClassificationEvaluator.evaluate", Mock(side_effect=KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            tiny_runs.run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", 1)
    assert not (tmp_path / "out" / "best.pdparams").exists()
    tiny_runs.run(Classification, shapes_config, "-resume", "auto", "-opts", "TRAIN.EPOCHS", 1)
    assert (tmp_path / "out" / "best.pdparams").exists()
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records if record["kind"] == "val"] == [1]


@pytest.mark.parametrize("flags", [("epoch_0001.pdparams",), ("latest.pdparams", "-last_epoch", 1)])
def test_a_step_back_that_is_killed_before_its_first_save_is_no_lost_log(
    tmp_path, shapes_config, capsys, monkeypatch, flags
):
    """The log drops the later records at once, so the state must not stay that of the later epoch."""
    state, *others = flags
    tiny_runs.run(Classification, shapes_config, "-opts", "CHECKPOINT_EVERY", 1, "KEEP_CHECKPOINTS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(run.Trainer, "run", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tiny_runs.run(Classification, shapes_config, "-resume", tmp_path / "out" / state, *others)
    assert load_file(tmp_path / "out" / "latest.pdparams")["step"] == 6
    capsys.readouterr()
    tiny_runs.run(Classification, shapes_config, "-resume", "auto")
    output = capsys.readouterr().out
    assert "after epoch 1/2" in output
    assert "jumps" not in output
    records = map(json.loads, (tmp_path / "out" / "log.jsonl").read_text().splitlines())
    assert [record["epoch"] for record in records if record["kind"] == "val"] == [1, 2]


def test_a_run_that_goes_on_elsewhere_or_without_its_best_weights_has_some_in_the_end(tmp_path, shapes_config, capsys):
    tiny_runs.run(Classification, shapes_config)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    state = load_file(out / "latest.pdparams")
    figures = {**state["best"], "top1": 101.0}  # nothing can be better
    save_file({**state, "best": figures}, out / "latest.pdparams")
    save_file({**load_file(out / "best.pdparams"), "figures": figures}, out / "best.pdparams")
    best = (out / "best.pdparams").read_bytes()
    flags = ("-resume", out / "latest.pdparams", "-opts", "TRAIN.COOLDOWN", 1)
    tiny_runs.run(Classification, shapes_config, "-output", elsewhere, *flags)
    assert (elsewhere / "best.pdparams").read_bytes() == best
    later = {**load_file(out / "best.pdparams"), "figures": {**figures, "at": "a later epoch"}}
    save_file(later, tmp_path / "later.pdparams")
    (out / "best.pdparams").unlink()
    (out / "best.pdparams").symlink_to("../later.pdparams")
    tiny_runs.run(Classification, shapes_config, "-output", tmp_path / "third", *flags)
    assert load_file(tmp_path / "third" / "best.pdparams")["figures"]["top1"] < 101.0
    (out / "best.pdparams").unlink()
    capsys.readouterr()
    tiny_runs.run(Classification, shapes_config, *flags)
    assert "best.pdparams is missing, so the best result is that of the coming validations" in capsys.readouterr().out
    assert (out / "best.pdparams").exists()


@pytest.mark.parametrize(
    ("name", "fixture", "options", "told"),
    [
        ("image_classification", "shapes_config", ("TRAIN.END_LR", "1.0"), "END_LR is 1, above TRAIN.BASE_LR (-lr), "),
        (
            "semantic_segmentation",
            "squares_config",
            ("lr_scheduler.end_lr", "1.0"),
            "end_lr is 1, above learning_rate ",
        ),
    ],
)
def test_a_rate_that_would_rise_to_the_end_is_refused(request, name, fixture, options, told):
    with pytest.raises(UserError, match=re.escape(told)):
        tiny_runs.run(TASKS[name].task(), request.getfixturevalue(fixture), "-opts", *options)


def test_a_cooldown_at_the_highest_rate_is_refused_and_not_advised(tmp_path, shapes_config, capsys):
    with pytest.raises(UserError, match=r"TRAIN.COOLDOWN would continue at the highest rate, .* raise TRAIN.EPOCHS"):
        tiny_runs.run(Classification, shapes_config, "-opts", "TRAIN.COOLDOWN", 1, "TRAIN.WARMUP_EPOCHS", 2)
    assert not (tmp_path / "out" / "latest.pdparams").exists()
    tiny_runs.run(Classification, shapes_config, "-epochs", 1, "-opts", "TRAIN.WARMUP_EPOCHS", 2)
    assert re.search(r"^resume: .* -opts TRAIN.EPOCHS 2$", capsys.readouterr().out, re.MULTILINE)


def test_a_resumed_run_refuses_weights_that_it_would_ignore(tmp_path, shapes_config):
    tiny_runs.run(Classification, shapes_config)
    for source in ("auto", tmp_path / "out" / "latest.pdparams"):
        with pytest.raises(UserError, match=r"MODEL.PRETRAINED mnist5k would be ignored: RESUME .*latest"):
            tiny_runs.run(Classification, shapes_config, "-resume", source, "-pretrained", "mnist5k")


@pytest.mark.parametrize(("pretrained", "warned"), [("", True), ("weights.pdparams", False)])
def test_freezing_random_weights_is_warned_of(pretrained, warned):
    config = load(CONFIG, "-pretrained", pretrained, "-opts", "TRAIN.FREEZE", "[stem]")
    assert run.freezes_random_weights(config) == warned


def test_overwriting_spares_the_weights_that_the_section_of_a_toolkit_names(tmp_path, squares_config):
    weights = tmp_path / "out" / "best.pdparams"
    save_file({}, weights)
    (tmp_path / "out" / "log.jsonl").touch()
    with pytest.raises(UserError, match=r"-overwrite would delete .*best\.pdparams, which the new run starts from"):
        tiny_runs.run(TASKS["semantic_segmentation"].task(), squares_config, "-overwrite", "-opts",
                      "model.backbone.pretrained", weights)  # fmt: skip
    assert weights.exists()


def test_a_run_is_not_replaced_by_one_whose_first_batch_cannot_be_read(tmp_path, shapes, shapes_config):
    tiny_runs.run(Classification, shapes_config)
    for path in (shapes / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read image"):
        tiny_runs.run(Classification, shapes_config, "-overwrite")
    assert (tmp_path / "out" / "best.pdparams").exists()
