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
from itertools import groupby
from pathlib import Path

from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.output import MACHINE, Record, pyplot, save_figure, table
from tools.benchmarking.subjects import ROOT, Model, Reader, Subject

__all__ = ["COLUMNS", "DEFAULT_MODELS", "Step", "all_reduce_seconds", "draw", "markdown", "study"]

DEFAULT_MODELS = ("pale_tiny", "pale_small", "pale_base")
GPUS = (1, 8, 64)
PEAK, UTILISATION = 312e12, 0.3
IMAGENET = 1_281_167
# A node is eight A100 with 80 GB. NVIDIA's data sheet: NVLink has 600 GB/s in both directions together, of which a ring
# sends one way; the memory 2039 GB/s.
GPUS_OF_A_NODE = 8
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
    *("model", "gpus", "batch", "total_batch", "image_size", "multiply_adds", "params", "utilisation"),
    *("compute_seconds", "all_reduce_seconds", "exposed_seconds", "optimizer_seconds", "seconds"),
    *("images_per_second", "efficiency", "epochs", "hours", "images_per_second_of_a_core", "reader_cores_of_a_node"),
    *MACHINE,
)


@dataclass(frozen=True)
class Step:
    """One training step of data parallelism; times are in seconds.

    Attributes:
        multiply_adds: of the forward pass on one image.
        params: trainable parameters.
        batch: images on each GPU.
        gpus: how many there are.
    """

    multiply_adds: int
    params: int
    batch: int
    gpus: int

    @property
    def compute(self) -> float:
        """Forward and backward; the backward pass takes twice the operations of the forward pass."""
        return 3 * 2 * self.multiply_adds * self.batch / (PEAK * UTILISATION)

    @property
    def all_reduce(self) -> float:
        """Of all buckets."""
        whole, rest = divmod(GRADIENT * self.params - self._last_bucket, BUCKET)
        return sum(all_reduce_seconds(size, self.gpus) for size in [BUCKET] * whole + [rest, self._last_bucket] if size)

    @property
    def exposed(self) -> float:
        """What the backward pass does not hide: the last bucket at least, whose gradients come when it has ended."""
        return max(all_reduce_seconds(self._last_bucket, self.gpus), self.all_reduce - BACKWARD * self.compute)

    @property
    def _last_bucket(self) -> int:
        return min(LAST_BUCKET, GRADIENT * self.params)

    @property
    def optimizer(self) -> float:
        return OPTIMIZER * self.params / MEMORY

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed + self.optimizer

    @property
    def images_per_second(self) -> float:
        return self.batch * self.gpus / self.seconds

    def efficiency(self, batch: int) -> float:
        """The images a second of a GPU, over those of one alone with so many images."""
        alone = replace(self, batch=batch, gpus=1)
        return self.images_per_second / self.gpus / alone.images_per_second


def all_reduce_seconds(size: int, gpus: int) -> float:
    """A ring's all-reduce of so many bytes: each GPU sends and receives 2 (n - 1) / n of them in 2 (n - 1) messages."""
    messages = 2 * (gpus - 1)
    bandwidth = NVLINK if gpus <= GPUS_OF_A_NODE else min(NVLINK, GPUS_OF_A_NODE * NETWORK_CARD)
    return messages * HOP + messages / gpus * size / bandwidth


def study(options: Namespace, measure: Callable[[Sequence[Subject], int], list[Measurement]]) -> list[Record]:
    """Compute each model on each number of GPUs, with the batches of :func:`batches`.

    Args:
        options: of the command line: ``models``, ``gpus``, ``image_size``, ``rounds``.
        measure: runs subjects; only the reader of training images is measured, on this machine.

    Raises:
        UserError: there is no recipe for a model.
    """
    from image_classification.config import CONFIG

    recipes = {
        name: CONFIG.load(Namespace(cfg=ROOT / "image_classification" / "configs" / f"{name}_224.yaml", opts=[]))
        for name in options.models
    }
    (reading,) = measure([Reader(name="reader")], options.rounds)
    size = options.image_size or Model.image_size
    records = []
    for name, recipe in recipes.items():
        costs = count_costs(name, size)
        for gpus in options.gpus or GPUS:
            for batch in batches(recipe.DATA.BATCH_SIZE, gpus):
                step = Step(**costs, batch=batch, gpus=gpus)
                record = _record(step, recipe.DATA.BATCH_SIZE, recipe.TRAIN.EPOCHS, reading)
                records.append({"model": name, "image_size": size, **costs, **record})
    return records


