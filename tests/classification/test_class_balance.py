"""Weights of the classes in the loss."""

import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common.errors import UserError
from image_classification.class_balance import class_weights, describe_weights, weighted_cross_entropy
from image_classification.classification import Classification
from image_classification.config import CONFIG, check_token_labels
from image_classification.mixup import mixup_or_cutmix, smooth_one_hot
from tests.helpers.classification_config import make_config
from tests.helpers.tiny_runs import assert_same_training, load, run

LABELS = np.repeat([0, 1, 3], [60, 30, 10])  # class 2 has no image
WEIGHTS = class_weights(LABELS, 4, "balanced")


def test_balanced_weights_are_inverse_to_the_frequencies_and_one_on_average():
    np.testing.assert_allclose(WEIGHTS, [100 / 180, 100 / 90, 0, 100 / 30], rtol=1e-6)
    assert WEIGHTS[LABELS].mean() == pytest.approx(1.0)


def test_effective_weights_follow_the_effective_number_of_samples():
    counts = np.array([5000, 100, 1])
    labels = np.repeat([0, 1, 2], counts)
    weights = class_weights(labels, 3, "effective")
    expected = (1 - 0.999) / (1 - 0.999**counts)
    np.testing.assert_allclose(weights / weights[2], expected / expected[2], rtol=1e-5)
    assert weights[labels].mean() == pytest.approx(1.0, rel=1e-5)
    assert "0.999" in describe_weights(weights, ["a", "b", "c"], "effective")


def test_the_description_names_the_extremes_among_the_classes_with_images():
    text = describe_weights(WEIGHTS, ["cat", "dog", "absent", "ox"], "balanced")
    assert "(balanced): 0.556 (cat) to 3.33 (ox)" in text


@pytest.mark.parametrize("options", [{}, {"MIXUP": 1.0}, {"CUTMIX": 1.0}])
def test_each_label_of_a_mixed_image_counts_with_its_own_weight(options):
    aug = make_config(LABEL_SMOOTHING=0.1, **options).AUG
    labels, weights = paddle.to_tensor([0, 3, 1, 3]), paddle.to_tensor(WEIGHTS)
    images, logits = paddle.randn([4, 3, 8, 8]), paddle.randn([4, 4])
    _, targets = mixup_or_cutmix(images, labels, 4, np.random.default_rng(1), aug, weights)
    _, plain = mixup_or_cutmix(images, labels, 4, np.random.default_rng(1), aug)
    smoothed = smooth_one_hot(labels, 4, 0.1)
    before = smoothed.roll(1, 0)
    share = (plain - before).abs().sum() / (smoothed - before).abs().sum()  # of the image itself; 1 if nothing is mixed

    assert (float(share) < 1) == bool(options)

    def losses(targets):
        return F.cross_entropy(logits, targets, soft_label=True, reduction="none").flatten()

    own = weights[labels]
    expected = share * own * losses(smoothed) + (1 - share) * own.roll(1, 0) * losses(before)
    assert float(weighted_cross_entropy(logits, targets)) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_batches_add_up_to_the_whole_in_value_and_gradient():
    """Dividing by the sum of the weights of a batch would not; nor does the gradient of F.cross_entropy."""
    labels, weights = np.array([0, 0, 0, 3]), paddle.to_tensor(WEIGHTS)
    targets = smooth_one_hot(paddle.to_tensor(labels), 4, 0.1) * weights[paddle.to_tensor(labels)].unsqueeze(-1)
    values = np.random.default_rng(0).standard_normal((4, 4)).astype("float32")

    def gradient(parts):
        logits = paddle.to_tensor(values, stop_gradient=False)
        for part in parts:
            (weighted_cross_entropy(logits[part], targets[part]) / len(parts)).backward()
        return logits.grad.numpy()

    whole = gradient([slice(0, 4)])
    np.testing.assert_allclose(gradient([slice(0, 2), slice(2, 4)]), whole, atol=1e-7)
    probabilities = F.softmax(paddle.to_tensor(values), -1).numpy()
    expected = (probabilities - smooth_one_hot(paddle.to_tensor(labels), 4, 0.1).numpy()) * WEIGHTS[labels][:, None] / 4
    np.testing.assert_allclose(whole, expected, atol=1e-7)


def test_uneven_data_is_trained_with_printed_weights_and_validated_without(tmp_path, shapes, shapes_config, capsys):
    for image in sorted((shapes / "train" / "red").iterdir())[3:]:
        image.unlink()
    metrics = run(Classification, shapes_config, "-epochs", 1, "-opts", "DATA.CLASS_WEIGHTS", "balanced")
    output = capsys.readouterr().out
    assert "class weights (balanced): 0.75 (blue) to 3 (red)" in output
    best, data = tmp_path / "out" / "best.pdparams", ("-opts", "DATA.CLASS_WEIGHTS", "")
    evaluated = run(Classification, shapes_config, "-eval", "-pretrained", best, *data)
    assert evaluated["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    capsys.readouterr()
    run(Classification, shapes_config, "-epochs", 1, "-output", tmp_path / "unweighted")
    losses = [re.search(r"epoch 1/1 +train +loss +(\S+)", text)[1] for text in (output, capsys.readouterr().out)]
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("balance", [("DATA.CLASS_WEIGHTS", "effective"), ("DATA.BALANCED_SAMPLING", "True")])
def test_a_balanced_run_resumes_exactly(tmp_path, shapes, shapes_config, balance, capsys):
    for image in sorted((shapes / "train" / "red").iterdir())[3:]:
        image.unlink()
    more = ("TRAIN.EMA_DECAY", 0.9, "AUG.MIXUP", 0.8, "CHECKPOINT_EVERY", 1, "KEEP_CHECKPOINTS", 2)
    options = ("-batch_size", 3, "-accum_iter", 2, "-opts", *balance, *more)
    run(Classification, shapes_config, "-output", tmp_path / "a", *options)
    if balance[0] == "DATA.BALANCED_SAMPLING":
        assert "balanced sampling: an epoch has 1/3 of its images from each of 3 classes" in capsys.readouterr().out
    state = tmp_path / "a" / "epoch_0001.pdparams"
    run(Classification, shapes_config, "-output", tmp_path / "b", "-resume", state, *options)
    assert_same_training(tmp_path / "a", tmp_path / "b")


def test_balancing_is_done_once_and_not_with_token_labels():
    with pytest.raises(UserError, match="would balance the classes twice"):
        load(CONFIG, "-opts", "DATA.CLASS_WEIGHTS", "balanced", "DATA.BALANCED_SAMPLING", "True")
    with pytest.raises(UserError, match=r"DATA\.CLASS_WEIGHTS is 'inverse'; it must be balanced"):
        load(CONFIG, "-opts", "DATA.CLASS_WEIGHTS", "inverse")
    with pytest.raises(UserError, match=r"DATA\.CLASS_WEIGHTS is 'effective'; it must be '' with token labels"):
        check_token_labels(load(CONFIG, "-opts", "DATA.CLASS_WEIGHTS", "effective"))
