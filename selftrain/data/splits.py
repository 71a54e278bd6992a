"""Posts to the four splits: labelled, validation, pool and test.

Every draw uses one ``numpy.random.RandomState(seed)``, in this order: the cut of the larger classes
(`balance`), each class's order, the labelled posts. Positions are in the posts' order, classes in the
task's, so the same posts, arguments and seed give the same splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from selftrain.data.columns import SPLIT
from selftrain.data.post_store import Chosen, Joined, PositionOf, have_labels, unlabelled
from selftrain.data.posts import Post
from selftrain.data.tables import fold
from selftrain.data.task import Task
from selftrain.errors import SplitError

# the copy in the split that stands first stays, see duplicates.separate
PRIORITY = ("test", "validation", "labelled", "pool")
SPLIT_NAMES = {
    "train": "labelled", "training": "labelled", "labelled": "labelled", "labeled": "labelled",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "pool": "pool", "unlabelled": "pool", "unlabeled": "pool", "test": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Splits:
    """The four splits; no id stands in two.

    Raises:
        SplitError: An id twice, a post without label where one is needed, fewer than two labelled posts of a
            class, or none of a class in the validation split; with the figures.
    """

    names: tuple[str, ...]  # the task's class names; every label is one of them
    labelled: tuple[Post, ...]  # at least two posts of each class
    # Labelled; chooses the model and the thresholds. May be empty: then each labelled post is left out once
    # instead.
    validation: tuple[Post, ...]
    # their labels are hidden: `label` is None, and `process` is empty where there was a label; may be a view
    # of posts on disk
    pool: Sequence[Post]
    test: tuple[Post, ...] = ()  # Labelled; only measured on. May be empty.
    # Id -> label of the pool posts whose label was hidden. For measuring only, never for training.
    truth: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_ids()
        for name in ("labelled", "validation", "test"):
            self._check_labels(name)
        require(self.labelled, self.names, LEAST_PER_CLASS, "the labelled split")
        if self.validation:
            require(self.validation, self.names, 1, "the validation split")

    def __getitem__(self, name: str) -> Sequence[Post]:
        """Return the split called "labelled", "validation", "pool" or "test"."""
        if name not in PRIORITY:
            raise KeyError(name)
        posts: Sequence[Post] = getattr(self, name)
        return posts

    def without(self, ids: Collection[str]) -> Splits:
        """Return these splits less some posts.

        Raises:
            SplitError: What is left is too little.
        """
        if not ids:
            return self
        position_of = PositionOf(self.pool)
        gone = {place for one in ids if (place := position_of.get(one)) is not None}
        pool = Chosen(self.pool, np.delete(np.arange(len(self.pool)), sorted(gone)))
        labelled, validation, test = (
            tuple(post for post in self[name] if post.id not in ids)
            for name in ("labelled", "validation", "test")
        )
        truth = {post_id: label for post_id, label in self.truth.items() if post_id not in ids}
        return Splits(self.names, labelled, validation, pool, test, truth)

    def _check_ids(self) -> None:
        posts = Joined(*(self[name] for name in PRIORITY))
        ends = np.cumsum([len(self[name]) for name in PRIORITY])
        for pair in PositionOf(posts).twice():
            first, second = (PRIORITY[int(place)] for place in ends.searchsorted(pair, side="right"))
            if first == second:
                name = first
                ids = {post.id for post in self[name]}
                raise SplitError(
                    f"{name} holds {len(self[name])} posts but {len(ids)} ids; expected each id once"
                )
            raise SplitError(
                f"id {posts[pair[0]].id!r} stands in {first} and in {second}; expected one split: remove one"
            )

    def _check_labels(self, name: str) -> None:
        strange = [post for post in self[name] if post.label not in self.names]
        if strange:
            raise SplitError(
                f"{len(strange)} of {len(self[name])} posts of {name} have no label of the task,"
                f" {strange[0].id!r} with {strange[0].label!r} first; expected one of {list(self.names)}:"
                " label them or put them into the pool"
            )


def split_by_shares(
    posts: Sequence[Post], task: Task, shares: Mapping[str, float], *, balance: bool = False, seed: int = 0
) -> Splits:
    """Split one list of posts, every label of train in use; those without label go to the pool.

    Args:
        posts: Labelled and unlabelled.
        task: Its classes.
        shares: "train" and, where wanted, "validation" and "test" -> share, each > 0, their sum 1.
            Stratified.
        balance: First cut the larger classes down to the smallest.
        seed: In [0, 2**32).

    Raises:
        SplitError: The shares are none, or the posts do not suffice.
    """
    _check_shares(shares)
    random = np.random.RandomState(seed)
    classes = by_class(posts, task.names)
    if balance:
        classes = cut(classes, random)
    train, validation, test = _parts(posts, classes, shares, random)
    return split_given(task, train, validation, _by_label(posts)[1], test)


def split_given(
    task: Task,
    train: Sequence[Post],
    validation: Sequence[Post],
    pool: Sequence[Post] = (),
    test: Sequence[Post] = (),
    *,
    labelled: int | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> Splits:
    """Take splits that somebody else has made. Unlabelled posts of train go to the pool.

    Args:
        task: Its classes.
        train: What the labelled posts are drawn from; the rest goes to the pool with its label hidden.
        validation: Labelled posts.
        pool: Any posts; their labels are hidden.
        test: Labelled posts.
        labelled: How many posts of train keep their label; None for all.
        balanced: Draw as many labelled posts of each class, instead of the classes' shares in train.
        seed: Of that draw, in [0, 2**32).

    Raises:
        SplitError: The posts do not suffice, or an id stands in two splits.
    """
    known, unknown = _by_label(train)
    kept, rest = draw_labelled(known, task.names, labelled, balanced, np.random.RandomState(seed))
    pool = Joined(rest, unknown, pool)
    truth = {post.id: post.label for post in _by_label(pool)[0] if post.label is not None}
    return Splits(task.names, tuple(kept), tuple(validation), unlabelled(pool), tuple(test), truth)


def parts_by_column(posts: Sequence[Post]) -> dict[str, Sequence[Post]]:
    """Sort posts under the names of `PRIORITY`, as the manifest's field `split` has them: train is labelled.

    Raises:
        SplitError: A post whose field is missing or none of these.
    """
    parts: dict[str, list[int]] = {name: [] for name in PRIORITY}
    strange: list[Post] = []
    for place, post in enumerate(posts):
        name = SPLIT_NAMES.get(fold(str(post.extra.get(SPLIT, ""))))
        if name is None:
            strange.append(post)
        else:
            parts[name].append(place)
    if strange:
        raise SplitError(
            f"{len(strange)} of {len(posts)} posts have no known {SPLIT!r}, {strange[0].id!r} with "
            f"{strange[0].extra.get(SPLIT)!r} first; expected one of {list(SPLIT_NAMES)}: correct the column"
        )
    return {name: Chosen(posts, places) for name, places in parts.items()}


def _check_shares(shares: Mapping[str, float]) -> None:
    strange = "train" not in shares or shares.keys() - {"train", "validation", "test"}
    if strange or min(shares.values()) <= 0:
        raise SplitError(
            f'shares {dict(shares)}; expected "train" and perhaps "validation" and "test", each above 0'
        )
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise SplitError(
            f"shares {dict(shares)} add up to {sum(shares.values()):g}; expected 1: correct them"
        )


def _parts(
    posts: Sequence[Post],
    classes: Mapping[str, list[int]],
    shares: Mapping[str, float],
    random: np.random.RandomState,
) -> tuple[Sequence[Post], Sequence[Post], Sequence[Post]]:
    """Draw train, validation and test, each in the posts' order, stratified."""
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for members in classes.values():
        order = [members[one] for one in random.permutation(len(members))]
        tests = round(shares.get("test", 0.0) * len(order))
        validations = tests + round(shares.get("validation", 0.0) * len(order))
        test += order[:tests]
        validation += order[tests:validations]
        train += order[validations:]
    first, second, third = (Chosen(posts, sorted(part)) for part in (train, validation, test))
    return first, second, third


