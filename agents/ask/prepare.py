"""Posts made ready to be asked about: their pictures upright, no larger than asked, re-encoded.

Re-encoding keeps out whatever else a file may carry (location, thumbnails, trailing data) and bounds what a
call weighs: a photo of 12 megapixels costs a model thousands of tokens and tells it little more.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agents.client.base import ChatRequest, Message, Picture, Sampling
from agents.client.messages import data_url
from agents.errors import RequestRefusedError, UnreadableError
from agents.judgment import PostLike

if TYPE_CHECKING:
    from PIL import Image

Opener: TypeAlias = "Callable[[Path, int], Image.Image]"
"""From a file and the longest side wanted, in pixels, to an upright RGB image; raises on a bad file."""

FrameReader: TypeAlias = "Callable[[Path, int, int], Sequence[Image.Image]]"
"""From a video, how many frames of it, and the longest side wanted, to RGB images; raises on a bad file."""

QUALITY = 90
"""Of the JPEG files that are sent."""
_VIDEOS = 4  # decoded at a time: a frame of full size is large


@dataclass(frozen=True, slots=True)
class PreparedPost:
    """A post made ready once, for all that is asked about it."""

    post: PostLike  # the post
    pictures: tuple[Picture, ...] = ()  # at most as many as the limit allows
    fault: str = ""  # why it cannot be asked about; empty if it can


class PictureLoader:
    """The pictures of posts: known by their files, decoded when they are first sent, and remembered.

    Where every answer is there already, none is decoded. A file is known by path, size and time of change:
    it is read once. Lives on one event loop.

    Args:
        opener: Opens image files.
        side: Longest side of a picture as it is sent, in pixels.
        most_bytes: Of encoded pictures that are remembered; those that were not sent for longest go first.
        frames: Samples videos; None where none is shown.
    """

    def __init__(
        self, opener: Opener, side: int, most_bytes: int = 256 << 20, frames: FrameReader | None = None
    ) -> None:
        self._opener, self._side, self._left, self._frames = opener, side, most_bytes, frames
        self._sources: dict[tuple[Path, int, int], str] = {}
        self._made: OrderedDict[Picture, asyncio.Task[dict[Picture, Picture]]] = OrderedDict()
        self._videos = asyncio.Semaphore(_VIDEOS)

    async def prepare(self, post: PostLike, most: int, video: Path | None = None) -> PreparedPost:
        """Return a post with its first `most` pictures, or so many frames of a video, yet to be decoded."""
        try:
            if video is not None:
                whole = await self._picture(video)
                return PreparedPost(post, tuple(whole._replace(frame=(i, most)) for i in range(most)))
            return PreparedPost(post, tuple([await self._picture(one) for one in tuple(post.images)[:most]]))
        except OSError as error:
            return PreparedPost(post, fault=_unreadable(error, video=video is not None))

    async def load(self, request: ChatRequest) -> ChatRequest:
        """Return a request with its pictures decoded and encoded.

        Raises:
            UnreadableError: One cannot be read.
        """
        parts = {part for turn in request.messages for part in turn.parts if isinstance(part, Picture)}
        # the frames of a video are decoded together
        wanted = {one._replace(frame=one.frame and (0, one.frame[1])) for one in parts if not one.data}
        made = dict[Picture, Picture]()
        for one in wanted:
            try:
                made |= await self._load(one)
            except Exception as error:  # decoders raise a dozen types; the reason becomes the judgment's
                raise UnreadableError(_unreadable(error, video=one.frame is not None)) from error
        if not made:
            return request
        turns = [
            Message(turn.role, tuple(made.get(p, p) if isinstance(p, Picture) else p for p in turn.parts))
            for turn in request.messages
        ]
        return replace(request, messages=tuple(turns))

    async def _picture(self, path: Path) -> Picture:
        return Picture(f"{await self._source(path)} {self._side}", "image/jpeg", b"", path)

    async def _source(self, path: Path) -> str:
        state = path.stat()
        known = path, state.st_size, state.st_mtime_ns
        if known not in self._sources:
            self._sources[known] = await asyncio.to_thread(_sha256, path)
        return self._sources[known]

    async def _load(self, first: Picture) -> Mapping[Picture, Picture]:
        """Return what a picture becomes; of a video's first frame, what all of its frames become."""
        task = self._made.get(first)
        if task is None:
            task = asyncio.create_task(self._decode(first))
            self._made[first] = task
            try:
                self._left -= _size(await asyncio.shield(task))
            except BaseException as error:
                # a video that is none may show it late: it is not decoded for every question
                if first.frame is None or not isinstance(error, Exception):
                    self._made.pop(first, None)
                raise
            while self._left < 0 and (oldest := next(iter(self._made.values()))).done():
                self._left += 0 if oldest.exception() else _size(oldest.result())
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(first)
        return await asyncio.shield(task)

    async def _decode(self, first: Picture) -> dict[Picture, Picture]:
        # it takes long enough to hold up every other call
        async with nullcontext() if first.frame is None else self._videos:
            return await asyncio.to_thread(self._encoded, first)

    def _encoded(self, first: Picture) -> dict[Picture, Picture]:
        path, side = first.path, self._side
        assert path is not None, "a picture without its data has a file"
        if first.frame is None:
            opened = {first: self._opener(path, side)}
        else:
            assert self._frames is not None, "whoever asks about a video says how it is sampled"
            count = first.frame[1]
            images = zip(range(count), self._frames(path, count, side), strict=True)
            opened = {first._replace(frame=(i, count)): image for i, image in images}
        if f"{_sha256(path)} {side}" != first.source:
            raise ValueError("its file was changed while it was asked about")
        return {one: _encode(one, image, side) for one, image in opened.items()}


async def prepare_post(post: PostLike, opener: Opener, *, side: int, most: int) -> PreparedPost:
    """Encode the first `most` pictures of `post`, the longer side of each at most `side` pixels.

    A picture that cannot be read is no error: it is the prepared post's fault, and costs no call.
    """
    pictures = PictureLoader(opener, side)
    prepared = await pictures.prepare(post, most)
    try:
        made = await pictures.load(ChatRequest((Message("user", prepared.pictures),), None, Sampling(1)))
    except RequestRefusedError as error:
        return PreparedPost(post, fault=str(error))
    parts = made.messages[0].parts
    return replace(prepared, pictures=tuple(part for part in parts if isinstance(part, Picture)))


def encoder() -> str:
    """Return what encodes pictures, with its version: noted beside the answers."""
    from PIL import __version__

    return f"pillow {__version__}, JPEG {QUALITY}"


def _encode(picture: Picture, image: Image.Image, side: int) -> Picture:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    made = picture._replace(data=buffer.getvalue())
    return made._replace(url=data_url(made))  # once, for all that is asked about it


def _size(made: Mapping[Picture, Picture]) -> int:
    return sum(len(one.data) + len(one.url) for one in made.values())


def _unreadable(error: Exception, *, video: bool) -> str:
    return f"{'The video' if video else 'A picture'} of this post could not be read: {error}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
