"""Figures of every question on posts whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selftrain._util.types import BoolArray, FloatArray, IntArray, Json
from selftrain.agentps.examples import answer_of
from selftrain.agentps.questions import FINAL, Asked, Questionnaire
from selftrain.agentps.scoring import ScoredPost
from selftrain.errors import DataError
from selftrain.models.metrics import accuracy_and_f1, threshold_intervals, threshold_metrics


class Answered(NamedTuple):
    """The posts that answer one question.

    Attributes:
        asked: The question.
        looked_for: The index of the answer that recall and precision are about.
        ids: [B] posts.
        truth: [B] indices of the true answers.
        odds: [B, K] probabilities.
    """

    asked: Asked
    looked_for: int
    ids: tuple[str, ...]
    truth: IntArray
    odds: FloatArray

    @property
    def found(self) -> BoolArray:
        """[B] whether the answer looked for is the true one."""
        found: BoolArray = self.truth == self.looked_for
        return found

    @property
    def scores(self) -> FloatArray:
        """[B] the probability of the answer looked for."""
        return self.odds[:, self.looked_for]


def answered(asked: Questionnaire, scored: Sequence[ScoredPost]) -> list[Answered]:
    """One a question, the final one last; of a process question its first answer is looked for."""
    result = []
    read = [one for one in scored if not one.reason]
    for q, question in enumerate(asked.all):
        known = [(one, answer_of(one.example.targets[q])) for one in read]
        with_truth = [(one, truth) for one, truth in known if truth is not None]
        result.append(
            Answered(
                question,
                asked.positive if question.name == FINAL else 0,
                tuple(one.example.id for one, _ in with_truth),
                np.array([truth for _, truth in with_truth], dtype=np.int64),
                np.array([one.answers[q] for one, _ in with_truth], dtype=np.float64).reshape(
                    len(with_truth), len(question.answers)
                ),
            )
        )
    return result


def quick(asked: Questionnaire, scored: Sequence[ScoredPost]) -> Json:
    """Figures of the final question without intervals, and macro-F1 of each process question.

    Raises:
        DataError: The posts do not hold both the positive class and another one.
    """
    *process, final = answered(asked, scored)
    result: Json = {"posts": len(final.ids)} | _final(final)
    for one in process:
        if len(one.ids):
            result[f"{one.asked.name}/macro_f1"] = _many(one)["macro_f1"]
    return result


def full(asked: Questionnaire, scored: Sequence[ScoredPost]) -> dict[str, Json]:
    """Question -> posts, answers, figures with intervals; a question with one answer alone says so."""
    result: dict[str, Json] = {}
    for one in answered(asked, scored):
        about: Json = {
            "posts": len(one.ids),
            "looked_for": one.asked.answers[one.looked_for],
            "answers": {a: int((one.truth == k).sum()) for k, a in enumerate(one.asked.answers)},
        }
        if one.found.any() and not one.found.all():
            about["figures"] = {
                name: value._asdict() for name, value in threshold_intervals(one.found, one.scores).items()
            }
        else:
            about["note"] = "only one answer occurs among these posts: nothing to tell apart"
        if len(one.asked.answers) > 2 and len(one.ids):
            about["all_answers"] = _many(one)
        result[one.asked.name] = about
    return result


def _final(final: Answered) -> dict[str, float]:
    if not final.found.any() or final.found.all():
        raise DataError(
            f"of {len(final.ids)} labelled posts {int(final.found.sum())} are"
            f" {final.asked.answers[final.looked_for]!r}: expected some of it and some of another class;"
            " add labelled posts to validate on"
        )
    found = threshold_metrics(final.found, final.scores)
    return found if len(final.asked.answers) == 2 else found | _many(final)


def _many(one: Answered) -> dict[str, float]:
    return accuracy_and_f1(one.truth, one.odds.argmax(1))
