"""Posts that need not be in memory: a pool of any size costs a process some tens of bytes a post.

`PostStore` keeps what is read of a manifest on disk. `Chosen` and `Joined` are posts of any sequence, picked
and laid end to end; a post is read, and made, when somebody looks at it. `PositionOf` finds posts by id, and
`MetIds` an id that was met.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

from selftrain._util.files import cache_home
from selftrain._util.types import BoolArray, IntArray
from selftrain.data.posts import Post
from selftrain.errors import StorageError
from selftrain.store.atomic import remove_left, writing

IdKeys = npt.NDArray[np.uint64]
"""Of each post the first 64 bits of its id's BLAKE2b digest."""
_IN_MEMORY = 16_384  # posts of a store that stay there: most runs have no more, and read no file
_RECENT = 1 << 16  # ids of `MetIds` that are kept in a dictionary before they are sorted in
_FOLDER, _PREFIX = "posts", "selftrain-"  # in the user's cache


def id_key(post_id: str) -> int:
    """Return 64 bits that stand for an id: of 10^8 ids, two have the same with a chance of 3 in 10,000."""
    return int.from_bytes(blake2b(post_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class _Posts(Sequence[Post]):
    """What stores and views of posts have in common; equal to any sequence of the same posts."""

    @abstractmethod
    def _at(self, place: int) -> Post:
        """Return the post at a place from 0 on, below the length."""

    @overload
    def __getitem__(self, place: int) -> Post: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Post]: ...
    def __getitem__(self, place: int | slice) -> Post | Sequence[Post]:
        """Return a post, or some as a view."""
        if isinstance(place, slice):
            return Chosen(self, np.arange(*place.indices(len(self))))
        return self._at(range(len(self))[place])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


# ---- on disk ------------------------------------------------------------------------------------------


class PostStore(_Posts):
    """Posts in the order in which they were appended, all but the first of them in a file.

    The file lies in the user's cache and goes with the store; of a process that was killed, the next store
    removes it. A store can be pickled for another process of this machine, which must end before this one.

    Raises:
        StorageError: The disk is full, or refuses.
    """

    def __init__(self) -> None:
        self._first: list[Post] = []
        self._places, self._keys = array("Q", [0]), array("Q")  # where rows end in the file; see `IdKeys`
        self._labelled = bytearray()  # of each post whether it has a label
        self._waiting: list[bytes] = []  # rows that are not written yet
        self._file: IO[bytes] | None = None  # what follows is of it
        self._descriptor, self._path = -1, ""

    def append(self, post: Post) -> None:
        """Keep one more post."""
        self._keys.append(id_key(post.id))
        self._labelled.append(post.label is not None)
        if len(self._first) < _IN_MEMORY:
            self._first.append(post)
            return
        row = _row(post)
        self._places.append(self._places[-1] + len(row))
        self._waiting.append(row)
        if len(self._waiting) >= 1024:
            self._flush()

    def __len__(self) -> int:
        return len(self._keys)

    def _at(self, place: int) -> Post:
        if place < len(self._first):
            return self._first[place]
        if self._waiting:
            self._flush()
        start, end = self._places[place - len(self._first) : place - len(self._first) + 2]
        return _post(os.pread(self._descriptor, end - start, start))

    @property
    def keys(self) -> IdKeys:
        """The keys of all ids."""
        return np.array(self._keys, dtype=np.uint64)

    @property
    def labelled(self) -> BoolArray:
        """Which posts have a label."""
        return np.array(self._labelled, dtype=bool)

    def _flush(self) -> None:
        if self._waiting:
            if self._file is None:
                self._file, self._path = _new_file()
                self._descriptor = self._file.fileno()
                weakref.finalize(self, _remove, self._path, os.getpid())
            with _placed(Path(self._path)):
                self._file.write(b"".join(self._waiting))
                self._file.flush()
            self._waiting.clear()

    def __getstate__(self) -> dict[str, Any]:
        self._flush()
        return self.__dict__ | {"_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._path:
            self._file = Path(self._path).open("rb")  # noqa: SIM115 -- as long as the store
            self._descriptor = self._file.fileno()


def _new_file() -> tuple[IO[bytes], str]:
    """Make a file, and its path; whatever processes left behind that were killed goes now."""
    folder = cache_home() / _FOLDER
    with _placed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_left(folder.glob(f"{_PREFIX}*"))
        while True:
            descriptor, path = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
            file = os.fdopen(descriptor, "r+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            if Path(path).exists():  # else another process took it for left behind
                return file, path
            file.close()


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # a child that was forked has the store too
        Path(path).unlink(missing_ok=True)


@contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Say of a disk that is full or refuses what lies there, and how to give another."""
    try:
        with writing(path):
            yield
    except StorageError as error:
        raise StorageError(
            f"{error}. Posts of a large pool lie there; SELFTRAIN_CACHE names another folder"
        ) from error


def _row(post: Post) -> bytes:
    fields = [
        post.id, post.text, [*map(str, post.images)], post.label, dict(post.process), dict(post.extra),
        post.video and str(post.video),
    ]  # fmt: skip
    # what JSON has no form for, a date of Parquet, is a text wherever a run writes it
    return json.dumps(fields, default=str).encode("ascii")


def _post(row: bytes) -> Post:
    post_id, text, images, label, process, extra, video = json.loads(row.decode("ascii"))
    return Post(post_id, text, tuple(map(Path, images)), label, process, extra, video and Path(video))


# ---- views --------------------------------------------------------------------------------------------


class Chosen(_Posts):
    """Posts at some positions of a sequence, in that order; of `unlabelled` ones nobody sees the label."""

    def __init__(self, posts: Sequence[Post], positions: npt.ArrayLike, *, unlabelled: bool = False) -> None:
        # no view of a view
        over = posts if isinstance(posts, Chosen) else None
        places: IntArray = np.asarray(positions, dtype=np.int64)
        self.posts: Sequence[Post] = posts if over is None else over.posts
        self.positions: IntArray = places if over is None else over.positions[places]
        self.unlabelled: bool = unlabelled or (over is not None and over.unlabelled)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Post]:
        return (self._seen(self.posts[place]) for place in self.positions.tolist())

    def _at(self, place: int) -> Post:
        return self._seen(self.posts[int(self.positions[place])])

    def _seen(self, post: Post) -> Post:
        if not self.unlabelled or post.label is None:
            return post
        # answers would tell the label that is being hidden; `dataclasses.replace` would take longer
        return Post(post.id, post.text, post.images, extra=post.extra, video=post.video)


class Joined(_Posts):
    """Posts of several sequences, laid end to end."""

    def __init__(self, *parts: Sequence[Post]) -> None:
        flat = chain.from_iterable(one.parts if isinstance(one, Joined) else (one,) for one in parts)
        self.parts: tuple[Sequence[Post], ...] = tuple(one for one in flat if len(one))
        self._ends = [*accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Post]:
        return chain.from_iterable(self.parts)

    def _at(self, place: int) -> Post:
        part = bisect_right(self._ends, place)
        post: Post = self.parts[part][place - self._ends[part]]
        return post


def at_hand(posts: Sequence[Post]) -> Sequence[Post]:
    """Return few posts as a list, which costs less to look at than views do, and many as they are."""
    return list(posts) if len(posts) <= _IN_MEMORY else posts


def unlabelled(posts: Sequence[Post]) -> Sequence[Post]:
    """Return posts as the pool has them: of those that have a label neither it nor any answer is seen."""
    if isinstance(posts, Joined):
        return Joined(*map(unlabelled, posts.parts))
    return Chosen(posts, np.arange(len(posts)), unlabelled=True)


def have_labels(posts: Sequence[Post]) -> BoolArray:
    """Return of each post whether its label is there to be seen; of a store no post is read."""
    if isinstance(posts, PostStore):
        return posts.labelled
    if isinstance(posts, Joined):
        return np.concatenate([np.empty(0, bool), *map(have_labels, posts.parts)])
    if isinstance(posts, Chosen):
        return have_labels(posts.posts)[posts.positions] & (not posts.unlabelled)
    return np.fromiter((post.label is not None for post in posts), bool, len(posts))


# ---- by id --------------------------------------------------------------------------------------------


def id_keys(posts: Sequence[Post]) -> IdKeys:
    """Return the keys of the posts' ids; those of a store are there, and no post is read."""
    if isinstance(posts, PostStore):
        return posts.keys
    if isinstance(posts, Joined):
        return np.concatenate([np.empty(0, np.uint64), *map(id_keys, posts.parts)])
    if isinstance(posts, Chosen) and isinstance(posts.posts, PostStore | Joined):
        found: IdKeys = id_keys(posts.posts)[posts.positions]
        return found
    return np.fromiter((id_key(post.id) for post in posts), np.uint64, len(posts))


class PositionOf(Mapping[str, int]):
    """Post id -> its position, the first one; 16 bytes a post, and each id that was looked up."""

    def __init__(self, posts: Sequence[Post]) -> None:
        keys = id_keys(posts)
        self._posts = posts
        self._order = keys.argsort(kind="stable")
        self._keys = keys[self._order]
        again = self._keys[1:] == self._keys[:-1]
        self._shared = np.append(again, False) | np.insert(again, 0, False)  # with another post
        self._met = dict[str, int]()  # those of posts that are judged are asked for in every round

    def __getitem__(self, post_id: str) -> int:
        if post_id in self._met:
            return self._met[post_id]
        key = np.uint64(id_key(post_id))
        place = int(self._keys.searchsorted(key))
        while place < len(self._keys) and self._keys[place] == key:
            position = int(self._order[place])
            if self._posts[position].id == post_id:
                self._met[post_id] = position
                return position
            place += 1
        raise KeyError(post_id)

    def all(self, posts: Sequence[Post]) -> IntArray:
        """Return the positions [n] of posts that are all here, without reading any whose ids differ in key.

        Raises:
            KeyError: One is not here.
        """
        keys = id_keys(posts)
        if not len(self._keys):
            return np.array([self[post.id] for post in posts], dtype=np.int64)
        places = np.minimum(self._keys.searchsorted(keys), len(self._keys) - 1)
        found = self._order[places].astype(np.int64)
        # where two ids have one key, or a post has none of them, the posts themselves tell
        for place in np.flatnonzero(self._shared[places] | (self._keys[places] != keys)).tolist():
            found[place] = self[posts[place].id]
        return found

    def __iter__(self) -> Iterator[str]:
        return (post.id for post in self._posts)

    def __len__(self) -> int:
        return len(self._posts)

    def twice(self) -> Iterator[tuple[int, int]]:
        """Yield positions of the same id, the one before the other."""
        first: dict[str, int] = {}
        for position in np.sort(self._order[self._shared]).tolist():
            earlier = first.setdefault(self._posts[position].id, position)
            if earlier != position:
                yield earlier, position


class MetIds:
    """The ids of a stream, to find the one that comes again, and the line that each was first met in.

    An id is kept as `id_key`, in sixteen bytes with its line. New ones are collected, then sorted into runs
    that double in length, so that there are few to look through.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._runs: list[tuple[IdKeys, IntArray]] = []

    def meet(self, post_id: str, line: int) -> int | None:
        """Return the line that an id was met in before; of a new one None, and remember `line`."""
        key = id_key(post_id)
        found = self._recent.get(key)
        if found is not None:
            return found
        wanted = np.uint64(key)
        for keys, lines in self._runs:
            place = int(keys.searchsorted(wanted))
            if place < len(keys) and keys[place] == wanted:
                return int(lines[place])
        self._recent[key] = line
        if len(self._recent) >= _RECENT:
            self._sort_in()
        return None

    def _sort_in(self) -> None:
        keys = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        lines = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        self._recent.clear()
        while self._runs and len(self._runs[-1][0]) <= len(keys):
            longer = self._runs.pop()
            keys, lines = np.concatenate([longer[0], keys]), np.concatenate([longer[1], lines])
        order = keys.argsort()
        self._runs.append((keys[order], lines[order]))
