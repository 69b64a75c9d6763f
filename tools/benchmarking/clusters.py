"""What training on ImageNet would take on many GPUs: computed from counted operations and data sheets, not measured.

A step of data parallelism is forward and backward at a stated share of the peak, the all-reduce of the gradients as far
as the backward pass does not hide it, and the optimizer. Evaluation, checkpoints and waiting for images are left out;
the table says how many cores must read so that no GPU waits.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from common.errors import UserError
from common.runtime.device import select_device
from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.output import MACHINE, Record, table
from tools.benchmarking.subjects import ROOT, Reader, Subject
from tools.costing.counts import RANKS, TrainingCounts, count_training
from tools.costing.gpus import A100, training_flops

__all__ = ["COLUMNS", "DEFAULT_MODELS", "Step", "all_reduce_seconds", "batches", "markdown", "study"]

DEFAULT_MODELS = ("pale_tiny", "pale_small", "pale_base")
GPUS = (1, 8, 64)
NODE = RANKS  # GPUs
# NVIDIA's data sheet of the A100 with 80 GB: NVLink has 600 GB/s in both directions together, of which a ring sends one
# way; the memory 2039 GB/s.
NVLINK = 300e9
MEMORY = 2039e9
# Assumed: a network card of 200 Gb/s for each GPU, and as many rings as cards, each of which leaves a node by its own.
NETWORK_CARD = 25e9
HOP = 5e-6  # assumed: seconds from one GPU of a ring to the next, whatever the size of the message
# Bytes that paddle.DataParallel reduces at a time while the backward pass goes on, and that it leaves for the end.
BUCKET, LAST_BUCKET = 25 * 2**20, 2**20
GRADIENT = 4  # bytes of a parameter's gradient: float32, under AMP too
# Bytes that a step moves for a parameter, in float32: AdamW reads weight, gradient and two moments and writes all but
# the gradient; the moving average reads the weight and itself and writes itself.
OPTIMIZER = 10 * 4
BACKWARD = 2 / 3  # of the operations of forward and backward
COLUMNS = (
    *("model", "gpu", "peak_flops_per_second", "utilisation", "gpus", "batch", "total_batch", "multiply_adds"),
    *("params", "compute_seconds", "all_reduce_seconds", "exposed_seconds", "optimizer_seconds", "seconds"),
    *("images_per_second", "efficiency", "images", "hours", "images_per_second_of_a_core", "reader_cores_of_a_node"),
    *MACHINE,
)


@dataclass(frozen=True)
class Step:
    """One training step of data parallelism on A100s; times are in seconds.

    Attributes:
        counts: what the training is made of; the batch is that of each GPU.
        gpus: how many there are.
    """

    counts: TrainingCounts
    gpus: int

    @property
    def compute(self) -> float:
        """Forward and backward."""
        return training_flops(replace(self.counts, images=self.counts.batch)) / (A100.peak * A100.utilisation)

    @property
    def all_reduce(self) -> float:
        """Of all buckets."""
        whole, rest = divmod(self._gradients - self._last_bucket, BUCKET)
        return sum(all_reduce_seconds(size, self.gpus) for size in [BUCKET] * whole + [rest, self._last_bucket] if size)

    @property
    def exposed(self) -> float:
        """What the backward pass does not hide: the last bucket at least, whose gradients come when it has ended."""
        return max(all_reduce_seconds(self._last_bucket, self.gpus), self.all_reduce - BACKWARD * self.compute)

    @property
    def _gradients(self) -> int:
        return GRADIENT * self.counts.parameters

    @property
    def _last_bucket(self) -> int:
        return min(LAST_BUCKET, self._gradients)

    @property
    def optimizer(self) -> float:
        return OPTIMIZER * self.counts.parameters / MEMORY

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed + self.optimizer

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together."""
        return self.counts.batch * self.gpus / self.seconds

    def efficiency(self, batch: int) -> float:
        """The images a second of a GPU, over those of one alone with so many images."""
        alone = Step(replace(self.counts, batch=batch), 1)
        return self.images_per_second / self.gpus / alone.images_per_second


