"""Posts made ready to be asked about: their pictures upright, no larger than asked, re-encoded.

Re-encoding keeps out whatever else a file may carry (location, thumbnails, trailing data) and bounds what a
call weighs: a photo of 12 megapixels costs a model thousands of tokens and tells it little more.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agents.client.base import Picture
from agents.judgment import PostLike

if TYPE_CHECKING:
    from PIL import Image

Opener: TypeAlias = "Callable[[Path, int], Image.Image]"
"""From a file and the longest side wanted, in pixels, to an upright RGB image; raises on a bad file."""

QUALITY = 90
"""Of the JPEG files that are sent."""


@dataclass(frozen=True, slots=True)
class PreparedPost:
    """A post made ready once, for all that is asked about it."""

    post: PostLike  # the post
    pictures: tuple[Picture, ...] = ()  # as they are sent, at most as many as the limit allows
    fault: str = ""  # why it cannot be asked about; empty if it can


async def prepare_post(post: PostLike, opener: Opener, *, side: int, most: int) -> PreparedPost:
    """Encode the first `most` pictures of `post`, the longer side of each at most `side` pixels.

    A picture that cannot be read is no error: it is the prepared post's fault, and costs no call.
    """
    paths = tuple(post.images)[:most]
    try:
        # decoding takes long enough to hold up every other call
        pictures = [await asyncio.to_thread(_encode, path, opener, side) for path in paths]
    except Exception as error:  # decoders raise a dozen types; the reason becomes the judgment's
        return PreparedPost(post, fault=f"A picture of this post could not be read: {error}")
    return PreparedPost(post, tuple(pictures))


def encoder() -> str:
    """Return what encodes pictures, with its version: noted beside the answers."""
    from PIL import __version__

    return f"pillow {__version__}, JPEG {QUALITY}"


def _encode(path: Path, opener: Opener, side: int) -> Picture:
    image = opener(path, side)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    with path.open("rb") as file:
        source = hashlib.file_digest(file, "sha256").hexdigest()
    return Picture(f"{source} {side}", "image/jpeg", buffer.getvalue())
