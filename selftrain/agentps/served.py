"""A merged checkpoint whose language model runs on a vLLM server; the answer heads run here.

vLLM's `token_embed` pooling gives the last hidden state of every token, before any scaling to unit length:
the states at the answer tokens are those that the heads were trained on (measured: docs/experiments.md).
Words alone: token ids are sent, and a server takes no pictures beside them.

Shape legend: ``L`` tokens of a prompt, ``D`` width, ``Q`` questions, ``K`` answers of a question.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from agents.client.endpoints import MOST_BYTES
from agents.client.messages import BrokenAnswerError, read_body, read_cards
from agents.vllm.check import fetch
from backbones.mllm.answering import ASKING, AnswerHeads
from backbones.mllm.load import load_reader
from backbones.mllm.prompts import Prompt, Reader, answer_positions
from backbones.prefetch import prefetch
from selftrain._util.printable import first_of
from selftrain.agentps.checkpoint import (
    HEADS,
    MERGED,
    decisions_of,
    fill_weights,
    read_about,
    read_tensors,
    settings_of,
)
from selftrain.agentps.dataset import Example, QuestionSet, example, question_set
from selftrain.agentps.decisions import decided
from selftrain.agentps.evaluate import ScoredPost
from selftrain.agentps.predict import to_prediction, warn_of_notes
from selftrain.agentps.recipe import ModelSettings
from selftrain.data.posts import Post
from selftrain.data.task import load_task
from selftrain.errors import ModelError, ServingError
from selftrain.models.predictor import Prediction

FLAGS = (
    "--runner", "pooling", "--convert", "embed",
    "--pooler-config", '{"task": "token_embed", "use_activation": false}',
)  # fmt: skip
"""What vLLM is to be started with; `use_activation` would scale the states to unit length."""
_EXPECTED = f"Expected a vLLM server started with {' '.join(FLAGS)}"
_PAUSES = (0.5, 2.0)  # seconds before a request is repeated that a busy or restarted server did not answer


class _State(Struct):
    index: int  # of the prompt
    data: str  # float32, in base64


class _States(Struct):
    data: list[_State]


class ServedModel:
    """Scores posts with a language model behind an endpoint; a `selftrain.models.predictor.Predictor`.

    The endpoint is the URL of a vLLM server with `FLAGS` that serves `folder`, as `selftrain agentps train
    --merge` wrote it. A request holds `batch` posts, and `timeout` is in seconds.

    Raises:
        ModelError: No merged checkpoint, or one that was trained on pictures.
    """

    kind = "agentps"
    calibrated = True
    picture_side = None

    def __init__(
        self, folder: Path, endpoint: str, *, batch: int = 16, requests: int = 4, timeout: float = 120.0
    ) -> None:
        about = read_about(folder, MERGED)
        made = settings_of(about, folder / MERGED)
        if made.frames is not None:
            raise ModelError(
                f"{folder} was trained on pictures; a server takes words alone: leave --server out"
            )
        self.task = load_task(folder / "task.toml")
        self.asked: QuestionSet = question_set(
            self.task, made.variant, policy=made.policy, rounds=made.rounds
        )
        # the checkpoint's own tokenizer
        self._reader: Reader = load_reader(
            folder, made.base, self.asked.wording, made.padding, made.max_tokens
        )
        self._heads = _heads(folder, made, self.asked)
        first: Any = self._heads[0]
        self._width = int(first[0].normalized_shape[0])
        self._decisions = decisions_of(about, self.asked, folder / MERGED)
        self.name, self.threshold = folder.resolve().name, self._decisions[-1].threshold
        self.classes, self.positive = self.task.names, self.task.positive
        warn_of_notes(self.name, self.asked, self._decisions)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        digest.update((folder / HEADS).read_bytes())
        self.fingerprint = digest.hexdigest()
        self._made, self._batch, self._requests = made, batch, requests
        self._endpoint, self._timeout = endpoint.rstrip("/"), timeout
        self._name = self._served_name()

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """See `Predictor.predict`; raises as `score`."""
        bare = (example(replace(post, label=None, process={}), self.asked) for post in posts)
        return [to_prediction(self.asked, one) for one in self.score(bare)]

    def validation(self) -> None:
        """Return None: the scores of the validation posts stay with the model that was merged."""

    def score(self, posts: Iterable[Example]) -> Iterator[ScoredPost]:
        """Score posts in the order given, a few requests ahead; ServingError: no hidden states come back."""
        stream = iter(posts)
        batches = iter(lambda: list(islice(stream, self._batch)), [])
        for batch in prefetch(self._score_batch, batches, self._requests):
            yield from batch

    def _score_batch(self, posts: Sequence[Example]) -> list[ScoredPost]:
        prompts = [self._reader.read([Prompt(one.text)])["input_ids"] for one in posts]
        states = self._states([ids[0].tolist() for ids in prompts])
        return [
            decided(self._decisions, ScoredPost(post, self._answers(one, ids)))
            for post, one, ids in zip(posts, states, prompts, strict=True)
        ]

    def _answers(self, states: Tensor, ids: Tensor) -> tuple[Any, ...]:
        """Turn the hidden states [L, D] of a prompt into the probabilities [K] of each question."""
        last = states[-1]
        read = [last] * len(self.asked.all)
        if ASKING[self._made.variant].in_place:
            count = len(self.asked.process)
            places = answer_positions(ids, torch.ones_like(ids), self._reader.words.answer_id, count)
            read = [*(states[place] for place in places[0].tolist()), last]
        with torch.inference_mode():
            logits = self._heads([one[None] for one in read])
        return tuple(torch.softmax(one[0], 0).numpy() for one in logits)

    def _states(self, prompts: list[list[int]]) -> list[Tensor]:
        body = {"model": self._name, "input": prompts, "task": "token_embed", "encoding_format": "base64"}
        sizes = [len(ids) * self._width for ids in prompts]
        # four bytes a number, in base64, and as much room again
        came = ask(f"{self._endpoint}/pooling", body, self._timeout, MOST_BYTES + 12 * sum(sizes))
        try:
            rows = sorted(read_body(came, _States).data, key=lambda row: row.index)
            found = [np.frombuffer(base64.b64decode(row.data), dtype="<f4") for row in rows]
        except ValueError as error:
            raise ServingError(f"{self._endpoint} answered with no states ({error}). {_EXPECTED}") from error
        lengths = [len(one) for one in found]
        if lengths != sizes or not all(np.isfinite(one).all() for one in found):
            raise ServingError(
                f"the server gave {lengths[:3]} numbers, expected {sizes[:3]}, finite ones: a state of"
                f" {self._width} a token. Start it with {' '.join(FLAGS)}"
            )
        return [torch.from_numpy(one.copy()).view(-1, self._width) for one in found]

    def _served_name(self) -> str:
        came = ask(f"{self._endpoint}/v1/models", None, self._timeout)
        try:
            models = [one.id for one in read_cards(came)]
        except BrokenAnswerError as error:
            raise ServingError(f"{self._endpoint} lists no models ({error}). {_EXPECTED}") from error
        if len(models) != 1:
            raise ServingError(
                f"{self._endpoint} serves {first_of(models)}; expected one model, the merged checkpoint"
            )
        return models[0]


def ask(url: str, body: object, seconds: float, most_bytes: int = MOST_BYTES) -> bytes:
    """Return what a server answers; what may pass is asked again, see `_PAUSES`.

    Raises:
        ServingError: It does not answer, or refuses.
    """
    key = os.environ.get("SELFTRAIN_API_KEY", "")
    for pause in (*_PAUSES, None):
        reply = fetch(url, key, body, seconds, most_bytes)
        passing = reply.status in (0, 408, 429) or reply.status >= 500
        if not passing or pause is None:
            break
        time.sleep(pause)
    if reply.status == 0:
        raise ServingError(f"{url} does not answer as a vLLM server would ({reply.words}): is it up?")
    if reply.status != 200:
        raise ServingError(f"{url} answered: {reply.words}. {_EXPECTED}")
    return reply.body


def _heads(folder: Path, made: ModelSettings, asked: QuestionSet) -> AnswerHeads:
    file = folder / HEADS
    tensors, _ = read_tensors(file)
    first = tensors.get("0.1.weight")
    # as large as the tensors are, whatever a description says
    hidden, width = (1, 1) if first is None or first.dim() != 2 else first.shape
    heads = AnswerHeads(width, [len(one.answers) for one in asked.all], hidden, fed=made.fed)
    fill_weights(dict(heads.named_parameters()), tensors, file)
    return heads.eval()
