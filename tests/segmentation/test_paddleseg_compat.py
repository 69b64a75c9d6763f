"""Each mend of PaddleSeg is needed here, and only where it says; and what it puts in place is right."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import numpy as np
import paddle
import pytest
from paddle import nn
from paddleseg.core import evaluate, train
from paddleseg.models.losses import CrossEntropyLoss
from paddleseg.transforms import RandomPaddingCrop
from paddleseg.utils import metrics

from common.toolkits.patches import Mend, apply_mends
from semantic_segmentation.paddleseg_compat import MENDS
from tests.helpers.programs import ROOT

BY_NAME = {mend.name.rpartition(".")[2]: mend for mend in MENDS}
each_mend = pytest.mark.parametrize("mend", MENDS, ids=list(BY_NAME))


def broken_here(mend: Mend) -> bool:
    return paddle.__version__.startswith(mend.broken_on)


# ---- the table


@each_mend
def test_a_mend_is_needed_exactly_where_it_says(mend):
    """Fails with a PaddleSeg or Paddle that has mended itself: remove the mend then, or correct ``broken_on``."""
    assert mend.needed() == broken_here(mend)


@each_mend
def test_what_is_put_in_place_works_and_is_in_place_only_where_it_is_needed(mend):
    assert mend.works(mend.replacement)
    assert getattr(mend.owner, mend.attribute) is (mend.replacement if broken_here(mend) else mend.original)


@each_mend
def test_documentation_names_the_mend_with_its_reason(mend):
    text = (ROOT / "docs" / "paddleseg.md").read_text(encoding="utf-8")
    assert f"`{mend.name}`" in text
    assert mend.reason in text


def test_trying_the_originals_uses_up_neither_random_numbers_nor_names(capsys):
    def draw() -> tuple[list, int]:
        name = nn.Linear(1, 1, bias_attr=False).weight.name
        return [paddle.rand([2]).tolist(), np.random.rand(2).tolist()], int(name.removeprefix("linear_").split(".")[0])

    states = paddle.get_rng_state(), np.random.get_state()
    numbers, layer = draw()
    paddle.set_rng_state(states[0])
    np.random.set_state(states[1])
    apply_mends(MENDS)
    assert draw() == (numbers, layer + 1)
    assert capsys.readouterr().out == ""


# ---- training with PaddleSeg, without each mend and with it


class Squares(paddle.io.Dataset):
    """Four images of two classes, some pixels ignored; as PaddleSeg's data sets give them."""

    num_classes, ignore_index = 2, 255

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        label = np.zeros((1, 8, 8), np.int64)
        label[:, 2:6, 2:6], label[:, 0] = 1, 255
        image = np.random.default_rng(index).standard_normal((3, 8, 8)).astype("float32")
        image[0] += label[0] == 1
        return {"img": image, "label": label, "trans_info": []}


class Training(Squares):
    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        return {"img": item["img"], "label": item["label"][0]}


class Pointwise(nn.Layer):
    """The smallest model with a head that takes part in training only."""

    def __init__(self):
        super().__init__()
        self.cls, self.auxiliary = nn.Conv2D(3, 2, 1), nn.Conv2D(3, 2, 1)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        return [self.cls(images), self.auxiliary(images)] if self.training else [self.cls(images)]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable:
    """Train for an iteration and evaluate, with mixed precision and parameter groups."""
    monkeypatch.setattr(sys.modules["paddleseg.core.train"].time, "sleep", lambda _: None)

    def run() -> tuple[nn.Layer, float]:
        paddle.seed(0)
        model = Pointwise()
        groups = [{"params": [model.cls.weight, model.auxiliary.weight]}, {"params": [model.cls.bias]}]
        settings = {"save_dir": str(tmp_path), "iters": 1, "batch_size": 2, "log_iters": 1, "precision": "fp16"}
        losses = {"types": [CrossEntropyLoss(), CrossEntropyLoss()], "coef": [1.0, 0.4]}
        train(model, Training(), optimizer=paddle.optimizer.AdamW(0.1, parameters=groups), losses=losses, **settings)
        miou, *_ = evaluate(model, Squares(), print_detail=False)
        assert set(model.state_dict()) == set(Pointwise().state_dict())
        assert "forward" not in model.__dict__
        return model, float(miou)

    return run


def test_training_and_evaluation_run_with_the_mends(run):
    model, miou = run()
    paddle.seed(0)
    assert (model.cls.weight.numpy() != Pointwise().cls.weight.numpy()).all()
    assert 0.0 < miou < 1.0


