"""From a request's bytes to posts whose pictures cost little to read, in few processes of low priority.

What is large to parse or dear to decode is done outside of this process: neither its interpreter lock nor its
memory is a stranger's to take. Pictures wait their turn one group at a time, so that a request of many stands
in the way of none; those that are dear have a line of their own, and are kept as small as the model asks for.
They lie in a private folder, of which nothing outlives its request; that of a server that was killed is
removed by the next one to start on the machine.
"""

from __future__ import annotations

import fcntl
import math
import os
import resource
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import anyio
from anyio import CapacityLimiter, to_process, to_thread

from backbones.errors import ImageError
from backbones.images import LARGE, open_image
from selftrain.errors import QueueFullError
from selftrain.serving.wire import Placed, RequestLimits, parse, place
from selftrain.store import atomic
from selftrain.web.access import BadRequestError

SMALL = 65_536  # bytes of a body that is read here
LARGE_BODY = 2_000_000  # of one that waits in the second line
CHEAP = 1_000_000  # work of a picture that the model's own thread may decode, see `ImageHeader`
DEAR = 8_000_000  # of one that waits in the second line
GROUP = 4_000_000  # of pictures that are decoded in one go
SECONDS = 30  # of a processor that a group of pictures, or a body, may take
PATIENCE = 4 * SECONDS  # where others keep the processors busy
AT_ONCE = 1.0  # seconds in which a process ends that was killed before it was asked
LINES = 3  # with a process each
MEMORY = 1_500_000_000  # bytes of address space of a process beyond what it begins with
STORED = 1_000_000_000  # bytes of decoded pictures that may wait for the model
SPARED = 16_000_000  # bytes of them that a request may bring whatever waits

_PREFIX, _LOCK = "selftrain-serve-", "in-use"

# the latter is anyio's word of a process that is gone before it has begun
_GONE = (anyio.BrokenWorkerProcess, ProcessLookupError)
_FAILURES = (TimeoutError, MemoryError, *_GONE)
_BOUNDS = f"in {SECONDS} seconds of a processor and {MEMORY / 1e9:g} GB"

Args = TypeVarTuple("Args")
Result = TypeVar("Result")


