"""Asking at a price: the store first, then the model, within a cap; an answer is paid for once.

An answer that cannot be used is asked for again, each time with a draw of its own, so every attempt has an
address of its own and none is paid twice either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from agents.ask.cache import CachedAnswer, Note, ResponseCache
from agents.client.base import Backend, ChatRequest, Completion, Identity, Usage, address
from agents.errors import TokenCapError

RETRY_TEMPERATURE = 0.7
"""Of attempts after the first: at 0 the model would write the same unusable answer again."""


class UsageTotals(NamedTuple):
    """What was asked of a model, and what it cost.

    Attributes:
        calls: Answers that the model gave, unusable ones included.
        stored: Answers that were there already and cost nothing.
        failed: Questions without a usable answer after all attempts.
        usage: Tokens of the calls.
        seconds: Sum over the calls, which run side by side.
    """

    calls: int = 0
    stored: int = 0
    failed: int = 0
    usage: Usage = Usage()
    seconds: float = 0.0

    def minus(self, earlier: UsageTotals) -> UsageTotals:
        """What came since `earlier`."""
        used = Usage(*(a - b for a, b in zip(self.usage, earlier.usage, strict=True)))
        return UsageTotals(
            self.calls - earlier.calls, self.stored - earlier.stored, self.failed - earlier.failed, used,
            self.seconds - earlier.seconds,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Flat JSON values."""
        return {
            "calls": self.calls,
            "stored": self.stored,
            "failed": self.failed,
            **self.usage._asdict(),
            "seconds": round(self.seconds, 3),
        }


@runtime_checkable
class Metered(Protocol):
    """A panel whose answers cost something."""

    def usage(self) -> UsageTotals:
        """What this process has asked and paid so far."""
        ...

    def close(self) -> None:
        """Let go of whatever answers."""
        ...


class Reply(NamedTuple):
    """The usable answer to a question, or the last unusable one.

    Attributes:
        answer: What the reader made of it.
        fault: Why it cannot be used; empty if it can.
        attempts: How many were made, 1 or more.
        address: Of the attempt that counts.
        paid: The stored answer.
    """

    answer: Mapping[str, Any]
    fault: str
    attempts: int
    address: str
    paid: CachedAnswer


class MeteredClient:
    """Asks questions of one model for one run.

    Args:
        backend: Opened.
        identity: Who answers.
        store: Where answers are kept.
        run: Who pays.
        attempts: Most answers to one question, 1 or more.
        token_cap: Most tokens that the run may cost in all its starts; None: any number.
    """

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        store: ResponseCache,
        *,
        run: str,
        attempts: int = 3,
        token_cap: int | None = None,
    ) -> None:
        self._backend = backend
        self.identity = identity
        self._store = store
        self._run = run
        self._attempts = attempts
        self._cap = token_cap
        self._spent = store.spent(run).total
        self._expected = 0  # tokens of calls under way, at most
        self._dearest = 0  # largest prompt so far
        self._under_way: dict[str, asyncio.Future[CachedAnswer]] = {}
        self._closed = False
        self.spending = UsageTotals()

    def stop(self) -> None:
        """Buy nothing more; what is under way may still arrive and is kept."""
        self._closed = True

    def resume(self) -> None:
        """Buy again; others may have paid for the same run meanwhile."""
        self._closed = False
        self._spent = self._store.spent(self._run).total

    async def ask(
        self,
        request: ChatRequest,
        read: Callable[[Completion], tuple[Mapping[str, Any], str]],
        *,
        post: str,
        role: str,
        step: int,
    ) -> Reply:
        """The answer to `request`, from the store or from the model.

        Args:
            request: The first attempt.
            read: From a completion to JSON values and what is wrong with it (empty: nothing).
            post, role, step: Noted in the store.

        Raises:
            TokenCapError: Asking would cost more than the cap leaves.
            ChatError: No answer came; nothing was paid.
        """
        note = Note(self._run, post, role, step, self.identity.model)
        for attempt in range(self._attempts):
            tried = _attempt(request, attempt)
            place = address(tried, self.identity)
            paid = await self._paid(place, tried, read, note, attempt)
            fault = str(paid.answer.get("fault", ""))
            if not fault:
                break
        else:
            self.spending = self.spending._replace(failed=self.spending.failed + 1)
        return Reply(paid.answer, fault, attempt + 1, place, paid)

    async def _paid(
        self,
        place: str,
        request: ChatRequest,
        read: Callable[[Completion], tuple[Mapping[str, Any], str]],
        note: Note,
        attempt: int,
    ) -> CachedAnswer:
        stored = self._store.get(place)
        if stored is not None:
            self.spending = self.spending._replace(stored=self.spending.stored + 1)
            return stored
        if place in self._under_way:  # the same post twice: the second waits for the first's answer
            return await asyncio.shield(self._under_way[place])
        future: asyncio.Future[CachedAnswer] = asyncio.get_running_loop().create_future()
        self._under_way[place] = future
        try:
            paid = await self._buy(request, read)
            self._store.put(place, paid, note, attempt)
            future.set_result(paid)
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            future.exception()  # whoever waits gets it; if nobody does, it is no news
            raise
        finally:
            del self._under_way[place]
        return paid

    async def _buy(
        self, request: ChatRequest, read: Callable[[Completion], tuple[Mapping[str, Any], str]]
    ) -> CachedAnswer:
        if self._closed:
            raise asyncio.CancelledError
        reserved = self._reserve(request)
        try:
            completion = await self._backend.complete(request)
        finally:
            self._expected -= reserved
        usage = completion.usage
        self._spent += usage.total
        self._dearest = max(self._dearest, usage.prompt)
        self.spending = self.spending._replace(
            calls=self.spending.calls + 1,
            usage=self.spending.usage.plus(usage),
            seconds=self.spending.seconds + completion.seconds,
        )
        answer, fault = read(completion)
        return CachedAnswer(
            {**answer, "fault": fault}, completion.text, completion.finish, usage, completion.seconds
        )

    def _reserve(self, request: ChatRequest) -> int:
        """Tokens that a call may cost, held back until it is known; a prompt may be as dear as any so far."""
        if self._cap is None:
            return 0
        held = self._dearest + request.sampling.max_tokens
        if self._spent + self._expected + held > self._cap:
            raise TokenCapError(
                f"{self._spent:,} tokens of at most {self._cap:,} are spent, {self._expected:,} more are"
                f" under way, and the next call may take {held:,}: raise the token cap to go on; what was"
                " paid for is kept"
            )
        self._expected += held
        return held


def _attempt(request: ChatRequest, attempt: int) -> ChatRequest:
    """The request of a later attempt: drawn instead of likeliest, by a seed of its own."""
    if not attempt:
        return request
    sampling = request.sampling._replace(temperature=RETRY_TEMPERATURE, seed=request.sampling.seed + attempt)
    return replace(request, sampling=sampling)
