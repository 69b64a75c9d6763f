"""Batches of images: the same for any number of workers and ranks; unreadable images are named or replaced."""

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

from common.errors import UserError
from common.training.loader import Loader
from common.training.sampler import SampleKey
from image_classification.dataset_types import FileDataset
from image_classification.datasets import build_dataset
from image_classification.loaders import IGNORED_LABEL, build_eval_loader, build_train_loader, count_errors
from image_classification.transforms import EvalTransform, TrainTransform
from tests.helpers.classification_config import make_config

HEAVY = {"RAND_AUGMENT": "rand-m9-mstd0.5-inc1", "ERASING": 0.5}  # shows every random number


def as_numpy(batch):
    return {key: value.numpy() if isinstance(value, paddle.Tensor) else value for key, value in batch.items()}


def train_batches(folder, epoch=0, first_batch=0, **changes):
    loader, sampler = build_train_loader(make_config(**HEAVY | changes), build_dataset("folder", folder, "train"))
    sampler.set_range(epoch, first_batch)
    return [as_numpy(batch) for batch in loader]


def eval_batches(folder, **changes):
    return [
        as_numpy(batch) for batch in build_eval_loader(make_config(**changes), build_dataset("folder", folder, "val"))
    ]


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys() == {"images", "labels", "indices", "errors"}
        np.testing.assert_array_equal(batch["images"], other["images"])
        np.testing.assert_array_equal(batch["labels"], other["labels"])
        assert batch["errors"] == other["errors"]


# ---- whole data sets


def test_training_batches(shapes):
    batches = train_batches(shapes)
    assert [(batch["images"].shape, batch["images"].dtype) for batch in batches] == [((6, 3, 32, 32), np.float32)] * 6
    assert [batch["errors"] for batch in batches] == [""] * 6
    assert np.bincount(np.concatenate([batch["labels"] for batch in batches])).tolist() == [12, 12, 12]


def test_evaluation_batches_are_the_transformed_images_in_order(shapes):
    batches = eval_batches(shapes)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4, 4, 4, 1]
    dataset, transform = build_dataset("folder", shapes, "val"), EvalTransform(make_config())
    images, labels = (np.concatenate([batch[key] for batch in batches]) for key in ("images", "labels"))
    np.testing.assert_array_equal(images, [transform(dataset.load(index)) for index in range(21)])
    np.testing.assert_array_equal(labels, dataset.labels)


def test_batches_are_the_same_for_any_number_of_workers(shapes):
    assert_equal(train_batches(shapes, epoch=1, NUM_WORKERS=2), train_batches(shapes, epoch=1))
    assert_equal(eval_batches(shapes, NUM_WORKERS=2), eval_batches(shapes))


class ThreadsOfOpenCV:
    def __getitem__(self, index):
        return cv2.getNumThreads()


def test_opencv_has_one_thread_in_a_reader_and_all_of_them_here():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        for workers, threads in ((1, 1), (0, 3)):
            loader = Loader(ThreadsOfOpenCV(), [[0]], workers, lambda values: {"threads": values})
            assert list(loader) == [{"threads": [threads]}]
    finally:
        cv2.setNumThreads(before)


def test_one_loader_gives_one_epoch_after_another(shapes):
    loader, sampler = build_train_loader(make_config(**HEAVY), build_dataset("folder", shapes, "train"))
    for epoch in (0, 1, 0):
        sampler.set_range(epoch)
        assert_equal([as_numpy(batch) for batch in loader], train_batches(shapes, epoch))
    assert_equal(train_batches(shapes, epoch=1, first_batch=4), train_batches(shapes, epoch=1)[4:])


def test_random_numbers_differ_between_seeds_epochs_and_positions(shapes):
    files = sorted((shapes / "train").rglob("*.png"))
    for path in files:
        path.write_bytes(files[0].read_bytes())
    images = [
        batch["images"] for seed in (0, 1) for epoch in (0, 1) for batch in train_batches(shapes, epoch, SEED=seed)
    ]
    images = np.concatenate(images)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images) == 4 * 36