FAILURES = {
    "_post_process_loss": TypeError,
    "loss_computation": IndexError,
    "calculate_area": ValueError,
    "minimize": (TypeError, ValueError),
    "flops": AssertionError,
}


@pytest.mark.parametrize("name", FAILURES)
def test_training_or_evaluation_fails_without_the_mend(run, monkeypatch, name):
    mend = BY_NAME[name]
    monkeypatch.setattr(mend.owner, mend.attribute, mend.original)
    if broken_here(mend):
        with pytest.raises(FAILURES[name]):
            run()
    else:
        run()


# ---- CrossEntropyLoss


def reference_loss(logit, label, weight=None, semantic=None, top_k=1.0, avg_non_ignore=True):
    """PaddleSeg's meaning, pixel by pixel."""
    losses, weights = [], []
    for b, i, j in np.ndindex(*label.shape):
        x, y = logit[b, :, i, j].astype(np.float64), label[b, i, j]
        w = 1.0 if weight is None else weight[y if y != 255 else 0]
        loss = 0.0 if y == 255 else w * (np.log(np.exp(x).sum()) - x[y])
        losses.append(loss * (1.0 if semantic is None else semantic[b, i, j]))
        weights.append(w if y != 255 or not avg_non_ignore or top_k < 1.0 else 0.0)
    losses, weights = np.array(losses), np.array(weights)
    if top_k < 1.0:
        hardest = np.argsort(-losses)[: int(top_k * len(losses))]
        losses, weights = losses[hardest], weights[hardest]
    return losses.mean() / weights.mean()


def random_case(seed=0):
    rng = np.random.default_rng(seed)
    logit = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    label = rng.integers(0, 3, (2, 4, 5))
    label[rng.random(label.shape) < 0.3] = 255
    return logit, label, rng.random(label.shape).astype("float32")


LOSSES = [
    {},
    {"weight": [1.0, 2.0, 5.0]},
    {"top_k_percent_pixels": 0.4},
    {"weight": [1.0, 2.0, 5.0], "top_k_percent_pixels": 0.4},
    {"avg_non_ignore": False},
]


@pytest.mark.parametrize("pixel_weights", [False, True])
@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_cross_entropy_is_paddlesegs(settings, pixel_weights):
    logit, label, semantic = random_case()
    semantic = semantic if pixel_weights else None
    tensors = [paddle.to_tensor(array) if array is not None else None for array in (logit, label, semantic)]
    loss_layer = CrossEntropyLoss(**settings)
    expected = reference_loss(
        logit,
        label,
        settings.get("weight"),
        semantic,
        settings.get("top_k_percent_pixels", 1.0),
        settings.get("avg_non_ignore", True),
    )
    mend = BY_NAME["_post_process_loss"]
    functions = [mend.replacement, *([] if broken_here(mend) else [mend.original])]
    for function in functions:
        loss_layer._post_process_loss = function.__get__(loss_layer)
        assert float(loss_layer(*tensors)) == pytest.approx(expected, rel=1e-5)


def test_ignored_pixels_have_no_gradient_and_the_others_have_one():
    logit, label, _ = random_case()
    tensor = paddle.to_tensor(logit, stop_gradient=False)
    CrossEntropyLoss(weight=[1.0, 2.0, 5.0])(tensor, paddle.to_tensor(label)).backward()
    gradients = np.abs(tensor.grad.numpy()).sum(1)
    assert not gradients[label == 255].any()
    assert gradients[label != 255].all()


def test_an_image_that_is_ignored_altogether_costs_nothing():
    tensor = paddle.zeros([1, 3, 2, 2])
    tensor.stop_gradient = False
    loss = CrossEntropyLoss()(tensor, paddle.full([1, 2, 2], 255, "int64"))
    loss.backward()
    assert float(loss) == 0.0
    assert not tensor.grad.numpy().any()


# ---- metrics


@pytest.mark.parametrize("ignore_index", [255, 0, 2])
@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 1, 7, 5)])
def test_areas_are_the_pixels_of_each_class(shape, ignore_index):
    rng = np.random.default_rng(0)
    pred, label = rng.integers(0, 4, shape), rng.integers(0, 4, shape)
    label[rng.random(shape) < 0.2] = 255
    areas = metrics.calculate_area(
        paddle.to_tensor(pred.astype("int32")), paddle.to_tensor(label), 4, ignore_index=ignore_index
    )
    counted = label != ignore_index
    expected = [
        [np.sum((pred == c) & (label == c) & counted) for c in range(4)],
        [np.sum((pred == c) & counted) for c in range(4)],
        [np.sum(label == c) for c in range(4)],
    ]
    assert [area.tolist() for area in areas] == expected
    assert {area.dtype for area in areas} == {paddle.int64}


