"""Rows through a model into a file that grows: a kill costs seconds of work, and no row is lost or twice.

Lines are appended to the sink and to its quarantine, both are flushed to the disk, and only then the progress
file is replaced in one step. What stands behind the recorded length was not recorded, and is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from selftrain._util.types import Json
from selftrain.data.manifest import Rows, Tolerance
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.data.tables import RawRow, json_table
from selftrain.data.values import RowError
from selftrain.errors import ManifestError, RunBusyError, RunMismatchError, RunStateError
from selftrain.models.predictor import Prediction, Predictor
from selftrain.store import atomic

STDIN = "-"
Row = TypeVar("Row")
COMMIT_SECONDS = 2.0  # the most work that a kill can cost, beside the chunk under way


class Tally(NamedTuple):
    """How far rows have come.

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


class RowTarget(Protocol):
    """Where lines go: a `Sink`, or standard output."""

    tally: Tally

    def write(self, kept: Iterable[str], failed: Iterable[str]) -> None:
        """Append lines."""
        ...

    def commit(self, tally: Tally) -> None:
        """Make all that was written count."""
        ...


def pour(
    rows: Iterator[SourceRow],
    target: RowTarget,
    judge: Callable[[list[SourceRow]], tuple[list[str], list[str]]],
    *,
    tolerance: Tolerance,
    where: str,
    advice: str,
    chunk: int,
    commit_seconds: float = COMMIT_SECONDS,
    progress: bool = False,
) -> Tally:
    """Append to `target` what becomes of rows, and how far they are.

    Args:
        rows: Those that are not done, by `target.tally`.
        target: Opened.
        judge: Gives lines for the sink and for its quarantine, in the rows' order.
        tolerance: How many rows may fail, earlier starts included.
        where: Said in an error, the source.
        advice: Said where too many fail: where they are listed.
        chunk: Rows judged at once.
        commit_seconds: At least so long between two commits.
        progress: Draw a bar over the rows.

    Returns:
        The totals, earlier starts included.

    Raises:
        QuarantineError: More rows failed than tolerated; what was good before is in the sink.
        ManifestError: The source cannot be read any further; what was read is in the sink.
    """
    tally = target.tally
    bar = tqdm(initial=tally.rows, disable=not progress, desc="posts", unit="")
    committed = time.monotonic()
    fault: ManifestError | None = None
    while fault is None and not (tolerance.rows is not None and tally.failed > tolerance.rows):
        part, fault = _next_rows(rows, chunk)
        if not part:
            break
        kept, failed = judge(part)
        target.write(kept, failed)
        counts = tally.rows + len(part), tally.kept + len(kept), tally.failed + len(failed)
        tally = Tally(*counts, part[-1].digest)
        if time.monotonic() - committed >= commit_seconds:
            target.commit(tally)
            committed = time.monotonic()
        bar.update(len(part))
    target.commit(tally)
    bar.close()
    if fault is not None:
        raise fault
    tolerance.check(tally.failed, tally.rows, [advice], what="posts", where=f"{where}: ")
    return tally


def _next_rows(rows: Iterator[SourceRow], chunk: int) -> tuple[list[SourceRow], ManifestError | None]:
    """Return the next rows, and what ended the reading: the rows before it are worth as much as others."""
    part: list[SourceRow] = []
    try:
        part.extend(islice(rows, chunk))
    except ManifestError as fault:
        return part, fault
    return part, None


def predicted(predictor: Predictor, rows: Sequence[SourceRow]) -> Iterator[tuple[SourceRow, Prediction]]:
    """Yield every row with its prediction; a bad one has its own reason for having none."""
    found = iter(predictor.predict([row.post for row in rows if row.post is not None]))
    for row in rows:
        yield row, Prediction("", reason=row.reason) if row.post is None else next(found)


def failed_line(row: SourceRow, reason: str) -> str:
    """Return a line of the quarantine."""
    kind = "row" if row.post is None else "image" if row.post.images else "post"
    return json_line({"kind": kind, "line": row.line, "id": row.post_id, "reason": reason})


def json_line(value: Json) -> str:
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
    text_limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    max_images: int = MAX_IMAGES,
    videos: bool = False,
    remedy: str = "give another --sink",
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
        table=table, max_pixels=max_pixels, max_images=max_images, columns=columns, labels=False,
        videos=videos, remember=False,
    )  # fmt: skip
    contents = (([raw.line, raw.fields, raw.reason], raw) for raw in rows.table.rows)
    for raw, digest in _after(contents, done, source, remedy):
        yield _checked(raw, rows, text_limit, digest)
    for note in rows.notes():
        if note.remedy:
            tell(str(note))


def post_rows(posts: Iterable[Post], done: Tally, remedy: str) -> Iterator[SourceRow]:
    """Yield posts in memory after those that are done.

    Raises:
        RunMismatchError: They do not begin with the posts that are done.
    """
    contents = (
        ([one.id, one.text, one.images, one.video, one.label, one.process], (line, one))
        for line, one in enumerate(posts, 1)
    )
    for (line, post), digest in _after(contents, done, "the manifest", remedy):
        yield SourceRow(line, None, post, post.id, "", digest)


