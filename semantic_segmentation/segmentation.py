"""Training and evaluation of semantic segmentation.

Data, transforms, losses, schedule and inference are PaddleSeg's. Its training loop is not used: it cannot resume inside
a pass over the data, stop all ranks at one step, accumulate gradients, or evaluate an EMA.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddleseg import datasets
from paddleseg.core.train import loss_computation
from paddleseg.utils import logger
from yacs.config import CfgNode

from common.checkpoints.loading import Checkpoint
from common.data.class_names import distinct_names, has_names, list_names, renamed_classes
from common.data.image_file import open_image
from common.data.split_warnings import normalization_warning, split_warnings
from common.errors import UserError, printable
from common.runtime.distributed import rank, world_size
from common.runtime.verbosity import is_verbose
from common.training.config import plain
from common.training.data_hash import data_hash
from common.training.dry_run import dry_run_loss
from common.training.evaluation_report import class_files, confusion_files
from common.training.loader import Loader
from common.training.log import TrainingLog
from common.training.log_format import counted
from common.training.optimizer import build_optimizer
from common.training.sampler import IterationSampler, SampleKey, ShardedEvalSampler
from common.training.task import BatchResult, EvaluationResult, Evaluator, Task, Training
from semantic_segmentation.components import build_losses, build_model, build_schedule
from semantic_segmentation.config import CONFIG
from semantic_segmentation.data_check import DataReport, check_dataset, check_once
from semantic_segmentation.datasets import (
    EvalDataset,
    SeededDataset,
    build_dataset,
    collate_eval,
    collate_train,
)
from semantic_segmentation.evaluation import class_columns, evaluate, per_class_table
from semantic_segmentation.inference import InferenceSettings
from semantic_segmentation.pictures import labeled_images, original_image, prediction_beside_truth

__all__ = ["Segmentation"]

_PALETTES = 100  # masks of each data set, whose palettes are compared


class Segmentation(Task):
    """See :class:`common.training.task.Task`."""

    name = "semantic_segmentation"
    config_spec = CONFIG
    criterion = "mIoU"
    shown_metrics = ("mIoU", "aAcc", "mAcc")
    unit = "step"
    length_key = "iters"

    def __init__(self, config: CfgNode):
        super().__init__(config)
        if not is_verbose():
            logger.log_level = 0  # PaddleSeg prints every section that it builds otherwise
        if config.EPOCHS and not (config.EVAL or config.CHECK_DATA):
            images_per_step = config.batch_size * world_size() * config.TRAIN.ACCUM_ITER
            self.config = config.clone()
            self.config.defrost()
            self.config.iters = math.ceil(config.EPOCHS * len(self._build_dataset("train_dataset")) / images_per_step)
            self.config.freeze()
            self.log.line(f"EPOCHS {config.EPOCHS} sets iters to {self.config.iters}, instead of {config.iters}")

    @property
    def backbone_name(self) -> str:
        backbone = self.config.model.get("backbone", {})
        return str(backbone.get("variant", backbone.get("type", self.config.model.type)))

    @property
    def model_name(self) -> str:
        return f"{self.config.model.type} {self.backbone_name}"

    def build_training(self, resumed: bool) -> Training:
        config = self.config
        train_set, val_set = self._build_dataset("train_dataset"), self._build_dataset("val_dataset")
        classes = train_set.num_classes
        if classes != val_set.num_classes:
            raise UserError(
                f"the training data has {classes} classes, but the validation data has {val_set.num_classes}; "
                "give both data sets the same classes"
            )
        sampler = IterationSampler(
            len(train_set),
            config.batch_size,
            config.SEED,
            rank(),
            world_size(),
            config.TRAIN.ACCUM_ITER,
            steps=config.iters + config.TRAIN.COOLDOWN,
        )
        evaluator = SegmentationEvaluator(config, val_set, self.log)
        model = build_model(config, classes, load_pretrained=not resumed)
        self.freeze(model)
        losses = build_losses(config, train_set.ignore_index)
        learning_rate = build_schedule(config)
        return Training(
            model=model,
            compute_loss=functools.partial(self._loss, losses=losses, ignore_index=train_set.ignore_index),
            loader=Loader(SeededDataset(train_set, config.SEED), sampler, config.DATA.NUM_WORKERS, collate_train),
            sampler=sampler,
            optimizer=build_optimizer(config.optimizer, model, config.TRAIN.LAYER_DECAY),
            learning_rate=learning_rate,
            total_steps=config.iters,
            evaluator=evaluator,
            class_names=train_set.class_names,
            description=f"{len(train_set):,} training and {len(val_set):,} validation images of "
            f"{counted(classes, 'class', 'classes')}: {list_names(train_set.class_names)}",
            warnings=_split_warnings(train_set, val_set),
            data_hashes={"training data": _hash_data(train_set), "validation data": evaluator.data_hash},
            draw_samples=functools.partial(self._draw_samples, dataset=val_set),
        )

    def build_evaluation(self, checkpoint: Checkpoint) -> tuple[nn.Layer, Evaluator]:
        val_set = self._build_dataset("val_dataset")
        with self.log.progress(len(val_set), "checking val") as bar:
            report = check_dataset(val_set, "val", lambda done, total: bar.update(1))
        for line in report.warnings():
            self.log.line(f"warning: {line}")
        if not has_names(val_set.class_names) and len(checkpoint.class_names or ()) == val_set.num_classes:
            for line in renamed_classes(None, checkpoint.class_names):  # the data names no classes
                self.log.line(f"warning: {line}")
            val_set.class_names = checkpoint.class_names
        model = build_model(self.config, val_set.num_classes)
        return model, SegmentationEvaluator(self.config, val_set, self.log)

    def preflight(self, training: Training) -> None:
        """Dry-run a step, then check all data unless it has passed before."""
        images, val_set = training.loader.dataset, training.evaluator.dataset
        self._dry_run_step(training)
        EvalDataset(val_set)[SampleKey(0, 0, 0)]  # the transforms work
        record = Path(self.config.OUTPUT) / "data_check.json"
        for split, dataset in (("train", images.dataset), ("val", val_set)):
            with self.log.progress(len(dataset), f"checking {split}") as bar:
                warnings = check_once(dataset, split, record, lambda done, total, bar=bar: bar.update(1))
            for line in warnings:
                self.log.line(f"warning: {line}")

    def check_data(self) -> Iterator[DataReport]:
        splits = {"train": self._build_dataset("train_dataset"), "val": self._build_dataset("val_dataset")}
        for line in _split_warnings(*splits.values()):
            self.log.line(f"warning: {line}")
        for split, dataset in splits.items():
            with self.log.progress(len(dataset), split) as bar:
                report = check_dataset(dataset, split, lambda done, total, bar=bar: bar.update(1), list_all=True)
            yield report

    def _build_dataset(self, name: str) -> datasets.Dataset:
        return build_dataset(plain(self.config[name]), name)

    @staticmethod
    def _dry_run_step(training: Training) -> None:
        """Dry-run a step on the readable images of the first batch; checking the data reports the others."""
        usable, errors = [], []
        for key in next(iter(training.sampler)):
            try:
                usable.append(training.loader.dataset[key])
            except UserError as error:
                errors.append(error)
        if not usable:
            raise UserError(f"no image of the first batch can be used: {errors[0]} (-check_data checks all images)")
        batch = collate_train(usable)
        # Masks have not been checked yet, and on GPUs a value that is no class would end the process.
        batch["label"] = np.zeros_like(batch["label"])
        tensors = {name: paddle.to_tensor(array) for name, array in batch.items()}
        dry_run_loss(training.model, training.compute_loss, tensors)

    @staticmethod
    def _loss(
        model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator, losses: dict[str, list], ignore_index: int
    ) -> BatchResult:
        images, labels = batch["img"], batch["label"]
        outputs = [logits.astype("float32") for logits in model(images)]
        if len(outputs) != len(losses["types"]):
            raise UserError(
                f"the model has {len(outputs)} outputs in training, but loss has {len(losses['types'])} types; give "
                "one loss per output"
            )
        terms = [term.reshape([]) for term in loss_computation(outputs, labels, None, losses)]
        labeled = labels != ignore_index
        correct = (outputs[0].argmax(1) == labels) & labeled
        accuracy = 100.0 * correct.astype("float32").sum() / labeled.astype("float32").sum().clip(min=1.0)
        return BatchResult(sum(terms[1:], terms[0]), len(images), {"aAcc": accuracy})

    def _draw_samples(self, batch: dict[str, Any], dataset: datasets.Dataset) -> np.ndarray | None:
        count = self.config.PICTURES
        if not count:
            return None
        images = [original_image(image.unsqueeze(0), [], *_mean_and_std(dataset)) for image in batch["img"][:count]]
        labels = batch["label"][:count].numpy()
        return labeled_images(images, labels.reshape([len(images), *labels.shape[-2:]]), dataset.class_names)


class SegmentationEvaluator(Evaluator):
    """See :class:`common.training.task.Evaluator`.

    Attributes:
        dataset: PaddleSeg's data set of the split.
    """

    def __init__(self, config: CfgNode, dataset: datasets.Dataset, log: TrainingLog):
        section = config.val_dataset
        folder = Path(section.get("dataset_root") or "").name if section.type == "Dataset" else ""
        self.dataset, self.class_names = dataset, dataset.class_names
        self.data_set, self.data_hash = f"{section.type} {folder}".strip(), _hash_data(dataset)
        self.example = str(dataset.file_list[0][0])
        self._config, self._log = config, log
        self._inference = InferenceSettings.from_test_config(plain(config.test_config))
        self.metric_suffix = "_multi_scale" if self._inference.aug_eval else ""

    def evaluate(self, model: nn.Layer, kind: str = "val", step: int = 0, last: bool = True) -> EvaluationResult:
        config, dataset = self._config, self.dataset
        sampler = ShardedEvalSampler(len(dataset), 1, rank(), world_size())
        loader = Loader(EvalDataset(dataset), sampler, config.DATA.NUM_WORKERS, collate_eval)
        metrics, matrix = evaluate(
            model,
            self._log.batches(loader, kind),
            dataset.num_classes,
            dataset.ignore_index,
            self._inference,
            config.TRAIN.AMP,
            config.ABSENT_CLASSES,
            functools.partial(self._draw, kind, step, sampler.indices) if self._log.has_visualdl else None,
        )
        if not last:
            return EvaluationResult(metrics)
        names = distinct_names(dataset.class_names, dataset.num_classes)
        files = {**class_files(names, class_columns(matrix)), **confusion_files(names, matrix)}
        return EvaluationResult(metrics, per_class_table(names, matrix, kind), files)

    def _draw(
        self,
        kind: str,
        step: int,
        indices: Sequence[int],
        place: int,
        batch: Mapping[str, Any],
        label: np.ndarray,
        prediction: np.ndarray,
    ) -> None:
        """Log the first images of this rank's shard with their masks and predictions, named by their index."""
        if place < self._config.PICTURES:
            image = original_image(batch["img"], batch["trans_info"], *_mean_and_std(self.dataset))
            picture = prediction_beside_truth(image, label, prediction, self.dataset.class_names)
            self._log.picture(f"{kind}/image {indices[place]}", step, picture)


