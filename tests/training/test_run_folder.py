"""The folder of a run: one writer, no files of others, the newest state."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from common.checkpoints import safe_pickle
from common.checkpoints.file_format import load_file, save_file
from common.errors import UserError
from common.training import run_folder
from common.training.log import TrainingLog
from common.training.run_folder import RunFolder
from common.training.task import EvaluationResult
from common.training.trainer import Trainer
from image_classification.classification import Classification, ClassificationEvaluator
from tests.helpers.programs import fails, start_program
from tests.helpers.tiny_runs import kill, run, wait_for_steps

LAUNCHER = "image_classification/main_multi_gpu.py"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def claim(folder: Path, resume: object = "", overwrite: bool = False, keep: int = 3) -> RunFolder:
    claimed = RunFolder(folder, keep)
    claimed.claim(str(resume), overwrite, pytest.fail)
    return claimed


def state(step: int) -> dict:
    return {"step": step, "optimizer": {}, "model": {"w": np.full(3, step)}}


# ---- one writer


def hold(folder: Path, claimed) -> None:
    folder = claim(folder)
    claimed.set()
    time.sleep(60)


def test_a_second_process_is_refused_with_the_name_of_the_first_until_that_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    claimed = context.Event()
    first = context.Process(target=hold, args=(tmp_path, claimed), daemon=True)
    first.start()
    assert claimed.wait(30)
    with pytest.raises(UserError, match=rf"another run writes into .* process {first.pid}: .*give another -output"):
        claim(tmp_path)
    first.kill()
    first.join()
    claim(tmp_path)


@pytest.mark.slow
def test_a_second_run_into_a_folder_ends_and_the_first_goes_on(tmp_path, shapes_config):
    first = start_program(LAUNCHER, "-cfg", shapes_config, "-opts", "TRAIN.EPOCHS", "500", cwd=tmp_path)
    try:
        wait_for_steps(first, tmp_path / "out", 1)
        for flags in ((), ("-resume", "auto"), ("-overwrite",)):
            message = fails(LAUNCHER, "-cfg", shapes_config, *flags, cwd=tmp_path)
            assert f"process {first.pid}: " in message
            assert LAUNCHER in message
        wait_for_steps(first, tmp_path / "out", 2)
    finally:
        kill(first)


def test_a_file_system_without_locks_is_named_once(tmp_path, monkeypatch):
    def lockf(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    warnings = []
    RunFolder(tmp_path, 1).claim("", overwrite=False, warn=warnings.append)
    (warning,) = warnings
    assert "cannot be locked" in warning


# ---- whose files

RUN = ("latest.pdparams", "best.pdparams", "epoch_0003.pdparams", "step_12345.pdparams", "config.yaml", "log.jsonl",
       "val_bbox.json", "val_ema_segm.json", "visualdl/vdlrecords.1700000000.log", "pictures/train_samples.png",
       "pictures/val_ema_images.png", "pictures/val_image_12.png")  # fmt: skip
HARMLESS = ("data_check.json", "visualdl/vdlrecords.1700000000.log", "eval_bbox.json", "log/workerlog.0",
            "log/envlog.0", "log/backup_env.0.json", "log/default.abcdef.log", ".DS_Store")  # fmt: skip


@pytest.mark.parametrize("present", [(), HARMLESS])
@pytest.mark.parametrize("resume", ["", "auto", "elsewhere/latest.pdparams"])
def test_a_new_run_may_start_in_a_folder_without_files_that_it_could_replace(tmp_path, present, resume):
    write(tmp_path, *present)
    claim(tmp_path, resume).begin("config")
    assert files(tmp_path) == {*present, "config.yaml", "log.jsonl"}
    claim(tmp_path, "auto").begin("config")  # it may be killed before it writes anything else


@pytest.mark.parametrize("sign", ["latest.pdparams", "epoch_0003.pdparams", "log.jsonl"])
def test_a_run_is_continued_or_replaced_only_on_demand(tmp_path, sign):
    folder = tmp_path / "out"
    write(folder, sign, "notes.txt")
    for resume in ("", tmp_path / "other" / "latest.pdparams"):
        with pytest.raises(UserError, match=r"holds a run; .*-resume auto, .*-overwrite, .*-output"):
            claim(folder, resume)
        claim(folder, resume, overwrite=True)
    for resume in ("auto", folder / "latest"):
        claim(folder, resume).begin("config")
        with pytest.raises(UserError, match="-overwrite would delete"):
            claim(folder, resume, overwrite=True)
    assert files(folder) == {sign, "notes.txt", "config.yaml", "log.jsonl"}


def test_a_run_that_ended_before_its_first_line_may_be_started_again(tmp_path):
    claim(tmp_path).begin("config")
    claim(tmp_path).begin("another")
    assert (tmp_path / "config.yaml").read_text() == "another"
    (tmp_path / "best.pdparams").touch()
    with pytest.raises(UserError, match="holds a run"):
        claim(tmp_path)


@pytest.mark.parametrize("other", ["config.yaml", "best.pdparams", "val_bbox.json", "photo.png", "log/notes.txt"])
@pytest.mark.parametrize("flags", [("", False), ("auto", False), ("", True)])
def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(tmp_path, other, flags):
    write(tmp_path, other, *HARMLESS)
    with pytest.raises(UserError, match=rf"other files .*\({other.partition('/')[0]}\); give another -output"):
        claim(tmp_path, *flags)
    assert {path.name for path in tmp_path.iterdir()} == {Path(name).parts[0] for name in (other, *HARMLESS)}


def test_overwriting_deletes_all_files_of_the_old_run_and_no_others(tmp_path):
    others = ("notes.txt", "best_of_may.pdparams", "epoch_final.pdparams", "visualdl/readme", "data_check.json",
              ".notes.txt.5.tmp", ".hidden.tmp", "export/config.yaml", "val_notes.json", ".val_list.json.7.tmp",
              "visualdl/vdlrecords.mine", "visualdl/vdlrecords.0123.log", "epoch_00003.pdparams",
              "pictures/train_mine.png", "pictures/val_image_\u0667.png",
              "epoch_\u0660\u0660\u0660\u0667.pdparams")  # fmt: skip
    temporary = (".latest.pdparams.17.tmp", "pictures/.val_images.png.9.tmp", ".data_check.json.5.tmp")
    write(tmp_path, *RUN, *others, *temporary)
    folder = claim(tmp_path, overwrite=True)
    assert files(tmp_path) == {*RUN, *others, *temporary}  # nothing yet: a check may still end the run
    folder.begin("new")
    assert files(tmp_path) == {*others, "config.yaml", "log.jsonl"}
    assert (tmp_path / "config.yaml").read_text() == "new"


def test_what_a_linked_subfolder_contains_is_of_others(tmp_path):
    for name, content in (("visualdl", "vdlrecords.1700000000.log"), ("pictures", "val_images.png")):
        write(tmp_path / "other", content)
        write(tmp_path / "run", "latest.pdparams")
        (tmp_path / "run" / name).symlink_to(tmp_path / "other")
    claim(tmp_path / "run", overwrite=True).begin("new")
    log = TrainingLog()
    log.open(tmp_path / "run")
    log.close()
    assert {"vdlrecords.1700000000.log", "val_images.png"} <= files(tmp_path / "other")
    assert "latest.pdparams" not in files(tmp_path / "run")


# ---- the states


def test_the_folder_keeps_latest_best_and_the_last_numbered_states(tmp_path):
    folder = claim(tmp_path, keep=2)
    folder.begin("config")
    for epoch in (1, 2, 9, 10, 11):
        folder.save_best(state(epoch))
        folder.save_last(state(epoch))
        folder.save_numbered(state(epoch), epoch)
    names = ("best", "epoch_0010", "epoch_0011", "last", "latest")
    assert files(tmp_path) == {"config.yaml", "log.jsonl", *(f"{name}.pdparams" for name in names)}
    assert [load_file(tmp_path / name)["step"] for name in names] == [11, 10, 11, 11, 11]
    assert folder.latest.samefile(tmp_path / "epoch_0011.pdparams")  # not twice on the disk
    for epoch in (4, 5, 6):  # of a run that went back
        folder.save_numbered(state(epoch), epoch)
    assert files(tmp_path) >= {"epoch_0005.pdparams", "epoch_0006.pdparams", "epoch_0010.pdparams"}
    assert "epoch_0004.pdparams" not in files(tmp_path)


def test_the_folder_may_keep_no_numbered_states_and_only_rank_0_writes(tmp_path, monkeypatch):
    without = claim(tmp_path / "without", keep=0)
    without.begin("config")
    without.save_numbered(state(1), 1)
    assert files(tmp_path / "without") == {"config.yaml", "latest.pdparams", "log.jsonl"}
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    folder = claim(tmp_path / "none")
    folder.begin("config")
    folder.save_best({})
    folder.save_numbered({}, 1)
    folder.require_intact()
    assert not (tmp_path / "none").exists()


def test_a_run_that_is_killed_between_the_numbered_and_the_latest_state_loses_neither(tmp_path, monkeypatch):
    folder = claim(tmp_path, keep=1)
    folder.begin("config")
    folder.save_numbered(state(1), 1)
    monkeypatch.setattr(run_folder, "copy_file", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        folder.save_numbered(state(2), 2)
    assert [load_file(tmp_path / name)["step"] for name in ("epoch_0002", "latest")] == [2, 1]
    assert "epoch_0001.pdparams" not in files(tmp_path)  # if this was the last step, nothing would delete it later


def test_the_newest_state_has_the_largest_number_whatever_the_clock_said(tmp_path):
    for age, number in enumerate((10, 9999, 10000)):
        save_file(state(number), tmp_path / f"epoch_{number:04d}.pdparams")
        os.utime(tmp_path / f"epoch_{number:04d}.pdparams", (10**9 - age, 10**9 - age))
    path, found = claim(tmp_path, "auto").find_latest(pytest.fail)
    assert (path.name, found["step"]) == ("epoch_10000.pdparams", 10000)


@pytest.mark.parametrize("content", [b"", b"no pickle", None], ids=["empty", "damaged", "weights"])
def test_damage_and_weights_called_latest_fall_back_to_an_older_state_with_a_warning(tmp_path, content):
    save_file(state(3), tmp_path / "epoch_0003.pdparams")
    save_file({"w": np.ones(3)}, tmp_path / "latest.pdparams")
    if content is not None:
        (tmp_path / "latest.pdparams").write_bytes(content)
    warnings = []
    path, _ = claim(tmp_path, "auto").find_latest(warnings.append)
    assert path.name == "epoch_0003.pdparams"
    assert len(warnings) == 1
    assert re.match("warning: .*latest.pdparams", warnings[0])


@pytest.mark.parametrize(
    "problem", [MemoryError(), OSError(errno.EIO, "Input/output error"), PermissionError(13, "no")]
)
def test_a_state_that_cannot_be_read_for_another_reason_is_an_error(tmp_path, monkeypatch, problem):
    save_file(state(3), tmp_path / "epoch_0003.pdparams")
    save_file(state(4), tmp_path / "latest.pdparams")

    def fail(*arguments):
        raise problem

    monkeypatch.setattr(safe_pickle, "_make_array", fail)
    with pytest.raises(UserError, match=r"cannot read .*latest\.pdparams: .*; nothing older is used instead"):
        claim(tmp_path, "auto").find_latest(pytest.fail)


def test_a_run_whose_states_were_taken_away_does_not_lose_its_best_weights(tmp_path):
    write(tmp_path, "log.jsonl")
    assert claim(tmp_path, "auto").find_latest(pytest.fail) is None
    write(tmp_path, "best.pdparams")
    with pytest.raises(UserError, match="no training state"):
        claim(tmp_path, "auto").find_latest(pytest.fail)


# ---- a folder that changes while a run writes into it


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    claim(folder).begin("another run")


def empty(folder: Path) -> None:
    for name in files(folder):  # rm FOLDER/* leaves hidden files
        (folder / name).unlink()


def lose_the_log(folder: Path) -> None:
    (folder / "log.jsonl").unlink()
    (folder / "latest.pdparams").unlink()


@pytest.mark.parametrize("change", [delete, replace, empty, lose_the_log])
def test_a_folder_that_was_deleted_replaced_or_emptied_gets_no_state(tmp_path, change):
    folder = claim(tmp_path / "out")
    folder.begin("config")
    folder.save_latest(state(1))
    change(folder.folder)
    for save in (folder.save_latest, folder.save_best):
        with pytest.raises(UserError, match="was deleted or replaced while training"):
            save(state(2))
    assert not folder.latest.exists()


def test_a_run_whose_folder_is_deleted_after_the_last_save_does_not_succeed(tmp_path, shapes_config, monkeypatch):
    train = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda trainer: (train(trainer), delete(trainer.folder.folder))[0])
    with pytest.raises(UserError, match="was deleted or replaced while training"):
        run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", "1")


# ---- whole runs


def test_an_overwritten_run_leaves_nothing_of_the_old_one(tmp_path, shapes_config, monkeypatch):
    run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", "2", "CHECKPOINT_EVERY", "1")
    with pytest.raises(UserError, match="holds a run"):
        run(Classification, shapes_config)
    best, registry = tmp_path / "out" / "best.pdparams", tmp_path / "registry.json"
    registry.write_text(json.dumps([{"model": "pale_nano", "tag": "mine", "location": str(best), "metric": "top1",
                                     "value": 50, "tested_on": "shapes"}]))  # fmt: skip
    monkeypatch.setenv("PALE_WEIGHTS", str(registry))
    for source in (best.with_suffix(""), "mine"):
        with pytest.raises(UserError, match=r"-overwrite would delete .*best\.pdparams, which the new run starts from"):
            run(Classification, shapes_config, "-overwrite", "-pretrained", source)
    assert {"best.pdparams", "epoch_0002.pdparams"} <= files(tmp_path / "out")
    run(Classification, shapes_config, "-overwrite", "-opts", "TRAIN.EPOCHS", "1")
    assert "epoch_0002.pdparams" not in files(tmp_path / "out")
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert max(json.loads(line)["epoch"] for line in lines) == 1
    assert "OVERWRITE" not in (tmp_path / "out" / "config.yaml").read_text()


def test_of_equal_validations_the_lower_loss_then_the_later_one_is_the_best(tmp_path, shapes_config, monkeypatch):
    losses = iter((0.5, 0.5, 0.9, 0.4))  # of the weights and their average, in two epochs
    monkeypatch.setattr(
        ClassificationEvaluator, "evaluate", lambda *_: EvaluationResult({"top1": 50.0, "loss": next(losses)})
    )
    run(Classification, shapes_config, "-opts", "TRAIN.EMA_DECAY", "0.9", "TRAIN.EPOCHS", "2")
    best, last = (load_file(tmp_path / "out" / name)["figures"] for name in ("best", "last"))
    assert best == last == {"top1": 50.0, "loss": 0.4, "at": "epoch 2/2", "weights": "model_ema"}


def test_a_link_in_place_of_the_lock_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"\.lock is a link; remove it"):
        claim(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "run" / ".lock").is_symlink()


def test_a_lock_of_another_program_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / ".lock").write_text("precious")
    with pytest.raises(UserError, match=r"\.lock is a file of another program; give another -output"):
        claim(tmp_path)
    assert (tmp_path / ".lock").read_text() == "precious"