def _by_label(posts: Sequence[Post]) -> tuple[Sequence[Post], Sequence[Post]]:
    """Return the posts that have a label, and those that have none."""
    known = have_labels(posts)
    return Chosen(posts, np.flatnonzero(known)), Chosen(posts, np.flatnonzero(~known))


LEAST_PER_CLASS = 2


def draw_labelled(
    train: Sequence[Post],
    names: tuple[str, ...],
    count: int | None,
    balanced: bool,
    random: np.random.RandomState,
) -> tuple[Sequence[Post], Sequence[Post]]:
    """Draw the posts that keep their label and the rest, each in the order of `train`."""
    if count is None:
        return train, ()
    require(train, names, LEAST_PER_CLASS, "train")
    if not 0 < count <= len(train):
        raise SplitError(f"{count:,} labelled posts asked for; expected 1 to {len(train):,}, all of train")
    classes = by_class(train, names)
    sizes = {name: len(members) for name, members in classes.items()}
    quotas = _even(count, sizes) if balanced else _proportional(count, sizes)
    kept: set[int] = set()
    for name, members in classes.items():
        kept.update(int(one) for one in random.choice(members, quotas[name], replace=False))
    others = [position for position in range(len(train)) if position not in kept]
    return Chosen(train, sorted(kept)), Chosen(train, others)


