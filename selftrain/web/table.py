"""What table.js reads out of a page: an index of all records, the records in chunks, and their pictures.

The index holds in columns what filters, sorting and the list need; the script parses a chunk when somebody
looks. Whoever makes the records makes visible what could steer or hide; the script shows strings as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from selftrain._util.printable import printable_lines
from selftrain.web.html import as_json
from selftrain.web.pictures import Pictures

CHUNK, PICTURE_CHUNK = 200, 40
"""Records, and pictures, that are parsed at once."""
TEXT_BUDGET = 24_000_000
"""Characters of all texts of a page together."""
MOST_RECORDS = 50_000
"""Records of a page."""


class Control(NamedTuple):
    """A control that filters or sorts: its element's id, its title, and value and text of each option."""

    id: str
    title: str
    options: Sequence[tuple[object, str]]


class TableData(NamedTuple):
    """The table of a page."""

    name: str  # of the records' chunks: "verdicts", "cases"
    controls: Sequence[Control]  # the filters, then the sort
    listing: Markup  # JSON of the index
    chunks: Sequence[Markup]  # JSON of the records, `CHUNK` each; record i lies in chunk i // CHUNK
    pictures: Sequence[Markup]  # JSON of data URLs by number, `PICTURE_CHUNK` each
    shown: int  # how many records are in the page, and in all
    total: int
    embedded: int  # pictures in the page, and those that found no room
    left_out: int
    cut: int  # characters to which texts were cut


def embed_table(
    name: str,
    controls: Sequence[Control],
    index: Mapping[str, object],
    records: Sequence[Sequence[Any]],
    pictures: Pictures,
    *,
    total: int,
    cut: int,
) -> TableData:
    """Return index, records and pictures as JSON; a number that is not finite is a ValueError."""
    return TableData(
        name=name,
        controls=controls,
        listing=as_json({"chunk": CHUNK, **index, "pictures": PICTURE_CHUNK}),
        chunks=_chunks(records, CHUNK),
        pictures=_chunks(pictures.urls, PICTURE_CHUNK),
        shown=len(records),
        total=total,
        embedded=len(pictures.urls),
        left_out=pictures.left_out,
        cut=cut,
    )


def _chunks(items: Sequence[object], size: int) -> list[Markup]:
    return [as_json(items[start : start + size]) for start in range(0, len(items), size)]


def cut_text(text: str, most: int) -> str:
    """Return at most `most` characters, a mark where more would follow, and no control that is not seen."""
    return printable_lines(text if len(text) <= most else f"{text[:most].rstrip()} […]")


def fitting(choices: Sequence[tuple[int, ...]], *lengths: Sequence[int]) -> tuple[int, ...]:
    """Return the first choice that keeps all texts within `TEXT_BUDGET`, or the last.

    A choice has a length to cut each kind of text to, longest first; `lengths` are those of the texts, kind
    by kind.
    """
    for choice in choices:
        sizes = (min(n, most) for most, kind in zip(choice, lengths, strict=True) for n in kind)
        if sum(sizes) <= TEXT_BUDGET:
            return choice
    return choices[-1]
