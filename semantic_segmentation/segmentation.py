"""Training and evaluation of one configuration: what is particular to semantic segmentation.

Data, transforms, losses, schedule and inference are PaddleSeg's. Its training loop is not used: it cannot resume inside
a pass over the data, stop all ranks at one step, accumulate gradients, or evaluate an EMA.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddleseg import datasets
from paddleseg.core.train import loss_computation
from paddleseg.cvlibs import manager
from paddleseg.utils import logger
from yacs.config import CfgNode

from common.checkpoints.loading import build_lazily
from common.errors import UserError
from common.runtime.distributed import rank, world_size
from common.training.config import plain
from common.training.dry_run import try_loss
from common.training.loader import build_loader
from common.training.measurement import Measurement, unlike_defaults
from common.training.paper_figures import VALIDATION
from common.training.sampler import IterationSampler, SampleKey, ShardedEvalSampler
from common.training.task import Task, Training
from common.training.trainer import Evaluation, StepResult
from semantic_segmentation.components import (
    build_losses,
    build_model,
    build_optimizer,
    build_schedule,
    defaults_of,
    find_component,
)
from semantic_segmentation.config import CONFIG
from semantic_segmentation.data_check import DataReport, check_dataset, check_once
from semantic_segmentation.datasets import (
    EvalDataset,
    SeededDataset,
    build_dataset,
    check_batch,
    collate_eval,
    collate_train,
)
from semantic_segmentation.evaluation import evaluate, per_class_table
from semantic_segmentation.inference import InferenceSettings
from semantic_segmentation.pictures import labelled_images, original_image, prediction_beside_truth

__all__ = ["Segmentation"]


class Segmentation(Task):
    """One run of the launcher.

    Args:
        config: the frozen configuration.
    """

    name = "semantic_segmentation"
    form = CONFIG
    criterion = "mIoU"
    unit = "step"
    length_key = "iters"

    def __init__(self, config: CfgNode):
        super().__init__(config)
        logger.log_level = 0  # PaddleSeg would print every section that it builds

    def model_name(self) -> str:
        backbone = self.config.model.get("backbone", {})
        return str(backbone.get("variant", backbone.get("type", self.config.model.type)))

    def data_reports(self) -> Iterator[DataReport]:
        for split, name in (("train", "train_dataset"), ("val", "val_dataset")):
            dataset = self._dataset(name)
            with self.log.progress(len(dataset), split) as bar:
                report = check_dataset(dataset, split, lambda done, total, bar=bar: bar.update(1), list_all=True)
            yield report

    def check(self, training: Training) -> None:
        """Try a step, then look at all data, unless it has passed before."""
        images = training.loader.dataset
        self._try_step(training, [images[key] for key in next(iter(training.sampler))])
        check_batch(EvalDataset(self._val_set)[SampleKey(0, 0, 0)])  # the transforms work
        record = Path(self.config.OUTPUT) / "data_check.json"
        for split, dataset in (("train", images.dataset), ("val", self._val_set)):
            with self.log.progress(len(dataset), f"checking {split}") as bar:
                report = check_once(dataset, split, record, lambda done, total, bar=bar: bar.update(1))
            for line in report.warnings() if report else ():
                self.log.line(f"warning: {line}")

    @staticmethod
    def _try_step(training: Training, samples: list[dict[str, Any]]) -> None:
        """Try a step on what can be read of the first batch; the check of the data says what is wrong with the rest."""
        usable = [sample for sample in samples if not sample["error"]]
        if not usable:
            error = samples[0]["error"]
            raise UserError(f"no image of the first batch can be used: {error} (-check_data looks at all of them)")
        batch = collate_train(usable)
        check_batch(batch)
        # Masks have not been checked yet, and on GPUs a value that is no class would end the process.
        batch = {"img": batch["img"], "label": np.zeros_like(batch["label"])}
        tensors = {name: paddle.to_tensor(array) for name, array in batch.items()}
        try_loss(training.model, training.loss_function, {**tensors, "error": ""})

    def build_training(self, resumed: bool) -> Training:
        config = self.config
        train_set, val_set = self._dataset("train_dataset"), self._prepare_validation()
        if train_set.num_classes != val_set.num_classes:
            raise UserError(
                f"the training data has {train_set.num_classes} classes, the validation data {val_set.num_classes}"
            )
        sampler = IterationSampler(
            len(train_set),
            config.batch_size,
            config.SEED,
            rank(),
            world_size(),
            config.TRAIN.ACCUM_ITER,
            steps=config.iters,
        )
        classes = train_set.num_classes
        model = build_model(config, classes, load_pretrained=not resumed)
        losses = build_losses(config, train_set.ignore_index)
        learning_rate = build_schedule(config)
        return Training(
            model=model,
            loss_function=functools.partial(self._loss, losses=losses, ignore_index=train_set.ignore_index),
            loader=build_loader(SeededDataset(train_set, config.SEED), sampler, config.DATA.NUM_WORKERS, collate_train),
            sampler=sampler,
            optimizer=build_optimizer(config, model, learning_rate(0)),
            learning_rate=learning_rate,
            total_steps=config.iters,
            validate_steps=config.VALIDATE_STEPS,
            keep_steps=config.KEEP_STEPS,
            data=f"data: {len(train_set)} training and {len(val_set)} validation images, {classes} classes",
            alike={
                "training images": len(train_set),
                "validation images": len(val_set),
                "classes": classes,
            },
            metadata={"class_names": train_set.class_names},
        )

    def build_evaluation(self) -> nn.Layer:
        num_classes = self._prepare_validation().num_classes
        return build_lazily(lambda: build_model(self.config, num_classes))

    def validate(self, model: nn.Layer, kind: str) -> Evaluation:
        config, val_set = self.config, self._val_set
        sampler = ShardedEvalSampler(len(val_set), 1, rank(), world_size())
        loader = build_loader(EvalDataset(val_set), sampler, config.DATA.NUM_WORKERS, collate_eval)
        figures, matrix = evaluate(
            model,
            self.log.over(loader, kind),
            val_set.num_classes,
            val_set.ignore_index,
            self._inference,
            config.TRAIN.AMP,
            config.ABSENT_CLASSES,
            functools.partial(self._show, kind, sampler.indices) if self.log.has_visualdl else None,
        )
        last = config.EVAL or self.step == config.iters
        return Evaluation(figures, per_class_table(val_set.class_names, matrix, kind) if last else "")

    def draw_samples(self, batch: dict[str, Any]) -> np.ndarray | None:
        count = self.config.PICTURES
        if batch["error"] or not count:
            return None
        images = [original_image(image.unsqueeze(0), [], *self._normalisation()) for image in batch["img"][:count]]
        labels = batch["label"][:count].numpy()
        return labelled_images(images, labels.reshape([len(images), *labels.shape[-2:]]), self.class_names)

    def measurement(self, model: nn.Layer, figures: Mapping[str, float]) -> Measurement:
        section, data = plain(self.config.model), self.config.val_dataset
        component = find_component(section, "model", manager.MODELS)
        varied = unlike_defaults(section, defaults_of(component), "type", "num_classes", "backbone", "pretrained")
        paper_data, images = VALIDATION[self.name]
        is_papers = (data.type, figures["images"]) == (paper_data, images)
        folder = Path(data.get("dataset_root") or "").name if data.type == "Dataset" else ""
        suffix = "_multi_scale" if self._inference.aug_eval else ""
        return Measurement(
            model=" ".join([section["type"], self.model_name(), *varied]),
            data_set=f"{data.type} {folder}".strip(),
            figures={f"{metric}{suffix}": value for metric, value in figures.items() if metric != "images"},
            paper_model=self.model_name() if is_papers and section["type"] == "PaleUPerNet" and not varied else "",
        )

    def _show(
        self,
        kind: str,
        indices: Sequence[int],
        place: int,
        batch: Mapping[str, Any],
        label: np.ndarray,
        prediction: np.ndarray,
    ) -> None:
        """Give VisualDL the first images of this rank's share with their predictions and truth.

        With several ranks these are not the first of the validation data; their names say which they are.
        """
        if place < self.config.PICTURES:
            image = original_image(batch["img"], batch["trans_info"], *self._normalisation())
            picture = prediction_beside_truth(image, label, prediction, self._val_set.class_names)
            self.log.picture(f"{kind}/image {indices[place]}", self.step, picture)

    def _normalisation(self) -> tuple[Any, Any]:
        for transform in self._val_set.transforms.transforms:
            if hasattr(transform, "mean"):
                return transform.mean, transform.std
        return 0.0, 1.0 / 255.0

    def _prepare_validation(self) -> datasets.Dataset:
        self._inference = InferenceSettings.from_test_config(plain(self.config.test_config))
        self._val_set = self._dataset("val_dataset")
        self.class_names = self._val_set.class_names
        return self._val_set

    def _dataset(self, name: str) -> datasets.Dataset:
        return build_dataset(plain(self.config[name]), name)

    @staticmethod
    def _loss(
        model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator, losses: dict[str, list], ignore_index: int
    ) -> StepResult:
        check_batch(batch)
        images, labels = batch["img"], batch["label"]
        outputs = [logits.astype("float32") for logits in model(images)]
        if len(outputs) != len(losses["types"]):
            raise UserError(f"the model has {len(outputs)} outputs in training, loss has {len(losses['types'])} types")
        terms = [term.reshape([]) for term in loss_computation(outputs, labels, None, losses)]
        labelled = labels != ignore_index
        correct = (outputs[0].argmax(1) == labels) & labelled
        accuracy = 100.0 * correct.astype("float32").sum() / labelled.astype("float32").sum().clip(min=1.0)
        return StepResult(sum(terms[1:], terms[0]), len(images), {"aAcc": accuracy})
