"""Feature rows on disk: append-only, readable after a kill at any moment.

A store is a folder of three files::

    meta.json   fingerprint and layout, written once
    rows.f32    rows [n, D], little-endian float32
    keys.bin    SHA-256 of each row's post, 32 bytes, and CRC-32 of it and the row, in the same order

Rows are written and synced before their keys, so a row counts from the moment its key is complete. Whatever
lies beyond (a write that was cut short) is ignored by readers, and truncated by the next writer. Readers
need no lock; writers hold one. A row is held against its checksum when a process reads it first.

Why not a database: a run reads thousands of rows by number at each epoch, and the file is mapped for that; as
blobs of SQLite or a column of Parquet they would be copied and parsed each time, and Parquet cannot grow.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from backbones.base import FeatureLayout
from selftrain._util.files import read_json
from selftrain._util.types import Float32Array, IntArray
from selftrain.errors import CacheError
from selftrain.store.atomic import FULL, write_bytes, write_json

FORMAT = 2
KEY_BYTES = 32
Keys = npt.NDArray[np.uint8]
"""Keys [n, 32], a SHA-256 a row."""
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("checksum", "<u4")])
# Touching a page of a map makes the kernel map its neighbours too: few rows a map keep that small.
_ROWS_PER_MAP = 256

logger = logging.getLogger(__name__)


class FeatureStore:
    """One folder of rows.

    Args:
        folder: Created if absent.
        fingerprint: The backbone's; hex SHA-256.
        layout: The backbone's.

    Raises:
        CacheError: the folder holds rows of another backbone, is damaged, or cannot be read or written.
    """

    def __init__(self, folder: Path, fingerprint: str, layout: FeatureLayout) -> None:
        self.folder = folder
        self.layout = layout
        self._rows = folder / "rows.f32"
        self._keys = folder / "keys.bin"
        self._row_bytes = layout.width * 4
        self._meta = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "text_width": layout.text_width,
            "image_width": layout.image_width,
            "width": layout.width,
        }
        self._entries = np.empty(0, _ENTRY)  # those known so far, and which rows were held against theirs
        self._sound = np.empty(0, bool)
        with _explained(folder, 0):
            self._open()

    def index(self) -> dict[bytes, int]:
        """Map key -> row number, for every row that counts."""
        self._read_keys()
        return {key.tobytes(): row for row, key in enumerate(self._entries["key"])}

    def find(self, keys: Keys) -> IntArray:
        """Return the row numbers [n] of keys [n, 32], -1 where there is none; 8 bytes a stored row."""
        self._read_keys()
        numbers = np.full(len(keys), -1, dtype=np.int64)
        stored = np.ascontiguousarray(self._entries["key"]).view(np.uint8).reshape(-1, KEY_BYTES)
        heads, wanted = (_key_heads(one) for one in (stored, keys))
        order = heads.argsort(kind="stable")
        heads = heads[order]
        # of rows with one key the last counts; more than one step back only where two keys have one beginning
        places = heads.searchsorted(wanted, side="right") - 1
        left = np.flatnonzero(places >= 0)
        while len(left):
            left = left[heads[places[left]] == wanted[left]]
            rows = order[places[left]]
            same = (stored[rows] == keys[left]).all(axis=1)
            numbers[left[same]] = rows[same]
            left = left[~same]
            places[left] -= 1
            left = left[places[left] >= 0]
        return numbers

    def keys(self, numbers: IntArray) -> Keys:
        """Return the keys [n, 32] of rows [n] that `find` gave."""
        return np.ascontiguousarray(self._entries["key"][numbers]).view(np.uint8).reshape(-1, KEY_BYTES)

    def _read_keys(self) -> None:
        with _explained(self.folder, 0):
            self._entries = np.fromfile(self._keys, _ENTRY, self._count())
            stored = self._rows.stat().st_size // self._row_bytes
        if stored < len(self._entries):
            raise self._damaged(f"holds {stored} rows, {self._keys.name} names {len(self._entries)}")
        self._sound = np.zeros(len(self._entries), bool)

    def read(self, numbers: IntArray) -> Float32Array:
        """Read rows [n, D] by number; a number of -1 gives NaN. Nothing stays mapped afterwards.

        Raises:
            CacheError: the rows are no longer there.
        """
        rows = np.full((len(numbers), self.layout.width), np.nan, dtype=np.float32)
        order = np.argsort(numbers, kind="stable")
        order = order[numbers[order] >= 0]
        for start in range(0, len(order), _ROWS_PER_MAP):
            part = order[start : start + _ROWS_PER_MAP]
            with _explained(self.folder, 0):
                # As far as the last row asked for: a writer may be half way through what follows.
                shape = (int(numbers[part].max()) + 1, self.layout.width)
                stored = np.memmap(self._rows, dtype="<f4", mode="r", shape=shape)
                rows[part] = stored[numbers[part]]
        self._hold(numbers[order], rows[order])
        return rows

    def _hold(self, numbers: IntArray, rows: Float32Array) -> None:
        """Hold rows that are read for the first time against their checksums.

        Raises:
            CacheError: One is not as it was written.
        """
        if len(numbers) and int(numbers[-1]) >= len(self._entries):
            self._read_keys()  # opened, and asked for rows before anything else
        for place in np.flatnonzero(~self._sound[numbers]):
            key, checksum = self._entries[numbers[place]]
            if _checksum(key.tobytes(), rows[place].astype("<f4")) != checksum:
                raise self._damaged(f"holds another row {numbers[place]} than was written")
        self._sound[numbers] = True

    def _damaged(self, what: str) -> CacheError:
        return CacheError(
            f"{self._rows} {what}: the cache is damaged. Delete {self.folder}; its rows are then computed"
            " again."
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writers' lock; what a killed writer left half written is removed first."""
        lock = FileLock(self.folder / "writer.lock")
        with _explained(self.folder, 0):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning("waiting for another process that fills %s", self.folder)
                lock.acquire()
        try:
            with _explained(self.folder, 0):
                self._truncate(self._count())
            yield
        finally:
            lock.release()

    def append(self, keys: Sequence[bytes], rows: Float32Array) -> int:
        """Add rows [n, D], and return the number of the first; call it within `writing`.

        Raises:
            CacheError: the disk is full or refuses; the rows stored before stay readable.
        """
        rows = np.ascontiguousarray(rows, dtype="<f4")
        entries = np.array([(key, _checksum(key, row)) for key, row in zip(keys, rows, strict=True)], _ENTRY)
        data = rows.tobytes()
        with _explained(self.folder, 0):
            count = self._count()
        try:
            with _explained(self.folder, len(data)):
                _write_at(self._rows, count * self._row_bytes, data)
                _write_at(self._keys, count * _ENTRY.itemsize, entries.tobytes())
        except CacheError:
            with suppress(OSError):
                self._truncate(count)
            raise
        return count

    def _count(self) -> int:
        return self._keys.stat().st_size // _ENTRY.itemsize

    def _truncate(self, count: int) -> None:
        """Cut the files, keys first: a kill in between must not leave keys without rows."""
        os.truncate(self._keys, count * _ENTRY.itemsize)
        if self._rows.stat().st_size > count * self._row_bytes:
            os.truncate(self._rows, count * self._row_bytes)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        meta = self.folder / "meta.json"
        if not meta.exists():
            with FileLock(self.folder / "writer.lock"):
                if not meta.exists():
                    self._create(meta)
        for path in (self._rows, self._keys):
            if path.is_symlink() or not path.is_file():  # somebody else's would be written into
                raise CacheError(f"{path} is no regular file: the cache is damaged. Delete {self.folder}")
        try:
            found = read_json(meta)
        except ValueError as error:
            raise CacheError(f"{meta}: not JSON ({error}). Delete {self.folder} to start afresh.") from error
        if found != self._meta:
            raise CacheError(
                f"{meta} describes another cache: found {found}, expected {self._meta}. "
                f"Delete {self.folder}, or choose another cache folder."
            )

    def _create(self, meta: Path) -> None:
        for path in (self._rows, self._keys):
            write_bytes(path, b"")  # rows without a meta.json could be anyone's
        write_json(meta, self._meta)


def _key_heads(keys: Keys) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of keys [n, 32] as numbers [n]."""
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).reshape(-1)


def _checksum(key: bytes, row: Float32Array) -> int:
    return zlib.crc32(row.tobytes(), zlib.crc32(key))


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write all of `data` at `offset` and sync it."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(folder: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into a CacheError that says what to do; `needed` in bytes."""
    try:
        yield
    except CacheError:
        raise
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in FULL:
            raise CacheError(
                f"{folder}: {error}. Check that the cache folder can be read and written."
            ) from error
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        raise CacheError(
            f"{folder}: no space for {needed / 1e6:.1f} MB more of features ({error}); {free / 1e6:.1f} MB "
            "are free. Free some, delete folders of other backbones beside this one, or choose another cache "
            "folder; the rows stored so far are kept."
        ) from error