def count_costs(name: str, size: int) -> dict[str, int]:
    """Parameters of a model and multiply-adds of its forward pass on one image."""
    from common.flops import count_flops, params
    from common.pale_transformer import create_model

    model = create_model(name)
    return {"params": params(model), "multiply_adds": count_flops(model, size, size)}


def batches(recipe: int, gpus: int) -> list[int]:
    """Images on each GPU: as many as in the recipe, which is for one node, and so many that the recipe's sum stays."""
    of_sum = max(1, GPUS_OF_A_NODE * recipe // gpus)
    return [recipe, of_sum] if of_sum < recipe else [recipe]


def _record(step: Step, recipe_batch: int, epochs: int, reading: Measurement) -> Record:
    nodes = math.ceil(step.gpus / GPUS_OF_A_NODE)
    return {
        "gpus": step.gpus,
        "batch": step.batch,
        "total_batch": step.batch * step.gpus,
        "utilisation": UTILISATION,
        "compute_seconds": step.compute,
        "all_reduce_seconds": step.all_reduce,
        "exposed_seconds": step.exposed,
        "optimizer_seconds": step.optimizer,
        "seconds": step.seconds,
        "images_per_second": step.images_per_second,
        "efficiency": step.efficiency(recipe_batch),
        "epochs": epochs,
        "hours": epochs * IMAGENET / step.images_per_second / 3600,
        "images_per_second_of_a_core": reading.images_per_second,
        "reader_cores_of_a_node": math.ceil(step.images_per_second / nodes / reading.images_per_second),
    }


def markdown(records: Sequence[Record]) -> str:
    """The table, below a line that says what it is."""
    first = records[0]
    header = ["model", "GPUs", "batch of each", "compute, ms", "all-reduce, ms", "not hidden, ms", "optimizer, ms"]
    header += ["images/s", "efficiency", f"hours for {first['epochs']} epochs", "reader cores a node"]
    times = ("compute_seconds", "all_reduce_seconds", "exposed_seconds", "optimizer_seconds")
    rows = [
        [
            record["model"],
            str(record["gpus"]),
            str(record["batch"]),
            *(f"{1e3 * record[key]:.2f}" for key in times),
            f"{record['images_per_second']:,.0f}",
            f"{100 * record['efficiency']:.0f} %",
            f"{record['hours']:.1f}",
            str(record["reader_cores_of_a_node"]),
        ]
        for record in records
    ]
    intro = (
        f"Computed, not measured: A100 at {100 * UTILISATION:.0f} % of {PEAK / 1e12:.0f} TFLOP/s, "
        f"images of {first['image_size']}x{first['image_size']}. Measured: "
        f"a core of this machine reads {first['images_per_second_of_a_core']:.0f} images/s."
    )
    return f"{intro}\n\n{table(header, rows, ('model',))}"


def draw(records: Sequence[Record], file: Path) -> None:
    """Draw the efficiency of each model over the number of GPUs, in powers of two."""
    figure, axes = pyplot().subplots(figsize=(7, 4), layout="constrained")
    most = max(record["gpus"] for record in records)
    counts = [2**power for power in range(most.bit_length())]
    firsts = [next(of_model) for _, of_model in groupby(records, key=lambda record: record["model"])]
    for number, first in enumerate(firsts):
        for style, place, label in (("-", 0, "images on each"), ("--", -1, "in all, from 8 GPUs on")):
            steps = [
                Step(first["multiply_adds"], first["params"], batches(first["batch"], gpus)[place], gpus)
                for gpus in counts
            ]
            shown = first["batch"] if place == 0 else GPUS_OF_A_NODE * first["batch"]
            percent = [100 * step.efficiency(first["batch"]) for step in steps]
            label = f"{first['model']}, {shown} {label}"
            axes.plot(counts, percent, style, marker="o", markersize=3, color=f"C{number}", label=label)
    axes.set(xscale="log", xlabel="A100 GPUs, 8 in a node", ylabel="images/s of a GPU, % of one alone", ylim=(0, 105))
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    axes.set_title("computed, not measured", fontsize="medium")
    save_figure(figure, file)
