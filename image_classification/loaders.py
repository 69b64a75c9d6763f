"""Batches of transformed images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from common.errors import UserError, one_line, printable
from common.runtime.distributed import rank, world_size
from common.training.loader import Loader
from common.training.sampler import BalancedTrainSampler, SampleKey, ShardedEvalSampler, ShardedTrainSampler
from image_classification.dataset_types import Dataset
from image_classification.label_map_alignment import TOKEN_STRIDE, Geometry, sampling_weights
from image_classification.label_maps import LabelMaps
from image_classification.transforms import EvalTransform, TrainTransform

__all__ = ["TransformedDataset", "build_eval_loader", "build_train_loader", "collate", "count_errors"]

IGNORED_LABEL = -1  # label of an unreadable image
_TRIES = 10  # images that are tried instead of an unreadable one
_MOST_NAMED = 20
_named: set[str] = set()


class TransformedDataset:
    """Loads and transforms samples; random numbers depend only on the seed and the :class:`SampleKey`.

    Args:
        dataset: the images.
        transform: makes an array of an image.
        config: of the task.
        skip_broken: whether unreadable images are left out. In training the next readable image takes the place of one;
            otherwise zeros with ``IGNORED_LABEL`` do.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[Image.Image, np.random.Generator], np.ndarray],
        config: CfgNode,
        skip_broken: bool,
    ):
        self.dataset, self.transform, self.skip_broken = dataset, transform, skip_broken
        self.seed, self.image_size = config.SEED, config.DATA.IMAGE_SIZE
        self._training = isinstance(transform, TrainTransform)
        self._min_size = transform.min_size() if self._training else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Read a sample: ``images``, ``labels``, ``indices`` in the data set, and ``errors``, the line of the image
        that was left out; and ``valid_labels``, if the data set has them.

        Raises:
            UserError: an image cannot be read and must not be left out, or too many in a row were.
        """
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        errors: list[str] = []
        for index in range(key.index, key.index + (_TRIES if self._training else 1)):
            index %= len(self.dataset)
            try:
                arrays = self._read(index, rng)
                if self.dataset.valid_labels is not None:
                    arrays["valid_labels"] = self.dataset.valid_labels[index]
                numbers = {"labels": int(self.dataset.labels[index]), "indices": index}
                return {**arrays, **numbers, "errors": "".join(errors[:1])}  # the others have samples of their own
            except Exception as error:
                message = str(error)
                if not isinstance(error, UserError):
                    message = f"{self.dataset.describe(index)}: {type(error).__name__}: {one_line(error)}"
                if not self.skip_broken:
                    raise UserError(f"{message} (or skip such images with -opts DATA.SKIP_BROKEN True)") from error
                errors.append(message)
        if self._training:
            raise UserError(f"{_TRIES} consecutive images cannot be read; the last error: {errors[-1]}")
        blank = np.zeros((3, self.image_size, self.image_size), np.float32)
        arrays = {"images": blank}
        if self.dataset.valid_labels is not None:
            arrays["valid_labels"] = np.full_like(self.dataset.valid_labels[0], IGNORED_LABEL)
        return {**arrays, "labels": IGNORED_LABEL, "indices": key.index, "errors": errors[0]}

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"images": self.transform(self.dataset.load(index, self._min_size), rng)}


class LabelMappedDataset(TransformedDataset):
    """Training samples with their label maps.

    Adds ``map_classes`` and ``map_scores``, ``[map cells, top]`` (:class:`LabelMaps`), and ``token_weights``,
    ``[tokens, map cells]`` (:func:`sampling_weights`).

    Args:
        label_maps: of the data set.
    """

    def __init__(self, dataset: Dataset, transform: TrainTransform, config: CfgNode, label_maps: LabelMaps):
        super().__init__(dataset, transform, config, config.DATA.SKIP_BROKEN)
        self._label_maps, self._token_side = label_maps, config.DATA.IMAGE_SIZE // TOKEN_STRIDE

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        geometry = Geometry()
        image = self.transform(self.dataset.load(index, self._min_size), rng, geometry)
        return {"images": image, **self._map_of(self._label_maps[index], geometry)}

    def _map_of(self, label_map: tuple[np.ndarray, np.ndarray], geometry: Geometry) -> dict[str, np.ndarray]:
        info, tokens = self._label_maps.info, (self._token_side, self._token_side)
        weights = sampling_weights(geometry, (info.height, info.width), tokens)
        return {"map_classes": label_map[0], "map_scores": label_map[1], "token_weights": weights}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the arrays of samples to a batch, and join their messages."""
    batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0] if name != "errors"}
    return {**batch, "errors": "\n".join(sample["errors"] for sample in samples if sample["errors"])}


def count_errors(batch: Mapping[str, Any]) -> int:
    """Count the unreadable images that were left out of a batch, and print the names of the first ones, once."""
    lines = batch["errors"].splitlines()
    for line in lines:
        if line not in _named and len(_named) < _MOST_NAMED:
            _named.add(line)
            print(printable(f"warning: left out: {line}"), file=sys.stderr)
    return len(lines)


def build_train_loader(
    config: CfgNode, dataset: Dataset, label_maps: LabelMaps | None = None
) -> tuple[Loader, ShardedTrainSampler]:
    """Build a loader of this rank's batches: ``images``, ``labels``, ``errors``, and the entries of the label maps.

    Raises:
        UserError: the data set is too small for one step.
    """
    build, options = ShardedTrainSampler, {}
    if config.DATA.BALANCED_SAMPLING:
        build, options = BalancedTrainSampler, {"labels": dataset.labels}
    try:
        sampler = build(
            len(dataset),
            config.DATA.BATCH_SIZE,
            config.SEED,
            rank(),
            world_size(),
            config.TRAIN.ACCUM_ITER,
            config.AUG.REPEATS,
            **options,
        )
    except ValueError as error:
        raise UserError(f"{error}; lower one of them") from error
    transform = TrainTransform(config)
    if label_maps is None:
        source = TransformedDataset(dataset, transform, config, config.DATA.SKIP_BROKEN)
    else:
        source = LabelMappedDataset(dataset, transform, config, label_maps)
    return Loader(source, sampler, config.DATA.NUM_WORKERS, collate), sampler


def build_eval_loader(
    config: CfgNode, dataset: Dataset, workers: int | None = None, skip_broken: bool | None = None
) -> Loader:
    """Build a loader of this rank's share of the data set; all ranks together read each image once.

    Args:
        config: of the task.
        dataset: the images.
        workers: reading processes; ``None`` takes ``DATA.NUM_WORKERS``.
        skip_broken: see :class:`TransformedDataset`; ``None`` takes ``DATA.SKIP_BROKEN``.

    Raises:
        UserError: there are fewer images than ranks.
    """
    if len(dataset) < world_size():
        raise UserError(f"{world_size()} ranks for {len(dataset)} images; start at most {len(dataset)} ranks")
    sampler = ShardedEvalSampler(len(dataset), config.DATA.BATCH_SIZE_EVAL, rank(), world_size())
    skip_broken = config.DATA.SKIP_BROKEN if skip_broken is None else skip_broken
    source = TransformedDataset(dataset, EvalTransform(config), config, skip_broken)
    return Loader(source, sampler, config.DATA.NUM_WORKERS if workers is None else workers, collate)
