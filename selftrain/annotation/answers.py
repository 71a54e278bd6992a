"""What a model answered, as a manifest carries it, and where in a post it stands.

`process` holds the answer to a question, a person's or a model's; `selftrain.data.model_answers` names the
fields of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from agents.ask.questioner import QuestionAnswer
from agents.judgment import State, rounded
from selftrain.data.model_answers import DIRECT, MISSING, MODEL, PROVENANCE, answer_table, by_people
from selftrain.data.posts import Post
from selftrain.data.task import Question

FINAL = "final question"
"""The name of the final question, asked directly; no ancillary question may have it."""

UNSURE = "the model cannot tell"


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A model's answer to one question about one post."""

    answer: str  # one of the question's answers, or a class
    # the model's, not calibrated, in [0, 1]; None where it gave no log-probabilities
    probability: float | None
    rationale: str  # in its words
    source: str  # model and revision
    cache_key: str  # of the stored answer, 16 hex digits
    count: int | None = None  # of a counting question: how many of how many pictures; None of others
    pictures: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a record of JSON values; without the count where there is none."""
        record = asdict(self) | {"probability": rounded(self.probability)}
        return {key: value for key, value in record.items() if value is not None or key == "probability"}


def read_given(given: QuestionAnswer, question: Question | None, pictures: int) -> ModelAnswer | str:
    """Return the answer in what came back, or why there is none."""
    if given.answer is None:
        return UNSURE if given.state is State.ABSTAIN else given.fault
    answer, alike, counted = given.answer, [given.answer], dict[str, int]()
    if question is not None and question.counting is not None:
        counted = {"count": int(given.answer), "pictures": pictures}
        answer = question.answer_for_count(int(given.answer), pictures)
        # every count that makes the same answer speaks for it
        alike = [n for n in given.probs or () if question.answer_for_count(int(n), pictures) == answer]
    probability = None if given.probs is None else min(sum(given.probs[one] for one in alike), 1.0)
    return ModelAnswer(answer, probability, given.rationale, given.source, given.cache_key, **counted)


class KnownAnswers(NamedTuple):
    """What a post holds on its questions before anything is asked."""

    known: Mapping[str, str]  # question -> a person's answer; the final question's is the label
    model: Mapping[str, Mapping[str, Any]]  # question -> a model's earlier answer, as it was recorded


def known_answers(post: Post) -> KnownAnswers:
    """Return people's and models' answers of a post, told apart by what is recorded.

    Raises as `answer_table`.
    """
    provenance, model = answer_table(post, PROVENANCE), dict(answer_table(post, MODEL))
    known = {}
    for name, answer in post.process.items():
        entry = provenance.get(name)
        # an answer that differs from the model's was corrected by a person
        if isinstance(entry, dict) and entry.get("answer") == answer:
            model[name] = entry
        else:
            known[name] = answer
    if direct := answer_table(post, DIRECT):
        model[FINAL] = direct
    if post.label is not None and by_people(post):
        known[FINAL] = post.label
    return KnownAnswers(known, {name: entry for name, entry in model.items() if isinstance(entry, dict)})


def filled(post: Post, answers: Mapping[str, ModelAnswer | str]) -> Post:
    """Return the post with what was answered; people's answers and earlier ones that got no new one stay."""
    known = known_answers(post).known
    process = dict(post.process)
    tables = {name: dict(answer_table(post, name)) for name in (PROVENANCE, MODEL, MISSING, DIRECT)}
    for name, answer in answers.items():
        tables[MISSING].pop(name, None)
        if isinstance(answer, str):
            tables[MISSING][name] = answer
        elif name == FINAL:
            tables[DIRECT] = answer.to_json()
        elif name in known:
            tables[MODEL][name] = answer.to_json()
        else:
            process[name] = answer.answer
            tables[PROVENANCE][name] = answer.to_json()
    extra = {name: value for name, value in post.extra.items() if name not in tables}
    extra |= {name: value for name, value in tables.items() if value}
    return replace(post, process=process, extra=extra)


def alone(post: Post) -> Post:
    """Return a post's answers and what is told of them, without its words, pictures and other fields.

    Those stay where the post lies, and may be such as no other file can hold.
    """
    tables = {name: answer_table(post, name) for name in (PROVENANCE, MODEL, MISSING)}
    told = {name: dict(table) for name, table in tables.items() if table}
    return Post(post.id, f"about {post.id}", process=post.process, extra=told)
