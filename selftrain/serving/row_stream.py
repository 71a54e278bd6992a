"""Rows through a model into a file that grows: a kill costs seconds of work, and no row is lost or twice.

Lines are appended to the sink and to its quarantine, both are flushed to the disk, and only then the progress
file is replaced in one step. What stands behind the recorded length was not recorded, and is cut off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import BaseModel, ValidationError

from backbones.progress import ProgressBar
from selftrain._util.types import Json
from selftrain.data.manifest import Tolerance
from selftrain.engine.mapping import Engine, InProcess, Rescue
from selftrain.errors import EngineError, ManifestError, RunMismatchError, RunStateError, ServingError
from selftrain.models.predictor import Prediction, Predictor
from selftrain.serving.row_source import Part, SourceRow, Tally
from selftrain.store import atomic, locks

Model = TypeVar("Model")
_LISTED = 20
COMMIT_SECONDS = 2.0  # the most work that a kill can cost, beside the chunk under way


class RowTarget(Protocol):
    """Where lines go: a `Sink`, or standard output."""

    tally: Tally

    def write(self, kept: Iterable[str], failed: Iterable[str]) -> None:
        """Append lines."""
        ...

    def commit(self, tally: Tally) -> None:
        """Make all that was written count."""
        ...


class JudgedRows(NamedTuple):
    """What became of a part: records, or lines, for the sink, and lines for its quarantine."""

    kept: list[Any]
    failed: list[str]


class _Done(NamedTuple):
    """A part that went through a model, without its rows."""

    judged: JudgedRows
    rows: int
    digest: str
    share: float | None
    notes: tuple[str, ...]
    fault: ManifestError | None


Judge = Callable[[Model, list[SourceRow]], JudgedRows]
"""Judges rows with a model; in their order."""


def judging(
    load: Callable[[], Model], judge: Judge[Model], fingerprint: str | None = None
) -> Callable[[Part], _Done]:
    """Load a model, and return what takes a part through it: a `Stage` of the engines.

    Raises:
        ServingError: Its fingerprint is another than the one it must have, where it is opened more than once.
    """
    model = load()
    found = fingerprint and getattr(model, "fingerprint", None)
    if found != fingerprint:
        raise ServingError(
            f"a worker opens the model {str(found)[:12]} where this process has {str(fingerprint)[:12]}: give"
            " every node the same files, and this version of selftrain"
        )

    return lambda part: _done(part, judge(model, part.rows) if part.rows else JudgedRows([], []))


def _done(part: Part, judged: JudgedRows) -> _Done:
    digest, share = (part.rows[-1].digest, part.rows[-1].share) if part.rows else ("", None)
    return _Done(judged, len(part.rows), digest, share, part.notes, part.fault)


def _rows_of(part: Part) -> list[Part]:
    """Return parts of one row; what the whole part says beside its rows is said with the last."""
    alone = [Part([row]) for row in part.rows[:-1]]
    return [*alone, part._replace(rows=part.rows[-1:])]


def _lost(part: Part, reason: str) -> _Done:
    return _done(part, JudgedRows([], [failed_line(row, row.reason or reason) for row in part.rows]))


def _joined(found: Sequence[_Done]) -> _Done:
    judged = JudgedRows(
        [*chain.from_iterable(one.judged.kept for one in found)],
        [*chain.from_iterable(one.judged.failed for one in found)],
    )
    return found[-1]._replace(judged=judged, rows=sum(one.rows for one in found))


_RESCUE = Rescue(_rows_of, _lost, _joined)


def pour(
    source: Callable[[], Iterator[Part]],
    target: RowTarget,
    stage: Callable[[], Callable[[Part], _Done]],
    *,
    tolerance: Tolerance,
    where: str,
    advice: str,
    engine: Engine | None = None,
    encode: Callable[[list[Any], bool], list[str]] = lambda kept, _first: kept,
    tell: Callable[[str], None] = print,
    commit_seconds: float = COMMIT_SECONDS,
    progress: bool = False,
) -> Tally:
    """Append to `target` what becomes of rows, and how far they are; return the totals of all starts.

    Args:
        source: Reads the rows that are not done, by `target.tally`.
        stage: Of `judging`.
        tolerance: How many rows may fail, earlier starts included.
        where, advice: Said in an error: the source; where too many fail, where they are listed.
        engine: Where the model is at work; None: in this process.
        encode: From what is kept to lines of the target; the first of a file may bring a heading.
        tell: Called with the notes of the source.
        commit_seconds: At least so long between two commits.

    Raises:
        QuarantineError: More rows failed than tolerated; what was good before is in the sink.
        ManifestError: The source cannot be read any further; what was read is in the sink.
        EngineError: See `Engine.map`; what was finished is in the sink.
    """
    tally, listed = target.tally, list[str]()
    bar = ProgressBar(initial=tally.rows, disable=not progress, desc="posts")
    committed = time.monotonic()
    fault: ManifestError | None = None
    try:
        with bar, (engine or InProcess()).map(source, stage, _RESCUE) as found:
            for done in found:
                fault = done.fault
                if done.rows:
                    tally = _written(done, tally, target, encode)
                    listed += done.judged.failed[: _LISTED - len(listed)]
                    if time.monotonic() - committed >= commit_seconds:
                        target.commit(tally)
                        committed = time.monotonic()
                if done.share and done.share < 1:  # 1: the rest has been read ahead
                    bar.expect(round(tally.rows / done.share))
                bar.update(done.rows)
                for note in done.notes:
                    tell(note)
                if tolerance.rows is not None and tally.failed > tolerance.rows:
                    break
            else:
                bar.expect(tally.rows)
    except EngineError as error:
        target.commit(tally)
        if not tally.rows:
            raise  # where it fails is not the source's fault
        raise EngineError(f"{where}, behind row {tally.rows:,}: {error}") from error
    target.commit(tally)
    if fault is not None:
        raise fault
    lines = [*map(_listed, listed), advice]
    tolerance.check(tally.failed, tally.rows, lines, what="posts", where=f"{where}: ")
    return tally


def _written(
    done: _Done, tally: Tally, target: RowTarget, encode: Callable[[list[Any], bool], list[str]]
) -> Tally:
    """Write what became of a part's rows, and return the totals with them."""
    kept, failed = done.judged
    target.write(encode(kept, not tally.kept), failed)
    counts = (tally.rows + done.rows, tally.kept + len(kept), tally.failed + len(failed))
    return Tally(*counts, done.digest)


