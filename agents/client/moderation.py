"""A client of moderation classifiers: OpenAI's /v1/moderations and those that answer like it.

What they flag is put into words, "flagged" and the categories from the surest to the least, or "safe", which
a guard's table maps to classes (`agents.ask.guard`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from agents.client.base import ChatRequest, Completion, Usage
from agents.client.client import Call, ChatClient
from agents.client.dialect import Dialect
from agents.client.messages import content_parts, encode, read_body

Score = Annotated[float, Meta(ge=0.0, le=1.0)]


class _Result(Struct):
    categories: dict[str, bool | None]
    category_scores: dict[str, Score | None] = field(default_factory=dict)


class ModerationAnswer(Struct):
    """The body of an answer; its first result counts."""

    results: Annotated[list[_Result], Meta(min_length=1)]

    def completion(self, seconds: float) -> Completion:
        """Return it in words. No tokens are counted: there is nothing to pay by them."""
        result = self.results[0]
        flagged = [name for name, found in result.categories.items() if found]
        flagged.sort(key=lambda name: -(result.category_scores.get(name) or 0.0))
        text = "\n".join(["flagged", *flagged]) if flagged else "safe"
        return Completion(text, "stop", Usage(), seconds=seconds)


class ModerationClient(ChatClient):
    """A `Backend` that has posts classified; of a request only the last turn is sent."""

    def _completing(self, request: ChatRequest, dialect: Dialect) -> Call[Completion]:
        _, model = self._opened()

        return Call(
            "/v1/moderations", request.affinity,
            lambda: encode({"model": model, "input": content_parts(request.messages[-1].parts)}),
            lambda raw, seconds: read_body(raw, ModerationAnswer).completion(seconds),
        )  # fmt: skip
