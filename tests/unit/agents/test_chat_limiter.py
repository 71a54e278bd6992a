"""How many calls are sent at once, on a server in memory whose capacity is known and whose clock is ours."""

from __future__ import annotations

import heapq
import random

import pytest

from agents.client import limiter as limiting
from agents.client.limiter import START, Limiter, open_connections


class Server:
    """Serves `capacity` calls at once, each in a second or so; with more in flight, each takes longer.

    Args:
        slows: How much less it serves in all when twice as many are in flight, as a power.
        refuses: From so many in flight on, it refuses the next; 0: never.
    """

    def __init__(self, capacity, *, slows=0.0, refuses=0, seed=0):
        self.capacity, self.slows, self.refuses = capacity, slows, refuses
        self.now, self.draw = 0.0, random.Random(seed)
        self.answered = self.refused = 0

    def seconds(self, in_flight):
        over = max(1.0, in_flight / self.capacity)
        return self.draw.uniform(0.7, 1.3) * over ** (1.0 + self.slows)

    def keep_busy(self, limiter, calls, wanted=10**9):
        """Let so many calls be answered, at most `wanted` in flight at once; the limits there were."""
        ends, limits = [], []
        while len(limits) < calls:
            while limiter.in_flight < min(limiter.limit, wanted):
                limiter._move(1)
                heapq.heappush(ends, (self.now + self.seconds(limiter.in_flight), self.now))
            self.now, sent = heapq.heappop(ends)
            if self.refuses and limiter.in_flight > self.refuses:
                self.refused += 1
                limiter.overloaded(sent, self.now)
            else:
                self.answered += 1
                limiter.succeeded()
            limiter._leave()
            limits.append(limiter.limit)
        return limits


def limiter_of(server, maximum=1024):
    return Limiter(maximum, clock=lambda: server.now)


@pytest.mark.parametrize("capacity", [100, 300, 700])
@pytest.mark.parametrize("slows", [0.0, 0.5])
def test_the_knee_of_a_server_is_found(capacity, slows):
    server = Server(capacity, slows=slows)
    limiter = limiter_of(server)
    limits = server.keep_busy(limiter, 20_000)
    assert limits[0] == START
    # within a step of 1.41 of it, and nothing is tried any more
    assert capacity / 1.5 <= limits[-1] <= 1.5 * capacity
    assert len(set(limits[-5000:])) == 1


def test_a_server_without_bounds_is_sent_as_many_as_may_be():
    server = Server(10**6)
    assert server.keep_busy(limiter_of(server), 30_000)[-1] == 1024
    small = Server(10**6)
    assert set(small.keep_busy(limiter_of(small, 48), 1000)) == {48}


def test_a_server_that_is_full_at_the_beginning_is_sent_no_more():
    server = Server(20)
    assert server.keep_busy(limiter_of(server), 20_000)[-1] == START


def test_where_too_few_are_asked_nothing_is_learned():
    server = Server(10**6)
    assert set(server.keep_busy(limiter_of(server), 5000, wanted=40)) == {START}
    assert max(server.keep_busy(limiter_of(server), 5000)) > START


def test_a_step_that_the_server_refuses_is_taken_back():
    server = Server(10**6, refuses=300)
    limits = server.keep_busy(limiter_of(server), 40_000)
    assert server.refused > 0
    assert max(limits[-5000:]) <= 305
    assert limits[-1] >= 200


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "raised"),
    [
        (1024, 1_048_576, 1024, [(2048, 1_048_576)]),
        (1024, -1, 1024, [(2048, -1)]),
        (1024, 1500, 750, [(1500, 1500)]),
        (65_536, 65_536, 1024, []),
        (-1, -1, 1024, []),
    ],
)
def test_connections_fit_in_half_of_the_files_that_may_be_open(monkeypatch, soft, hard, allowed, raised):
    assert limiting.resource.RLIM_INFINITY == -1
    limits = []
    monkeypatch.setattr(limiting.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(limiting.resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert open_connections(1024) == allowed
    assert limits == raised
