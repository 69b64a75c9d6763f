"""Files with changed values or bytes end in an error that names them, or are read; nothing else happens."""

from __future__ import annotations

import io
import json
import pickle
import random
import resource
import signal
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import Checkpoint, load_weights, numpy_state, read_checkpoint, read_state
from common.errors import UserError
from common.tasks import TASKS
from common.training.sampler import ShardedTrainSampler
from common.training.state import TrainingState
from common.training.trainer import Trainer
from tests.helpers.mutations import ODD_VALUES, PLAIN_VALUES, changed, mutated_bytes, places_in, without
from tests.helpers.tiny_runs import make_trainer

WATCHED = ("exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.remove", "os.rename")


@contextmanager
def refused_or_read(seconds: int = 10):
    """The block raises nothing but ``UserError`` with a short printable message, and does not hang."""

    def give_up(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    finally:
        signal.alarm(0)
    assert message.isprintable()
    assert len(message) < 3000


# ---- training states


class Model(nn.Layer):
    """A convolution, a BatchNorm and a head, with the attention settings of a backbone."""

    def __init__(self):
        super().__init__()
        self.attention_settings = {"attention": "pale", "pale_size": [7, 7], "parallel": True}
        self.conv, self.norm, self.head = nn.Conv2D(3, 2, 3), nn.BatchNorm2D(2), nn.Linear(2, 3)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).mean([2, 3]))


def step(trainer: Trainer) -> None:
    trainer.model(paddle.ones([2, 3, 8, 8])).sum().backward()
    trainer._optimizer_step([paddle.to_tensor(1.0)], None)


@pytest.fixture
def trainer(tmp_path):
    paddle.seed(0)
    trainer = make_trainer(Model(), None, [], ShardedTrainSampler(8, 2, 0), tmp_path, "TRAIN.EMA_DECAY", 0.9)
    trainer._stop_request = SimpleNamespace(signal_number=0)
    step(trainer)
    return trainer


def saved_by(trainer: Trainer) -> dict:
    """A state with everything that a state can have."""
    scaler = {"incr_ratio": 2.0, "decr_ratio": 0.5, "incr_every_n_steps": 2000, "decr_every_n_nan_or_inf": 1}
    scaler |= {"incr_count": 0, "decr_count": 0, "use_dynamic_loss_scaling": True}
    return trainer.state.as_dict() | {
        "scaler": {"scale": np.full(1, 65536, np.float32), **scaler},
        "best": {"top1": 50.0, "loss": 1.0, "at": "epoch 1/2", "weights": "model"},
        "class_names": ["a", "b", "c"],
        "figures": {"top1": 1.0},
        "rank_statistics": [np.ones((2, 4), np.float32)] * 2,
    }


def resume(trainer: Trainer, saved: dict) -> None:
    """Continue the run for a step, and use what the trainer uses of the state."""
    state: TrainingState = trainer.state
    state.restore(saved, "state")
    step(trainer)
    assert trainer._score(state.best)
    if state.best:
        assert f"{state.best['top1']:.2f} {state.best['at']} {state.best['weights']}"
    state.as_dict()


def test_a_state_with_one_changed_value_is_refused_or_resumed(trainer):
    saved, rng = saved_by(trainer), random.Random(0)
    resume(trainer, saved)
    del saved["config"]  # is slow to read; another test changes configurations
    for place in places_in(saved):
        if place[0] not in ("model", "model_ema", "optimizer") or place[-1] in ("conv.weight", "norm._mean"):
            for new in rng.sample(ODD_VALUES, 3):
                with refused_or_read():
                    resume(trainer, changed(saved, place, new))
            with refused_or_read():
                resume(trainer, without(saved, place))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": -6}, r"state: step is -6; it must be a whole number from 0 to"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"class_names": 7}, "class_names is 7; it must be a list"),
        ({"attention": {"attention": np.zeros(3)}}, r"attention\.attention is an array of float64 \[3\]"),
        ({"best": {"top1": "high", "at": "", "weights": ""}}, r"best\.top1 is 'high'; it must be a finite number"),
        ({"scaler": {"scale": 1.0}}, r"scaler\.scale is 1\.0; it must be an array of numbers"),
        ({"rank_statistics": [np.ones((2, 3))]}, "rank_statistics are not 4 finite numbers of each rank"),
        ({"rank_statistics": [np.full((2, 4), -1)]}, "rank_statistics contain a negative variance"),
        ({"conditions": {"batch size": [1]}}, r"conditions\.batch size is a list; it must be a whole number"),
    ],
)
def test_a_wrong_value_of_a_state_is_named(trainer, changes, problem):
    with pytest.raises(UserError, match=problem):
        trainer.state.restore(saved_by(trainer) | changes, "state")


