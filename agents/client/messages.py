"""Requests and answers as they stand in JSON, in the form of OpenAI's chat completions.

What was seen of vLLM 0.32: `usage.prompt_tokens_details` is null unless the server runs with
--enable-prompt-tokens-details; tokens that the JSON grammar forbids come back among the alternatives with a
log-probability of -9999; /tokenize expands pictures as the chat endpoint does; a picture that cannot be
decoded, more pictures than --limit-mm-per-prompt allows, a prompt longer than the context and more
alternatives than --max-logprobs are all answered with 400 and a message that says which.

Nothing here trusts the server: figures outside their range, a log-probability that is none, text in place of
an object make an answer broken, never a value. Bodies are read by msgspec: with some hundred alternatives in
an answer, reading it is what a call costs most of.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from agents.client.base import ChatRequest, Completion, Message, Part, Picture, Token, Usage
from agents.client.dialect import EVERYTHING, Dialect, plain_schema, without_system

IMPOSSIBLE = -1000.0
"""Alternatives at or below this log-probability were masked by the grammar, not weighed by the model."""

_FINISH = 80  # characters of the server's word for why it stopped

Body = TypeVar("Body")
_MOST_TOKENS = 10**9
Count = Annotated[int, Meta(ge=0, le=_MOST_TOKENS)]
# printable and short: it goes into files and onto terminals
_UNSEEN = r"\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff"
ModelName = Annotated[str, Meta(max_length=400, pattern=rf"\A[^{_UNSEEN}]*\Z")]
LogProb = Annotated[float, Meta(le=0.001)]  # a hair above 0 is rounding; above that it is none


class BrokenAnswerError(ValueError):
    """A body that is no answer: not JSON, or without what an answer must have. Never leaves this package."""


def chat_body(request: ChatRequest, model: str, dialect: Dialect = EVERYTHING) -> dict[str, Any]:
    """Return the body of a chat completion, as far as the server understands it, for `encode`."""
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
        else {"type": "image_url", "image_url": {"url": msgspec.Raw(part.url or data_url(part))}}
        for part in parts
    ]


def data_url(picture: Picture) -> bytes:
    """Return a picture as a URL in JSON."""
    return b'"data:%b;base64,%b"' % (picture.media_type.encode(), b64encode(picture.data))


def encode(body: object) -> bytes:
    """Return a body in JSON; pictures are in it already, and are copied."""
    return msgspec.json.encode(body)


# ---- what comes back: no more of it than is used ---------------------------------------------------------


class _PromptDetails(Struct):
    cached_tokens: Count | None = None
    multimodal_tokens: dict[str, Count | None] | None = None


class _Usage(Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    # cached and image tokens, where the server counts them apart
    prompt_tokens_details: _PromptDetails | None = None


# the collector of garbage need not follow them: they hold no cycle
class _Alternative(Struct, gc=False):
    token: str
    logprob: LogProb


class _Written(_Alternative, gc=False):
    top_logprobs: list[_Alternative] | None = None

    def token_of_answer(self, decode: Callable[[str], str] | None) -> Token:
        if not math.isfinite(self.logprob):
            raise BrokenAnswerError("a token that was written cannot be impossible")
        text = self.token if decode is None else decode(self.token)
        return Token(text, self.logprob, _Alternatives(self, text, decode))


class _Alternatives:
    """The likeliest tokens in a place, read when they are looked at: of most places they never are."""

    __slots__ = ("_decode", "_text", "_written")

    def __init__(self, written: _Written, text: str, decode: Callable[[str], str] | None) -> None:
        self._written, self._text, self._decode = written, text, decode

    def __iter__(self) -> Iterator[tuple[str, float]]:  # the token itself is always one of them
        listed, decode = self._written.top_logprobs or (), self._decode
        likely = [(one.token, one.logprob) for one in listed if one.logprob > IMPOSSIBLE]
        if decode is not None:
            likely = [(decode(one), value) for one, value in likely]
        if all(one != self._text for one, _ in likely):
            likely.append((self._text, self._written.logprob))  # from further down than the list reaches
        return iter(likely)


class _LogProbs(Struct):
    content: list[_Written] | None = None


class _Turn(Struct):
    content: str | None = None
    reasoning: str | None = None  # vLLM's key
    reasoning_content: str | None = None  # others'
    refusal: str | None = None


class _Choice(Struct):
    finish_reason: str | None
    message: _Turn
    logprobs: _LogProbs | None = None


def _byte_level() -> dict[str, int]:
    """Return the letters by which GPT-2's vocabulary and its heirs write bytes: a space is an accented G."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_level()