def all_reduce_seconds(size: int, gpus: int) -> float:
    """A ring's all-reduce of so many bytes: each GPU sends and receives 2 (n - 1) / n of them in 2 (n - 1) messages."""
    messages = 2 * (gpus - 1)
    bandwidth = NVLINK if gpus <= NODE else min(NVLINK, NODE * NETWORK_CARD)
    return messages * HOP + messages / gpus * size / bandwidth


def batches(recipe: int, gpus: int) -> list[int]:
    """Images on each GPU: as many as in the recipe, which is for one node, and so many that the recipe's sum stays."""
    of_sum = max(1, NODE * recipe // gpus)
    return [recipe, of_sum] if of_sum < recipe else [recipe]


def study(options: Namespace, measure: Callable[[Sequence[Subject], int], list[Measurement]]) -> list[Record]:
    """Compute each model on each number of GPUs, with the batches of :func:`batches`.

    Args:
        options: of the command line: ``models``, ``gpus``, ``rounds``.
        measure: runs subjects; only the reader of training images is measured, on this machine.

    Raises:
        UserError: there is no recipe for a model.
    """
    recipes = {name: ROOT / "image_classification" / "configs" / f"{name}_224.yaml" for name in options.models}
    missing = [name for name, recipe in recipes.items() if not recipe.is_file()]
    if missing:
        raise UserError(f"there is no recipe for {missing[0]}; choose among {', '.join(DEFAULT_MODELS)}")
    (reading,) = measure([Reader(name="reader")], options.rounds)
    select_device("cpu")
    records = []
    for name, recipe in recipes.items():
        counts = count_training(recipe, memory=False)
        for gpus in options.gpus or GPUS:
            for batch in batches(counts.batch, gpus):
                step = Step(replace(counts, batch=batch), gpus)
                records.append({"model": name, **_record(step, counts.batch, reading.images_per_second)})
    return records


def _record(step: Step, recipe_batch: int, of_a_core: float) -> Record:
    of_a_node = step.images_per_second / math.ceil(step.gpus / NODE)
    return {
        "gpu": A100.name,
        "peak_flops_per_second": A100.peak,
        "utilisation": A100.utilisation,
        "gpus": step.gpus,
        "batch": step.counts.batch,
        "total_batch": step.counts.batch * step.gpus,
        "multiply_adds": step.counts.forward,
        "params": step.counts.parameters,
        "compute_seconds": step.compute,
        "all_reduce_seconds": step.all_reduce,
        "exposed_seconds": step.exposed,
        "optimizer_seconds": step.optimizer,
        "seconds": step.seconds,
        "images_per_second": step.images_per_second,
        "efficiency": step.efficiency(recipe_batch),
        "images": step.counts.images,
        "hours": step.counts.images / step.images_per_second / 3600,
        "images_per_second_of_a_core": of_a_core,
        "reader_cores_of_a_node": math.ceil(of_a_node / of_a_core),
    }


def markdown(records: Sequence[Record]) -> str:
    """The table, below a line that says what it is."""
    first = records[0]
    intro = (
        f"Computed, not measured: {first['gpu']} at {100 * first['utilisation']:.0f} % of "
        f"{first['peak_flops_per_second'] / 1e12:.0f} TFLOP/s. Measured: a core of this machine reads "
        f"{first['images_per_second_of_a_core']:.0f} images/s."
    )
    header = ["model", "GPUs", "batch of each", "compute, ms", "all-reduce, ms", "not hidden, ms", "optimizer, ms"]
    header += ["images/s", "efficiency", "hours", "reader cores a node"]
    times = ("compute_seconds", "all_reduce_seconds", "exposed_seconds", "optimizer_seconds")
    rows = [
        [
            record["model"],
            str(record["gpus"]),
            str(record["batch"]),
            *(f"{1e3 * record[key]:.1f}" for key in times),
            f"{record['images_per_second']:,.0f}",
            f"{100 * record['efficiency']:.1f} %",
            f"{record['hours']:.1f}",
            str(record["reader_cores_of_a_node"]),
        ]
        for record in records
    ]
    return f"{intro}\n\n{table(header, rows, ('model',))}"
