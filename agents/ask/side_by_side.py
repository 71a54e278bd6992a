"""Many pieces of work, so many at a time, results in the order of the pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class SideBySide:
    """Works on several pieces at once and ends in good order.

    Pieces are taken up one after the other as places become free, so that what a piece needs exists only
    while it is worked on. After the first error, or `stop`, no new piece is taken up; those under way come to
    their end first, because what they wait for is paid for.

    Args:
        width: Most pieces at a time.
        on_stop: Called once when the end begins early.
    """

    def __init__(self, width: int, on_stop: Callable[[], None]) -> None:
        self._width = width
        self._on_stop = on_stop
        self._stopped = False

    def stopped(self) -> bool:
        """Whether nothing new is taken up."""
        return self._stopped

    def stop(self) -> None:
        """Take up nothing new."""
        if not self._stopped:
            self._stopped = True
            self._on_stop()

    async def run(
        self,
        items: Sequence[Item],
        work: Callable[[Item], Awaitable[Result]],
        on_done: Callable[[Result], None] | None = None,
    ) -> list[Result]:
        """One result a piece.

        Raises:
            Exception: The first error of any piece, once the pieces under way have ended.
            asyncio.CancelledError: `stop` was called before all were done.
        """
        results: dict[int, Result] = {}
        errors: list[Exception] = []
        waiting = iter(range(len(items)))

        async def worker() -> None:
            # one thread, no await between: each index goes to one worker
            while not self.stopped() and (index := next(waiting, None)) is not None:
                try:
                    results[index] = await work(items[index])
                except asyncio.CancelledError:
                    if self.stopped():
                        return  # what it would have bought is not bought any more
                    raise
                except Exception as error:
                    errors.append(error)
                    self.stop()
                    return
                if on_done is not None:
                    on_done(results[index])

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._width, len(items))):
                group.create_task(worker())
        if errors:
            raise errors[0]
        if len(results) < len(items):
            raise asyncio.CancelledError
        return [results[index] for index in range(len(items))]
