"""Albums of any length, and videos, as a fixed number of frames of one size.

As published: a longer album is sampled uniformly, in order; a shorter one begins again until it is full. A
video is data from strangers: its header is judged before a frame is decoded, and every frame when it is; only
the frames that are shown are kept, in the size in which they are shown; a long one is decoded around those
alone; and nothing but a local file is opened.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import ImageOps
from PIL.Image import Image

from backbones.images import MAX_PIXELS, open_image
from selftrain.data.posts import VIDEOS
from selftrain.errors import MediaError
from selftrain.store.checksums import digest_of

MAX_SECONDS = 3600
WHOLE = 5_000
"""Frames of a video that is decoded from beginning to end; of a longer one, what is before each moment."""
MAX_DECODED, MAX_DECODED_PIXELS = 20_000, 40_000_000_000
"""Frames that are decoded for those that are shown, and pixels of them all, at most."""
_FORMATS = "mov,mp4,matroska,webm,avi"  # what FFmpeg may take the file for: no playlist, no network


@dataclass(frozen=True, slots=True)
class Frames:
    """How an album is shown."""

    count: int = 16  # frames of every post that has a picture, at least 1 (published: 16)
    # width, height: of every frame, pixels (published: 360 x 636)
    width: int = 360
    height: int = 636
    repeat: bool = True  # fill a short album up by beginning again (as published); else it stays short
    max_pixels: int = MAX_PIXELS  # width x height above which a picture is refused undecoded


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
        ImageError, MediaError: A picture, or a video, that cannot be read; the message names it.
    """
    if _is_one_video(pictures):
        return read_frames(
            pictures[0], frames.count, max_pixels=frames.max_pixels, fit=lambda image: _fit(image, frames)
        )
    places = chosen(len(pictures), frames.count, repeat=frames.repeat)
    limits = {"max_pixels": frames.max_pixels, "target_size": max(frames.width, frames.height)}
    # a picture that is shown again is decoded once
    opened = {place: _fit(open_image(pictures[place], **limits), frames) for place in sorted(set(places))}
    return [opened[place] for place in places]


def count_frames(pictures: Sequence[Path], frames: Frames) -> int:
    """Return how many frames `load_frames` gives."""
    if _is_one_video(pictures):
        return frames.count
    return len(chosen(len(pictures), frames.count, repeat=frames.repeat))


def frame_keys(pictures: Sequence[Path], frames: Frames) -> list[bytes]:
    """Return what each frame of `load_frames` is made of: SHA-256 of its picture's bytes, or of its video's.

    MediaError: a file that cannot be read.
    """
    try:
        if _is_one_video(pictures):
            video = bytes.fromhex(digest_of(pictures[0]))
            return [hashlib.sha256(video + bytes([i])).digest() for i in range(frames.count)]
        places = chosen(len(pictures), frames.count, repeat=frames.repeat)
        found = {place: bytes.fromhex(digest_of(pictures[place])) for place in set(places)}
    except OSError as error:
        raise MediaError(f"{error.filename}: {error.strerror}. Check the manifest's paths") from error
    return [found[place] for place in places]


def _fit(image: Image, frames: Frames) -> Image:
    """Return `image` in the middle of a frame of the wanted size."""
    return ImageOps.pad(image, (frames.width, frames.height), color=(128, 128, 128))


def _is_one_video(pictures: Sequence[Path]) -> bool:
    return len(pictures) == 1 and is_video(pictures[0])


def is_video(path: Path) -> bool:
    """Return whether the name says that it is a video."""
    return path.suffix.lower() in VIDEOS


def read_frames(
    path: Path, count: int, *, max_pixels: int, fit: Callable[[Image], Image] = lambda image: image
) -> list[Image]:
    """Return `count` frames, evenly over a video's length, in order; of a shorter one it begins again.

    `fit` is called with each as it is decoded: only what it returns is kept.

    Raises:
        MediaError: Not a video, too large (above `max_pixels` in its header or later on), too long or of no
            length that can be found, with too much to decode, or without a frame that can be decoded.
    """
    import av

    if not path.is_file():
        raise MediaError(f"{path}: no such file; expected a video. Check the manifest's paths")
    try:
        with av.open(str(path), format=None, options={"format_whitelist": _FORMATS}) as container:
            return _Video(path, container, max_pixels, fit).sampled(count)
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path}: cannot be read as a video ({error}); expected one of {', '.join(sorted(VIDEOS))}."
            " Fetch it again, or leave it out"
        ) from error


