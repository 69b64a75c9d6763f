"""Makes the label maps of token labeling: a trained classifier annotates the images of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from PIL import Image
from yacs.config import CfgNode

from common.data.preprocessing import FILTERS, Normalize
from common.finite_outputs import require_finite
from common.pale_transformer import PaleTransformer
from common.training.loader import Loader
from common.training.log import TrainingLog
from common.training.sampler import ShardedEvalSampler
from image_classification.dataset_types import Dataset
from image_classification.label_maps import LabelMapInfo, create_label_maps
from image_classification.loaders import IGNORED_LABEL, TransformedDataset, collate
from image_classification.transforms import preprocessing_of

__all__ = ["WholeImage", "annotate", "token_logits"]


class WholeImage:
    """Resizes the whole image to a square, whatever its proportions, and normalizes it.

    Nothing is cropped, because the crops of training may come from any part of the image. [A: ours]

    Args:
        config: ``DATA.IMAGE_SIZE``, ``INTERPOLATION``, ``MEAN`` and ``STD``.
    """

    def __init__(self, config: CfgNode):
        settings = preprocessing_of(config)
        self._size, self._interpolation = settings.image_size, FILTERS[settings.interpolation]
        self._normalize = Normalize(settings.mean, settings.std)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Transform an RGB image to float32 [3, size, size]; ``rng`` is not used."""
        return self._normalize(image.resize((self._size, self._size), self._interpolation))


def token_logits(model: PaleTransformer, images: Tensor) -> Tensor:
    """Apply the classifier to each token of the final map instead of their mean, as LV-ViT's annotators do.

    Args:
        model: in evaluation mode.
        images: ``[B, 3, height, width]``.

    Returns:
        ``[B, h, w, classes]``; the mean over the map equals ``model(images)``.
    """
    x = model.forward_features(images)[-1].transpose([0, 2, 3, 1])
    return model.head(model.norm(x))


@paddle.no_grad()
def annotate(
    model: PaleTransformer, config: CfgNode, dataset: Dataset, folder: Path, info: LabelMapInfo, log: TrainingLog
) -> float:
    """Write the label maps of a data set.

    With ``DATA.SKIP_BROKEN``, unreadable images get maps of zeros; training does not read these images either.

    Args:
        model: the annotator, in evaluation mode.
        config: of the images, and ``DATA.BATCH_SIZE_EVAL``, ``DATA.NUM_WORKERS``, ``TRAIN.AMP``.
        dataset: the images.
        folder, info: see :func:`create_label_maps`.
        log: shows the progress.

    Returns:
        Top-1 accuracy of the annotator on these images, in percent.

    Raises:
        UserError: an image could not be read, the logits are not finite, or as :func:`create_label_maps`.
    """
    source = TransformedDataset(dataset, WholeImage(config), config, config.DATA.SKIP_BROKEN)
    sampler = ShardedEvalSampler(len(dataset), config.DATA.BATCH_SIZE_EVAL)
    amp, done, correct = config.TRAIN.AMP, 0, 0
    with create_label_maps(folder, info, dataset.names()) as maps, log.progress(len(dataset), "label maps") as bar:
        for batch in Loader(source, sampler, config.DATA.NUM_WORKERS, collate):
            with paddle.amp.auto_cast(enable=bool(amp), dtype=amp or "float16"):
                logits = token_logits(model, batch["images"])
            logits = logits.astype("float32")
            require_finite(logits)
            scores, classes = F.softmax(logits).topk(info.top)
            scores = scores * (batch["labels"] != IGNORED_LABEL).astype("float32").reshape([-1, 1, 1, 1])
            maps["classes"][done : done + len(classes)] = classes.numpy()
            maps["scores"][done : done + len(classes)] = scores.numpy()
            correct += int((logits.mean([1, 2]).argmax(-1) == batch["labels"]).sum())
            done += len(classes)
            bar.update(len(classes))
    return 100.0 * correct / len(dataset)
