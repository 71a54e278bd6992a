"""The one safe way to open images: the header is judged before a single pixel is decoded.

Refused, always with an `ImageError` that names the file and the remedy: anything that is not a regular file,
formats outside a short list, more pixels than allowed (a decompression bomb is small on disk), strips so
long that resizing their short side would explode, and files that end before their last pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from backbones.errors import ImageError
from backbones.prefetch import prefetch

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000  # of a file: 50 million pixels in 16 bits and four channels are half as much again
MAX_ASPECT = 100  # resizing the short side of a 1 x 5,000,000 strip to 224 would ask for 750 GB

# An album picture of 2 x the side the tower wants keeps what antialiasing needs.
_DRAFT_MARGIN = 2

Decoded = TypeVar("Decoded")


class ImageHeader(NamedTuple):
    """What the first bytes of an image file say; sizes in pixels, before EXIF rotation."""

    width: int
    height: int
    format: str


def check_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Judge a file by its header alone; nothing is decoded, so a truncated body is not noticed here.

    Raises:
        ImageError: the file is absent, not an image of `FORMATS`, larger than `max_pixels`, or a strip.
    """
    with _header(path, max_pixels) as image:
        return ImageHeader(image.width, image.height, str(image.format))


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS, target_size: int | None = None) -> Image.Image:
    """Decode a file to an upright RGB image: first frame, EXIF orientation applied, alpha laid on white.

    Args:
        path: A local file.
        max_pixels: Width x height above which the file is refused undecoded.
        target_size: Side in pixels that the caller will shrink the image to. JPEG files are then decoded at
            a fraction of their size, never below twice this side; None decodes them in full.

    Raises:
        ImageError: as `check_image`, and for a file that is truncated or damaged.
    """
    from PIL import ImageOps

    with _header(path, max_pixels) as image:
        if target_size is not None:
            side = target_size * _DRAFT_MARGIN
            image.draft(None, (side, side))
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:
            # Decoders fed damaged bytes raise a dozen types (OSError, SyntaxError, struct.error, ...).
            raise ImageError(
                f"{path}: cannot be decoded ({error}); expected a complete {image.format} file. "
                "Fetch it again, or drop it from the manifest."
            ) from error


@contextmanager
def _header(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Give the opened, undecoded image; closed on leaving."""
    from PIL import Image

    # A FIFO or a device would block or never end, so only regular files are opened.
    if not path.is_file():
        found = "not a regular file" if path.exists() else "no such file"
        raise ImageError(f"{path}: {found}; expected an image file. Check the manifest's paths.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty; expected an image. Fetch it again.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ImageError(
            f"{path}: the file has {size:,} bytes; at most {MAX_BYTES:,} are read. Save it anew, or drop it."
        )
    try:
        image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: {error}; scale it down or drop it.") from error
    except Exception as error:
        raise ImageError(
            f"{path}: not an image that can be read ({type(error).__name__}); expected one of "
            f"{', '.join(FORMATS)}. Convert it, or drop it from the manifest."
        ) from error
    with image:
        _check_size(path, image.width, image.height, max_pixels)
        yield image


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} = {width * height:,} pixels; at most {max_pixels:,} are decoded. "
            "Scale it down, or raise the limit if you trust the file."
        )
    short, long = sorted((width, height))
    if short < 1 or long > short * MAX_ASPECT:
        raise ImageError(
            f"{path}: {width} x {height} is a strip; the long side may be at most {MAX_ASPECT} times the "
            "short one. Crop it, or drop it from the manifest."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16-bit samples scaled (Pillow would clip them), alpha composited on white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        samples = np.clip(np.asarray(image, dtype=np.float64), 0, 65535)
        return Image.fromarray((samples / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def prefetch_images(
    paths: Sequence[Path], decode: Callable[[Path], Decoded], workers: int = 0
) -> Iterator[Decoded | ImageError]:
    """Yield `decode` of each of `paths`, in order; an `ImageError` is yielded, not raised.

    Pillow releases the interpreter lock while it decodes and resizes, so threads do, and need no pickling.
    No `workers`: the calling thread decodes. See `backbones.prefetch`.
    """

    def attempt(path: Path) -> Decoded | ImageError:
        try:
            return decode(path)
        except ImageError as error:
            return error

    return prefetch(attempt, paths, workers)
