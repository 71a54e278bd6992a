"""Probabilities of every answer for posts in any number, and metrics where the answers are known.

Shape legend: ``B`` posts, ``Q`` questions, the final one last, ``K`` answers of a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from typing import NamedTuple

import numpy as np
import torch

from backbones.mllm.answering import AnsweringModel
from backbones.mllm.base import to_device
from backbones.prefetch import read_ahead, workers_for
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray, Json
from selftrain.agentps.dataset import FINAL, Example, QuestionSet, answer_of
from selftrain.agentps.model import CollatedPosts, Collator, part_sizes
from selftrain.data.task import Question
from selftrain.errors import DataError, TrainingError
from selftrain.models.metrics import accuracy_and_f1, threshold_metrics

_SORTED_BATCHES = 16
_NO_NUMBER = (
    "what the model answers is no number (NaN): look at the post, or train with training.precision ="
    ' "float32" or a lower training.learning_rate'
)


class ScoredPost(NamedTuple):
    """One post's answers."""

    example: Example  # the post
    # one [K] of probabilities a question, the final one last; empty where `reason` says why
    answers: tuple[Float32Array | FloatArray, ...]
    reason: str = ""  # why the post could not be read, or has no answers; empty for a scored one
    chosen: tuple[int, ...] = ()  # the index of the answer given to each question; empty: the likeliest

    def given(self, question: int) -> int:
        """Return the index of the answer that is given to a question, by its place."""
        return self.chosen[question] if self.chosen else int(self.answers[question].argmax())


class _Batch(NamedTuple):
    """Posts of like length, their places in the stretch that was sorted, and whether that ends here."""

    posts: list[Example]
    places: list[int]
    last: bool


def score(
    model: AnsweringModel,
    collator: Collator,
    posts: Iterable[Example],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    precise: bool = True,
    tokens: int | None = None,
    workers: int | None = None,
) -> Iterator[ScoredPost]:
    """Yield scored posts in the order given, reading no further ahead than some dozens of batches.

    While a GPU computes a batch, `workers` (None: as many as suit the device, and none where there is no
    picture to read) read the next ones. At most `batch_size` posts and `tokens`, padding among them, are
    computed at once. If not `precise` it multiplies in bfloat16 where the device has it. The model is in
    evaluation mode afterwards.

    Raises:
        TrainingError: The device has no memory for a batch; says what to lower.
    """
    batches = _batches(collator, iter(posts), batch_size, tokens)
    found: dict[int, ScoredPost] = {}
    for batch, scored in _score_batches(model, collator, batches, device, precise=precise, workers=workers):
        found |= zip(batch.places, scored, strict=True)
        if batch.last:
            yield from (found[place] for place in range(len(found)))
            found = {}


def score_share(
    model: AnsweringModel,
    collator: Collator,
    posts: Sequence[Example],
    rank: int,
    processes: int,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    precise: bool = True,
    tokens: int | None = None,
    workers: int | None = None,
) -> list[ScoredPost]:
    """Return, in no order, what `score` gives for every so many batches: the share of process `rank`.

    Every process computes as many batches, since a model in shards needs all processes for each; the last
    may be another's too.
    """
    batches = list(_batches(collator, iter(posts), batch_size, tokens))
    mine = [batches[min(start + rank, len(batches) - 1)] for start in range(0, len(batches), processes)]
    scored = _score_batches(model, collator, iter(mine), device, precise=precise, workers=workers)
    return [one for _, posts_scored in scored for one in posts_scored]


def _score_batches(
    model: AnsweringModel,
    collator: Collator,
    stream: Iterator[_Batch],
    device: torch.device | str,
    *,
    precise: bool,
    workers: int | None,
) -> Iterator[tuple[_Batch, list[ScoredPost]]]:
    model.eval()
    kind = torch.device(device).type
    if workers is None:  # words alone are read sooner than processes are started
        workers = 0 if collator.frames is None else workers_for(kind)
    wanted, batches = tee(stream)
    read = read_ahead(collator.read, (one.posts for one in wanted), workers, pin=kind == "cuda")
    for batch, collated in zip(batches, read, strict=True):
        scored = _score_batch(model, batch.posts, collated, device, precise=precise)
        collator.keep(collated, model.features)
        yield batch, scored


