"""From what the heads give to answers: calibrated on the validation posts, decided by what was asked for.

One `QuestionDecision` a question, kept in agentps.json; whatever predicts goes through it.

Shape legend: ``B`` posts, ``K`` answers of a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from selftrain._util.numeric import decide
from selftrain._util.types import Float32Array, FloatArray, IntArray, Json
from selftrain.agentps.dataset import QuestionSet
from selftrain.agentps.evaluate import QuestionScores, ScoredPost, question_scores
from selftrain.agentps.recipe import check_names
from selftrain.errors import ServingError
from selftrain.models.calibration import fit_cut, fit_temperature, probabilities
from selftrain.models.metrics import estimates, macro_f1, reliability_of, threshold_intervals
from selftrain.models.operating_points import Goal, find_threshold
from selftrain.models.predictor import DECIMALS, ValidationScores

_LEAST = float(np.finfo(np.float32).tiny)


class QuestionDecision(BaseModel):
    """How the answer to one question follows from the model's probabilities."""

    model_config = ConfigDict(frozen=True)

    # calibrated log-probabilities are the model's times this: 1 / temperature
    slope: float = Field(1.0, gt=0, allow_inf_nan=False)
    looked_for: int = 0  # the index of the answer that a threshold is about
    goal: str = str(Goal())  # what was asked for, as `Goal` writes it
    # from which probability on the answer looked for is given; None: whatever is likeliest
    threshold: float | None = None
    # [K] what is added to each log-probability before the likeliest answer is given; None: nothing
    cut: tuple[float, ...] | None = None
    note: str = ""  # why there is no threshold although one was asked for

    def calibrate(self, probs: FloatArray | Float32Array) -> FloatArray:
        """Return calibrated probabilities [B, K] of the model's own."""
        return probabilities(self.slope * _logs(probs))

    def uncalibrated(self, probs: FloatArray) -> FloatArray:
        """Return the model's own probabilities [B, K] of calibrated ones."""
        return probabilities(_logs(probs) / self.slope)

    def choose(self, probs: FloatArray | Float32Array) -> IntArray:
        """Return the answer [B] that is given, of calibrated probabilities [B, K]."""
        if self.threshold is None:
            return decide(_logs(probs), self.cut)
        others = np.array(probs)
        others[:, self.looked_for] = -1.0
        passed = probs[:, self.looked_for] >= self.threshold
        return np.asarray(np.where(passed, self.looked_for, others.argmax(1)), dtype=np.int64)


Decisions = tuple[QuestionDecision, ...]
"""One a question, the final one last."""


def _logs(probs: FloatArray | Float32Array) -> FloatArray:
    return np.asarray(np.log(probs.astype(np.float64).clip(_LEAST)))


def fit_decisions(found: Sequence[QuestionScores], goals: Mapping[str, str]) -> Decisions:
    """Calibrate every question on its validation posts, and set its threshold; see `set_goals`."""
    calibrated = [
        QuestionDecision(slope=fit_temperature(_logs(one.probs).astype(np.float32), one.truth).slope)
        if len(one.ids)
        else QuestionDecision()
        for one in found
    ]
    scaled = [  # as precise as posts have them: a digit rounded otherwise would be another threshold
        one._replace(probs=made.calibrate(one.probs).astype(np.float32))
        for one, made in zip(found, calibrated, strict=True)
    ]
    return set_goals(calibrated, scaled, goals)


def set_goals(
    decisions: Sequence[QuestionDecision], found: Sequence[QuestionScores], goals: Mapping[str, str]
) -> Decisions:
    """Return decisions with other goals: question -> what is to be reached, or else the likeliest answer.

    `found` has calibrated probabilities of the validation posts, of every question. RecipeError: a goal of a
    question that is not asked, or that is no goal.
    """
    check_names("a rule is given for", goals, [one.question.name for one in found])
    return tuple(
        _decision(made.slope, one, Goal.parse(goals.get(one.question.name, str(Goal()))))
        for made, one in zip(decisions, found, strict=True)
    )


