"""The feature cache: each post's row is computed once per backbone, and shared by all runs.

A row is cache_keys by what was encoded, not by what it was called: the backbone's fingerprint, the text, and
the bytes of the images. Renaming a file or an id is a hit; changing one pixel is a miss.

Shape legend: ``N`` posts given, ``n`` positions asked for, ``D`` width of a row.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from backbones.base import Backbone, Encodable, Encoded, EncodeFailure, FeatureLayout
from backbones.errors import ImageError
from backbones.images import check_image
from backbones.progress import ProgressBar
from selftrain._util.plugins import name_of
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.feature_store import FORMAT, KEY_BYTES, FeatureStore, Keys
from selftrain.engine.mapping import Engine, InProcess, Place, Rescue, StageRun
from selftrain.errors import EngineError, RecipeError, TrainingError

# In batches. A kill loses at most one write's work; texts are sorted by length within one.
_IMAGES_PER_WRITE = 4
_POSTS_PER_WRITE = 32
_HASHED_AT_ONCE = 16_384  # posts

_Placed = tuple[Encoded, Place]
"""Rows, and where they were computed."""


class FeatureTable:
    """Rows of the posts given to `extract_features`, read from disk at each call.

    Positions are relative to the posts given. Memory does not grow with the table: only an index is held.
    """

    def __init__(
        self,
        store: FeatureStore,
        numbers: IntArray,
        failed: Mapping[str, str],
        computed: StageRun | None = None,
    ) -> None:
        self.layout: FeatureLayout = store.layout  # where the blocks of a row lie
        self.failed: dict[str, str] = dict(failed)  # post id -> why it has no row; theirs read as NaN
        self.computed = computed  # how the rows were that the cache lacked; None: it lacked none
        self._store = store
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def copies(self) -> Iterator[tuple[int, int]]:
        """Yield positions of posts with the same content as one before, and the first such one's."""
        found, first, places = np.unique(self._numbers, return_index=True, return_inverse=True)
        for position in np.flatnonzero(
            (first[places] != np.arange(len(self))) & (found[places] >= 0)
        ).tolist():
            yield position, int(first[places[position]])

    def keys(self) -> Keys:
        """Return the SHA-256 [N, 32] of every post's text and pictures; all have a row."""
        return self._store.keys(self._numbers)

    def at(self, positions: IntArray) -> FeatureTable:
        """Return the table of the posts at some positions: its position 0 is the first of them here."""
        return FeatureTable(self._store, self._numbers[positions], {}, None)

    def rows(self, positions: npt.ArrayLike) -> Float32Array:
        """Return rows [n, D] at `positions`, in that order; repeats are allowed.

        Raises:
            IndexError: a position outside [0, N).
            CacheError: the cache was removed or damaged meanwhile.
        """
        wanted = np.asarray(positions, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"positions in [{wanted.min()}, {wanted.max()}]; the table holds {len(self)} posts"
            )
        return self._store.read(self._numbers[wanted])

    def chunks(self, size: int) -> Iterator[tuple[IntArray, Float32Array]]:
        """Yield (positions [n], rows [n, D]) of all posts, n <= `size`, in order."""
        for start in range(0, len(self), size):
            part = np.arange(start, min(start + size, len(self)))
            yield part, self.rows(part)


class EncoderPool(NamedTuple):
    """Who computes features where it is not this process alone."""

    engine: Engine  # runs the encoders
    make_backbone: Callable[[], Backbone]  # makes the same backbone once more


