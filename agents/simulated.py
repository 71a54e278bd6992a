"""Agents drawn from a confusion matrix over known labels, to plan with: what if an agent were this good?

Their answers come from the labels, so every run with them says `simulated`. A draw depends on (seed, role,
post id) alone: not on the batch, the order or the number of calls.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from agents.errors import SimulationError
from agents.judgment import Candidate, Judgment, PostLike, State

SOURCE = "simulated"


@dataclass(eq=False, repr=False)
class SimulatedAgent:
    """One role whose answers follow a confusion matrix.

    With error rates e <= f on a class, a share s + (1 - s) f of the first agent's errors are errors of the
    second too, where s is `shared`, and the correlation of being wrong there is
    phi = s sqrt(e (1 - f) / (f (1 - e))): s itself for agents that are equally good. Between prompts of one
    published model phi is .6 to .87, between models .2 to .6; 0 makes agents independent given the label,
    which no two models are.

    Raises:
        SimulationError: A row that is no distribution, a rate outside its range, a label without a row.
    """

    role: str  # "reviewer" or "user"
    answers: Mapping[str, str]  # post id -> true label; a post that is not in it is `failed`
    confusion: Mapping[str, Mapping[str, float]]  # true label -> answer -> probability; each row sums to 1
    _: KW_ONLY
    abstention: float = 0.0  # share of posts on which the agent abstains, in [0, 1]
    failure: float = 0.0  # share of posts on which the call fails, in [0, 1]; with `abstention` at most 1
    # what two agents have in common, in [0, 1]: the share of posts on which all roles of one seed draw the
    # same number, so that they err together and to the same label. Each one's own matrix holds whatever it is
    shared: float = 0.7
    seed: int = 0  # with role and post id, fixes every draw

    simulated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for true, row in self.confusion.items():
            if not row or min(row.values()) < 0 or not math.isclose(sum(row.values()), 1.0, abs_tol=1e-9):
                raise SimulationError(f"confusion of {true!r}: {dict(row)} is no distribution")
        rates = (self.abstention, self.failure, self.shared, self.abstention + self.failure)
        if not all(0.0 <= rate <= 1.0 for rate in rates):
            raise SimulationError(
                f"abstention {self.abstention}, failure {self.failure}, shared {self.shared}: not in [0, 1]"
            )
        if missing := sorted(set(self.answers.values()) - set(self.confusion)):
            raise SimulationError(f"no row of the confusion matrix for {missing}")

    def judge(self, posts: Sequence[PostLike]) -> list[Judgment]:
        """Return a draw for each post."""
        return [self._draw(post.id, 0) for post in posts]

    def reconsider(
        self, candidates: Sequence[Candidate], own: Sequence[Judgment], other: Sequence[Judgment]
    ) -> list[Judgment]:
        """Return the same draws again: the matrix describes what the agent answers in the end."""
        return [self._draw(candidate.post.id, 1) for candidate in candidates]

    def describe(self) -> dict[str, Any]:
        """Return the parameters, in JSON values."""
        return {
            "role": self.role,
            "source": SOURCE,
            "simulated": True,
            "confusion": {true: dict(row) for true, row in self.confusion.items()},
            "abstention": self.abstention,
            "failure": self.failure,
            "shared": self.shared,
            "seed": self.seed,
        }

    def _draw(self, post_id: str, step: int) -> Judgment:
        true = self.answers.get(post_id)
        fate = self._uniform("fate", self.role, post_id)
        if true is None or fate < self.failure:
            return Judgment(self.role, step, State.FAILED, None, None, "Simulated failure.", SOURCE)
        if fate < self.failure + self.abstention:
            return Judgment(self.role, step, State.ABSTAIN, None, None, "Simulated abstention.", SOURCE)
        together = self._uniform("together", post_id) < self.shared  # for all roles, or for none
        place = self._uniform("answer", "" if together else f"role {self.role}", post_id)
        # the right answer comes first: with one shared number, the agent that errs less errs within the other
        row = sorted(self.confusion[true].items(), key=lambda item: (item[0] != true, item[0]))
        label = row[-1][0]
        for name, probability in row:
            if place < probability:
                label = name
                break
            place -= probability
        words = "Drawn from a confusion matrix over known labels."
        return Judgment(self.role, step, State.LABEL, label, self._posterior(label), words, SOURCE)

    def _posterior(self, label: str) -> float:
        """Return the probability of `label` given that the agent answers it, classes equally frequent."""
        column = {true: row.get(label, 0.0) for true, row in self.confusion.items()}
        return column.get(label, 0.0) / sum(column.values())

    def _uniform(self, *key: str) -> float:
        """Return a number in [0, 1) that depends on the seed and the key alone."""
        material = "\0".join((str(self.seed), *key)).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.sha256(material).digest()[:7], "big") / 2**56


def symmetric(classes: Sequence[str], accuracy: float) -> dict[str, dict[str, float]]:
    """Return the confusion matrix of an agent right with probability `accuracy`, its errors spread evenly.

    Raises:
        SimulationError: Fewer than two classes, or `accuracy` outside [0, 1].
    """
    if len(set(classes)) < 2 or not 0.0 <= accuracy <= 1.0:
        raise SimulationError(f"{len(set(classes))} classes, accuracy {accuracy}")
    wrong = (1.0 - accuracy) / (len(classes) - 1)
    return {true: {name: accuracy if name == true else wrong for name in classes} for true in classes}
