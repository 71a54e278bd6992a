"""Requests and answers as they stand in JSON, in the form of OpenAI's chat completions.

What was seen of vLLM 0.32: `usage.prompt_tokens_details` is null unless the server runs with
--enable-prompt-tokens-details; tokens that the JSON grammar forbids come back among the alternatives with a
log-probability of -9999; /tokenize expands pictures as the chat endpoint does; a picture that cannot be
decoded, more pictures than --limit-mm-per-prompt allows, a prompt longer than the context and more than 20
alternatives are all answered with 400 and a message that says which.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from agents.client.base import ChatRequest, Completion, Message, Part, Token, Usage
from agents.errors import ServerRefusedError

IMPOSSIBLE = -1000.0
"""Alternatives at or below this log-probability were masked by the grammar, not weighed by the model."""


class BrokenAnswerError(ValueError):
    """A body that is no answer: not JSON, or without what an answer must have. Never leaves this package."""


def chat_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """Return the body of a chat completion; pictures are encoded here, so call it when it is sent."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
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
    return {"model": model, "messages": [_message(message) for message in messages]}


def without_pictures(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the same turns, their text alone."""
    return tuple(Message(m.role, tuple(p for p in m.parts if isinstance(p, str))) for m in messages)


def read_count(raw: bytes) -> int:
    """Return the number of tokens in an answer of /tokenize."""
    return _count(_object(raw), "count")


def read_completion(raw: bytes, *, logprobs: bool, seconds: float) -> Completion:
    """Read the answer in the body of a chat completion.

    Args:
        raw: The body.
        logprobs: Whether log-probabilities were asked for.
        seconds: How long the call took.

    Raises:
        BrokenAnswerError: It is not one.
        ServerRefusedError: The server does not report tokens, or no log-probabilities although it was asked.
    """
    body = _object(raw)
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        listed = ((choice.get("logprobs") or {}).get("content") or []) if logprobs else []
        tokens = tuple(_token(entry) for entry in listed)
        finish = choice["finish_reason"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BrokenAnswerError(f"no chat completion, {_shape(error)}: {_opening(raw)}") from error
    if not all(isinstance(value, str) for value in (text, refusal, finish)):
        raise BrokenAnswerError(f"content, refusal or finish_reason is no text: {_opening(raw)}")
    usage = _usage(body)
    if logprobs and text and not tokens:
        raise ServerRefusedError(
            "the server sends no log-probabilities although they are asked for, so the probability of a "
            "label cannot be known: use a server that does (vLLM), or ask for none (top_logprobs 0)"
        )
    return Completion(text, finish, usage, tokens, refusal, seconds)


def _message(message: Message) -> dict[str, Any]:
    """Return a turn; one text alone as a plain string, which every chat template accepts."""
    if not message.parts:
        content: str | list[dict[str, Any]] = ""
    elif len(message.parts) == 1 and isinstance(message.parts[0], str):
        content = message.parts[0]
    else:
        content = [_part(part) for part in message.parts]
    return {"role": message.role, "content": content}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:{part.media_type};base64,{b64encode(part.data).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _token(entry: Mapping[str, Any]) -> Token:
    text, logprob = str(entry["token"]), float(entry["logprob"])
    listed = [(str(one["token"]), float(one["logprob"])) for one in entry.get("top_logprobs") or []]
    alternatives = [one for one in listed if one[1] > IMPOSSIBLE]
    if text not in (name for name, _ in alternatives):
        alternatives.append((text, logprob))  # drawn from further down than the list reaches
    return Token(text, logprob, tuple(alternatives))


def _usage(body: Mapping[str, Any]) -> Usage:
    """Read the tokens of a call; `cached` and `image` are 0 where the server does not tell them apart."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        raise ServerRefusedError(
            "the server's answers carry no `usage`: what a call costs cannot be known, so no cap on tokens "
            "could be kept. Use a server that counts tokens (vLLM does)"
        )
    details = usage.get("prompt_tokens_details") or {}
    pictures = details.get("multimodal_tokens") or {}
    return Usage(
        prompt=_count(usage, "prompt_tokens"),
        cached=_count(details, "cached_tokens", missing=0),
        image=_count(pictures, "image", missing=0),
        completion=_count(usage, "completion_tokens"),
    )


def _count(where: Mapping[str, Any], name: str, *, missing: int | None = None) -> int:
    value = where.get(name)
    if value is None and missing is not None:
        return missing
    if not isinstance(value, int) or value < 0:
        raise BrokenAnswerError(f"{name} is {value!r}: expected a number of tokens")
    return value


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise BrokenAnswerError(f"no JSON: {_opening(raw)}") from error
    if not isinstance(body, dict):
        raise BrokenAnswerError(f"no JSON object: {_opening(raw)}")
    return body


def _shape(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _opening(raw: bytes) -> str:
    """Return the first words of a body, for a message."""
    return repr(raw[:120].decode("utf-8", "replace")) + ("..." if len(raw) > 120 else "")