def test_accumulators_of_another_shape_or_missing_ones_are_named(trainer):
    saved = saved_by(trainer)
    for place, new, problem in (
        (("optimizer", "conv.weight/moment1"), np.zeros(3, np.float32), r"moment1 of conv\.weight .* is float32 \[3\]"),
        (("optimizer", "head.bias/beta1_pow_acc"), np.zeros(1, np.int64), r"beta1_pow_acc of head\.bias .* is int64"),
    ):
        with pytest.raises(UserError, match=problem):
            trainer.state.restore(changed(saved, place, new), "state")
    with pytest.raises(UserError, match=r"moment2 of norm\.bias .* is missing"):
        trainer.state.restore(without(saved, ("optimizer", "norm.bias/moment2")), "state")


@pytest.mark.slow
def test_2000_changed_states_are_refused_or_resumed(trainer, tmp_path):
    saved, rng = saved_by(trainer), random.Random(1)
    places = list(places_in(saved))
    for _ in range(2000):
        state = saved
        for _ in range(rng.choice((1, 1, 2, 4))):
            place, new = rng.choice(places), rng.choice(ODD_VALUES)
            with suppress(LookupError, TypeError, ValueError):  # an earlier change has removed the place
                state = without(state, place) if rng.random() < 0.2 else changed(state, place, new)
        if "config" in state and rng.random() < 0.9:
            del state["config"]
        save_file(state, tmp_path / "state.pdparams")
        with refused_or_read():
            resume(trainer, read_state(tmp_path / "state.pdparams"))
        with refused_or_read():
            read_checkpoint(tmp_path / "state.pdparams")


# ---- weights


def weight_files(folder: Path) -> list[bytes]:
    """Small files in all formats."""
    model = Model()
    arrays = numpy_state(model)
    save_file(arrays, folder / "w.safetensors")
    save_file({"model": arrays, "class_names": ["a", "b", "c"], "config": "SEED: 1"}, folder / "w.pdparams")
    files = [(folder / name).read_bytes() for name in ("w.safetensors", "w.pdparams")]
    for protocol in (2, 4):
        buffer = io.BytesIO()
        paddle.save({"model": model.state_dict(), "epoch": 3}, buffer, protocol=protocol)
        files.append(buffer.getvalue())
    evil = "cposix\nsystem\n(S'touch evil'\ntR.", "cbuiltins\nexec\n(Vimport os\ntR."
    return [*files, pickle.dumps(arrays, 5), *(text.encode() for text in evil)]


@pytest.mark.slow
def test_20000_changed_weight_files_are_refused_or_read_and_run_nothing(tmp_path):
    files, rng, events, watching = weight_files(tmp_path), random.Random(2), [], False
    weights = [data for data in files if len(data) > 500]

    def watch(event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if watching and (writes or event in WATCHED):
            events.append((event, str(arguments)[:200]))

    model = Model()
    load_weights(model, Checkpoint("file", numpy_state(model)))
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pdparams"):
        read_checkpoint(path)  # imports what it needs
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.addaudithook(watch)  # cannot be removed again
    paths = [tmp_path / "changed.safetensors", *[tmp_path / "changed.pdparams"] * (len(weights) - 1)]
    with ExitStack() as stack:
        # Truncating a file by opening it makes file systems write it to the disk.
        open_files = {path: stack.enter_context(path.open("wb")) for path in set(paths)}
        for number in range(20_000):
            path = paths[number % len(weights)]
            open_files[path].seek(0)
            open_files[path].write(mutated_bytes(weights[number % len(weights)], files, rng))
            open_files[path].truncate()
            open_files[path].flush()
            watching = True
            with refused_or_read():
                load_weights(model, read_checkpoint(path))
            watching = False
    assert not events
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KB


# ---- configurations


@pytest.mark.slow
def test_500_changed_configurations_are_refused_or_read():
    rng = random.Random(3)
    specs = {task: TASKS[task].config() for task in sorted(TASKS)}
    texts = [
        spec.dump(spec.load(SimpleNamespace(cfg=spec.default_file, opts=["OUTPUT", "out"]))) for spec in specs.values()
    ]
    contents = [yaml.safe_load(text) for text in texts]
    for number in range(500):
        task = number % len(specs)
        if number % 2:
            values = contents[task]
            for _ in range(rng.choice((1, 2, 4))):
                values = changed(values, rng.choice(list(places_in(values))), rng.choice(PLAIN_VALUES))
            text = json.dumps(values)
        else:
            data = mutated_bytes(texts[task].encode(), [other.encode() for other in texts], rng)
            text = data.decode(errors="replace")
        with refused_or_read():
            list(specs.values())[task].from_text(text, "file")