def _even(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    if count % len(sizes):
        raise SplitError(
            f"{count} labelled posts cannot be shared evenly by {len(sizes)} classes: ask for a multiple,"
            " or set data.balanced_labels = false"
        )
    each = count // len(sizes)
    small = {name: size for name, size in sizes.items() if size < each}
    if small:
        raise SplitError(
            f"{each:,} labelled posts of each class asked for, train has only {small}: ask for fewer"
        )
    return dict.fromkeys(sizes, each)


def _proportional(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Share out quotas by largest remainder: the rest goes to those that lost most by rounding down."""
    exact = {name: count * size / sum(sizes.values()) for name, size in sizes.items()}
    quotas = {name: int(share) for name, share in exact.items()}
    losers = sorted(sizes, key=lambda name: quotas[name] - exact[name])
    for name in losers[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def by_class(posts: Sequence[Post], names: tuple[str, ...]) -> dict[str, list[int]]:
    """Map class -> positions of its posts. Raises SplitError on a label of no class."""
    classes: dict[str, list[int]] = {name: [] for name in names}
    for position in np.flatnonzero(have_labels(posts)).tolist():
        label = posts[position].label
        if label not in classes:
            post_id = posts[position].id
            raise SplitError(f"post {post_id!r} has the label {label!r}; expected one of {list(names)}")
        classes[label].append(position)
    return classes


def cut(classes: Mapping[str, list[int]], random: np.random.RandomState) -> dict[str, list[int]]:
    """Draw every class down to the smallest; positions in ascending order."""
    sizes = {name: len(members) for name, members in classes.items()}
    least = min(sizes.values())
    if not least:
        raise SplitError(f"classes cannot be cut down to the smallest, there are {sizes}: label more")
    return {
        name: members
        if len(members) == least
        else sorted(random.choice(members, least, replace=False).tolist())
        for name, members in classes.items()
    }


def require(posts: Sequence[Post], names: tuple[str, ...], least: int, where: str) -> None:
    """Raise SplitError when a class has fewer than `least` of the posts."""
    counts = Counter(post.label for post in posts)
    found = {name: counts[name] for name in names}
    if min(found.values()) < least:
        raise SplitError(
            f"{where} has {found}; expected at least {least} of each class: label more or change the shares"
        )
