"""Run by test_reliability.py on two ranks: the loss of rank 1 is NaN in the second step."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.nn.functional as F  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.pale_transformer import create_model  # noqa: E402
from common.runtime.command_line import run  # noqa: E402
from common.runtime.distributed import rank, world_size  # noqa: E402
from common.training.checkpoints import CheckpointFolder  # noqa: E402
from common.training.log import TrainingLog  # noqa: E402
from common.training.optimizer import build_adamw  # noqa: E402
from common.training.sampler import ShardedTrainSampler  # noqa: E402
from common.training.trainer import Evaluation, StepResult, Trainer, TrainSettings  # noqa: E402

STEPS, BATCH = 4, 2


def loss_function(model, batch, rng) -> StepResult:
    images = paddle.to_tensor(rng.standard_normal((BATCH, 3, 32, 32)).astype("float32"))
    if batch == 1 and rank() == 1:
        images = images * float("nan")  # reaches BatchNorm's statistics, too
    return StepResult(F.cross_entropy(model(images), paddle.zeros([BATCH], "int64")), BATCH)


def main(argv) -> None:
    model = create_model("pale_nano", num_classes=3)
    trainer = Trainer(
        model=model,
        loss_function=loss_function,
        loader=range(STEPS),
        sampler=ShardedTrainSampler(STEPS * BATCH * world_size(), BATCH, 0, rank(), world_size()),
        optimizer=build_adamw(model, 1e-3, 0.05, (0.9, 0.999)),
        learning_rate=lambda step: 1e-3,
        evaluate=lambda model, kind: Evaluation({"top1": 1.0}),
        criterion="top1",
        settings=TrainSettings(STEPS, validate_steps=STEPS, keep_steps=STEPS, skip_nonfinite=int(argv[0])),
        log=TrainingLog(None),
        checkpoints=CheckpointFolder(Path("out"), 0),
        metadata={},
    )
    try:
        trainer.run()
    except UserError:
        print(f"rank {rank()} stopped after step {trainer.step}", flush=True)
        raise
    finite = all(np.isfinite(tensor.numpy()).all() for tensor in model.state_dict().values())
    print(f"rank {rank()} ends after step {trainer.step}, weights {'finite' if finite else 'not finite'}", flush=True)


if __name__ == "__main__":
    run(main)
