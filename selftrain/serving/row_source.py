"""Rows as a model takes them: read in order, checked one by one, those left out that are done already.

A digest over all rows so far says whether a source still begins as it did when it was begun with.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from selftrain._util.object_urls import local_path
from selftrain._util.types import Json
from selftrain.data.manifest import Problem, Rows
from selftrain.data.post_store import MetIds
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.data.tables import RawRow, json_table
from selftrain.data.values import RowError
from selftrain.errors import ManifestError, RunMismatchError

STDIN = "-"
Row = TypeVar("Row")


class Tally(NamedTuple):
    """How far rows have come."""

    rows: int = 0  # of the source, good and bad
    kept: int = 0  # written to the sink
    failed: int = 0  # written to the quarantine
    source: str = ""  # digest over the rows read, see `SourceRow`


class SourceRow(NamedTuple):
    """One row of a source."""

    line: int  # 1-based line (Parquet: row)
    fields: Json | None  # as the source has them; None for a row that could not be read
    post: Post | None  # None for a bad row
    post_id: str | None  # as far as it could be read
    reason: str  # why the row is bad, else empty
    digest: str  # over this row and all before it: two sources with the same one began with the same rows
    share: float | None = None  # of the source that has been read with it, in [0, 1]; None: not known


class Part(NamedTuple):
    """Rows that are read, and go through a model, at once."""

    rows: list[SourceRow]  # in their order
    notes: tuple[str, ...] = ()  # after the last row: what may have been read otherwise than it was meant
    fault: ManifestError | None = None  # what ended the reading; the rows before it count


def parts(read: Callable[..., Iterator[SourceRow]], size: int) -> Iterator[Part]:
    """Yield the rows of a source `size` at a time; `read` is `read_source`, which is given `tell` here."""
    notes = list[str]()
    rows = read(tell=notes.append)
    while True:
        part = list[SourceRow]()
        try:
            part.extend(islice(rows, size))
        except ManifestError as fault:
            yield Part(part, tuple(notes), fault)
            return
        if len(part) < size:
            yield Part(part, tuple(notes))
            return
        yield Part(part)


def read_source(
    source: str,
    done: Tally,
    *,
    max_pixels: int,
    text_limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    max_images: int = MAX_IMAGES,
    videos: bool = False,
    whole: bool = False,
    remedy: str = "give another --sink",
    tell: Callable[[str], None] = print,
) -> Iterator[SourceRow]:
    """Yield the rows of a manifest, or of JSON lines on standard input, after those that are done.

    Of a `whole` manifest, unlike of a stream that goes on, ids are compared, in 16 bytes each, and there must
    be rows, with the columns that are named. Images are relative to the manifest's folder, those of standard
    input to the working directory, and must lie inside. After the last row `tell` gets what may have been
    read otherwise than it was meant.

    Raises:
        ManifestError: The source cannot be read, or is whole and lacks what it must have.
        RunMismatchError: It does not begin with the rows that are done; they are read again, and not judged.
    """
    table = json_table(sys.stdin.buffer) if source == STDIN else None
    rows = Rows(
        local_path(source), None,
        table=table, max_pixels=max_pixels, max_images=max_images, columns=columns, labels=False,
        videos=videos, met=MetIds() if whole else None,
    )  # fmt: skip
    contents = (([raw.line, raw.fields, raw.reason], raw) for raw in rows.table.rows)
    found = False
    new = _after(contents, done, source, remedy, rows.pass_over if whole else None)
    for raw, digest in rows.ahead(new, lambda row: row[0]):
        if raw.begun and not whole:
            tell(f"line {raw.line} is no JSON yet and has no end: it is left until it is written")
            break
        found = True
        yield _checked(raw, rows, text_limit, digest)
    if whole and not found and not done.rows:
        raise ManifestError(f"{source} holds no rows: write at least one post into it")
    if whole and rows.columns.missing:
        raise ManifestError(f"no row of {source} has {sorted(rows.columns.missing)}: correct --column")
    for note in rows.notes():
        if note.remedy:
            tell(str(note))


def post_rows(
    rows: Sequence[tuple[int, Post | Problem]],
    done: Tally,
    remedy: str,
    *,
    tell: Callable[[str], None],
) -> Iterator[SourceRow]:
    """Yield posts in memory, and rows that became none, each with its line, after those that are done."""
    contents = ((_content(one), (place, line, one)) for place, (line, one) in enumerate(rows, 1))
    for (place, line, one), digest in _after(contents, done, "the manifest", remedy):
        share = place / len(rows)
        if isinstance(one, Post):
            yield SourceRow(line, None, one, one.id, "", digest, share)
        else:
            yield SourceRow(line, None, None, one.post_id, f"{one.reason}; {one.remedy}", digest, share)


def _content(one: Post | Problem) -> list[Any]:
    if isinstance(one, Post):
        return [one.id, one.text, one.images, one.video, one.label, one.process]
    return [one.line, one.post_id, one.reason]


def _after(
    contents: Iterable[tuple[list[Any], Row]],
    done: Tally,
    source: str,
    remedy: str,
    pass_over: Callable[[Row], object] | None = None,
) -> Iterator[tuple[Row, str]]:
    """Yield rows after those that are done, each with the digest over it and all before it."""
    digest, met = "", 0
    for met, (content, row) in enumerate(contents, 1):
        # row by row, so that a later start can follow wherever an earlier one paused
        digest = hashlib.sha256(f"{digest}\n{json.dumps(content, default=str)}".encode()).hexdigest()
        if met > done.rows:
            yield row, digest
            continue
        if pass_over is not None:
            pass_over(row)
        if met == done.rows and digest != done.source:
            raise RunMismatchError(
                f"{source} does not begin with the {met:,} rows that were read before; nothing was touched."
                f" Give the one that this was begun with, or {remedy}"
            )
    if met < done.rows:
        raise RunMismatchError(
            f"{source} has {met:,} rows, {done.rows:,} were read before: it was cut, or is another source."
            f" Restore it, or {remedy}"
        )


def _checked(raw: RawRow, rows: Rows, text_limit: int | None, digest: str) -> SourceRow:
    share = rows.table.share(raw) if rows.table.share else None
    try:
        post = rows.post(raw)
    except RowError as error:
        reason = f"{error.reason}; {error.remedy}"
        return SourceRow(raw.line, raw.fields, None, error.post_id, reason, digest, share)
    if text_limit is not None and len(post.text) > text_limit:
        reason = f"the text has {len(post.text):,} characters, at most {text_limit:,}; raise --text-limit"
        return SourceRow(raw.line, raw.fields, None, post.id, reason, digest, share)
    return SourceRow(raw.line, raw.fields, post, post.id, "", digest, share)
