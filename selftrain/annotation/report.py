"""What an annotation came to: each question's answers, what is missing, and how good they are where known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.records import rounded
from selftrain.annotation.answers import FINAL, MISSING, known_answers, table
from selftrain.annotation.figures import Figures, Pair, figures, mean
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task

_REASONS = 20


@dataclass(frozen=True, slots=True)
class QuestionReport:
    """One question over all posts.

    Attributes:
        name, wording: Of the question.
        counting: Its counting rule, or None.
        answered: Posts with an answer of the model, an earlier one's included.
        answers: Answer -> posts, of the model's answers.
        missing: Reason -> posts, the commonest first.
        known: Against persons' answers; None where there are none.
    """

    name: str
    wording: str
    counting: str | float | None
    answered: int
    answers: Mapping[str, int]
    missing: Mapping[str, int]
    known: Figures | None

    def to_json(self) -> dict[str, Any]:
        """A record of JSON values."""
        return {
            "wording": self.wording,
            "counting": self.counting,
            "answered": self.answered,
            "answers": dict(self.answers),
            "missing": dict(self.missing),
            "known": None if self.known is None else self.known.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The whole annotation.

    Attributes:
        posts: In the manifest that was written.
        complete: Of these, posts with an answer to every question, a person's or the model's.
        questions: Those asked, in the task's order.
        final: The final question asked directly; None where it was not asked.
    """

    posts: int
    complete: int
    questions: tuple[QuestionReport, ...]
    final: QuestionReport | None

    def to_json(self) -> dict[str, Any]:
        """A record of JSON values."""
        process = [one.known for one in self.questions if one.known is not None]
        averaged = mean(process)
        final = None if self.final is None else self.final.known
        return {
            "posts": self.posts,
            "complete": {"posts": self.complete, "share": rounded(self.complete / max(self.posts, 1))},
            "questions": {one.name: one.to_json() for one in self.questions},
            "final": None if self.final is None else self.final.to_json(),
            "comparison": {
                "process": None if averaged is None else rounded(averaged._asdict()),
                "final": None
                if final is None
                else {
                    "accuracy": rounded(final.accuracy.value),
                    "macro_f1": rounded(final.macro_f1),
                    "balanced_accuracy": rounded(final.balanced_accuracy),
                    "missing": rounded(final.missing),
                },
            },
        }


def report(posts: Sequence[Post], task: Task, questions: Sequence[Question], direct: bool) -> Report:
    """The report of posts as they are written.

    Args:
        posts: With answers filled in.
        task: For the classes.
        questions: Those asked.
        direct: Whether the final question was asked too.
    """
    said = [known_answers(post) for post in posts]
    lacking = [table(post, MISSING) for post in posts]

    def one(name: str, wording: str, counting: str | float | None, answers: Sequence[str]) -> QuestionReport:
        given = [_valid(each.model.get(name), answers) for each in said]
        # a post counts where the question was put to it: those beyond a limit say nothing of the model
        pairs = [
            Pair(each.known[name], answer)
            for each, answer, reasons in zip(said, given, lacking, strict=True)
            if name in each.known and (answer is not None or name in reasons)
        ]
        told = Counter(answer for answer in given if answer is not None)
        reasons = Counter(
            str(reasons[name])
            for reasons, answer in zip(lacking, given, strict=True)
            if name in reasons and answer is None
        )
        return QuestionReport(
            name,
            wording,
            counting,
            sum(told.values()),
            {answer: told[answer] for answer in answers},
            _commonest(reasons),
            figures(pairs, answers),
        )

    names = [question.name for question in questions]
    return Report(
        len(posts),
        sum(all(name in post.process for name in names) for post in posts),
        tuple(one(q.name, q.wording, q.counting, q.answers) for q in questions),
        one(FINAL, "", None, task.names) if direct else None,
    )


def _valid(entry: Mapping[str, Any] | None, answers: Sequence[str]) -> str | None:
    """A recorded answer; one that the task no longer offers is none."""
    answer = None if entry is None else entry.get("answer")
    return answer if answer in answers else None


def _commonest(reasons: Counter[str]) -> dict[str, int]:
    """The commonest reasons; what the rest comes to under one name."""
    listed = dict(reasons.most_common(_REASONS))
    rest = reasons.total() - sum(listed.values())
    return listed | ({"other reasons": rest} if rest else {})
