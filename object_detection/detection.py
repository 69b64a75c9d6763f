"""Training and evaluation of object detection.

Models, transforms and schedule are PaddleDetection's. Its Trainer is not used: it cannot resume exactly, stop all ranks
at one step, or evaluate on all of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from yacs.config import CfgNode

from common.checkpoints.download import sha256_of
from common.checkpoints.loading import Checkpoint
from common.data.class_names import distinct_names, list_names
from common.data.image_file import read_image
from common.data.split_warnings import normalization_warning, split_warnings
from common.errors import UserError, one_line
from common.pictures.charts import draw_precision_recall
from common.pictures.drawing import denormalize, side_by_side
from common.runtime.atomic_file import write_text
from common.runtime.csv_table import write_columns
from common.runtime.distributed import is_main_process, rank, world_size
from common.training.dry_run import dry_run_loss
from common.training.evaluation_report import class_files
from common.training.loader import Loader
from common.training.log import TrainingLog
from common.training.log_format import counted
from common.training.optimizer import build_optimizer
from common.training.sampler import SampleKey, ShardedEvalSampler, ShardedTrainSampler
from common.training.task import BatchResult, EvaluationResult, Evaluator, Task, Training
from object_detection.annotation_report import AnnotationReport
from object_detection.check_annotations import check_annotations
from object_detection.coco_file import (
    check_same_categories,
    complete_categories,
    index_annotations,
    read_annotations,
)
from object_detection.components import (
    OPTIMIZER_SECTION,
    build_model,
    build_schedule,
    optimizer_section,
    silence_loggers,
)
from object_detection.config import CONFIG
from object_detection.datasets import (
    CocoData,
    SeededDataset,
    build_dataset,
    build_transforms,
    collate,
    find_normalization,
    read_records,
)
from object_detection.evaluation import (
    Detections,
    annotated_objects,
    class_columns,
    curve_columns,
    detect,
    evaluate,
    per_class_table,
)
from object_detection.pictures import detections_beside_truth, draw_detections

__all__ = ["Detection"]

_SPLITS = {"TrainDataset": "train", "EvalDataset": "val"}


class Detection(Task):
    """See :class:`common.training.task.Task`."""

    name = "object_detection"
    config_spec = CONFIG
    criterion = "box_AP"
    shown_metrics = ("box_AP", "box_AP50", "mask_AP", "mask_AP50")
    length_key = "epoch"

    def __init__(self, config: CfgNode):
        super().__init__(config)
        silence_loggers()

    @property
    def backbone_name(self) -> str:
        return str(self.config.get("PaleTransformer", {}).get("variant", self.config.architecture))

    @property
    def model_name(self) -> str:
        return f"{self.config.architecture} {self.backbone_name} {self.config.epoch} epochs"

    def build_training(self, resumed: bool) -> Training:
        config = self.config
        (data, annotations), (val_data, val_annotations) = (self._read(name) for name in _SPLITS)
        check_same_categories(annotations, val_annotations, (data.file, val_data.file))
        num_classes = self._count_classes(annotations)
        class_names = _class_names(annotations, num_classes)
        model = build_model(config, num_classes, load_pretrained=not resumed)
        self.freeze(model)
        optimizer = build_optimizer(optimizer_section(config), model, config.TRAIN.LAYER_DECAY, OPTIMIZER_SECTION)
        transforms, batch_transforms = build_transforms(config, "TrainReader", num_classes, _has_masks(model))
        evaluator = self._build_evaluator(val_data, val_annotations, model)
        usable = index_annotations(self._check(data, annotations, _has_masks(model)))
        records = read_records(data, usable, config.SEED, _has_masks(model))
        try:
            sampler = ShardedTrainSampler(
                len(records),
                config.TrainReader.get("batch_size", 1),
                config.SEED,
                rank(),
                world_size(),
                config.TRAIN.ACCUM_ITER,
            )
        except ValueError as error:
            raise UserError(f"{error}; lower one of them") from error
        val_images = len(evaluator.records)
        return Training(
            model=model,
            compute_loss=self._loss,
            loader=Loader(
                SeededDataset(records, transforms, config.SEED),
                sampler,
                config.DATA.NUM_WORKERS,
                functools.partial(collate, transforms=batch_transforms),
            ),
            sampler=sampler,
            optimizer=optimizer,
            learning_rate=build_schedule(config, sampler.steps_per_epoch),
            total_steps=sampler.steps_per_epoch * config.epoch,
            evaluator=evaluator,
            class_names=class_names,
            description=f"{len(records):,} training and {val_images:,} validation images of "
            f"{counted(num_classes, 'class', 'classes')}: {list_names(class_names)}",
            warnings=_split_warnings(config, (data, annotations), (val_data, val_annotations)),
            data_hashes={
                "training annotations": sha256_of(data.file),
                "validation annotations": evaluator.data_hash,
            },
            draw_samples=functools.partial(self._draw_samples, class_names=class_names),
            find_unused_parameters=True,  # the layer that refines boxes is not used on a rank without objects
        )

    def build_evaluation(self, checkpoint: Checkpoint) -> tuple[nn.Layer, Evaluator]:
        data, annotations = self._read("EvalDataset")
        annotations = complete_categories(annotations, checkpoint.class_names or ())
        model = build_model(self.config, self._count_classes(annotations))
        evaluator = self._build_evaluator(data, annotations, model)
        evaluator.dry_run(model)
        return model, evaluator

    def preflight(self, training: Training) -> None:
        """Dry-run a step on the first batch, and the first image of the validation."""
        batch = training.loader.read(next(iter(training.sampler)))
        dry_run_loss(training.model, training.compute_loss, _as_tensors(batch))
        training.evaluator.dry_run(training.model)

    def check_data(self) -> Iterator[AnnotationReport]:
        masks = _has_masks(build_model(self.config, max(self.config.num_classes, 1)))
        splits = []
        for name in _SPLITS:
            data, annotations = self._read(name)
            splits.append((data, annotations))
            yield self._report(data, annotations, masks, raise_errors=False)[1]
        for line in _split_warnings(self.config, *splits):
            self.log.line(f"warning: {line}")
        (data, annotations), (val_data, val_annotations) = splits
        check_same_categories(annotations, val_annotations, (data.file, val_data.file))

    # ---- data

    def _read(self, name: str) -> tuple[CocoData, dict[str, Any]]:
        data = build_dataset(self.config, name)
        return data, read_annotations(data.file, name)

    def _count_classes(self, annotations: Mapping[str, Any]) -> int:
        return self.config.num_classes or len(annotations["categories"])

    def _check(self, data: CocoData, annotations: dict[str, Any], masks: bool) -> dict[str, Any]:
        """Check all annotations, and all images unless they have passed before; return the usable annotations."""
        usable, report = self._report(data, annotations, masks, record=Path(self.config.OUTPUT) / "data_check.json")
        for line in report.warnings():
            self.log.line(f"warning: {line}")
        return usable

    def _report(
        self, data: CocoData, annotations: dict[str, Any], masks: bool, **options: Any
    ) -> tuple[dict[str, Any], AnnotationReport]:
        split = _SPLITS[data.name]
        with self.log.progress(len(annotations["images"]), f"checking {split}") as bar:
            return check_annotations(
                annotations,
                data.file,
                data.images,
                split,
                num_classes=self._count_classes(annotations),
                masks=masks,
                strict=self.config.STRICT_DATA,
                progress=lambda: bar.update(1),
                **options,
            )

    def _build_evaluator(self, data: CocoData, annotations: dict[str, Any], model: nn.Layer) -> DetectionEvaluator:
        class_names = _class_names(annotations, self._count_classes(annotations))
        transforms = build_transforms(self.config, "EvalReader", len(class_names))  # fails before the data is checked
        masks = _has_masks(model)
        usable = self._check(data, annotations, masks)
        return DetectionEvaluator(self.config, data, usable, class_names, masks, transforms, self.log)

    # ---- training

    @staticmethod
    def _loss(model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator) -> BatchResult:
        outputs = model({**batch, **batch["objects"].tensors()})
        losses = {name: value.astype("float32").reshape([]) for name, value in outputs.items()}
        total = losses.pop("loss")
        return BatchResult(total, len(batch["image"]), losses)

    def _draw_samples(self, batch: dict[str, Any], class_names: list[str]) -> np.ndarray | None:
        count = min(self.config.PICTURES, len(batch["image"]))
        if not count:
            return None
        mean, std = find_normalization(self.config, "TrainReader")
        pictures = []
        for number in range(count):
            pixels = denormalize(batch["image"][number].numpy(), mean, std)
            boxes, labels = (batch["objects"].fields[key][number] for key in ("gt_bbox", "gt_class"))
            pictures.append(draw_detections(pixels, boxes, labels.ravel().astype(int), None, None, class_names))
        return side_by_side(pictures, [f"image {number + 1}" for number in range(count)])


class DetectionEvaluator(Evaluator):
    """See :class:`common.training.task.Evaluator`.

    Args:
        annotations: the usable ones.
        class_names: of all classes of the model.
        masks: evaluate masks as well as boxes.
        transforms: those of a sample and those of a batch.

    Attributes:
        records: PaddleDetection's record of each image.
    """

    def __init__(
        self,
        config: CfgNode,
        data: CocoData,
        annotations: dict[str, Any],
        class_names: list[str],
        masks: bool,
        transforms: tuple[Any, Any],
        log: TrainingLog,
    ):
        sample_transforms, batch_transforms = transforms
        self.class_names, self.data_set = class_names, _data_title(config)
        self.data_hash = sha256_of(data.file)
        self._config, self._masks, self._log = config, masks, log
        self._truth = index_annotations(annotations)
        self.records = read_records(data, self._truth, config.SEED)
        self.example = str(self.records[0]["im_file"])
        self._dataset = SeededDataset(self.records, sample_transforms, config.SEED)
        self._collate = functools.partial(collate, transforms=batch_transforms)

    def evaluate(self, model: nn.Layer, kind: str = "val", step: int = 0, last: bool = True) -> EvaluationResult:
        config = self._config
        sampler = ShardedEvalSampler(len(self.records), 1, rank(), world_size())
        loader = Loader(self._dataset, sampler, config.DATA.NUM_WORKERS, self._collate)
        found = evaluate(
            model,
            self._log.batches(loader, kind),
            self._truth,
            self._masks,
            config.TRAIN.AMP,
            functools.partial(self._draw, kind, step) if self._log.has_visualdl else None,
        )
        if not is_main_process():
            return EvaluationResult(found.metrics)
        self._write_results(kind, found.results)
        if not last:
            return EvaluationResult(found.metrics)
        categories = [category["name"] for category in self._truth.dataset["categories"]]
        names = distinct_names(categories, len(categories))
        precision = {name: curve.precision for name, curve in found.curves.items()}
        files = {
            **class_files(names, class_columns(self._truth, found.per_class)),
            "precision_recall.csv": functools.partial(write_columns, columns=curve_columns(found.curves, names)),
            "precision_recall.png": functools.partial(
                draw_precision_recall, recall=found.curves["box"].recall, precision=precision, names=names
            ),
        }
        return EvaluationResult(found.metrics, per_class_table(self._truth, found.per_class, kind), files)

    def dry_run(self, model: nn.Layer) -> None:
        """Detect on the first image.

        Raises:
            UserError: that fails.
        """
        batch = self._collate([self._dataset[SampleKey(0, 0, 0)]])
        training = model.training
        model.eval()
        try:
            detect(model, _as_tensors(batch), self._config.TRAIN.AMP)
        except Exception as error:
            raise UserError(
                f"the first validation image fails: {one_line(error)}; check the model and EvalReader "
                "(-debug shows where it happens)"
            ) from error
        finally:
            if training:
                model.train()

    def _write_results(self, kind: str, results: Mapping[str, list[dict[str, Any]]]) -> None:
        """Write COCO's result files, ``val_bbox.json`` and the like, or ``eval_bbox.json`` outside of a run."""
        folder = Path(self._config.OUTPUT)
        for name, rows in results.items():
            write_text(folder / f"{kind}_{name}.json", json.dumps(rows))

    def _draw(self, kind: str, step: int, place: int, image_id: int, found: Detections) -> None:
        """Log the first images of this rank's shard with their detections and annotations."""
        if place >= self._config.PICTURES:
            return
        record = next(record for record in self.records if record["im_id"][0] == image_id)
        truth = annotated_objects(self._truth, image_id, found.masks is not None)
        image = read_image(record["im_file"])
        picture = detections_beside_truth(image, found, truth, self.class_names, self._config.PICTURE_THRESHOLD)
        self._log.picture(f"{kind}/image {image_id}", step, picture)


