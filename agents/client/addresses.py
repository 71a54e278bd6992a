"""Who is sent where: a place at an address for every call, in the order in which the calls came.

One queue holds the calls that may go anywhere; each address has one for the calls that share a prompt's
beginning with what it has seen. Whenever a place falls free, the oldest call among the heads of these queues
takes it. Nothing polls: a waiting call sleeps on a future.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from agents.client.limiter import Limiter
from agents.client.transport import Link
from agents.errors import CallFailedError, ChatError, ServerLostError

REMEMBERED = 16_384
"""Affinities whose address is remembered; the longest unused is forgotten first."""

Tell: TypeAlias = Callable[[str, Mapping[str, Any]], None]


@dataclass(eq=False, slots=True)
class Address:
    """One server.

    Attributes:
        url: As it is shown.
        link: Its connections.
        limiter: Its calls in flight.
        up: Whether calls may be sent there.
        reason: Why not, in words that begin with the address.
        since: When that changed last, on the loop's clock.
        times_up: How often it came up: tells a failure of before from one of now.
        waiting: Calls that go nowhere else while it is up.
    """

    url: str
    link: Link
    limiter: Limiter
    up: bool = False
    reason: str = ""
    since: float = 0.0
    times_up: int = 0
    waiting: list[_Waiter] = field(default_factory=list)


class Place(NamedTuple):
    """Leave to send one call to `address`, which had come up `times_up` times when it was given."""

    address: Address
    times_up: int


class AddressState(NamedTuple):
    """One line of `Snapshot`."""

    address: str
    up: bool
    in_flight: int
    limit: int
    reason: str


class Snapshot(NamedTuple):
    """How things stand: calls that wait for a place, and each address."""

    waiting: int
    addresses: tuple[AddressState, ...]


@dataclass(order=True, slots=True)
class _Waiter:
    """A call in a queue; the lower `ticket` goes first."""

    ticket: int
    affinity: str = field(compare=False)
    future: asyncio.Future[Place] = field(compare=False)


class Addresses:
    """All servers and the calls that wait for them.

    Args:
        addresses: At first all down: `up` brings them in.
        patience: Seconds without any address up after which the waiting calls fail, > 0.
        tell: Told of "down" and "up".
    """

    def __init__(self, addresses: Sequence[Address], *, patience: float, tell: Tell) -> None:
        self.all = tuple(addresses)
        self._patience, self._tell = patience, tell
        self._anywhere: list[_Waiter] = []
        self._pins: OrderedDict[str, Address] = OrderedDict()
        self._tickets = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refusing: Callable[[], ChatError] | None = None

    def ticket(self) -> int:
        """The place of a new call in the order; a retried call keeps its own."""
        self._tickets += 1
        return self._tickets

    async def take(self, ticket: int, affinity: str, avoid: Address | None = None) -> Place:
        """Wait for a place. Give it back with `give_back`.

        Args:
            ticket: From `ticket`.
            affinity: Calls of one affinity go to one address while it is up; "": to the least busy.
            avoid: An address that just failed this call: passed over if another is up.

        Raises:
            ServerLostError: No address was up for longer than the patience.
            CallFailedError: `refuse_all` was called.
        """
        if self._refusing is not None:
            raise self._refusing()
        waiter = _Waiter(ticket, affinity, asyncio.get_running_loop().create_future())
        heapq.heappush(self._queue(avoid), waiter)
        self._serve()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            # cancelled between being given a place and waking up: nobody else would give it back
            if waiter.future.done() and not waiter.future.cancelled() and not waiter.future.exception():
                self.give_back(waiter.future.result())
            raise

    def give_back(self, place: Place) -> None:
        """The call that held `place` has ended; the next one takes it."""
        place.address.limiter.in_flight -= 1
        self._serve()

    def up(self, address: Address) -> None:
        """`address` answers: send calls there."""
        now = asyncio.get_running_loop().time()
        self._tell("up", {"address": address.url, "seconds": now - address.since})
        address.up, address.reason, address.since = True, "", now
        address.times_up += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._refusing = None
        self._serve()

    def down(self, address: Address, reason: str) -> bool:
        """`address` does not answer: its waiting calls go elsewhere. False: it was down already."""
        was_up, address.up, address.reason = address.up, False, reason
        if not was_up:
            return False
        loop = asyncio.get_running_loop()
        address.since = loop.time()
        for waiter in address.waiting:
            heapq.heappush(self._anywhere, waiter)
        address.waiting.clear()
        self._tell("down", {"address": address.url, "reason": reason})
        if not any(other.up for other in self.all):
            self._timer = loop.call_later(self._patience, self.refuse_all, self.lost)
        self._serve()
        return True

    def lost(self) -> ServerLostError:
        """What is told to calls that waited in vain."""
        listed = "; ".join(address.reason or address.url for address in self.all)
        return ServerLostError(
            f"no model server has answered for {self._patience:g} s ({listed}). What was paid for is kept: "
            "start the server again and give the same command, it goes on where it stopped"
        )

    def closed(self) -> CallFailedError:
        """What is told to calls that are given up."""
        return CallFailedError("the chat client was closed before this call was answered")

    def refuse_all(self, error: Callable[[], ChatError]) -> None:
        """Fail every waiting call, and every further one until an address comes up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._refusing = error
        for queue in (self._anywhere, *(address.waiting for address in self.all)):
            for waiter in queue:
                if not waiter.future.done():
                    waiter.future.set_exception(error())
            queue.clear()

    def snapshot(self) -> Snapshot:
        """How things stand."""
        queues = (self._anywhere, *(address.waiting for address in self.all))
        return Snapshot(
            sum(not waiter.future.done() for queue in queues for waiter in queue),
            tuple(
                AddressState(a.url, a.up, a.limiter.in_flight, a.limiter.limit, a.reason) for a in self.all
            ),
        )

    def _queue(self, avoid: Address | None) -> list[_Waiter]:
        others = [address for address in self.all if address.up and address is not avoid]
        if avoid is None or not avoid.up or not others:
            return self._anywhere
        return min(others, key=lambda a: (a.limiter.in_flight + len(a.waiting)) / a.limiter.limit).waiting

    def _serve(self) -> None:
        """Give away the free places, oldest call first."""
        while True:
            free = [address for address in self.all if address.up and address.limiter.has_room]
            queues = [self._anywhere, *(address.waiting for address in free)]
            for queue in queues:
                while queue and queue[0].future.done():
                    heapq.heappop(queue)  # cancelled
            filled = [number for number, queue in enumerate(queues) if queue]
            if not free or not filled:
                return
            number = min(filled, key=lambda n: queues[n][0])
            waiter = heapq.heappop(queues[number])
            address = free[number - 1] if number else self._choose(waiter.affinity, free)
            if address.limiter.has_room:
                address.limiter.in_flight += 1
                waiter.future.set_result(Place(address, address.times_up))
            else:
                heapq.heappush(address.waiting, waiter)

    def _choose(self, affinity: str, free: Sequence[Address]) -> Address:
        """The address of an affinity, full or not; the least busy free one for none or a new one."""
        pinned = self._pins.get(affinity)
        if pinned is not None and pinned.up:
            self._pins.move_to_end(affinity)
            return pinned
        chosen = min(free, key=lambda address: address.limiter.load)
        if affinity:
            self._pins[affinity] = chosen
            self._pins.move_to_end(affinity)
            if len(self._pins) > REMEMBERED:
                self._pins.popitem(last=False)
        return chosen
