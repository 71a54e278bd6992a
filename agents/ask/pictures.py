"""Image files as they are sent: upright, no larger than asked, re-encoded.

Re-encoding keeps out whatever else a file may carry (location, thumbnails, trailing data) and bounds what a
call weighs: a photo of 12 megapixels costs a model thousands of tokens and tells it little more.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agents.client.base import Picture, picture

if TYPE_CHECKING:
    from PIL import Image

Opener: TypeAlias = "Callable[[Path, int], Image.Image]"
"""From a file and the longest side wanted, in pixels, to an upright RGB image; raises on a bad file."""

QUALITY = 90


def encode(path: Path, opener: Opener, side: int) -> Picture:
    """The picture in a file as JPEG, its longer side at most `side` pixels.

    Raises:
        Exception: Whatever `opener` raises.
    """
    image = opener(path, side)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return picture(buffer.getvalue(), "image/jpeg")
