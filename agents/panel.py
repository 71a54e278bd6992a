"""The agents as the loop sees them, and the cross-review of two agents of one's own.

The two judge a candidate alone, then, where needed, after seeing each other. Step 0 does not depend on the
classifier, so an agent that is paid by the call is paid once a post. Step 1 happens only for candidates on
which somebody disagrees: the agents with each other, an agent with the classifier, or an agent that gave no
label.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import permutations
from typing import Any, Protocol

from agents.errors import LearningError, ReviewError
from agents.judgment import (
    Accepted,
    Agent,
    Candidate,
    Judgment,
    LabelledPost,
    Learner,
    PostLike,
    State,
    Verdict,
)


class Panel(Protocol):
    """Whoever verifies candidates for the loop: everything that it needs of agents, and nothing else.

    Each round calls `fit`, then `predict_out_of_fold` on the labelled posts, then `verify`, from one thread.
    A panel whose answers cost something has `usage` and `close` besides (`agents.ask.metering.Metered`), and
    is closed when the run ends. Any `AgentError` ends the run with its message: what a panel has paid for it
    should have kept by then, because the same command goes on from the last finished round and asks again.
    """

    @property
    def simulated(self) -> bool:
        """Whether any answer is drawn from known labels; a run with such a panel says so everywhere."""
        ...

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Begin a round: forget what was learned, and learn anew. A panel that cannot learn does nothing.

        Args:
            labelled: Posts of known label, labels of people among them; one a post id.
            accepted: Pool posts pseudo-labelled so far, with their weight beside a labelled one.
            pool: Posts without label, to be seen but not answered.

        Raises:
            LearningError: Posts from which nothing can be learned; the message carries the counts.
            AgentError: Nobody can be asked.
        """
        ...

    def verify(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate, in their order; B in, B out.

        A call that fails for one post is a FAILED judgment in its verdict, not an error. The same candidates
        after the same `fit` must get the same verdicts: a run that was killed is replayed by them.

        Raises:
            AgentError: Nobody can be asked any more.
        """
        ...

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> dict[str, list[Judgment]]:
        """Return role -> its step-0 judgments on posts of known label, in their order.

        A role that learned from these posts, or was calibrated on them, judges each as if it had not: figures
        of trust are made of this. Probabilities are in [0, 1]. No roles: {}.

        Raises:
            AgentError: Nobody can be asked, or `fit` was not called before.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what answers and how, in JSON values, for the run's environment file.

        Expected are "protocol", "simulated" and "agents", a list of objects with "role" and "source".
        """
        ...


def verdicts_of(panel: Panel, candidates: Sequence[Candidate]) -> list[Verdict]:
    """Return a panel's verdicts; ReviewError: they are not one a candidate, in their order."""
    verdicts = list(panel.verify(candidates))
    found, asked = [one.post_id for one in verdicts], [one.post.id for one in candidates]
    if found != asked:
        pairs = zip(found, asked, strict=False)
        first = next((f", {a!r} first where {b!r} was asked" for a, b in pairs if a != b), "")
        raise ReviewError(
            f"{type(panel).__qualname__}.verify gave {len(found)} verdicts on {len(asked)} candidates{first}:"
            " expected one on each, in their order"
        )
    return verdicts


class CrossReview:
    """Two agents in cross-review, or one that judges alone; implements `Panel`.

    Args:
        reviewer: The first agent; verdicts list its judgments first.
        user: The second one, of another role; None: the first has nobody to hear, and is never asked again.

    Raises:
        ReviewError: Two agents of one role, or one that lacks a method.
    """

    def __init__(self, reviewer: Agent, user: Agent | None = None) -> None:
        self.reviewer, self.user = reviewer, user
        self._agents = (reviewer,) if user is None else (reviewer, user)
        for agent in self._agents:
            _check_methods(agent, alone=user is None)
        _check_roles(self._agents)

    @property
    def simulated(self) -> bool:
        return any(agent.simulated for agent in self._agents)

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Fit those agents that can learn.

        Raises:
            LearningError: Posts from which an agent cannot learn, or an id given twice.
        """
        ids = [post.id for post in labelled]
        if len(set(ids)) != len(ids):
            raise LearningError(f"{len(ids)} labelled posts with {len(set(ids))} different ids")
        for agent in self._agents:
            if isinstance(agent, Learner):
                agent.fit(labelled, accepted=accepted, pool=pool)

    def verify(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate, in order."""
        return review(candidates, self._agents)

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> dict[str, list[Judgment]]:
        """Return each role's step-0 judgments on posts of known label."""
        recalled: dict[str, list[Judgment]] = {}
        for agent in self._agents:
            answers = (
                agent.predict_out_of_fold(labelled) if isinstance(agent, Learner) else agent.judge(labelled)
            )
            recalled[agent.role] = _answers(agent, labelled, answers)
        return recalled

    def describe(self) -> dict[str, Any]:
        return {
            "protocol": "cross_review" if self.user is not None else "alone",
            "simulated": self.simulated,
            "agents": [agent.describe() for agent in self._agents],
        }


def review(candidates: Sequence[Candidate], agents: Sequence[Agent]) -> list[Verdict]:
    """Return verdicts on `candidates`, in their order.

    Raises:
        ReviewError: Not one agent, nor two of two roles, or one that did not answer every candidate once.
    """
    _check_roles(agents)
    posts = [candidate.post for candidate in candidates]
    alone = {agent.role: _answers(agent, posts, agent.judge(posts)) for agent in agents}
    asked = [
        i
        for i, candidate in enumerate(candidates)
        if any(alone[agent.role][i].label != candidate.label for agent in agents)
    ]
    again: dict[str, dict[int, Judgment]] = {agent.role: {} for agent in agents}
    for agent, other in permutations(agents, 2):
        chosen = [candidates[i] for i in asked]
        own, words = ([alone[one.role][i] for i in asked] for one in (agent, other))
        answers = agent.reconsider(chosen, own, words) if chosen else []
        checked = _answers(agent, [one.post for one in chosen], answers, step=1)
        again[agent.role] = dict(zip(asked, checked, strict=True))
    return [
        Verdict(
            candidate.post.id,
            candidate.label,
            candidate.probability,
            (
                *(alone[agent.role][i] for agent in agents),
                *(again[agent.role][i] for agent in agents if i in again[agent.role]),
            ),
        )
        for i, candidate in enumerate(candidates)
    ]


def _check_methods(agent: Agent, *, alone: bool) -> None:
    """Refuse before anybody is asked what would end in the middle of a review."""
    lacks = missing_methods(agent, Agent, but=("reconsider",) if alone else ())
    unlearned = missing_methods(agent, Learner)
    if len(unlearned) == 1:  # the other alone would never be called
        lacks += unlearned
    if lacks:
        raise ReviewError(
            f"{type(agent).__qualname__} as an agent: it has no {', '.join(lacks)}; expected what"
            " agents.judgment.Agent describes, and Learner where it learns (docs/extending.md)"
        )


def missing_methods(part: object, protocol: type, *, but: Collection[str] = ()) -> list[str]:
    """Return what a protocol describes and a part lacks, in the protocol's order; `but` is not looked at."""
    described = (name for name in vars(protocol) if name == "__call__" or not name.startswith("_"))
    return [name for name in described if name not in but and not hasattr(part, name)]


def _check_roles(agents: Sequence[Agent]) -> None:
    roles = [agent.role for agent in agents]
    if len(roles) not in (1, 2) or len(set(roles)) != len(roles):
        raise ReviewError(f"cross-review takes two agents of two roles, or one alone, not {roles}")


def _answers(
    agent: Agent, posts: Sequence[PostLike], answers: Sequence[Judgment], *, step: int = 0
) -> list[Judgment]:
    """Return the answers, if they are one a post under the agent's own name; verdicts are built on that."""
    answers = list(answers)
    if len(answers) != len(posts):
        raise ReviewError(f"{agent.role} gave {len(answers)} judgments on {len(posts)} posts")
    for post, answer in zip(posts, answers, strict=True):
        if answer.agent != agent.role or answer.step != step:
            given = f"{answer.agent!r}, step {answer.step}"
            raise ReviewError(f"post {post.id!r}: {agent.role!r}, step {step} was asked, {given} answered")
    return answers


class NoPanel:
    """No agents: every candidate is consistent with the classifier. The ablation; implements `Panel`."""

    simulated = False

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Learn nothing."""

    def verify(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return verdicts that repeat the classifier's own label."""
        return [
            Verdict(one.post.id, one.label, one.probability, (_echo(one.label, one.probability),))
            for one in candidates
        ]

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> dict[str, list[Judgment]]:
        """Return nothing: there is no agent."""
        return {}

    def describe(self) -> dict[str, Any]:
        return {"protocol": "none", "simulated": False, "agents": []}


def _echo(label: str, probability: float) -> Judgment:
    return Judgment("classifier", 0, State.LABEL, label, probability, "no agent was asked", "classifier")