def _batches(
    collator: Collator, stream: Iterator[Example], size: int, tokens: int | None
) -> Iterator[_Batch]:
    while stretch := list(islice(stream, size * _SORTED_BATCHES)):
        lengths = collator.lengths(stretch)
        order = iter(np.argsort(lengths, kind="stable").tolist())
        sizes = part_sizes(sorted(lengths), size, tokens)
        for number, count in enumerate(sizes, 1):
            places = list(islice(order, count))
            yield _Batch([stretch[i] for i in places], places, number == len(sizes))


def _score_batch(
    model: AnsweringModel,
    posts: Sequence[Example],
    collated: CollatedPosts,
    device: torch.device | str,
    *,
    precise: bool,
) -> list[ScoredPost]:
    inputs, unread = collated.inputs, collated.unread
    kind = torch.device(device).type
    try:
        # not inference_mode: what it makes of a model in shards cannot be trained on
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=not precise):
            logits = model(to_device(inputs, device))
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"no memory left for {len(posts)} posts of {inputs['input_ids'].shape[1]} tokens on the device:"
            " lower the batch size (of a training: training.evaluation_batch)"
        ) from error
    probs = [torch.softmax(one.float(), 1).cpu().numpy() for one in logits]
    broken = np.any([~np.isfinite(one).all(1) for one in probs], axis=0)
    reasons = dict.fromkeys(np.flatnonzero(broken).tolist(), _NO_NUMBER) | unread
    return [
        ScoredPost(post, (), reasons[row])
        if row in reasons
        else ScoredPost(post, tuple(one[row] for one in probs))
        for row, post in enumerate(posts)
    ]


# ---- metrics --------------------------------------------------------------------------------------------


class QuestionScores(NamedTuple):
    """The posts that answer one question."""

    question: Question  # the question
    looked_for: int  # the index of the answer that recall and precision are about
    ids: tuple[str, ...]  # [B] posts
    truth: IntArray  # [B] indices of the true answers
    probs: FloatArray  # [B, K] probabilities
    chosen: IntArray  # [B] indices of the answers that are given

    @property
    def found(self) -> BoolArray:
        """Return [B] whether the answer looked for is the true one."""
        found: BoolArray = self.truth == self.looked_for
        return found

    @property
    def scores(self) -> FloatArray:
        """Return [B] the probability of the answer looked for."""
        return self.probs[:, self.looked_for]

    def all_answers(self) -> dict[str, float]:
        """Return accuracy and macro-F1 over all answers."""
        return accuracy_and_f1(self.truth, self.chosen)


def question_scores(questions: QuestionSet, scored: Iterable[ScoredPost]) -> list[QuestionScores]:
    """Return one a question, the final one last; of a process question its first answer is looked for."""
    read = [one for one in scored if not one.reason]
    result = []
    for q, question in enumerate(questions.all):
        known = [(one, answer_of(one.example.targets[q])) for one in read]
        answered = [(one, truth) for one, truth in known if truth is not None]
        probs = np.array([one.answers[q] for one, _ in answered], dtype=np.float64)
        result.append(
            QuestionScores(
                question,
                questions.positive if question.name == FINAL else 0,
                tuple(one.example.id for one, _ in answered),
                np.array([truth for _, truth in answered], dtype=np.int64),
                probs.reshape(len(answered), len(question.answers)),
                np.array([one.given(q) for one, _ in answered], dtype=np.int64),
            )
        )
    return result


def check_both(questions: QuestionSet, found: int, posts: int) -> None:
    """Raise DataError where validation posts are of one class alone: `found` are of the positive one."""
    if found in (0, posts):
        raise DataError(
            f"of {posts} labelled posts {found} are {questions.final.answers[questions.positive]!r}: expected"
            " some of it and some of another class; add labelled posts to validate on"
        )


def headline(questions: QuestionSet, scored: Sequence[ScoredPost]) -> Json:
    """Return metrics of the final question without intervals, and macro-F1 of each; as `check_both`."""
    *process, final = question_scores(questions, scored)
    found, posts = int(final.found.sum()), len(final.ids)
    left_out = [one for one in scored if one.reason]
    if left_out and found in (0, posts):
        raise DataError(
            f"{len(left_out)} of {len(scored)} validation posts have no answers, the first is"
            f" {left_out[0].example.id!r} ({left_out[0].reason}), and the others are of one class alone"
        )
    check_both(questions, found, posts)
    result: Json = {"posts": posts} | threshold_metrics(final.found, final.scores)
    if len(final.question.answers) > 2:
        result |= final.all_answers()
    return result | {
        f"{one.question.name}/macro_f1": one.all_answers()["macro_f1"] for one in process if len(one.ids)
    }
