"""A trained AgentPS model at work: every question's answers beside the final one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from backbones.loading import place
from selftrain._util.types import Json
from selftrain.agentps.checkpoint import VALIDATION, AgentPSModel, load
from selftrain.agentps.dataset import FINAL, QuestionSet, answer_of, example
from selftrain.agentps.evaluate import ScoredPost, score
from selftrain.data.posts import Post
from selftrain.models.predictor import Prediction, ValidationScores
from selftrain.store.run_dir import read_jsonl

TEXT, PICTURES = 2_000, 16
"""Characters and pictures that a record of answers keeps of its post."""


class AgentPSPredictor:
    """A trained model as a `selftrain.models.predictor.Predictor`.

    Args:
        loaded: The model.
        device: Where it computes.
    """

    kind = "agentps"
    calibrated = False

    def __init__(self, loaded: AgentPSModel, device: str) -> None:
        self._loaded, self._device = loaded, device
        self.name = loaded.folder.resolve().name
        self.classes, self.positive = loaded.task.names, loaded.task.positive
        self.fingerprint = loaded.fingerprint
        frames = loaded.built.collator.frames
        self.picture_side = None if frames is None else max(frames.width, frames.height)

    @classmethod
    def load(cls, path: Path) -> AgentPSPredictor:
        """Open the model of a folder, on a GPU where there is one.

        Raises:
            ModelError, BackboneError: It cannot be loaded.
        """
        return cls(load(path), str(place().device))

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """See `Predictor.predict`; every question's probabilities are in `Prediction.process`."""
        scored = predict(self._loaded, posts, device=self._device)
        return [to_prediction(self._loaded.built.questions, one) for one in scored]

    def validation(self) -> ValidationScores | None:
        """Return the scores of the best epoch; posts that could not be read are left out."""
        file = self._loaded.folder / VALIDATION
        if not file.exists():
            return None
        rows = [row for row in read_jsonl(file) if "probabilities" in row]
        labels = [row["truth"][FINAL] == self.positive for row in rows]
        probs = [row["probabilities"][self.positive] for row in rows]
        return ValidationScores(np.array(labels, dtype=np.int16), np.array(probs, dtype=np.float64))


def predict(
    loaded: AgentPSModel, posts: Iterable[Post], *, batch_size: int = 16, device: str = "cpu"
) -> Iterator[ScoredPost]:
    """Score posts in their order, in bounded memory; what is known of them is carried along, not read.

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
    # a threshold set on the validation posts is one of their precision
    precise = loaded.about["precision"] == "float32"
    yield from score(
        built.model, built.collator, known, batch_size=batch_size, device=device, precise=precise
    )


def _known(post: Post, asked: QuestionSet) -> Post:
    """The post without a label or an answer of another task."""
    answers = {one.name: one.answers for one in asked.all}
    label = post.label if post.label in asked.final.answers else None
    process = {k: v for k, v in post.process.items() if v in answers.get(k, ())}
    return replace(post, label=label, process=process)


def to_prediction(asked: QuestionSet, one: ScoredPost) -> Prediction:
    """Return the answers to the final question as classes, those to the others as process."""
    if one.reason:
        return Prediction(one.example.id, reason=one.reason)
    *process, final = [
        dict(zip(question.answers, probs.tolist(), strict=True))
        for question, probs in zip(asked.all, one.answers, strict=True)
    ]
    label = asked.final.answers[int(np.argmax(one.answers[-1]))]
    named = {question.name: probs for question, probs in zip(asked.process, process, strict=True)}
    return Prediction(one.example.id, label, final, named)


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
    return {"id": one.example.id} | to_prediction(asked, one).to_json() | post | {"truth": truth}