def _listed(line: str) -> str:
    """Return a line of the quarantine as an error shows it."""
    record = json.loads(line)
    return f"  line {record['line']}, id {record['id']!r}: {record['reason']}"


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
    """The sink, its quarantine and its progress file; where the disk refuses, the next start goes on.

    Args:
        sink: A file that nothing here has written is refused.
        identity: What must not change between starts.
        remedy: What to do about a file that cannot be gone on with.

    Attributes:
        tally: As of the last `commit`.
        finished: Whether all rows are done, and `publish` was begun.
    """

    def __init__(self, sink: Path, identity: Json, remedy: str = "give another --sink") -> None:
        self.sink = self._file = sink  # where lines go now
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
            StorageError: The disk is full or refuses, or something is there that is no regular file.
        """
        for file in (self.sink, self.quarantine):
            atomic.check_regular(file)
        with atomic.writing(self.sink):
            self.sink.parent.mkdir(parents=True, exist_ok=True)
        busy = f"another process writes {self.sink}: wait for it, or {self.remedy}"
        lock = locks.take(self.sink.with_name(f".{self.sink.name}.lock"), busy)
        try:
            known = self._recorded()
            self.tally, self.finished = known.tally, known.finished
            self._resume()
            if self.finished:
                yield self
                return
            for file, size in zip((self._file, self.quarantine), known.bytes, strict=True):
                _cut(file, size, self.remedy)
                atomic.sync_folder(file.parent)
            with self._appending():
                yield self
        finally:
            lock.release()

    def check(self) -> None:
        """Refuse what is there where nothing was begun; RunStateError as of `opened`."""
        if not self.progress.exists() and self.sink.exists() and self.sink.stat().st_size:
            raise RunStateError(
                f"{self.sink} holds {self.sink.stat().st_size:,} bytes that nothing has recorded"
                f" (there is no {self.progress.name}): nothing was touched; {self.remedy}"
            )

    def _resume(self) -> None:
        """Find the file to go on with."""

    @contextmanager
    def _appending(self) -> Iterator[None]:
        """Open both files; after another fault close without a word: a full disk fails the last flush too."""
        self._kept, self._failed = self._file.open("ab"), self.quarantine.open("ab")
        try:
            yield
        except BaseException:
            for file in (self._kept, self._failed):
                with suppress(OSError):
                    file.close()
            raise
        self._kept.close()
        self._failed.close()

    def write(self, kept: Iterable[str], failed: Iterable[str]) -> None:
        """Append lines; they count only once they are committed."""
        with atomic.writing(self.sink):
            for file, lines in ((self._kept, kept), (self._failed, failed)):
                file.write("".join(f"{line}\n" for line in lines).encode())

    def commit(self, tally: Tally) -> None:
        """Make all that was written count."""
        with atomic.writing(self.sink):
            for file in (self._kept, self._failed):
                file.flush()
                os.fsync(file.fileno())
        self._record(tally, (self._kept.tell(), self._failed.tell()))

    def publish(self, target: Path, quarantine: Path | None = None) -> None:
        """Put what was written in the place of `target` and of its quarantine, and forget the progress.

        The quarantine is `quarantine_of(target)` where no other is given. Killed in between, the next start
        does the rest.
        """
        beside = quarantine or quarantine_of(target)
        for file in (target, beside):
            atomic.check_regular(file)
        with atomic.writing(target):
            if not self.finished:
                self._record(self.tally, (self._kept.tell(), self._failed.tell()), finished=True)
            if self.quarantine.exists() and not self.quarantine.stat().st_size:
                beside.unlink(missing_ok=True)
                self.quarantine.unlink()
            for file, place in ((self.quarantine, beside), (self._file, target)):
                if file.exists():
                    file.replace(place)
                atomic.sync_folder(place.parent)
            self.progress.unlink()

    def _record(self, tally: Tally, sizes: tuple[int, int], *, finished: bool = False) -> _Progress:
        known = _Progress(identity=self._identity, tally=tally, bytes=sizes, finished=finished)
        atomic.write_json(self.progress, known.model_dump() | {"tally": tally._asdict()})
        self.tally = tally
        return known

    def _recorded(self) -> _Progress:
        """Return what the progress file says; of a new sink it is written first."""
        self.check()
        if not self.progress.exists():
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


class FolderSink(Sink):
    """A sink whose lines go to files of a folder, `rows` each, the last one what is left.

    A file that others may read is whole: what is written, and what is full and does not count yet, has a
    hidden name there.
    """

    def __init__(self, folder: Path, rows: int, sink: Path, identity: Json, remedy: str) -> None:
        super().__init__(sink, identity | {"rows_per_file": rows}, remedy)
        self._folder, self._rows = folder, rows
        self._full = list[Path]()

    def check(self) -> None:
        """See `Sink.check`; nothing but an empty folder may be there."""
        super().check()
        if not self.progress.exists() and self._folder.exists() and any(self._folder.iterdir()):
            raise RunStateError(
                f"{self._folder} holds files already, and no unfinished command's (there is no"
                f" {self.progress.name}): nothing was touched; name a folder that is new, or empty"
            )

    def _resume(self) -> None:
        kept = self.tally.kept
        self._number = max(kept - 1, 0) // self._rows
        self._room = (self._number + 1) * self._rows - kept
        self._file = self._hidden(self._number)
        with atomic.writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            for file in self._folder.glob(".part-[0-9]*.partial"):
                number = int(file.stem.removeprefix(".part-"))
                if number > self._number:  # not recorded
                    file.unlink()
                elif number < self._number:
                    self._full.append(file)
        self._name_full()

    def write(self, kept: Iterable[str], failed: Iterable[str]) -> None:
        """See `Sink.write`."""
        super().write((), failed)
        rest = iter(kept)
        while lines := list(islice(rest, self._room or self._rows)):
            if not self._room:
                self._begin_next()
            super().write(lines, ())
            self._room -= len(lines)

    def commit(self, tally: Tally) -> None:
        """See `Sink.commit`; files that are full now appear."""
        super().commit(tally)
        self._name_full()

    def publish(self, target: Path, quarantine: Path | None = None) -> None:
        """See `Sink.publish`; the target is the folder."""
        super().publish(_named(self._file), quarantine or quarantine_of(target))

    def _begin_next(self) -> None:
        with atomic.writing(self._file), self._kept as full:
            full.flush()
            os.fsync(full.fileno())
            self._full.append(self._file)
            self._number, self._room = self._number + 1, self._rows
            self._file = self._hidden(self._number)
            self._kept = self._file.open("ab")
            atomic.sync_folder(self._folder)

    def _name_full(self) -> None:
        with atomic.writing(self._folder):
            for file in self._full:
                file.replace(_named(file))
            if self._full:
                atomic.sync_folder(self._folder)
        self._full.clear()

    def _hidden(self, number: int) -> Path:
        return self._folder / f".part-{number:05}.partial"


def _named(file: Path) -> Path:
    """Return what a file of a `FolderSink` is called once it is whole."""
    return file.with_name(f"{file.stem[1:]}.jsonl")


def _cut(file: Path, size: int, remedy: str) -> None:
    """Cut a file to `size` bytes, or make it when nothing is to be in it."""
    with atomic.writing(file), file.open("ab") as opened:
        found = opened.tell()
        if found < size:
            raise RunStateError(
                f"{file} has {found:,} bytes, {size:,} were recorded: it was changed meanwhile. Restore it,"
                f" or {remedy}"
            )
        opened.truncate(size)
        os.fsync(opened.fileno())
