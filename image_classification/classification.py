"""Training and evaluation of one configuration: what is particular to classification."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from common.checkpoints.loading import build_lazily
from common.pictures.drawing import original_pixels
from common.runtime.distributed import world_size
from common.training.measurement import Measurement
from common.training.optimizer import build_adamw, warmup_cosine
from common.training.paper_figures import VALIDATION
from common.training.task import Task, Training
from common.training.trainer import Evaluation, StepResult
from image_classification.config import CONFIG, check_token_labels, model_title
from image_classification.datasets import Dataset, build_dataset
from image_classification.evaluation import evaluate
from image_classification.label_maps import LabelMaps
from image_classification.loaders import IGNORED_LABEL, build_eval_loader, build_train_loader, check_batch
from image_classification.mixup import mixup_or_cutmix, smooth, smooth_one_hot
from image_classification.pale_backbone import build_model
from image_classification.pictures import row_of_images
from image_classification.token_labelling import (
    draw_mixed_tokens,
    mix_classes,
    mix_tokens,
    token_label_loss,
    token_targets,
)
from image_classification.token_sampling import TOKEN_STRIDE

__all__ = ["Classification"]


class Classification(Task):
    """One run of the launcher.

    Args:
        config: the frozen configuration.
    """

    name = "image_classification"
    form = CONFIG
    criterion = "top1"
    length_key = "TRAIN.EPOCHS"

    def model_name(self) -> str:
        return self.config.MODEL.NAME

    def build_training(self, resumed: bool) -> Training:
        config = self.config
        if config.TOKEN_LABEL.MAPS:
            check_token_labels(config)
        train_set, val_set = self._dataset("train"), self._dataset("val")
        self._names = train_set.class_names
        num_classes = config.MODEL.NUM_CLASSES or train_set.num_classes
        maps = LabelMaps(config.TOKEN_LABEL.MAPS, train_set, num_classes) if config.TOKEN_LABEL.MAPS else None
        loader, sampler = build_train_loader(config, train_set, maps)
        self._val_loader = build_eval_loader(config, val_set)
        model = build_model(config, num_classes, token_labels=maps is not None)
        loss_function = self._token_label_loss if maps else self._loss
        data = f"data: {len(train_set)} training and {len(val_set)} validation images of {num_classes} classes"
        alike = {"training images": len(train_set), "validation images": len(val_set), "classes": num_classes}
        steps_per_epoch = sampler.num_batches // config.TRAIN.ACCUM_ITER
        return Training(
            model=model,
            loss_function=functools.partial(loss_function, num_classes=num_classes),
            loader=loader,
            sampler=sampler,
            optimizer=build_adamw(
                model, config.TRAIN.BASE_LR, config.TRAIN.WEIGHT_DECAY, config.TRAIN.BETAS, config.TRAIN.LAYER_DECAY
            ),
            learning_rate=self._learning_rate(steps_per_epoch),
            total_steps=steps_per_epoch * config.TRAIN.EPOCHS,
            validate_steps=steps_per_epoch * config.VALIDATE_EPOCHS,
            keep_steps=steps_per_epoch * config.SAVE_EPOCHS,
            data=f"{data}\nlabel maps: {maps.info}" if maps else data,
            alike={**alike, "label maps": zlib.crc32(str(maps.info).encode())} if maps else alike,
            metadata={"class_names": train_set.class_names},
        )

    def build_evaluation(self) -> nn.Layer:
        val_set = self._dataset("val")
        self.class_names = self._names = val_set.class_names
        self._val_loader = build_eval_loader(self.config, val_set)
        num_classes = self.config.MODEL.NUM_CLASSES or val_set.num_classes
        return build_lazily(lambda: build_model(self.config, num_classes))

    def validate(self, model: nn.Layer, kind: str) -> Evaluation:
        batches = self.log.over(self._val_loader, kind)
        show = functools.partial(self._show, kind) if self.log.has_visualdl else None
        return Evaluation(evaluate(model, batches, self.config.TRAIN.AMP, self.config.DATA.SKIP_BROKEN, show))

    def draw_samples(self, batch: dict[str, Any]) -> np.ndarray | None:
        """See the base class; Mixup, CutMix and MixToken come after."""
        labels = batch["labels"][: self.config.PICTURES].tolist()
        return self._row(batch["images"], [self._class_name(label) for label in labels]) if labels else None

    def _show(self, kind: str, place: int, batch: Mapping[str, Any], logits: paddle.Tensor) -> None:
        """Give VisualDL the first images of this rank's share with what is true and what the model says."""
        if place or not self.config.PICTURES:
            return
        probabilities = F.softmax(logits[: self.config.PICTURES], axis=-1)
        titles = []
        for label, row in zip(batch["labels"].tolist(), probabilities.numpy(), strict=False):
            found = int(row.argmax())
            verdict = "right" if found == label else f"is {self._class_name(label)}"
            titles.append(f"{self._class_name(found)} {100 * row[found]:.0f} %, {verdict}")
        self.log.picture(f"{kind}/images", self.step, self._row(batch["images"], titles))

    def _row(self, images: paddle.Tensor, titles: Sequence[str]) -> np.ndarray:
        data = self.config.DATA
        shown = images[: len(titles)].astype("float32").numpy()
        return row_of_images([original_pixels(image, data.MEAN, data.STD) for image in shown], titles)

    def _class_name(self, label: int) -> str:
        if label == IGNORED_LABEL:
            return "unreadable"
        return str(self._names[label]) if self._names else str(label)

    def measurement(self, model: nn.Layer, figures: Mapping[str, float]) -> Measurement:
        data, title = self.config.DATA, model_title(self.config)
        paper_data, images = VALIDATION[self.name]
        in_lists = data.DATASET in ("imagenet2012", "list")
        is_papers = in_lists and (model.num_classes, figures["images"]) == (1000, images)
        is_row = is_papers and data.IMAGE_SIZE == 224 and title == self.config.MODEL.NAME
        folder = Path(data.DATA_PATH).name if in_lists or data.DATASET in ("folder", "idx") else ""
        top1 = "top1_token_labels" if self.config.TOKEN_LABEL.MAPS else "top1"
        top5 = {"top5": figures["top5"]} if "top5" in figures else {}
        return Measurement(
            model=title,
            data_set=paper_data if is_papers else f"{data.DATASET} {folder}".strip(),
            figures={top1: figures["top1"], **top5},
            paper_model=title if is_row else "",
        )

    def _dataset(self, split: str) -> Dataset:
        data = self.config.DATA
        return build_dataset(data.DATASET, data.DATA_PATH or None, split, self.config.MODEL.NUM_CLASSES or None)

    def _loss(self, model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator, num_classes: int) -> StepResult:
        aug = self.config.AUG
        skipped = check_batch(batch, self.config.DATA.SKIP_BROKEN, training=True)
        images, targets = mixup_or_cutmix(
            batch["images"],
            batch["labels"],
            num_classes,
            rng,
            aug.MIXUP,
            aug.CUTMIX,
            aug.MIX_PROB,
            aug.MIX_SWITCH_PROB,
            aug.LABEL_SMOOTHING,
        )
        logits = model(images).astype("float32")
        loss = F.cross_entropy(logits, targets, soft_label=True)
        top1 = 100.0 * (logits.argmax(-1) == batch["labels"]).astype("float32").mean()
        return StepResult(loss, len(images), {"top1": top1}, len(skipped))

    def _token_label_loss(
        self, model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator, num_classes: int
    ) -> StepResult:
        config = self.config
        skipped = check_batch(batch, config.DATA.SKIP_BROKEN, training=True)
        images, labels = batch["images"], batch["labels"]
        side = config.DATA.IMAGE_SIZE // TOKEN_STRIDE
        mixed = draw_mixed_tokens(side, side, config.TOKEN_LABEL.MIX_TOKEN, rng)
        logits, token_logits = model(images, mixed)
        with paddle.amp.auto_cast(enable=False):
            targets = token_targets(batch["map_classes"], batch["map_scores"], batch["token_weights"], num_classes)
            targets = smooth(targets, config.AUG.LABEL_SMOOTHING)
            if config.TOKEN_LABEL.CLASS_FROM_MAP:
                class_targets = targets.mean(1)
            else:
                class_targets = smooth_one_hot(labels, num_classes, config.AUG.LABEL_SMOOTHING)
            class_targets = mix_classes(class_targets, mixed)
            targets = mix_tokens(targets.reshape(token_logits.shape), mixed)
            loss = token_label_loss(logits, token_logits, class_targets, targets, config.TOKEN_LABEL.WEIGHT)
        top1 = 100.0 * (logits.argmax(-1) == labels).astype("float32").mean()
        token_top1 = 100.0 * (token_logits.argmax(-1) == targets.argmax(-1)).astype("float32").mean()
        return StepResult(loss, len(images), {"top1": top1, "token_top1": token_top1}, len(skipped))

    def _learning_rate(self, steps_per_epoch: int):
        train = self.config.TRAIN
        global_batch = self.config.DATA.BATCH_SIZE * world_size() * train.ACCUM_ITER
        scale = global_batch / train.LINEAR_SCALED_LR if train.LINEAR_SCALED_LR else 1.0
        return functools.partial(
            warmup_cosine,
            total_steps=steps_per_epoch * train.EPOCHS,
            warmup_steps=round(steps_per_epoch * train.WARMUP_EPOCHS),
            base_lr=train.BASE_LR * scale,
            warmup_lr=train.WARMUP_LR * scale,
            end_lr=train.END_LR * scale,
        )
