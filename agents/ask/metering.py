"""Asking at a price: the cache first, then the model, within a cap; an answer is paid for once.

An answer that cannot be used is no answer: what it cost is noted, and it is asked for again, each time with a
draw of its own. Every attempt has a cache key of its own, so that what a later one brought is found again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import neg
from typing import Any, NamedTuple, Protocol, runtime_checkable

from agents.ask.answer_schema import AnyForm, ParsedAnswer, parse_answer
from agents.ask.cache import CachedAnswer, Keeper, Note, ResponseCache, kept_row, refuse_above, unusable_row
from agents.ask.postgres_cache import Claims, PostgresCache
from agents.ask.prepare import PictureLoader, PreparedPost, encoder
from agents.client.base import (
    Backend,
    ChatRequest,
    Completion,
    Identity,
    Message,
    PromptSize,
    Recorded,
    Sampling,
    Usage,
    cache_keys,
)
from agents.errors import JudgmentError, ServerRefusedError, StoreError

RETRY_TEMPERATURE = 0.7
"""Of attempts after the first: at 0 the model would write the same unusable answer again."""
ANOTHER_LOOK = 0.2
"""Seconds between looks for an answer that another process is buying."""


class StoppedError(Exception):
    """Nothing is bought any more: the work is ending, and this call was not begun."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a model is asked, whatever it is asked."""

    answer_tokens: int | None = None  # most tokens of an answer; None: as many as its schema needs
    thinking_tokens: int = 0  # added to them for a model that thinks before it answers
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # further keys of every request
    attempts: int = 3  # most answers to one prompt, 1 or more
    keyed: tuple[Recorded, ...] = ()  # what else is part of the cache key

    def most_tokens(self, schema: AnyForm) -> int:
        """Return the most tokens of an answer, thoughts included."""
        return (self.answer_tokens or schema.max_tokens) + self.thinking_tokens


USUAL = Manner()


@dataclass(frozen=True, slots=True)
class PostPrompt:
    """One thing that is asked about one post."""

    post: PreparedPost  # the post
    messages: tuple[Message, ...]  # the whole conversation, the post's pictures included
    schema: AnyForm  # of the answer
    role: str  # who is asked: "reviewer", "annotator", "question:NAME"
    step: int = 0  # as in `Judgment`
    seed: int = 0  # of the model's draws where an answer has to be asked for again

    def request(self, attempt: int = 0, manner: Manner = USUAL) -> ChatRequest:
        """Return the call that asks; a later attempt is drawn instead of likeliest, by a seed of its own."""
        sampling = Sampling(
            manner.most_tokens(self.schema),
            temperature=RETRY_TEMPERATURE if attempt else 0.0,
            # where nothing is drawn a seed says nothing, and would only have the answer bought once more
            seed=self.seed + attempt if attempt else 0,
            top_logprobs=self.schema.top_logprobs,
        )
        # all calls on a post go to one server, which holds what they share in its prefix cache
        return ChatRequest(
            self.messages, self.schema.to_json(), sampling, self.post.post.id, extra=manner.extra_body
        )


@dataclass(frozen=True, slots=True)
class Response:
    """What came back on a prompt."""

    answer: ParsedAnswer  # the usable answer, or one that is FAILED
    source: str  # what answered, as judgments name it: "vlm:MODEL@REVISION"
    fault: str = ""  # why there is no usable answer; empty if there is one
    attempts: int = 0  # answers asked for; 0: none came
    cache_key: str = ""  # of the answer that counts, its first 16 hex digits; empty when none came

    @classmethod
    def failed(cls, fault: str, source: str) -> Response:
        """Return the response where no answer came."""
        return cls(ParsedAnswer.failed(fault), source, fault)


