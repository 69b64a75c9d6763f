"""Training and evaluation of image classification."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from yacs.config import CfgNode

from common.checkpoints.loading import Checkpoint
from common.data.class_names import distinct_names, list_names, renamed_classes
from common.data.split_warnings import split_warnings
from common.errors import UserError
from common.pictures.drawing import denormalize, side_by_side
from common.runtime.csv_table import write_columns
from common.runtime.distributed import gather_objects, world_size
from common.training.data_hash import data_hash
from common.training.evaluation_report import class_files, confusion_files
from common.training.log import TrainingLog
from common.training.log_format import counted, labeled
from common.training.optimizer import build_optimizer, warmup_cosine
from common.training.task import BatchResult, EvaluationResult, Evaluator, Task, Training
from image_classification.class_balance import class_weights, describe_weights, weighted_cross_entropy
from image_classification.config import CONFIG, check_token_labels, model_title
from image_classification.dataset_types import Dataset, FileDataset
from image_classification.datasets import build_dataset
from image_classification.evaluation import MAX_CONFUSED, class_columns, evaluate, per_class_tables
from image_classification.folders import refuse_output_among_classes
from image_classification.label_map_alignment import TOKEN_STRIDE
from image_classification.label_maps import LabelMaps
from image_classification.loaders import IGNORED_LABEL, build_eval_loader, build_train_loader, count_errors
from image_classification.mixup import mixup_or_cutmix, smooth, smooth_one_hot
from image_classification.pale_backbone import build_model
from image_classification.token_labeling import (
    draw_mixed_tokens,
    mix_classes,
    mix_tokens,
    token_label_loss,
    token_targets,
)
from image_classification.valid_labels import read_valid_labels

__all__ = ["Classification"]

_LEAST_AGREEMENT = 0.5  # of LABELS_JSON with the data


class Classification(Task):
    """See :class:`common.training.task.Task`."""

    name = "image_classification"
    config_spec = CONFIG
    criterion = "top1"
    shown_metrics = ("loss", "top1", "top5")
    length_key = "TRAIN.EPOCHS"

    def __init__(self, config: CfgNode):
        super().__init__(config)
        output, flag = (config.REPORT, "-report") if config.EVAL else (config.OUTPUT, "-output")
        if output and config.DATA.DATASET == "folder" and config.DATA.DATA_PATH:
            refuse_output_among_classes(Path(config.DATA.DATA_PATH), Path(output), flag)

    @property
    def backbone_name(self) -> str:
        return self.config.MODEL.NAME

    @property
    def model_name(self) -> str:
        return model_title(self.config)

    def build_training(self, resumed: bool) -> Training:
        config = self.config
        if config.TOKEN_LABEL.MAPS:
            check_token_labels(config)
        train_set = self._build_dataset("train", config.MODEL.NUM_CLASSES or None)
        num_classes = config.MODEL.NUM_CLASSES or train_set.num_classes
        val_set = self._build_dataset("val", num_classes, train_set.class_names)
        maps = LabelMaps(config.TOKEN_LABEL.MAPS, train_set, num_classes) if config.TOKEN_LABEL.MAPS else None
        loader, sampler = build_train_loader(config, train_set, maps)
        model = build_model(config, num_classes, token_labels=maps is not None)
        self.freeze(model)
        description, warnings = _describe_data({"training": train_set, "validation": val_set}, num_classes)
        names = (train_set.names(), val_set.names())
        warnings += split_warnings(
            train_set.class_names, *names, config.DATA.DATA_PATH, (train_set.labels.tolist(), val_set.labels.tolist())
        )
        weights = None
        if kind := config.DATA.CLASS_WEIGHTS:
            values = class_weights(train_set.labels, num_classes, kind)
            description += f"\n{describe_weights(values, _names(train_set, num_classes), kind)}"
            weights = paddle.to_tensor(values)
        if config.DATA.BALANCED_SAMPLING:
            present = len(np.unique(train_set.labels))
            description += f"\nbalanced sampling: an epoch has 1/{present} of its images from each of {present} classes"
        evaluator = ClassificationEvaluator(config, val_set, num_classes, self.log)
        data_hashes = {"training data": _hash_data(train_set), "validation data": evaluator.data_hash}
        if maps:
            description += f"\nlabel maps: {maps.info}"
            warnings += [f"other name in the label maps: {line}" for line in maps.renamed]
            data_hashes["label maps"] = str(maps.info)
        return Training(
            model=model,
            compute_loss=functools.partial(self._token_label_loss, num_classes=num_classes)
            if maps
            else functools.partial(self._loss, num_classes=num_classes, weights=weights),
            loader=loader,
            sampler=sampler,
            optimizer=self._build_optimizer(model),
            learning_rate=self._learning_rate(sampler.steps_per_epoch),
            total_steps=sampler.steps_per_epoch * config.TRAIN.EPOCHS,
            evaluator=evaluator,
            class_names=train_set.class_names,
            description=description,
            warnings=warnings,
            data_hashes=data_hashes,
            draw_samples=functools.partial(self._draw_samples, class_names=train_set.class_names),
        )

    def build_evaluation(self, checkpoint: Checkpoint) -> tuple[nn.Layer, Evaluator]:
        num_classes = self.config.MODEL.NUM_CLASSES or checkpoint.num_classes
        # Without names, the numbers of the classes may still be those of folders.
        class_names = checkpoint.class_names or [str(number) for number in range(num_classes or 0)]
        val_set = self._build_dataset("val", num_classes, class_names)
        unnamed = val_set.class_names is None  # as list files without names
        if unnamed:
            val_set.class_names = checkpoint.class_names
        num_classes = num_classes or val_set.num_classes
        if self.config.REPORT and num_classes > MAX_CONFUSED:
            raise UserError(f"-report takes at most {MAX_CONFUSED:,} classes, not {num_classes:,}; leave it out")
        if self.config.REPORT and self.config.DATA.LABELS_JSON:
            raise UserError(
                "-report needs one true class for each image, so not DATA.LABELS_JSON; leave one of them out"
            )
        description, warnings = _describe_data({"validation": val_set}, num_classes)
        warnings += renamed_classes(None, checkpoint.class_names) if unnamed else []
        self.log.line("\nwarning: ".join([labeled("images", description), *warnings]))
        if self.config.DATA.DATASET == "folder" and not checkpoint.class_names and val_set.class_names == class_names:
            self.log.line("the weights name no classes: the names of the class folders are taken as class numbers")
        if self.config.DATA.LABELS_JSON:
            val_set.valid_labels = read_valid_labels(Path(self.config.DATA.LABELS_JSON), val_set)
            labeled_images = (val_set.valid_labels != IGNORED_LABEL).any(1)
            agree = (val_set.valid_labels == val_set.labels[:, np.newaxis]).any(1)[labeled_images].mean()
            if agree < _LEAST_AGREEMENT:
                self.log.line(
                    f"warning: {self.config.DATA.LABELS_JSON} has the class of the data for only {agree:.0%} of the "
                    "images; check its order"
                )
        model = build_model(self.config, num_classes)
        return model, ClassificationEvaluator(self.config, val_set, num_classes, self.log)

    def preflight(self, training: Training) -> None:
        """Read the first batch, before a run that this one replaces is deleted."""
        if self.config.OVERWRITE:
            training.loader.read(next(iter(training.sampler)))

    def _build_dataset(self, split: str, num_classes: int | None, class_names: Sequence[str] | None = None) -> Dataset:
        data = self.config.DATA
        dataset = build_dataset(data.DATASET, data.DATA_PATH or None, split, num_classes, class_names)
        for line in dataset.warnings():
            self.log.line(f"warning: {split} data: {line}")
        return dataset

    def _build_optimizer(self, model: nn.Layer) -> paddle.optimizer.Optimizer:
        train = self.config.TRAIN
        beta1, beta2 = train.BETAS
        section = {"type": "AdamW", "weight_decay": train.WEIGHT_DECAY, "beta1": beta1, "beta2": beta2}
        return build_optimizer(section, model, train.LAYER_DECAY, "TRAIN")

    def _learning_rate(self, steps_per_epoch: int) -> Callable[[int], float]:
        train = self.config.TRAIN
        if train.END_LR > train.BASE_LR:
            raise UserError(f"TRAIN.END_LR is {train.END_LR:g}, above TRAIN.BASE_LR (-lr), {train.BASE_LR:g}; lower it")
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

    def _loss(
        self,
        model: nn.Layer,
        batch: dict[str, Any],
        rng: np.random.Generator,
        num_classes: int,
        weights: paddle.Tensor | None = None,
    ) -> BatchResult:
        images, targets = mixup_or_cutmix(batch["images"], batch["labels"], num_classes, rng, self.config.AUG, weights)
        logits = model(images).astype("float32")
        if weights is None:
            loss = F.cross_entropy(logits, targets, soft_label=True)
        else:
            loss = weighted_cross_entropy(logits, targets)
        top1 = 100.0 * (logits.argmax(-1) == batch["labels"]).astype("float32").mean()
        return BatchResult(loss, len(images), {"top1": top1}, count_errors(batch))

    def _token_label_loss(
        self, model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator, num_classes: int
    ) -> BatchResult:
        config = self.config
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
        return BatchResult(loss, len(images), {"top1": top1, "token_top1": token_top1}, count_errors(batch))

    def _draw_samples(self, batch: dict[str, Any], class_names: Sequence[str] | None) -> np.ndarray | None:
        """The first images of a batch before Mixup, CutMix and MixToken."""
        labels = batch["labels"][: self.config.PICTURES].tolist()
        titles = [_class_name(label, class_names) for label in labels]
        images = batch["images"][: len(labels)].astype("float32").numpy()
        return _draw_row(self.config, images, titles) if labels else None


class ClassificationEvaluator(Evaluator):
    """See :class:`common.training.task.Evaluator`."""

    def __init__(self, config: CfgNode, dataset: Dataset, num_classes: int, log: TrainingLog):
        self.class_names, self.data_hash = dataset.class_names, _hash_data(dataset)
        self._classes = np.unique(dataset.labels) if config.DATA.CLASS_SUBSET else None
        self.data_set = _data_title(config, len(dataset), num_classes, self._classes)
        self.metric_suffix = "_token_labels" if config.TOKEN_LABEL.MAPS else ""
        first = dataset.source(0) if isinstance(dataset, FileDataset) else None
        self.example = str(first) if isinstance(first, Path) else ""
        self._config, self._log, self._dataset, self._num_classes = config, log, dataset, num_classes
        self._loader = build_eval_loader(config, dataset)
        # Of rank 0, which has every world_size-th image; spread out, because those of a class stand together.
        shown = np.linspace(0, len(dataset) - 1, config.PICTURES).astype(int)
        self._shown = shown - shown % world_size()

    def evaluate(self, model: nn.Layer, kind: str = "val", step: int = 0, last: bool = True) -> EvaluationResult:
        config = self._config
        draws = self._log.has_visualdl and config.PICTURES
        batches = self._log.batches(self._loader, kind)
        # A confusion needs one true class.
        confusion = last and self._num_classes <= MAX_CONFUSED and not config.DATA.LABELS_JSON
        wrong: list[np.ndarray] = []
        pictures: list[tuple[np.ndarray, str]] = []

        def look_at(place: int, batch: Mapping[str, Any], logits: paddle.Tensor) -> None:
            if place == 0 and self.example:
                readable = np.flatnonzero(batch["labels"].numpy() != IGNORED_LABEL)
                self.example = str(
                    self._dataset.source(int(batch["indices"][int(readable[0] if len(readable) else 0)]))
                )
            if draws:
                pictures.extend(self._titled_images(batch, logits))
            if confusion and config.REPORT:
                wrong.append(_wrong_predictions(batch, logits))

        metrics, matrix = evaluate(model, batches, config.TRAIN.AMP, look_at, confusion, self._classes)
        if pictures:
            images, titles = zip(*pictures, strict=True)
            self._log.picture(f"{kind}/images", step, _draw_row(config, images, titles))
        if matrix is None:
            return EvaluationResult(metrics)
        names = distinct_names(self.class_names, self._num_classes)
        files = {**class_files(names, class_columns(matrix)), **confusion_files(names, matrix)}
        if config.REPORT:
            of_all_ranks = np.concatenate(list(itertools.chain(*gather_objects(wrong))))
            files["errors.csv"] = functools.partial(self._write_errors, of_all_ranks, names)
        return EvaluationResult(metrics, per_class_tables(names, matrix, kind), files)

    def _write_errors(self, wrong: np.ndarray, names: Sequence[str], file: BinaryIO) -> None:
        """Write a table of the images of :func:`_wrong_predictions`, those with the highest probability first."""
        indices, labels, found, probabilities = wrong[np.lexsort((wrong[:, 0], -wrong[:, 3]))].T
        columns = {
            "image": [self._dataset.describe(int(index)) for index in indices],
            "true": [names[int(label)] for label in labels],
            "predicted": [names[int(label)] for label in found],
            "probability": probabilities.round(2),
        }
        write_columns(file, columns)

    def _titled_images(self, batch: Mapping[str, Any], logits: paddle.Tensor) -> list[tuple[np.ndarray, str]]:
        """The images of a batch that are shown, with their predictions and labels."""
        pairs = []
        for row in np.flatnonzero(np.isin(batch["indices"].numpy(), self._shown)).tolist():
            probabilities, label = F.softmax(logits[row], axis=-1).numpy(), int(batch["labels"][row])
            found = int(probabilities.argmax())
            verdict = "right" if found == label else f"is {_class_name(label, self.class_names)}"
            title = f"{_class_name(found, self.class_names)} {100 * probabilities[found]:.0f} %, {verdict}"
            pairs.append((batch["images"][row].astype("float32").numpy(), title))
        return pairs


def _wrong_predictions(batch: Mapping[str, Any], logits: paddle.Tensor) -> np.ndarray:
    """Index in the data set, label, predicted class and its probability in percent, where label and class differ:
    float64 [n, 4]."""
    labels, probabilities = batch["labels"].numpy(), F.softmax(logits, axis=-1).numpy()
    found = probabilities.argmax(axis=1)
    columns = [batch["indices"].numpy(), labels, found, 100.0 * probabilities.max(axis=1)]
    return np.stack(columns, axis=1, dtype=np.float64)[(labels != found) & (labels != IGNORED_LABEL)]


def _describe_data(splits: Mapping[str, Dataset], num_classes: int) -> tuple[str, list[str]]:
    """The counts and the names of the classes; and a warning for classes without images in a split."""
    names = _names(next(iter(splits.values())), num_classes)
    counts = " and ".join(f"{len(dataset):,} {split}" for split, dataset in splits.items())
    warnings = []
    for split, dataset in splits.items():
        images = np.bincount(dataset.labels, minlength=num_classes)
        if empty := [names[number] for number in np.flatnonzero(images == 0)]:
            warnings.append(f"no {split} images of {counted(len(empty), 'class', 'classes')}: {list_names(empty)}")
    return f"{counts} images of {counted(num_classes, 'class', 'classes')}: {list_names(names)}", warnings


def _names(dataset: Dataset, num_classes: int) -> Sequence[str]:
    """The names of the classes, or else their numbers."""
    return dataset.class_names or [str(number) for number in range(num_classes)]


def _hash_data(dataset: Dataset) -> str:
    further = () if dataset.valid_labels is None else (dataset.valid_labels,)
    return data_hash(dataset.class_names or (), dataset.names(), dataset.labels, *further)


def _data_title(config: CfgNode, images: int, num_classes: int, classes: np.ndarray | None) -> str:
    """What to call the validation data in a table of results."""
    data = config.DATA
    if data.DATASET in ("imagenet2012", "list") and (images, num_classes) == (50_000, 1000):
        title = "ImageNet-1K"
    else:
        folder = Path(data.DATA_PATH).name if data.DATASET in ("imagenet2012", "list", "folder", "idx") else ""
        title = f"{data.DATASET} {folder}".strip()
    if classes is not None:
        title += f", only its {len(classes)} classes compete"
    if data.LABELS_JSON:
        title += f", labels of {Path(data.LABELS_JSON).name}"
    return title


def _draw_row(config: CfgNode, images: Iterable[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Draw normalized images side by side."""
    scale = -(-128 // config.DATA.IMAGE_SIZE)  # small images are enlarged, so that their titles fit
    pictures = [denormalize(image, config.DATA.MEAN, config.DATA.STD) for image in images]
    return side_by_side([picture.repeat(scale, 0).repeat(scale, 1) for picture in pictures], titles)


def _class_name(label: int, class_names: Sequence[str] | None) -> str:
    if label == IGNORED_LABEL:
        return "unreadable"
    return str(class_names[label]) if class_names else str(label)
