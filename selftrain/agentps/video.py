"""Videos as frames, through PyAV (FFmpeg).

A video is data from strangers: its header is judged before a frame is decoded, only the frames that are shown
are kept, and no address but a local file is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi"})
MAX_SECONDS = 3600
_FORMATS = "mov,mp4,matroska,webm,avi"  # what FFmpeg may take the file for: no playlist, no network


def is_video(path: Path) -> bool:
    """Whether the name says that it is one."""
    return path.suffix.lower() in SUFFIXES


def read_frames(path: Path, count: int, *, max_pixels: int) -> list[Image]:
    """`count` frames, evenly over the video's length, in order.

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
    """(seconds since the beginning, frame)."""
    for number, frame in enumerate(container.decode(stream)):
        moment = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
        yield float(moment), frame
