"""A model and the way of posts into it, built from settings; its weights are a file apart."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backbones.errors import ImageError
from backbones.mllm.answering import AnsweringModel, adapt
from backbones.mllm.base import Mllm
from backbones.mllm.load import load_mllm
from backbones.mllm.prompts import Inputs, Prompt, Reader
from selftrain.agentps.dataset import Example, QuestionSet, question_set
from selftrain.agentps.frames import Frames, load_frames
from selftrain.agentps.recipe import ModelSettings
from selftrain.data.task import Task
from selftrain.errors import MediaError


class CollatedPosts(NamedTuple):
    """What the model is given, and the posts whose pictures cannot be read.

    Attributes:
        inputs: Of all posts; one with a picture that cannot be read is there with its words alone, so that a
            batch keeps its shape. Whoever uses the result leaves it out.
        unread: Place in the sequence given -> why.
    """

    inputs: Inputs
    unread: dict[int, str]


class Collator:
    """Reads pictures and lays out prompts; several threads may, and decode pictures side by side.

    Args:
        reader: Of the model and the task's wording.
        frames: How albums are shown; None leaves pictures out.
    """

    def __init__(self, reader: Reader, frames: Frames | None) -> None:
        self.reader = reader
        self.frames = frames
        # a tokenizer pads as it was last told to, whoever told it
        self._reading = threading.Lock()

    def read(self, examples: Sequence[Example]) -> CollatedPosts:
        """Return the model's inputs, and which posts could not be read.

        Raises:
            PromptFitError: See `Reader.read`.
        """
        prompts, unread = [], dict[int, str]()
        for place, one in enumerate(examples):
            try:
                prompts.append(self._prompt(one))
            except (ImageError, MediaError) as error:
                unread[place] = str(error)
                prompts.append(Prompt(one.text))
        with self._reading:
            return CollatedPosts(self.reader.read(prompts), unread)

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Return the tokens of each post, to sort by."""
        with self._reading:
            return [self.reader.length(one.text, self._count(one)) for one in examples]

    def _count(self, one: Example) -> int:
        if self.frames is None or not one.pictures:
            return 0
        return self.frames.count if self.frames.repeat else min(self.frames.count, len(one.pictures))

    def _prompt(self, one: Example) -> Prompt:
        return Prompt(one.text, [] if self.frames is None else load_frames(one.pictures, self.frames))


def stack_targets(examples: Sequence[Example]) -> list[Tensor]:
    """Return the targets [B, K] of each question."""
    columns = zip(*(one.targets for one in examples), strict=True)
    return [torch.from_numpy(np.stack(column)) for column in columns]


class Built(NamedTuple):
    """A model, untrained or about to be filled, with all that leads posts into it."""

    model: AnsweringModel
    base: Mllm
    collator: Collator
    questions: QuestionSet


def build(settings: ModelSettings, task: Task) -> Built:
    """Build the model of a task, on the CPU, its first weights drawn by the seed.

    Raises:
        TaskError: The task has no questions, and the variant asks.
        PromptFitError: The questions leave no room for a post.
        WeightsError: The base model cannot be had.
    """
    questions = question_set(task, settings.variant, policy=settings.policy, rounds=settings.rounds)
    base = load_mllm(
        settings.base, revision=settings.revision, dtype=settings.dtype, album=settings.album,
        seed=settings.seed,
    )  # fmt: skip
    return assemble(settings, questions, base)


def assemble(settings: ModelSettings, questions: QuestionSet, base: Mllm) -> Built:
    """Build with a base model at hand; it is changed in place."""
    reader = base.reader(questions.wording, settings.padding, settings.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        language = adapt(
            base, reader.words.answer_id, rank=settings.rank, alpha=settings.alpha,
            dropout=settings.adapter_dropout, vision=settings.vision,
        )  # fmt: skip
        model = AnsweringModel(
            language, width=base.width, answers=[len(one.answers) for one in questions.all],
            variant=settings.variant, answer_id=reader.words.answer_id,
            hidden=settings.hidden, dropout=settings.dropout, fed=settings.fed,
        )  # fmt: skip
    return Built(model, base, Collator(reader, settings.frames), questions)
