"""What a server understands of a request, found out by what it refuses.

A call begins with everything. A server that refuses one of its keys by name is asked again without, and what
was found stays for the calls that follow. Models that refuse `max_tokens` and `temperature` (OpenAI's that
think), schemas with lengths (strict mode), more than 5, 8 or 20 alternatives, log-probabilities or schemas at
all, and a system turn are served by the same code as vLLM, which takes everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from agents.client.base import Message

Form = Literal["schema", "plain_schema", "json", "text"]
_FORMS: tuple[Form, ...] = ("schema", "plain_schema", "json", "text")
_LADDER = (20, 8, 5, 0)
MOST_LOGPROBS = 64


class Dialect(NamedTuple):
    """What is left of a request."""

    most_logprobs: int = MOST_LOGPROBS  # alternatives of each token; 0: none come
    # how an answer is held to its form: by the schema, by one without lengths, by JSON mode, or not at all.
    # The prompt words the form besides, and whatever comes is checked
    form: Form = "schema"
    tokens_key: str = "max_tokens"  # the name of the limit on an answer
    temperature: bool = True  # whether it can be chosen
    seed: bool = True
    system: bool = True  # whether there is a system turn; else its words open the first turn

    def after(self, refusal: str, wanted: int = MOST_LOGPROBS) -> Dialect | None:
        """Return what to ask with after a refusal in these words; None: it is about something else.

        Args:
            refusal: The server's.
            wanted: Alternatives that the request was made for.
        """
        for pattern, step in _STEPS:
            if re.search(pattern, refusal, re.IGNORECASE):
                sent = min(self.most_logprobs, wanted)
                now = self._replace(most_logprobs=sent) if step is _fewer_logprobs else self
                if (changed := step(now)) is not None:
                    return changed
        return None

    def lacks(self) -> Iterator[str]:
        """Yield what the server does not do, and what is done instead."""
        if self.most_logprobs < _LADDER[0]:
            yield (
                "no log-probabilities: labels come without their probability"
                if not self.most_logprobs
                else f"{self.most_logprobs} alternatives of a token at most: labels come without their"
                " probability where these are too few"
            )
        if self.form in ("json", "text"):
            yield f"no schema: answers are {'in JSON' if self.form == 'json' else 'free text'} and checked"
        if not self.temperature:
            yield "the temperature cannot be chosen: an answer bought twice may differ"
        if not self.system:
            yield "no system turn: the policy opens the first one"


EVERYTHING = Dialect()


def _fewer_logprobs(now: Dialect) -> Dialect | None:
    fewer = next((count for count in _LADDER if count < now.most_logprobs), None)
    return None if fewer is None else now._replace(most_logprobs=fewer)


def _looser(now: Dialect) -> Dialect | None:
    place = _FORMS.index(now.form) + 1
    return now._replace(form=_FORMS[place]) if place < len(_FORMS) else None


def _without(**given: Any) -> Callable[[Dialect], Dialect | None]:  # noqa: ANN401 -- fields of `Dialect`
    def step(now: Dialect) -> Dialect | None:
        changed = now._replace(**given)
        return None if changed == now else changed

    return step


_NOT = r"(?:not|n't|un|only|forbidden|deprecated)"
_STEPS: tuple[tuple[str, Callable[[Dialect], Dialect | None]], ...] = (
    (
        rf"use .?max_completion_tokens|max_tokens\W.{{0,60}}{_NOT}\s?(?:supported|permitted|allowed)",
        _without(tokens_key="max_completion_tokens"),
    ),
    (rf"temperature.{{0,60}}{_NOT}", _without(temperature=False)),
    (r"\bseed\b", _without(seed=False)),
    # TGI's word for alternatives is top_n_tokens
    (r"log_?probs|log-?probabilities|top_n_tokens", _fewer_logprobs),
    (rf"system.{{0,30}}{_NOT}|{_NOT}.{{0,30}}system (?:role|message|prompt|turn)", _without(system=False)),
    (r"response_format|json_?schema|schema|minLength|maxLength|grammar|guided|structured", _looser),
)


def plain_schema(schema: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return a schema without the keys that OpenAI's strict mode and its kin refuse."""
    if isinstance(schema, dict):
        return {k: plain_schema(v) for k, v in schema.items() if k not in ("minLength", "maxLength")}
    return schema


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return a conversation whose system turn stands at the beginning of the first turn after it."""
    if len(messages) < 2 or messages[0].role != "system":
        return tuple(messages)
    first, second, *rest = messages
    words = "\n".join(part for part in first.parts if isinstance(part, str))
    return (Message(second.role, (f"{words}\n\n", *second.parts)), *rest)
