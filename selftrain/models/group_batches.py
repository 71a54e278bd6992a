"""Batches that hold posts of every PNU group: the risks are made of means over groups.

Shape legend: ``M`` training posts, ``C`` classes set against the rest, ``G`` groups that are not empty: the
labelled posts of a class, its agreed ones, the divergent ones.
"""

from __future__ import annotations

import numpy as np

from selftrain._util.types import IntArray
from selftrain.errors import TrainingError


class GroupBatches:
    """Deals the posts of each group evenly over the batches of an epoch.

    A batch without a group would take that group's mean for 0, so that a small group would be learned from
    now and then, with the weight of a whole risk, and forgotten in between. Here every batch holds at least
    one post of each group, and each group's share of a batch is its share of the posts, to within one post.
    Every post occurs at least once an epoch; a group with fewer posts than there are batches goes round.

    `groups` [M, C] are those of every training post; `steps`, the batches of an epoch, are as few as keep
    each within the batch size.

    Raises:
        TrainingError: No posts, or a batch too small to hold one of each group.
    """

    def __init__(self, groups: IntArray, batch_size: int, seed: int) -> None:
        kinds, kind = np.unique(groups, axis=0, return_inverse=True)
        self._members = [np.flatnonzero(kind.reshape(-1) == one) for one in range(len(kinds))]
        self._seed = seed
        if not self._members:
            raise TrainingError("there are no posts to train on")
        if batch_size < len(self._members):
            raise TrainingError(
                f"a batch of {batch_size} cannot hold posts of all {len(self._members)} groups (labelled and"
                f" agreed of each class, divergent): set classifier.batch_size to at least"
                f" {len(self._members)}"
            )
        sizes = np.array([len(members) for members in self._members])
        steps = -(-int(sizes.sum()) // batch_size)
        while (-(-sizes // steps)).sum() > batch_size:
            steps += 1
        self.steps = steps

    def epoch(self, number: int) -> list[IntArray]:
        """Return the batches of an epoch, indices [n] into the training posts, by seed and number alone."""
        generator = np.random.default_rng([self._seed, number])
        dealt = [self._deal(members, generator) for members in self._members]
        return [np.concatenate(parts) for parts in zip(*dealt, strict=True)]

    def _deal(self, members: IntArray, generator: np.random.Generator) -> list[IntArray]:
        """Deal one group's posts, shuffled, in `steps` runs whose lengths differ by one at most."""
        order = generator.permutation(members)
        while len(order) < self.steps:
            order = np.concatenate([order, generator.permutation(members)])
        if len(members) < self.steps:
            order = order[: self.steps]
        return np.array_split(order, self.steps)