class UsageTotals(NamedTuple):
    """What was asked of a model, and what it cost."""

    calls: int = 0  # answers that the model gave, unusable ones included
    stored: int = 0  # answers that were there already and cost nothing
    failed: int = 0  # prompts without a usable answer after all attempts
    usage: Usage = Usage()  # tokens of the calls
    seconds: float = 0.0  # sum over the calls, which run side by side

    def plus(self, other: UsageTotals) -> UsageTotals:
        """Return both together."""
        return UsageTotals(
            self.calls + other.calls, self.stored + other.stored, self.failed + other.failed,
            self.usage.plus(other.usage), self.seconds + other.seconds,
        )  # fmt: skip

    def minus(self, earlier: UsageTotals) -> UsageTotals:
        """Return what came since `earlier`."""
        calls, stored, failed, usage, seconds = earlier
        return self.plus(UsageTotals(-calls, -stored, -failed, Usage(*map(neg, usage)), -seconds))

    def to_json(self) -> dict[str, Any]:
        """Return flat JSON values."""
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
        """Return what this process has asked and paid so far."""
        ...

    def close(self) -> None:
        """Let go of whatever answers; safe to repeat."""
        ...


class Account:
    """What one run may spend and has spent, over all the models that it asks."""

    def __init__(self, cache: ResponseCache, run: str, cap: int | None) -> None:
        self.cache, self.run, self.cap = cache, run, cap
        self.keeper = Keeper(cache)
        self.totals = UsageTotals()
        self.stopped = False
        self._claims = Claims(cache, run, cap) if isinstance(cache, PostgresCache) else None
        self._spent = cache.spent(run).total
        self._under_way = self._expected = 0  # calls that may be paid, and their tokens, at most
        self._dearest = cache.dearest(run)  # largest prompt so far; None before there is one

    def resume(self) -> None:
        """Buy again after `stopped`; others may have paid for the same run meanwhile."""
        self.stopped = False
        self._spent = self.cache.spent(self.run).total

    def count(self, more: UsageTotals) -> None:
        """Add to the totals."""
        self.totals = self.totals.plus(more)

    def paid(self, held: int, usage: Usage, seconds: float) -> None:
        """Count an answer that came, in place of what `reserve` held back for it."""
        self._under_way, self._expected = self._under_way - 1, self._expected - held
        self._spent += usage.total
        self._dearest = max(self._dearest or 0, usage.prompt)
        self.count(UsageTotals(calls=1, usage=usage, seconds=seconds))

    async def reserve(self, key: str, max_tokens: int) -> int | None:
        """Hold back the tokens that a call may cost, and return them; its prompt may be as dear as any.

        None: another process makes that call, or has made it; nothing is held back.

        Raises:
            TokenCapError: The cap leaves less.
            StoppedError: The work ends before its turn comes.
        """
        # alone, until it is known what a prompt takes: else as many as may be under way would pass the cap
        while self.cap is not None and self._dearest is None and self._under_way:
            await asyncio.sleep(ANOTHER_LOOK)
            if self.stopped:
                raise StoppedError
        self._under_way += 1
        try:
            if self._claims is not None:
                ours = await self._claims.claim(key, max_tokens)
                self._under_way -= not ours
                return 0 if ours else None
            if self.cap is None:
                return 0
            held = (self._dearest or 0) + max_tokens
            refuse_above(self.cap, self._spent, self._expected, held)
        except BaseException:
            self._under_way -= 1
            raise
        self._expected += held
        return held

    def release(self, key: str, held: int) -> None:
        """Let go of what `reserve` held back, where nothing was paid."""
        self._under_way, self._expected = self._under_way - 1, self._expected - held
        if self._claims is not None:
            self._claims.release(key)


