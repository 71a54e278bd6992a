"""Records of scored posts: every question's answers beside the final one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from selftrain._util.types import Json
from selftrain.agentps.checkpoint import AgentPSModel
from selftrain.agentps.dataset import QuestionSet, answer_of, example
from selftrain.agentps.evaluate import ScoredPost, score
from selftrain.data.posts import Post

DECIMALS = 6
TEXT, PICTURES = 2_000, 16
"""Characters and pictures that a record of answers keeps of its post."""


def predict(
    loaded: AgentPSModel, posts: Iterable[Post], *, batch_size: int = 16, device: str = "cpu"
) -> Iterator[ScoredPost]:
    """Scores posts in their order, in bounded memory; what is known of them is carried along, not read.

    Args:
        loaded: The model.
        posts: Any number; labels and answers that the task does not know are taken for absent.
        batch_size: Posts computed at once.
        device: Where.

    Raises:
        TrainingError: No memory left on the device; says what to lower.
    """
    built = loaded.built
    built.model.to(device)
    known = (example(_known(post, built.questions), built.questions) for post in posts)
    yield from score(built.model, built.collator, known, batch_size=batch_size, device=device)


def _known(post: Post, asked: QuestionSet) -> Post:
    """The post without a label or an answer of another task."""
    answers = {one.name: one.answers for one in asked.all}
    label = post.label if post.label in asked.final.answers else None
    process = {k: v for k, v in post.process.items() if v in answers.get(k, ())}
    return replace(post, label=label, process=process)


def prediction_row(asked: QuestionSet, one: ScoredPost) -> Json:
    """What `selftrain agentps predict` writes of a post: id, label, probability, probabilities, process."""
    *process, final = [
        {answer: round(float(share), DECIMALS) for answer, share in zip(question.answers, odds, strict=True)}
        for question, odds in zip(asked.all, one.answers, strict=True)
    ]
    label = asked.final.answers[int(np.argmax(one.answers[-1]))]
    row: Json = {"id": one.example.id, "label": label, "probability": final[label], "probabilities": final}
    return row | {
        "process": {question.name: odds for question, odds in zip(asked.process, process, strict=True)}
    }


def answers_row(asked: QuestionSet, one: ScoredPost) -> Json:
    """A prediction with the post, as far as a case table shows it, and what is known of it.

    Of a post come its text (`TEXT` characters at most), its pictures (the first `PICTURES` paths) and their
    number; of its truth the answer to each question, null where nobody answered.
    """
    post = {
        "text": one.example.text[:TEXT],
        "pictures": [str(path) for path in one.example.pictures[:PICTURES]],
        "picture_count": len(one.example.pictures),
    }
    known = {
        question.name: answer_of(target)
        for question, target in zip(asked.all, one.example.targets, strict=True)
    }
    truth = {q.name: None if known[q.name] is None else q.answers[int(known[q.name] or 0)] for q in asked.all}
    if one.reason:
        return {"id": one.example.id, "reason": one.reason, **post, "truth": truth}
    return prediction_row(asked, one) | post | {"truth": truth}
