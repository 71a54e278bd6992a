"""What the rounds so far have settled, on post ids: the only copy of the loop's rules.

Who is accepted, divergent, deferred or labelled by people, who may be chosen next, and why a run stops. The
state is never saved: it is replayed from the finished rounds of a run's folder (`selftrain.rounds.replay`),
by the loop as by whoever reads a run, so that a killed run and one that never was stand at the same point.
Nothing here needs features or torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from agents.judgment import Verdict
from losses.base import Group
from selftrain._util.types import LabelArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.store.run_dir import HumanLabel

Start = Literal["pretrained", "best"]
"""Whether a round's model is trained from pretrained weights or goes on from the best round's."""


class LastVerdict(NamedTuple):
    """A verdict and the round that gave it."""

    round: int
    verdict: Verdict


class UsedLabel(NamedTuple):
    """A label that people gave, and the first round that used it."""

    round: int
    given: HumanLabel


class RoundLimits(NamedTuple):
    """When the loop ends."""

    rounds: int = 10  # most rounds after round 0
    patience: int = 3  # rounds rolled back in a row after which it gives up
    budget: int | None = None  # most candidates verified in all rounds together; None for any number
    reselect_divergent: bool = True  # whether posts once found divergent may be chosen again

    @classmethod
    def from_json(cls, recipe: Mapping[str, Any]) -> RoundLimits:
        """Return the limits of a resolved recipe, as recipe.toml has it."""
        rounds, selection = recipe["rounds"], recipe["selection"]
        return cls(rounds["max"], rounds["patience"], rounds.get("budget"), selection["reselect_divergent"])


@dataclass(frozen=True)
class LoopState:
    """The state of the loop between two rounds; every change gives a new one."""

    next_round: int = 0  # number of the round to come; 0 is the labels alone
    best_round: int = -1  # the last kept round, -1 before round 0
    rejections: int = 0  # rounds rolled back in a row
    judged: int = 0  # candidates of all rounds, kept or rolled back
    # post id -> the verdict that made its label a pseudo-label
    accepted: Mapping[str, LastVerdict] = field(default_factory=dict)
    divergent: frozenset[str] = frozenset()  # judged in kept rounds and not agreed on; unlabelled in the loss
    # judged in rounds that were rolled back since the last kept one; they wait for a better model
    deferred: frozenset[str] = frozenset()
    # post id -> label that people gave: a label like any other from then on, rolled back or not
    human: Mapping[str, UsedLabel] = field(default_factory=dict)
    # found doubtful in any round, kept or rolled back, and neither settled nor labelled by people since:
    # these are what people are asked about, divergent posts and, under a posterior, those that are learned
    # with a label that is not sure
    disputed: frozenset[str] = frozenset()
    # post id -> its last verdict, in the order of the first ones
    last_verdicts: Mapping[str, LastVerdict] = field(default_factory=dict)

    # ---- who may be chosen, and whether anybody should be ---------------------------------------------

    def closed(self, limits: RoundLimits) -> frozenset[str]:
        """Return the pool posts that may not be chosen now."""
        closed = self.accepted.keys() | self.human.keys() | self.deferred
        return frozenset(closed if limits.reselect_divergent else closed | self.divergent)

    def why_stop(self, limits: RoundLimits, pool: int) -> str | None:
        """Return why no further round follows, in a pool of so many posts; None: one does."""
        if self.next_round > limits.rounds:
            return f"all {limits.rounds} rounds are done"
        if self.rejections >= limits.patience:
            return f"{self.rejections} rounds in a row brought no improvement"
        if limits.budget is not None and self.judged >= limits.budget:
            return f"the budget of {limits.budget} candidates is spent"
        if len(self.closed(limits)) >= pool:
            return "no pool post is left to choose from"
        return None

    def budget_left(self, limits: RoundLimits) -> int | None:
        """Return how many candidates may still be verified; None: any number."""
        return None if limits.budget is None else limits.budget - self.judged

    def last_verdicts_on(self, post_ids: Collection[str]) -> dict[str, LastVerdict]:
        """Return the last verdicts on some posts, in the order of the first ones."""
        return {post_id: last for post_id, last in self.last_verdicts.items() if post_id in post_ids}

    # ---- what a round changes -------------------------------------------------------------------------

    def apply_human_labels(self, labels: Iterable[HumanLabel]) -> LoopState:
        """Return the state once people's labels are used, from the coming round on.

        What classifier and agents said of these posts is moot.
        """
        human = {one.post_id: UsedLabel(self.next_round, one) for one in labels}
        return replace(
            self,
            human={**self.human, **human},
            accepted={post_id: last for post_id, last in self.accepted.items() if post_id not in human},
            divergent=self.divergent - human.keys(),
            disputed=self.disputed - human.keys(),
        )

    def merge(
        self, verdicts: Sequence[Verdict], flipped: Collection[str], revised: Sequence[Verdict] = ()
    ) -> LoopState:
        """Return the state as it would be if the coming round were kept; `keep` makes it so.

        Accepted posts that `flipped` are unlabelled again; `revised` verdicts replace those of earlier
        rounds.
        """
        lost = frozenset(flipped)
        accepted = {post_id: last for post_id, last in self.accepted.items() if post_id not in lost}
        divergent, disputed = {*self.divergent, *lost}, {*self.disputed, *lost}
        for verdict in (*verdicts, *revised):
            post_id = verdict.post_id
            if verdict.consistent:
                # a label that merely became surer or less sure dates from when it was first accepted
                was = accepted.get(post_id)
                same = was is not None and was.verdict.label == verdict.label
                accepted[post_id] = LastVerdict(was.round if was and same else self.next_round, verdict)
                divergent.discard(post_id)
            else:
                accepted.pop(post_id, None)
                divergent.add(post_id)
            (disputed.add if verdict.doubtful else disputed.discard)(post_id)
        return replace(
            self._after_verdicts(verdicts, revised),
            accepted=accepted,
            divergent=frozenset(divergent),
            disputed=frozenset(disputed),
        )

    def keep(self, trial: LoopState) -> LoopState:
        """Make `trial` the truth: the round counted, and what was deferred may be chosen again."""
        return replace(
            trial,
            next_round=self.next_round + 1,
            best_round=self.next_round,
            rejections=0,
            deferred=frozenset(),
        )

    def roll_back(self, verdicts: Sequence[Verdict]) -> LoopState:
        """Drop the round: no label came of it, and its candidates wait for a better model.

        Who disagreed in it disagreed nevertheless: people may be asked about these posts.
        """
        disagreed = {verdict.post_id for verdict in verdicts if verdict.doubtful}
        return replace(
            self._after_verdicts(verdicts),
            next_round=self.next_round + 1,
            rejections=self.rejections + 1,
            deferred=self.deferred | {verdict.post_id for verdict in verdicts},
            disputed=self.disputed | (disagreed - self.accepted.keys()),
        )

    def _after_verdicts(self, verdicts: Sequence[Verdict], revised: Sequence[Verdict] = ()) -> LoopState:
        given = {one.post_id: LastVerdict(self.next_round, one) for one in (*verdicts, *revised)}
        return replace(
            self, judged=self.judged + len(verdicts), last_verdicts={**self.last_verdicts, **given}
        )

    # ---- what a model learns from ---------------------------------------------------------------------

    def training_set(self, corpus: Corpus, *, soft_positive: float) -> TrainingSet:
        """Return labelled, agreed and divergent posts with their groups, in the order of their positions.

        Posts that people labelled follow the labelled ones, and are in their groups. `soft_positive` is the
        target of an agreed post's class without a posterior; the others share the rest.
        """
        human = corpus.positions_of(self.human)
        agreed, divergent = corpus.positions_of(self.accepted), corpus.positions_of(self.divergent)
        given = _values(corpus, human, {i: used.given.label for i, used in self.human.items()})
        values = _values(corpus, agreed, {i: last.verdict.label for i, last in self.accepted.items()})
        labels = np.concatenate([corpus.labels[corpus.labelled], given])
        groups = [
            corpus.groups(labels, Group.POSITIVE, Group.NEGATIVE),
            corpus.groups(values, Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE),
            np.full((len(divergent), len(corpus.columns)), Group.DIVERGENT),
        ]
        targets = [
            np.eye(len(corpus.classes))[labels],
            np.array([self._target(corpus, position, soft_positive) for position in agreed.tolist()]),
            np.full((len(divergent), len(corpus.classes)), 1 / len(corpus.classes)),
        ]
        probs = np.concatenate([one.reshape(-1, len(corpus.classes)) for one in targets])
        return TrainingSet(
            np.concatenate([corpus.labelled, human, agreed, divergent]),
            np.concatenate(groups),
            probs[:, corpus.columns].astype(np.float32),
        )

    def _target(self, corpus: Corpus, position: int, soft_positive: float) -> list[float]:
        """What an accepted post is learned with [K]: the agents' evidence, or its softened label."""
        verdict = self.accepted[corpus.posts[position].id].verdict
        if verdict.posterior is not None:
            return [verdict.posterior.evidence_for(name) for name in corpus.classes]
        others = (1 - soft_positive) / (len(corpus.classes) - 1)
        return [soft_positive if name == verdict.label else others for name in corpus.classes]

    @property
    def evidence_weight(self) -> float | None:
        """How much an accepted post's evidence counts beside a label; None: it is learned with its label.

        All posteriors of a state were given by one round, so that the weight of any of them is everybody's.
        """
        posteriors = (last.verdict.posterior for last in self.accepted.values())
        return next((one.weight for one in posteriors if one is not None), None)

    def divergent_priors(self, classes: Sequence[str]) -> list[float] | None:
        """Mean posterior of some classes over the divergent posts; None where they have none."""
        posteriors = (self.last_verdicts[post_id].verdict.posterior for post_id in sorted(self.divergent))
        probs = [one.probs for one in posteriors if one is not None]
        return [sum(one[name] for one in probs) / len(probs) for name in classes] if probs else None


def _values(corpus: Corpus, positions: Iterable[int], labels: Mapping[str, str]) -> LabelArray:
    """Return the labels [n] of some posts as the corpus counts them."""
    named = [labels[corpus.posts[int(position)].id] for position in positions]
    return np.array([corpus.classes.index(label) for label in named], dtype=np.int16)
