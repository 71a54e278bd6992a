"""Everything that makes a model what it is, and the model built from it; its weights are a file apart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal, NamedTuple

import torch

from backbones.mllm import load_mllm
from backbones.mllm.adapters import adapt
from backbones.mllm.answering import AnsweringModel, Variant
from backbones.mllm.base import Mllm, Padding
from selftrain._util.types import Json
from selftrain.agentps.albums import Frames
from selftrain.agentps.prompts import Collator
from selftrain.agentps.questions import Questionnaire, questionnaire
from selftrain.data.task import Task


class Architecture(NamedTuple):
    """What is built before a weight is trained or loaded.

    Attributes:
        base: "embedded", a name on a hub, or a folder.
        revision: Of the weights on a hub.
        dtype: Of a hub's weights: "auto" (as saved), "float32", "bfloat16".
        variant: Where the heads read.
        policy: Put the task's policy before every post.
        max_tokens: Of prompt and text together, images aside (published: 256).
        padding: The side that is padded (published: left).
        album: Give a hub's model several pictures as "images" or as a "video".
        frames: How albums are shown; None: the model reads words alone.
        rank, alpha, adapter_dropout: Of the low-rank adapters (published: 128 and 256).
        vision: Adapt the vision tower too.
        hidden, dropout: Of the answer heads.
        seed: Of first weights.
    """

    base: str = "embedded"
    revision: str = "main"
    dtype: str = "auto"
    variant: Variant = "agentps"
    policy: bool = False
    max_tokens: int = 256
    padding: Padding = "left"
    album: Literal["images", "video"] = "images"
    frames: Frames | None = None
    rank: int = 128
    alpha: int = 256
    adapter_dropout: float = 0.0
    vision: bool = False
    hidden: int = 256
    dropout: float = 0.0
    seed: int = 0

    def as_json(self) -> Json:
        """What `from_json` takes."""
        frames = None if self.frames is None else asdict(self.frames)
        return self._asdict() | {"frames": frames}


def from_json(values: Json) -> Architecture:
    """The architecture that `as_json` wrote.

    Raises:
        TypeError: A field too many.
    """
    frames = values.get("frames")
    return Architecture(**values | {"frames": None if frames is None else Frames(**frames)})


class Built(NamedTuple):
    """A model, untrained or about to be filled, with all that leads posts into it."""

    model: AnsweringModel
    base: Mllm
    collator: Collator
    asked: Questionnaire


def build(architecture: Architecture, task: Task) -> Built:
    """The model of an architecture for a task, on the CPU, its first weights drawn by the seed.

    Raises:
        TaskError: The task has no questions, and the variant asks.
        PromptError: The questions leave no room for a post.
        WeightsError: The base model cannot be had.
    """
    made = architecture
    asked = questionnaire(task, made.variant, policy=made.policy)
    base = load_mllm(made.base, revision=made.revision, dtype=made.dtype, album=made.album, seed=made.seed)
    return assemble(made, asked, base)


def assemble(architecture: Architecture, asked: Questionnaire, base: Mllm) -> Built:
    """`build` with a base model at hand; it is changed in place."""
    made = architecture
    reader = base.reader(asked.wording, made.padding, made.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(made.seed)
        language = adapt(
            base, reader.answer_id, rank=made.rank, alpha=made.alpha,
            dropout=made.adapter_dropout, vision=made.vision,
        )  # fmt: skip
        model = AnsweringModel(
            language, width=base.width, answers=[len(one.answers) for one in asked.all],
            variant=made.variant, answer_id=reader.answer_id, hidden=made.hidden, dropout=made.dropout,
        )  # fmt: skip
    return Built(model, base, Collator(reader, made.frames), asked)
