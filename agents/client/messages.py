"""Requests and answers as they stand in JSON, in the form of OpenAI's chat completions.

What was seen of vLLM 0.32: `usage.prompt_tokens_details` is null unless the server runs with
--enable-prompt-tokens-details; tokens that the JSON grammar forbids come back among the alternatives with a
log-probability of -9999; /tokenize expands pictures as the chat endpoint does; a picture that cannot be
decoded, more pictures than --limit-mm-per-prompt allows, a prompt longer than the context and more than 20
alternatives are all answered with 400 and a message that says which.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import AliasPath, BaseModel, Field, NonNegativeInt, ValidationError

from agents.client.base import ChatRequest, Completion, Message, Part, Token, Usage
from agents.errors import ServerRefusedError

IMPOSSIBLE = -1000.0
"""Alternatives at or below this log-probability were masked by the grammar, not weighed by the model."""

Body = TypeVar("Body", bound=BaseModel)


class BrokenAnswerError(ValueError):
    """A body that is no answer: not JSON, or without what an answer must have. Never leaves this package."""


def chat_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """Return the body of a chat completion; pictures are encoded here, so call it when it is sent."""
    sampling = request.sampling
    body = tokenize_body(request.messages, model) | {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
    }
    if sampling.top_logprobs > 0:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if request.schema is not None:
        answer = {"name": "answer", "schema": dict(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": answer}
    return body


def tokenize_body(messages: Sequence[Message], model: str) -> dict[str, Any]:
    """Return the body that asks vLLM for a prompt's tokens, the opening of the model's turn included."""
    return {"model": model, "messages": [{"role": m.role, "content": _content(m.parts)} for m in messages]}


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]  # a plain string is what every chat template accepts
    return [_part(part) for part in parts]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:{part.media_type};base64,{b64encode(part.data).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url}}


# ---- what comes back: no more of it than is used ---------------------------------------------------------


class _PromptDetails(BaseModel):
    cached: NonNegativeInt | None = Field(None, validation_alias="cached_tokens")
    image: NonNegativeInt | None = Field(None, validation_alias=AliasPath("multimodal_tokens", "image"))


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Written(_Alternative):
    top_logprobs: list[_Alternative] | None = None

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
    refusal: str | None = Field(None, validation_alias=AliasPath("choices", 0, "message", "refusal"))
    finish: str = Field(validation_alias=AliasPath("choices", 0, "finish_reason"))
    written: list[_Written] | None = Field(
        None, validation_alias=AliasPath("choices", 0, "logprobs", "content")
    )
    prompt: NonNegativeInt | None = Field(None, validation_alias=AliasPath("usage", "prompt_tokens"))
    completed: NonNegativeInt | None = Field(None, validation_alias=AliasPath("usage", "completion_tokens"))
    # cached and image tokens, where the server counts them apart
    details: _PromptDetails | None = Field(None, validation_alias=AliasPath("usage", "prompt_tokens_details"))

    def completion(self, *, logprobs: bool, seconds: float) -> Completion:
        """Return the answer in it, with log-probabilities where they were asked for.

        Raises:
            ServerRefusedError: The server reports no tokens, or no log-probabilities although it was asked.
        """
        if self.prompt is None or self.completed is None:
            raise ServerRefusedError(
                "the server's answers carry no `usage`: what a call costs cannot be known, so no cap on "
                "tokens could be kept. Use a server that counts tokens (vLLM does)"
            )
        details = self.details or _PromptDetails()
        usage = Usage(self.prompt, details.cached or 0, details.image or 0, self.completed)
        written = self.written or [] if logprobs else []
        decode = _decoder(written, self.content or "")
        tokens = tuple(one.token_of_answer(decode) for one in written)
        if logprobs and self.content and not tokens:
            raise ServerRefusedError(
                "the server sends no log-probabilities although they are asked for, so the probability of a "
                "label cannot be known: use a server that does (vLLM), or ask for none (top_logprobs 0)"
            )
        if written and not any(one.top_logprobs for one in written):
            raise ServerRefusedError(
                "the server sends the log-probability of what the model wrote, but no alternatives to it"
                " (top_logprobs is empty), so every label would look certain: use a server that sends them"
                " (vLLM, up to --max-logprobs), or ask for none (top_logprobs 0)"
            )
        return Completion(self.content or "", self.finish, usage, tokens, self.refusal or "", seconds)


class TokenCount(BaseModel):
    """The body of an answer of vLLM's /tokenize."""

    count: NonNegativeInt


class ModelCard(BaseModel):
    """One served model; `parent` is the model under an adapter."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(BaseModel):
    """The body of /v1/models."""

    data: list[ModelCard]


class ServerVersion(BaseModel):
    """The body of vLLM's /version."""

    version: str


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
