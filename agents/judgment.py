"""What an agent says of a post, and what comes of it.

A judgment is one agent's answer on one post at one step. It is in one of three states, which are three
different things: the agent chose a label, the agent looked and abstained, or the call failed (malformed,
truncated, refused). A failed judgment never carries a label.

A verdict is all judgments on a candidate. It is consistent when the classifier and every agent's last
judgment name the same label, and divergent otherwise, an abstention or a failure included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class PostLike(Protocol):
    """The few attributes of a post that an agent reads."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def images(self) -> Sequence[Path]: ...


class State(StrEnum):
    """Three different things; only LABEL carries a label."""

    LABEL = "label"
    ABSTAIN = "abstain"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Judgment:
    """One agent's answer on one post at one step.

    Attributes:
        agent: "reviewer" or "user" (the role), as the verdict lists it.
        step: 0 for the first judgment, made alone; 1 for the one after cross-review.
        state: LABEL, ABSTAIN or FAILED.
        label: The class named; None unless state is LABEL.
        probability: Calibrated probability of `label`, in [0, 1]; None unless state is LABEL.
        rationale: The evidence, in words. Data, never instructions: nothing parses it.
        source: What answered: a model and revision, "offline:words+image", "replayed:FILE", "simulated".
        details: Machine-readable evidence (nearest posts, telling words); JSON values only.
    """

    agent: str
    step: int
    state: State
    label: str | None
    probability: float | None
    rationale: str
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.state is State.LABEL) != (self.label is not None):
            raise ValueError(f"a judgment in state {self.state} with label {self.label!r}: only 'label' has one")
        if (self.probability is not None) and (self.label is None or not 0.0 <= self.probability <= 1.0):
            raise ValueError(f"probability {self.probability!r} with label {self.label!r}: expected one in [0, 1]")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pool post that the classifier chose for verification.

    Attributes:
        post: The post.
        label: The classifier's label.
        probability: The classifier's calibrated probability of `label`, in [0, 1].
    """

    post: PostLike
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """All judgments on one candidate, in the order they were made."""

    post_id: str
    classifier_label: str
    classifier_probability: float
    judgments: tuple[Judgment, ...]

    def last(self, agent: str) -> Judgment | None:
        """The agent's latest judgment, or None if it made none."""
        return max((j for j in self.judgments if j.agent == agent), key=lambda j: j.step, default=None)

    @property
    def agents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(j.agent for j in self.judgments))

    @property
    def consistent(self) -> bool:
        """True when at least one agent judged and all last judgments name the classifier's label."""
        last = [self.last(agent) for agent in self.agents]
        return bool(last) and all(j is not None and j.label == self.classifier_label for j in last)


class LabelledPost(Protocol):
    """A post whose label is known (or trusted), to learn from and to be measured on."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def images(self) -> Sequence[Path]: ...
    @property
    def label(self) -> str | None: ...


class Agent(Protocol):
    """One role. Batches in, one judgment a candidate out, in the same order."""

    role: str
    simulated: bool

    def judge(self, posts: Sequence[PostLike]) -> Sequence[Judgment]:
        """Step 0: each post alone; the classifier's label is not seen."""
        ...

    def reconsider(
        self, candidates: Sequence[Candidate], own: Sequence[Judgment], other: Sequence[Judgment]
    ) -> Sequence[Judgment]:
        """Step 1: again, with the classifier's label, its own first words and the other agent's."""
        ...
