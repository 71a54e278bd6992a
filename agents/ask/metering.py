"""Asking at a price: the cache first, then the model, within a cap; an answer is paid for once.

An answer that cannot be used is asked for again, each time with a draw of its own, so every attempt has a
cache key of its own and none is paid twice either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from agents.ask.answer_schema import AnswerSchema, ParsedAnswer, parse_answer
from agents.ask.cache import CachedAnswer, Note, ResponseCache
from agents.ask.prepare import PreparedPost
from agents.client.base import Backend, ChatRequest, Identity, Message, Sampling, Usage, cache_key
from agents.errors import TokenCapError

RETRY_TEMPERATURE = 0.7
"""Of attempts after the first: at 0 the model would write the same unusable answer again."""


class StoppedError(Exception):
    """Nothing is bought any more: the work is ending, and this call was not begun."""


@dataclass(frozen=True, slots=True)
class PostPrompt:
    """One thing that is asked about one post."""

    post: PreparedPost  # the post
    messages: tuple[Message, ...]  # the whole conversation, the post's pictures included
    schema: AnswerSchema  # of the answer
    role: str  # who is asked: "reviewer", "annotator", "question:NAME"
    step: int = 0  # as in `Judgment`
    seed: int = 0  # of the model's draws where an answer has to be asked for again
    top_logprobs: int = 8  # how many alternatives come back with each token, 0-20

    def request(self, attempt: int = 0) -> ChatRequest:
        """Return the call that asks; a later attempt is drawn instead of likeliest, by a seed of its own."""
        sampling = Sampling(
            self.schema.max_tokens,
            temperature=RETRY_TEMPERATURE if attempt else 0.0,
            seed=self.seed + attempt,
            top_logprobs=self.top_logprobs,
        )
        # all calls on a post go to one server, which holds what they share in its prefix cache
        return ChatRequest(self.messages, self.schema.to_json(), sampling, affinity=self.post.post.id)


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

    def minus(self, earlier: UsageTotals) -> UsageTotals:
        """Return what came since `earlier`."""
        used = Usage(*(a - b for a, b in zip(self.usage, earlier.usage, strict=True)))
        return UsageTotals(
            self.calls - earlier.calls, self.stored - earlier.stored, self.failed - earlier.failed, used,
            self.seconds - earlier.seconds,
        )  # fmt: skip

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


class MeteredClient:
    """A model that answers for one run, each prompt paid for once. Lives on one event loop.

    Its `backend` is open and says that it is `identity`; the rest is as for `agents.ask.runner.Runner`.
    """

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        cache: ResponseCache,
        *,
        run: str,
        attempts: int = 3,
        token_cap: int | None = None,
    ) -> None:
        self._backend = backend
        self.identity = identity
        self.source = f"vlm:{identity.model}" + (f"@{identity.revision[:12]}" if identity.revision else "")
        self._cache = cache
        self._run = run
        self._attempts = attempts
        self._cap = token_cap
        self._spent = cache.spent(run).total
        self._expected = 0  # tokens of calls under way, at most
        self._dearest = 0  # largest prompt so far
        self._under_way: dict[str, asyncio.Future[ParsedAnswer]] = {}
        self._stopped = False
        self.totals = UsageTotals()

    def stop(self) -> None:
        """Buy nothing more; what is under way may still arrive and is kept."""
        self._stopped = True

    def resume(self) -> None:
        """Buy again; others may have paid for the same run meanwhile."""
        self._stopped = False
        self._spent = self._cache.spent(self._run).total

    async def ask(self, prompt: PostPrompt) -> Response:
        """Return the answer to `prompt`, from the cache or from the model.

        Raises:
            TokenCapError: Asking would cost more than the cap leaves.
            ChatError: No answer came; nothing was paid.
            StoreError: The answer cannot be kept.
            StoppedError: The work is ending.
        """
        for attempt in range(self._attempts):
            request = prompt.request(attempt)
            key = cache_key(request, self.identity)
            answer = await self._answer(key, request, prompt, attempt)
            if not answer.fault:
                return Response(answer, self.source, "", attempt + 1, key[:16])
        self.totals = self.totals._replace(failed=self.totals.failed + 1)
        fault = f"no usable answer in {self._attempts} attempt(s); the last was {answer.fault}"
        return Response(answer, self.source, fault, self._attempts, key[:16])

    async def _answer(self, key: str, request: ChatRequest, prompt: PostPrompt, attempt: int) -> ParsedAnswer:
        """Read or buy one answer; whoever asks the same meanwhile waits for this one."""
        cached = self._cache.get(key)
        if cached is not None:
            self.totals = self.totals._replace(stored=self.totals.stored + 1)
            return ParsedAnswer.from_json(cached.answer)
        if key in self._under_way:
            return await asyncio.shield(self._under_way[key])
        future: asyncio.Future[ParsedAnswer] = asyncio.get_running_loop().create_future()
        self._under_way[key] = future
        try:
            cached = await self._buy(request, prompt.schema)
            note = Note(self._run, prompt.post.post.id, prompt.role, prompt.step, self.identity.model)
            self._cache.put(key, cached, note, attempt)
            answer = ParsedAnswer.from_json(cached.answer)
            future.set_result(answer)
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else StoppedError())
            future.exception()  # whoever waits gets it; if nobody does, it is no news
            raise
        finally:
            del self._under_way[key]
        return answer

    async def _buy(self, request: ChatRequest, schema: AnswerSchema) -> CachedAnswer:
        if self._stopped:
            raise StoppedError
        reserved = self._reserve(request)
        try:
            completion = await self._backend.complete(request)
        finally:
            self._expected -= reserved
        usage = completion.usage
        self._spent += usage.total
        self._dearest = max(self._dearest, usage.prompt)
        self.totals = self.totals._replace(
            calls=self.totals.calls + 1,
            usage=self.totals.usage.plus(usage),
            seconds=self.totals.seconds + completion.seconds,
        )
        answer = parse_answer(completion, schema).to_json()
        return CachedAnswer(answer, completion.text, completion.finish, usage, completion.seconds)

    def _reserve(self, request: ChatRequest) -> int:
        """Hold back the tokens that a call may cost; its prompt may be as dear as any so far."""
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