class Intake:
    """Reads requests. One process parses, one decodes; one does either where it is dear."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._parsing, self._decoding, self._dear = (CapacityLimiter(1) for _ in range(LINES))
        self._stored = 0

    async def start(self) -> None:
        """Start the processes, so that no request waits for that; one that fails is started when needed."""
        async with anyio.create_task_group() as group:
            for limiter in (self._parsing, self._decoding, self._dear):
                group.start_soon(self._begin, limiter)

    async def _begin(self, limiter: CapacityLimiter) -> None:
        with suppress(*_FAILURES):
            await _apart(limiter, _ready)

    async def read(self, body: bytes, folder: Path) -> Placed:
        """Read the posts of a request, their images into `folder`. Raises as `parse` and `place`."""
        if len(body) > SMALL:
            line = self._parsing if len(body) <= LARGE_BODY else self._dear
            try:
                return await _apart(line, _read, body, folder, self._limits)
            except _FAILURES as error:
                raise BadRequestError(413, f"the body cannot be read {_BOUNDS}: send less at once") from error
        given = parse(body, self._limits)
        if not any(one.images for one in given):
            return place(given, folder, self._limits)
        return await to_thread.run_sync(place, given, folder, self._limits)

    async def shrink(self, placed: Placed, side: int | None) -> Callable[[], None]:
        """Put what decoding gives in the place of pictures that cost much; posts whose cannot be are refused.

        Pictures become as small as `side`, what the model shrinks them to; None: not known, and they stay as
        they are. Returns what to call once the pictures are removed.

        Raises:
            QueueFullError: Too many pictures wait for the model.
        """
        if side is None:
            return lambda: None
        pictures = [path for post in placed.posts.values() for path in post.images]
        dear = [path for path in pictures if placed.headers[path].work > CHEAP]
        size = sum(3 * min(one.width * one.height, LARGE) for one in map(placed.headers.__getitem__, dear))
        if size > SPARED and self._stored + size > STORED:
            raise QueueFullError("pictures of other requests fill the room for them: try again later")
        self._stored += size

        def forget() -> None:
            self._stored -= size

        try:
            failed: dict[Path, str] = {}
            for limiter, group in self._groups(dear, placed):
                failed |= await self._decode(limiter, group, side)
        except BaseException:
            forget()
            raise
        for number, post in list(placed.posts.items()):
            if reasons := [failed[path] for path in post.images if path in failed]:
                placed.refuse(number, reasons[0])
        return forget

    def _groups(
        self, pictures: Sequence[Path], placed: Placed
    ) -> Iterator[tuple[CapacityLimiter, list[Path]]]:
        """Yield pictures in groups, each with the line that it waits in."""
        group, work = list[Path](), 0
        for path in pictures:
            costs = placed.headers[path].work
            if costs > DEAR:
                yield self._dear, [path]
                continue
            if group and work + costs > GROUP:
                yield self._decoding, group
                group, work = [], 0
            group.append(path)
            work += costs
        if group:
            yield self._decoding, group

    async def _decode(self, limiter: CapacityLimiter, group: Sequence[Path], side: int) -> dict[Path, str]:
        try:
            return await _apart(limiter, _shrink, group, side)
        except _FAILURES:
            return {path: f"{path}: cannot be decoded {_BOUNDS}; scale it down" for path in group}


async def _apart(limiter: CapacityLimiter, work: Callable[[*Args], Result], *args: *Args) -> Result:
    """Have something done in a process of low priority; one that takes too long is ended.

    One that ends at once had most likely been killed while it had nothing to do, and was not missed yet:
    another one is asked, as often as there may be such ones.
    """
    async with limiter:  # the time begins when it is its turn
        with anyio.fail_after(PATIENCE):
            idle = LINES  # that may be gone
            while True:
                began = anyio.current_time()
                try:
                    # a limiter of its own: the default one knows nothing of lines
                    return await to_process.run_sync(
                        _bounded, SECONDS, work, args, cancellable=True, limiter=CapacityLimiter(1)
                    )
                except _GONE:
                    if not idle or anyio.current_time() - began > AT_ONCE:
                        raise
                    idle -= 1


# ---- what runs there -----------------------------------------------------------------------------------


def _bounded(seconds: int, work: Callable[[*Args], Result], args: tuple[*Args]) -> Result:
    _settle_in()
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    until = math.ceil(used.ru_utime + used.ru_stime) + seconds
    if most != resource.RLIM_INFINITY:
        until = min(until, most)
    resource.setrlimit(resource.RLIMIT_CPU, (until, most))  # it is ended by a signal then
    return work(*args)


@cache
def _settle_in() -> None:
    """Give way to the model, keep within bounds, and leave Ctrl-C to the server; quiet libraries too."""
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _ready() -> None:
    """Do nothing; whoever asks has imported this module."""


def _read(body: bytes, folder: Path, limits: RequestLimits) -> Placed:
    return place(parse(body, limits), folder, limits)


def _shrink(pictures: Sequence[Path], side: int) -> dict[Path, str]:
    """Decode pictures in their place, as a model that shrinks them to `side` would; path -> why not."""
    failed: dict[Path, str] = {}
    for path in pictures:
        try:
            # their headers have been judged by the server's own limit
            open_image(path, max_pixels=1 << 40, target_size=side).save(path, format="BMP")
        except ImageError as error:
            failed[path] = str(error)
    return failed


# ---- where pictures lie ------------------------------------------------------------------------------


class Scratch:
    """A folder in `root`, by default TMPDIR, that only this user can read, held until `close`."""

    def __init__(self, root: Path | None = None) -> None:
        root = Path(tempfile.gettempdir()) if root is None else root
        _remove_leftovers(root)
        with atomic.writing(root):
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))  # mode 0700
            self._lock = (self.path / _LOCK).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._numbers = count()

    def folder(self) -> Path:
        """Return where one request's pictures go; the folder is made by whoever has one."""
        return self.path / f"{next(self._numbers)}"

    def remove(self, folder: Path) -> None:
        """Remove one request's folder, if it is still there."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_leftovers(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            # the folder is shared: others may have put a pipe there, or a link to what is not theirs
            found = os.open(folder / _LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with os.fdopen(found, "rb") as lock:
                about, around = os.fstat(found), folder.lstat()
                if not (stat.S_ISREG(about.st_mode) and stat.S_ISDIR(around.st_mode)):
                    continue
                if {about.st_uid, around.st_uid} != {os.getuid()}:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:  # it is in use, just being made, another user's, or gone by now
            continue
