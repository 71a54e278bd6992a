"""All posts of a run in one order, their features, and who is in which split. Positions count from 0 here.

Everything downstream of this module speaks in positions: one row of the feature table, one post.

Shape legend: ``M`` training posts, ``K`` classes, ``C`` classes that are set against the rest: of two the
positive one, of more all (`selftrain._util.numeric.class_columns`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from losses.base import Group
from selftrain._util.numeric import class_columns
from selftrain._util.types import BoolArray, Float32Array, IntArray, LabelArray
from selftrain.data.post_store import Chosen, Joined, PositionOf, at_hand
from selftrain.errors import SplitError

if TYPE_CHECKING:
    from selftrain.data.features import FeatureTable
    from selftrain.data.posts import Post
    from selftrain.data.splits import Splits
    from selftrain.data.task import Task

UNKNOWN = -1


class TrainingSet(NamedTuple):
    """What a model learns from, as positions in the corpus."""

    positions: IntArray  # [M] positions of the posts
    # [M, C] `losses.Group` values: what a post is to each class that is set against the rest
    groups: IntArray
    targets: Float32Array  # [M, C] probability of that class, in [0, 1]

    @property
    def labelled(self) -> BoolArray:
        """Return which posts [M] have labels, people's labels among them."""
        return np.isin(self.groups[:, 0], (Group.POSITIVE, Group.NEGATIVE))

    @property
    def labels(self) -> LabelArray:
        """Return the labels of the labelled posts, in their order."""
        columns = class_columns(max(self.groups.shape[1], 2))
        return np.asarray((self.groups[self.labelled] == Group.POSITIVE) @ columns, dtype=np.int16)


@dataclass(frozen=True)
class Corpus:
    """Posts, features and labels by position."""

    posts: Sequence[Post]  # labelled, validation, pool and test posts, in this order; the pool may be on disk
    table: FeatureTable | None  # feature rows of `posts`; None until they are extracted
    # positions of each split
    labelled: IntArray
    validation: IntArray
    pool: IntArray
    test: IntArray
    labels: LabelArray  # [len(posts)] places in `classes`, -1 where no label may be used (the pool)
    # [len(posts)] like `labels`, and the hidden labels of pool posts too: for measuring only
    truth: LabelArray
    classes: tuple[str, ...]  # K names, the positive one last

    @property
    def positive(self) -> str:
        """The class that is looked for."""
        return self.classes[-1]

    @property
    def shown(self) -> tuple[str, ...]:
        """The classes as people and agents see them, the positive one first."""
        return self.classes[-1], *self.classes[:-1]

    @cached_property
    def columns(self) -> IntArray:
        """[C] labels of the classes that are set against the rest."""
        return class_columns(len(self.classes))

    def groups(self, labels: LabelArray | IntArray, own: Group, other: Group) -> IntArray:
        """Return groups [n, C] of posts of labels [n]: `own` with regard to their class, else `other`."""
        return np.where(labels[:, None] == self.columns, own, other).astype(np.int64)

    @cached_property
    def position_of(self) -> Mapping[str, int]:
        """Post id -> position, of all posts."""
        return PositionOf(self.posts)

    def posts_at(self, positions: IntArray) -> Sequence[Post]:
        """Return the posts [n] at some positions; one is read when it is looked at."""
        return Chosen(self.posts, positions)

    def positions_of(self, post_ids: Iterable[str]) -> IntArray:
        """[n] positions of some posts, in their own order.

        Raises:
            KeyError: No such post.
        """
        return np.array(sorted(self.position_of[post_id] for post_id in post_ids), dtype=np.int64)

    def rows(self, positions: IntArray) -> Float32Array:
        """Return feature rows [n, D] of some positions."""
        assert self.table is not None, "features are extracted before the loop begins"
        return self.table.rows(positions)


def build_corpus(splits: Splits, task: Task, table: FeatureTable | None) -> Corpus:
    """Line up the posts of all splits; `table` has the features of `ordered_posts(splits)`, if any.

    Raises:
        SplitError: Too few labels to train or validate on.
    """
    posts = at_hand(ordered_posts(splits))
    bounds = np.cumsum([0, len(splits.labelled), len(splits.validation), len(splits.pool), len(splits.test)])
    labelled, validation, pool, test = (
        np.arange(start, end, dtype=np.int64) for start, end in pairwise(bounds)
    )
    values = {name: number for number, name in enumerate(task.numbered)}
    labels = np.full(len(posts), UNKNOWN, dtype=np.int16)
    for positions in (labelled, validation, test):  # no post of the pool shows a label
        labels[positions] = [
            UNKNOWN if p.label is None else values[p.label] for p in Chosen(posts, positions)
        ]
    truth = labels.copy()
    for place, post in enumerate(splits.pool if splits.truth else ()):
        known = splits.truth.get(post.id)
        if known is not None:
            truth[pool[place]] = values[known]
    corpus = Corpus(posts, table, labelled, validation, pool, test, labels, truth, task.numbered)
    _check(corpus)
    return corpus


def ordered_posts(splits: Splits) -> Sequence[Post]:
    """Return the posts in the one order: labelled, validation, pool, test."""
    return Joined(splits.labelled, splits.validation, splits.pool, splits.test)


def _check(corpus: Corpus) -> None:
    # of the labelled ones `Splits` requires as many
    for one in corpus.shown if len(corpus.validation) else ():
        found = int((corpus.labels[corpus.validation] == corpus.classes.index(one)).sum())
        if found < 2:
            raise SplitError(
                f"the validation split has {found} post(s) of class {one!r}: expected at least 2. Label more"
                " posts of it, or change the shares of [data]"
            )
    if not len(corpus.pool):
        raise SplitError(
            f"the pool is empty ({len(corpus.labelled):,} labelled, {len(corpus.validation):,} validation,"
            f" {len(corpus.test):,} test); expected at least 1 post: add unlabelled posts to the manifest,"
            " name a data.pool, or set data.labelled"
        )