def _data_title(config: CfgNode) -> str:
    """What to call the validation data in a table of results."""
    section = config.EvalDataset
    if Path(str(section.get("anno_path", ""))).name == "instances_val2017.json":
        return "COCO"
    return f"{section.get('name')} {Path(str(section.get('dataset_dir', ''))).name}".strip()


def _has_masks(model: nn.Layer) -> bool:
    return getattr(model, "mask_head", None) is not None


def _split_warnings(config: CfgNode, *splits: tuple[CocoData, Mapping[str, Any]]) -> list[str]:
    """What both splits list, or differ in; :func:`check_annotations` refuses categories of one name."""
    images = (
        [str(data.images / image["file_name"]) for image in annotations["images"]] for data, annotations in splits
    )
    lines = split_warnings(None, *images)
    with contextlib.suppress(Exception):  # build_transforms says what is wrong with them
        lines += normalization_warning(*(find_normalization(config, name) for name in ("TrainReader", "EvalReader")))
    return lines


def _class_names(annotations: Mapping[str, Any], num_classes: int) -> list[str]:
    """The names of the categories, and the numbers of classes without a category."""
    names = [category["name"] for category in annotations["categories"]]
    return names + [str(number) for number in range(len(names), num_classes)]


def _as_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the arrays of a batch as the loader does."""
    return {key: paddle.to_tensor(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}
