"""A stream of posts through a model: those that pass a threshold go on, and a kill costs seconds of work.

The papers' platform in small: a model of a chosen precision in front of whoever looks at posts next.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.data.manifest import RowError, Rows
from selftrain.data.posts import Post
from selftrain.data.tables import RawRow, Table, read_json_lines
from selftrain.errors import RunMismatchError
from selftrain.models.predictor import Prediction, Predictor
from selftrain.serving.sink import FilterSink, Tally

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
    source: str,
    *,
    skip: int,
    digest: str,
    max_pixels: int,
    text_limit: int,
    columns: Mapping[str, str] | None = None,
    videos: bool = False,
    tell: Callable[[str], None] = print,
) -> Iterator[SourceRow]:
    """Yield the rows of a manifest, or of JSON lines on standard input, after the first `skip`.

    Ids are not compared between rows: that would need memory for all of them. Images are relative to the
    manifest's folder, those of standard input to the working directory, and must lie inside.

    Args:
        source: A path, or "-".
        skip: Rows that were read at an earlier start; they are read again, and not judged.
        digest: Of those rows.
        max_pixels: The largest width x height that an image's header may claim.
        text_limit: Characters; a longer text makes a bad row.
        columns: Field -> column that holds it, where that is called otherwise.
        videos: Whether the model looks at videos.
        tell: Called with what may have been read otherwise than it was meant, after the last row.

    Raises:
        ManifestError: The source cannot be read.
        RunMismatchError: It does not begin with those rows.
    """
    table = Table("JSON", None, read_json_lines(sys.stdin.buffer), []) if source == STDIN else None
    rows = Rows(
        Path(source), None,
        table=table, max_pixels=max_pixels, columns=columns, labels=False, videos=videos, remember=False,
    )  # fmt: skip
    chained, met = "", 0
    for met, raw in enumerate(rows.table.rows, 1):
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
    for note in rows.notes():
        if note.remedy:
            tell(str(note))


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
    """Digest row by row, so that a later start can follow wherever an earlier one paused."""
    content = json.dumps([raw.line, raw.fields, raw.reason], default=str)
    return hashlib.sha256(f"{before}\n{content}".encode()).hexdigest()


FIELD = "selftrain"  # what is added to a post that passes; one of an earlier filter is replaced
COMMIT_SECONDS = 2.0  # the most work that a kill can cost, beside the chunk under way
_CHUNK = 64


def filter_posts(
    predictor: Predictor,
    source: str,
    sink: Path,
    *,
    threshold: float,
    text_limit: int,
    max_pixels: int,
    columns: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = print,
    commit_seconds: float = COMMIT_SECONDS,
    progress: bool = False,
) -> Tally:
    """Append to `sink` every post of `source` whose positive probability is at least `threshold`.

    Started again with the same arguments it goes on after the last commit; rows added to the source since
    then are read too. The sink is never rewritten, so that others can follow it as it grows; a line counts
    once the progress file beside it says so.

    Args:
        predictor: The model.
        source: A manifest, or "-" for JSON lines on standard input, from their beginning.
        sink: JSON lines: the row as the source has it, with the score in `FIELD`. What failed goes to
            ``SINK.quarantine.jsonl`` with its reason.
        threshold: In [0, 1].
        text_limit, max_pixels, columns, tell: See `read_source`.
        commit_seconds: At least so long between two commits.
        progress: Draw a bar over the rows.

    Returns:
        The totals, earlier starts included.

    Raises:
        RunMismatchError: The sink was begun with another model, threshold, text limit or source.
        RunBusyError, RunStateError, StorageError, ManifestError: See `FilterSink` and `read_source`.
    """
    from tqdm import tqdm

    identity = {"model": predictor.fingerprint, "threshold": threshold, "text_limit": text_limit}
    with FilterSink(sink, identity).opened() as opened:
        tally = opened.tally
        rows = read_source(
            source, skip=tally.rows, digest=tally.source, max_pixels=max_pixels, text_limit=text_limit,
            columns=columns, videos=predictor.kind == "agentps", tell=tell,
        )  # fmt: skip
        bar = tqdm(initial=tally.rows, disable=not progress, desc="posts", unit="")
        committed = time.monotonic()
        for part in _chunks(rows):
            kept, failed = _judge(predictor, part, threshold)
            opened.write(kept, failed)
            tally = Tally(
                tally.rows + len(part), tally.kept + len(kept), tally.failed + len(failed), part[-1].digest
            )
            if time.monotonic() - committed >= commit_seconds:
                opened.commit(tally)
                committed = time.monotonic()
            bar.update(len(part))
        opened.commit(tally)
        bar.close()
    return tally


def _chunks(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    iterator = iter(rows)
    while part := list(islice(iterator, _CHUNK)):
        yield part


def _judge(predictor: Predictor, rows: list[SourceRow], threshold: float) -> tuple[list[str], list[str]]:
    """Return lines for the sink and for the quarantine, in the rows' order."""
    predictions = iter(predictor.predict([row.post for row in rows if row.post is not None]))
    kept: list[str] = []
    failed: list[str] = []
    for row in rows:
        found = Prediction("", reason=row.reason) if row.post is None else next(predictions)
        if found.reason:
            failed.append(_failure(row, found.reason))
        elif found.probs[predictor.positive] >= threshold:
            line = _line((row.fields or {}) | {FIELD: found.to_json() | {"threshold": threshold}})
            if line is None:
                failed.append(_failure(row, "a field holds a number that JSON has no word for"))
            else:
                kept.append(line)
    return kept, failed


def _failure(row: SourceRow, reason: str) -> str:
    kind = "row" if row.post is None else "image" if row.post.images else "post"
    line = _line({"kind": kind, "line": row.line, "id": row.post_id, "reason": reason})
    assert line is not None, "texts and numbers of lines can always be written"
    return line


def _line(value: Json) -> str | None:
    """Write JSON in one line, dates and the like of Parquet as text; None: NaN or infinity."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return None
