"""A question as an agent reads it, in plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["choice", "count", "final"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question.

    Attributes:
        name: Under which its answers are kept and told.
        wording: As the agent reads it; of a "final" question the prompt file says it.
        answers: Two or more. Of a "count" they are not offered: a number of pictures is.
        kind: "choice" (one of the answers), "count" (how many pictures show it), or "final" (the classes of
            the task, asked directly).
    """

    name: str
    wording: str
    answers: tuple[str, ...]
    kind: Kind = "choice"

    def offered(self, pictures: int) -> tuple[str, ...]:
        """What can be answered about a post of which `pictures` are seen.

        Numbers are offered as texts: their closing quote is what tells 1 from 10 in the log-probabilities.

        Raises:
            ValueError: Nothing to count.
        """
        if self.kind != "count":
            return self.answers
        if pictures < 1:
            raise ValueError(f"question {self.name!r} counts pictures and the post has none")
        return tuple(str(count) for count in range(pictures + 1))
