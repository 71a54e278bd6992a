"""A merged checkpoint whose language model runs on a vLLM server; the answer heads run here.

vLLM's `token_embed` pooling gives the last hidden state of every token, before any scaling to unit length:
the states at the answer tokens are those that the heads were trained on (measured: docs/experiments.md).
Words alone are sent as token ids. Pictures go with the words of a chat, which the server lays out and
expands by the checkpoint's own template and processor: once for each number of pictures its tokens are
compared with those of training, and for every post their number.

Shape legend: ``L`` tokens of a prompt, ``D`` width, ``Q`` questions, ``K`` answers of a question.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from PIL.Image import Image
from torch import Tensor

from agents.client.base import Picture, picture
from agents.client.endpoints import MOST_BYTES
from agents.client.messages import BrokenAnswerError, content_parts, read_body, read_cards
from agents.vllm.check import fetch
from backbones.errors import ImageError
from backbones.mllm.answering import ASKING, AnswerHeads
from backbones.mllm.hub import HubReader
from backbones.mllm.load import load_reader
from backbones.mllm.prompts import Prompt, Reader, answer_positions
from backbones.prefetch import prefetch
from selftrain._util.files import read_json
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
from selftrain.agentps.dataset import Example, QuestionSet, question_set
from selftrain.agentps.decisions import decided
from selftrain.agentps.evaluate import ScoredPost
from selftrain.agentps.frames import load_frames
from selftrain.agentps.predict import to_example, to_prediction, warn_of_notes
from selftrain.agentps.recipe import ModelSettings
from selftrain.data.posts import Post, check_posts
from selftrain.data.task import load_task
from selftrain.errors import MediaError, ModelError, ServingError
from selftrain.models.predictor import Prediction

FLAGS = (
    "--runner", "pooling", "--convert", "embed",
    "--pooler-config", '{"task": "token_embed", "use_activation": false}',
)  # fmt: skip
"""What vLLM is to be started with; `use_activation` would scale the states to unit length."""
_EXPECTED = f"Expected a vLLM server started with {' '.join(FLAGS)}"
# kinds of models of which vLLM gives other states without a word, with pictures or without
_WRONG = {"lfm2_vl": "is an LFM2-VL, of which vLLM on a CPU gives other states, of words too"}
_BOTH_WAYS = "has pictures within which each token sees those after it, too; vLLM leaves that out on a CPU"
_WRONG_SHOWN = dict.fromkeys(("gemma3", "paligemma"), _BOTH_WAYS)
# kinds of models whose videos vLLM reads as training does; others get other states, other tokens or none
_FILMED = ("llava_onevision",)
_PAUSES = (0.5, 2.0)  # seconds before a request is repeated that a busy or restarted server did not answer


class _State(Struct):
    index: int  # of the prompt
    data: str  # float32, in base64


class _States(Struct):
    data: list[_State]


class _Tokens(Struct):
    tokens: list[int]


class ServedModel:
    """Scores posts with a language model behind an endpoint; a `selftrain.models.predictor.Predictor`.

    The endpoint is the URL of a vLLM server with `FLAGS` that serves `folder`, as `selftrain agentps train
    --merge` wrote it. A request holds `batch` posts; where the model was trained on pictures it holds one,
    and `batch` are under way at once. `timeout` is in seconds.

    Raises:
        ModelError: No merged checkpoint, or one whose pictures no server takes.
    """

    kind = "agentps"
    calibrated = True

    def __init__(
        self, folder: Path, endpoint: str, *, batch: int = 16, requests: int = 4, timeout: float = 120.0
    ) -> None:
        about = read_about(folder, MERGED)
        made = settings_of(about, folder / MERGED)
        self.picture_side = None if made.frames is None else max(made.frames.width, made.frames.height)
        self.task = load_task(folder / "task.toml")
        self.asked: QuestionSet = question_set(
            self.task, made.variant, policy=made.policy, rounds=made.rounds
        )
        # the checkpoint's own tokenizer
        self._reader: Reader = load_reader(
            folder, made.base, self.asked.wording, made.padding, made.max_tokens, album=made.album
        )
        _check_served(folder, made, self._reader)
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
        self._made = made
        self._batch, self._requests = (batch, requests) if made.frames is None else (1, batch)
        # of a tokenizer, which threads may not share; numbers of pictures whose prompt was looked up
        self._reading, self._compared = Lock(), {0}
        self._endpoint, self._timeout = endpoint.rstrip("/"), timeout
        self._name = self._served_name()

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """See `Predictor.predict`; raises as `score`."""
        check_posts(posts)
        read = (to_example(post, self.asked) for post in posts)
        return [to_prediction(self.asked, one) for one in self.score(read)]

    def validation(self) -> None:
        """Return None: the scores of the validation posts stay with the model that was merged."""

    def score(self, posts: Iterable[Example]) -> Iterator[ScoredPost]:
        """Score posts in the order given, a few requests ahead; ServingError: no hidden states come back."""
        stream = iter(posts)
        batches = iter(lambda: list(islice(stream, self._batch)), [])
        for batch in prefetch(self._score_batch, batches, self._requests):
            yield from batch

    def _score_batch(self, posts: Sequence[Example]) -> list[ScoredPost]:
        try:
            prompts = [self._prompt(one) for one in posts]
        except (ImageError, MediaError) as error:  # of the only one: pictures go alone
            return [ScoredPost(posts[0], (), str(error))]
        with self._reading:
            read = [self._reader.read([one])["input_ids"] for one in prompts]
        asked = {"input": [ids[0].tolist() for ids in read]}
        if prompts[0].images:
            asked = self._chat(prompts[0])
            self._compare(asked, read[0][0].tolist(), len(prompts[0].images))
        states = self._states(asked, [ids.shape[1] for ids in read])
        return [
            decided(self._decisions, ScoredPost(post, self._answers(one, ids)))
            for post, one, ids in zip(posts, states, read, strict=True)
        ]

    def _prompt(self, post: Example) -> Prompt:
        frames = self._made.frames
        return Prompt(post.text, () if frames is None else load_frames(post.pictures, frames))

    def _chat(self, prompt: Prompt) -> dict[str, Any]:
        """Return what asks for a post with pictures, for the endpoint to lay out as `HubReader` does."""
        assert isinstance(self._reader, HubReader)
        with self._reading:
            words = self._reader.words.around(prompt.text)
        sent = {id(one): _png(one) for one in prompt.images}  # one that is shown again is encoded once
        shown = [sent[id(one)] for one in prompt.images]
        parts = content_parts([words] if self._made.album == "video" else [*shown, words])
        if self._made.album == "video":
            parts.insert(0, _video(shown))
        return {
            "messages": [{"role": "user", "content": parts}],
            "add_generation_prompt": True, "add_special_tokens": self._reader.first_token,
        }  # fmt: skip

    def _compare(self, asked: dict[str, Any], ids: list[int], pictures: int) -> None:
        """Raise ServingError where the server makes another prompt of so many pictures than training did."""
        if pictures in self._compared:
            return
        came = ask(f"{self._endpoint}/tokenize", {"model": self._name} | asked, self._timeout)
        try:
            found = read_body(came, _Tokens).tokens
        except BrokenAnswerError as error:
            raise ServingError(f"{self._endpoint} tells no tokens ({error}). {_EXPECTED}") from error
        if found != ids:
            same = next((i for i, pair in enumerate(zip(found, ids, strict=False)) if len({*pair}) > 1), None)
            at = min(len(found), len(ids)) if same is None else same
            raise ServingError(
                f"of a post with {pictures} pictures the server makes {len(found)} tokens, expected the"
                f" {len(ids)} of training; they differ from token {at} on. Serve the merged checkpoint itself"
                " with its own chat template and processor; where that is served, this vLLM reads its"
                " pictures in another way: leave --server out"
            )
        self._compared.add(pictures)

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

    def _states(self, asked: dict[str, Any], tokens: list[int]) -> list[Tensor]:
        """Return the states [L, D] of the prompts that are asked for, which have so many tokens."""
        body = {"model": self._name, "task": "token_embed", "encoding_format": "base64"} | asked
        sizes = [count * self._width for count in tokens]
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
                f" {self._width} a token. Serve the merged checkpoint with {' '.join(FLAGS)}"
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


def _check_served(folder: Path, made: ModelSettings, reader: Reader) -> None:
    kind, shown = _family(folder / "config.json"), made.frames is not None
    fault = _WRONG.get(kind) or (_WRONG_SHOWN.get(kind) if shown else None)
    if shown and not isinstance(reader, HubReader):
        fault = f"was trained on pictures with {made.base}, of which vLLM can serve words alone"
    elif shown and made.album == "video" and kind not in _FILMED:
        fault = (
            f'has model.album = "video", which vLLM reads as training does of {" and ".join(_FILMED)} alone'
        )
    if fault:
        raise ModelError(f"{folder} {fault}. Leave --server out, or train on another model")


def _family(file: Path) -> str:
    try:
        return str(read_json(file)["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} names no kind of model ({error}): write the merged checkpoint again"
        ) from error


def _png(image: Image) -> Picture:
    """Return a picture with every pixel as it is."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return picture(file.getvalue(), "image/png")


def _video(frames: Sequence[Picture]) -> dict[str, Any]:
    """Return frames as a video of one a second that vLLM takes as it is; it opens each by what it holds."""
    pictures = ",".join(base64.b64encode(one.data).decode() for one in frames)
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{pictures}"}}


def _heads(folder: Path, made: ModelSettings, asked: QuestionSet) -> AnswerHeads:
    file = folder / HEADS
    tensors, _ = read_tensors(file)
    first = tensors.get("0.1.weight")
    # as large as the tensors are, whatever a description says
    hidden, width = (1, 1) if first is None or first.dim() != 2 else first.shape
    heads = AnswerHeads(width, [len(one.answers) for one in asked.all], hidden, fed=made.fed)
    fill_weights(dict(heads.named_parameters()), tensors, file)
    return heads.eval()
