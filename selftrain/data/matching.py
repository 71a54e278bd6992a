"""What posts are compared by, and whether two are copies of each other, without comparing every pair.

Texts are folded first, so that a copy is recognised in spite of case, punctuation, links and mentions; images
are compared by their bytes and by a perceptual hash.
"""

from __future__ import annotations

import hashlib
import html
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from backbones.errors import ImageError
from backbones.images import open_image, prefetch_images
from backbones.progress import ProgressBar
from selftrain._util.types import Float32Array
from selftrain.data.posts import Post

_NOISE = re.compile(r"(?:https?://|www\.)\S+|(?<!\w)@\w+|(?<!\w)rt(?=\s*@)", re.IGNORECASE)


class _Fold(dict[int, str | None]):
    """Code point -> what stands for it; filled as characters are met, so that `str.translate` stays fast."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        folded: str | None
        if category == "Cf":
            folded = None  # invisible: joiners, direction marks, a stray BOM
        elif category[0] in "LMN":
            folded = character  # marks too: without them words of Indic scripts would run together
        else:
            folded = " "
        self[code] = folded
        return folded


_FOLD = _Fold()


def normalise_text(text: str) -> str:
    """Reduce `text` to letters, marks and digits, NFKC and case-folded, words parted by single spaces.

    HTML entities are resolved; links, mentions and the RT of a retweet are left out. May be empty.
    """
    plain = _NOISE.sub(" ", unicodedata.normalize("NFKC", html.unescape(text)))
    return " ".join(unicodedata.normalize("NFKC", plain.casefold()).translate(_FOLD).split())


HASH_BITS = 64
HASH_DISTANCE = 4
# grey levels, of 255, between the darkest and the lightest spot, below which a hash would be noise
_FLAT = 8
_LOG = logging.getLogger(__name__)


class ImageHash(NamedTuple):
    """What a picture is compared by."""

    digest: bytes  # SHA-256 of the file
    perceptual: int | None  # 64-bit hash by discrete cosine transform; None: the image is of one flat colour


class HashedImages(NamedTuple):
    """What became of pictures: each is in exactly one of the two."""

    hashes: dict[Path, ImageHash]
    unread: dict[Path, str]  # why it cannot be decoded, in the words that an encoding has for it


def hash_images(paths: Iterable[Path], *, workers: int = 0, progress: bool = False) -> dict[Path, ImageHash]:
    """Hash every readable image; those of unreadable ones are missing, and a warning counts them."""
    hashes, unread = decode_and_hash(paths, workers=workers, progress=progress)
    if unread:
        _LOG.warning(
            "%d of %d images cannot be read and match nothing, %s first",
            len(unread),
            len(hashes) + len(unread),
            next(iter(unread)),
        )
    return hashes


def decode_and_hash(paths: Iterable[Path], *, workers: int = 0, progress: bool = False) -> HashedImages:
    """Decode every image once: hash it, or say why it cannot be decoded."""
    ordered = sorted(set(paths))
    found = HashedImages({}, {})
    bar = ProgressBar(
        desc="hashing images", total=len(ordered), unit="image", disable=not (progress and ordered)
    )
    for path, one in zip(ordered, bar.over(prefetch_images(ordered, _hash, workers)), strict=True):
        if isinstance(one, ImageError):
            found.unread[path] = str(one)
        else:
            found.hashes[path] = one
    return found


def _hash(path: Path) -> ImageHash:
    import imagehash

    # a JPEG is decoded at a fraction of its size, which is more than the hash looks at
    grey = open_image(path, target_size=128).convert("L")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; check that the file can be read") from error
    levels = [level for level, count in enumerate(grey.histogram()) if count]
    flat = levels[-1] - levels[0] < _FLAT
    perceptual = None if flat else int(str(imagehash.phash(grey)), 16)
    return ImageHash(hashlib.sha256(content).digest(), perceptual)


# Two hashes that differ in at most d bits agree in at least one of d + 1 bands: only those that share a band
# are compared (the pigeonhole principle). The lowest bit of each band, and a mask as wide as it is.
_EDGES = [HASH_BITS * band // (HASH_DISTANCE + 1) for band in range(HASH_DISTANCE + 2)]
_BANDS = [(low, (1 << (high - low)) - 1) for low, high in pairwise(_EDGES)]


def hash_bands(one: int) -> list[tuple[int, int]]:
    """Return the number of each band of a hash, and the bits in it."""
    return [(band, (one >> low) & mask) for band, (low, mask) in enumerate(_BANDS)]


class HashIndex:
    """Finds the 64-bit hashes within `HASH_DISTANCE` bits of another."""

    def __init__(self, hashes: Iterable[int]) -> None:
        self._buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for one in set(hashes):
            for key in hash_bands(one):
                self._buckets[key].append(one)

    def near(self, one: int) -> set[int]:
        """Return the hashes indexed that are near `one`, itself included."""
        near = {other for key in hash_bands(one) for other in self._buckets.get(key, ())}
        return {other for other in near if (one ^ other).bit_count() <= HASH_DISTANCE}


Match = Literal["any", "all"]
COSINE = 0.97
_CHUNK = 4096


class Embeddings(NamedTuple):
    """Where the feature rows of the posts are found."""

    # Positions -> float32 [n, D]. Positions are relative to test, validation, labelled and pool laid end to
    # end (`duplicates.in_order`).
    rows: Callable[[Sequence[int]], Float32Array]
    text: slice  # The text block's slice of a row. A block of zeros or NaN stands for no text.
    threshold: float = COSINE  # the least cosine of two close texts, in (0, 1]


@dataclass(frozen=True, slots=True)
class Traits:
    """What a post is compared by: its normalised text, empty for none, and the hashes of its images."""

    text: str
    images: tuple[ImageHash, ...]


class Copy(NamedTuple):
    """The position of a post that is copied, and by which match (the kinds of `duplicates.Dropped`)."""

    position: int
    kind: str


def traits_of(posts: Sequence[Post], hashes: Mapping[Path, ImageHash] | None = None) -> list[Traits]:
    """Compute the traits of each post; an image that several posts use is hashed once, or is in `hashes`."""
    if hashes is None:
        hashes = hash_images({path for post in posts for path in post.images})
    return [
        Traits(normalise_text(post.text), tuple(hashes[path] for path in post.images if path in hashes))
        for post in posts
    ]


def close_pairs(
    embeddings: Embeddings, left: Sequence[int], right: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield positions (l, r), l of `left` and r of `right`, whose texts' cosine reaches the threshold.

    Never holds more than two chunks of unit rows and their products.
    """
    for first in range(0, len(left), _CHUNK):
        ours = left[first : first + _CHUNK]
        rows = _unit(embeddings, ours)
        for second in range(0, len(right), _CHUNK):
            theirs = right[second : second + _CHUNK]
            # a cosine that is 1 in exact arithmetic may come out a little below
            near = rows @ _unit(embeddings, theirs).T >= embeddings.threshold - 1e-6
            for a, b in np.argwhere(near).tolist():
                yield ours[a], theirs[b]


