"""One call until it has its answer: places, tries, retries.

What a failure leads to:

    429, 503, 408         the address takes half as many calls; this call waits and tries again
    no answer in time     the same
    an unreadable answer  this call tries again
    no connection, 5xx    the address is down until a probe finds it well; its calls move on at once
    400, 413, 422         RequestRefusedError
    401, 403, 404         ServerRefusedError
    all addresses down    calls wait; past the patience, ServerLostError

An address may fail a call once at no cost. A second time costs one of the call's retries: then it may well be
the call that fails the address.

A call whose connection broke may have been answered nevertheless, and is asked again: the server may count it
twice, whoever asked counts it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, TypeVar

from agents.client.addresses import Address, Addresses, Place, Tell
from agents.client.probes import Probes
from agents.client.translate import BrokenAnswerError
from agents.client.transport import Failure, Key
from agents.client.tries import Tries
from agents.errors import CallFailedError, ChatError, RequestRefusedError, ServerRefusedError

LONGEST_BACKOFF = 30.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """What is sent and how its answer is read.

    Attributes:
        path: Of the address.
        affinity: See `ChatRequest`.
        body: Makes the body, for each try when it is sent: calls that wait hold no encoded pictures.
        read: Reads the answer, given the seconds it took.
        absent: What to do where the server has no such path; "": the general advice.
    """

    path: str
    affinity: str
    body: Callable[[], Mapping[str, Any]]
    read: Callable[[bytes, float], T]
    absent: str = ""


class Caller:
    """Answers calls.

    Args:
        addresses: Where they are sent.
        probes: Told of addresses that are down.
        tries: Keeps those under way.
        key: Removed from whatever is shown.
        timeout: Seconds a try.
        retries: Further tries after the first, >= 0.
        backoff: Seconds before the first retry at most; doubles with each, up to `LONGEST_BACKOFF`.
        longest_wait: Most seconds that a server's Retry-After is followed.
        seed: Of the jitter.
        tell: Told of "retry" and "limit".
    """

    def __init__(
        self,
        addresses: Addresses,
        probes: Probes,
        tries: Tries,
        key: Key,
        *,
        timeout: float,
        retries: int,
        backoff: float,
        longest_wait: float,
        seed: int,
        tell: Tell,
    ) -> None:
        self._addresses, self._probes, self._tries, self._key = addresses, probes, tries, key
        self._timeout, self._retries = timeout, retries
        self._backoff, self._longest_wait = backoff, longest_wait
        self._random, self._tell = Random(seed), tell
        self._closed = asyncio.Event()

    async def answer(self, call: Call[T]) -> T:
        """The answer to one call. Raises as `Backend.complete` says."""
        ticket, retries = self._addresses.ticket(), 0
        forgiven: set[Address] = set()
        avoid: Address | None = None
        while True:
            place = await self._addresses.take(ticket, call.affinity, avoid)
            try:
                outcome = await self._try(place, call)
            finally:
                self._addresses.give_back(place)
            if not isinstance(outcome, Failure):
                return outcome
            if outcome.kind in ("request", "us"):
                raise _refusal(outcome, call.absent)
            avoid = place.address
            if outcome.kind == "lost" and avoid not in forgiven:
                forgiven.add(avoid)
                continue
            retries += 1
            if retries > self._retries:
                raise CallFailedError(f"no answer in {retries} tries; the last: {outcome.reason}")
            await self._pause(retries, avoid, outcome)

    def close(self) -> None:
        """End the tries and the pauses between them; their calls fail at the next place they ask for."""
        self._closed.set()
        self._tries.abandon()

    async def _try(self, place: Place, call: Call[T]) -> T | Failure:
        """One try, and what the limiter and the probes learn from it."""
        address, clock = place.address, asyncio.get_running_loop().time
        sent = clock()
        came = await self._send(address, call)
        if isinstance(came, bytes):
            try:
                answer = call.read(came, clock() - sent)
            except BrokenAnswerError as error:
                failure = Failure("broken", self._key.clean(f"{address.url}: {error}"))
            else:
                if address.limiter.succeeded():
                    self._tell_limit(address)
                return answer
        else:
            failure = came
        if failure.kind in ("busy", "late") and address.limiter.overloaded(sent, clock()):
            self._tell_limit(address)
        # a connection opened before the address came up again, or that we closed, says nothing about it now
        if failure.kind == "lost" and place.times_up == address.times_up and not self._closed.is_set():
            self._addresses.down(address, failure.reason)
            self._probes.watch(address)
        return failure

    async def _send(self, address: Address, call: Call[T]) -> bytes | Failure:
        answer = address.link.post(call.path, call.body())
        try:
            came = await self._tries.within(address, self._timeout, answer)
        except TimeoutError:
            return Failure("late", f"{address.url}: no answer within {self._timeout:g} s")
        return came if came is not None else Failure("lost", address.reason or address.url)

    def _tell_limit(self, address: Address) -> None:
        self._tell("limit", {"address": address.url, "limit": address.limiter.limit})

    async def _pause(self, retry: int, address: Address, failure: Failure) -> None:
        """Exponential back-off with full jitter, after what the server asks for; ended by `close`."""
        wait = self._random.uniform(0.0, min(LONGEST_BACKOFF, self._backoff * 2.0 ** (retry - 1)))
        wait += min(failure.wait or 0.0, self._longest_wait)
        self._tell(
            "retry",
            {
                "address": address.url,
                "reason": failure.reason,
                "retry": retry,
                "of": self._retries,
                "wait": wait,
            },
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._closed.wait()


def _refusal(failure: Failure, absent: str) -> ChatError:
    if failure.kind == "request":
        return RequestRefusedError(failure.reason)
    if absent and failure.status in (404, 405):
        return ServerRefusedError(f"{failure.reason}. {absent}")
    return ServerRefusedError(failure.reason)
