"""Small pictures for a page that needs no other file: bounded in size and number, equal ones shared."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from backbones.errors import ImageError
from backbones.images import open_image
from selftrain._util.printable import printable

SIDE = 320
"""Pixels of the longer side, at most."""
QUALITY = 60
BUDGET = 8_000_000
"""Characters of all pictures of a page together."""
MOST = 2_000
"""Pictures of a page, at most."""
_BATCH = 64
_THREADS = 4


class Pictures(NamedTuple):
    """What a page embeds."""

    urls: Sequence[str]  # data URLs, no two equal
    place: dict[Path, int]  # path -> index into `urls`; a path that is not there was not embedded
    unreadable: dict[Path, str]  # path -> why it could not be decoded
    left_out: int  # how many paths found no room

    def shown(self, path: Path, name: str) -> tuple[int, str]:
        """Return (its place in `urls` or -1, its name, with the reason where it could not be decoded)."""
        if path not in self.unreadable:
            return self.place.get(path, -1), printable(name)
        reason = without_paths(self.unreadable[path].removeprefix(f"{path}: "), {path: name})
        return -1, printable(f"{name} ({reason})")


def embed(paths: Iterable[Path], *, budget: int = BUDGET, most: int = MOST) -> Pictures:
    """Make thumbnails of pictures, the most important path first, until budget or number is used up.

    Paths may repeat; what is read is decoded by the same rules as for training.
    """
    known, place, unreadable = dict[str, int](), dict[Path, int](), dict[Path, str]()  # known: by URL
    wanted = list(dict.fromkeys(paths))
    spent = 0
    for path, url in _thumbnails(wanted):
        if isinstance(url, ImageError):
            unreadable[path] = str(url)
            continue
        if url not in known:
            if spent + len(url) > budget or len(known) >= most:
                break
            known[url] = len(known)
            spent += len(url)
        place[path] = known[url]
    return Pictures(list(known), place, unreadable, len(wanted) - len(place) - len(unreadable))


def _thumbnails(paths: Sequence[Path]) -> Iterator[tuple[Path, str | ImageError]]:
    """Yield (path, data URL or why there is none), in order; no more than a batch is decoded ahead."""
    with ThreadPoolExecutor(_THREADS) as pool:
        rest = iter(paths)
        while batch := list(islice(rest, _BATCH)):
            yield from zip(batch, pool.map(_thumbnail, batch), strict=True)


def _thumbnail(path: Path) -> str | ImageError:
    try:
        return data_url(as_webp(path, SIDE, QUALITY))
    except ImageError as error:
        return error


def as_webp(path: Path, side: int, quality: int) -> bytes:
    """Return a picture as WebP, at most `side` pixels a side; of the file's other contents, nothing.

    Raises:
        ImageError: The file cannot be decoded, or may not be.
    """
    image = open_image(path, target_size=side)
    image.thumbnail((side, side))
    written = io.BytesIO()
    image.save(written, format="WEBP", quality=quality, method=2)
    return written.getvalue()


def without_paths(reason: str, names: Mapping[Path, str]) -> str:
    """Return a reason with files as its readers know them: where they lie is no business of theirs."""
    for path, name in names.items():
        reason = reason.replace(str(path), name)
    return reason


def data_url(picture: bytes) -> str:
    """Return the URL that holds a picture of `as_webp`."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode('ascii')}"