def extract_features(
    posts: Sequence[Encodable],
    backbone: Backbone,
    cache_root: Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    pool: EncoderPool | None = None,
) -> FeatureTable:
    """Return rows of `posts`, computed where the cache has none.

    Rows are stored as they are computed, so a killed extraction goes on where it was. Two processes may fill
    one cache: the second waits, then computes only what is still missing. A post with an unreadable image
    is reported in `failed` and tried again next time.

    Args:
        posts: N posts with distinct ids.
        backbone: Computes what is missing.
        cache_root: Folder of all caches; each backbone fingerprint has a folder in it.
        batch_size: Handed to the backbone; also sets how much is stored at once.
        workers: Threads that read and decode images; 0 uses the calling one.
        progress: Draw a bar over the posts computed.
        pool: Who computes them; None: this process. The rows are the same.

    Raises:
        CacheError: the cache is of another backbone, damaged, or the disk is full.
        EngineError: The pool cannot be had; what was computed is stored.
        TrainingError: The backbone's device is out of memory.
    """
    fingerprint = backbone.fingerprint()
    store = FeatureStore(Path(cache_root) / f"{fingerprint[:16]}-{FORMAT}", fingerprint, backbone.layout)
    # --- find the key of every post
    keys, failed = _cache_keys(posts, workers)
    # --- compute what is missing
    numbers, computed = store.find(keys), None
    readable = keys.any(axis=1)
    if (numbers[readable] < 0).any():
        with store.writing():
            refused, computed = _fill(
                store, posts, keys, backbone,
                batch_size=batch_size, workers=workers, progress=progress, pool=pool,
            )  # fmt: skip
        numbers = store.find(keys)
        for place in np.flatnonzero(readable & (numbers < 0)).tolist():
            failed[posts[place].id] = refused[keys[place].tobytes()]
    # --- point at the rows
    return FeatureTable(store, numbers, failed, computed)


def _fill(
    store: FeatureStore,
    posts: Sequence[Encodable],
    keys: Keys,
    backbone: Backbone,
    *,
    batch_size: int,
    workers: int,
    progress: bool,
    pool: EncoderPool | None,
) -> tuple[dict[bytes, str], StageRun]:
    """Compute and store the missing rows; key -> reason of the posts that could not be encoded, and where."""

    began, places = time.monotonic(), set[Place]()
    # again, now that the lock is held: another process may have filled it
    missing = _firsts(keys, np.flatnonzero(keys.any(axis=1) & (store.find(keys) < 0)))
    refused: dict[bytes, str] = {}
    parts = list(_parts(posts, missing, batch_size))
    engine, make = pool or EncoderPool(InProcess(), lambda: backbone)
    stage = partial(_encoding, make, backbone.fingerprint(), batch_size, workers)
    rescue = _rescue(backbone.layout.width)
    with (
        ProgressBar(total=len(missing), disable=not progress, desc=f"{backbone.name} features") as bar,
        engine.map(partial(_blocks, posts, parts), stage, rescue) as found,
    ):
        for part, (encoded, place) in zip(parts, found, strict=True):
            places.add(place)
            reasons = {failure.index: failure.reason for failure in encoded.failures}
            for index in np.flatnonzero(~np.isfinite(encoded.rows).all(axis=1)).tolist():
                reasons.setdefault(index, f"{backbone.name} gave features that are not finite")
            refused |= {keys[part[index]].tobytes(): reason for index, reason in reasons.items()}
            kept = [index for index in range(len(part)) if index not in reasons]
            store.append([keys[part[index]].tobytes() for index in kept], encoded.rows[kept])
            bar.update(len(part))
    seconds = time.monotonic() - began
    return refused, StageRun.at("features", len(missing), seconds, places)


def _firsts(keys: Keys, positions: IntArray) -> IntArray:
    """Return those positions whose key stands at none before, in their order."""
    # sorting whole keys costs next to nothing beside the encoding of these posts, which follows
    whole = np.ascontiguousarray(keys[positions]).view(f"V{KEY_BYTES}").reshape(-1)
    return positions[np.sort(np.unique(whole, return_index=True)[1])]


def _blocks(posts: Sequence[Encodable], parts: Sequence[IntArray]) -> Iterator[list[Encodable]]:
    """Read the posts of each part: what a backbone looks at, and no more, goes to who computes it."""
    for part in parts:
        yield [
            _Content(post.id, post.text, post.images) for post in (posts[place] for place in part.tolist())
        ]


def _rescue(width: int) -> Rescue[Sequence[Encodable], _Placed]:
    """Return what becomes of posts that end whoever encodes them: a failure each, and a row of NaN."""
    return Rescue(lambda posts: [[post] for post in posts], partial(_lost, width), _joined)


