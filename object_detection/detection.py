"""Training and evaluation of one configuration: what is particular to object detection.

Models, transforms and schedule are PaddleDetection's. Its Trainer is not used: it cannot resume bit by bit, stop all
ranks at one step, or evaluate on all of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from pycocotools.coco import COCO
from yacs.config import CfgNode

from common.data.image_file import read_image
from common.errors import UserError, one_line
from common.flops import params
from common.pictures.drawing import original_pixels, side_by_side
from common.runtime.distributed import is_main_process, rank, world_size
from common.training.dry_run import try_loss
from common.training.loader import build_loader
from common.training.measurement import Measurement
from common.training.paper_figures import VALIDATION, find_figure
from common.training.sampler import SampleKey, ShardedEvalSampler, ShardedTrainSampler
from common.training.task import Task, Training
from common.training.trainer import Evaluation, StepResult
from object_detection.check_annotations import AnnotationReport, check_annotations
from object_detection.coco_file import check_same_categories, index_annotations, read_annotations
from object_detection.components import build_model, build_optimizer, build_schedule, silence_loggers
from object_detection.config import CONFIG
from object_detection.datasets import (
    CocoData,
    EvalDataset,
    SeededDataset,
    build_dataset,
    build_transforms,
    check_batch,
    collate,
    find_normalization,
    read_records,
    require_fields,
    with_object_tensors,
)
from object_detection.evaluation import Detections, annotated_objects, detect, evaluate, per_class_table
from object_detection.pictures import detections_beside_truth, draw_detections

__all__ = ["Detection"]

_PAPER_EPOCHS = 12  # of the paper's Mask R-CNN, "1x" [P]
_SPLITS = {"TrainDataset": "train", "EvalDataset": "val"}


class Detection(Task):
    """One run of the launcher.

    Args:
        config: the frozen configuration.
    """

    name = "object_detection"
    form = CONFIG
    criterion = "box_AP"
    length_key = "epoch"

    def __init__(self, config: CfgNode):
        super().__init__(config)
        silence_loggers()
        self._total_steps = 0  # of the training, if there is any

    def model_name(self) -> str:
        return str(self.config.get("PaleTransformer", {}).get("variant", self.config.architecture))

    def data_reports(self) -> Iterator[AnnotationReport]:
        masks = _has_masks(build_model(self.config, max(self.config.num_classes, 1)))
        parts = []
        for name in _SPLITS:
            parts.append(self._read(name))
            yield self._check(*parts[-1], masks, raise_errors=False)[1]
        _check_same_categories(*parts)

    def build_training(self, resumed: bool) -> Training:
        config = self.config
        (data, annotations), (val_data, val_annotations) = parts = [self._read(name) for name in _SPLITS]
        _check_same_categories(*parts)
        num_classes = self._count_classes(annotations)
        model = build_model(config, num_classes, load_pretrained=not resumed)
        optimizer = build_optimizer(config, model, 0.0)  # the trainer sets the rate of each step
        require_fields(data, _has_masks(model))
        transforms, batch_transforms = build_transforms(config, "TrainReader", num_classes)
        self._prepare_validation(val_data, val_annotations, model)
        records = read_records(data, self._use(data, annotations, _has_masks(model)), config.SEED)
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
        steps_per_epoch = sampler.num_batches // config.TRAIN.ACCUM_ITER
        learning_rate = build_schedule(config, steps_per_epoch)
        self._total_steps = steps_per_epoch * config.epoch
        return Training(
            model=model,
            loss_function=self._loss,
            loader=build_loader(
                SeededDataset(records, transforms, config.SEED),
                sampler,
                config.DATA.NUM_WORKERS,
                functools.partial(collate, transforms=batch_transforms),
            ),
            sampler=sampler,
            optimizer=optimizer,
            learning_rate=learning_rate,
            total_steps=self._total_steps,
            validate_steps=steps_per_epoch * config.VALIDATE_EPOCHS,
            keep_steps=steps_per_epoch * config.SAVE_EPOCHS,
            data=f"data: {len(records)} training and {len(self._val_records)} validation images, {num_classes} classes",
            alike={
                "training images": len(records),
                "validation images": len(self._val_records),
                "classes": num_classes,
            },
            metadata={"class_names": _class_names(annotations, num_classes)},
            find_unused=True,  # without an object in its batch, a rank does not use the layer that refines boxes
        )

    def build_evaluation(self) -> nn.Layer:
        data, annotations = self._read("EvalDataset")
        model = build_model(self.config, self._count_classes(annotations))
        self._prepare_validation(data, annotations, model)
        self._try_validation(model)
        return model

    def check(self, training: Training) -> None:
        """Try a step on the first batch, and the first image of the validation."""
        images = training.loader.dataset
        batch = training.loader.collate_fn([images[key] for key in next(iter(training.sampler))])
        check_batch(batch)
        try_loss(training.model, training.loss_function, _as_tensors(batch))
        self._try_validation(training.model)

    def validate(self, model: nn.Layer, kind: str) -> Evaluation:
        config = self.config
        sampler = ShardedEvalSampler(len(self._val_records), 1, rank(), world_size())
        loader = build_loader(self._val_set, sampler, config.DATA.NUM_WORKERS, self._val_collate)
        found = evaluate(
            model,
            self.log.over(loader, kind),
            self._truth,
            _has_masks(model),
            config.TRAIN.AMP,
            functools.partial(self._show, kind) if self.log.has_visualdl else None,
        )
        if is_main_process():
            self._write_results(kind, found.results)
        if not is_main_process() or (not config.EVAL and self.step < self._total_steps):
            return Evaluation(found.metrics)
        return Evaluation(found.metrics, per_class_table(self._truth, found.per_class, kind))

    def draw_samples(self, batch: dict[str, Any]) -> np.ndarray | None:
        count = min(self.config.PICTURES, len(batch["image"]))
        if batch["error"] or not count:
            return None
        mean, std = find_normalization(self.config, "TrainReader")
        pictures = []
        for number in range(count):
            pixels = original_pixels(batch["image"][number].numpy(), mean, std)
            boxes, labels = (batch[key][number].values for key in ("gt_bbox", "gt_class"))
            pictures.append(draw_detections(pixels, boxes, labels.ravel().astype(int), None, None, self.class_names))
        return side_by_side(pictures, [f"image {number + 1}" for number in range(count)])

    def measurement(self, model: nn.Layer, figures: Mapping[str, float]) -> Measurement:
        config, variant = self.config, self.model_name()
        paper_data, images = VALIDATION[self.name]
        annotations = Path(str(config.EvalDataset.get("anno_path", ""))).name
        is_papers = (annotations, figures["images"]) == ("instances_val2017.json", images)
        size = find_figure(self.name, variant, "params")
        alike = size and abs(params(model) / 1e6 - size.value) <= size.last_digit
        is_row = is_papers and alike and config.architecture == "MaskRCNN" and config.epoch == _PAPER_EPOCHS
        folder = Path(str(config.EvalDataset.get("dataset_dir", ""))).name
        return Measurement(
            model=f"{config.architecture} {variant} {config.epoch} epochs",
            data_set=paper_data if is_papers else f"{config.EvalDataset.get('name')} {folder}".strip(),
            figures={metric: value for metric, value in figures.items() if metric != "images"},
            paper_model=variant if is_row else "",
        )

    # ---- data

    def _read(self, name: str) -> tuple[CocoData, dict[str, Any]]:
        data = build_dataset(self.config, name)
        return data, read_annotations(data.file, name)

    def _count_classes(self, annotations: Mapping[str, Any]) -> int:
        return self.config.num_classes or len(annotations["categories"])

    def _check(
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

    def _use(self, data: CocoData, annotations: dict[str, Any], masks: bool) -> COCO:
        """The annotations as they are used, after a look at all of them, and at the images unless they have passed."""
        record = Path(self.config.OUTPUT) / "data_check.json"
        used, report = self._check(data, annotations, masks, record=record)
        for line in report.warnings():
            self.log.line(f"warning: {line}")
        return index_annotations(used)

    def _prepare_validation(self, data: CocoData, annotations: dict[str, Any], model: nn.Layer) -> None:
        num_classes = self._count_classes(annotations)
        transforms, batch_transforms = build_transforms(self.config, "EvalReader", num_classes)
        self.class_names = _class_names(annotations, num_classes)
        self._truth = self._use(data, annotations, _has_masks(model))
        self._val_records = read_records(data, self._truth, self.config.SEED)
        self._val_set = EvalDataset(self._val_records, transforms)
        self._val_collate = functools.partial(collate, transforms=batch_transforms)

    def _try_validation(self, model: nn.Layer) -> None:
        batch = self._val_collate([self._val_set[SampleKey(0, 0, 0)]])
        check_batch(batch)
        training = model.training
        model.eval()
        try:
            detect(model, _as_tensors(batch), self.config.TRAIN.AMP)
        except Exception as error:
            raise UserError(
                f"the first validation image fails: {one_line(error)}; check the model and EvalReader "
                "(-debug shows where it happens)"
            ) from error
        finally:
            if training:
                model.train()

    # ---- results

    def _write_results(self, kind: str, results: Mapping[str, list[dict[str, Any]]]) -> None:
        """Leave COCO's result files, ``val_bbox.json`` and the like."""
        folder = Path(self.config.OUTPUT)
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in results.items():
            (folder / f"{kind}_{name}.json").write_text(json.dumps(rows), encoding="utf-8")

    def _show(self, kind: str, place: int, image_id: int, found: Detections) -> None:
        """Give VisualDL the first images of this rank's share with what was found and the truth."""
        if place >= self.config.PICTURES:
            return
        record = next(record for record in self._val_records if record["im_id"][0] == image_id)
        truth = annotated_objects(self._truth, image_id, found.masks is not None)
        image = read_image(record["im_file"])
        picture = detections_beside_truth(image, found, truth, self.class_names, self.config.PICTURE_THRESHOLD)
        self.log.picture(f"{kind}/image {image_id}", self.step, picture)

    @staticmethod
    def _loss(model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator) -> StepResult:
        check_batch(batch)
        losses = {
            name: value.astype("float32").reshape([]) for name, value in model(with_object_tensors(batch)).items()
        }
        total = losses.pop("loss")
        return StepResult(total, len(batch["image"]), losses)


def _has_masks(model: nn.Layer) -> bool:
    return getattr(model, "mask_head", None) is not None


def _check_same_categories(train: tuple[CocoData, dict[str, Any]], val: tuple[CocoData, dict[str, Any]]) -> None:
    """See :func:`object_detection.coco_file.check_same_categories`."""
    check_same_categories(train[1], val[1], (train[0].file, val[0].file))


def _class_names(annotations: Mapping[str, Any], num_classes: int) -> list[str]:
    """The names of the categories, and the numbers of classes that have none."""
    names = [category["name"] for category in annotations["categories"]]
    return names + [str(number) for number in range(len(names), num_classes)]


def _as_tensors(batch: Any) -> Any:
    """What the loader makes of a batch."""
    if isinstance(batch, dict):
        return {key: _as_tensors(value) for key, value in batch.items()}
    if isinstance(batch, list):
        return [_as_tensors(value) for value in batch]
    return paddle.to_tensor(batch) if isinstance(batch, np.ndarray) else batch
