"""Posts that are the same, or nearly: within one list, and across splits.

Two posts are compared by modality. Texts match when they are equal after normalising, or when their
embeddings are close. Images match when their bytes are equal or their perceptual hashes are near. A text
of which normalising leaves nothing and an image that cannot be read count as absent; an image of one flat
colour matches only byte for byte.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from selftrain.data.matching import (
    HASH_DISTANCE,
    Embeddings,
    HashIndex,
    ImageHash,
    Match,
    Reference,
    Traits,
    close_pairs,
    normalise_text,
    traits_of,
)
from selftrain.data.post_store import Joined
from selftrain.data.posts import Post
from selftrain.data.splits import PRIORITY, Splits
from selftrain.errors import SplitError
from selftrain.store.checksums import digest_of

_AT_ONCE = 16_384  # posts whose pictures and texts are compared in one go
_Node = TypeVar("_Node", bound=Hashable)


class DuplicateGroup(NamedTuple):
    """Posts that are copies of one another."""

    ids: tuple[str, ...]  # two or more, in the order of the posts
    kind: str  # "text", "image bytes" or "image" (near hashes)
    detail: str  # what they share


class Dropped(NamedTuple):
    """A copy that was taken out because another stands in a split of higher priority, or before it."""

    post_id: str
    split: str
    kept_id: str
    kept_split: str
    # "text", "image bytes", "image" or "embedding"; "all" where every modality had to match; in a pool whose
    # copies are dropped "content", all bytes of text and pictures, or "near content"
    kind: str


def find_duplicates(
    posts: Sequence[Post], hashes: Mapping[Path, ImageHash] | None = None
) -> list[DuplicateGroup]:
    """Find all groups of copies, one list entry for each kind of sameness.

    Nearness is chained: a group holds posts each of which is near at least one other. Memory grows with the
    posts and the pairs that match.

    Args:
        posts: Any posts; ids unique.
        hashes: Those of the images, where they are known; one that is missing counts as absent.
    """
    traits = traits_of(posts, hashes)
    return _text_groups(posts, traits) + _image_groups(posts, traits)


def in_order(splits: Splits) -> Sequence[Post]:
    """Return the posts to which the positions of `separate`'s embeddings are relative."""
    return Joined(*(splits[name] for name in PRIORITY))


def separate(
    splits: Splits,
    *,
    match: Match = "any",
    embeddings: Embeddings | None = None,
) -> tuple[Splits, list[Dropped]]:
    """Drop copies until no two posts that match stand in different splits.

    The copy in the split of higher priority (test, validation, labelled, pool) stays. Copies within one split
    are left alone. A post is dropped only for a match that stays, so nothing is dropped along a chain.

    Args:
        splits: The splits as drawn.
        match: "any": one modality that matches is enough, one image of an album too. "all": every modality
            that both posts have must match, each image of the smaller album with one of the larger; memes
            that share a template or a caption only are then different posts.
        embeddings: Compares texts by meaning too, when given, in a time quadratic in the posts.

    Raises:
        SplitError: Too few labelled posts or an empty pool are left.
        ValueError: `match` is neither.
    """
    if match not in ("any", "all"):
        raise ValueError(f'match {match!r}: expected "any" or "all"')
    posts, start = in_order(splits), 0
    stays, homes = dict[int, Traits](), dict[int, str]()
    dropped: list[Dropped] = []
    for name in PRIORITY:
        reference, kept = Reference(stays), dict[int, Traits]()
        end = start + len(splits[name])
        for place in range(start, end, _AT_ONCE):
            part = range(place, min(place + _AT_ONCE, end))
            found = traits_of(posts[part.start : part.stop])
            traits = dict(zip(part, found, strict=True))
            copies = reference.copies(traits, match, _close(embeddings, part, list(stays)))
            dropped += [
                Dropped(posts[one].id, name, posts[copy.position].id, homes[copy.position], copy.kind)
                for one, copy in copies.items()
            ]
            if name != PRIORITY[-1]:  # the largest: nothing is held against it
                kept |= {one: trait for one, trait in traits.items() if one not in copies}
        start = end
        stays |= kept
        homes |= dict.fromkeys(kept, name)
    try:
        return splits.without({drop.post_id for drop in dropped}), dropped
    except SplitError as error:
        raise SplitError(f"{error}\n{describe_copies(dropped)}") from error