def _lost(width: int, posts: Sequence[Encodable], reason: str) -> _Placed:
    rows = np.full((len(posts), width), np.nan, np.float32)
    return Encoded(rows, tuple(EncodeFailure(index, reason) for index in range(len(posts)))), Place.here()


def _joined(found: Sequence[_Placed]) -> _Placed:
    """Return what was found of posts that were encoded one by one."""
    failures = [
        EncodeFailure(index, failure.reason)
        for index, (one, _) in enumerate(found)
        for failure in one.failures
    ]
    return Encoded(np.concatenate([one.rows for one, _ in found]), tuple(failures)), found[0][1]


class _Content(NamedTuple):
    """What is encoded of a post."""

    id: str
    text: str
    images: Sequence[Path]


def _encoding(
    make: Callable[[], Backbone], fingerprint: str, batch_size: int, workers: int
) -> Callable[[Sequence[Encodable]], _Placed]:
    """Make a backbone, and return what encodes posts with it: a `Stage` of the engines."""
    backbone, here = make(), Place.here()
    if backbone.fingerprint() != fingerprint:
        raise EngineError(
            f"a worker has the backbone {backbone.fingerprint()[:12]}, this process {fingerprint[:12]}: its"
            " weights, libraries or kind of device differ. Give every node the same versions and devices"
        )
    return lambda posts: (encode(backbone, posts, batch_size, workers), here)


def encode(backbone: Backbone, posts: Sequence[Encodable], batch_size: int, workers: int) -> Encoded:
    """Compute feature rows [B, D].

    Raises:
        TrainingError: The device is out of memory.
        RecipeError: The backbone, one of somebody's own, gives rows of another shape.
    """
    import torch

    try:
        found = backbone.encode(posts, batch_size=batch_size, workers=workers)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device ran out of memory over {len(posts)} posts: free some of it (a vLLM server beside"
            " takes nine tenths of a GPU unless it is told otherwise), or choose another device"
        ) from error
    rows = np.asarray(found.rows, np.float32)
    if rows.shape != (len(posts), backbone.layout.width):
        raise RecipeError(
            f"{name_of(backbone)} as backbone: encode gave rows of shape {rows.shape} for {len(posts)} posts:"
            f" expected a row a post, as wide as its layout says, [{len(posts)}, {backbone.layout.width}]"
        )
    return Encoded(rows, found.failures)


def _parts(posts: Sequence[Encodable], missing: IntArray, batch_size: int) -> Iterator[IntArray]:
    """Yield positions in the order given, so many a write that neither posts nor images are too many."""
    start = images = 0
    for end, place in enumerate(missing.tolist(), 1):
        images += len(posts[place].images)
        if end - start >= _POSTS_PER_WRITE * batch_size or images >= _IMAGES_PER_WRITE * batch_size:
            yield missing[start:end]
            start, images = end, 0
    if start < len(missing):
        yield missing[start:]


def _cache_keys(posts: Sequence[Encodable], workers: int) -> tuple[Keys, dict[str, str]]:
    """Return the keys [N, 32] of posts, zeros where there is none, and why those have none, by post id."""
    keys, failed = np.zeros((len(posts), KEY_BYTES), np.uint8), dict[str, str]()
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="hash") as pool:
        for start in range(0, len(posts), _HASHED_AT_ONCE):
            part = posts[start : start + _HASHED_AT_ONCE]
            # threads are worth it for files
            hashed = pool.map if workers > 0 and any(post.images for post in part) else map
            for place, (post, key) in enumerate(zip(part, hashed(_cache_key, part), strict=True), start):
                if isinstance(key, str):
                    failed[post.id] = key
                else:
                    keys[place] = np.frombuffer(key, np.uint8)
    return keys, failed


def _cache_key(post: Encodable) -> bytes | str:
    """Compute the SHA-256 over text and image contents, or say why there is none.

    The header check spares hashing what is no image.
    """
    text = post.text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(b"%d %d\n" % (len(text), len(post.images)) + text)
    for path in post.images:
        try:
            check_image(path)
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"{path}: {error.strerror}; check that the file can be read"
    return digest.digest()
