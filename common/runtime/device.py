"""The device to compute on."""

from __future__ import annotations

import os

from ..errors import UserError
from .cpu_settings import set_cpu_settings

__all__ = ["select_device"]


def select_device(name: str = "") -> str:
    """Select Paddle's device, apply the settings for CPUs, and return the device's name in Paddle.

    Args:
        name: ``"cpu"``, ``"gpu"`` or ``"gpu:N"``; empty selects a GPU if there is one that this Paddle supports.

    Raises:
        UserError: the device is unknown, not available, or chosen by the launcher.
    """
    import paddle  # not at the top, so that -h and wrong flags answer at once

    from .distributed import world_size

    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if name not in ("", "cpu", "gpu") and not name.startswith("gpu:"):
        raise UserError(f"unknown device {name!r}; choose cpu, gpu or gpu:N")
    if name.startswith("gpu") and not gpus:
        reason = "sees no GPU" if paddle.is_compiled_with_cuda() else "was compiled without GPU support"
        raise UserError(f"-device {name}: this Paddle {paddle.__version__} {reason}; use -device cpu")
    if world_size() > 1 and (name.startswith("gpu:") or (name == "cpu" and gpus)):
        raise UserError(
            f"-device {name} cannot be used with several ranks: Paddle's launcher assigns the devices; use its "
            "flag --devices"
        )
    if not name:
        name = "gpu" if gpus else "cpu"
    launched_on = os.environ.get("FLAGS_selected_gpus")  # noqa: SIM112 (Paddle's launcher spells it so)
    if name == "gpu" and launched_on:
        name = f"gpu:{launched_on.split(',')[0]}"
    if name == "cpu":
        set_cpu_settings()
    return paddle.set_device(name) and name
