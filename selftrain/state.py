"""What the rounds so far have settled: who is accepted, who is divergent, who waits.

The ledger is never saved: it is replayed from the finished rounds of the run folder, so a killed run and one
that was never killed stand at the same point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from losses.groups import Group
from selftrain._util.types import IntArray, LabelArray
from selftrain.data.corpus import Corpus
from selftrain.models.classifier import TrainingSet


class Pseudo(NamedTuple):
    """A pseudo-label: its value (1 positive), the round it was accepted in, and its verdict as recorded."""

    value: int
    round: int
    verdict: Mapping[str, Any]


class Human(NamedTuple):
    """A label that people gave: its value (1 positive), the first round to use it, its row of human.jsonl."""

    value: int
    round: int
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Ledger:
    """The state of the loop between two rounds; every change gives a new one.

    Attributes:
        next_round: Number of the round to come; 0 is the labels alone.
        best_round: The last kept round, -1 before round 0.
        best_score: Its validation macro-F1.
        rejections: Rounds rolled back in a row.
        accepted: Position -> pseudo-label.
        divergent: Positions judged and not agreed on; unlabelled in the loss.
        set_aside: Positions judged in rounds that were rolled back since the last kept one.
        human: Position -> label that people gave: a label like any other from then on, rolled back or not.
    """

    next_round: int = 0
    best_round: int = -1
    best_score: float = -1.0
    rejections: int = 0
    accepted: Mapping[int, Pseudo] = field(default_factory=dict)
    divergent: frozenset[int] = frozenset()
    set_aside: frozenset[int] = frozenset()
    human: Mapping[int, Human] = field(default_factory=dict)

    def open_positions(self, pool: IntArray, *, again: bool) -> IntArray:
        """Pool posts that may be chosen now.

        Args:
            pool: Positions of the pool.
            again: Whether posts once found divergent may be chosen again.
        """
        closed = self.accepted.keys() | self.human.keys() | self.set_aside
        closed |= frozenset() if again else self.divergent
        return pool[~np.isin(pool, np.fromiter(closed, np.int64, len(closed)))]

    def decided(self, records: Iterable[tuple[int, Mapping[str, Any]]], values: Mapping[str, int]) -> Ledger:
        """The ledger once people's decisions are known; what classifier and agents said of the posts is moot.

        Args:
            records: (position, row of human.jsonl), used from the coming round on.
            values: Class name -> 1 or 0.
        """
        human = {position: Human(values[r["label"]], self.next_round, r) for position, r in records}
        return replace(
            self,
            human={**self.human, **human},
            accepted={p: pseudo for p, pseudo in self.accepted.items() if p not in human},
            divergent=self.divergent - human.keys(),
        )

    def merge(
        self,
        verdicts: Iterable[tuple[int, Mapping[str, Any]]],
        values: Mapping[str, int],
        returned: Sequence[int],
    ) -> Ledger:
        """The ledger as it would be if the coming round were kept.

        Args:
            verdicts: (position, verdict record) of the round's candidates.
            values: Class name -> 1 or 0.
            returned: Accepted positions that the classifier no longer agrees with; unlabelled again.
        """
        accepted = {p: pseudo for p, pseudo in self.accepted.items() if p not in set(returned)}
        divergent = set(self.divergent) | set(returned)
        for position, verdict in verdicts:
            if verdict["consistent"]:
                value = values[verdict["classifier_label"]]
                accepted[position] = Pseudo(value, self.next_round, verdict)
                divergent.discard(position)
            else:
                divergent.add(position)
        return replace(self, accepted=accepted, divergent=frozenset(divergent))

    def keep(self, trial: Ledger, score: float) -> Ledger:
        """The round counted: `trial` becomes the truth, and what was set aside may be chosen again."""
        return replace(
            trial,
            next_round=self.next_round + 1,
            best_round=self.next_round,
            best_score=score,
            rejections=0,
            set_aside=frozenset(),
        )

    def roll_back(self, candidates: Iterable[int]) -> Ledger:
        """The round did not count: pseudo-labels are discarded, candidates wait for a better model."""
        return replace(
            self,
            next_round=self.next_round + 1,
            rejections=self.rejections + 1,
            set_aside=self.set_aside | frozenset(candidates),
        )

    def training_set(self, corpus: Corpus, *, soft_positive: float) -> TrainingSet:
        """Labelled, agreed and divergent posts with their groups, in the order of their positions.

        Posts that people labelled follow the labelled ones, and are in their groups.

        Args:
            corpus: Gives the labelled posts.
            soft_positive: Target of agreed positives; agreed negatives get 1 minus it.
        """
        agreed = np.array(sorted(self.accepted), dtype=np.int64)
        divergent = np.array(sorted(self.divergent), dtype=np.int64)
        values = np.array([self.accepted[int(p)].value for p in agreed], dtype=np.int8)
        human = np.array(sorted(self.human), dtype=np.int64)
        given = np.array([self.human[int(p)].value for p in human], dtype=np.int8)
        labels = np.concatenate([corpus.labels[corpus.labelled], given])
        groups = np.concatenate(
            [
                np.where(labels == 1, Group.POSITIVE, Group.NEGATIVE),
                np.where(values == 1, Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE),
                np.full(len(divergent), Group.DIVERGENT),
            ]
        ).astype(np.int64)
        targets = np.concatenate(
            [
                (labels == 1).astype(np.float32),
                np.where(values == 1, soft_positive, 1 - soft_positive),
                np.full(len(divergent), 0.5),
            ]
        ).astype(np.float32)
        positions = np.concatenate([corpus.labelled, human, agreed, divergent])
        return TrainingSet(positions, groups, targets)


def precision(positions: Iterable[int], values: Iterable[int], truth: LabelArray) -> float | None:
    """Share of right values among the posts whose truth is known; None where none is."""
    pairs = [(truth[p], v) for p, v in zip(positions, values, strict=True) if truth[p] >= 0]
    return sum(int(t == v) for t, v in pairs) / len(pairs) if pairs else None
