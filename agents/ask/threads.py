"""An event loop in a thread of its own, used from code that knows nothing of event loops.

A notebook has a running loop already, and a signal reaches the main thread only: with the loop elsewhere both
work, and Ctrl-C finds the main thread waiting, free to let the calls under way come home.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """The thread; started at the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T], on_interrupt: Callable[[], None] | None = None) -> T:
        """The result of `work`.

        Args:
            work: Runs on the thread's loop.
            on_interrupt: Called on that loop at the first Ctrl-C, for `work` to come to an end by itself; a
                second Ctrl-C cancels it. Without it, the first does.

        Raises:
            KeyboardInterrupt: After `work` has ended.
        """
        loop = self._started()
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            self._wind_up(loop, future, on_interrupt)
            raise

    def close(self) -> None:
        """End the loop and its thread; safe to repeat."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="agents", daemon=True)
            self._thread.start()
        return self._loop

    def _wind_up(
        self,
        loop: asyncio.AbstractEventLoop,
        future: Future[T],
        on_interrupt: Callable[[], None] | None,
    ) -> None:
        if on_interrupt is None:
            future.cancel()
            return
        loop.call_soon_threadsafe(on_interrupt)
        try:
            future.exception()  # wait; what it ended with does not matter any more
        except KeyboardInterrupt:
            future.cancel()
        except CancelledError:
            pass  # it was told to end, and ended