def _from_bytes(token: str) -> str:
    if all(letter in BYTES for letter in token):
        return bytes(BYTES[letter] for letter in token).decode("utf-8", "replace")
    return token


def _decoder(written: Sequence[_Written], content: str) -> Callable[[str], str] | None:
    """Return what makes tokens text again where they come as the vocabulary has them; else None."""
    whole, content = "".join([one.token for one in written]), content.strip()
    ways: tuple[Callable[[str], str], ...] = (_from_bytes, lambda token: token.replace("\u2581", " "))
    return None if content in whole else next((way for way in ways if content in way(whole)), None)


class ChatAnswer(Struct):
    """The body of a chat completion; its first choice counts."""

    choices: Annotated[list[_Choice], Meta(min_length=1)]
    usage: _Usage | None = None

    @property
    def detailed(self) -> bool:
        """Whether cached and image tokens are counted apart."""
        return self.usage is not None and self.usage.prompt_tokens_details is not None

    def completion(self, *, seconds: float) -> Completion:
        """Return the answer in it, with log-probabilities where there are any.

        Raises:
            BrokenAnswerError: A token that was written has the log-probability of one that cannot be.
        """
        choice, used = self.choices[0], self.usage or _Usage()
        details, turn = used.prompt_tokens_details or _PromptDetails(), choice.message
        image = (details.multimodal_tokens or {}).get("image")
        usage = Usage(
            used.prompt_tokens or 0, details.cached_tokens or 0, image or 0, used.completion_tokens or 0
        )
        written, content = (choice.logprobs and choice.logprobs.content) or [], turn.content or ""
        decode = _decoder(written, content)
        return Completion(
            content, (choice.finish_reason or "stop")[:_FINISH], usage,
            tuple([one.token_of_answer(decode) for one in written]),
            turn.refusal or "", seconds, turn.reasoning or turn.reasoning_content or "",
            counted=used.prompt_tokens is not None and used.completion_tokens is not None,
        )  # fmt: skip


class TokenCount(Struct):
    """The body of an answer of vLLM's /tokenize."""

    count: Count


class ModelCard(Struct):
    """One served model; `parent` is the model under an adapter."""

    id: ModelName
    root: ModelName | None = None
    parent: ModelName | None = None
    max_model_len: Count | None = None
    metadata: Any = None  # of Ray Serve LLM; others have anything under this name

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together; 0: the server does not say."""
        told = self.metadata.get("max_request_context_length") if isinstance(self.metadata, dict) else None
        return self.max_model_len or (told if type(told) is int and 0 < told <= _MOST_TOKENS else 0)


class ModelList(Struct):
    """The body of /v1/models."""

    data: list[ModelCard]


class ServerVersion(Struct):
    """The body of vLLM's /version."""

    version: Annotated[str, Meta(max_length=80, pattern=r"\A[\w.+\- ]*\Z")]


_READERS: dict[Any, msgspec.json.Decoder[Any]] = {}


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """Read a body.

    Raises:
        BrokenAnswerError: It is none of this kind; the message says where, and how it begins.
    """
    if kind not in _READERS:
        _READERS[kind] = msgspec.json.Decoder(kind)
    found: Body
    try:
        found = _READERS[kind].decode(raw)
    except msgspec.ValidationError as error:
        fault = f"no {getattr(kind, '__name__', kind)}, {error}"
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        fault = "no JSON"
        # Python's servers write -Infinity, which is no JSON, for what cannot be
        if b"Infinity" in raw:
            with suppress(ValueError, RecursionError):
                value = json.loads(raw)
                json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
                return msgspec.convert(value, kind)
    else:
        return found
    opening = repr(raw[:120].decode("utf-8", "replace")) + ("..." if len(raw) > 120 else "")
    raise BrokenAnswerError(f"{fault}: {opening}")


def read_cards(raw: bytes) -> list[ModelCard]:
    """Read the models that a server lists, in an envelope or, as Together does, without one."""
    if raw.lstrip().startswith(b"["):
        return read_body(raw, list[ModelCard])
    return read_body(raw, ModelList).data
