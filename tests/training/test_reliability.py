"""Training that is killed, told to stop, or meets values that are not finite."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest

from common.checkpoints.file_format import load_file
from common.errors import UserError
from common.runtime.signals import StopRequest, signals_wait
from common.training.task import EvaluationResult
from image_classification.classification import Classification, ClassificationEvaluator
from tests.helpers.programs import ROOT, run_program, start_program
from tests.helpers.tiny_configs import write_shapes, write_shapes_config
from tests.helpers.tiny_runs import assert_same_training, kill, run, wait_for_steps

LAUNCHER = "image_classification/main_multi_gpu.py"
# Everything random at once, accumulation, and an interval that leaves unsaved steps behind.
OPTIONS = (
    "-accum_iter", "2", "-batch_size", "3", "-opts", "AUG.MIXUP", "0.8", "AUG.CUTMIX", "1.0", "AUG.ERASING", "0.3",
    "MODEL.DROP_PATH", "0.2", "TRAIN.EMA_DECAY", "0.9", "LOG_INTERVAL", "1", "LATEST_EVERY", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run of four epochs with ``OPTIONS`` that nothing disturbs, by its number of ranks."""

    @functools.cache
    def train(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        write_shapes(folder)
        flags = ("-cfg", write_shapes_config(folder), *OPTIONS, "TRAIN.EPOCHS", "4")
        finished = run_program(LAUNCHER, *flags, ranks=ranks, cwd=folder)
        assert finished.returncode == 0, finished.stdout
        return folder / "out"

    return train


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_killed_run_resumes_to_identical_weights(tmp_path, shapes_config, undisturbed, ranks):
    flags = ("-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "4")
    process = start_program(LAUNCHER, "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "b", 7 if ranks == 0 else 4)  # in the middle of the second epoch
    kill(process)
    resumed = run_program(LAUNCHER, "-resume", "auto", "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    assert re.search(r"resuming .*latest\.pdparams after epoch \d/\d+, step [1-9]", resumed.stdout), resumed.stdout
    assert "differs from" not in resumed.stdout
    assert_same_training(undisturbed(ranks), tmp_path / "b")
    if ranks == 2:
        resumed = run_program(LAUNCHER, "-resume", "auto", "-output", tmp_path / "b", *flags, cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stdout
        assert "differs from the interrupted run: ranks was 2, is 1" in resumed.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "number"), [(0, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_saves_and_the_run_resumes_exactly(tmp_path, shapes_config, undisturbed, ranks, number):
    # Terminals signal the readers, too; these must leave stopping to their rank.
    workers = "2" if ranks == 0 else "0"
    flags = ("-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "4", "LATEST_EVERY", "0", "DATA.NUM_WORKERS", workers)
    process = start_program(LAUNCHER, "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "b", 2)
    if ranks == 0:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if ranks:  # a launcher that is told to stop no longer shows the ranks' output
        output = (tmp_path / "log" / "workerlog.0").read_text()
    assert "saved step" in output, output
    assert re.search(r"^resume: .* -resume .*latest\.pdparams", output, re.MULTILINE)
    assert "Traceback" not in output
    assert process.returncode != 0 if ranks else process.returncode == 128 + number
    resumed = run_program(LAUNCHER, "-resume", "auto", "-output", tmp_path / "b", *flags, ranks=ranks, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert_same_training(undisturbed(ranks), tmp_path / "b")


@pytest.mark.slow
def test_a_second_signal_exits_at_once():
    program = (
        "import os, signal, time\n"
        "from common.runtime.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('alive', stop.signal_number, flush=True); time.sleep(5.1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "alive 15" in result.stdout
    assert result.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["stop_with_launcher", "bind_to_parent"])
def test_a_rank_or_reader_ends_whose_parent_died_before_its_first_line(name):
    program = (
        "import multiprocessing, os, time\n"
        f"from common.runtime.signals import {name}\n"
        "def serve(parent):\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        f"    {name}()\n"
        "    print('alive', flush=True)\n"
        "multiprocessing.get_context('fork').Process(target=serve, args=(os.getpid(),)).start()\n"
        "os._exit(0)\n"
    )
    environment = os.environ | {"PADDLE_RANK_IN_NODE": "0"}
    command = [sys.executable, "-c", program]
    assert not subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60).stdout


def test_a_signal_waits_for_what_it_must_not_interrupt():
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    steps = []

    def interrupted() -> None:
        with signals_wait():
            signal.raise_signal(signal.SIGTERM)
            steps.append("goes on")

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert signal.getsignal(signal.SIGTERM) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert steps == ["goes on"]


def test_nohup_is_respected():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.signal_number
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_ranks_save_and_end_when_their_launcher_dies(tmp_path, shapes_config, number):
    flags = ("-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "500", "VALIDATE_EVERY", "500", "LATEST_EVERY", "0")
    launcher = start_program(LAUNCHER, *flags, ranks=2, cwd=tmp_path)
    wait_for_steps(launcher, tmp_path / "out", 2)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(number)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    for rank in alive:
        rank.kill()
    assert not alive
    launcher.communicate()
    assert "saved step" in (tmp_path / "log" / "workerlog.0").read_text()
    assert load_file(tmp_path / "out" / "latest.pdparams")["step"] >= 2


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_ends_and_says_so(tmp_path, shapes_config):
    process = start_program(LAUNCHER, "-cfg", shapes_config, *OPTIONS, cwd=tmp_path)
    while not process.stdout.readline().startswith("["):
        assert process.poll() is None
    process.stdout.close()
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE
    state = load_file(tmp_path / "out" / "latest.pdparams")
    assert state["step"] == 12
    assert sum('"kind": "val"' in line for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 2


def test_resume_auto_takes_the_newest_intact_state_or_starts_a_new_run(tmp_path, shapes_config, capsys):
    options = ("-resume", "auto", "-opts", "CHECKPOINT_EVERY", "1", "KEEP_CHECKPOINTS", "2", "TRAIN.EPOCHS")
    run(Classification, shapes_config, *options, 2)
    assert "no training state in" in capsys.readouterr().out
    latest = tmp_path / "out" / "latest.pdparams"
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    run(Classification, shapes_config, *options, 3)
    assert "epoch_0001.pdparams after epoch 1/3" in capsys.readouterr().out
    for state in (tmp_path / "out").glob("*.pdparams"):
        state.write_bytes(content)
    with pytest.raises(UserError, match="no intact training state"):
        run(Classification, shapes_config, *options, 3)


def test_a_record_is_kept_once_through_a_failing_validation_and_another_batch_size(
    tmp_path, shapes_config, monkeypatch
):
    options = ("-resume", "auto", "-opts", "TRAIN.EMA_DECAY", "0.9", "LOG_INTERVAL", "1", "TRAIN.EPOCHS", "2")
    evaluate = ClassificationEvaluator.evaluate

    def fail(evaluator, model, kind="val", step=0, last=True):
        if kind == "val_ema" and step == 12:
            raise KeyboardInterrupt
        return evaluate(evaluator, model, kind, step, last)

    monkeypatch.setattr(ClassificationEvaluator, "evaluate", fail)
    with pytest.raises(KeyboardInterrupt):
        run(Classification, shapes_config, *options)
    monkeypatch.setattr(ClassificationEvaluator, "evaluate", evaluate)
    run(Classification, shapes_config, *options)
    run(Classification, shapes_config, "-batch_size", "2", *options[:-1], "3")
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    found = [(record["kind"], record["epoch"]) for record in records]
    epochs = [*(step / 6 for step in range(1, 13)), *(step / 18 for step in range(37, 55))]
    expected = [("train", epoch) for epoch in epochs]
    expected += [(kind, epoch) for kind in ("val", "val_ema") for epoch in (1, 2, 3)]
    assert sorted(found) == sorted(expected)


def test_a_validation_that_is_repeated_saves_the_learning_rate_of_the_last_step(tmp_path, shapes_config, monkeypatch):
    run(Classification, shapes_config, "-output", tmp_path / "a")
    with monkeypatch.context() as patch:
        evaluate = Mock(side_effect=(EvaluationResult({"top1": 1.0}), KeyboardInterrupt))
        patch.setattr(ClassificationEvaluator, "evaluate", evaluate)
        with pytest.raises(KeyboardInterrupt):
            run(Classification, shapes_config, "-output", tmp_path / "b")
    run(Classification, shapes_config, "-output", tmp_path / "b", "-resume", "auto")
    a, b = (load_file(tmp_path / folder / "latest.pdparams")["learning_rate"] for folder in ("a", "b"))
    assert a == b > 0


def test_a_state_of_version_0_1_0_resumes(tmp_path, shapes_config, capsys):
    """It calls last_saved_step settled, and its configuration has the old names of keys."""
    import paddle

    options = ("-opts", "CHECKPOINT_EVERY", 1, "KEEP_CHECKPOINTS", 2)
    run(Classification, shapes_config, "-output", tmp_path / "a", *options)
    state = load_file(tmp_path / "a" / "epoch_0001.pdparams")
    state["settled"] = state.pop("last_saved_step")
    state["config"] = state["config"].replace("VALIDATE_EVERY", "VALIDATE_EPOCHS")
    paddle.save(state, str(tmp_path / "old.pdparams"))
    capsys.readouterr()
    run(Classification, shapes_config, "-output", tmp_path / "b", "-resume", tmp_path / "old.pdparams")
    output = capsys.readouterr().out
    assert "after epoch 1/2" in output
    assert "differs from" not in output
    assert_same_training(tmp_path / "a", tmp_path / "b")


# ---- values that are not finite


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(tmp_path, shapes_config):
    run(Classification, shapes_config, "-opts", "TRAIN.EPOCHS", "1")
    with pytest.raises(UserError, match=r"the (loss on rank 0|gradient) is not finite at step [7-9]; .*latest\.pdp"):
        run(Classification, shapes_config, "-resume", "auto", "-opts", "TRAIN.BASE_LR", "1e30", "TRAIN.EPOCHS", "3")
    kept = load_file(tmp_path / "out" / "latest.pdparams")
    assert all(np.isfinite(array).all() for array in kept["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [0, 1])
def test_the_rank_whose_loss_is_not_finite_is_named_and_all_stop_together(tmp_path, allowed):
    result = run_program("tests/helpers/nonfinite_rank.py", allowed, ranks=2, cwd=tmp_path)
    if allowed:
        assert result.returncode == 0, result.stdout
        assert "the loss on rank 1 is not finite at step 2: step skipped (1 of 1 in a row)" in result.stdout
        assert "rank 0 ends after step 4, weights finite" in result.stdout
    else:
        assert result.returncode == 2, result.stdout
        assert "the loss on rank 1 is not finite at step 2" in result.stdout
        logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
        assert all("stopped after step 1" in log for log in logs), logs


# ---- ranks and machines that are lost


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_within_half_a_minute(tmp_path, shapes_config, victim):
    flags = ("-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "500")
    process = start_program(LAUNCHER, *flags, ranks=2, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "out", 4)
    ranks = {child.environ().get("PADDLE_TRAINER_ID"): child for child in psutil.Process(process.pid).children(True)}
    ranks[str(victim)].kill()
    killed = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    assert f"error: rank {victim} is lost" in (tmp_path / "log" / f"workerlog.{1 - victim}").read_text()


@pytest.mark.slow
def test_suspended_ranks_continue(tmp_path, shapes_config):
    """Ranks that do not run for longer than the kernel waits for a lost machine: all of a job, or one."""
    flags = ("-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "20", "VALIDATE_EVERY", "20")
    folders = [tmp_path / "all", tmp_path / "one"]
    jobs = []
    for folder in folders:
        folder.mkdir()
        jobs.append(start_program(LAUNCHER, *flags, "OUTPUT", folder / "out", ranks=2, cwd=folder))
    for job, folder in zip(jobs, folders, strict=True):
        wait_for_steps(job, folder / "out", 1)
    ranks = [psutil.Process(job.pid).children(recursive=True) for job in jobs]
    suspended = [psutil.Process(jobs[0].pid), *ranks[0], ranks[1][1]]
    for process in suspended:
        process.suspend()
    time.sleep(25)  # Gloo itself waits for 30 s, and then aborts
    for process in suspended:
        process.resume()
    for job in jobs:
        output, _ = job.communicate(timeout=120)
        assert job.returncode == 0, output


def start_machines(folder: Path, *flags: object) -> list[subprocess.Popen]:
    """Two launches of one rank each, which find each other as two machines do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        launch = ("--nnodes", "2", "--master", f"127.0.0.1:{probe.getsockname()[1]}")
    folders = [folder / f"machine{number}" for number in range(2)]
    for each in folders:
        each.mkdir()
    return [start_program(LAUNCHER, *flags, ranks=1, cwd=each, launch=launch) for each in folders]


@pytest.mark.slow
def test_two_machines_give_the_weights_of_one_launch_with_two_ranks(tmp_path, shapes_config):
    flags = ("-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "2")
    assert run_program(LAUNCHER, "-output", tmp_path / "a", *flags, ranks=2, cwd=tmp_path).returncode == 0
    machines = start_machines(tmp_path, "-output", tmp_path / "b", *flags)
    outputs = [machine.communicate(timeout=120)[0] for machine in machines]
    assert sum("2 processes" in output for output in outputs) == 1, outputs
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_when_a_machine_is_lost_the_other_ends(tmp_path, shapes_config):
    machines = start_machines(tmp_path, "-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "500")
    wait_for_steps(machines[0], tmp_path / "out", 4)
    logs = [tmp_path / f"machine{number}" / "log" / "workerlog.0" for number in range(2)]
    main = int("2 processes" in logs[1].read_text())  # the launcher numbers the machines in the order of their arrival
    kill(machines[main])
    try:
        machines[1 - main].communicate(timeout=30)
    finally:
        if machines[1 - main].poll() is None:
            kill(machines[1 - main])
    assert machines[1 - main].returncode != 0
    assert "error: rank 0 is lost: it was killed or its machine is gone" in logs[1 - main].read_text()


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path, shapes_config):
    """The fault run of docs/reliability.md, with its figures (pytest -n0 -s -m slow)."""
    flags = ("-cfg", shapes_config, *OPTIONS, "TRAIN.EPOCHS", "16", "VALIDATE_EVERY", "4", "LATEST_EVERY", "1",
             "CHECKPOINT_EVERY", "1")  # fmt: skip
    began = time.monotonic()
    assert run_program(LAUNCHER, "-output", tmp_path / "a", *flags, cwd=tmp_path).returncode == 0
    undisturbed = time.monotonic() - began
    chance = random.Random(1)
    in_a_write = in_training = 0
    began = time.monotonic()
    for _ in range(20):
        process = start_program(LAUNCHER, "-resume", "auto", "-output", tmp_path / "b", *flags, cwd=tmp_path)
        # Some kills fall into the start and the reading of the state, most into training and its writes.
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0.5, 2.5))
        else:
            wait_for_steps(process, tmp_path / "b", 1)
            time.sleep(chance.uniform(0.0, 0.4))
            in_training += 1
        kill(process)
        in_a_write += bool(list((tmp_path / "b").glob(".*.tmp")))
    last = run_program(LAUNCHER, "-resume", "auto", "-output", tmp_path / "b", *flags, cwd=tmp_path)
    assert last.returncode == 0, last.stdout
    steps = load_file(tmp_path / "b" / "latest.pdparams")["step"]
    print(
        f"\n20 kills, {in_training} of them in training, {in_a_write} while a checkpoint was being written; "
        f"{steps} steps; {time.monotonic() - began:.0f} s, undisturbed {undisturbed:.0f} s; bitwise identical"
    )
    assert in_a_write
    assert_same_training(tmp_path / "a", tmp_path / "b")
