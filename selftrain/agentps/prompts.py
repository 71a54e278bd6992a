"""Examples to the tensors that a model reads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backbones.errors import ImageError
from backbones.mllm.base import Inputs, Prompt, Reader
from selftrain.agentps.albums import Frames, load_frames
from selftrain.agentps.examples import Example
from selftrain.errors import MediaError


class Unread(NamedTuple):
    """A post whose pictures cannot be read: its place in the sequence given, and why."""

    place: int
    reason: str


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

    def inputs(self, examples: Sequence[Example]) -> Inputs:
        """The model's inputs.

        Raises:
            ImageError, MediaError: A picture that cannot be read.
            PromptError: See `Reader.read`.
        """
        return self._read([self._prompt(one) for one in examples])

    def readable(self, examples: Sequence[Example]) -> tuple[Inputs | None, list[int], list[Unread]]:
        """The inputs of the posts that can be read, their places, and the other posts with their reasons."""
        prompts, places, unread = [], [], []
        for place, one in enumerate(examples):
            try:
                prompts.append(self._prompt(one))
                places.append(place)
            except (ImageError, MediaError) as error:
                unread.append(Unread(place, str(error)))
        return (self._read(prompts) if prompts else None), places, unread

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each post, to sort by."""
        with self._reading:
            return [self.reader.length(one.text, self._count(one)) for one in examples]

    def _read(self, prompts: Sequence[Prompt]) -> Inputs:
        with self._reading:
            return self.reader.read(prompts)

    def _count(self, one: Example) -> int:
        if self.frames is None or not one.pictures:
            return 0
        return self.frames.count if self.frames.repeat else min(self.frames.count, len(one.pictures))

    def _prompt(self, one: Example) -> Prompt:
        return Prompt(one.text, [] if self.frames is None else load_frames(one.pictures, self.frames))


def stack_targets(examples: Sequence[Example]) -> list[Tensor]:
    """Targets [B, K] of each question."""
    columns = zip(*(one.targets for one in examples), strict=True)
    return [torch.from_numpy(np.stack(column)) for column in columns]
