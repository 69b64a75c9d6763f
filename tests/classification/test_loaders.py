"""Batches of images: the same for any number of workers and ranks; unreadable images are named or replaced."""

import functools

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

from common.errors import UserError
from common.training.loader import build_loader
from common.training.sampler import SampleKey
from image_classification import loaders
from image_classification.config import default_config
from image_classification.datasets import FileDataset, build_dataset
from image_classification.loaders import (
    IGNORED_LABEL,
    build_eval_loader,
    build_train_loader,
    build_transform,
    check_batch,
)


@pytest.fixture(autouse=True)
def pipes_instead_of_shared_memory(monkeypatch):
    """Paddle 3.3's shared memory can hang where loaders with and without processes alternate, as only here."""
    loader = paddle.io.DataLoader
    monkeypatch.setattr(paddle.io, "DataLoader", functools.partial(loader, use_shared_memory=False))


def make_config(**changes):
    """Heavy augmentation, to show every random number; keys of DATA and AUG, or SEED, may be changed."""
    config = default_config()
    config.DATA.IMAGE_SIZE, config.DATA.BATCH_SIZE, config.DATA.BATCH_SIZE_EVAL = 32, 6, 4
    config.DATA.NUM_WORKERS = 0
    config.AUG.RAND_AUGMENT, config.AUG.ERASING = "rand-m9-mstd0.5-inc1", 0.5
    for key, value in changes.items():
        node = next(node for node in (config.DATA, config.AUG, config.TRAIN, config) if key in node)
        node[key] = value
    return config


def as_numpy(batch):
    return {key: value.numpy() if isinstance(value, paddle.Tensor) else value for key, value in batch.items()}


def train_batches(folder, epoch=0, first_batch=0, **changes):
    loader, sampler = build_train_loader(make_config(**changes), build_dataset("folder", folder, "train"))
    sampler.set_range(epoch, first_batch)
    return [as_numpy(batch) for batch in loader]


def eval_batches(folder, **changes):
    return [
        as_numpy(batch) for batch in build_eval_loader(make_config(**changes), build_dataset("folder", folder, "val"))
    ]


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys() == {"images", "labels", "errors"}
        np.testing.assert_array_equal(batch["images"], other["images"])
        np.testing.assert_array_equal(batch["labels"], other["labels"])
        assert batch["errors"] == other["errors"]


# ---- whole data sets


def test_training_batches(shapes):
    batches = train_batches(shapes)
    assert len(batches) == 6
    for batch in batches:
        assert batch["images"].shape == (6, 3, 32, 32)
        assert batch["images"].dtype == np.float32
        assert batch["labels"].dtype == np.int64
        assert check_batch(batch, skip_broken=False) == []
    assert np.bincount(np.concatenate([batch["labels"] for batch in batches])).tolist() == [12, 12, 12]


def test_evaluation_batches_are_the_transformed_images_in_order(shapes):
    batches = eval_batches(shapes)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4, 4, 4, 1]
    dataset, transform = build_dataset("folder", shapes, "val"), build_transform(make_config(), training=False)
    images, labels = (np.concatenate([batch[key] for batch in batches]) for key in ("images", "labels"))
    np.testing.assert_array_equal(images, [transform(dataset.load(index)) for index in range(21)])
    np.testing.assert_array_equal(labels, dataset.labels)


def test_batches_are_the_same_for_any_number_of_workers(shapes):
    assert_equal(train_batches(shapes, epoch=1, NUM_WORKERS=2), train_batches(shapes, epoch=1))
    assert_equal(eval_batches(shapes, NUM_WORKERS=2), eval_batches(shapes))