class _Video:
    """One opened video; counts what of it is decoded."""

    def __init__(self, path: Path, container: Any, max_pixels: int, fit: Callable[[Image], Image]) -> None:  # noqa: ANN401 -- av's
        if not container.streams.video:
            raise MediaError(f"{path}: there is no video in it; expected a video stream")
        self._path, self._container, self._max_pixels, self._fit = path, container, max_pixels, fit
        self._stream = container.streams.video[0]
        if self._stream.codec_context is None:
            raise MediaError(
                f"{path}: nothing here decodes its video; expected a usual codec, H.264 for instance. Save it"
                " anew (`ffmpeg -i OLD NEW`), or leave it out"
            )
        self._decoded = self._pixels = 0
        self._check_size(self._stream)
        # a size that changes in mid-stream is refused before there is memory for it; decoders pad what they
        # are given, so the limit here is a little higher
        self._stream.codec_context.options = {"max_pixels": str(max_pixels * 5 // 4 + 1_000_000)}

    def sampled(self, count: int) -> list[Image]:
        """Return so many frames, evenly over the length."""
        seconds = float(self._container.duration or 0) / 1_000_000
        begin = 0.0
        # a live recording's header has no length, and its clock may have run for hours
        if seconds <= float((self._stream.start_time or 0) * self._stream.time_base) * 2 * count:
            begin, seconds = self._measured()
        if seconds > MAX_SECONDS:
            raise MediaError(
                f"{self._path}: {seconds:,.0f} seconds long; at most {MAX_SECONDS:,} are read. Cut it"
            )
        wanted = [begin + (i + 0.5) / count * seconds for i in range(count)]
        if seconds * float(self._stream.average_rate or 25) <= WHOLE:
            return self._shown(self._frames(), wanted)
        return [image for moment in wanted for image in self._shown(self._frames_before(moment), [moment])]

    def _measured(self) -> tuple[float, float]:
        """Return where the frames begin and how long they last, seconds, by their packets, none decoded."""
        first, last, end = math.inf, -math.inf, -math.inf
        for packet in self._container.demux(self._stream):
            at = packet.dts if packet.pts is None else packet.pts
            if at is not None:  # the last packet is an empty one, without a time
                first, last, end = min(first, at), max(last, at), max(end, at + (packet.duration or 0))
            if (last - first) * self._stream.time_base > MAX_SECONDS:
                break
        if not first < end:
            raise MediaError(
                f"{self._path}: neither its header nor its packets say how long it is; expected a video with"
                " timestamps. Save it anew (`ffmpeg -i OLD NEW`), or leave it out"
            )
        self._container.seek(int(first), stream=self._stream)
        return float(first * self._stream.time_base), float((end - first) * self._stream.time_base)

    def _shown(self, frames: Iterator[tuple[float, Any]], wanted: Sequence[float]) -> list[Image]:
        """Return what is on the screen at each moment: the last frame that began by then."""
        shown: list[Image] = []
        before: Any = None
        for moment, frame in frames:
            while len(shown) < len(wanted) and moment > wanted[len(shown)]:
                shown.append(self._image(frame if before is None else before))
            if len(shown) == len(wanted):
                return shown
            before = frame
        if before is None:
            raise MediaError(f"{self._path}: not one frame can be decoded; fetch it again")
        return shown + [self._image(before)] * (len(wanted) - len(shown))

    def _frames_before(self, moment: float) -> Iterator[tuple[float, Any]]:
        """Yield frames as `_frames`, from the last key frame before a moment on."""
        self._container.seek(int(moment / self._stream.time_base), stream=self._stream)
        frames = self._frames()
        first = next(frames, None)
        if first is None or first[0] > moment:  # an index that is wrong, or none
            self._container.seek(0)
            return self._frames()
        return chain([first], frames)

    def _frames(self) -> Iterator[tuple[float, Any]]:
        """Yield (seconds since the beginning, frame)."""
        for number, frame in enumerate(self._container.decode(self._stream)):
            self._check_size(frame)
            self._decoded += 1
            self._pixels += frame.width * frame.height
            if self._decoded > MAX_DECODED or self._pixels > MAX_DECODED_PIXELS:
                raise MediaError(
                    f"{self._path}: more than {MAX_DECODED:,} frames, or {MAX_DECODED_PIXELS:,} pixels, would"
                    " have to be decoded. Cut it, scale it down, or save it with key frames more often"
                )
            moment = frame.time if frame.time is not None else number / float(self._stream.average_rate or 25)
            yield float(moment), frame

    def _check_size(self, of: Any) -> None:  # noqa: ANN401
        if of.width * of.height > self._max_pixels:
            raise MediaError(
                f"{self._path}: frames of {of.width} x {of.height} pixels; at most {self._max_pixels:,} are"
                " decoded. Scale the video down"
            )

    def _image(self, frame: Any) -> Image:  # noqa: ANN401
        picture: Image = frame.to_image()
        # telephones film sideways, and say so
        return self._fit(picture.convert("RGB").rotate(frame.rotation, expand=True))
