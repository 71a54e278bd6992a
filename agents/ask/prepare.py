"""Posts made ready to be asked about: their pictures upright, no larger than asked, re-encoded.

Re-encoding keeps out whatever else a file may carry (location, thumbnails, trailing data) and bounds what a
call weighs: a photo of 12 megapixels costs a model thousands of tokens and tells it little more.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agents.client.base import ChatRequest, Message, Picture, Sampling
from agents.client.messages import data_url
from agents.errors import RequestRefusedError
from agents.judgment import PostLike

if TYPE_CHECKING:
    from PIL import Image

Opener: TypeAlias = "Callable[[Path, int], Image.Image]"
"""From a file and the longest side wanted, in pixels, to an upright RGB image; raises on a bad file."""

UNREADABLE = "A picture of this post could not be read"
QUALITY = 90
"""Of the JPEG files that are sent."""


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
    """

    def __init__(self, opener: Opener, side: int, most_bytes: int = 256 << 20) -> None:
        self._opener, self._side, self._left = opener, side, most_bytes
        self._sources: dict[tuple[Path, int, int], str] = {}
        self._made: OrderedDict[Picture, asyncio.Task[Picture]] = OrderedDict()

    async def prepare(self, post: PostLike, most: int) -> PreparedPost:
        """Return a post with its first `most` pictures, which are yet to be decoded."""
        try:
            pictures = [
                Picture(f"{await self._source(path)} {self._side}", "image/jpeg", b"", path)
                for path in tuple(post.images)[:most]
            ]
        except OSError as error:
            return PreparedPost(post, fault=f"{UNREADABLE}: {error}")
        return PreparedPost(post, tuple(pictures))

    async def load(self, request: ChatRequest) -> ChatRequest:
        """Return a request with its pictures decoded and encoded.

        Raises:
            RequestRefusedError: One cannot be read.
        """
        parts = {part for turn in request.messages for part in turn.parts if isinstance(part, Picture)}
        wanted = [part for part in parts if not part.data]
        if not wanted:
            return request
        try:
            made = {part: await self._load(part) for part in wanted}
        except Exception as error:  # decoders raise a dozen types; the reason becomes the judgment's
            raise RequestRefusedError(f"{UNREADABLE}: {error}") from error
        turns = [
            Message(turn.role, tuple(made.get(p, p) if isinstance(p, Picture) else p for p in turn.parts))
            for turn in request.messages
        ]
        return replace(request, messages=tuple(turns))

    async def _source(self, path: Path) -> str:
        state = path.stat()
        known = path, state.st_size, state.st_mtime_ns
        if known not in self._sources:
            self._sources[known] = await asyncio.to_thread(_sha256, path)
        return self._sources[known]

    async def _load(self, picture: Picture) -> Picture:
        task = self._made.get(picture)
        if task is None:
            # decoding takes long enough to hold up every other call
            task = asyncio.create_task(asyncio.to_thread(self._encoded, picture))
            self._made[picture] = task
            try:
                self._left -= _size(await asyncio.shield(task))
            except BaseException:
                self._made.pop(picture, None)
                raise
            while self._left < 0 and (oldest := next(iter(self._made.values()))).done():
                self._left += _size(oldest.result())
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(picture)
        return await asyncio.shield(task)

    def _encoded(self, picture: Picture) -> Picture:
        assert picture.path is not None, "a picture without its data has a file"
        found = _encode(picture.path, self._opener, self._side)
        if found.source != picture.source:
            raise ValueError("its file was changed while it was asked about")
        return found._replace(url=data_url(found))  # once, for all that is asked about it


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


def _encode(path: Path, opener: Opener, side: int) -> Picture:
    image = opener(path, side)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return Picture(f"{_sha256(path)} {side}", "image/jpeg", buffer.getvalue(), path)


def _size(picture: Picture) -> int:
    return len(picture.data) + len(picture.url)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
