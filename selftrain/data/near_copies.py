"""Posts of a large pool that nearly are one before them, without comparing every pair or holding the posts.

A text is its pieces of five characters, after normalising, and its symbols; two are compared by the share of
them that they have in common (Jaccard), pictures by the perceptual hashes of `matching`. MinHash (Broder,
1997) finds whom to compare: a signature is cut into bands, and only posts with an equal band are looked at.

Shape legend: ``N`` posts given.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from selftrain._util.types import IntArray
from selftrain.data.matching import (
    ImageHash,
    hash_bands,
    hash_images,
    normalise_text,
    same_picture,
    traits_of,
)
from selftrain.data.posts import Post

NEAR = 0.8
"""The least Jaccard similarity of two texts that are near copies."""
_PIECE = 5  # characters
_LONG = 5000  # characters; two texts of which one has more are near copies only if they are the same
# of pairs of texts at .8 one in a hundred has no band in common; of pairs at .4, which are compared for
# nothing, one in nine has
_BANDS, _ROWS = 12, 5
# odd factors; a band's values become one number
_MIX = np.random.default_rng(0).integers(0, 2**63, _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_AT_ONCE = 4096  # posts
_REMEMBERED = 256  # posts that others are compared with

Bands = npt.NDArray[np.uint64]


class _Content(NamedTuple):
    """What a post is compared by."""

    digest: bytes  # of its normalised text and its symbols
    pieces: frozenset[str]  # of them; none of a long text
    images: tuple[ImageHash, ...]


def near_copies(
    posts: Sequence[Post], stay: int = 0, *, workers: int = 0, progress: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield the position of each post that nearly is one before it which stays, and that one's.

    Two posts are near copies when their texts are (`NEAR`), or neither has words, and they have as many
    pictures, each near to its counterpart. Of the posts that share a band the first that stays is compared
    with: twelve comparisons a post at most, so that in a crowd of posts that are half alike a copy may be
    missed. Memory grows by some 300 bytes a post.

    Args:
        posts: N posts, read in order, and again where two are compared.
        stay: The first so many stay whatever they are near to.
        workers: Threads that hash pictures; 0 for none.
        progress: Shows a bar while pictures are hashed.
    """
    groups = _groups(_bands_of(posts, workers, progress=progress))
    content = lru_cache(_REMEMBERED)(lambda place: _content(posts[place]))
    heads: dict[int, int] = {}  # group -> the first of its posts that stays
    for place in np.flatnonzero((groups >= 0).any(axis=1)).tolist():
        mine = groups[place][groups[place] >= 0].tolist()
        if place >= stay:
            before = sorted({heads[group] for group in mine if group in heads})
            first = next((one for one in before if _alike(content(place), content(one))), None)
            if first is not None:
                yield place, first
                continue
        for group in mine:
            heads.setdefault(group, place)


def _bands_of(posts: Sequence[Post], workers: int, *, progress: bool) -> Bands:
    """Return the bands [N, 12] of posts, zeros for those without any.

    Where a post has words and pictures a band is of both: one caption is on many pictures, and one picture
    under many captions.
    """
    bands = np.zeros((len(posts), _BANDS), np.uint64)
    for start in range(0, len(posts), _AT_ONCE):
        part = posts[start : start + _AT_ONCE]
        shown = {place: post.images[0] for place, post in enumerate(part, start) if post.images}
        hashes = hash_images(shown.values(), workers=workers, progress=progress)
        for place, post in enumerate(part, start):
            if pieces := _pieces(post.text):
                bands[place] += _text_bands(pieces)
            if (path := shown.get(place)) in hashes:
                bands[place] += _picture_bands(hashes[path]) + np.uint64(len(post.images))
    return bands


def _text_bands(pieces: frozenset[str]) -> Bands:
    """Return the bands [12] of a text's signature."""
    from datasketch import MinHash  # imports a good part of scipy

    signature = MinHash(num_perm=_BANDS * _ROWS)
    signature.update_batch([piece.encode("utf-8", "surrogatepass") for piece in pieces])
    values = signature.hashvalues.astype(np.uint64).reshape(_BANDS, _ROWS)
    bands: Bands = (values * _MIX).sum(axis=1, dtype=np.uint64)
    return bands


def _picture_bands(picture: ImageHash) -> Bands:
    """Return the bands [12] of a picture: those by which hashes within the distance are found, over again."""
    if picture.perceptual is None:
        found = [int.from_bytes(picture.digest[:8])]
    else:
        found = [bits for _, bits in hash_bands(picture.perceptual)]
    bands: Bands = (np.resize(np.array(found, np.uint64), _BANDS) + np.uint64(1)) * _MIX[0]
    return bands


def _pieces(text: str) -> frozenset[str]:
    """Return the pieces of a text, of a long one those of its beginning; none where there are no words."""
    words = normalise_text(text)[:_LONG]
    pieces = {words[start : start + _PIECE] for start in range(max(1, len(words) - _PIECE + 1))}
    return frozenset(pieces | _symbols(text[:_LONG])) if words else frozenset()


def _symbols(text: str) -> set[str]:
    """Return the emoji, currencies and the like of a text: without them it may say something else."""
    return {character for character in text if unicodedata.category(character).startswith("S")}


def _groups(bands: Bands) -> IntArray:
    """Return the number of the group [N, 12] of posts that have the same band, -1 for a band of one post."""
    groups, met = np.full(bands.shape, -1), 0
    for band, column in enumerate(bands.T):
        _, group, counts = np.unique(column, return_inverse=True, return_counts=True)
        shared = (counts[group] > 1) & (column > 0)
        groups[shared, band] = group[shared] + met
        met += len(counts)
    return groups


def _content(post: Post) -> _Content:
    (trait,) = traits_of([post])
    whole = "".join([trait.text, "\n", *sorted(_symbols(post.text))]).encode("utf-8", "surrogatepass")
    pieces = frozenset[str]() if len(trait.text) > _LONG else _pieces(post.text)
    return _Content(hashlib.sha256(whole).digest(), pieces, trait.images)


def _alike(one: _Content, other: _Content) -> bool:
    if len(one.images) != len(other.images):
        return False
    shared, both = len(one.pieces & other.pieces), len(one.pieces | other.pieces)
    near = one.digest == other.digest or (shared > 0 and shared >= NEAR * both)
    return near and all(map(same_picture, one.images, other.images))
