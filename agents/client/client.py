"""The chat client: requests over HTTP to one or several vLLM servers that serve the same model.

What a failure leads to:

    429, 503, 408         the endpoint takes half as many calls; this call waits and tries again
    no answer in time     the same
    an unreadable answer  this call tries again
    no connection, 5xx    the endpoint is down until a probe finds it well; its calls move on at once
    400, 413, 422         RequestRefusedError
    401, 403, 404         ServerRefusedError
    all endpoints down    calls wait; past the patience, ServerLostError

An endpoint may fail a call once at no cost. A second time costs one of the call's retries: then it may well
be the call that fails the endpoint.

A call whose connection broke may have been answered nevertheless, and is asked again: the server may count it
twice, whoever asked counts it once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Generic, TypeVar

import anyio
import tenacity

from agents.client.base import ChatRequest, Completion, Identity, Message, PromptSize
from agents.client.endpoints import Endpoint, Endpoints, Failure, Key, OnEvent, Stay, plain_endpoint
from agents.client.messages import (
    BrokenAnswerError,
    chat_body,
    read_completion,
    read_count,
    tokenize_body,
    without_pictures,
)
from agents.client.probe import Prober
from agents.errors import CallFailedError, ChatError, RequestRefusedError, ServerRefusedError

logger = logging.getLogger(__name__)

LONGEST_BACKOFF = 30.0
PROBE_SECONDS = 10.0
"""A probe asks for a few bytes: whoever takes longer is not well."""
TOKENIZE_ABSENT = "An estimate needs vLLM's /tokenize: use a vLLM server, or go without the estimate"

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Call(Generic[T]):
    """What is sent, how its answer is read, and what has become of it so far.

    Attributes:
        path: Of the endpoint.
        affinity: See `ChatRequest`.
        body: Makes the body, for each try when it is sent: calls that wait hold no encoded pictures.
        read: Reads the answer, given the seconds it took.
        absent: What to do where the server has no such path; "": the general advice.
        failed_at: Endpoints that were lost under this call.
        avoid: The endpoint that failed it last.
    """

    path: str
    affinity: str
    body: Callable[[], Mapping[str, Any]]
    read: Callable[[bytes, float], T]
    absent: str = ""
    failed_at: set[Endpoint] = field(default_factory=set)
    avoid: Endpoint | None = None


class ChatClient:
    """A `Backend` over HTTP.

    Args:
        servers: Endpoints, "http://127.0.0.1:8101", with or without /v1; at least one.
        model: Name that must be served; "": the only one that is.
        revision: Of the weights, as the user knows it; "": a fingerprint where they lie on this machine.
        key_variable: Environment variable that holds the API key.
        maximum: Most calls in flight at one endpoint, >= 1.
        timeout: Seconds that one try may take.
        retries: Further tries after the first, >= 0.
        patience: Seconds that calls wait while no endpoint answers.
        backoff: Seconds before the first retry at most; doubles with each.
        probe_delays: Seconds between the first two probes of a lost endpoint, and the most between two.
        seed: Of the jitter.
        on_event: Receives "retry", "down", "up" and "limit", each with its figures.

    Raises:
        ServerRefusedError: An endpoint that is none, or given twice, or none at all.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        model: str = "",
        revision: str = "",
        key_variable: str = "SELFTRAIN_API_KEY",
        maximum: int = 64,
        timeout: float = 120.0,
        retries: int = 4,
        patience: float = 120.0,
        backoff: float = 0.5,
        probe_delays: tuple[float, float] = (0.5, 10.0),
        seed: int = 0,
        on_event: OnEvent | None = None,
    ) -> None:
        self._urls = [plain_endpoint(text) for text in servers]
        if not self._urls or len(set(self._urls)) < len(self._urls):
            raise ServerRefusedError(f"the endpoints {self._urls}: expected one or more, each once")
        self._model, self._revision, self._key_variable = model, revision, key_variable
        self._maximum, self._timeout, self._retries = maximum, timeout, retries
        self._patience, self._backoff, self._probe_delays = patience, backoff, probe_delays
        self._random, self._on_event = Random(seed), on_event
        self._opened: _Opened | None = None
        self._closed = False

    async def open(self) -> Identity:
        """Reach the model; endpoints that do not answer yet are tolerated if one does.

        Raises:
            ServerLostError: None answered within the patience.
            ServerRefusedError: An endpoint refuses the key or does not serve the model, or two endpoints
                serve different ones.
        """
        if self._opened is not None or self._closed:
            raise RuntimeError("a chat client is opened once")
        opened = self._opened = self._connect(Key(self._key_variable))
        try:
            opened.identity = await opened.prober.first(self._patience)
        except BaseException:
            await self.close()
            raise
        return opened.identity

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the answer to one request; waits for its turn. Raises as `Backend.complete` says."""
        opened, model = self._ready()
        logprobs = request.sampling.top_logprobs > 0
        call = _Call(
            "/v1/chat/completions",
            request.affinity,
            body=lambda: chat_body(request, model),
            read=lambda raw, seconds: read_completion(raw, logprobs=logprobs, seconds=seconds),
        )
        return await self._answer(opened, call)

    async def measure(self, request: ChatRequest) -> PromptSize:
        """Return the size of a prompt, by vLLM's /tokenize; raises as `complete`.

        Pictures take what the same messages without them do not. On LLaVA-OneVision, with 0 to 16 pictures,
        both figures were those of `Usage` after the call; a template that puts text beside each adds it here.
        """
        plain = without_pictures(request.messages)
        whole = await self._count(request.messages, request.affinity)
        if plain == request.messages:
            return PromptSize(whole, 0)
        return PromptSize(whole, whole - await self._count(plain, request.affinity))

    async def close(self) -> None:
        """Let go of everything; calls under way end with CallFailedError."""
        self._closed = True
        if (opened := self._opened) is None:
            return
        for scope in opened.calls:
            scope.cancel()
        await opened.prober.close()
        await opened.idle.wait()
        for endpoint in opened.endpoints.all:
            await endpoint.close()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The servers with their calls in line and in flight, limit and state; none before `open`."""
        return self._opened.endpoints.all if self._opened else ()

    def _connect(self, key: Key) -> _Opened:
        endpoints = Endpoints(
            [Endpoint(url, key, self._maximum, self._timeout) for url in self._urls],
            patience=self._patience,
            on_event=self._report,
        )
        prober = Prober(
            endpoints, model=self._model, revision=self._revision, delays=self._probe_delays,
            seconds=min(self._timeout, PROBE_SECONDS),
        )  # fmt: skip
        opened = _Opened(endpoints, prober)
        opened.idle.set()
        return opened

    def _ready(self) -> tuple[_Opened, str]:
        if self._opened is None or self._opened.identity is None:
            raise RuntimeError("a chat client must be opened before it is asked")
        return self._opened, self._opened.identity.model

    async def _count(self, messages: Sequence[Message], affinity: str) -> int:
        opened, model = self._ready()
        call = _Call(
            "/tokenize", affinity, lambda: tokenize_body(messages, model), lambda raw, _: read_count(raw),
            TOKENIZE_ABSENT,
        )  # fmt: skip
        return await self._answer(opened, call)

    async def _answer(self, opened: _Opened, call: _Call[T]) -> T:
        """Return the answer to one call, after as many tries as it takes or is allowed."""
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._retries + 1),
            wait=self._pause,
            retry=tenacity.retry_if_result(_is_passing),
            before_sleep=self._report_retry,
            # out of tries: the last failure is the outcome
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        # `close` ends the call wherever it is: in line, in flight or between two tries
        scope = anyio.CancelScope()
        if self._closed:
            scope.cancel()
        opened.calls.add(scope)
        opened.idle.clear()
        try:
            with scope:
                outcome: T | Failure = await retrying(self._attempt, opened, call)
        finally:
            opened.calls.discard(scope)
            if not opened.calls:
                opened.idle.set()
        if scope.cancelled_caught:
            raise CallFailedError("the chat client was closed before this call was answered")
        if isinstance(outcome, Failure):
            raise self._error(outcome, call.absent)
        return outcome

    async def _attempt(self, opened: _Opened, call: _Call[T]) -> T | Failure:
        """Try endpoints until one has answered, or failed otherwise than by being lost for the first time."""
        while True:
            endpoint = await opened.endpoints.choose(call.affinity, call.avoid)
            outcome = await self._visit(opened, endpoint, call)
            if outcome is None:
                continue  # it went down while this call stood in line there
            if isinstance(outcome, Failure):
                call.avoid = endpoint
                if outcome.kind == "lost" and endpoint not in call.failed_at:
                    call.failed_at.add(endpoint)
                    continue
            return outcome

    async def _visit(self, opened: _Opened, endpoint: Endpoint, call: _Call[T]) -> T | Failure | None:
        """Return what came of one try at `endpoint`; None: it was lost before this call's turn."""
        stay = Stay(anyio.CancelScope())
        endpoint.stays.add(stay)
        try:
            with stay.scope:
                async with endpoint.limiter.tokens:
                    stay.in_flight = True
                    return await self._exchange(opened, endpoint, call)
        finally:
            endpoint.stays.discard(stay)
        return Failure("lost", endpoint.reason or endpoint.url) if stay.in_flight else None

    async def _exchange(self, opened: _Opened, endpoint: Endpoint, call: _Call[T]) -> T | Failure:
        """Send one request, and pass on what it says about the endpoint."""
        clock, times_up = asyncio.get_running_loop().time, endpoint.times_up
        sent = clock()
        outcome: T | Failure
        came = await endpoint.post(call.path, call.body())
        if isinstance(came, Failure):
            outcome = came
        else:
            try:
                outcome = call.read(came, clock() - sent)
            except BrokenAnswerError as error:
                outcome = Failure("broken", endpoint.key.clean(f"{endpoint.url}: {error}"))
        kind = outcome.kind if isinstance(outcome, Failure) else "answered"
        limiter = endpoint.limiter
        if (kind == "answered" and limiter.succeeded()) or (
            kind in ("busy", "late") and limiter.overloaded(sent, clock())
        ):
            self._report("limit", {"endpoint": endpoint.url, "limit": limiter.limit})
        # a connection opened before the endpoint came up again says nothing about it now
        if isinstance(outcome, Failure) and kind == "lost" and times_up == endpoint.times_up:
            opened.endpoints.mark_down(endpoint, outcome.reason)
            opened.prober.watch(endpoint)
        return outcome

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Return seconds: exponential back-off with full jitter, after what the server asks for."""
        longest = min(LONGEST_BACKOFF, self._backoff * 2.0 ** (state.attempt_number - 1))
        asked = _failure_of(state).wait or 0.0
        return self._random.uniform(0.0, longest) + min(asked, self._patience)

    def _report_retry(self, state: tenacity.RetryCallState) -> None:
        figures = {
            "reason": _failure_of(state).reason,
            "retry": state.attempt_number,
            "of": self._retries,
            "wait": state.upcoming_sleep,
        }
        self._report("retry", figures)

    def _error(self, failure: Failure, absent: str) -> ChatError:
        if _is_passing(failure):
            return CallFailedError(f"no answer in {self._retries + 1} tries; the last: {failure.reason}")
        if failure.kind == "request":
            return RequestRefusedError(failure.reason)
        if absent and failure.status in (404, 405):
            return ServerRefusedError(f"{failure.reason}. {absent}")
        return ServerRefusedError(failure.reason)

    def _report(self, event: str, figures: Mapping[str, Any]) -> None:
        """Pass an event on. A hook that fails must not fail the call, or the probe, that it is about."""
        if self._on_event is None:
            return
        try:
            self._on_event(event, figures)
        except Exception:
            logger.exception("on_event failed at %r", event)


@dataclass(slots=True)
class _Opened:
    """What there is between `open` and `close`."""

    endpoints: Endpoints
    prober: Prober
    identity: Identity | None = None
    calls: set[anyio.CancelScope] = field(default_factory=set)
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # whether no call is under way


def _is_passing(outcome: object) -> bool:
    """Return whether this is a failure that another try may not meet."""
    return isinstance(outcome, Failure) and outcome.kind not in ("request", "us")


def _failure_of(state: tenacity.RetryCallState) -> Failure:
    """Return the failure after which there is another try."""
    assert state.outcome is not None
    failure: Failure = state.outcome.result()
    return failure
