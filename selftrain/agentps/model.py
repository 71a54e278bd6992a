"""A model and the way of posts into it, built from settings; its weights are a file apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbones.errors import ImageError
from backbones.mllm.answering import AnsweringModel, adapt
from backbones.mllm.base import Mllm
from backbones.mllm.load import load_mllm
from backbones.mllm.prompts import Inputs, Prompt, Reader
from backbones.mllm.vision import Features, without_pixels
from selftrain.agentps.dataset import Example, QuestionSet, question_set
from selftrain.agentps.frames import Frames, count_frames, load_frames
from selftrain.agentps.recipe import ModelSettings
from selftrain.agentps.vision_cache import VisionCache
from selftrain.data.task import Task
from selftrain.errors import MediaError


class CollatedPosts(NamedTuple):
    """What the model is given, and the posts whose pictures cannot be read."""

    # of all posts; one with a picture that cannot be read is there with its words alone, so that a batch
    # keeps its shape. Whoever uses the result leaves it out
    inputs: Inputs
    unread: dict[int, str]  # place in the sequence given -> why
    new: tuple[bytes, ...] = ()  # keys of all pictures, in their order, whose features are to be kept


class Collator:
    """Reads pictures and lays out prompts. Processes may have one each, threads may not share one.

    Without `frames` pictures are left out; `cache` has features of pictures that need not be read any more.
    """

    cache: VisionCache | None = None

    def __init__(self, reader: Reader, frames: Frames | None) -> None:
        self.reader = reader
        self.frames = frames
        self._measured = {0}

    def read(self, examples: Sequence[Example]) -> CollatedPosts:
        """Return the model's inputs, and which posts could not be read; raises as `Reader.read`."""
        prompts = [Prompt(one.text) for one in examples]
        keys, unread = dict[int, list[bytes]](), dict[int, str]()
        for place, one in enumerate(examples):
            with _noting(unread, place):
                if self.cache is not None and self.frames is not None and one.pictures:
                    keys[place] = self.cache.keys(one.pictures)
                prompts[place] = self._prompt(one, keys.get(place))
        keys = {place: found for place, found in keys.items() if place not in unread}
        if self.cache is None or not keys:
            return CollatedPosts(self.reader.read(prompts), unread)
        every = _joined(keys)
        if self.cache.knows(every):
            # blank pictures of the same size take the places that the features go to
            read = without_pixels(self.reader.read(prompts), self.cache.read(every))
            return CollatedPosts(read, unread)
        new = dict[int, list[bytes]]()
        for place, found in keys.items():
            with _noting(unread, place):
                if self.cache.knows(found):  # beside pictures that have to be computed
                    prompts[place] = Prompt(examples[place].text)
                    prompts[place] = self._prompt(examples[place], None)
                new[place] = found
        return CollatedPosts(self.reader.read(prompts), unread, _joined(new))

    def keep(self, collated: CollatedPosts, features: Features | None) -> None:
        """Keep what the model made of pictures, if that is wanted."""
        if self.cache is not None and collated.new and features is not None:
            self.cache.add(collated.new, features.split(len(collated.new)))

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Return the tokens of each post, those of its pictures by one blank post of as many."""
        counts = [self._count(one) for one in examples]
        for count in sorted(set(counts) - self._measured):
            self.reader.read([Prompt("", [self._blank()] * count)])
            self._measured.add(count)
        return [self.reader.length(one.text, count) for one, count in zip(examples, counts, strict=True)]

    def _blank(self) -> Image.Image:
        assert self.frames is not None
        return Image.new("RGB", (self.frames.width, self.frames.height))

    def _count(self, one: Example) -> int:
        return 0 if self.frames is None else count_frames(one.pictures, self.frames)

    def _prompt(self, one: Example, keys: Sequence[bytes] | None) -> Prompt:
        if self.frames is None:
            return Prompt(one.text)
        if keys is not None and self.cache is not None and self.cache.knows(keys):
            return Prompt(one.text, [self._blank()] * self._count(one))
        return Prompt(one.text, load_frames(one.pictures, self.frames))


def _joined(keys: Mapping[int, Sequence[bytes]]) -> tuple[bytes, ...]:
    return tuple(key for found in keys.values() for key in found)


@contextmanager
def _noting(unread: dict[int, str], place: int) -> Iterator[None]:
    """Note, in place of raising it, why a post's pictures cannot be read."""
    try:
        yield
    except (ImageError, MediaError) as error:
        unread[place] = str(error)


def part_sizes(lengths: Sequence[int], posts: int, tokens: int | None) -> list[int]:
    """Return how many posts, in their order, are computed at once; at least one at a time.

    Of posts with so many tokens each, at most `posts` and at most `tokens`, with those that pad them to the
    longest one; None: any number.

    >>> part_sizes([3, 4, 4, 9, 30], 8, 12)
    [3, 1, 1]
    """
    sizes, longest = [0], 0
    for length in lengths:
        longest = max(longest, length)
        if sizes[-1] and (sizes[-1] == posts or (tokens is not None and (sizes[-1] + 1) * longest > tokens)):
            sizes.append(0)
            longest = length
        sizes[-1] += 1
    return sizes


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

    def use_cache(self, cache: VisionCache | None) -> None:
        """Keep features of pictures from now on; None: no more."""
        self.collator.cache, self.model.keeps_features = cache, cache is not None


def build(settings: ModelSettings, task: Task) -> Built:
    """Build the model of a task, on the CPU, its first weights drawn by the seed.

    Raises:
        TaskError, PromptFitError, WeightsError: As `question_set`, `Reader` and `load_mllm`.
    """
    questions = question_set(task, settings.variant, policy=settings.policy, rounds=settings.rounds)
    base = load_mllm(
        settings.base, revision=settings.revision, dtype=settings.dtype, album=settings.album,
        seed=settings.seed,
    )  # fmt: skip
    return assemble(settings, questions, base)


def assemble(settings: ModelSettings, questions: QuestionSet, base: Mllm, *, lean: bool = True) -> Built:
    """Build with a base model at hand; it is changed in place. For `lean` see `adapt`."""
    reader = base.reader(questions.wording, settings.padding, settings.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        language = adapt(
            base, reader.words.answer_id, rank=settings.rank, alpha=settings.alpha,
            dropout=settings.adapter_dropout, vision=settings.vision, lean=lean,
        )  # fmt: skip
        model = AnsweringModel(
            language, width=base.width, answers=[len(one.answers) for one in questions.all],
            variant=settings.variant, answer_id=reader.words.answer_id,
            hidden=settings.hidden, dropout=settings.dropout, fed=settings.fed,
        )  # fmt: skip
    return Built(model, base, Collator(reader, settings.frames), questions)
