"""A stream of posts through a model: those that pass a threshold go on, and a kill costs seconds of work.

The papers' platform in small: a model of a chosen precision in front of whoever looks at posts next. Lines
are appended to the sink and to its quarantine, both are flushed to the disk, and only then the progress file
is replaced in one step. What stands behind the recorded length was not recorded, and is cut off: after a
kill nothing is lost or twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from selftrain._util.types import Json
from selftrain.data.manifest import Rows, Tolerance
from selftrain.data.posts import Post
from selftrain.data.tables import RawRow, json_table
from selftrain.data.values import RowError
from selftrain.errors import ManifestError, RunBusyError, RunMismatchError, RunStateError
from selftrain.models.predictor import Prediction, Predictor
from selftrain.store import atomic

STDIN = "-"
FIELD = "selftrain"  # what is added to a post that passes; one of an earlier filter is replaced
COMMIT_SECONDS = 2.0  # the most work that a kill can cost, beside the chunk under way
_CHUNK = 64


class Tally(NamedTuple):
    """How far a filter has come.

    Attributes:
        rows: Of the source, good and bad.
        kept: Written to the sink.
        failed: Written to the quarantine.
        source: Digest over the rows read, see `SourceRow`.
    """

    rows: int = 0
    kept: int = 0
    failed: int = 0
    source: str = ""


def filter_posts(
    predictor: Predictor,
    source: str,
    sink: Path,
    *,
    threshold: float,
    text_limit: int,
    max_pixels: int,
    columns: Mapping[str, str] | None = None,
    tolerance: Tolerance | None = None,
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
        sink: JSON lines: the row as the source has it, with the prediction in `FIELD`. What failed goes to
            ``SINK.quarantine.jsonl`` with its reason.
        threshold: In [0, 1].
        text_limit: Characters; a longer text makes a bad row.
        max_pixels: The largest width x height that an image's header may claim.
        columns: Field -> column that holds it, where that is called otherwise.
        tolerance: How many posts may fail, earlier starts included; by default any number.
        tell: Called with what may have been read otherwise than it was meant.
        commit_seconds: At least so long between two commits.
        progress: Draw a bar over the rows.

    Returns:
        The totals, earlier starts included.

    Raises:
        RunMismatchError: The sink was begun with another model, threshold, text limit or source.
        QuarantineError: More posts failed than tolerated; what passed before is in the sink.
        RunBusyError, RunStateError, StorageError, ManifestError: See `FilterSink` and `read_source`.
    """
    limits = tolerance or Tolerance(None, None)
    identity = {"model": predictor.fingerprint, "threshold": threshold, "text_limit": text_limit}
    with FilterSink(sink, identity).opened() as opened:
        tally = opened.tally
        rows = read_source(
            source, tally, max_pixels=max_pixels, text_limit=text_limit, columns=columns,
            videos=predictor.kind == "agentps", tell=tell,
        )  # fmt: skip
        bar = tqdm(initial=tally.rows, disable=not progress, desc="posts", unit="")
        committed = time.monotonic()
        fault: ManifestError | None = None
        while fault is None:
            part, fault = _next_rows(rows)
            if not part:
                break
            kept, failed = _judge(predictor, part, threshold)
            opened.write(kept, failed)
            counts = tally.rows + len(part), tally.kept + len(kept), tally.failed + len(failed)
            tally = Tally(*counts, part[-1].digest)
            if limits.rows is not None and tally.failed > limits.rows:
                break
            if time.monotonic() - committed >= commit_seconds:
                opened.commit(tally)
                committed = time.monotonic()
            bar.update(len(part))
        opened.commit(tally)
        bar.close()
        if fault is not None:
            raise fault
        listed = f"  they are listed in {opened.quarantine}"
        limits.check(tally.failed, tally.rows, [listed], what="posts", where=f"{source}: ")
    return tally


def _next_rows(rows: Iterator[SourceRow]) -> tuple[list[SourceRow], ManifestError | None]:
    """Return the next rows, and what ended the reading: the rows before it are worth as much as others."""
    part: list[SourceRow] = []
    try:
        part.extend(islice(rows, _CHUNK))
    except ManifestError as fault:
        return part, fault
    return part, None


