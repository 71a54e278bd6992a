"""Posts and agents that the tests of `agents` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agents.judgment import Judgment, State

FLOWERS = ["rose", "tulip", "lily", "daisy", "orchid", "garden", "petal", "bloom", "meadow", "violet"]
METALS = ["iron", "copper", "zinc", "steel", "cobalt", "forge", "anvil", "alloy", "furnace", "nickel"]
COMMON = ["the", "a", "of", "with", "and", "some", "very", "near", "old", "new", "this", "that"]


@dataclass(frozen=True)
class Post:
    id: str
    text: str = ""
    images: tuple[Path, ...] = ()
    label: str | None = None


@dataclass
class Scripted:
    """Answers by post id and step: a label, None for an abstention, "!" for a failure."""

    role: str
    first: dict[str, str | None]
    second: dict[str, str | None] = field(default_factory=dict)
    simulated: bool = False
    asked: list[list[str]] = field(default_factory=list)
    seen: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def judge(self, posts):
        return [self._answer(self.first[post.id], 0) for post in posts]

    def reconsider(self, candidates, own, other):
        self.asked.append([candidate.post.id for candidate in candidates])
        self.seen += [(c.label, a.label, b.label) for c, a, b in zip(candidates, own, other, strict=True)]
        return [self._answer(self.second[candidate.post.id], 1) for candidate in candidates]

    def describe(self):
        return {"role": self.role}

    def _answer(self, label, step):
        if label == "!":
            return Judgment(self.role, step, State.FAILED, None, None, "", "scripted")
        state = State.ABSTAIN if label is None else State.LABEL
        return Judgment(self.role, step, state, label, None if label is None else 0.9, "", "scripted")


def write(words: list[str], random: np.random.Generator) -> str:
    return " ".join([*random.choice(words, 3), *random.choice(COMMON, 4)])


def make_posts(count: int, seed: int, prefix: str = "p") -> list[Post]:
    """Half of each class, alternating."""
    random = np.random.default_rng(seed)
    return [
        Post(f"{prefix}{i}", write((FLOWERS, METALS)[i % 2], random), (), ("flower", "metal")[i % 2])
        for i in range(count)
    ]
