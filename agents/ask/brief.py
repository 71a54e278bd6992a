"""What the agents are told of a task, in plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Brief:
    """A task as an agent reads it.

    Attributes:
        task: Its name.
        policy: The text that says what belongs to which class.
        classes: Class name -> meaning in one line, two or more.
        roles: Role -> description that replaces the built-in one.
    """

    task: str
    policy: str
    classes: Mapping[str, str]
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def listing(self) -> str:
        """A line a class, with its meaning."""
        return "\n".join(f"- {name}: {meaning}" for name, meaning in self.classes.items())

    @property
    def unsure(self) -> str:
        """The answer of an agent that cannot tell; never the name of a class."""
        return unsure_beside(self.classes)


def unsure_beside(answers: Collection[str]) -> str:
    """The answer of an agent that cannot tell, where `answers` are those of one that can."""
    words = ("unsure", "cannot tell", "no answer", "abstain")
    return next(word for word in words if word not in answers)
