"""Work done ahead of need: while a device computes, threads or processes read what it computes next.

Threads decode images for the backbones. The prompts and pixels of multimodal models are read by processes: a
tokenizer pads as it was last told to, whoever told it, and one interpreter keeps no large GPU busy.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

# what workers have read lies in shared memory until it is taken; with less they would be killed by the kernel
_SHARED, _LEAST_SHARED = "/dev/shm", 2 * 2**30
_AHEAD = 2  # items that each worker reads ahead
_FEW = 4  # that many items are read sooner than processes are started


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """Yield `map(function, items)`, computed in threads: in the same order, twice `threads` early at most.

    Items are drawn in the caller's thread, as results are asked for; 0 threads call `function` there too.
    What is raised is raised when its result's turn comes; nothing is begun after that.
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


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, *, pin: bool = False
) -> Generator[Result, None, None]:
    """Yield `map(function, items)`, computed in processes: in the same order, a few items early a process.

    The function is one of tensors, tuples and dictionaries; where processes cannot be forked it is pickled.
    Without workers it is called where a result is asked for. So do all where items are few, and in a thread
    beside the main one: servers answer there, and a fork of many threads may hang. `pin` puts tensors where a
    GPU can copy them from while it computes. What is raised is raised when its result's turn comes.
    """
    from torch import Generator as TorchGenerator
    from torch.utils.data import DataLoader

    stream, apart = iter(items), threading.current_thread() is not threading.main_thread()
    first = list(islice(stream, _FEW + 1)) if workers and not apart else []
    if len(first) <= _FEW:
        yield from map(function, chain(first, stream))
        return
    given: Any = _Attempts(function)  # a data set whose numbers are the items themselves
    loader: DataLoader[Any] = DataLoader(
        given, batch_size=None, sampler=chain(first, stream), num_workers=workers, prefetch_factor=_AHEAD,
        pin_memory=pin, collate_fn=_as_it_is, worker_init_fn=_begin_worker, generator=TorchGenerator(),
        # workers touch no device, and scripts need no `if __name__ == ...`
        multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
    )  # fmt: skip
    for result, error in loader:
        if error is not None:
            raise error
        yield result


def workers_for(device: str) -> int:
    """Return how many processes read for a kind of device: one a core, all but one, shared by its trainings.

    None for a CPU, which computes with all its cores, and where shared memory is short.
    """
    if device == "cpu":
        return 0
    if Path(_SHARED).is_dir() and (free := shutil.disk_usage(_SHARED).free) < _LEAST_SHARED:
        logger.warning(
            "%s has %.1f GB free, and processes that read need %.1f: pictures are read between the steps, and"
            " the device waits. Give a container more (docker run --shm-size 16g)",
            _SHARED, free / 1e9, _LEAST_SHARED / 1e9,
        )  # fmt: skip
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(_cores() // local - 1, 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Attempts(Generic[Item, Result]):
    """Results or exceptions by item: a loader would raise others, with a traceback for a message."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function

    def __getitem__(self, item: Item) -> tuple[Result | None, Exception | None]:
        try:
            return self._function(item), None
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                return None, RuntimeError(f"{type(error).__name__}: {error}")
            return None, error


def _as_it_is(result: Result) -> Result:
    return result


def _begin_worker(_number: int) -> None:
    # a tokenizer with threads of its own would warn in every process that it was forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
