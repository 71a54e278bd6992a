"""The order of training: which posts make up each optimiser step, and which process computes which of them.

The whole order follows from the seed, the number of posts and their lengths, never from how many processes
there are: several give the same losses as one, and a run that was killed finds its place again.

Shape legend: ``M`` training posts, ``B`` posts of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selftrain._util.types import IntArray

# posts of so many steps are sorted by length together: batches waste little, and an epoch stays well shuffled
_SORTED_STEPS = 8


class Step(NamedTuple):
    """One step of the optimiser.

    Attributes:
        number: From 0, over all epochs.
        epoch: From 0.
        posts: [B] indices into the training posts, by length.
    """

    number: int
    epoch: int
    posts: IntArray

    def parts(self, rank: int, processes: int, size: int) -> list[IntArray]:
        """The posts that process `rank` computes, in parts of at most `size`; at least one part.

        Every process gets posts of every length, so that none waits for the others.
        """
        mine = self.posts[rank::processes]
        return np.array_split(mine, max(-(-len(mine) // size), 1))


class Order:
    """The steps of all epochs.

    Args:
        lengths: [M] tokens of each post.
        batch_size: Posts of a step, at least 1; steps are made of even size, so the last is no smaller.
        epochs: Passes over the posts.
        seed: Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._seed = seed
        self.epochs = epochs
        self.steps_per_epoch = max(round(len(lengths) / batch_size), 1)

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.epochs

    def epoch(self, number: int) -> list[Step]:
        """The steps of one epoch; every post occurs once."""
        generator = np.random.default_rng([self._seed, number])
        shuffled = generator.permutation(len(self._lengths))
        batches: list[IntArray] = []
        stretches = max(self.steps_per_epoch // _SORTED_STEPS, 1)
        per_stretch = np.array_split(np.arange(self.steps_per_epoch), stretches)
        sizes = [len(part) for part in np.array_split(shuffled, self.steps_per_epoch)]
        start = 0
        for steps in per_stretch:
            wanted = [sizes[step] for step in steps]
            stretch = shuffled[start : start + sum(wanted)]
            stretch = stretch[np.argsort(self._lengths[stretch], kind="stable")]
            batches += np.split(stretch, np.cumsum(wanted)[:-1])
            start += sum(wanted)
        # sorted stretches would show the short posts first
        order = generator.permutation(len(batches))
        first = number * self.steps_per_epoch
        return [Step(first + i, number, batches[place]) for i, place in enumerate(order)]
