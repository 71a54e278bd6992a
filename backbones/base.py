"""What every backbone offers: posts in, feature rows out.

Shape legend: ``B`` posts, ``T`` width of the text block, ``I`` width of the image block,
``D = T + I + 2`` width of a feature row.

A feature row is ``[text block | image block | has_text | has_image]``. A block is the tower's embedding
scaled to unit length (several images: the mean of their unit embeddings, scaled again). A modality that
the post does not have leaves its block at exactly zero and its flag at 0, so that no invented picture or
empty sentence is ever encoded; the head sees the flag and learns what absence means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

FeatureArray = npt.NDArray[np.float32]


class Encodable(Protocol):
    """The few attributes of a post that a backbone reads."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def images(self) -> Sequence[Path]: ...


class FeatureLayout(NamedTuple):
    """Where the blocks of a feature row lie."""

    text_width: int
    image_width: int

    @property
    def width(self) -> int:
        """D, the width of a whole row."""
        return self.text_width + self.image_width + 2

    @property
    def text(self) -> slice:
        return slice(0, self.text_width)

    @property
    def image(self) -> slice:
        return slice(self.text_width, self.text_width + self.image_width)

    @property
    def has_text(self) -> int:
        return self.text_width + self.image_width

    @property
    def has_image(self) -> int:
        return self.text_width + self.image_width + 1


class EncodeFailure(NamedTuple):
    """A post that could not be encoded: its position in the sequence given, and why."""

    index: int  # type: ignore[assignment]  # tuple has a method of that name, which nobody calls
    reason: str


class Encoded(NamedTuple):
    """Feature rows [B, D] in the order of the posts; rows of failed posts are NaN."""

    rows: FeatureArray
    failures: tuple[EncodeFailure, ...]


class Backbone(Protocol):
    """Posts to feature rows; what a third party implements to bring an encoder of its own.

    The head alone is trained on the rows of `encode`. Fine-tuning goes through `module` and `collate`, which
    must give the same rows, with gradients; a backbone that is never fine-tuned may raise
    `NotImplementedError` there. For adapters (``classifier.mode = "lora"``) a backbone also offers
    ``lora_targets() -> list[str]``, and to save memory ``set_gradient_checkpointing(enabled)``.

    Attributes:
        name: Short, for messages and progress bars.
        layout: Widths T and I of the two blocks; the same for every post.
    """

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> FeatureLayout: ...

    def fingerprint(self) -> str:
        """Return the hex SHA-256 of everything that can change a row.

        Weights, preprocessing, tokenizer, limits and precision belong to it: rows are cached under it, and a
        classifier is only ever given rows of the fingerprint that it was trained on.
        """
        ...

    def encode(
        self, posts: Sequence[Encodable], *, batch_size: int = 64, workers: int = 0, progress: bool = False
    ) -> Encoded:
        """Encode posts without gradients.

        Args:
            posts: B of them; B may be 0.
            batch_size: Images that go through the tower at once at most, >= 1. Those here take as many
                as suits their device: a row must not hang on how many there are.
            workers: Threads that decode images; 0 decodes in the calling one.
            progress: Draw a bar.

        Returns:
            Rows [B, D] float32 on the CPU, in the order given. An image that cannot be read is reported as a
            failure of its post and its row is NaN; nothing is raised for it.
        """
        ...

    @property
    def module(self) -> Any:  # noqa: ANN401 -- torch is not imported here
        """The ``torch.nn.Module`` whose ``forward(inputs)`` gives rows [B, D] with gradients.

        `encode` uses the same object, so that it follows whatever training does.
        """
        ...

    def collate(self, posts: Sequence[Encodable], *, train: bool = False) -> Any:  # noqa: ANN401
        """Turn posts into the `inputs` of `module`: a dict of tensors, movable to a device.

        Args:
            posts: B of them.
            train: Augment images at random (torch's seed decides).

        Raises:
            backbones.errors.ImageError: An image cannot be read; the message names the post.
        """
        ...