def once_in_pool(
    splits: Splits, copies: Callable[[Sequence[Post], int], Iterable[tuple[int, int]]], kind: str
) -> tuple[Splits, list[Dropped]]:
    """Drop pool posts that copy a post before them, in the pool or in another split.

    `copies` gets posts of which the first so many stay, and returns positions, of each copy and of what it
    copies; `kind` names such copies.
    """
    posts, start = in_order(splits), sum(len(splits[name]) for name in PRIORITY[:-1])
    homes = [name for name in PRIORITY[:-1] for _ in splits[name]]
    dropped = [
        Dropped(
            posts[one].id,
            PRIORITY[-1],
            posts[first].id,
            homes[first] if first < start else PRIORITY[-1],
            kind,
        )
        for one, first in copies(posts, start)
        if one >= start
    ]
    return splits.without({one.post_id for one in dropped}), dropped


def describe_copies(dropped: Sequence[Dropped]) -> str:
    """Say in one line what `separate` has dropped."""
    counts = Counter(one.split for one in dropped)
    told = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    first = dropped[0]
    return (
        f"  copies of other posts were taken out: {told}; the first is {first.post_id!r}, whose"
        f" {first.kind} matches {first.kept_id!r} in {first.kept_split}. `selftrain data check` lists copies:"
        " keep one of each, or set data.duplicates and data.pool_copies"
    )


def conflicting_labels(posts: Sequence[Post]) -> list[tuple[Post, ...]]:
    """Find copies that people have labelled differently: same normalised text, same pictures byte for byte.

    Only posts with a label count; one that cannot be read is nobody's copy.
    """
    alike: dict[str, list[Post]] = defaultdict(list)
    for post in posts:
        if post.label is not None:
            alike[normalise_text(post.text)].append(post)
    groups: dict[tuple[str, ...], list[Post]] = defaultdict(list)
    for text, members in alike.items():
        if len({post.label for post in members}) > 1:
            for post in members:
                pictures = _digests(post) if post.images else ()
                if pictures is not None and (text or pictures):
                    groups[text, *pictures].append(post)
    return [tuple(group) for group in groups.values() if len({post.label for post in group}) > 1]


def _digests(post: Post) -> tuple[str, ...] | None:
    try:
        return tuple(map(digest_of, post.images))
    except OSError:
        return None


def _close(embeddings: Embeddings | None, here: Sequence[int], kept: Sequence[int]) -> dict[int, list[int]]:
    """Map position of `here` -> the positions of `kept` whose embeddings are close."""
    close: dict[int, list[int]] = defaultdict(list)
    if embeddings is not None:
        for one, other in close_pairs(embeddings, here, kept):
            close[one].append(other)
    return close


def _text_groups(posts: Sequence[Post], traits: Sequence[Traits]) -> list[DuplicateGroup]:
    texts: dict[str, list[int]] = defaultdict(list)
    for position, trait in enumerate(traits):
        if trait.text:
            texts[trait.text].append(position)
    return [_group(posts, members, "text", text[:80]) for text, members in texts.items() if len(members) > 1]


def _image_groups(posts: Sequence[Post], traits: Sequence[Traits]) -> list[DuplicateGroup]:
    """Build groups over the files' digests, tied together where their hashes are near."""
    holders: dict[bytes, set[int]] = defaultdict(set)
    digests: dict[int, list[bytes]] = defaultdict(list)
    for position, trait in enumerate(traits):
        for image in trait.images:
            if image.digest not in holders and image.perceptual is not None:
                digests[image.perceptual].append(image.digest)
            holders[image.digest].add(position)
    index = HashIndex(digests)
    pairs = [(digest, digest) for digest in holders]
    for one, alike in digests.items():
        pairs += [(alike[0], other) for other in alike]
        pairs += [(alike[0], digests[other][0]) for other in index.near(one) if other > one]
    groups = []
    for family in _components(pairs):
        members = set[int]().union(*(holders[digest] for digest in family))
        if len(members) < 2:
            continue
        if len(family) == 1:
            groups.append(_group(posts, members, "image bytes", f"SHA-256 {family[0].hex()[:12]}"))
        else:
            groups.append(
                _group(posts, members, "image", f"perceptual hashes within {HASH_DISTANCE} of 64 bits")
            )
    return groups


def _group(posts: Sequence[Post], members: Iterable[int], kind: str, detail: str) -> DuplicateGroup:
    return DuplicateGroup(tuple(posts[one].id for one in sorted(members)), kind, detail)


def _components(pairs: Iterable[tuple[_Node, _Node]]) -> list[list[_Node]]:
    """Find connected components of the pairs, in the order in which their first members are met."""
    parent: dict[_Node, _Node] = {}

    def root(one: _Node) -> _Node:
        parent.setdefault(one, one)
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        return one

    for a, b in pairs:
        parent[root(b)] = root(a)
    components: dict[_Node, list[_Node]] = defaultdict(list)
    for one in list(parent):
        components[root(one)].append(one)
    return list(components.values())