def test_repeats_are_one_image_augmented_anew(shapes):
    for number, path in enumerate(sorted((shapes / "train").rglob("*.png"))):
        Image.new("RGB", (40, 40), (7 * number, 0, 0)).save(path)
    batches = train_batches(shapes, REPEATS=3, FLIP=0.0, ERASING=1.0, RAND_AUGMENT="")
    for images in (batch["images"] for batch in batches):
        colors = np.median(images[:, 0].reshape(6, -1), axis=1)
        assert len(np.unique(colors)) == 2
        np.testing.assert_array_equal(colors, np.repeat(colors[::3], 3))
        assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_ranks_share_the_images_that_one_rank_would_see(shapes, monkeypatch):
    world_size = 3
    alone = train_batches(shapes, BATCH_SIZE=6)
    alone_eval = np.concatenate([batch["images"] for batch in eval_batches(shapes)])
    shares, eval_shares = [], []
    for rank in range(world_size):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(rank))
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(world_size))
        shares.append(train_batches(shapes, BATCH_SIZE=6 // world_size))
        eval_shares.append(np.concatenate([batch["images"] for batch in eval_batches(shapes)]))
    for step, whole in enumerate(alone):
        parts = np.stack([share[step]["images"] for share in shares], axis=1)
        np.testing.assert_array_equal(parts.reshape(whole["images"].shape), whole["images"])
    for rank, share in enumerate(eval_shares):
        np.testing.assert_array_equal(share, alone_eval[rank::world_size])


# ---- broken images


def read_sample(folder, index, **changes):
    """Read one training sample."""
    loader, _ = build_train_loader(make_config(**HEAVY | changes), build_dataset("folder", folder, "train"))
    return loader.dataset[SampleKey(index, 0, 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(shapes, workers):
    for split, batches in (("train", train_batches), ("val", eval_batches)):
        path = shapes / split / "green" / "05.png"
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(UserError, match=rf"^cannot read image {path}: .*DATA\.SKIP_BROKEN True\)$"):
            batches(shapes, NUM_WORKERS=workers)


def test_a_broken_evaluation_image_is_counted_and_named_once_but_never_replaced(shapes, capsys):
    path = shapes / "val" / "blue" / "05.png"  # image 1 of batch 1
    path.write_bytes(path.read_bytes()[:200])
    batches = eval_batches(shapes, SKIP_BROKEN=True)
    assert [count_errors(batch) for batch in batches] == [0, 1, 0, 0, 0, 0]
    assert batches[1]["labels"].tolist() == [0, IGNORED_LABEL, 0, 1]
    assert not batches[1]["images"][1].any()
    count_errors(batches[1])
    assert capsys.readouterr().err.count(f"warning: left out: cannot read image {path}") == 1


@pytest.mark.parametrize(("index", "name", "next_index"), [(17, "green/05", 18), (35, "red/11", 0)])
def test_a_broken_training_image_is_replaced_by_the_next_and_counted(shapes, index, name, next_index):
    path = shapes / "train" / f"{name}.png"
    path.write_bytes(b"")
    sample = read_sample(shapes, index, SKIP_BROKEN=True)
    assert (sample["labels"], sample["errors"].count("\n")) == (next_index // 12, 0)
    assert str(path) in sample["errors"]
    np.testing.assert_array_equal(sample["images"], read_sample(shapes, next_index)["images"])


def test_a_broken_image_that_would_have_replaced_another_is_counted_for_itself(shapes):
    for name in ("05", "06"):
        (shapes / "train" / "green" / f"{name}.png").write_bytes(b"")
    errors = [read_sample(shapes, index, SKIP_BROKEN=True)["errors"] for index in (17, 18)]
    assert [error.count("cannot read") for error in errors] == [1, 1]
    assert "green/06.png" in errors[1]


def test_nothing_but_broken_images_is_an_error(shapes):
    for path in (shapes / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="10 consecutive images cannot be read"):
        train_batches(shapes, SKIP_BROKEN=True)


def test_any_error_names_the_image(shapes, monkeypatch):
    monkeypatch.setattr(TrainTransform, "__call__", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"/train/blue/03\.png: ZeroDivisionError: division by zero"):
        read_sample(shapes, 3)


def test_only_training_decodes_images_at_a_reduced_size(shapes, monkeypatch):
    sizes, load = [], FileDataset.load
    monkeypatch.setattr(FileDataset, "load", lambda *arguments: sizes.append(arguments[2]) or load(*arguments))
    read_sample(shapes, 0)
    eval_batches(shapes)
    assert sizes == [TrainTransform(make_config()).min_size()] + [None] * 21


# ---- too few images


def test_too_few_images_are_refused(shapes, monkeypatch):
    with pytest.raises(UserError, match=r"36 training images are too few.* = 39; lower one of them"):
        train_batches(shapes, BATCH_SIZE=13, ACCUM_ITER=3)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "22")
    with pytest.raises(UserError, match="22 ranks for 21 images"):
        eval_batches(shapes)
