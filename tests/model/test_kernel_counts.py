"""How many kernels a pass runs, by Paddle's profiler: a guard of the speed that does not depend on the machine.

``reshape`` and ``full`` are not limited: they copy nothing. Where a change lowers a count, lower its limit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import paddle
import pytest
from paddle import profiler

from common.pale_transformer import create_model
from common.runtime.device import select_device

# pale_nano has 6 blocks and 4 mergings.
FORWARD = {
    "transpose": 129, "slice": 84, "concat": 30, "add": 29, "addmm": 36, "matmul": 25, "batch_norm": 18,
    "layer_norm": 17, "depthwise_conv2d": 12, "scale": 12, "softmax": 12, "gelu": 6, "conv2d": 4, "mean": 1,
}  # fmt: skip
LIMITS = {
    "forward": FORWARD,
    # Rows and columns have products of their own, and no slices.
    "fused": {name: limit for name, limit in FORWARD.items() if name != "batch_norm"}
    | {"addmm": 30, "matmul": 49, "add": 23, "slice": 48},
    "training": FORWARD | {
        "transpose": 141, "slice": 120, "matmul": 145, "scale": 24, "depthwise_conv2d": 18, "conv2d": 10, "mean": 2,
        "flip": 12, "unfold": 12, "transpose_grad": 127, "slice_grad": 84, "concat_grad": 30, "add_grad": 29,
        "matmul_grad": 25, "batch_norm_grad": 18, "layer_norm_grad": 17, "softmax_grad": 12, "gelu_grad": 6,
        "conv2d_grad": 4, "mean_grad": 2,
    },
}  # fmt: skip


def count_kernels(step: Callable[[], object], folder: Path) -> Counter[str]:
    step()
    with profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None) as profile:
        step()
    file = folder / "trace.json"
    profile.export(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    names = (event["name"].split()[0] for event in events if event.get("cat") == "DygraphKernelLaunch")
    return Counter(name for name in names if not name.startswith(("reshape", "full")))


@pytest.mark.skipif(paddle.device.get_device() != "cpu", reason="the counts are those of CPUs")
@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="the counts are those of Paddle 3.3")
@pytest.mark.parametrize("mode", LIMITS)
def test_a_pass_runs_no_more_kernels_than_before(tmp_path, mode):
    select_device("cpu")
    model, images = create_model("pale_nano"), paddle.randn([2, 3, 64, 64])

    def train():
        model(images).mean().backward()
        model.clear_gradients()

    def infer():
        with paddle.no_grad():
            model(images)

    if mode == "fused":
        model.fuse()
    elif mode == "forward":
        model.eval()
    counts = count_kernels(train if mode == "training" else infer, tmp_path)
    limits = LIMITS[mode]
    more = {name: (count, limits.get(name, 0)) for name, count in counts.items() if count > limits.get(name, 0)}
    assert not more, f"(count, limit): {more}"
    assert counts["transpose"] > 0, "the profiler no longer names kernels so"
