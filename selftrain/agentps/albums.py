"""Albums of any length as a fixed number of frames of one size.

As published: a longer album is sampled uniformly, in order; a shorter one begins again until it is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.images import MAX_PIXELS, open_image
from selftrain.agentps.video import is_video, read_frames

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Frames:
    """How an album is shown.

    Attributes:
        count: Frames of every post that has a picture, at least 1 (published: 16).
        width, height: Of every frame, pixels (published: 360 x 636).
        repeat: Fill a short album up by beginning again (as published); else it stays short.
        max_pixels: Width x height above which a picture is refused undecoded.
    """

    count: int = 16
    width: int = 360
    height: int = 636
    repeat: bool = True
    max_pixels: int = MAX_PIXELS


def chosen(available: int, count: int, *, repeat: bool) -> list[int]:
    """Which of `available` pictures are shown, in order.

    >>> chosen(5, 3, repeat=True), chosen(2, 5, repeat=True), chosen(2, 5, repeat=False)
    ([0, 2, 4], [0, 1, 0, 1, 0], [0, 1])
    """
    if available == 0:
        return []
    if available > count:
        # the middles of `count` equal stretches
        return [int((2 * i + 1) * available / (2 * count)) for i in range(count)]
    return [i % available for i in range(count)] if repeat else list(range(available))


def load_frames(pictures: Sequence[Path], frames: Frames) -> list[Image]:
    """The frames of a post, upright RGB, all of one size; a video among `pictures` is sampled into frames.

    A picture keeps its proportions: what it lacks to the size is grey.

    Raises:
        ImageError: A picture that cannot be read; the message names it.
        MediaError: A video that cannot.
    """
    if len(pictures) == 1 and is_video(pictures[0]):
        shown = read_frames(pictures[0], frames.count, max_pixels=frames.max_pixels)
        return [fitted(image, frames) for image in shown]
    places = chosen(len(pictures), frames.count, repeat=frames.repeat)
    # a picture that is shown again is decoded once
    opened = {place: fitted(_open(pictures[place], frames), frames) for place in sorted(set(places))}
    return [opened[place] for place in places]


def _open(path: Path, frames: Frames) -> Image:
    return open_image(path, max_pixels=frames.max_pixels, target_size=max(frames.width, frames.height))


def fitted(image: Image, frames: Frames) -> Image:
    """`image` in the middle of a frame of the wanted size."""
    from PIL import ImageOps

    return ImageOps.pad(image, (frames.width, frames.height), color=(128, 128, 128))