class MeteredClient:
    """A model that answers for one run, each prompt paid for once. Lives on one event loop.

    Its `backend` is open and says that it is `identity`; no more than `width` answers are on their way, up to
    the disk. See `agents.ask.runner.Runner` for the rest.
    """

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        account: Account,
        manner: Manner,
        pictures: PictureLoader,
        *,
        width: int,
    ) -> None:
        self.identity = identity
        self.source = f"vlm:{identity.model}" + (f"@{identity.revision[:12]}" if identity.revision else "")
        self._backend, self._account, self._manner, self._pictures = backend, account, manner, pictures
        known: dict[Recorded, str] = {
            "server": identity.server,
            "context": str(identity.context),
            "encoder": encoder(),
        }
        self._recorded = ", ".join(f"{name} {value}" for name, value in known.items())
        self._also: dict[str, str] = {name: known[name] for name in manner.keyed}
        self._under_way: dict[str, asyncio.Future[ParsedAnswer]] = {}
        self._room = asyncio.Semaphore(width)

    async def ask(self, prompt: PostPrompt) -> Response:
        """Return the answer to `prompt`, from the cache or from the model.

        Raises:
            TokenCapError: Asking would cost more than the cap leaves.
            ChatError: No answer came; nothing was paid.
            StoreError: The answer cannot be kept.
            StoppedError: The work is ending.
        """
        attempts = self._manner.attempts
        requests = [prompt.request(attempt, self._manner) for attempt in range(attempts)]
        also = self._also | prompt.schema.keyed()
        keys = cache_keys(requests, self.identity, also)
        # whichever attempt brought it: those before it could not be used and are not bought again
        if (kept := await self._stored(keys, prompt.schema)) is not None:
            self._account.count(UsageTotals(stored=1))
            key, answer = kept
            return Response(answer, self.source, "", keys.index(key) + 1, key[:16])
        for attempt, (key, request) in enumerate(zip(keys, requests, strict=True)):
            answer = await self._answer(key, request, prompt, attempt)
            if not answer.fault:
                return Response(answer, self.source, "", attempt + 1, key[:16])
        self._account.count(UsageTotals(failed=1))
        fault = f"no usable answer in {attempts} attempt(s); the last was {answer.fault}"
        return Response(answer, self.source, fault, attempts)

    async def measure(self, prompt: PostPrompt) -> PromptSize:
        """Return the size of a prompt; no answer is asked for."""
        request = await self._pictures.load(prompt.request(0, self._manner))
        return await self._backend.measure(request)

    async def _stored(self, keys: Sequence[str], schema: AnyForm) -> tuple[str, ParsedAnswer] | None:
        """Return the first kept answer under the keys, with its key; those that are none are taken away."""
        while (found := await self._account.keeper.find(keys)) is not None:
            key, cached = found
            try:
                return key, ParsedAnswer.from_json(cached.answer, schema)
            except JudgmentError as error:
                self._account.cache.discard(key, str(error))
        return None

    async def _answer(self, key: str, request: ChatRequest, prompt: PostPrompt, attempt: int) -> ParsedAnswer:
        """Buy one answer; whoever asks the same meanwhile waits for this one."""
        if key in self._under_way:
            return await asyncio.shield(self._under_way[key])
        future: asyncio.Future[ParsedAnswer] = asyncio.get_running_loop().create_future()
        self._under_way[key] = future
        try:
            note = Note(
                self._account.run, prompt.post.post.id, prompt.role, prompt.step, self.identity.model,
                attempt, self._recorded,
            )  # fmt: skip
            request = await self._pictures.load(request)
            # until it is on the disk: who is killed, or meets a full disk, loses no more than was under way
            async with self._room:
                answer = await self._buy(key, request, prompt.schema, note)
            future.set_result(answer)
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else StoppedError())
            future.exception()  # whoever waits gets it; if nobody does, it is no news
            raise
        finally:
            del self._under_way[key]
        return answer

    async def _complete(self, request: ChatRequest) -> Completion:
        completion = await self._backend.complete(request)
        if self._account.cap is not None and not completion.counted:
            raise ServerRefusedError(
                "the server's answers carry no `usage`, so what a call costs is not known and no cap on"
                " tokens can be kept: take away vlm.token_cap, or use a server that counts tokens (vLLM does)"
            )
        return completion

    async def _buy(self, key: str, request: ChatRequest, schema: AnyForm, note: Note) -> ParsedAnswer:
        account = self._account
        if account.stopped:
            raise StoppedError
        while (held := await account.reserve(key, request.sampling.max_tokens)) is None:
            if (kept := await self._stored([key], schema)) is not None:
                return kept[1]
            await asyncio.sleep(ANOTHER_LOOK)
            if account.stopped:
                raise StoppedError
        try:
            completion = await self._complete(request)
        except BaseException:
            account.release(key, held)
            raise
        usage, seconds = completion.usage, completion.seconds
        account.paid(held, usage, seconds)
        answer = parse_answer(completion, schema)
        if answer.fault:
            row = unusable_row(answer.fault, usage, seconds, note, key)
        else:
            cached = CachedAnswer(answer.to_json(), completion.text, completion.finish, usage, seconds)
            row = kept_row(key, cached, note)
        # nobody gets the answer before it is on the disk: what is acted on is never paid for again
        try:
            await account.keeper.keep(row)
        except StoreError:
            account.stopped = True  # before its place is free: the next answer could not be kept either
            raise
        return answer
