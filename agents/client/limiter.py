"""How many calls a server is sent at once: fewer when it says that it is overloaded, more while more pay."""

from __future__ import annotations

import asyncio
import math
import resource
import time
from collections import deque
from collections.abc import Callable

START = 64
"""Calls in flight at first; whether more bring more answers is tried from there."""
_PAYS = 0.25
"""A step up stays if it brings this share of what it would bring where nothing is short: of twice as many
calls, a quarter more answers."""
_SHORTEST = 1.3  # a step by less tells nothing that could be told from chance
_SATURATED = 0.8  # share of the places that must have been taken for a pace to say anything


class Knee:
    """The most calls in flight that are worth it, found by trying.

    While a limit stands, the answers of one turn (as many as there are places) are still those of before, and
    the next two turns are timed. A step that does not pay is taken back, and the next one is its square root:
    2, then 1.41, and then it is found, or `most` is reached.

    Args:
        most: Never passed, >= 1.
    """

    def __init__(self, most: int) -> None:
        self.ceiling = min(START, most)  # calls in flight, as far as is known
        self._most, self._step = most, 2.0
        self._before: tuple[int, float] | None = None  # the ceiling before the last step, and its pace
        self._count = 0
        self._since = (0.0, 0.0)  # when timing began, and what `busy` was then

    def answered(self, now: float, busy: float) -> None:
        """Count an answer, at `now` seconds; `busy` are the call-seconds in flight so far."""
        if self._before is None and self._higher() == self.ceiling:
            return  # it is found
        self._count += 1
        if self._count == self.ceiling:
            self._since = now, busy
        if self._count < 3 * self.ceiling:
            return
        self._count = 0
        seconds, used = now - self._since[0], busy - self._since[1]
        if seconds > 0.0 and used >= _SATURATED * self.ceiling * seconds:
            self._judge(2 * self.ceiling / seconds)

    def refused(self) -> None:
        """Take back the step that is being tried: the server is overloaded."""
        self._count = 0
        if self._before is not None:
            self._take_back()

    def _judge(self, pace: float) -> None:
        if self._before is not None:
            ceiling, slower = self._before
            if pace < slower * (1.0 + _PAYS * (self.ceiling / ceiling - 1.0)):
                pace = slower
                self._take_back()
        higher, self._before = self._higher(), None
        if higher > self.ceiling:
            self._before, self.ceiling = (self.ceiling, pace), higher

    def _higher(self) -> int:
        return min(self._most, int(self.ceiling * self._step)) if self._step >= _SHORTEST else self.ceiling

    def _take_back(self) -> None:
        assert self._before is not None, "there is a step to take back"
        self.ceiling, self._before = self._before[0], None
        self._step = math.sqrt(self._step)


class Limiter:
    """A limit on calls in flight that halves when the server is overloaded and grows back with successes.

    Below what is known to be worth it (`Knee`), a full round of successes (as many as the limit) adds one.
    Calls that were sent before the last cut say nothing new when they fail too: a round of 64 refusals halves
    the limit once, not down to one.

    Args:
        maximum: What the limit never passes, >= 1; it starts at `START` at most.
        clock: Returns seconds.
    """

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        if maximum < 1:
            raise ValueError(f"a limit of {maximum} calls in flight: expected 1 or more")
        self.in_flight = 0
        self._line: deque[asyncio.Future[None]] = deque()  # those who wait for a place, in their order
        self._knee, self._clock = Knee(maximum), clock
        self._limit, self._last_cut = float(self._knee.ceiling), float("-inf")
        self._busy, self._moved = 0.0, clock()  # call-seconds in flight until then

    async def __aenter__(self) -> None:
        """Wait for a place."""
        if self.in_flight < self.limit and not self._line:
            self._move(1)
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave()  # it was given a place that it does not take any more
            raise

    async def __aexit__(self, *ended: object) -> None:
        self._leave()

    @property
    def waiting(self) -> int:
        """Calls in line."""
        return sum(not turn.done() for turn in self._line)

    @property
    def limit(self) -> int:
        """Most calls in flight now."""
        return int(self._limit)

    def succeeded(self) -> bool:
        """Grow, and return whether `limit` changed."""
        knee, limit = self._knee, self._limit + 1.0 / self._limit
        if self._limit >= knee.ceiling:
            self._move(0)
            knee.answered(self._moved, self._busy)
            limit = knee.ceiling
        return self._set(min(float(knee.ceiling), limit))

    def overloaded(self, sent: float, now: float) -> bool:
        """Halve unless the call was sent before the last cut, and return whether `limit` changed.

        Both times are seconds of one clock; the call that met the overload was `sent` then.
        """
        if sent < self._last_cut:
            return False
        self._last_cut = now
        self._knee.refused()
        return self._set(max(1.0, self._limit / 2.0))

    def _set(self, limit: float) -> bool:
        before, self._limit = self.limit, limit
        self._admit()
        return self.limit != before

    def _leave(self) -> None:
        self._move(-1)
        self._admit()

    def _admit(self) -> None:
        """Give free places to those who wait."""
        while self._line and self.in_flight < self.limit:
            turn = self._line.popleft()
            if not turn.done():
                self._move(1)
                turn.set_result(None)

    def _move(self, more: int) -> None:
        now = self._clock()
        self._busy += self.in_flight * (now - self._moved)
        self.in_flight, self._moved = self.in_flight + more, now


def open_connections(wanted: int) -> int:
    """Return how many of the connections that are wanted this process may open; half of its files stay free.

    The usual limit of 1,024 open files is raised, as far as the system lets us.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 2 * wanted:
        soft = 2 * wanted if hard == resource.RLIM_INFINITY else min(2 * wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft // 2)
