"""Images decoded ahead in threads, a bounded number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from backbones.errors import ImageError

Decoded = TypeVar("Decoded")

# Per thread: one image being decoded, one waiting to be taken.
_AHEAD = 2


def decode_stream(
    paths: Sequence[Path], decode: Callable[[Path], Decoded], workers: int = 0
) -> Iterator[Decoded | ImageError]:
    """`decode` over `paths`, in order; an `ImageError` is yielded, not raised.

    Pillow releases the interpreter lock while it decodes and resizes, so threads do, and need no pickling.
    At most ``2 * workers`` images are decoded and not yet taken.

    Args:
        paths: Image files.
        decode: A path to whatever the caller wants of it.
        workers: Threads; 0 decodes in the calling one.
    """

    def attempt(path: Path) -> Decoded | ImageError:
        try:
            return decode(path)
        except ImageError as error:
            return error

    if workers < 1:
        yield from map(attempt, paths)
        return
    waiting: deque[Future[Decoded | ImageError]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(attempt, path))
                if len(waiting) >= workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
