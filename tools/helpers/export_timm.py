"""Export a timm model with random weights to ONNX. It runs in the Python of .venv-peers, which has no Paddle.

    .venv-peers/bin/python tools/helpers/export_timm.py NAME BATCH SIZE FILE

Prints the versions of timm and PyTorch.
"""

import sys

import torch

try:
    import timm
except RuntimeError:  # a torchvision whose operators were built for another PyTorch; timm's models use none of them
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes) -> Tensor")
    import timm

ALIASES = {"swin_tiny": "swin_tiny_patch4_window7_224"}

name, batch, size, file = sys.argv[1:]
name = ALIASES.get(name, name)
if not timm.is_model(name):
    sys.exit(f"timm has no model {name!r}; timm.list_models() lists them")
torch.manual_seed(0)
model = timm.create_model(name).eval()
images = torch.randn(int(batch), 3, int(size), int(size))
try:
    torch.onnx.export(model, (images,), file, input_names=["images"], dynamo=True, verbose=False)
except Exception as error:
    sys.exit(f"timm:{name} cannot be exported at {size}x{size}: {type(error).__name__}")
print(f"timm {timm.__version__}, torch {torch.__version__}")
