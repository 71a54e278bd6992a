"""Two files that grow, and a third that says how far they are good: after a kill nothing is lost or twice.

Lines are appended to the sink and to its quarantine, both are flushed to the disk, and only then the progress
file is replaced in one step. What stands behind the recorded length was not recorded, and is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

from filelock import FileLock, Timeout

from selftrain._util.types import Json
from selftrain.errors import RunBusyError, RunMismatchError, RunStateError
from selftrain.store import atomic

_FORMAT = "selftrain-filter-1"


class Tally(NamedTuple):
    """How far a filter has come.

    Attributes:
        rows: Of the source, good and bad.
        kept: Written to the sink.
        failed: Written to the quarantine.
        source: Digest over the rows read, see `selftrain.serving.filtering.SourceRow`.
    """

    rows: int = 0
    kept: int = 0
    failed: int = 0
    source: str = ""


class FilterSink:
    """The sink, its quarantine and its progress file, open for writing; use it in a `with` statement.

    Args:
        sink: JSON lines; a file that no filter has written is refused.
        identity: What must not change between starts.

    Raises:
        RunBusyError: Another process writes there.
        RunMismatchError: The sink was begun with another identity.
        RunStateError: The sink is not a filter's, or is shorter than recorded.
        StorageError: The disk is full or refuses.

    Attributes:
        tally: As of the last `commit`.
    """

    def __init__(self, sink: Path, identity: Json) -> None:
        self.sink = sink
        self.quarantine = sink.with_name(f"{sink.name}.quarantine.jsonl")
        self.progress = sink.with_name(f"{sink.name}.progress.json")
        self.tally = Tally()
        self._identity = identity
        self._bytes = (0, 0)

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Hold the files, cut to what was recorded."""
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
            self._begin()
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

    # ---- the progress file --------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.progress.exists():
            self._read()
        elif self.sink.exists() and self.sink.stat().st_size:
            raise RunStateError(
                f"{self.sink} holds {self.sink.stat().st_size:,} bytes that no filter has recorded (there is"
                f" no {self.progress.name}): nothing was touched. Give another --sink"
            )
        else:
            # before the first line: a sink with lines and without a record would be refused
            self._record(Tally(), (0, 0))
        for file, size in zip((self.sink, self.quarantine), self._bytes, strict=True):
            _cut(file, size)
        atomic.sync_folder(self.sink.parent)

    def _read(self) -> None:
        try:
            found = json.loads(self.progress.read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']!r}")  # noqa: TRY301
            identity: Json = found["identity"]
            self.tally, self._bytes = Tally(**found["tally"]), (found["bytes"][0], found["bytes"][1])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise RunStateError(
                f"{self.progress} is no record of a filter's progress ({error!r}): restore it, or give"
                " another --sink"
            ) from error
        differing = [k for k in identity | self._identity if identity.get(k) != self._identity.get(k)]
        if differing:
            lines = [
                f"  {key}: {identity.get(key)!r} until now, {self._identity.get(key)!r} asked for"
                for key in differing
            ]
            raise RunMismatchError(
                f"{self.sink} was begun otherwise; nothing was touched:\n"
                + "\n".join(lines)
                + "\nGive another --sink, or what it was begun with"
            )

    def _record(self, tally: Tally, sizes: tuple[int, int]) -> None:
        value = {"format": _FORMAT, "identity": self._identity, "tally": tally._asdict(), "bytes": sizes}
        atomic.write_json(self.progress, value)
        self.tally, self._bytes = tally, sizes


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
