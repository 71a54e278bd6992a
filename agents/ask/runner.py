"""Work on many posts side by side, with calls that are paid for, on an event loop of its own.

Posts go through each from its first question to its last, so that all calls on a post follow each other
closely: its policy, words and pictures are computed once by the server and then read from its prefix cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from agents.ask.cache import ResponseCache
from agents.ask.metering import MeteredClient, UsageTotals
from agents.ask.side_by_side import SideBySide
from agents.ask.threads import LoopThread
from agents.client.base import Backend, Identity

Progress = Callable[[str, int], Callable[[UsageTotals], None]]
"""From what is done and how many there are to a function that is told after each."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Runner:
    """What stands between those who ask and whatever answers.

    Args:
        backend: What answers; opened at the first question, closed by `close`.
        store: Where answers are kept; closed by whoever closes it: several inquiries may share one.
        run: Who pays, see `store.Note`.
        width: Posts under way at a time.
        attempts: Most answers to one question.
        token_cap: Most tokens of the run; None: any number.
        progress: Told of the work, or None.
    """

    def __init__(
        self,
        backend: Backend,
        store: ResponseCache,
        *,
        run: str,
        width: int = 64,
        attempts: int = 3,
        token_cap: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.backend = backend
        self.store = store
        self._run = run
        self._width = width
        self._attempts = attempts
        self._cap = token_cap
        self._progress = progress
        self._thread = LoopThread()
        self._payer: MeteredClient | None = None
        self._reached = False

    def work(
        self,
        what: str,
        items: Sequence[Item],
        one: Callable[[Item], Awaitable[Result]],
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Result]:
        """`one` of each item, side by side, in the order of the items.

        Args:
            what: Is worked on, for a bar.
            items: Posts, or whatever stands for them.
            one: The work on one item; asks `payer`.
            first: Comes before all of them.

        Raises:
            Exception: The first error of any item, once those under way have ended.
            KeyboardInterrupt: After the calls under way have come home. What was paid for is kept, whatever
                is raised.
        """
        told = self._progress(what, len(items)) if self._progress is not None else None

        def on_done(_: object) -> None:
            if told is not None:
                told(self.usage())

        def stop() -> None:
            if self._payer is not None:
                self._payer.stop()

        side_by_side = SideBySide(self._width, stop)

        async def run() -> list[Result]:
            (await self.payer()).resume()
            if first is not None:
                await first()
            return await side_by_side.run(items, one, on_done)

        return self._thread.run(run(), on_interrupt=side_by_side.stop)

    async def payer(self) -> MeteredClient:
        """Whoever pays for questions; the model is reached if it was not before. On the event loop only."""
        if self._payer is None:
            self._reached = True  # also if it fails: what was begun is to be closed
            identity = await self.backend.open()
            self._payer = MeteredClient(
                self.backend,
                identity,
                self.store,
                run=self._run,
                attempts=self._attempts,
                token_cap=self._cap,
            )
        return self._payer

    def identity(self) -> Identity:
        """The model that answers; it is reached if it was not before."""
        return self._thread.run(self.payer()).identity

    def reached(self) -> Identity | None:
        """The model that answers, if it was reached."""
        return self._payer.identity if self._payer is not None else None

    def usage(self) -> UsageTotals:
        """What this process has asked and paid so far."""
        return self._payer.spending if self._payer is not None else UsageTotals()

    def close(self) -> None:
        """Let go of the server; safe to repeat. The store is its owner's: several may share it."""
        if self._reached:
            self._reached = False
            self._thread.run(self.backend.close())
        self._thread.close()
