"""What is measured: descriptions that a worker process builds, in its own Python and with its own settings."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import Any, Protocol

from common.errors import UserError

__all__ = ["DTYPES", "MODES", "RUNTIMES", "Gemm", "Model", "Runner", "Subject"]

RUNTIMES = ("eager", "static", "inference", "onnxruntime")
MODES = ("forward", "train")
DTYPES = ("float32", "float16", "bfloat16")


class Runner(Protocol):
    """A subject that was built and can be run again and again.

    Attributes:
        flops: floating-point operations of one run, two for a multiply-add; None where they cannot be counted.
        images: images that one run takes; None for what takes none.
    """

    flops: int | None
    images: int | None

    def run(self) -> float:
        """Do the work once and return the seconds that it took."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to measure in a process of its own.

    Attributes:
        name: what tables call it.
        threads: threads that it computes with.
    """

    name: str
    threads: int = 2
    builder = ""  # module:function that makes a Runner of the subject

    @property
    def stride_kernels(self) -> bool:
        return False

    @property
    def is_foreign(self) -> bool:
        """Whether it runs in the Python of the PyTorch peers."""
        return False

    def environment(self) -> dict[str, str]:
        """Variables that a worker must have before it imports anything."""
        return {
            "OMP_NUM_THREADS": str(self.threads),
            "FLAGS_use_stride_kernel": str(int(self.stride_kernels)),
            "GLOG_minloglevel": "2",
        }

    def build(self) -> Runner:
        module, _, function = self.builder.partition(":")
        return getattr(importlib.import_module(f"tools.benchmarking.{module}"), function)(self)

    def to_json(self) -> dict[str, Any]:
        return {"class": type(self).__name__, **{field.name: getattr(self, field.name) for field in fields(self)}}


@dataclass(frozen=True, kw_only=True)
class Model(Subject):
    """A model in one runtime.

    Attributes:
        model: ``pale_tiny`` and the like, ``paddleclas:NAME`` or ``timm:NAME``.
        runtime: one of RUNTIMES; ``eager`` and ``onnxruntime`` only for ``timm:``, where eager is PyTorch.
        mode: ``forward``, or ``train`` for forward, cross entropy, backward and a step of AdamW.
        batch: images in a batch.
        image_size: pixels of a side.
        dtype: one of DTYPES; half precision is AMP, on GPUs.
        device: ``cpu``, ``gpu`` or ``gpu:N``.
        strided: Paddle's views without copies (``FLAGS_use_stride_kernel``), which this project turns off on CPUs.
        recompute: keep only the inputs of the blocks while training.
    """

    model: str
    runtime: str = "eager"
    mode: str = "forward"
    batch: int = 8
    image_size: int = 224
    dtype: str = "float32"
    device: str = "cpu"
    strided: bool = False
    recompute: bool = False

    def __post_init__(self):
        if self.mode == "train" and self.runtime not in ("eager", "static"):
            raise UserError(f"-runtime {self.runtime} runs forward only; train in eager or static")
        if self.is_foreign and self.runtime not in ("eager", "onnxruntime"):
            raise UserError(f"{self.model} does not run in {self.runtime}; choose -runtime eager or onnxruntime")
        if self.device == "cpu" and self.dtype != "float32":
            raise UserError(f"-dtype {self.dtype} needs -device gpu: Paddle's CPU kernels compute in float32")
        if self.device != "cpu" and (self.is_foreign or self.runtime == "onnxruntime"):
            raise UserError(f"{self.model} in {self.runtime} is measured on CPUs only; use -device cpu")

    @property
    def builder(self) -> str:
        return "torch_models:build" if self.is_foreign else "paddle_models:build"

    @property
    def stride_kernels(self) -> bool:
        return self.strided

    @property
    def is_foreign(self) -> bool:
        return self.model.startswith("timm:")


@dataclass(frozen=True, kw_only=True)
class Gemm(Subject):
    """A product of two square float32 matrices: what the machine can do.

    Attributes:
        library: ``paddle``, ``numpy`` or ``onnxruntime``.
        size: rows and columns.
    """

    library: str
    size: int = 2048
    builder = "gemm:build"


def from_json(description: dict[str, Any]) -> Subject:
    """The inverse of :meth:`Subject.to_json`."""
    description = dict(description)
    return globals()[description.pop("class")](**description)
