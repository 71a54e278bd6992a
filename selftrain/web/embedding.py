"""Data that a page carries for its script: JSON that is safe inside of HTML, in chunks parsed on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from selftrain._util.printable import printable_lines

CHUNK, PICTURE_CHUNK = 200, 400_000
"""Records, and characters of pictures, that are parsed at once."""
TEXT_BUDGET = 24_000_000
"""Characters of all texts of a page together."""


def as_json(value: object) -> Markup:
    """JSON that may stand in a script element: ASCII, and nothing in it ends the element or steers a reader.

    Raises:
        ValueError: A number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def cut(text: str, most: int) -> str:
    """At most `most` characters, a mark where more would follow, and no control that is not seen."""
    return printable_lines(text if len(text) <= most else f"{text[:most].rstrip()} […]")


def picture_chunks(urls: Sequence[str], size: int = PICTURE_CHUNK) -> Iterator[tuple[int, list[str]]]:
    """(number of the first, data URLs), about `size` characters each."""
    start, chunk, held = 0, list[str](), 0
    for number, url in enumerate(urls):
        if chunk and held + len(url) > size:
            yield start, chunk
            start, chunk, held = number, [], 0
        chunk.append(url)
        held += len(url)
    if chunk:
        yield start, chunk
