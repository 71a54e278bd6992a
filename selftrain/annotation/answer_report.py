"""What an annotation came to: each question's answers, what is missing, and how good they are where known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agents.judgment import rounded
from selftrain._util.types import Interval, Json
from selftrain.annotation.answers import FINAL, known_answers
from selftrain.data.model_answers import MISSING, answer_table
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task
from selftrain.models.metrics import wilson

NO_ANSWER = "(none)"
_REASONS = 20


class AnswerMetrics(NamedTuple):
    """One question, on the posts whose answer is known."""

    posts: int  # how many there are, n
    answered: int  # how many of them the model answered
    accuracy: Interval  # right answers among those answered, with a 95 % Wilson interval
    macro_f1: float  # mean F1 of the answers that a person or the model gave, on the posts answered
    balanced_accuracy: float  # mean recall of the answers that a person gave, on the posts answered
    # share of the commonest known answer among the posts answered: the accuracy of always giving it
    majority: float
    # known answer -> model's answer, `NO_ANSWER` included -> count
    confusion: Mapping[str, Mapping[str, int]]

    @property
    def missing(self) -> float:
        """Share of the posts without an answer, in [0, 1]."""
        return 1 - self.answered / self.posts

    def to_json(self) -> object:
        """Return a record of JSON values."""
        counts = {"posts": self.posts, "answered": self.answered, "missing": self.missing}
        return rounded(counts | self._asdict() | {"accuracy": self.accuracy._asdict()})


def answer_metrics(pairs: Sequence[tuple[str, str | None]], answers: Sequence[str]) -> AnswerMetrics | None:
    """Measure one question; None where the model answered no post of known answer.

    Of each of n posts a pair: a person's answer, and the model's or None. `answers` gives the order of the
    confusion's rows and columns.
    """
    from sklearn.metrics import f1_score, recall_score

    both = [(known, answer) for known, answer in pairs if answer is not None]
    if not both:
        return None
    known, given = zip(*both, strict=True)
    counts = Counter((one, answer or NO_ANSWER) for one, answer in pairs)
    return AnswerMetrics(
        len(pairs),
        len(both),
        wilson(sum(a == b for a, b in both), len(both)),
        float(f1_score(known, given, labels=sorted({*known, *given}), average="macro", zero_division=0.0)),
        float(recall_score(known, given, labels=sorted({*known}), average="macro", zero_division=0.0)),
        max(Counter(known).values()) / len(both),
        {one: {answer: counts[one, answer] for answer in (*answers, NO_ANSWER)} for one in answers},
    )


class MeanMetrics(NamedTuple):
    """Means over questions, each counting the same."""

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    missing: float


def mean_metrics(each: Sequence[AnswerMetrics]) -> MeanMetrics | None:
    """Return the means of several questions' metrics; None of none."""
    if not each:
        return None
    columns = zip(
        *((one.accuracy.value, one.macro_f1, one.balanced_accuracy, one.missing) for one in each), strict=True
    )
    return MeanMetrics(*(sum(column) / len(each) for column in columns))


# ---- the report ---------------------------------------------------------------------------------------


class QuestionReport(NamedTuple):
    """One question over all posts."""

    name: str  # of the question
    wording: str
    counting: str | float | None  # its counting rule, or None
    answered: int  # posts with an answer of the model, an earlier one's included
    answers: Mapping[str, int]  # answer -> posts, of the model's answers
    missing: Mapping[str, int]  # reason -> posts, the commonest first
    known: AnswerMetrics | None  # against people's answers; None where there are none

    def to_json(self) -> Json:
        """Return a record of JSON values, under the question's name."""
        known = None if self.known is None else self.known.to_json()
        return {name: value for name, value in self._asdict().items() if name != "name"} | {"known": known}


class AnnotationReport(NamedTuple):
    """The whole annotation."""

    posts: int  # in the manifest that was written
    complete: int  # of these, posts with an answer to every question, a person's or the model's
    questions: tuple[QuestionReport, ...]  # those asked, in the task's order
    final: QuestionReport | None  # the final question asked directly; None where it was not asked

    @property
    def all_questions(self) -> tuple[QuestionReport, ...]:
        """The questions, and the final one where it was asked."""
        return self.questions if self.final is None else (*self.questions, self.final)

    @property
    def process_mean(self) -> MeanMetrics | None:
        """Over the questions whose answers are known somewhere; None where none are."""
        return mean_metrics([one.known for one in self.questions if one.known is not None])

    def to_json(self) -> Json:
        """Return a record of JSON values."""
        final = self.final and self.final.known
        sides = {"process": self.process_mean, "final": mean_metrics([final] if final else [])}
        return {
            "posts": self.posts,
            "complete": {"posts": self.complete, "share": rounded(self.complete / max(self.posts, 1))},
            "questions": {one.name: one.to_json() for one in self.questions},
            "final": None if self.final is None else self.final.to_json(),
            "comparison": {side: one and rounded(one._asdict()) for side, one in sides.items()},
        }


def annotation_report(
    posts: Sequence[Post], task: Task, questions: Sequence[Question], direct: bool
) -> AnnotationReport:
    """Report on posts as they are written."""
    known = [known_answers(post) for post in posts]
    lacking = [answer_table(post, MISSING) for post in posts]

    def one(name: str, wording: str, counting: str | float | None, answers: Sequence[str]) -> QuestionReport:
        recorded = [each.model.get(name, {}).get("answer") for each in known]
        given = [answer if answer in answers else None for answer in recorded]  # others are offered no more
        # a post counts where the question was put to it: those beyond a limit tell nothing of the model
        pairs = [
            (each.known[name], answer)
            for each, answer, reasons in zip(known, given, lacking, strict=True)
            if name in each.known and (answer is not None or name in reasons)
        ]
        counts = Counter(answer for answer in given if answer is not None)
        reasons = Counter(
            str(reasons[name])
            for reasons, answer in zip(lacking, given, strict=True)
            if name in reasons and answer is None
        )
        missing = dict(reasons.most_common(_REASONS))
        if rest := reasons.total() - sum(missing.values()):
            missing["other reasons"] = rest
        return QuestionReport(
            name, wording, counting, counts.total(), {answer: counts[answer] for answer in answers}, missing,
            answer_metrics(pairs, answers),
        )  # fmt: skip

    names = [question.name for question in questions]
    return AnnotationReport(
        len(posts),
        sum(all(name in post.process for name in names) for post in posts),
        tuple(one(q.name, q.wording, q.counting, q.answers) for q in questions),
        one(FINAL, "", None, task.names) if direct else None,
    )