def _split_warnings(train_set: datasets.Dataset, val_set: datasets.Dataset) -> list[str]:
    images = ([image for image, _ in dataset.file_list] for dataset in (train_set, val_set))
    lines = split_warnings(train_set.class_names, *images)
    for split, dataset in (("training", train_set), ("validation", val_set)):
        pairs = [*dict.fromkeys(tuple(map(os.path.normpath, pair)) for pair in dataset.file_list)]
        masks = Counter(image for image, _ in pairs)
        if repeated := [image for image, count in masks.items() if count > 1]:
            lines.append(
                f"{len(repeated):,} images of the {split} data have more than one mask, such as "
                f"{printable(min(repeated))}; keep the line of the right one"
            )
        images_of = Counter(mask for _, mask in pairs)
        if shared := [mask for mask, count in images_of.items() if count > 1]:
            lines.append(
                f"{len(shared):,} masks of the {split} data belong to more than one image, such as "
                f"{printable(min(shared))}; give each image its own"
            )
        of_images, of_masks = (_distinguishing_parts(paths) for paths in zip(*pairs, strict=True))
        crossed = [pair for pair, *parts in zip(pairs, of_images, of_masks, strict=True) if parts[0] != parts[1]]
        if crossed and set(of_images) == set(of_masks):  # otherwise their names have nothing to do with each other
            image, mask = min(crossed)
            lines.append(
                f"{len(crossed):,} images of the {split} data have the mask with the name of another, such as "
                f"{printable(image)} with {printable(mask)}; check the order of the list"
            )
    lines += normalization_warning(_mean_and_std(train_set), _mean_and_std(val_set))
    return lines + _palette_warning(train_set, val_set)


