"""Requests and answers as they stand in JSON, in the form of OpenAI's chat completions.

What was seen of vLLM 0.32: `usage.prompt_tokens_details` is null unless the server runs with
--enable-prompt-tokens-details; tokens that the JSON grammar forbids come back among the alternatives with a
log-probability of -9999; /tokenize expands pictures as the chat endpoint does; a picture that cannot be
decoded, more pictures than --limit-mm-per-prompt allows, a prompt longer than the context and more
alternatives than --max-logprobs are all answered with 400 and a message that says which.

Nothing here trusts the server: figures outside their range, a log-probability that is none, text in place of
an object make an answer broken, never a value.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from agents.client.base import ChatRequest, Completion, Message, Part, Picture, Token, Usage
from agents.client.dialect import EVERYTHING, Dialect, plain_schema, without_system

IMPOSSIBLE = -1000.0
"""Alternatives at or below this log-probability were masked by the grammar, not weighed by the model."""

Body = TypeVar("Body", bound=BaseModel)
Count = Annotated[int, Field(ge=0, le=10**9)]
# printable and short: it goes into files and onto terminals
ModelName = Annotated[
    str, Field(max_length=400, pattern=r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e]*$")
]
LogProb = Annotated[float, Field(le=0.001)]  # a hair above 0 is rounding; above that it is none


class BrokenAnswerError(ValueError):
    """A body that is no answer: not JSON, or without what an answer must have. Never leaves this package."""


def chat_body(request: ChatRequest, model: str, dialect: Dialect = EVERYTHING) -> dict[str, Any]:
    """Return the body of a chat completion, as far as the server understands it.

    Pictures are encoded here, so call it when it is sent.
    """
    sampling = request.sampling
    messages = request.messages if dialect.system else without_system(request.messages)
    body = tokenize_body(messages, model) | {dialect.tokens_key: sampling.max_tokens}
    if dialect.temperature:
        body["temperature"] = sampling.temperature
    if dialect.seed:
        body["seed"] = sampling.seed
    if alternatives := min(sampling.top_logprobs, dialect.most_logprobs):
        body |= {"logprobs": True, "top_logprobs": alternatives}
    if request.schema is not None and dialect.form != "text":
        schema = dict(request.schema)
        shown = schema if dialect.form == "schema" else plain_schema(schema)
        answer = {"name": "answer", "schema": shown, "strict": True}
        body["response_format"] = (
            {"type": "json_object"}
            if dialect.form == "json"
            else {"type": "json_schema", "json_schema": answer}
        )
    return body | dict(request.extra)


def tokenize_body(messages: Sequence[Message], model: str) -> dict[str, Any]:
    """Return the body that asks vLLM for a prompt's tokens, the opening of the model's turn included."""
    return {"model": model, "messages": [{"role": m.role, "content": _content(m.parts)} for m in messages]}


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]  # a plain string is what every chat template accepts
    return content_parts(parts)


def content_parts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return texts and pictures as a list of parts."""
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _data_url(part)}}
        for part in parts
    ]


@lru_cache(maxsize=64)
def _data_url(picture: Picture) -> str:
    """Return a picture as a URL, made once for the calls on a post, which follow each other closely."""
    return f"data:{picture.media_type};base64,{b64encode(picture.data).decode('ascii')}"


# ---- what comes back: no more of it than is used ---------------------------------------------------------


class _PromptDetails(BaseModel):
    cached: Count | None = Field(None, validation_alias="cached_tokens")
    image: Count | None = Field(None, validation_alias=AliasPath("multimodal_tokens", "image"))


class _Alternative(BaseModel):
    token: str
    logprob: LogProb


class _Written(_Alternative):
    top_logprobs: list[_Alternative] | None = None

    @field_validator("logprob")
    @classmethod
    def _is_one(cls, value: float) -> float:
        if not math.isfinite(value):
            raise PydanticCustomError("impossible", "a token that was written cannot be impossible")
        return value

    def token_of_answer(self, decode: Callable[[str], str]) -> Token:
        likely = (one for one in self.top_logprobs or () if one.logprob > IMPOSSIBLE)
        listed = [(decode(one.token), one.logprob) for one in likely]
        text = decode(self.token)
        if text not in (one for one, _ in listed):
            listed.append((text, self.logprob))  # drawn from further down than the list reaches
        return Token(text, self.logprob, tuple(listed))