def _unit(embeddings: Embeddings, positions: Sequence[int]) -> Float32Array:
    block = np.nan_to_num(np.asarray(embeddings.rows(positions), dtype=np.float32)[:, embeddings.text])
    norms = np.linalg.norm(block, axis=1, keepdims=True)
    unit: Float32Array = np.divide(block, norms, out=np.zeros_like(block), where=norms > 0)
    return unit


class Reference:
    """Posts that stay, indexed by text and by image.

    Positions are those of the dictionary, which is in order of priority: of several posts that match the
    first is named.
    """

    def __init__(self, members: Mapping[int, Traits]) -> None:
        self._traits = members
        self._rank = {one: rank for rank, one in enumerate(members)}
        self._texts: dict[str, list[int]] = defaultdict(list)
        self._digests: dict[bytes, list[int]] = defaultdict(list)
        self._hashes: dict[int, list[int]] = defaultdict(list)
        for one, traits in members.items():
            if traits.text:
                self._texts[traits.text].append(one)
            for image in traits.images:
                self._digests[image.digest].append(one)
                if image.perceptual is not None:
                    self._hashes[image.perceptual].append(one)
        self._index = HashIndex(self._hashes)

    def copies(
        self, posts: Mapping[int, Traits], match: Match, close: Mapping[int, list[int]]
    ) -> dict[int, Copy]:
        """Return those of `posts` that copy a member, with the member; `close` names those of close texts."""
        found = {}
        for one, trait in posts.items():
            near = close.get(one, [])
            copy = self._any(trait, near) if match == "any" else self._all(trait, near)
            if copy is not None:
                found[one] = copy
        return found

    def _any(self, trait: Traits, close: list[int]) -> Copy | None:
        ways = [
            (self._texts.get(trait.text, []), "text"),
            (
                [other for image in trait.images for other in self._digests.get(image.digest, [])],
                "image bytes",
            ),
            (self._near(trait), "image"),
            (close, "embedding"),
        ]
        return next(
            (Copy(min(others, key=self._rank.__getitem__), kind) for others, kind in ways if others), None
        )

    def _all(self, trait: Traits, close: list[int]) -> Copy | None:
        same = {*self._texts.get(trait.text, []), *close}
        looking = {other for image in trait.images for other in self._digests.get(image.digest, [])}
        looking.update(self._near(trait))
        agreeing = [other for other in same | looking if self._agree(trait, other, other in same)]
        return Copy(min(agreeing, key=self._rank.__getitem__), "all") if agreeing else None

    def _agree(self, ours: Traits, other: int, same_text: bool) -> bool:
        """Tell whether every modality that both have matches."""
        theirs = self._traits[other]
        if ours.text and theirs.text and not same_text:
            return False
        if ours.images and theirs.images:
            return _same_pictures(ours.images, theirs.images)
        return same_text

    def _near(self, trait: Traits) -> list[int]:
        hashes = {image.perceptual for image in trait.images if image.perceptual is not None}
        return [other for one in hashes for found in self._index.near(one) for other in self._hashes[found]]


def _same_pictures(ours: Sequence[ImageHash], theirs: Sequence[ImageHash]) -> bool:
    """Tell whether each image of the smaller album matches one of the larger."""
    few, many = sorted((ours, theirs), key=len)
    return all(any(same_picture(one, other) for other in many) for one in few)


def same_picture(one: ImageHash, other: ImageHash) -> bool:
    """Tell whether two files have the same bytes, or hashes within `HASH_DISTANCE` bits."""
    if one.digest == other.digest:
        return True
    if one.perceptual is None or other.perceptual is None:
        return False
    return (one.perceptual ^ other.perceptual).bit_count() <= HASH_DISTANCE
