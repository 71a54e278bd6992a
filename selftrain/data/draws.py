"""Stratified draws of positions, and the counts they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from selftrain.data.posts import Post
from selftrain.errors import SplitError

LEAST_PER_CLASS = 2


def draw_labelled(
    train: Sequence[Post],
    names: tuple[str, ...],
    count: int | None,
    balanced: bool,
    random: np.random.RandomState,
) -> tuple[list[Post], list[Post]]:
    """The posts that keep their label and the rest, each in the order of `train`."""
    if count is None:
        return list(train), []
    require(train, names, LEAST_PER_CLASS, "train")
    if not 0 < count <= len(train):
        raise SplitError(f"{count:,} labelled posts asked for; expected 1 to {len(train):,}, all of train")
    classes = by_class(train, names)
    sizes = {name: len(members) for name, members in classes.items()}
    quotas = _even(count, sizes) if balanced else _proportional(count, sizes)
    kept: set[int] = set()
    for name, members in classes.items():
        kept.update(int(one) for one in random.choice(members, quotas[name], replace=False))
    chosen = [post for position, post in enumerate(train) if position in kept]
    return chosen, [post for position, post in enumerate(train) if position not in kept]


def _even(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    if count % len(sizes):
        raise SplitError(
            f"{count} labelled posts cannot be shared evenly by {len(sizes)} classes: ask for a multiple"
        )
    each = count // len(sizes)
    small = {name: size for name, size in sizes.items() if size < each}
    if small:
        raise SplitError(
            f"{each:,} labelled posts of each class asked for, train has only {small}: ask for fewer"
        )
    return dict.fromkeys(sizes, each)


def _proportional(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Quotas by largest remainder; those left over go to the classes that lost most by rounding down."""
    exact = {name: count * size / sum(sizes.values()) for name, size in sizes.items()}
    quotas = {name: int(share) for name, share in exact.items()}
    losers = sorted(sizes, key=lambda name: quotas[name] - exact[name])
    for name in losers[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def by_class(posts: Sequence[Post], names: tuple[str, ...]) -> dict[str, list[int]]:
    """Class -> positions of its posts. Raises SplitError on a label of no class."""
    classes: dict[str, list[int]] = {name: [] for name in names}
    for position, post in enumerate(posts):
        if post.label is None:
            continue
        if post.label not in classes:
            raise SplitError(f"post {post.id!r} has the label {post.label!r}; expected one of {list(names)}")
        classes[post.label].append(position)
    return classes


def cut(
    classes: Mapping[str, list[int]], random: np.random.RandomState, each: int | None = None
) -> dict[str, list[int]]:
    """Every class drawn down to `each` posts, or to the smallest class; positions in ascending order."""
    sizes = {name: len(members) for name, members in classes.items()}
    least = min(sizes.values()) if each is None else each
    if not 0 < least <= min(sizes.values()):
        raise SplitError(
            f"{least:,} posts of each class asked for, there are {sizes}: ask for fewer, or label more"
        )
    return {
        name: members
        if len(members) == least
        else sorted(random.choice(members, least, replace=False).tolist())
        for name, members in classes.items()
    }


def require(posts: Sequence[Post], names: tuple[str, ...], least: int, where: str) -> None:
    """Raises SplitError when a class has fewer than `least` of the posts."""
    counts = Counter(post.label for post in posts)
    found = {name: counts[name] for name in names}
    if min(found.values()) < least:
        raise SplitError(
            f"{where} has {found}; expected at least {least} of each class: label more or change the shares"
        )
