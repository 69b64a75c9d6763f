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
from common.training.sampler import ShardedTrainSampler  # noqa: E402
from common.training.task import BatchResult  # noqa: E402
from tests.helpers.tiny_runs import make_trainer  # noqa: E402

STEPS, BATCH = 4, 2


def compute_loss(model, batch, rng) -> BatchResult:
    images = paddle.to_tensor(rng.standard_normal((BATCH, 3, 32, 32)).astype("float32"))
    if batch == 1 and rank() == 1:
        images = images * float("nan")  # reaches BatchNorm's statistics, too
    return BatchResult(F.cross_entropy(model(images), paddle.zeros([BATCH], "int64")), BATCH)


def main(argv) -> None:
    model = create_model("pale_nano", num_classes=3)
    sampler = ShardedTrainSampler(STEPS * BATCH * world_size(), BATCH, 0, rank(), world_size())
    options = ("TRAIN.SKIP_NONFINITE", argv[0], "VALIDATE_EVERY", 1)
    trainer = make_trainer(model, compute_loss, range(STEPS), sampler, Path("out"), *options)
    try:
        trainer.run()
    except UserError:
        print(f"rank {rank()} stopped after step {trainer.state.step}", flush=True)
        raise
    finite = all(np.isfinite(tensor.numpy()).all() for tensor in model.state_dict().values())
    weights = "weights finite" if finite else "weights not finite"
    print(f"rank {rank()} ends after step {trainer.state.step}, {weights}", flush=True)


if __name__ == "__main__":
    run(main)
