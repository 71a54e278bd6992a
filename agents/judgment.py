"""What an agent says of a post, and what comes of it.

A judgment is one agent's answer on one post at one step. It is in one of three states, which are three
different things: the agent chose a label, the agent looked and abstained, or the call failed (malformed,
truncated, refused). A failed judgment never carries a label.

A verdict is all judgments on a candidate. It is consistent when the classifier and every agent's last
judgment name the same label, and divergent otherwise, an abstention or a failure included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from agents.errors import JudgmentError


class PostLike(Protocol):
    """The few attributes of a post that an agent reads."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def images(self) -> Sequence[Path]: ...


ROLES = ("reviewer", "user")
"""Of the two agents, in their order; a judge alone has none of them."""

LEAST = 1e-6
"""A probability below this is taken for this: no agent is surer than that."""


class State(StrEnum):
    """Three different things; only LABEL carries a label."""

    LABEL = "label"
    ABSTAIN = "abstain"
    FAILED = "failed"


_TEXT = (str, "a text")
_FIELDS: Mapping[str, tuple[Any, str]] = {
    "agent": _TEXT, "rationale": _TEXT, "source": _TEXT,
    "step": (Integral, "a whole number"), "state": (State, "one of `State`"),
    "label": (str | None, "the name of a class, or None"), "probability": (Real | None, "a number, or None"),
    "details": (Mapping, "a mapping"),
}  # fmt: skip
"""What a judgment is made of -> its type, and how that is said."""


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
        """Refuse what could not be read again once it is written."""
        for name, (kind, expected) in _FIELDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise JudgmentError(f"the {name} of a judgment is {value!r}: expected {expected}")
        if (self.state is State.LABEL) != (self.label is not None):
            raise JudgmentError(
                f"a judgment in state {self.state} with label {self.label!r}: only 'label' has one"
            )
        if (self.probability is not None) and (self.label is None or not 0.0 <= self.probability <= 1.0):
            raise JudgmentError(
                f"probability {self.probability!r} with label {self.label!r}: expected one in [0, 1]"
            )
        if self.step < 0:
            raise JudgmentError(f"step {self.step}: expected 0 (alone) or later")

    @property
    def argued(self) -> bool:
        """Whether this is the case that the agent was told to make for a side, and no opinion of its own."""
        return "argues" in self.details

    @property
    def reasons(self) -> str:
        """The rationale, after the clause of the policy that decides where the agent named one."""
        clause = self.details.get("clause")
        return f"[{clause}] {self.rationale}" if clause else self.rationale

    @property
    def reasoning(self) -> str:
        """What a thinking model wrote before its answer; empty for others."""
        return str(self.details.get("reasoning", ""))

    def log_probs(self, classes: Sequence[str]) -> tuple[float, ...] | None:
        """Return the log-probability that the agent gives each class; None where it gives none.

        An agent that weighs the classes gives one to each, where it abstains too; of one that is sure of its
        label to some degree the others share the rest.
        """
        probs, log_odds = self.details.get("probabilities"), self.details.get("log_odds")
        try:
            if probs is not None:
                return tuple(math.log(max(probs[name], LEAST)) for name in classes)
            if log_odds is not None:
                total = math.log(sum(math.exp(log_odds[name]) for name in classes))
                return tuple(log_odds[name] - total for name in classes)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise JudgmentError(
                f"what {self.agent!r} of {self.source!r} weighed has no number for each class ({error!r})"
            ) from error
        if self.label is None or self.probability is None:
            return None
        rest = (1 - self.probability) / (len(classes) - 1)
        return tuple(
            math.log(max(self.probability if name == self.label else rest, LEAST)) for name in classes
        )

    def to_json(self) -> dict[str, Any]:
        """Return a record of JSON values, floats rounded to `DECIMALS` places."""
        return {
            "agent": self.agent,
            "step": rounded(self.step),
            "state": str(self.state),
            "label": self.label,
            "probability": rounded(self.probability),
            "rationale": self.rationale,
            "source": self.source,
            "details": rounded(self.details),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Judgment:
        """Return the judgment of a record.

        Raises:
            JudgmentError: A missing or unknown key, a value of the wrong type, an unknown state, a label in
                a state that has none, a probability outside [0, 1].
        """
        fields = _checked(record, _JUDGMENT_TYPES, "judgment")
        if fields["state"] not in list(State):
            raise JudgmentError(f"unknown state {fields['state']!r}: expected one of {list(map(str, State))}")
        return cls(**{**fields, "state": State(fields["state"]), "details": dict(fields["details"])})


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
class Posterior:
    """What classifier and agents together say of a post.

    Attributes:
        probs: Class name -> probability, in the order of the classes; they add up to 1.
        log_odds: Party -> what it added to the log-odds of `label` over the runner-up, in nats: a rationale
            in numbers. The parties' shares add up to those log-odds.
        evidence: Class name -> what the agents' answers alone say of it: how likely they are if the post is
            of this class, as shares that add up to 1. The post is learned by it: what the classifier knows
            already is not taught to it again, but for the share that a rule grants it.
        threshold: Probability of `label` from which on the post is learned, in [0, 1].
        weight: How much it counts in training beside a labelled post, in [0, 1].
    """

    probs: Mapping[str, float]
    log_odds: Mapping[str, float]
    evidence: Mapping[str, float]
    threshold: float
    weight: float

    @property
    def label(self) -> str:
        """The most probable class; of equals the first."""
        return max(self.probs, key=lambda name: self.probs[name])

    @property
    def probability(self) -> float:
        """Of `label`, as it is written: whether it reaches a threshold is the same once it is read."""
        return round(self.probs[self.label], DECIMALS)

    def evidence_for(self, name: str) -> float:
        """Return what the answers alone say of one class against the mean of the others, in [0, 1]."""
        others = (1 - self.evidence[name]) / (len(self.evidence) - 1)
        return self.evidence[name] / (self.evidence[name] + others)

    def to_json(self) -> dict[str, Any]:
        """A record of JSON values, floats rounded."""
        return {
            "probs": rounded(self.probs),
            "log_odds": rounded(self.log_odds),
            "evidence": rounded(self.evidence),
            "threshold": self.threshold,
            "weight": rounded(self.weight),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Posterior:
        """The posterior of a record.

        Raises:
            JudgmentError: A missing or unknown key, a value of the wrong type, no class.
        """
        fields = _checked(record, _POSTERIOR_TYPES, "posterior")
        if not fields["probs"]:
            raise JudgmentError("a posterior over no class: expected a probability for each")
        maps = {name: dict(fields[name]) for name in ("probs", "log_odds", "evidence")}
        return cls(**{**fields, **maps})


def opinions(judgments: Sequence[Judgment]) -> Sequence[Judgment]:
    """Return an agent's judgments less the cases that it was told to make; all, where there is no other."""
    return [one for one in judgments if not one.argued] or judgments


SURE = 0.9
"""Posterior probability from which on a label needs nobody's look."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All judgments on one candidate, by step and role.

    Attributes:
        post_id: The candidate.
        classifier_label, classifier_probability: What the classifier said of it.
        judgments: Of every agent and step.
        deciders: The agents whose last judgments count; empty: all that judged.
        posterior: What they say together, where the run decides by it; None: by unanimity.
    """

    post_id: str
    classifier_label: str
    classifier_probability: float
    judgments: tuple[Judgment, ...]
    deciders: tuple[str, ...] = ()
    posterior: Posterior | None = None

    @property
    def label(self) -> str:
        """The label that the post would be learned with."""
        return self.classifier_label if self.posterior is None else self.posterior.label

    @property
    def agents(self) -> tuple[str, ...]:
        """Roles in the order of their first judgment."""
        return tuple(dict.fromkeys(j.agent for j in self.judgments))

    def by_agent(self) -> dict[str, tuple[Judgment, ...]]:
        """Return role -> its judgments, the earliest first."""
        steps = sorted(self.judgments, key=lambda judgment: judgment.step)
        return {agent: tuple(j for j in steps if j.agent == agent) for agent in self.agents}

    def last(self, agent: str) -> Judgment | None:
        """Return the agent's latest judgment, or None if it made none."""
        return max((j for j in self.judgments if j.agent == agent), key=lambda j: j.step, default=None)

    @property
    def consistent(self) -> bool:
        """Whether the post is learned.

        By unanimity: somebody decided, and all deciders' last judgments name the classifier's label. By
        posterior: its label is probable enough.
        """
        if self.posterior is not None:
            return self.posterior.probability >= self.posterior.threshold
        last = [self.last(agent) for agent in self.deciders or self.agents]
        return bool(last) and all(j is not None and j.label == self.classifier_label for j in last)

    @property
    def doubtful(self) -> bool:
        """Whether people may be asked: the post is not learned, or with a label that is not sure."""
        unsure = self.posterior is not None and self.posterior.probability < SURE
        return unsure or not self.consistent

    def to_json(self) -> dict[str, Any]:
        """Return a record of JSON values; `consistent` stands in it for the reader's sake."""
        return {
            "post_id": self.post_id,
            "classifier_label": self.classifier_label,
            "classifier_probability": rounded(self.classifier_probability),
            "consistent": self.consistent,
            "judgments": [judgment.to_json() for judgment in self.judgments],
            "deciders": list(self.deciders),
            "posterior": None if self.posterior is None else self.posterior.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Verdict:
        """Return the verdict of a record.

        Raises:
            JudgmentError: As `Judgment.from_json`, or `consistent` contradicts the judgments.
        """
        fields = _checked(record, _VERDICT_TYPES, "verdict")
        stated = fields.pop("consistent")
        judgments = tuple(Judgment.from_json(judgment) for judgment in fields.pop("judgments"))
        deciders = tuple(str(role) for role in fields.pop("deciders"))
        posterior = fields.pop("posterior")
        together = None if posterior is None else Posterior.from_json(posterior)
        verdict = cls(judgments=judgments, deciders=deciders, posterior=together, **fields)
        if verdict.consistent != stated:
            raise JudgmentError(
                f"verdict on {verdict.post_id!r}: consistent = {stated} stands against its judgments"
            )
        return verdict


class LabelledPost(PostLike, Protocol):
    """A post whose label is known (or trusted), to learn from and to be measured on."""

    @property
    def label(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Accepted:
    """A pseudo-labelled post from which the agents learn beside the labelled ones.

    Attributes:
        post: The post.
        label: Its pseudo-label.
        target: Probability of `label`, in (0, 1]; the rest is spread evenly over the other classes.
        weight: How much the post counts beside a labelled one, above 0. At .3 the agents grow with the set
            without echoing themselves (measured: at 1 the consistent set is .1 to .3 points less precise).
    """

    post: PostLike
    label: str
    target: float = 1.0
    weight: float = 0.3


class Agent(Protocol):
    """One role. Batches in, one judgment a post out, in the same order.

    An agent that answers over a network runs its calls concurrently inside; batches stay the interface. A
    call that fails for one post is a FAILED judgment, not an error. `agents.panel.CrossReview` puts two
    agents of different roles into cross-review; one that learns implements `Learner` too.
    """

    @property
    def role(self) -> str:
        """The name under which it judges: "reviewer", "user"; every judgment of its carries it."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether the answers are drawn from the labels instead of from the posts."""
        ...

    def judge(self, posts: Sequence[PostLike]) -> Sequence[Judgment]:
        """Return a judgment of step 0 on each of B posts; the classifier's label is not seen.

        Raises:
            AgentError: Nobody can be asked any more.
        """
        ...

    def reconsider(
        self, candidates: Sequence[Candidate], own: Sequence[Judgment], other: Sequence[Judgment]
    ) -> Sequence[Judgment]:
        """Return a judgment of step 1 on each of B candidates, made after seeing the others.

        Args:
            candidates: With the classifier's label and its calibrated probability in [0, 1].
            own: This agent's judgments of step 0, B of them.
            other: The other agent's.

        Raises:
            AgentError: Nobody can be asked any more.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what answers and how, in JSON values, for the run's environment file."""
        ...


@runtime_checkable
class Learner(Protocol):
    """An agent that learns from the posts of this run, again in each round."""

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Forget what was learned and learn anew; `pool` posts are seen without labels.

        Raises:
            LearningError: Posts from which nothing can be learned; the message carries the counts.
        """
        ...

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> Sequence[Judgment]:
        """Return step-0 judgments on B posts of known label, as if none of them had been learned from.

        Raises:
            NotFittedError: Before `fit`.
        """
        ...


_NUMBER, _TEXT_OR_NONE, _NUMBER_OR_NONE = (int, float), (str, type(None)), (int, float, type(None))
_JUDGMENT_TYPES: dict[str, type | tuple[type, ...]] = {
    "agent": str, "step": int, "state": str, "label": _TEXT_OR_NONE, "probability": _NUMBER_OR_NONE,
    "rationale": str, "source": str, "details": Mapping,
}  # fmt: skip
_VERDICT_TYPES: dict[str, type | tuple[type, ...]] = {
    "post_id": str, "classifier_label": str, "classifier_probability": _NUMBER, "consistent": bool,
    "judgments": list, "deciders": list, "posterior": (Mapping, type(None)),
}  # fmt: skip
_POSTERIOR_TYPES: dict[str, type | tuple[type, ...]] = {
    "probs": Mapping, "log_odds": Mapping, "evidence": Mapping, "threshold": _NUMBER, "weight": _NUMBER,
}  # fmt: skip


# ---- records of JSON values: exact keys, checked types, floats that are the same on every machine --------

DECIMALS = 6
"""Decimal places of every float in a record."""


def _checked(record: Mapping[str, Any], types: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the fields of `record`, exactly those of `types`, each of its type; a bool is no number."""
    if not isinstance(record, Mapping):
        raise JudgmentError(f"a {what} is a JSON object, not {type(record).__name__}")
    if set(record) != set(types):
        missing, unknown = sorted(set(types) - set(record)), sorted(set(record) - set(types))
        raise JudgmentError(f"a {what} record with missing keys {missing} and unknown keys {unknown}")
    for key, value in record.items():
        if not isinstance(value, types[key]) or (isinstance(value, bool) and types[key] is not bool):
            raise JudgmentError(f"{what}: {key} is a {type(value).__name__}: {value!r}")
    return dict(record)


def rounded(value: object) -> object:
    """Return `value` as JSON values: floats rounded to `DECIMALS` places, tuples as lists, keys as texts.

    Raises:
        JudgmentError: A value that JSON does not have (NaN and infinity included).
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Integral):  # of NumPy, as the next may be
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise JudgmentError(f"{value!r} is not a JSON number")
        return round(float(value), DECIMALS) + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    raise JudgmentError(f"a {type(value).__name__} is not a JSON value: {value!r}")
