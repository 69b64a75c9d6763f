"""Steps that are not finite or have no gradient, and the end of a run: at its last step, or early."""

from __future__ import annotations

import re
import shutil
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.file_format import load_file, save_file
from common.errors import UserError
from common.training.sampler import ShardedTrainSampler
from common.training.task import EvaluationResult
from image_classification.classification import Classification, ClassificationEvaluator
from tests.helpers.programs import run_program
from tests.helpers.tiny_runs import assert_same_training, make_trainer, run

STOPPED = "stopped early after epoch {}: {} validations in a row had no better top-1"


@pytest.fixture
def scores(monkeypatch):
    """The top-1 of each validation, by epoch of three steps: better until the second, then equal or not finite."""
    found = {1: 10.0, 2: 50.0, 3: 50.0, 4: float("nan"), 5: 40.0}

    def evaluate(self, model, kind, step, last):
        return EvaluationResult({"top1": found[step // 3], "loss": 1.0})

    monkeypatch.setattr(ClassificationEvaluator, "evaluate", evaluate)


def test_a_run_stops_early_and_ends_like_a_finished_one(tmp_path, shapes_config, scores, capsys):
    options = ("-batch_size", 12, "-epochs", 5, "-opts", "TRAIN.EARLY_STOP")
    run(Classification, shapes_config, *options, 2)
    output = capsys.readouterr().out
    assert STOPPED.format("4/5", 2) in output
    assert "best: top-1 50.00 after epoch 3/5" in output  # of equal results the later one is kept, but it is not better
    assert re.search(r"^resume: .*latest\.pdparams -opts TRAIN\.EARLY_STOP 0$", output, re.MULTILINE)

    run(Classification, shapes_config, "-resume", "auto", *options, 2)
    output = capsys.readouterr().out
    assert STOPPED.format("4/5", 2) in output
    assert "epoch 5/5" not in output
    run(Classification, shapes_config, "-resume", "auto", *options, 0)
    output = capsys.readouterr().out
    assert "epoch 5/5  val" in output
    assert "stopped early" not in output
    assert "differs" not in output


@pytest.mark.slow
def test_the_count_is_resumed_and_begins_anew_in_a_state_without_it(tmp_path, shapes_config, scores, capsys):
    keep = ("CHECKPOINT_EVERY", 1, "KEEP_CHECKPOINTS", 9)
    options = ("-batch_size", 12, "-epochs", 5, "-opts", *keep, "TRAIN.EARLY_STOP")
    run(Classification, shapes_config, *options, 2)
    state = load_file(tmp_path / "out" / "epoch_0003.pdparams")
    assert state["validations_since_best"] == 1
    shutil.copy(tmp_path / "out" / "best.pdparams", tmp_path)  # a run without it would begin with no best result
    save_file(state, tmp_path / "new.pdparams")
    del state["validations_since_best"]  # as in version 0.1.0
    save_file(state, tmp_path / "old.pdparams")
    for name, end in (("new", "4/5"), ("old", "5/5")):
        run(Classification, shapes_config, "-output", tmp_path / name, "-resume", tmp_path / f"{name}.pdparams",
            *options, 2)  # fmt: skip
        assert f"epoch {end}  val" in capsys.readouterr().out
    assert_same_training(tmp_path / "out", tmp_path / "new")


@pytest.mark.slow
def test_two_ranks_stop_early_together(tmp_path, shapes_config):
    flags = ("-cfg", shapes_config, "-lr", 0.05, "-epochs", 40, "-batch_size", 3, "-opts", "TRAIN.EARLY_STOP", 2)
    result = run_program("image_classification/main_multi_gpu.py", *flags, ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert re.search(r"stopped early after epoch \d+/40: 2 validations", result.stdout), result.stdout
    assert "\nevaluate: " in result.stdout


# ---- steps


class TwoLayers(nn.Layer):
    def __init__(self):
        super().__init__()
        self.attention_settings = {}
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)


def make_stepper(tmp_path, *options):
    """A trainer of :class:`TwoLayers`, and a function that trains a step."""
    sampler = ShardedTrainSampler(8, 2, 0)
    trainer = make_trainer(TwoLayers(), None, [], sampler, tmp_path / "out", "TRAIN.EMA_DECAY", 0.9, *options)
    trainer._stop_request = SimpleNamespace(signal_number=0)

    def step(layers, loss_factor=1.0, gradient_factor=1.0):
        loss = nn.Sequential(*layers)(paddle.ones([1, 2])).sum() * loss_factor
        loss.backward()
        for layer in layers:
            layer.weight.grad = layer.weight.grad * gradient_factor
        trainer._optimizer_step([loss.detach()], None)

    return trainer, step


def arrays_of(trainer):
    saved = trainer.state.as_dict()
    parts = ("model", "model_ema", "optimizer")
    return {(part, name): array.tobytes() for part in parts for name, array in saved[part].items()}


def test_a_skipped_step_leaves_no_trace(tmp_path):
    trainer, step = make_stepper(tmp_path, "TRAIN.SKIP_NONFINITE", 1)
    layers = (trainer.model.first, trainer.model.second)
    step(layers)
    before = arrays_of(trainer)
    step(layers, loss_factor=float("nan"))
    assert arrays_of(trainer) == before
    with pytest.raises(UserError, match="the gradient is not finite at step 1"):
        step(layers, gradient_factor=float("inf"))
    assert arrays_of(trainer) == before


@pytest.mark.parametrize("next_action", ["step", "save"])
def test_a_step_that_may_not_be_skipped_is_found_not_finite_before_what_follows_it(tmp_path, next_action):
    """Its flags are read late, so that a GPU does not wait for the host; its weights are neither changed nor saved."""
    trainer, step = make_stepper(tmp_path)
    trainer._reads_late = True
    layers = (trainer.model.first, trainer.model.second)
    step(layers)
    step(layers, loss_factor=float("nan"))
    before = arrays_of(trainer)
    trainer._stop_signal = 15
    with pytest.raises(UserError, match=r"the loss on rank 0 is not finite at step 1; .*Last good checkpoint: none"):
        step(layers) if next_action == "step" else trainer._save_latest_if_due()
    assert arrays_of(trainer) == before
    assert not list(tmp_path.rglob("*.pdparams"))


class OverflowingScaler(paddle.amp.GradScaler):
    """Counts as enabled, which Paddle's is only on GPUs, and skips every step because of an overflow."""

    def is_enable(self):
        return True

    def step(self, optimizer):
        pass


def test_thirty_steps_in_a_row_may_overflow(tmp_path):
    trainer, step = make_stepper(tmp_path)
    layers = (trainer.model.first, trainer.model.second)
    step(layers)
    before = arrays_of(trainer)
    trainer.state.scaler = OverflowingScaler(enable=False)
    for _ in range(30):
        step(layers, gradient_factor=float("inf"))
    assert arrays_of(trainer) == before
    with pytest.raises(UserError, match="the gradient is not finite"):
        step(layers, gradient_factor=float("inf"))


def test_a_parameter_without_a_gradient_stands_still(tmp_path):
    """Otherwise a resumed run would differ: in its first step the parameter has never had a gradient."""
    trainer, step = make_stepper(tmp_path)
    first, second = trainer.model.first, trainer.model.second
    step((first, second))
    before = [layer.weight.numpy().copy() for layer in (first, second)]
    step((first,))
    assert not np.array_equal(first.weight.numpy(), before[0])
    np.testing.assert_array_equal(second.weight.numpy(), before[1])
