"""Every batch holds every group, every epoch every post."""

import numpy as np
import pytest
from class_helpers import column
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.errors import TrainingError
from selftrain.models.finetune import GroupBatches

SIZES = st.lists(st.integers(0, 90), min_size=5, max_size=5).filter(any)


@settings(deadline=None)
@given(sizes=SIZES, batch_size=st.integers(5, 40), seed=st.integers(0, 2**32 - 1))
def test_batches_hold_every_group_in_proportion_and_an_epoch_every_post(sizes, batch_size, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(5), sizes))
    batches = GroupBatches(column(groups), batch_size, seed)
    epoch = batches.epoch(1)
    assert len(epoch) == batches.steps
    counts = np.array([np.bincount(groups[batch], minlength=5) for batch in epoch])
    assert counts.sum(1).max() <= batch_size
    for group, size in enumerate(sizes):
        if size:
            assert counts[:, group].min() >= 1
            assert abs(counts[:, group] - max(size / batches.steps, 1)).max() < 1
    times = np.bincount(np.concatenate(epoch), minlength=len(groups))
    assert times.min() >= 1
    for group, size in enumerate(sizes):
        if size >= batches.steps:  # only posts of a group smaller than that are repeated
            assert (times[groups == group] == 1).all()
        elif size:
            assert np.ptp(times[groups == group]) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    groups = np.repeat(np.arange(5), 8)
    batches, again = GroupBatches(column(groups), 16, 3), GroupBatches(column(groups), 16, 3)
    again.epoch(1)
    first, second = np.concatenate(batches.epoch(1)), np.concatenate(batches.epoch(2))
    np.testing.assert_array_equal(np.concatenate(again.epoch(2)), second)
    assert (first != second).any()
    assert (first != np.concatenate(GroupBatches(column(groups), 16, 4).epoch(1))).any()


def test_as_few_batches_as_the_size_allows():
    assert GroupBatches(column(np.repeat(np.arange(2), 8)), 16, 0).steps == 1
    # 1 + 7 a batch need 30 / 7 of them
    assert GroupBatches(column(np.repeat(np.arange(2), [1, 30])), 8, 0).steps == 5


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(TrainingError, match="batch of 4 cannot hold posts of all 5 groups"):
        GroupBatches(column(np.arange(5)), 4, 0)
    with pytest.raises(TrainingError, match="no posts"):
        GroupBatches(np.empty((0, 1), np.int64), 4, 0)