class ThreadsOfOpenCV(paddle.io.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return cv2.getNumThreads()


def test_opencv_has_one_thread_in_a_reader_and_all_of_them_here():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        dataset = ThreadsOfOpenCV()
        for workers, threads in ((1, 1), (0, 3)):
            loader = build_loader(dataset, paddle.io.BatchSampler(dataset), workers, lambda values: np.array(values))
            assert [int(batch) for batch in loader] == [threads]
    finally:
        cv2.setNumThreads(before)


def test_one_loader_gives_one_epoch_after_another(shapes):
    loader, sampler = build_train_loader(make_config(), build_dataset("folder", shapes, "train"))
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


@pytest.fixture
def broken(shapes):
    """The data set with one training and one validation image cut short; returns their paths and indices."""
    paths = {}
    for split, name in (("train", "green/05.png"), ("val", "red/06.png")):
        path = shapes / split / name
        path.write_bytes(path.read_bytes()[:200])
        dataset = build_dataset("folder", shapes, split)
        paths[split] = path, [dataset.path(index) for index in range(len(dataset))].index(path)
    return paths


def test_broken_training_image_is_named(shapes, broken):
    failures = []
    for batch in train_batches(shapes, NUM_WORKERS=2):
        try:
            assert check_batch(batch, skip_broken=False) == []
        except UserError as error:
            failures.append(str(error))
            assert (batch["labels"] == IGNORED_LABEL).sum() == 1
    assert len(failures) == 1
    assert "\n" not in failures[0]
    assert str(broken["train"][0]) in failures[0]
    assert "DATA.SKIP_BROKEN" in failures[0]


def test_broken_evaluation_image_is_named_or_counted_but_never_replaced(shapes, broken):
    whole = eval_batches(shapes, SKIP_BROKEN=True)
    path, index = broken["val"]
    batch, position = whole[index // 4], index % 4
    assert batch["labels"][position] == IGNORED_LABEL
    assert not batch["images"][position].any()
    assert sum((batch["labels"] == IGNORED_LABEL).sum() for batch in whole) == 1
    assert [len(check_batch(batch, skip_broken=True)) for batch in whole] == [
        int(number == index // 4) for number in range(len(whole))
    ]
    with pytest.raises(UserError, match=path.name):
        check_batch(batch, skip_broken=False)


def test_broken_training_image_is_replaced_by_the_next_and_counted(shapes, broken):
    path, index = broken["train"]
    batches = train_batches(shapes, SKIP_BROKEN=True)
    messages = [message for batch in batches for message in check_batch(batch, skip_broken=True)]
    assert len(messages) == 1
    assert str(path) in messages[0]
    assert all((batch["labels"] != IGNORED_LABEL).all() for batch in batches)
    assert np.bincount(np.concatenate([batch["labels"] for batch in batches])).tolist() == [12, 12, 12]

    next_path = build_dataset("folder", shapes, "train").path(index + 1)
    path.write_bytes(next_path.read_bytes())
    repaired = train_batches(shapes)
    for batch, expected in zip(batches, repaired, strict=True):
        np.testing.assert_array_equal(batch["images"], expected["images"])


def train_sample(folder, index, **changes):
    """Image, label and message of one sample without Paddle's loader, which would hang if loading raised."""
    loader, _ = build_train_loader(make_config(**changes), build_dataset("folder", folder, "train"))
    sample = loader.dataset[SampleKey(index, 0, 0)]
    assert sample.keys() == {"images", "labels", "errors"}
    return sample["images"], sample["labels"], sample["errors"]


def test_last_image_is_replaced_by_the_first(shapes):
    last = shapes / "train" / "red" / "11.png"
    last.write_bytes(b"")
    image, label, message = train_sample(shapes, 35, SKIP_BROKEN=True)
    assert label == 0
    assert str(last) in message
    np.testing.assert_array_equal(image, train_sample(shapes, 0)[0])


def test_nothing_but_broken_images_is_an_error(shapes):
    for path in (shapes / "train").rglob("*.png"):
        path.write_bytes(b"")
    batch = train_batches(shapes, SKIP_BROKEN=True)[0]
    with pytest.raises(UserError, match="10 images in a row could not be read"):
        check_batch(batch, skip_broken=True, training=True)


def test_any_error_names_the_image(shapes, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(loaders.TrainTransform, "__call__", fail)
    _, label, message = train_sample(shapes, 3)
    assert label == IGNORED_LABEL
    assert message == f"{shapes / 'train' / 'blue' / '03.png'}: ZeroDivisionError: nothing to divide by"


def test_only_training_decodes_images_at_a_reduced_size(shapes, monkeypatch):
    sizes, real = [], FileDataset.load

    def spy(dataset, index, min_size=None):
        sizes.append(min_size)
        return real(dataset, index, min_size)

    monkeypatch.setattr(FileDataset, "load", spy)
    train_sample(shapes, 0)
    eval_batches(shapes)
    assert sizes == [build_transform(make_config(), training=True).min_size()] + [None] * 21


# ---- invalid configurations


def test_too_few_training_images_for_a_step(shapes):
    with pytest.raises(UserError, match="36 training images are too few") as caught:
        train_batches(shapes, BATCH_SIZE=13, ACCUM_ITER=3)
    for part in ("batch size 13 x 1 ranks x 3 accumulated batches = 39", "lower one of them"):
        assert part in str(caught.value)


def test_more_ranks_than_evaluation_images(shapes, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "22")
    with pytest.raises(UserError, match="22 ranks for 21 images"):
        eval_batches(shapes)


def test_an_invalid_transform_is_a_user_error():
    with pytest.raises(UserError, match="DATA or AUG: interpolation 'cubist'"):
        build_transform(make_config(INTERPOLATION="cubist"), training=True)
