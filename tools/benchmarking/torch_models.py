"""timm's models in PyTorch and ONNX Runtime. This module runs in the peers' Python, which has no Paddle."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.errors import UserError
from tools.benchmarking.onnx_session import load_onnx
from tools.benchmarking.runner import Runner, TimedRunner
from tools.benchmarking.subjects import Model

try:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        import timm
    except RuntimeError:
        # torchvision was built for another PyTorch (the CUDA build beside a PyTorch for CPUs) and its own operators
        # did not load. timm's models use none of them, but torchvision wants these two declared.
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor boxes) -> Tensor")
        import timm
except ImportError as error:
    raise UserError(
        f"timm: models need {error.name}: python -m venv .venv-peers && "
        ".venv-peers/bin/pip install -r requirements-peers-torch.txt"
    ) from error

# Short names of what is compared most.
ALIASES = {"swin_tiny": "swin_tiny_patch4_window7_224"}


def build(subject: Model) -> Runner:
    """Build a timm model with random weights in its runtime.

    Raises:
        UserError: timm does not know the name, or a package is missing.
    """
    torch.set_num_threads(subject.threads)
    torch.manual_seed(0)
    name = subject.model.partition(":")[2]
    name = ALIASES.get(name, name)
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"{name.partition('_')[0]}*")[:8]) or "those that timm.list_models() gives"
        raise UserError(f"unknown peer timm:{name}; near are {near}")
    model = timm.create_model(name, drop_path_rate=0.2)
    images = torch.randn(subject.batch, 3, subject.image_size, subject.image_size)
    model.eval()
    flops = _count_flops(model, images)
    if subject.mode == "train":
        return TimedRunner(_train_step(model.train(), images), 3 * flops, subject.batch)
    if subject.runtime == "eager":
        return TimedRunner(_forward(model, images), flops, subject.batch)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(model, (images,), file, dynamo=True, verbose=False)
        return TimedRunner(load_onnx(file, [images.numpy()], subject.threads), flops, subject.batch)


def _count_flops(model, images) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


def _forward(model, images):
    @torch.inference_mode()
    def step():
        return model(images)

    return step


def _train_step(model, images):
    labels = torch.randint(0, 1000, (len(images),))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step():
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