def _decision(slope: float, found: QuestionScores, goal: Goal) -> QuestionDecision:
    """Set one question's threshold, on probabilities as the files have them."""
    made = QuestionDecision(slope=slope, looked_for=found.looked_for, goal=str(goal))
    if goal.kind == "likeliest":
        return made
    probs = found.probs.astype(np.float64).round(DECIMALS)  # six digits are more than a float32 rounds well
    if goal.kind != "macro_f1":
        scores = ValidationScores(found.found.astype(np.int16), probs[:, found.looked_for])
        try:
            return made.model_copy(update={"threshold": find_threshold(scores, goal).threshold})
        except ServingError as error:  # the model is good all the same, and whoever opens it is told
            return made.model_copy(update={"note": str(error)})
    if not len(probs):
        return made.model_copy(update={"note": "no validation post answers it: nothing can be measured"})
    cut = fit_cut(_logs(probs).astype(np.float32))
    if len(cut) > 2:
        return made.model_copy(update={"cut": cut})
    # of two answers it is a threshold
    lead = cut[1 - found.looked_for] - cut[found.looked_for]
    return made.model_copy(update={"threshold": float(1 / (1 + np.exp(-lead)))})


def decided(decisions: Decisions, one: ScoredPost) -> ScoredPost:
    """Return a post with calibrated probabilities, and the answers that are given."""
    pairs = zip(decisions, one.answers, strict=not one.reason)
    probs = tuple(made.calibrate(answers[None])[0].astype(np.float32) for made, answers in pairs)
    return with_answers(decisions, one._replace(answers=probs))


def with_answers(decisions: Decisions, one: ScoredPost) -> ScoredPost:
    """Return a post of calibrated probabilities with the answers that are given."""
    pairs = zip(decisions, one.answers, strict=not one.reason)
    return one._replace(chosen=tuple(int(made.choose(answers[None])[0]) for made, answers in pairs))


# ---- what they are worth --------------------------------------------------------------------------------


def full_report(
    questions: QuestionSet, scored: Iterable[ScoredPost], decisions: Decisions
) -> dict[str, Json]:
    """Return question -> posts, answers, metrics with intervals, how it is decided and calibrated.

    A note says why there are no metrics where only one answer occurs. The posts are as `decided` gives them.
    """
    result: dict[str, Json] = {}
    for one, made in zip(question_scores(questions, scored), decisions, strict=True):
        answers = one.question.answers
        about: Json = {
            "posts": len(one.ids),
            "looked_for": answers[one.looked_for],
            "answers": {answer: int((one.truth == k).sum()) for k, answer in enumerate(answers)},
        }
        if one.found.any() and not one.found.all():
            intervals = threshold_intervals(one.found, one.scores)
            about["metrics"] = {name: value._asdict() for name, value in intervals.items()}
        else:
            told = "only one answer occurs" if len(one.ids) else "nobody's answer is known"
            about["note"] = f"{told} among these posts: nothing to tell apart"
        if len(one.ids):
            about |= {"decision": _worth(one, made), "calibration": _calibration(one, made)}
            if len(answers) > 2:
                about["all_answers"] = one.all_answers()
        result[one.question.name] = about
    return result


def _worth(one: QuestionScores, made: QuestionDecision) -> Json:
    """Return a rule, and figures of the answer looked for against the others as they are decided by it."""
    given = one.chosen == one.looked_for
    counts = np.bincount(2 * one.found + given, minlength=4).astype(np.int64)
    figures = {name: value._asdict() for name, value in estimates(counts).items()}
    rule = made.model_dump(mode="json", include={"goal", "threshold", "cut", "note"})
    return rule | {"f1": macro_f1(one.found, given, (True,)), "figures": figures}


def _calibration(one: QuestionScores, made: QuestionDecision) -> Json:
    """Return how far the model's own and the calibrated probabilities are from what was so.

    Of two answers the one that is looked for counts, of more each against the others.
    """
    result: Json = {"slope": made.slope}
    for name, probs in (("raw", made.uncalibrated(one.probs)), ("calibrated", one.probs)):
        if probs.shape[1] == 2:
            found = reliability_of(one.found, probs[:, one.looked_for])
        else:
            truth = one.truth[:, None] == np.arange(probs.shape[1])
            found = reliability_of(truth.reshape(-1), probs.reshape(-1))
        result[name] = {"ece": found.ece, "bins": [part._asdict() for part in found.bins]}
    return result
