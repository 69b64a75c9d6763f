"""Mixup, CutMix and label smoothing."""

import numpy as np
import paddle
import pytest

from image_classification.mixup import cutmix_box, mixup_or_cutmix, smooth_one_hot
from tests.helpers.classification_config import make_config

CLASSES = 5


def batch(size=4, height=8, width=6):
    """Constant images, 0, 1, 2, ..., whose mixing is easy to read off."""
    images = np.broadcast_to(np.arange(size, dtype=np.float32)[:, None, None, None], (size, 3, height, width))
    return paddle.to_tensor(images.copy()), paddle.to_tensor(np.arange(size, dtype=np.int64) % CLASSES)


def rng(seed=0):
    return np.random.default_rng(seed)


def aug(**changes):
    return make_config(**changes).AUG


def one_hot(labels):
    return np.eye(CLASSES, dtype=np.float32)[labels.numpy()]


def test_label_smoothing():
    labels = paddle.to_tensor([1, 4])
    targets = smooth_one_hot(labels, CLASSES, 0.1)
    assert targets.dtype == paddle.float32
    expected = np.full((2, CLASSES), 0.02)
    expected[[0, 1], [1, 4]] = 0.92
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"MIXUP": 0.0, "CUTMIX": 0.0}, {"MIXUP": 1.0, "CUTMIX": 1.0, "MIX_PROB": 0.0}])
def test_nothing_mixed(options):
    images, labels = batch()
    mixed, targets = mixup_or_cutmix(images, labels, CLASSES, rng(), aug(LABEL_SMOOTHING=0.1, **options))
    np.testing.assert_array_equal(mixed.numpy(), images.numpy())
    np.testing.assert_allclose(targets.numpy(), 0.9 * one_hot(labels) + 0.02, atol=1e-6)


def test_mixup():
    images, labels = batch()
    mixed, targets = mixup_or_cutmix(images, labels, CLASSES, rng(), aug(MIXUP=0.8))
    generator = rng()
    generator.random()  # whether the batch is mixed
    lam = generator.beta(0.8, 0.8)
    expected = lam * images.numpy() + (1 - lam) * np.roll(images.numpy(), 1, axis=0)
    np.testing.assert_allclose(mixed.numpy(), expected, atol=1e-6)
    expected = lam * one_hot(labels) + (1 - lam) * np.roll(one_hot(labels), 1, axis=0)
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-6)
    assert targets.dtype == paddle.float32


def test_cutmix_targets_are_the_exact_areas():
    size = 3
    images, labels = batch(size)
    for seed in range(10):
        mixed, targets = mixup_or_cutmix(images, labels, CLASSES, rng(seed), aug(CUTMIX=1.0))
        np.testing.assert_array_equal(images.numpy(), batch(size)[0].numpy())  # the argument is not modified
        for index in range(size):
            own = mixed.numpy()[index] == index
            assert (own | (mixed.numpy()[index] == (index - 1) % size)).all()
            assert targets.numpy()[index, index] == pytest.approx(own.mean(), abs=1e-6)
            assert targets.numpy()[index, (index - 1) % size] == pytest.approx(1 - own.mean(), abs=1e-6)


def test_probabilities():
    images, labels = batch()
    generator, kinds, settings = rng(), [], aug(MIXUP=1.0, CUTMIX=1.0, MIX_PROB=0.5, MIX_SWITCH_PROB=0.25)
    for _ in range(400):
        mixed, _ = mixup_or_cutmix(images, labels, CLASSES, generator, settings)
        if mixed is images:
            kinds.append("none")
        else:
            kinds.append("cutmix" if np.isin(mixed.numpy(), range(4)).all() else "mixup")
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("none", "mixup", "cutmix")}
    assert shares == pytest.approx({"none": 0.5, "mixup": 0.375, "cutmix": 0.125}, abs=0.07)


def test_cutmix_box():
    generator = rng()
    for lam in np.linspace(0, 1, 300):
        (top, bottom, left, right), corrected = cutmix_box(30, 20, lam, generator)
        assert 0 <= top <= bottom <= 30
        assert 0 <= left <= right <= 20
        assert corrected == pytest.approx(1 - (bottom - top) * (right - left) / 600)
        assert corrected >= lam - 1e-9
    assert cutmix_box(30, 20, 1.0, generator)[1] == 1
