"""What is measured: descriptions that a worker process builds, in its own Python and with its own settings."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from common.errors import UserError
from tools.benchmarking.runner import Runner

__all__ = [
    "DTYPES",
    "MODES",
    "ROOT",
    "RUNTIMES",
    "Copy",
    "FirstPrediction",
    "Gemm",
    "Model",
    "PaddleImport",
    "Profile",
    "Ranks",
    "Reader",
    "Subject",
    "from_json",
    "gemms",
    "variants",
]

ROOT = Path(__file__).resolve().parents[2]  # where common/ and the folders of the tasks are
RUNTIMES = ("eager", "static", "inference", "onnxruntime", "onnxruntime_int8")
MODES = ("forward", "train")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to measure in a process of its own.

    Attributes:
        name: what tables call it; unique among what is measured together.
        threads: threads that it computes with.
        device: ``cpu``, ``gpu`` or ``gpu:N``.
        strided: Paddle's views without copies (``FLAGS_use_stride_kernel``), which this project turns off on CPUs.
    """

    name: str
    threads: int = 2
    device: str = "cpu"
    strided: bool = False

    builder: ClassVar[str]  # ``module:function`` below ``tools.benchmarking`` that makes a :class:`Runner` of it

    @property
    def is_foreign(self) -> bool:
        """Whether it runs in the Python of the PyTorch peers."""
        return False

    def environment(self) -> dict[str, str]:
        """Variables that a worker must have before it imports anything."""
        return {
            "OMP_NUM_THREADS": str(self.threads),
            "FLAGS_use_stride_kernel": str(int(self.strided)),
            "GLOG_minloglevel": "2",
        }

    def build(self) -> Runner:
        module, _, function = self.builder.partition(":")
        return getattr(importlib.import_module(f"tools.benchmarking.{module}"), function)(self)

    def to_json(self) -> dict[str, Any]:
        return {"class": type(self).__name__, **asdict(self)}


def from_json(description: dict[str, Any]) -> Subject:
    """The inverse of :meth:`Subject.to_json`."""
    classes = {
        kind.__name__: kind for kind in (Model, Profile, Gemm, Copy, Reader, Ranks, FirstPrediction, PaddleImport)
    }
    fields = dict(description)
    return classes[fields.pop("class")](**fields)


@dataclass(frozen=True, kw_only=True)
class Model(Subject):
    """A model with random weights in one runtime.

    Attributes:
        model: ``pale_tiny`` and the like, ``paddleclas:NAME`` or ``timm:NAME``.
        runtime: one of RUNTIMES; ``timm:`` has ``eager``, which is PyTorch, and ``onnxruntime``.
        mode: ``forward``, or ``train`` for forward, cross entropy, backward and a step of AdamW.
        batch: images in a batch.
        image_size: pixels of a side.
        dtype: one of DTYPES; half precision is AMP, on GPUs.
        recompute: keep only the inputs of the blocks while training.

    Raises:
        UserError: the runtime, the mode and the device do not go together.
    """

    model: str
    runtime: str = "eager"
    mode: str = "forward"
    batch: int = 8
    image_size: int = 224
    dtype: str = "float32"
    recompute: bool = False

    def __post_init__(self):
        if self.mode == "train" and self.runtime not in ("eager", "static"):
            raise UserError(f"-runtime {self.runtime} runs forward only; train in eager or static")
        if self.is_foreign and self.runtime not in ("eager", "onnxruntime"):
            raise UserError(f"{self.model} does not run in {self.runtime}; choose -runtime eager or onnxruntime")
        if self.device == "cpu" and self.dtype != "float32":
            raise UserError(f"-dtype {self.dtype} needs -device gpu: Paddle's CPU kernels compute in float32")
        if self.device != "cpu" and (self.is_foreign or self.in_onnx):
            raise UserError(f"{self.model} in {self.runtime} is measured on CPUs only; use -device cpu")
        if self.recompute and (self.mode != "train" or ":" in self.model):
            raise UserError("-recompute is for training this project's models; add -mode train and name no peer")

    @property
    def in_onnx(self) -> bool:
        """Whether ONNX Runtime runs it."""
        return self.runtime in ("onnxruntime", "onnxruntime_int8")

    @property
    def builder(self) -> str:
        return "torch_models:build" if self.is_foreign else "paddle_models:build"

    @property
    def is_foreign(self) -> bool:
        return self.model.startswith("timm:")


@dataclass(frozen=True, kw_only=True)
class Profile(Model):
    """The eager forward pass of a model of this project, with a clock around each of its parts."""

    @property
    def builder(self) -> str:
        return "model_parts:build"


@dataclass(frozen=True, kw_only=True)
class Gemm(Subject):
    """A product of two square matrices: what the machine can do.

    Attributes:
        library: ``paddle``, ``numpy`` or ``onnxruntime``.
        size: rows and columns.
        dtype: one of DTYPES; only paddle's may be in half precision.
    """

    library: str
    size: int = 2048
    dtype: str = "float32"

    builder: ClassVar[str] = "gemm:build"


@dataclass(frozen=True, kw_only=True)
class Copy(Subject):
    """A copy of an array that is larger than the caches: how fast the memory is.

    Attributes:
        megabytes: of the array.
    """

    megabytes: int = 512

    builder: ClassVar[str] = "copying:build"

    @property
    def bytes_moved(self) -> int:
        """Read and written."""
        return 2 * self.megabytes * 2**20


@dataclass(frozen=True, kw_only=True)
class Reader(Subject):
    """What makes training samples of JPEG files, on one core: decode, crop, flip, RandAugment, normalise, erase.

    Attributes:
        source: a checkout of PaddleClas to read with; empty reads as image_classification does.
        photos: made-up JPEG files in one run.
    """

    source: str = ""
    photos: int = 64
    threads: int = 1

    builder: ClassVar[str] = "readers:build"


@dataclass(frozen=True, kw_only=True)
class Ranks(Subject):
    """Training of pale_nano by the launcher of image classification on several CPU ranks, ``threads`` each."""

    ranks: int
    threads: int = 1

    builder: ClassVar[str] = "commands:build_ranks"


@dataclass(frozen=True, kw_only=True)
class FirstPrediction(Subject):
    """``tools/predict.py`` on one image, with weights of ``model``: a whole process."""

    model: str
    threads: int = 1

    builder: ClassVar[str] = "commands:build_first_prediction"


@dataclass(frozen=True, kw_only=True)
class PaddleImport(Subject):
    """``import paddle``: a whole process."""

    threads: int = 1

    builder: ClassVar[str] = "commands:build_paddle_import"


def variants(subject: Model) -> tuple[Model, ...]:
    """The ways to run a subject of which the fastest counts: paddleclas's models with and without stride kernels."""
    if subject.device == "cpu" and subject.model.startswith("paddleclas:") and subject.runtime == "eager":
        return subject, replace(subject, name=f"{subject.name} strided", strided=True)
    return (subject,)


def gemms(threads: int, device: str = "cpu", dtype: str = "float32") -> tuple[Gemm, ...]:
    """The products of which the fastest is the rate of the machine, or of the GPU."""
    libraries = ("paddle", "numpy", "onnxruntime") if device == "cpu" else ("paddle",)
    return tuple(
        Gemm(name=f"GEMM by {library}", library=library, threads=threads, device=device, dtype=dtype)
        for library in libraries
    )
