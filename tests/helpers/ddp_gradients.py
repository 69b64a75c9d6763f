"""Run on two ranks: the trainer's gradients are those of all ranks' batches together.

``recompute`` and ``sync_bn`` as arguments turn these on. With ``sync_bn``, BatchNorm's statistics are equal, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.nn.functional as F  # noqa: E402

from common.pale_transformer import create_model  # noqa: E402
from common.runtime.command_line import run  # noqa: E402
from common.runtime.distributed import rank, world_size  # noqa: E402
from common.training.sampler import ShardedTrainSampler  # noqa: E402
from common.training.task import BatchResult  # noqa: E402
from image_classification.class_balance import weighted_cross_entropy  # noqa: E402
from image_classification.mixup import smooth_one_hot  # noqa: E402
from tests.helpers.tiny_runs import make_trainer  # noqa: E402

ACCUM_ITER, BATCH, CLASSES = 2, 3, 5


def loss_of(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Mean cross-entropy, in the mode ``weighted`` with the weights of very uneven classes."""
    if "weighted" not in sys.argv:
        return F.cross_entropy(logits, labels)
    weights = paddle.to_tensor([0.1, 0.5, 1.0, 2.0, 9.0])
    return weighted_cross_entropy(logits, smooth_one_hot(labels, CLASSES, 0.1) * weights[labels].unsqueeze(-1))


def compute_loss(model, batch, rng) -> BatchResult:
    return BatchResult(loss_of(model(batch["images"]), batch["labels"]), BATCH)


def set_mode(model: paddle.nn.Layer, training: bool) -> None:
    """In evaluation mode BatchNorm does not depend on how the images are shared out."""
    if training:  # train(False) needs Paddle 3
        model.train()
    else:
        model.eval()


def main(argv: Sequence[str]) -> None:
    recompute, sync_bn = "recompute" in sys.argv, "sync_bn" in sys.argv
    paddle.seed(rank())  # ranks start apart; DataParallel must bring rank 0's weights to all
    model = create_model("pale_nano", num_classes=CLASSES)
    model.set_recompute(recompute)
    sampler = ShardedTrainSampler(100, BATCH, 0, rank(), world_size(), ACCUM_ITER)
    options = ("TRAIN.ACCUM_ITER", ACCUM_ITER, "TRAIN.SYNC_BN", sync_bn)
    trainer = make_trainer(model, compute_loss, [], sampler, Path("out"), *options)
    set_mode(model, recompute or sync_bn)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = np.random.default_rng(0)
    shape = (ACCUM_ITER, world_size(), BATCH)
    images = paddle.to_tensor(rng.standard_normal((*shape, 3, 32, 32)).astype("float32"))
    labels = paddle.to_tensor(rng.integers(CLASSES, size=shape))
    for index in range(ACCUM_ITER):
        batch = {"images": images[index, rank()], "labels": labels[index, rank()]}
        trainer._forward_backward(batch, 0, index, synchronize=index == ACCUM_ITER - 1)

    reference = create_model("pale_nano", num_classes=CLASSES)  # without the hooks of DataParallel
    reference.set_state_dict(before)
    set_mode(reference, recompute or sync_bn)
    if sync_bn:
        for index in range(ACCUM_ITER):
            logits = reference(images[index].flatten(0, 1))
            (F.cross_entropy(logits, labels[index].flatten()) / ACCUM_ITER).backward()
        for name, expected in reference.state_dict().items():
            if name.endswith(("._mean", "._variance")):
                assert np.allclose(model.state_dict()[name].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6), name
    elif recompute:
        for index in range(ACCUM_ITER):
            for other in range(world_size()):
                (loss_of(reference(images[index, other]), labels[index, other]) / 4).backward()
    else:
        loss_of(reference(images.flatten(0, 2)), labels.flatten()).backward()
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if not parameter.stop_gradient:
            own, expected = parameter.grad.numpy(), other.grad.numpy()
            # Shifting all keys changes nothing, so the gradients of their biases are rounding errors about 0.
            assert np.allclose(own, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max() + 1e-7), name
    print(f"rank {rank()}: gradients equal", flush=True)


if __name__ == "__main__":
    run(main)
