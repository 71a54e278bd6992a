"""A trained AgentPS model at work: every question's answers beside the final one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from backbones.loading import place
from selftrain._util.files import read_json
from selftrain._util.types import Json
from selftrain.agentps import checkpoint
from selftrain.agentps.dataset import FINAL, Example, QuestionSet, answer_of, example, make_target
from selftrain.agentps.decisions import Decisions, decided, full_report, set_goals, with_answers
from selftrain.agentps.evaluate import ScoredPost, question_scores, score
from selftrain.data.model_answers import PROVENANCE
from selftrain.data.posts import Post, check_posts
from selftrain.models.predictor import Prediction, ValidationScores
from selftrain.store import checksums
from selftrain.store.run_dir import read_jsonl

_LOG = logging.getLogger(__name__)
TEXT, PICTURES = 2_000, 16
"""Characters and pictures that a record of answers keeps of its post."""
PREDICTED_TOKENS = 16_384
"""Most tokens that a GPU computes at once, padding among them: 16 posts of 1,024, or one long album.

So many keep it busy, more of them only take its memory. An album of 16 pictures can have 12,000, and 16 such
albums at once would want the memory of 190,000. A longer post is computed alone.
"""


class AgentPSPredictor:
    """A trained model as a `selftrain.models.predictor.Predictor`, `batch_size` posts at once."""

    kind = "agentps"
    calibrated = True

    def __init__(self, loaded: checkpoint.AgentPSModel, device: str, batch_size: int = 16) -> None:
        self._loaded, self._device, self._batch_size = loaded, device, batch_size
        self.name = loaded.folder.resolve().name
        self.classes, self.positive = loaded.task.names, loaded.task.positive
        self.fingerprint = loaded.fingerprint
        frames = loaded.built.collator.frames
        self.picture_side = None if frames is None else max(frames.width, frames.height)
        self.threshold = loaded.decisions[-1].threshold
        warn_of_notes(self.name, loaded.built.questions, loaded.decisions)

    @classmethod
    def load(
        cls, folder: Path, device: str = "auto", batch_size: int = 16, threads: int | None = None
    ) -> AgentPSPredictor:
        """Open the model of a folder, on a GPU if there is one; `threads` are of a CPU. Raises as `load`."""
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(checkpoint.load(folder), str(place(device).device), batch_size)

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """See `Predictor.predict`; every question's probabilities are in `Prediction.process`."""
        check_posts(posts)
        scored = predict(self._loaded, posts, batch_size=self._batch_size, device=self._device)
        return [to_prediction(self._loaded.built.questions, one) for one in scored]

    def validation(self) -> ValidationScores | None:
        """Return the scores of the best epoch; posts that could not be read are left out."""
        file = self._loaded.folder / checkpoint.VALIDATION
        if not file.exists():
            return None
        asked = self._loaded.built.questions
        *_, final = question_scores(asked, read_scored(file, asked))
        return ValidationScores(final.found.astype(np.int16), final.scores)


def warn_of_notes(model: str, asked: QuestionSet, decisions: Decisions) -> None:
    """Log which rules of a model could not be kept to, whenever it is opened to predict."""
    for question, made in zip(asked.all, decisions, strict=True):
        if made.note:
            _LOG.warning(
                "%s, question %r: %s; the likeliest answer is given", model, question.name, made.note
            )


def predict(
    loaded: checkpoint.AgentPSModel, posts: Iterable[Post], *, batch_size: int = 16, device: str = "cpu"
) -> Iterator[ScoredPost]:
    """Score posts in their order, in bounded memory; what is known of them is carried along, not read.

    On a CPU each post is computed alone, so that its answers do not depend on what is asked beside it; a GPU
    computes up to `batch_size` at once, as many as `PREDICTED_TOKENS` allow, which may change last digits.
    Labels and answers that the task does not know are taken for absent. Raises as `score`.
    """
    built = loaded.built
    built.model.to(device)
    if torch.device(device).type == "cpu":  # whose cores one post keeps busy
        batch_size = 1
    known = (to_example(post, built.questions) for post in posts)
    # a threshold set on the validation posts is one of their precision
    precise = loaded.about["precision"] == "float32"
    scored = score(
        built.model, built.collator, known, batch_size=batch_size, device=device, precise=precise,
        tokens=PREDICTED_TOKENS,
    )  # fmt: skip
    yield from (decided(loaded.decisions, one) for one in scored)


