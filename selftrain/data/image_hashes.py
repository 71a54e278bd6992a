"""Image files to hashes, and a look-up of near hashes that does not compare every pair."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HASH_BITS = 64
HASH_DISTANCE = 4
# grey levels, of 255, between the darkest and the lightest spot, below which a hash would be noise
_FLAT = 8
_LOG = logging.getLogger(__name__)


class ImageHash(NamedTuple):
    """Attributes:
    digest: SHA-256 of the file.
    perceptual: 64-bit hash by discrete cosine transform, or None for an image of one flat colour.
    """

    digest: bytes
    perceptual: int | None


def hash_images(paths: Iterable[Path], *, workers: int = 0, progress: bool = False) -> dict[Path, ImageHash]:
    """The hashes of every readable image; those of unreadable ones are missing, and a warning counts them."""
    from tqdm import tqdm

    ordered = sorted(set(paths))
    shown = {"total": len(ordered), "desc": "hashing images", "unit": "image", "disable": not progress}
    if workers > 0:
        with ThreadPoolExecutor(workers) as pool:
            hashes = list(tqdm(pool.map(_hash, ordered), **shown))
    else:
        hashes = list(tqdm(map(_hash, ordered), **shown))
    found = {path: one for path, one in zip(ordered, hashes, strict=True) if one is not None}
    if len(found) < len(ordered):
        first = next(path for path in ordered if path not in found)
        _LOG.warning(
            "%d of %d images cannot be read and match nothing, %s first",
            len(ordered) - len(found),
            len(ordered),
            first,
        )
    return found


def _hash(path: Path) -> ImageHash | None:
    import imagehash

    from backbones.errors import ImageError
    from backbones.images import open_image

    try:
        # a JPEG is decoded at a fraction of its size, which is more than the hash looks at
        grey = open_image(path, target_size=128).convert("L")
        content = path.read_bytes()
    except (ImageError, OSError):
        return None
    levels = [level for level, count in enumerate(grey.histogram()) if count]
    flat = levels[-1] - levels[0] < _FLAT
    perceptual = None if flat else int(str(imagehash.phash(grey)), 16)
    return ImageHash(hashlib.sha256(content).digest(), perceptual)


class HashIndex:
    """Finds the 64-bit hashes within a Hamming distance of another.

    Two hashes that differ in at most d bits agree in at least one of d + 1 bands: only those that share a
    band with the hash looked up are compared (the pigeonhole principle).
    """

    def __init__(self, hashes: Iterable[int], distance: int) -> None:
        if not 0 <= distance <= 16:
            raise ValueError(f"distance {distance}: expected 0 to 16 of {HASH_BITS} bits")
        self._distance = distance
        edges = [HASH_BITS * band // (distance + 1) for band in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for one in set(hashes):
            for key in self._keys(one):
                self._buckets[key].append(one)

    def near(self, one: int) -> set[int]:
        """The hashes indexed that differ from `one` in at most `distance` bits, itself included."""
        return {
            other
            for key in self._keys(one)
            for other in self._buckets.get(key, ())
            if (one ^ other).bit_count() <= self._distance
        }

    def _keys(self, one: int) -> Iterator[tuple[int, int]]:
        for band, (low, mask) in enumerate(self._bands):
            yield band, (one >> low) & mask
