"""Which sample comes when, on how many ranks."""

import pytest

from common.training.sampler import IterationSampler, SampleKey, ShardedEvalSampler, ShardedTrainSampler


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


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_is_a_permutation(epoch):
    batches = epoch_of(24, 4, 0, epoch=epoch)
    assert [len(batch) for batch in batches] == [4] * 6
    assert sorted(indices(batches)) == list(range(24))
    assert indices(batches) != list(range(24))


def test_keys_carry_epoch_and_position():
    batches = epoch_of(24, 2, 0, 1, 3, epoch=5)
    assert all(isinstance(key, SampleKey) and key.epoch == 5 for batch in batches for key in batch)
    assert [key.position for batch in batches for key in batch] == list(range(1, 24, 3))
    assert all(type(value) is int for batch in batches for key in batch for value in key)


def test_what_does_not_fill_a_batch_is_left_out_and_differs_between_epochs():
    left_out = set()
    for epoch in range(30):
        used = indices(epoch_of(10, 4, 0, epoch=epoch))
        assert len(used) == len(set(used)) == 8
        left_out |= set(range(10)) - set(used)
    assert left_out == set(range(10))


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_disjoint_and_together_what_one_rank_would_see(world_size, epoch):
    alone = ranks_of(1, 6, epoch=epoch)[0]
    ranks = ranks_of(world_size, 6, epoch=epoch)
    assert len(alone) == 4
    assert all(len(batches) == 4 for batches in ranks)
    for step, whole in enumerate(alone):
        shares = [key for batches in ranks for key in batches[step]]
        assert len(set(shares)) == len(shares) == 6
        assert set(shares) == set(whole)


def test_seeds_and_epochs_differ_and_repeat_exactly():
    orders = [tuple(indices(epoch_of(24, 4, seed, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert [tuple(indices(epoch_of(24, 4, seed, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1)] == orders


def test_iterating_twice_gives_the_same_epoch_until_told_otherwise():
    sampler = ShardedTrainSampler(24, 4, 0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_range(1)
    assert list(sampler) != first


@pytest.mark.parametrize("first_batch", [0, 1, 3, 6])
def test_start_batch_continues_the_same_sequence(first_batch):
    whole = epoch_of(26, 2, 0, 1, 2, epoch=2)
    assert epoch_of(26, 2, 0, 1, 2, epoch=2, first_batch=first_batch) == whole[first_batch:]


def test_set_range_goes_back_to_the_start_of_the_epoch():
    sampler = ShardedTrainSampler(24, 4, 0)
    sampler.set_range(1, 3)
    assert len(list(sampler)) == 3
    sampler.set_range(1)
    assert len(list(sampler)) == len(sampler) == 6


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeats_stand_in_a_row_one_for_each_rank(world_size):
    ranks = ranks_of(world_size, 6, num_samples=24, repeats=3)
    keys = sorted((key.position, key.index) for batches in ranks for batch in batches for key in batch)
    assert [position for position, _ in keys] == list(range(24))
    order = [index for _, index in keys]
    copies = [order[start : start + 3] for start in range(0, 24, 3)]
    assert all(len(set(group)) == 1 for group in copies)
    assert len({group[0] for group in copies}) == 8
    if world_size == 3:
        assert len({tuple(indices(batches)) for batches in ranks}) == 1


def test_group_leaves_whole_optimizer_steps():
    assert len(epoch_of(23, 2, 0, group=3)) == 9
    assert len(epoch_of(23, 2, 0, 0, 2, group=3)) == 3
    assert indices(epoch_of(23, 2, 0, group=3)) == indices(epoch_of(23, 2, 0))[:18]


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world_size", "group"), [(3, 4, 1, 1), (7, 4, 2, 1), (11, 4, 1, 3), (0, 1, 1, 1)]
)
def test_too_few_samples_are_refused(num_samples, batch_size, world_size, group):
    with pytest.raises(ValueError, match=f"{num_samples} training images are too few") as caught:
        ShardedTrainSampler(num_samples, batch_size, 0, 0, world_size, group=group)
    assert f"batch size {batch_size} x {world_size} ranks x {group} accumulated batches" in str(caught.value)
    enough = batch_size * world_size * group
    assert len(ShardedTrainSampler(enough, batch_size, 0, 0, world_size, group=group)) == group


# ---- evaluation


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_samples", [7, 20, 21, 22])
def test_evaluation_covers_every_index_once(num_samples, world_size, batch_size):
    seen, shares = [], []
    for rank in range(world_size):
        sampler = ShardedEvalSampler(num_samples, batch_size, rank, world_size)
        batches = list(sampler)
        assert len(sampler) == len(batches)
        assert all(0 < len(batch) <= batch_size for batch in batches)
        assert all(key.epoch == 0 and key.position == key.index for batch in batches for key in batch)
        seen += indices(batches)
        shares.append(len(indices(batches)))
    assert sorted(seen) == list(range(num_samples))
    assert max(shares) - min(shares) <= 1


def test_evaluation_on_one_rank_is_in_order():
    assert [[key.index for key in batch] for batch in ShardedEvalSampler(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


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


def test_a_run_of_steps_is_one_permutation_after_the_other():
    keys = [key for step in iterations(14) for key in step]
    assert [key.position for key in keys] == list(range(42))
    passes = [[key.index for key in keys[start : start + 7]] for start in range(0, 42, 7)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6


def test_a_longer_run_of_steps_begins_as_a_shorter_one_and_can_be_entered_anywhere():
    sampler = IterationSampler(7, 3, 5, steps=20)
    sampler.set_range(0, 8)
    assert list(sampler) == iterations(20)[8:]
    assert len(sampler) == 12
    assert iterations(9) == iterations(20)[:9]


@pytest.mark.parametrize(("world_size", "group", "batch_size"), [(2, 1, 3), (3, 1, 2), (1, 2, 3), (2, 3, 1)])
def test_the_ranks_share_out_the_same_steps(world_size, group, batch_size):
    assert iterations(10, world_size, group, batch_size) == iterations(10, 1, 1, 6)


def test_a_run_of_steps_takes_more_images_than_there_are():
    assert sum(map(len, iterations(4, batch_size=5, images=2))) == 20