def _judge(predictor: Predictor, rows: list[SourceRow], threshold: float) -> tuple[list[str], list[str]]:
    """Return lines for the sink and for the quarantine, in the rows' order."""
    predictions = iter(predictor.predict([row.post for row in rows if row.post is not None]))
    kept: list[str] = []
    failed: list[str] = []
    for row in rows:
        found = Prediction("", reason=row.reason) if row.post is None else next(predictions)
        reason = found.reason
        if not reason and found.probs[predictor.positive] >= threshold:
            try:
                kept.append(_line((row.fields or {}) | {FIELD: found.to_json() | {"threshold": threshold}}))
            except ValueError:
                reason = "a field holds a number that JSON has no word for"
        if reason:
            kind = "row" if row.post is None else "image" if row.post.images else "post"
            failed.append(_line({"kind": kind, "line": row.line, "id": row.post_id, "reason": reason}))
    return kept, failed


def _line(value: Json) -> str:
    """Write JSON in one line, dates and the like of Parquet as text; ValueError: NaN or infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)


# ---- the source -----------------------------------------------------------------------------------------


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
    done: Tally,
    *,
    max_pixels: int,
    text_limit: int,
    columns: Mapping[str, str] | None = None,
    videos: bool = False,
    tell: Callable[[str], None] = print,
) -> Iterator[SourceRow]:
    """Yield the rows of a manifest, or of JSON lines on standard input, after those that are done.

    Ids are not compared between rows: that would need memory for all of them. Images are relative to the
    manifest's folder, those of standard input to the working directory, and must lie inside. After the last
    row `tell` gets what may have been read otherwise than it was meant.

    Raises:
        ManifestError: The source cannot be read.
        RunMismatchError: It does not begin with the rows that are done; they are read again, and not judged.
    """
    table = json_table(sys.stdin.buffer) if source == STDIN else None
    rows = Rows(
        Path(source), None,
        table=table, max_pixels=max_pixels, columns=columns, labels=False, videos=videos, remember=False,
    )  # fmt: skip
    digest, met = "", 0
    for met, raw in enumerate(rows.table.rows, 1):
        # row by row, so that a later start can follow wherever an earlier one paused
        content = json.dumps([raw.line, raw.fields, raw.reason], default=str)
        digest = hashlib.sha256(f"{digest}\n{content}".encode()).hexdigest()
        if met > done.rows:
            yield _checked(raw, rows, text_limit, digest)
        elif met == done.rows and digest != done.source:
            raise RunMismatchError(
                f"{source} does not begin with the {met:,} rows that were read before; nothing was touched."
                " Give the source that this sink was begun with, or another --sink"
            )
    if met < done.rows:
        raise RunMismatchError(
            f"{source} has {met:,} rows, {done.rows:,} were read before: it was cut, or is another source."
            " Restore it, or give another --sink"
        )
    for note in rows.notes():
        if note.remedy:
            tell(str(note))


def _checked(raw: RawRow, rows: Rows, text_limit: int, digest: str) -> SourceRow:
    try:
        post = rows.post(raw)
    except RowError as error:
        return SourceRow(raw.line, raw.fields, None, error.post_id, f"{error.reason}; {error.remedy}", digest)
    if len(post.text) > text_limit:
        reason = f"the text has {len(post.text):,} characters, at most {text_limit:,}; raise --text-limit"
        return SourceRow(raw.line, raw.fields, None, post.id, reason, digest)
    return SourceRow(raw.line, raw.fields, post, post.id, "", digest)


# ---- the sink -------------------------------------------------------------------------------------------


class _Progress(BaseModel):
    """The progress file: how far sink and quarantine are good, and what must not change between starts."""

    format: Literal["selftrain-filter-1"] = "selftrain-filter-1"
    identity: dict[str, Any]
    tally: Tally = Tally()
    bytes: tuple[int, int] = (0, 0)


class FilterSink:
    """The sink, its quarantine and its progress file.

    Args:
        sink: JSON lines; a file that no filter has written is refused.
        identity: What must not change between starts.

    Attributes:
        tally: As of the last `commit`.
    """

    def __init__(self, sink: Path, identity: Json) -> None:
        self.sink = sink
        self.quarantine = sink.with_name(f"{sink.name}.quarantine.jsonl")
        self.progress = sink.with_name(f"{sink.name}.progress.json")
        self.tally = Tally()
        self._identity = identity

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Hold the files, cut to what was recorded.

        Raises:
            RunBusyError: Another process writes there.
            RunMismatchError: The sink was begun with another identity.
            RunStateError: The sink is not a filter's, or is shorter than recorded.
            StorageError: The disk is full or refuses.
        """
        try:
            self.sink.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.sink.with_name(f".{self.sink.name}.lock"))
            lock.acquire(timeout=0)
        except Timeout as error:  # an OSError itself: it comes first
            raise RunBusyError(
                f"another process writes {self.sink}: wait for it, or give another --sink"
            ) from error
        except OSError as error:
            raise atomic.storage_error(self.sink, None, error) from error
        try:
            known = self._recorded()
            self.tally = known.tally
            for file, size in zip((self.sink, self.quarantine), known.bytes, strict=True):
                _cut(file, size)
            atomic.sync_folder(self.sink.parent)
            with _appending(self.sink) as self._kept, _appending(self.quarantine) as self._failed:
                yield self
        finally:
            lock.release()

    def write(self, kept: Iterable[str], failed: Iterable[str]) -> None:
        """Append lines; they count only once they are committed.

        Raises:
            StorageError: The disk is full or refuses.
        """
        try:
            for file, lines in ((self._kept, kept), (self._failed, failed)):
                file.write("".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            raise atomic.storage_error(self.sink, None, error) from error

    def commit(self, tally: Tally) -> None:
        """Make all that was written count.

        Raises:
            StorageError: The disk is full or refuses; the same command goes on from the last commit.
        """
        try:
            for file in (self._kept, self._failed):
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise atomic.storage_error(self.sink, None, error) from error
        self._record(tally, (self._kept.tell(), self._failed.tell()))

    def _record(self, tally: Tally, sizes: tuple[int, int]) -> _Progress:
        known = _Progress(identity=self._identity, tally=tally, bytes=sizes)
        atomic.write_json(self.progress, known.model_dump() | {"tally": tally._asdict()})
        self.tally = tally
        return known

    def _recorded(self) -> _Progress:
        """Return what the progress file says; of a new sink it is written first."""
        if not self.progress.exists():
            if self.sink.exists() and self.sink.stat().st_size:
                raise RunStateError(
                    f"{self.sink} holds {self.sink.stat().st_size:,} bytes that no filter has recorded (there"
                    f" is no {self.progress.name}): nothing was touched. Give another --sink"
                )
            # before the first line: a sink with lines and without a record would be refused
            return self._record(Tally(), (0, 0))
        try:
            known = _Progress.model_validate_json(self.progress.read_bytes())
        except (OSError, ValidationError) as error:
            raise RunStateError(
                f"{self.progress} is no record of a filter's progress ({error}): restore it, or give another"
                " --sink"
            ) from error
        before, now = known.identity, self._identity
        differing = [
            f"  {key}: {before.get(key)!r} until now, {now.get(key)!r} asked for"
            for key in before | now
            if before.get(key) != now.get(key)
        ]
        if differing:
            raise RunMismatchError(
                f"{self.sink} was begun otherwise; nothing was touched:\n"
                + "\n".join(differing)
                + "\nGive another --sink, or what it was begun with"
            )
        return known


@contextmanager
def _appending(path: Path) -> Iterator[IO[bytes]]:
    """Open for appending; after another fault close without a word: a full disk fails the last flush too."""
    file = path.open("ab")
    try:
        yield file
    except BaseException:
        with suppress(OSError):
            file.close()
        raise
    file.close()


def _cut(file: Path, size: int) -> None:
    """Cut a file to `size` bytes, or make it when nothing is to be in it."""
    try:
        with file.open("ab") as opened:
            found = opened.tell()
            if found < size:
                raise RunStateError(
                    f"{file} has {found:,} bytes, {size:,} were recorded: it was changed meanwhile. Restore"
                    " it, or give another --sink"
                )
            opened.truncate(size)
            os.fsync(opened.fileno())
    except OSError as error:
        raise atomic.storage_error(file, None, error) from error
