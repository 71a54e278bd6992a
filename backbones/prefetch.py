"""Work done ahead of need: while a device computes, threads read what it computes next.

Backbones decode images so, and the training and scoring of multimodal models their prompts.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_THREADS = 4


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """Yield `map(function, items)`, computed in threads: in the same order, twice `threads` early at most.

    Args:
        function: Called in several threads at once.
        items: Any number; drawn in the caller's thread, as results are asked for.
        threads: 0 calls `function` where a result is asked for, as `map` does.

    Raises:
        Exception: What `function` raises, when its result's turn comes; nothing is begun after that.
    """
    if threads < 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # also where nobody asks any more: what has not begun never will
            pool.shutdown(wait=False, cancel_futures=True)


def threads_for(device: str) -> int:
    """Return how many threads read for a kind of device: a CPU computes with all its cores."""
    return 0 if device == "cpu" else min(MOST_THREADS, os.cpu_count() or 1)