def _after(
    contents: Iterable[tuple[list[Any], Row]], done: Tally, source: str, remedy: str
) -> Iterator[tuple[Row, str]]:
    """Yield rows after those that are done, each with the digest over it and all before it."""
    digest, met = "", 0
    for met, (content, row) in enumerate(contents, 1):
        # row by row, so that a later start can follow wherever an earlier one paused
        digest = hashlib.sha256(f"{digest}\n{json.dumps(content, default=str)}".encode()).hexdigest()
        if met > done.rows:
            yield row, digest
        elif met == done.rows and digest != done.source:
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
    try:
        post = rows.post(raw)
    except RowError as error:
        return SourceRow(raw.line, raw.fields, None, error.post_id, f"{error.reason}; {error.remedy}", digest)
    if text_limit is not None and len(post.text) > text_limit:
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
    finished: bool = False


def quarantine_of(file: Path) -> Path:
    """Return where what failed is listed beside a file."""
    return file.with_name(f"{file.name}.quarantine.jsonl")


class Sink:
    """The sink, its quarantine and its progress file.

    Args:
        sink: A file that nothing here has written is refused.
        identity: What must not change between starts.
        remedy: What to do about a file that cannot be gone on with.

    Attributes:
        tally: As of the last `commit`.
        finished: Whether all rows are done, and `publish` was begun.
    """

    def __init__(self, sink: Path, identity: Json, remedy: str = "give another --sink") -> None:
        self.sink = sink
        self.quarantine = quarantine_of(sink)
        self.progress = sink.with_name(f"{sink.name}.progress.json")
        self.tally = Tally()
        self.finished = False
        self._identity, self.remedy = identity, remedy

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Hold the files, cut to what was recorded.

        Raises:
            RunBusyError: Another process writes there.
            RunMismatchError: The sink was begun with another identity.
            RunStateError: The sink was not written here, or is shorter than recorded.
            StorageError: The disk is full or refuses.
        """
        try:
            self.sink.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.sink.with_name(f".{self.sink.name}.lock"))
            lock.acquire(timeout=0)
        except Timeout as error:  # an OSError itself: it comes first
            raise RunBusyError(
                f"another process writes {self.sink}: wait for it, or {self.remedy}"
            ) from error
        except OSError as error:
            raise atomic.storage_error(self.sink, None, error) from error
        try:
            known = self._recorded()
            self.tally, self.finished = known.tally, known.finished
            if self.finished:
                yield self
                return
            for file, size in zip((self.sink, self.quarantine), known.bytes, strict=True):
                _cut(file, size, self.remedy)
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

    def publish(self, target: Path) -> None:
        """Put what was written in the place of `target` and of its quarantine, and forget the progress.

        Killed in between, the next start does the rest.

        Raises:
            StorageError: The disk refuses.
        """
        try:
            if not self.finished:
                self._record(self.tally, (self._kept.tell(), self._failed.tell()), finished=True)
            beside = quarantine_of(target)
            if self.quarantine.exists() and not self.quarantine.stat().st_size:
                beside.unlink(missing_ok=True)
                self.quarantine.unlink()
            for file, place in ((self.quarantine, beside), (self.sink, target)):
                if file.exists():
                    file.replace(place)
            atomic.sync_folder(target.parent)
            self.progress.unlink()
        except OSError as error:
            raise atomic.storage_error(target, None, error) from error

    def _record(self, tally: Tally, sizes: tuple[int, int], *, finished: bool = False) -> _Progress:
        known = _Progress(identity=self._identity, tally=tally, bytes=sizes, finished=finished)
        atomic.write_json(self.progress, known.model_dump() | {"tally": tally._asdict()})
        self.tally = tally
        return known

    def _recorded(self) -> _Progress:
        """Return what the progress file says; of a new sink it is written first."""
        if not self.progress.exists():
            if self.sink.exists() and self.sink.stat().st_size:
                raise RunStateError(
                    f"{self.sink} holds {self.sink.stat().st_size:,} bytes that nothing has recorded"
                    f" (there is no {self.progress.name}): nothing was touched; {self.remedy}"
                )
            # before the first line: a sink with lines and without a record would be refused
            return self._record(Tally(), (0, 0))
        try:
            known = _Progress.model_validate_json(self.progress.read_bytes())
        except (OSError, ValidationError) as error:
            raise RunStateError(
                f"{self.progress} is no record of progress ({error}): restore it, or {self.remedy}"
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
                + f"\nGive what it was begun with, or {self.remedy}"
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


def _cut(file: Path, size: int, remedy: str) -> None:
    """Cut a file to `size` bytes, or make it when nothing is to be in it."""
    try:
        with file.open("ab") as opened:
            found = opened.tell()
            if found < size:
                raise RunStateError(
                    f"{file} has {found:,} bytes, {size:,} were recorded: it was changed meanwhile. Restore"
                    f" it, or {remedy}"
                )
            opened.truncate(size)
            os.fsync(opened.fileno())
    except OSError as error:
        raise atomic.storage_error(file, None, error) from error
