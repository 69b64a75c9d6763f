"""PaddleSeg trains and evaluates with the patches, and what they replace is right."""

from __future__ import annotations

import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from paddleseg.core import evaluate, train
from paddleseg.models.losses import CrossEntropyLoss
from paddleseg.transforms import RandomPaddingCrop
from paddleseg.utils import metrics

from common.toolkits import paddleseg_patches  # noqa: F401 (applies the patches)


class Squares(paddle.io.Dataset):
    """Four images of two classes, some pixels ignored, in the format of PaddleSeg's data sets."""

    num_classes, ignore_index = 2, 255

    def __init__(self, mode: str):
        self.mode = mode

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        label = np.zeros((8, 8), np.int64)
        label[2:6, 2:6], label[0] = 1, 255
        image = np.random.default_rng(index).standard_normal((3, 8, 8)).astype("float32")
        image[0] += label == 1
        return {"img": image, "label": label} if self.mode == "train" else {
            "img": image, "label": label[np.newaxis], "trans_info": []
        }  # fmt: skip


class Pointwise(nn.Layer):
    """The smallest model with a head that is used in training only."""

    def __init__(self):
        super().__init__()
        self.cls, self.auxiliary = nn.Conv2D(3, 2, 1), nn.Conv2D(3, 2, 1)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        return [self.cls(images), self.auxiliary(images)] if self.training else [self.cls(images)]


def test_paddleseg_trains_and_evaluates_with_mixed_precision_and_parameter_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["paddleseg.core.train"].time, "sleep", lambda _: None)
    model, losses = Pointwise(), {"types": [CrossEntropyLoss(), CrossEntropyLoss()], "coef": [1.0, 0.4]}
    before = model.cls.weight.numpy()
    groups = [{"params": [model.cls.weight, model.auxiliary.weight]}, {"params": [model.cls.bias]}]
    settings = {"save_dir": str(tmp_path), "iters": 1, "batch_size": 2, "log_iters": 1, "precision": "fp16"}
    train(model, Squares("train"), optimizer=paddle.optimizer.AdamW(0.1, parameters=groups), losses=losses, **settings)
    miou, *_ = evaluate(model, Squares("val"), print_detail=False)
    assert 0.0 < miou < 1.0
    assert (model.cls.weight.numpy() != before).all()


def reference_loss(logit, label, weight=(1.0, 1.0, 1.0), top_k=1.0, avg_non_ignore=True):
    """PaddleSeg's definition, pixel by pixel."""
    losses, weights = [], []
    for b, i, j in np.ndindex(*label.shape):
        x, y = logit[b, :, i, j].astype(np.float64), label[b, i, j]
        w = weight[y if y != 255 else 0]
        losses.append(0.0 if y == 255 else w * (np.log(np.exp(x).sum()) - x[y]))
        weights.append(w if y != 255 or not avg_non_ignore or top_k < 1.0 else 0.0)
    losses, weights = np.array(losses), np.array(weights)
    if top_k < 1.0:
        hardest = np.argsort(-losses)[: int(top_k * len(losses))]
        losses, weights = losses[hardest], weights[hardest]
    return losses.mean() / weights.mean()


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({}, {}),
        ({"weight": [1.0, 2.0, 5.0], "top_k_percent_pixels": 0.4}, {"weight": [1.0, 2.0, 5.0], "top_k": 0.4}),
        ({"weight": [1.0, 2.0, 5.0]}, {"weight": [1.0, 2.0, 5.0]}),
        ({"avg_non_ignore": False}, {"avg_non_ignore": False}),
    ],
)
def test_cross_entropy_is_that_of_paddleseg(settings, reference):
    rng = np.random.default_rng(0)
    logit, label = rng.standard_normal((2, 3, 4, 5)).astype("float32"), rng.integers(0, 3, (2, 4, 5))
    label[rng.random(label.shape) < 0.3] = 255
    tensor = paddle.to_tensor(logit, stop_gradient=False)
    loss = CrossEntropyLoss(**settings)(tensor, paddle.to_tensor(label))
    assert float(loss) == pytest.approx(reference_loss(logit, label, **reference), rel=1e-5)
    loss.backward()
    assert not np.abs(tensor.grad.numpy()).sum(1)[label == 255].any()


def test_an_image_whose_pixels_are_all_ignored_has_the_loss_zero():
    assert float(CrossEntropyLoss()(paddle.zeros([1, 3, 2, 2]), paddle.full([1, 2, 2], 255, "int64"))) == 0.0


def test_areas_are_the_pixels_of_each_class():
    pred, label = paddle.to_tensor([[[0, 1, 1, 0]]]), paddle.to_tensor([[[0, 1, 255, 1]]])
    areas = metrics.calculate_area(pred, label, 2)
    assert [area.tolist() for area in areas] == [[1, 1], [2, 1], [1, 2]]


# ---- RandomPaddingCrop


def crop(height, width, **settings):
    """Crop an image whose red value is the class; one class covers all but a quarter."""
    label = np.zeros((height, width), np.uint8)
    label[-height // 2 :, -width // 2 :] = 1
    label[-height // 8 :, -width // 8 :] = 255
    image = np.stack([label, label + 1, label + 2], axis=-1).astype("float32")
    return RandomPaddingCrop((16, 12), **settings)({"img": image, "label": label, "gt_fields": ["label"]})


@pytest.mark.parametrize("ratio", [0.75, 1.0])
def test_image_and_label_are_cropped_at_the_same_place(ratio):
    for seed in range(5):
        np.random.seed(seed)
        data = crop(40, 50, category_max_ratio=ratio)
        assert data["img"].shape == (12, 16, 3)
        assert data["gt_fields"] == ["label"]
        np.testing.assert_array_equal(data["img"][..., 0], data["label"])


def test_crops_of_one_class_alone_are_avoided():
    np.random.seed(0)
    shares = {}
    for ratio in (0.75, 1.0):
        crops = [crop(40, 50, category_max_ratio=ratio)["label"] for _ in range(40)]
        shares[ratio] = np.mean([(label == 0).mean() > 0.75 for label in crops])
    assert shares[0.75] < 0.3 < 0.6 < shares[1.0]


def test_small_images_are_padded_to_the_crop():
    data = crop(10, 8, category_max_ratio=0.75, im_padding_value=7.0)
    assert data["img"].shape == (12, 16, 3)
    assert (data["img"][10:] == 7.0).all()
    assert (data["label"][:, 8:] == 255).all()
