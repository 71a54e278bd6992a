"""Posts out of a source of any length, one row in memory at a time."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.data.manifest_files import RawRow, read_json_lines, read_rows
from selftrain.data.manifest_rows import RowError, Rows
from selftrain.data.posts import Post
from selftrain.errors import RunMismatchError

STDIN = "-"


class SourceRow(NamedTuple):
    """One row of a source.

    Attributes:
        line: 1-based line (Parquet: row).
        fields: As the source has them; None for a row that could not be read.
        post: None for a bad row.
        post_id: As far as it could be read.
        reason: Why the row is bad, else empty.
        digest: Over this row and all before it: two sources with the same digest began with the same rows.
    """

    line: int
    fields: Json | None
    post: Post | None
    post_id: str | None
    reason: str
    digest: str


def read_source(
    source: str, *, skip: int, digest: str, max_pixels: int, text_limit: int
) -> Iterator[SourceRow]:
    """The rows of a manifest, or of JSON lines on standard input, after the first `skip`.

    Ids are not compared between rows: that would need memory for all of them. Images are relative to the
    manifest's folder, those of standard input to the working directory, and must lie inside.

    Args:
        source: A path, or "-".
        skip: Rows that were read at an earlier start; they are read again, and not judged.
        digest: Of those rows.
        max_pixels: The largest width x height that an image's header may claim.
        text_limit: Characters; a longer text makes a bad row.

    Raises:
        ManifestError: The source cannot be read.
        RunMismatchError: It does not begin with those rows.
    """
    folder = Path() if source == STDIN else Path(source).parent
    rows = Rows(folder, None, allow_missing_text=True, max_pixels=max_pixels, remember=False)
    raws = read_json_lines(sys.stdin.buffer) if source == STDIN else read_rows(Path(source))
    chained, met = "", 0
    for met, raw in enumerate(raws, 1):
        chained = _chain(chained, raw)
        if met > skip:
            yield _judged(raw, rows, text_limit, chained)
        elif met == skip and chained != digest:
            raise RunMismatchError(
                f"{source} does not begin with the {skip:,} rows that were read before; nothing was touched."
                " Give the source that this sink was begun with, or another --sink"
            )
    if met < skip:
        raise RunMismatchError(
            f"{source} has {met:,} rows, {skip:,} were read before: it was cut, or is another source. Restore"
            " it, or give another --sink"
        )


def _judged(raw: RawRow, rows: Rows, text_limit: int, digest: str) -> SourceRow:
    try:
        post = rows.post(raw)
    except RowError as error:
        return SourceRow(raw.line, raw.fields, None, error.post_id, f"{error.reason}; {error.remedy}", digest)
    if len(post.text) > text_limit:
        reason = f"the text has {len(post.text):,} characters, at most {text_limit:,}; raise --text-limit"
        return SourceRow(raw.line, raw.fields, None, post.id, reason, digest)
    return SourceRow(raw.line, raw.fields, post, post.id, "", digest)


def _chain(before: str, raw: RawRow) -> str:
    """A row at a time, so that a later start can follow it without knowing where an earlier one paused."""
    content = json.dumps([raw.line, raw.fields, raw.reason], default=str)
    return hashlib.sha256(f"{before}\n{content}".encode()).hexdigest()
