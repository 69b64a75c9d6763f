"""Batches of transformed images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from PIL import Image
from yacs.config import CfgNode

from common.errors import UserError
from common.runtime.distributed import rank, world_size
from common.training.loader import build_loader
from common.training.sampler import SampleKey, ShardedEvalSampler, ShardedTrainSampler
from image_classification.datasets import Dataset
from image_classification.label_map_alignment import TOKEN_STRIDE, Geometry, sampling_weights
from image_classification.label_maps import LabelMaps
from image_classification.transforms import EvalTransform, TrainTransform

__all__ = ["TransformedDataset", "build_eval_loader", "build_train_loader", "check_batch", "collate"]

IGNORED_LABEL = -1  # label of an unreadable image
_TRIES = 10  # images that are tried instead of an unreadable one


class TransformedDataset(paddle.io.Dataset):
    """Loads and transforms samples; random numbers depend only on the seed and the :class:`SampleKey`.

    It does not raise (see :func:`common.training.loader.build_loader`): an unreadable image becomes zeros with
    ``IGNORED_LABEL`` and a message, which :func:`check_batch` raises or counts. With ``replace_broken``, the next
    readable image takes its place.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[Image.Image, np.random.Generator], np.ndarray],
        config: CfgNode,
        replace_broken: bool,
    ):
        self.dataset, self.transform, self.replace_broken = dataset, transform, replace_broken
        self.seed, self.image_size = config.SEED, config.DATA.IMAGE_SIZE
        self._min_size = transform.min_size() if isinstance(transform, TrainTransform) else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        errors = []
        tries = _TRIES if self.replace_broken else 1
        for index in range(key.index, key.index + tries):
            index %= len(self.dataset)
            try:
                arrays = self._read(index, rng)
            except UserError as error:
                errors.append(str(error))
            except Exception as error:
                errors.append(f"{self.dataset.describe(index)}: {type(error).__name__}: {error}")
            else:
                return {**arrays, "labels": int(self.dataset.labels[index]), "errors": "\n".join(errors)}
        return {**self._blank(), "labels": IGNORED_LABEL, "errors": "\n".join(errors)}

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"images": self.transform(self.dataset.load(index, self._min_size), rng)}

    def _blank(self) -> dict[str, np.ndarray]:
        """Return zeros for an unreadable image, in the shapes of :meth:`_read`."""
        return {"images": np.zeros((3, self.image_size, self.image_size), np.float32)}


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

    def _blank(self) -> dict[str, np.ndarray]:
        shape = self._label_maps.info.shape
        empty = np.zeros((shape[1] * shape[2], shape[3]))
        return {**super()._blank(), **self._map_of((empty.astype(np.int64), empty.astype(np.float32)), Geometry())}

    def _map_of(self, label_map: tuple[np.ndarray, np.ndarray], geometry: Geometry) -> dict[str, np.ndarray]:
        info, tokens = self._label_maps.info, (self._token_side, self._token_side)
        weights = sampling_weights(geometry, (info.height, info.width), tokens)
        return {"map_classes": label_map[0], "map_scores": label_map[1], "token_weights": weights}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the arrays of samples to a batch, and join their messages."""
    batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0] if name != "errors"}
    return {**batch, "errors": "\n".join(sample["errors"] for sample in samples if sample["errors"])}


def check_batch(batch: dict[str, Any], skip_broken: bool, training: bool = False) -> list[str]:
    """Return the messages of a batch's unreadable images, or raise the first unless ``skip_broken``.

    Raises:
        UserError: an image could not be read, or (``training``) not be replaced.
    """
    errors = batch["errors"].splitlines()
    if errors and not skip_broken:
        raise UserError(f"{errors[0]} (or skip such images with -opts DATA.SKIP_BROKEN True)")
    if errors and training and int(batch["labels"].min()) == IGNORED_LABEL:
        raise UserError(f"{_TRIES} consecutive images cannot be read; the last error: {errors[-1]}")
    return errors


def build_train_loader(
    config: CfgNode, dataset: Dataset, label_maps: LabelMaps | None = None
) -> tuple[paddle.io.DataLoader, ShardedTrainSampler]:
    """Build a loader of this rank's batches: ``images``, ``labels``, ``errors``, and the entries of the label maps.

    Raises:
        UserError: the data set is too small for one step.
    """
    try:
        sampler = ShardedTrainSampler(
            len(dataset),
            config.DATA.BATCH_SIZE,
            config.SEED,
            rank(),
            world_size(),
            config.TRAIN.ACCUM_ITER,
            config.AUG.REPEATS,
        )
    except ValueError as error:
        raise UserError(f"{error}; lower one of them") from error
    transform = TrainTransform(config)
    if label_maps is None:
        source = TransformedDataset(dataset, transform, config, config.DATA.SKIP_BROKEN)
    else:
        source = LabelMappedDataset(dataset, transform, config, label_maps)
    return build_loader(source, sampler, config.DATA.NUM_WORKERS, collate), sampler


def build_eval_loader(config: CfgNode, dataset: Dataset, workers: int | None = None) -> paddle.io.DataLoader:
    """Build a loader of this rank's share of the data set; all ranks together read each image once.

    Args:
        config: of the task.
        dataset: the images.
        workers: reading processes; ``None`` takes ``DATA.NUM_WORKERS``.

    Raises:
        UserError: there are fewer images than ranks.
    """
    if len(dataset) < world_size():
        raise UserError(f"{world_size()} ranks for {len(dataset)} images; start at most {len(dataset)} ranks")
    sampler = ShardedEvalSampler(len(dataset), config.DATA.BATCH_SIZE_EVAL, rank(), world_size())
    source = TransformedDataset(dataset, EvalTransform(config), config, replace_broken=False)
    return build_loader(source, sampler, config.DATA.NUM_WORKERS if workers is None else workers, collate)
