"""The one safe way to open images: the header is judged before a single pixel is decoded.

Refused, always with an `ImageError` that names the file and the remedy: anything that is not a regular file,
formats outside a short list, more pixels than allowed (a decompression bomb is small on disk), a JPEG in so
many scans that decoding never ends, strips so long that resizing their short side would explode, and files
that end before their last pixel. A large picture is decoded alone, converted in strips, and shrunk on the way
where the caller will shrink it anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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

LARGE = 4_000_000  # pixels from which a picture is converted in strips and shrunk on the way
_STRIP = 1_000_000
_ALONE = threading.Lock()  # of large ones: each takes up to twenty bytes a pixel while it is decoded

# What decoding costs, in pixels of a grey PNG (8 ns on one core), measured at 49 million pixels.
_WORK = {"WEBP": 3.0, "PNG": 2.0, "GIF": 1.0, "BMP": 1.0, "JPEG": 0.25}
_WORK_A_SCAN = 0.125  # each scan of a progressive JPEG goes over all of it
_MOST_WORK = 4  # a pixel, at `max_pixels` of them

# An album picture of 2 x the side the tower wants keeps what antialiasing needs.
_DRAFT_MARGIN = 2

Decoded = TypeVar("Decoded")


class ImageHeader(NamedTuple):
    """What the first bytes of an image file say; sizes in pixels, before EXIF rotation."""

    width: int
    height: int
    format: str
    work: int  # about what decoding costs: so many pixels of a grey PNG


def check_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Judge a file by its header alone; nothing is decoded, so a truncated body is not noticed here.

    ImageError: the file is absent, not an image of `FORMATS`, larger than `max_pixels`, or a strip.
    """
    with _header(path, max_pixels) as image:
        return ImageHeader(image.width, image.height, str(image.format), _work(path, image))


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS, target_size: int | None = None) -> Image.Image:
    """Decode a file to an upright RGB image: first frame, EXIF orientation applied, alpha laid on white.

    Of a `target_size`, the side in pixels that the caller will shrink the image to, JPEG files are decoded at
    a fraction of their size, and others of more than `LARGE` pixels come shrunk by a whole number, never
    below twice this side; None gives them in full.

    Raises:
        ImageError: as `check_image`, and for a file that is truncated or damaged.
    """
    with _header(path, max_pixels) as image, _ALONE if image.width * image.height > LARGE else nullcontext():
        if target_size is not None:
            side = target_size * _DRAFT_MARGIN
            image.draft(None, (side, side))
        try:
            image.load()
            return _upright(image, target_size)
        except Exception as error:
            # Decoders fed damaged bytes raise a dozen types (OSError, SyntaxError, struct.error, ...).
            raise ImageError(
                f"{path}: cannot be decoded ({error}); expected a complete {image.format} file. "
                "Fetch it again, or leave it out."
            ) from error


@contextmanager
def _header(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Give the opened, undecoded image; closed on leaving."""
    from PIL import Image

    path = Path(path)  # posts of one's own may have texts for paths
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
        # Pillow's own limit, which it looks at first and tells in words of its own: 90 million pixels for
        # whoever makes warnings errors, twice that otherwise
        least = (Image.MAX_IMAGE_PIXELS or 0) * (1 if isinstance(error, Warning) else 2)
        raise _too_large(path, f"more than {least:,} pixels", min(least, max_pixels)) from error
    except Exception as error:
        raise ImageError(
            f"{path}: not an image that can be read ({type(error).__name__}); expected one of "
            f"{', '.join(FORMATS)}. Convert it, or leave it out."
        ) from error
    with image:
        _check_size(path, image.width, image.height, max_pixels)
        if _work(path, image) > _MOST_WORK * max_pixels:
            raise ImageError(
                f"{path}: a progressive JPEG of {image.width} x {image.height} pixels in {_scans(path):,}"
                " scans; ten are usual, and every one is decoded. Save it anew, or drop it."
            )
        yield image


def _work(path: Path, image: Image.Image) -> int:
    """Return about what decoding costs, see `_WORK`."""
    scans = _scans(path) if "progressive" in image.info else 0
    return round(image.width * image.height * (_WORK[str(image.format)] + _WORK_A_SCAN * scans))


def _scans(path: Path) -> int:
    """Count the scans of a JPEG: in its compressed data no 0xFF is followed by 0xDA."""
    return path.read_bytes().count(b"\xff\xda")


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(path, f"{width} x {height} = {width * height:,} pixels", max_pixels)
    short, long = sorted((width, height))
    if short < 1 or long > short * MAX_ASPECT:
        raise ImageError(
            f"{path}: {width} x {height} is a strip; the long side may be at most {MAX_ASPECT} times the "
            "short one. Crop it, or leave it out."
        )


def _too_large(path: Path, found: str, most: int) -> ImageError:
    return ImageError(f"{path}: {found}; at most {most:,} are decoded. Scale it down, or drop it.")


def _upright(image: Image.Image, target_size: int | None) -> Image.Image:
    """Return a decoded picture as upright RGB; a large one shrunk by a whole number where that is asked."""
    from PIL import ExifTags, Image, ImageOps

    if image.width * image.height <= LARGE:
        return _to_rgb(ImageOps.exif_transpose(image))
    short = min(image.size)
    factor = max(1, short // (target_size * _DRAFT_MARGIN)) if target_size else 1
    whole = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = factor * max(1, _STRIP // (image.width * factor))
    for top in range(0, image.height, rows):
        strip = _to_rgb(image.crop((0, top, image.width, min(top + rows, image.height))))
        whole.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    # turned last: before, it would be a second picture of full size
    orientation = ExifTags.Base.Orientation
    whole.getexif()[orientation] = image.getexif().get(orientation, 1)
    return ImageOps.exif_transpose(whole)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16-bit samples scaled (Pillow would clip them), alpha composited on white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        scaled = (np.arange(65536) / 257).round().astype(np.uint8)
        return Image.fromarray(scaled[np.clip(np.asarray(image), 0, 65535).astype(np.uint16)]).convert("RGB")
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
