"""Probabilities of every answer, for posts in any number: bounded memory, batches by length.

Shape legend: ``B`` posts, ``Q`` questions, the final one last, ``K`` answers of a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from backbones.mllm.answering import AnsweringModel
from backbones.mllm.base import Inputs, to_device
from backbones.prefetch import prefetch, threads_for
from selftrain._util.types import Float32Array
from selftrain.agentps.examples import Example
from selftrain.agentps.prompts import Collator, Unread
from selftrain.errors import TrainingError

_Readable = tuple[Inputs | None, list[int], list[Unread]]
Probabilities = Float32Array
_SORTED_BATCHES = 16


class ScoredPost(NamedTuple):
    """One post's answers.

    Attributes:
        example: The post.
        answers: One [K] of probabilities a question, the final one last; empty where `reason` says why.
        reason: Why the post could not be read; empty for a scored one.
    """

    example: Example
    answers: tuple[Probabilities, ...]
    reason: str = ""


def score(
    model: AnsweringModel,
    collator: Collator,
    posts: Iterable[Example],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    precise: bool = True,
) -> Iterator[ScoredPost]:
    """Scores posts in the order given, reading no further ahead than some dozens of batches.

    While a GPU computes a batch, threads read the next ones.

    Args:
        model: In evaluation mode afterwards.
        collator: Of the model.
        posts: Any number, targets not read.
        batch_size: Posts computed at once, at least 1.
        device: Where `model` is.
        precise: Multiply in float32; else in bfloat16 where the device has it.

    Raises:
        TrainingError: The device has no memory for a batch; says what to lower.
    """
    model.eval()
    kind = torch.device(device).type

    def read(batch: _Batch) -> tuple[_Batch, _Readable]:
        return batch, collator.readable(batch.posts)

    found: dict[int, ScoredPost] = {}
    batches = _batches(collator, iter(posts), batch_size)
    for batch, readable in prefetch(read, batches, threads_for(kind)):
        scored = _score_batch(model, batch.posts, readable, device, precise=precise)
        found |= zip(batch.places, scored, strict=True)
        if batch.last:
            yield from (found[place] for place in range(len(found)))
            found = {}


class _Batch(NamedTuple):
    """Posts of like length, their places in the stretch that was sorted, and whether that ends here."""

    posts: list[Example]
    places: list[int]
    last: bool


def _batches(collator: Collator, stream: Iterator[Example], size: int) -> Iterator[_Batch]:
    while stretch := list(islice(stream, size * _SORTED_BATCHES)):
        order = np.argsort(collator.lengths(stretch), kind="stable").tolist()
        for start in range(0, len(order), size):
            places = order[start : start + size]
            yield _Batch([stretch[i] for i in places], places, start + size >= len(order))


def _score_batch(
    model: AnsweringModel,
    posts: Sequence[Example],
    readable: _Readable,
    device: torch.device | str,
    *,
    precise: bool,
) -> list[ScoredPost]:
    inputs, places, unread = readable
    result = {one.place: ScoredPost(posts[one.place], (), one.reason) for one in unread}
    if inputs is not None:
        kind = torch.device(device).type
        try:
            with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=not precise):
                logits = model(to_device(inputs, device))
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"no memory left for {len(posts)} posts of {inputs['input_ids'].shape[1]} tokens on the"
                " device: lower the batch size"
            ) from error
        odds = [torch.softmax(one.float(), 1).cpu().numpy() for one in logits]
        for row, place in enumerate(places):
            result[place] = ScoredPost(posts[place], tuple(one[row] for one in odds))
    return [result[place] for place in range(len(posts))]