def to_example(post: Post, asked: QuestionSet) -> Example:
    """Return a post without a label or an answer of another task; what is known is so, whoever said it."""
    answers = {one.name: one.answers for one in asked.all}
    label = post.label if post.label in asked.final.answers else None
    process = {k: v for k, v in post.process.items() if v in answers.get(k, ())}
    extra = {name: value for name, value in post.extra.items() if name != PROVENANCE}
    return example(replace(post, label=label, process=process, extra=extra), asked)


def to_prediction(asked: QuestionSet, one: ScoredPost) -> Prediction:
    """Return the answers to the final question as classes, those to the others as process."""
    if one.reason:
        return Prediction(one.example.id, reason=one.reason)
    probs, given = dict[str, dict[str, float]](), dict[str, str]()
    for q, question in enumerate(asked.all):
        probs[question.name] = dict(zip(question.answers, one.answers[q].tolist(), strict=True))
        given[question.name] = question.answers[one.given(q)]
    label, final = given.pop(FINAL), probs.pop(FINAL)
    return Prediction(one.example.id, label, final, probs, given)


def answers_row(asked: QuestionSet, one: ScoredPost) -> Json:
    """Return a prediction with the post, as far as a case table shows it, and what is known of it.

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


def read_scored(file: Path, asked: QuestionSet) -> list[ScoredPost]:
    """Read what `answers_row` wrote, a line a post."""
    return [_from_row(asked, row) for row in read_jsonl(file)]


def _from_row(asked: QuestionSet, row: Json) -> ScoredPost:
    targets = tuple(make_target(one.answers, row["truth"][one.name]) for one in asked.all)
    post = Example(row["id"], row["text"], tuple(map(Path, row["pictures"])), targets)
    if "reason" in row:
        return ScoredPost(post, (), row["reason"])
    probs = {**row["process"], FINAL: row["probabilities"]}
    given = {**row.get("answers", {}), FINAL: row["label"]}
    answers = ([probs[one.name][answer] for answer in one.answers] for one in asked.all)
    return ScoredPost(
        post,
        tuple(np.array(one, dtype=np.float64) for one in answers),
        chosen=tuple(one.answers.index(given[one.name]) for one in asked.all),
    )


def write_measured(
    folder: Path, asked: QuestionSet, rows: Sequence[Json], decisions: Decisions, figures: Json
) -> None:
    """Write what a model answers on its validation posts, as `answers_row` gives it, and what that is worth.

    It is worked out from the rows, whose digits are rounded, so that it can be again. The `figures` are the
    rest of metrics.json.
    """
    checksums.write_jsonl(folder / checkpoint.VALIDATION, rows)
    report = full_report(asked, [_from_row(asked, row) for row in rows], decisions)
    checksums.write_json(folder / checkpoint.METRICS, figures | {"questions": report})


def redecide(loaded: checkpoint.AgentPSModel, goals: Mapping[str, str]) -> checkpoint.AgentPSModel:
    """Set a model's rules anew on its validation posts, by `set_goals`, and write what follows from them.

    All of it is written, also where the rules are the same: an earlier call may have been killed in between.
    """
    folder, asked = loaded.folder, loaded.built.questions
    rows = list(read_jsonl(folder / checkpoint.VALIDATION))
    scored = [_from_row(asked, row) for row in rows]
    decisions = set_goals(loaded.decisions, question_scores(asked, scored), goals)
    for row, one in zip(rows, scored, strict=True):
        if not one.reason:
            row.update(to_prediction(asked, with_answers(decisions, one)).to_json())
    checksums.check(folder / checkpoint.METRICS)
    write_measured(folder, asked, rows, decisions, read_json(folder / checkpoint.METRICS))
    # last: what was killed before this sets them again
    checksums.write_json(
        folder / checkpoint.ABOUT,
        loaded.about | {"decisions": checkpoint.decisions_to_json(asked, decisions)},
    )
    return checkpoint.fill(folder, loaded.built, loaded.task, loaded.settings)