def test_areas_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="6 pixels"):
        metrics.calculate_area(paddle.zeros([1, 2, 3], "int32"), paddle.zeros([1, 2, 4], "int64"), 2)


# ---- transforms


def crop(image, label, **settings):
    return RandomPaddingCrop(**settings)({"img": image, "label": label, "gt_fields": ["label"]})


def picture(height=40, width=50):
    """The class is the red value; one class covers all but a quarter."""
    label = np.zeros((height, width), np.uint8)
    label[-height // 2 :, -width // 2 :] = 1
    label[-height // 8 :, -width // 8 :] = 255
    return np.stack([label, label + 1, label + 2], axis=-1).astype("float32"), label


@pytest.mark.parametrize("ratio", [0.75, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_image_and_label_are_cropped_at_the_same_place(ratio, seed):
    np.random.seed(seed)
    data = crop(*picture(), crop_size=(16, 12), category_max_ratio=ratio)
    assert data["img"].shape == (12, 16, 3)
    np.testing.assert_array_equal(data["img"][..., 0], data["label"])


def test_crops_of_one_class_alone_are_avoided():
    np.random.seed(0)
    shares = {}
    for ratio in (0.75, 1.0):
        crops = [crop(*picture(), crop_size=(16, 12), category_max_ratio=ratio)["label"] for _ in range(40)]
        shares[ratio] = np.mean([(label == 0).mean() > 0.75 for label in crops])
    assert shares[0.75] < 0.3 < 0.6 < shares[1.0]


def test_small_images_are_padded_to_the_crop():
    data = crop(*picture(10, 8), crop_size=(16, 12), category_max_ratio=0.75, im_padding_value=7.0)
    assert data["img"].shape == (12, 16, 3)
    assert (data["img"][10:] == 7.0).all()
    assert (data["label"][:, 8:] == 255).all()


@pytest.mark.parametrize("seed", range(3))
def test_crops_without_a_ratio_are_the_originals(seed):
    mend, results = BY_NAME["__call__"], []
    for call in (mend.original, mend.replacement):
        np.random.seed(seed)
        image, label = picture()
        transform = RandomPaddingCrop(crop_size=(16, 12))
        results.append(call(transform, {"img": image, "label": label, "gt_fields": ["label"]}))
    for key in ("img", "label"):
        np.testing.assert_array_equal(results[0][key], results[1][key])


# ---- GradScaler and flops


def step(update: Callable, groups: bool) -> np.ndarray:
    paddle.seed(0)
    layer = nn.Linear(3, 2)
    parameters = [{"params": [layer.weight]}, {"params": [layer.bias]}] if groups else layer.parameters()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=parameters)
    loss = layer(paddle.ones([1, 3])).sum()
    loss.backward()
    update(optimizer, loss)
    return layer.weight.numpy()


@pytest.mark.parametrize("groups", [False, True])
def test_minimize_steps_as_the_optimizer_does(groups):
    def minimize(optimizer, loss):
        assert len(paddle.amp.GradScaler(enable=False).minimize(optimizer, loss)) == 2

    expected = step(lambda optimizer, _: optimizer.step(), groups)
    np.testing.assert_array_equal(step(minimize, groups), expected)


def test_flops_are_counted_as_before_and_leave_copies_independent():
    model = Pointwise()
    for name in ("cls", "auxiliary"):
        getattr(model, name).register_buffer("total", paddle.ones([1]))
    names = set(model.state_dict())
    assert paddle.flops(model, [1, 3, 8, 8]) == BY_NAME["flops"].original(Pointwise(), [1, 3, 8, 8])
    assert model.training
    assert set(model.state_dict()) == names
    twin = copy.deepcopy(model)
    twin.cls.weight.set_value(paddle.zeros_like(twin.cls.weight))
    twin.cls.bias.set_value(paddle.zeros_like(twin.cls.bias))
    model.eval()
    twin.eval()
    assert not twin(paddle.ones([1, 3, 2, 2]))[0].numpy().any()
    assert model(paddle.ones([1, 3, 2, 2]))[0].numpy().any()


def test_flops_leave_a_compiled_model_compiled():
    model = paddle.jit.to_static(Pointwise())
    compiled = model.forward
    paddle.flops(model, [1, 3, 8, 8])
    assert model.forward is compiled
