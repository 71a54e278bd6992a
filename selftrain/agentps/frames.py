"""Albums of any length, and videos, as a fixed number of frames of one size.

As published: a longer album is sampled uniformly, in order; a shorter one begins again until it is full. A
video is data from strangers: its header is judged before a frame is decoded, only the frames that are shown
are kept, and nothing but a local file is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageOps
from PIL.Image import Image

from backbones.images import MAX_PIXELS, open_image
from selftrain.errors import MediaError

SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi"})
MAX_SECONDS = 3600
_FORMATS = "mov,mp4,matroska,webm,avi"  # what FFmpeg may take the file for: no playlist, no network


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
    """Return which of `available` pictures are shown, in order.

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
    """Return the frames of a post, upright RGB, all of one size; a video is sampled into frames.

    A picture keeps its proportions: what it lacks to the size is grey.

    Raises:
        ImageError: A picture that cannot be read; the message names it.
        MediaError: A video that cannot.
    """
    if len(pictures) == 1 and is_video(pictures[0]):
        shown = read_frames(pictures[0], frames.count, max_pixels=frames.max_pixels)
        return [_fit(image, frames) for image in shown]
    places = chosen(len(pictures), frames.count, repeat=frames.repeat)
    limits = {"max_pixels": frames.max_pixels, "target_size": max(frames.width, frames.height)}
    # a picture that is shown again is decoded once
    opened = {place: _fit(open_image(pictures[place], **limits), frames) for place in sorted(set(places))}
    return [opened[place] for place in places]


def frame_keys(pictures: Sequence[Path], frames: Frames) -> list[bytes]:
    """Return what each frame of `load_frames` is made of: SHA-256 of its picture's bytes, or of its video's.

    Raises:
        MediaError: A file that cannot be read.
    """
    try:
        if len(pictures) == 1 and is_video(pictures[0]):
            video = hashlib.sha256(pictures[0].read_bytes()).digest()
            return [hashlib.sha256(video + bytes([i])).digest() for i in range(frames.count)]
        places = chosen(len(pictures), frames.count, repeat=frames.repeat)
        found = {place: hashlib.sha256(pictures[place].read_bytes()).digest() for place in set(places)}
    except OSError as error:
        raise MediaError(f"{error.filename}: {error.strerror}. Check the manifest's paths") from error
    return [found[place] for place in places]


def _fit(image: Image, frames: Frames) -> Image:
    """Return `image` in the middle of a frame of the wanted size."""
    return ImageOps.pad(image, (frames.width, frames.height), color=(128, 128, 128))


def is_video(path: Path) -> bool:
    """Return whether the name says that it is a video."""
    return path.suffix.lower() in SUFFIXES


def read_frames(path: Path, count: int, *, max_pixels: int) -> list[Image]:
    """Return `count` frames, evenly over the video's length, in order.

    Args:
        path: A local file.
        count: At least 1; a video of fewer frames begins again.
        max_pixels: Width x height above which the video is refused undecoded.

    Raises:
        MediaError: Not a video, too large, too long, or without a frame that can be decoded.
    """
    import av

    if not path.is_file():
        raise MediaError(f"{path}: no such file; expected a video. Check the manifest's paths")
    try:
        with av.open(str(path), format=None, options={"format_whitelist": _FORMATS}) as container:
            return _sampled(path, container, count, max_pixels)
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path}: cannot be read as a video ({error}); expected one of {', '.join(sorted(SUFFIXES))}."
            " Fetch it again, or drop it from the manifest"
        ) from error


def _sampled(path: Path, container: Any, count: int, max_pixels: int) -> list[Image]:  # noqa: ANN401 -- av's
    if not container.streams.video:
        raise MediaError(f"{path}: there is no video in it; expected a video stream")
    stream = container.streams.video[0]
    if stream.width * stream.height > max_pixels:
        raise MediaError(
            f"{path}: frames of {stream.width} x {stream.height} pixels; at most {max_pixels:,} are decoded."
            " Scale the video down"
        )
    seconds = float(container.duration or 0) / 1_000_000
    if seconds > MAX_SECONDS:
        raise MediaError(f"{path}: {seconds:,.0f} seconds long; at most {MAX_SECONDS:,} are read. Cut it")
    wanted = [(i + 0.5) / count * seconds for i in range(count)]
    shown: list[Image] = []
    before: Any = None
    for moment, frame in _frames(container, stream):
        # what is on the screen at a moment is the last frame that began by then
        while len(shown) < count and moment > wanted[len(shown)]:
            shown.append(_image(frame if before is None else before))
        if len(shown) == count:
            return shown
        before = frame
    if before is None:
        raise MediaError(f"{path}: not one frame can be decoded; fetch it again")
    return shown + [_image(before)] * (count - len(shown))


def _image(frame: Any) -> Image:  # noqa: ANN401
    picture: Image = frame.to_image()
    return picture.convert("RGB")


def _frames(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:  # noqa: ANN401
    """Yield (seconds since the beginning, frame)."""
    for number, frame in enumerate(container.decode(stream)):
        moment = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
        yield float(moment), frame