def _distinguishing_parts(paths: Sequence[str]) -> list[str]:
    """The names of files without suffix, and without the first and last characters that all have in common."""
    stems = [Path(path).stem for path in paths]
    before = len(os.path.commonprefix(stems))  # noqa: RUF071 (of names, not of paths)
    stems = [stem[before:] for stem in stems]
    after = len(os.path.commonprefix([stem[::-1] for stem in stems]))  # noqa: RUF071
    return [stem[: len(stem) - after] for stem in stems]


def _palette_warning(*data_sets: datasets.Dataset) -> list[str]:
    """Name two masks whose palettes give a class different colors, among the first of each data set."""
    first: dict[int, tuple[str, str]] = {}
    for dataset in data_sets:
        for _, path in dataset.file_list[:_PALETTES]:
            with suppress(OSError, ValueError, UserError), open_image(path) as mask:  # the check names these
                if mask.format == "PNG" and mask.palette:  # which is in the header
                    colors = bytes(mask.palette.palette)[: 3 * dataset.num_classes]
                    for index in range(len(colors) // 3):
                        color = colors[3 * index : 3 * index + 3].hex()
                        other, expected = first.setdefault(index, (path, color))
                        if color != expected:
                            return [
                                f"the palette of {printable(path)} has the color #{color} for class {index}, that of "
                                f"{printable(other)} #{expected}: masks are read by index, not by color; give all "
                                "masks the same palette"
                            ]
    return []


def _hash_data(dataset: datasets.Dataset) -> str:
    root = str(dataset.dataset_root)
    names = [str(path).removeprefix(root) for files in dataset.file_list for path in files]
    return data_hash(dataset.class_names or (), names)


def _mean_and_std(dataset: datasets.Dataset) -> tuple[Any, Any]:
    """The values that the transforms of a data set normalize with."""
    for transform in dataset.transforms.transforms:
        if hasattr(transform, "mean"):
            return transform.mean, transform.std
    return 0.0, 1.0 / 255.0
