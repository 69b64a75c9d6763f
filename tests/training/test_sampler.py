"""The order of the samples, on any number of ranks."""

import numpy as np
import pytest

from common.training.sampler import (
    BalancedTrainSampler,
    IterationSampler,
    SampleKey,
    ShardedEvalSampler,
    ShardedTrainSampler,
)


def epoch_of(*args, epoch=0, first_batch=0, **kwargs):
    sampler = ShardedTrainSampler(*args, **kwargs)
    sampler.set_range(epoch, first_batch)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    return batches


def indices(batches):
    return [key.index for batch in batches for key in batch]


def ranks_of(world_size, global_batch, num_samples=26, **kwargs):
    """The batches of every rank at one global batch."""
    size = global_batch // world_size
    return [epoch_of(num_samples, size, 7, rank, world_size, **kwargs) for rank in range(world_size)]


# ---- training


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide():
    orders = [tuple(indices(epoch_of(24, 4, seed, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len(set(orders)) == 4
    assert [tuple(indices(epoch_of(24, 4, seed, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1)] == orders


def test_keys_carry_epoch_and_position():
    batches = epoch_of(24, 2, 0, 1, 3, epoch=5)
    assert all(isinstance(key, SampleKey) and key.epoch == 5 for batch in batches for key in batch)
    assert [key.position for batch in batches for key in batch] == list(range(1, 24, 3))
    assert all(type(value) is int for batch in batches for key in batch for value in key)


def test_the_dropped_remainder_differs_between_epochs():
    dropped = set()
    for epoch in range(30):
        used = indices(epoch_of(10, 4, 0, epoch=epoch))
        assert len(used) == len(set(used)) == 8
        dropped |= set(range(10)) - set(used)
    assert dropped == set(range(10))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_disjoint_and_together_what_one_rank_would_see(world_size):
    alone = ranks_of(1, 6, epoch=3)[0]
    ranks = ranks_of(world_size, 6, epoch=3)
    assert len(alone) == 4
    assert all(len(batches) == 4 for batches in ranks)
    for step, whole in enumerate(alone):
        shards = [key for batches in ranks for key in batches[step]]
        assert len(set(shards)) == len(shards) == 6
        assert set(shards) == set(whole)


def test_an_epoch_can_be_entered_anywhere():
    whole = epoch_of(26, 2, 0, 1, 2, epoch=2)
    assert all(epoch_of(26, 2, 0, 1, 2, epoch=2, first_batch=first) == whole[first:] for first in (0, 1, 6))
    sampler = ShardedTrainSampler(24, 4, 0)
    sampler.set_range(1, 3, 5)
    assert len(list(sampler)) == len(sampler) == 2
    sampler.set_range(1)
    assert len(list(sampler)) == len(sampler) == 6


@pytest.mark.parametrize("world_size", [1, 3])
def test_repeats_stand_in_a_row_one_per_rank(world_size):
    ranks = ranks_of(world_size, 6, num_samples=24, repeats=3)
    keys = sorted((key.position, key.index) for batches in ranks for batch in batches for key in batch)
    assert [position for position, _ in keys] == list(range(24))
    order = [index for _, index in keys]
    copies = [order[start : start + 3] for start in range(0, 24, 3)]
    assert all(len(set(group)) == 1 for group in copies)
    assert len({group[0] for group in copies}) == 8
    if world_size == 3:
        assert len({tuple(indices(batches)) for batches in ranks}) == 1


LABELS = np.repeat([4, 0, 2], [20, 7, 3])  # classes 1 and 3 have no sample


def balanced(epoch=0, batch_size=5, rank=0, world_size=1):
    sampler = BalancedTrainSampler(30, batch_size, 0, rank, world_size, labels=LABELS)
    sampler.set_range(epoch)
    return list(sampler)


def test_a_balanced_epoch_has_equally_many_samples_of_every_class_that_has_any():
    for epoch in range(5):
        order = indices(balanced(epoch))
        assert np.bincount(LABELS[order]).tolist() == [10, 0, 10, 0, 10]
        counts = np.bincount(order, minlength=30)
        assert counts[LABELS == 4].max() == 1  # a random half of the large class
        assert set(counts[LABELS == 0]) == {1, 2}
        assert set(counts[LABELS == 2]) == {3, 4}
    uneven = BalancedTrainSampler(29, 29, 0, labels=LABELS[:-1])
    assert sorted(np.bincount(LABELS[indices(list(uneven))]))[-3:] == [9, 10, 10]


def test_a_balanced_order_depends_on_seed_and_epoch_and_not_on_the_ranks():
    assert indices(balanced(0)) != indices(balanced(1))
    assert balanced(3) == balanced(3)
    shards = [balanced(3, 5, rank, 2) for rank in range(2)]
    alone = balanced(3, 10)
    assert [sorted((*a, *b)) for a, b in zip(*shards, strict=True)] == [sorted(batch) for batch in alone]


def test_accumulation_leaves_whole_optimizer_steps():
    sampler = ShardedTrainSampler(23, 2, 0, group=3)
    assert (len(sampler), sampler.steps_per_epoch) == (9, 3)
    assert len(epoch_of(23, 2, 0, 0, 2, group=3)) == 3
    assert indices(epoch_of(23, 2, 0, group=3)) == indices(epoch_of(23, 2, 0))[:18]


@pytest.mark.parametrize(("num_samples", "world_size", "group"), [(7, 2, 1), (11, 1, 3), (0, 1, 1)])
def test_too_few_samples_are_refused(num_samples, world_size, group):
    with pytest.raises(ValueError, match=f"{num_samples} training images are too few") as caught:
        ShardedTrainSampler(num_samples, 4, 0, 0, world_size, group=group)
    assert f"batch size 4 x {world_size} ranks x {group} accumulated batches" in str(caught.value)
    assert len(ShardedTrainSampler(4 * world_size * group, 4, 0, 0, world_size, group=group)) == group


# ---- evaluation


@pytest.mark.parametrize(("num_samples", "batch_size", "world_size"), [(7, 1, 1), (20, 4, 3), (22, 4, 3), (7, 100, 7)])
def test_evaluation_covers_every_index_once(num_samples, batch_size, world_size):
    seen, sizes = [], []
    for rank in range(world_size):
        sampler = ShardedEvalSampler(num_samples, batch_size, rank, world_size)
        batches = list(sampler)
        assert len(sampler) == len(batches)
        assert all(0 < len(batch) <= batch_size for batch in batches)
        assert all(key.epoch == 0 and key.position == key.index for batch in batches for key in batch)
        seen += indices(batches)
        sizes.append(len(indices(batches)))
    assert sorted(seen) == list(range(num_samples))
    assert max(sizes) - min(sizes) <= 1


# ---- runs of steps


def iterations(steps: int, world_size: int = 1, group: int = 1, batch_size: int = 3, images: int = 7) -> list[list]:
    """The steps of a run over all ranks: each the keys of its batches in the order of their positions."""
    ranks = [
        [
            key
            for batch in IterationSampler(images, batch_size, 5, rank, world_size, group, steps=steps)
            for key in batch
        ]
        for rank in range(world_size)
    ]
    keys = sorted((key for rank in ranks for key in rank), key=lambda key: key.position)
    size = batch_size * world_size * group
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def test_a_run_of_steps_concatenates_permutations():
    keys = [key for step in iterations(14) for key in step]
    assert [key.position for key in keys] == list(range(42))
    passes = [[key.index for key in keys[start : start + 7]] for start in range(0, 42, 7)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6
    assert sum(map(len, iterations(4, batch_size=5, images=2))) == 20  # more than there are images


def test_a_longer_run_of_steps_begins_like_a_shorter_one_and_can_be_entered_anywhere():
    sampler = IterationSampler(7, 3, 5, steps=20)
    sampler.set_range(0, 8)
    assert list(sampler) == iterations(20)[8:]
    assert len(sampler) == 12
    assert iterations(9) == iterations(20)[:9]


@pytest.mark.parametrize(("world_size", "group", "batch_size"), [(2, 1, 3), (1, 2, 3), (2, 3, 1)])
def test_the_ranks_share_the_same_steps(world_size, group, batch_size):
    assert iterations(10, world_size, group, batch_size) == iterations(10, 1, 1, 6)