def _byte_level() -> dict[str, int]:
    """Return the letters by which GPT-2's vocabulary and its heirs write bytes: a space is an accented G."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_level()


def _from_bytes(token: str) -> str:
    if all(letter in _BYTES for letter in token):
        return bytes(_BYTES[letter] for letter in token).decode("utf-8", "replace")
    return token


def _decoder(written: Sequence[_Written], content: str) -> Callable[[str], str]:
    """Return what makes tokens text again: some servers send them as the vocabulary has them."""
    ways: tuple[Callable[[str], str], ...] = (
        lambda token: token, _from_bytes, lambda token: token.replace("\u2581", " "),
    )  # fmt: skip
    whole = "".join(one.token for one in written)
    fits = (way for way in ways if content.strip() in way(whole))
    return next(fits, ways[0])


class ChatAnswer(BaseModel):
    """The body of a chat completion, its first choice alone."""

    content: str | None = Field(None, validation_alias=AliasPath("choices", 0, "message", "content"))
    # vLLM says "reasoning", others "reasoning_content"
    reasoning: str | None = Field(
        None,
        validation_alias=AliasChoices(
            AliasPath("choices", 0, "message", "reasoning"),
            AliasPath("choices", 0, "message", "reasoning_content"),
        ),
    )
    refusal: str | None = Field(None, validation_alias=AliasPath("choices", 0, "message", "refusal"))
    finish: str | None = Field(validation_alias=AliasPath("choices", 0, "finish_reason"))
    written: list[_Written] | None = Field(
        None, validation_alias=AliasPath("choices", 0, "logprobs", "content")
    )
    prompt: Count | None = Field(None, validation_alias=AliasPath("usage", "prompt_tokens"))
    completed: Count | None = Field(None, validation_alias=AliasPath("usage", "completion_tokens"))
    # cached and image tokens, where the server counts them apart
    details: _PromptDetails | None = Field(None, validation_alias=AliasPath("usage", "prompt_tokens_details"))

    def completion(self, *, seconds: float) -> Completion:
        """Return the answer in it, with log-probabilities where there are any."""
        details = self.details or _PromptDetails()
        usage = Usage(self.prompt or 0, details.cached or 0, details.image or 0, self.completed or 0)
        written, content = self.written or [], self.content or ""
        decode = _decoder(written, content)
        return Completion(
            content, self.finish or "stop", usage, tuple(one.token_of_answer(decode) for one in written),
            self.refusal or "", seconds, self.reasoning or "",
            counted=self.prompt is not None and self.completed is not None,
        )  # fmt: skip


class TokenCount(BaseModel):
    """The body of an answer of vLLM's /tokenize."""

    count: Count


class ModelCard(BaseModel):
    """One served model; `parent` is the model under an adapter."""

    id: ModelName
    root: ModelName | None = None
    parent: ModelName | None = None
    max_model_len: Count | None = None


class ModelList(BaseModel):
    """The body of /v1/models."""

    data: list[ModelCard]

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, found: object) -> object:
        return {"data": found} if isinstance(found, list) else found  # as Together answers


class ServerVersion(BaseModel):
    """The body of vLLM's /version."""

    version: Annotated[str, Field(max_length=80, pattern=r"^[\w.+\- ]*$")]


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """Read a body.

    Raises:
        BrokenAnswerError: It is none of this kind; the message says where, and how it begins.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    fault = "no JSON" if first["type"] == "json_invalid" else f"no {kind.__name__}, {place}: {first['msg']}"
    opening = repr(raw[:120].decode("utf-8", "replace")) + ("..." if len(raw) > 120 else "")
    raise BrokenAnswerError(f"{fault}: {opening}")
