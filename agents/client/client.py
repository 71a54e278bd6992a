"""The chat client: requests over HTTP to one or several vLLM servers that serve the same model.

What a failure leads to:

    429, 503, 408         the endpoint is sent half as many calls; this call waits and tries again
    no answer in time     the same, as often as there are retries
    an unreadable answer  this call tries again, as often as there are retries
    no connection, 5xx    the endpoint is down until a probe finds it well; its calls move on at once
    400, 413, 422         asked again without what was refused (`dialect`), else RequestRefusedError
    401, 403, 404         ServerRefusedError
    all endpoints down    calls wait; past the patience, ServerLostError
    a call given up       CallFailedError if a small question is answered, else ServerLostError

An endpoint may fail a call once at no cost. A second time costs one of the call's retries: then it may well
be the call that fails the endpoint. A call that is sent away at once, by an endpoint that is overloaded or
fails, is not given up before the patience ends either: an answer that is missing is missing for good.

A call whose connection broke may have been answered nevertheless, and is asked again: the server may count it
twice, whoever asked counts it once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from random import Random
from typing import Any, Generic, TypeGuard, TypeVar

from agents.client.base import ChatRequest, Completion, Identity, Message, PromptSize, Sampling
from agents.client.dialect import EVERYTHING, Dialect
from agents.client.endpoints import MOST_BYTES, Endpoint, Failure, Key, OnEvent, now, plain_endpoint
from agents.client.fleet import PROBE_SECONDS, Fleet
from agents.client.limiter import START, open_connections
from agents.client.messages import (
    BrokenAnswerError,
    ChatAnswer,
    TokenCount,
    chat_body,
    encode,
    read_body,
    tokenize_body,
)
from agents.errors import (
    CallFailedError,
    ChatError,
    RequestRefusedError,
    ServerLostError,
    ServerRefusedError,
)

logger = logging.getLogger(__name__)

LONGEST_BACKOFF = 30.0
TOKENIZE_ABSENT = "An estimate needs vLLM's /tokenize: use a vLLM server, or go without the estimate"
_NO_CONVERSATIONS = "Field required at ('body', 'prompt')"
CLOSED = "the chat client was closed before this call was answered"
_BODY_BYTES, _TOKEN_BYTES = 1 << 20, 200
"""Of an answer: what it may weigh at most without its tokens, and what one alternative of a token weighs."""
_COUNTING_SECONDS, _COUNTING_RETRIES = 15.0, 1
"""Counting tokens takes no model: who is silent for so long will stay it, and somebody waits."""
_SMALL_SECONDS = 15.0  # that the answer to a question of two words may take

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Call(Generic[T]):
    """What is sent, how its answer is read, and what has become of it so far."""

    path: str  # of the endpoint
    affinity: str  # see `ChatRequest`
    # makes the body, for each try when it is sent: calls that wait hold no encoded pictures
    body: Callable[[], bytes]
    read: Callable[[bytes, float], T]  # reads the answer, given the seconds it took
    most_bytes: int = MOST_BYTES  # that the answer may weigh
    seconds: float = math.inf  # that one try may take, within the client's own limit
    retries: int | None = None  # None: the client's
    failed_at: set[Endpoint] = field(default_factory=set)  # endpoints that were lost under this call
    avoid: Endpoint | None = None  # the endpoint that failed it last


@dataclass(eq=False, repr=False)
class ChatClient:
    """A `Backend` over HTTP.

    Raises:
        ServerRefusedError: An endpoint that is none, or given twice, or none at all.
    """

    servers: Sequence[str]  # endpoints, "http://127.0.0.1:8101", with or without /v1; at least one
    _: KW_ONLY
    model: str = ""  # name that must be served; "": the only one that is
    revision: str = ""  # of the weights, as the user knows it; "": a fingerprint where they lie here
    key_variable: str = "SELFTRAIN_API_KEY"  # environment variable that holds the API key
    maximum: int = 1024  # most calls in flight at one endpoint, >= 1; how many are worth it is found (`Knee`)
    timeout: float = 120.0  # seconds that one try may take
    retries: int = 4  # further tries after the first, >= 0
    patience: float = 120.0  # seconds that calls wait while no endpoint answers, or all send them away
    backoff: float = 0.5  # seconds before the first retry at most; doubles with each
    # seconds between the first two probes of a lost endpoint, and the most between two
    probe_delays: tuple[float, float] = (0.5, 10.0)
    seed: int = 0  # of the jitter
    same: Collection[str] = ()  # what endpoints must agree in besides the model: names of `Identity`'s fields
    on_event: OnEvent | None = None  # receives "retry", "down", "up", "limit" and "lacks", with their figures

    def __post_init__(self) -> None:
        self._urls = [plain_endpoint(text) for text in self.servers]
        if not self._urls or len(set(self._urls)) < len(self._urls):
            raise ServerRefusedError(f"the endpoints {self._urls}: expected one or more, each once")
        self._random = Random(self.seed)
        self.dialect = EVERYTHING  # what the servers understand, as far as is known
        self._fleet: Fleet | None = None
        self._identity: Identity | None = None
        self._calls: set[asyncio.Timeout] = set()  # those under way, wherever they are
        self._idle = asyncio.Event()  # whether there are none
        self._idle.set()
        self._closed = False
        self._answered = -math.inf  # when the last answer came

    async def open(self) -> Identity:
        """Reach the model; endpoints that do not answer yet are tolerated if one does.

        Raises:
            ServerLostError: None answered within the patience.
            ServerRefusedError: An endpoint refuses the key or does not serve the model, or two endpoints
                serve different ones.
        """
        if self._fleet is not None or self._closed:
            raise RuntimeError("a chat client is opened once")
        key, number = Key(self.key_variable), len(self._urls)
        most = max(1, min(self.maximum, open_connections(self.maximum * number) // number))
        self._fleet = Fleet(
            tuple(Endpoint(url, key, most, self.timeout) for url in self._urls), self._report,
            model=self.model, revision=self.revision, same=self.same, patience=self.patience,
            probe_delays=self.probe_delays, probe_seconds=min(self.timeout, PROBE_SECONDS),
        )  # fmt: skip
        try:
            self._identity = await self._fleet.open()
        except BaseException:
            await self.close()
            raise
        return self._identity

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the answer to one request; waits for its turn. Raises as `Backend.complete` says."""
        dialect = self.dialect
        while True:
            try:
                answer = await self._answer(self._completing(request, dialect))
            except (RequestRefusedError, ServerRefusedError) as error:
                changed = dialect.after(str(error), request.sampling.top_logprobs)
                if changed is None:
                    raise
                dialect = changed
                continue
            if dialect != self.dialect:
                self.dialect = dialect
                self._report("lacks", {"lacks": "; ".join(dialect.lacks())})
            return answer

    def _completing(self, request: ChatRequest, dialect: Dialect) -> Call[Completion]:
        _, model = self._opened()
        return Call(
            "/v1/chat/completions",
            request.affinity,
            lambda: encode(chat_body(request, model, dialect)),
            lambda raw, seconds: read_body(raw, ChatAnswer).completion(seconds=seconds),
            most_answer_bytes(request.sampling),
        )

    async def measure(self, request: ChatRequest) -> PromptSize:
        """Return the size of a prompt, by vLLM's /tokenize; raises as `complete`.

        Pictures take what the same messages without them do not. On LLaVA-OneVision, with 0 to 16 pictures,
        both figures were those of `Usage` after the call; a template that puts text beside each adds it here.
        """
        texts = [[part for part in turn.parts if isinstance(part, str)] for turn in request.messages]
        plain = tuple(
            Message(turn.role, tuple(text)) for turn, text in zip(request.messages, texts, strict=True)
        )
        whole = await self._count(request.messages, request.affinity)
        if plain == request.messages:
            return PromptSize(whole, 0)
        return PromptSize(whole, whole - await self._count(plain, request.affinity))

    def width(self) -> int:
        """Return some more than the calls that may be in flight: for every free place there is one."""
        limits = [one.limiter.limit for one in self.endpoints] or [min(START, self.maximum)]
        return sum(limits) + sum(limits) // 4

    async def close(self) -> None:
        """Let go of everything; calls under way end with CallFailedError."""
        self._closed = True
        if self._fleet is None:
            return
        for call in self._calls:
            if not call.expired():
                call.reschedule(now())
        await self._fleet.close()
        await self._idle.wait()
        for endpoint in self._fleet.all:
            await endpoint.close()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The servers with their calls in line and in flight, limit and state; none before `open`."""
        return self._fleet.all if self._fleet else ()

    def _opened(self) -> tuple[Fleet, str]:
        """Return the endpoints and the model's name."""
        if self._fleet is None or self._identity is None:
            raise RuntimeError("a chat client must be opened before it is asked")
        return self._fleet, self._identity.model

    async def _count(self, messages: Sequence[Message], affinity: str) -> int:
        _, model = self._opened()
        return await self._answer(
            Call(
                "/tokenize", affinity, lambda: encode(tokenize_body(messages, model)),
                lambda raw, _: read_body(raw, TokenCount).count,
                seconds=_COUNTING_SECONDS, retries=_COUNTING_RETRIES,
            )
        )  # fmt: skip

    async def _answer(self, call: Call[T]) -> T:
        """Return the answer to one call, after as many tries as it takes or is allowed."""
        if self._closed:
            raise CallFailedError(CLOSED)
        # `close` ends the call wherever it is: in line, in flight or between two tries
        end = asyncio.timeout(None)
        self._calls.add(end)
        self._idle.clear()
        retries = self.retries if call.retries is None else min(call.retries, self.retries)
        # that a count of tokens waits for nobody is known beforehand
        until, tries = now() + (self.patience if call.retries is None else 0.0), 1
        try:
            async with end:
                outcome = await self._attempt(call)
                while _is_passing(outcome) and (
                    tries <= retries or (outcome.kind in ("busy", "lost") and now() < until)
                ):
                    await self._pause(outcome, tries - 1, retries)
                    outcome, tries = await self._attempt(call), tries + 1
                if isinstance(outcome, Failure):
                    raise await self._error(outcome, call, tries)
                self._answered = now()
        except TimeoutError:
            raise CallFailedError(CLOSED) from None
        finally:
            self._calls.discard(end)
            if not self._calls:
                self._idle.set()
        return outcome

    async def _attempt(self, call: Call[T]) -> T | Failure:
        """Try endpoints until one has answered, or failed otherwise than by being lost for the first time."""
        fleet, _ = self._opened()
        while True:
            endpoint = await fleet.choose(call.affinity, call.avoid)
            async with endpoint.limiter:
                if not endpoint.up:
                    continue  # it went down while this call stood in line there
                outcome = await self._try_at(fleet, endpoint, call)
            if isinstance(outcome, Failure):
                call.avoid = endpoint
                if outcome.kind == "lost" and endpoint not in call.failed_at:
                    call.failed_at.add(endpoint)
                    continue
            return outcome

    async def _try_at(self, fleet: Fleet, endpoint: Endpoint, call: Call[T]) -> T | Failure:
        """Send one request, and pass on what comes of it about the endpoint."""
        sent, times_up = now(), endpoint.times_up
        came = await endpoint.exchange(call.path, call.body(), call.most_bytes, call.seconds, call.affinity)
        try:
            outcome: T | Failure = came if isinstance(came, Failure) else call.read(came, now() - sent)
        except BrokenAnswerError as error:
            outcome = Failure("broken", endpoint.key.clean(f"{endpoint.url}: {error}"))
        kind, limiter = outcome.kind if isinstance(outcome, Failure) else "answered", endpoint.limiter
        if (kind == "answered" and limiter.succeeded()) or (
            kind in ("busy", "late") and limiter.overloaded(sent, now())
        ):
            self._report("limit", {"endpoint": endpoint.url, "limit": limiter.limit})
        # a connection opened before the endpoint came up again says nothing about it now
        if isinstance(outcome, Failure) and kind == "lost" and times_up == endpoint.times_up:
            fleet.mark_down(endpoint, outcome.reason)
        return outcome

    async def _pause(self, failure: Failure, retry: int, retries: int) -> None:
        """Wait before a retry: exponential back-off with full jitter, after what the server asks for."""
        longest = min(LONGEST_BACKOFF, self.backoff * 2.0 ** min(retry, 30))
        wait = self._random.uniform(0.0, longest) + min(failure.wait or 0.0, self.patience)
        figures = {"reason": failure.reason, "retry": retry + 1, "of": retries, "wait": wait}
        self._report("retry", figures)
        await asyncio.sleep(wait)

    async def _error(self, failure: Failure, call: Call[T], tries: int) -> ChatError:
        if _is_passing(failure):
            told = f"no answer in {tries} tries; the last: {failure.reason}"
            if call.retries is not None or await self._answers_anybody():
                return CallFailedError(told)
            return ServerLostError(
                f"{told}. Nor was a small question answered. What was paid for is kept: see to the server and"
                " give the same command again, it goes on where it stopped"
            )
        # Ray Serve LLM's path of this name counts no conversations, and says so in the words of a bad request
        uncounted = failure.status in (404, 405) or _NO_CONVERSATIONS in failure.reason
        if call.path == "/tokenize" and uncounted:
            return ServerRefusedError(f"{failure.reason}. {TOKENIZE_ABSENT}")
        return (RequestRefusedError if failure.kind == "request" else ServerRefusedError)(failure.reason)

    async def _answers_anybody(self) -> bool:
        """Return whether what answered a call with nothing answers others, as no probe of an endpoint shows.

        A proxy's page, a quota that is spent or an engine that hangs would fail all calls that follow too,
        and each would count as the fault of its post.
        """
        since, question = now(), ChatRequest((Message("user", ("Say yes.",)),), None, Sampling(8))
        call = self._completing(question, self.dialect)
        call.seconds, call.retries = _SMALL_SECONDS, self.retries
        try:
            async with asyncio.timeout(4 * _SMALL_SECONDS):  # it waits for no Retry-After of an hour
                await self._answer(call)
        except RequestRefusedError:
            return True
        except (CallFailedError, TimeoutError):
            return self._answered > since  # who is slow with one is not with all
        return True

    def _report(self, event: str, figures: Mapping[str, Any]) -> None:
        """Pass an event on. A hook that fails must not fail the call, or the probe, that it is about."""
        if self.on_event is None:
            return
        try:
            self.on_event(event, figures)
        except Exception:
            logger.exception("on_event failed at %r", event)


def most_answer_bytes(sampling: Sampling) -> int:
    """Return what an honest answer weighs at most."""
    return _BODY_BYTES + sampling.max_tokens * (sampling.top_logprobs + 2) * _TOKEN_BYTES


def _is_passing(outcome: object) -> TypeGuard[Failure]:
    """Return whether this is a failure that another try may not meet."""
    return isinstance(outcome, Failure) and outcome.kind not in ("request", "us")
