"""The tries under way: each has a deadline of its own and can be ended before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from agents.client.addresses import Address

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Try:
    address: Address
    deadline: asyncio.Timeout
    abandoned: bool = False


class Tries:
    """All tries under way on one event loop."""

    def __init__(self) -> None:
        self._tries: set[_Try] = set()
        self._none = asyncio.Event()
        self._none.set()

    async def within(self, address: Address, seconds: float, answer: Awaitable[T]) -> T | None:
        """`answer`, or None when the try was abandoned first.

        Raises:
            TimeoutError: It did not come within `seconds`.
        """
        deadline = asyncio.timeout(seconds)
        this = _Try(address, deadline)
        try:
            async with deadline:
                self._tries.add(this)
                self._none.clear()
                return await answer
        except TimeoutError:
            if this.abandoned:
                return None
            raise
        finally:
            self._tries.discard(this)
            if not self._tries:
                self._none.set()

    def abandon(self, address: Address | None = None) -> None:
        """End the tries at `address`, or all."""
        now = asyncio.get_running_loop().time()
        for this in self._tries:
            if (address is None or this.address is address) and not this.abandoned:
                this.abandoned = True
                if not this.deadline.expired():
                    this.deadline.reschedule(now)

    async def ended(self) -> None:
        """Wait until no try is under way."""
        await self._none.wait()
