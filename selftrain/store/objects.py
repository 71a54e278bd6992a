"""Tables on object storage, read as files: copies in the user's cache of what the store has now.

    $SELFTRAIN_CACHE/selftrain/
    ├── objects/s3/BUCKET/KEY           a whole copy of s3://BUCKET/KEY
    └── versions/s3/BUCKET/KEY.json     which version of the object that is

A path below ``objects`` stands for its URL wherever it goes (`_util.object_urls`), so that whoever reads
files need not know. `fetch` asks the store at every opening whether the copy is still the object; a copy
takes its name once it is whole.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.request import getproxies, proxy_bypass

from filelock import FileLock

from backbones.images import MAX_BYTES
from backbones.progress import ProgressBar
from selftrain._util.files import read_json
from selftrain._util.object_urls import home_of, url_of
from selftrain.errors import ManifestError, StorageError
from selftrain.store import atomic

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")
Made = TypeVar("Made")

_ADVICE = {
    "s3": "bucket, credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE), region (AWS_DEFAULT_REGION) and endpoint"
    " (AWS_ENDPOINT_URL)",
    "gs": "bucket and credentials (GOOGLE_APPLICATION_CREDENTIALS)",
    **dict.fromkeys(("abfs", "abfss"), "container, account and credentials (AZURE_CLIENT_ID, az login)"),
}  # fmt: skip
_EMULATOR = "CLOUD_STORAGE_EMULATOR_ENDPOINT"  # as Google's own clients call it; it asks for no credentials
_BLOCK, AT_ONCE = 1 << 23, 16  # bytes of a request, and how many are under way
_ROWS_AHEAD = 64
_PATIENCE = 30  # seconds
_SHOWN = 1 << 26  # bytes from which on a bar is drawn, and processes wait for each other


# ---- one object and its copy ------------------------------------------------------------------------------


def fetch_table(path: Path) -> None:
    """Bring the copy of a table in line with the store; a path of this machine's own is left alone.

    Raises:
        ManifestError: There is no such object, or it cannot be read.
        StorageError: The disk is full, or refuses.
    """
    url = url_of(path)
    if url is not None and fetch(path) is None:
        with _explained(url):
            raise ManifestError(_missing(url))


def fetch(path: Path, most: int | None = None) -> int | None:
    """Bring the copy of an object in line with the store.

    Args:
        path: Of the copy.
        most: Bytes; of a larger object there will be no copy.

    Returns:
        The bytes of the object; None: there is none, or none that a copy can be had of.

    Raises:
        ManifestError: It cannot be read, or changes while it is.
        StorageError: The disk is full, or refuses.
    """
    url = url_of(path)
    if url is None:
        return None
    with _explained(url):
        store, name = _opened(url)
        try:
            with store.open_input_file(name) as file:
                size, version = file.size(), _version(file)
                if most is not None and size > most:
                    _forget(path)
                elif not _is_current(path, version):
                    with _alone(path, size):
                        if not _is_current(path, version):
                            _copy(file, size, path, url)
                            _check_unchanged(store, name, version, path, url)
                            atomic.write_json(_note(path), {"copy": [version, *_written(path)]})
                return int(size)
        except FileNotFoundError:
            _forget(path)
            return None


def _is_current(path: Path, version: str) -> bool:
    return _noted(path) == [version, *_written(path)]


def _alone(path: Path, size: int) -> AbstractContextManager[Any]:
    """Let one of several processes fetch what is large, and the others wait for it."""
    if size < _SHOWN:
        return nullcontext()
    note = _note(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(note.with_suffix(".lock"))


def _forget(path: Path) -> None:
    if path.is_file():
        path.unlink(missing_ok=True)


def _copy(file: pa.NativeFile, size: int, path: Path, url: str) -> None:
    folder = next(one for one in path.parents if one.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StorageError(
            f"{url} has {size:,} bytes, and {free:,} are free in {folder}, where a copy is kept: free some"
            " space, or set SELFTRAIN_CACHE to a folder with more"
        )
    with atomic.replacing(path, size) as part, part.open("wb") as out:
        blocks = _blocks(file, size, url)
        for block in blocks if size < _SHOWN else _counted(blocks, size):
            out.write(block)


def _counted(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    with ProgressBar(desc="fetch", total=size >> 20, unit="MB", disable=not sys.stderr.isatty()) as bar:
        done = 0
        for block in blocks:
            yield block
            done += len(block)
            bar.update((done >> 20) - bar.n)


def _blocks(file: pa.NativeFile, size: int, url: str) -> Iterator[bytes]:
    """Yield the bytes of an object; of a large one, parts of it are asked for side by side."""

    def block(start: int) -> bytes:
        with _explained(url):  # here: around it an OSError is of the disk that is written to
            found: bytes = file.read_at(min(_BLOCK, size - start), start)
            if len(found) != min(_BLOCK, size - start):
                raise OSError(f"{len(found):,} bytes came from {start:,} on, the object ends at {size:,}")
            return found

    starts = range(0, size, _BLOCK)
    if len(starts) < 2:
        yield from map(block, starts)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _, waiting in ahead(starts, lambda start: pool.submit(block, start), AT_ONCE):
            yield waiting.result()


class Beside:
    """What rows name beside an object: fetched when it is asked for, or begun with some rows before.

    Of a file larger than any picture that is read there will be no copy.
    """

    def __init__(self) -> None:
        self._begun: dict[Path, Future[int | None]] = {}

    def fetch(self, path: Path) -> str:
        """Bring a copy in line with the store; return why there is none, other than that nothing is there."""
        begun = self._begun.pop(path, None)
        size = fetch(path, MAX_BYTES) if begun is None else begun.result()
        large = size is not None and size > MAX_BYTES
        return f"holds {size:,} bytes, at most {MAX_BYTES:,} are fetched" if large else ""

    def ahead(self, rows: Iterable[Item], paths: Callable[[Item], Iterable[Path]]) -> Iterator[Item]:
        """Yield rows; what those to come name is fetched meanwhile."""
        pool = ThreadPoolExecutor(AT_ONCE)

        def begin(row: Item) -> None:
            for path in paths(row):
                if path not in self._begun:
                    self._begun[path] = pool.submit(fetch, path, MAX_BYTES)

        try:
            for row, _ in ahead(rows, begin, _ROWS_AHEAD):
                yield row
        finally:
            pool.shutdown(cancel_futures=True)
            self._begun.clear()


def ahead(items: Iterable[Item], begin: Callable[[Item], Made], most: int) -> Iterator[tuple[Item, Made]]:
    """Yield items with what was begun for each, `most` of them before they are asked for."""
    begun = deque[tuple[Item, Made]]()
    try:
        for item in items:
            begun.append((item, begin(item)))
            if len(begun) > most:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
    finally:
        for _, left in begun:
            if isinstance(left, Future):
                left.cancel()


def _check_unchanged(store: pa.fs.FileSystem, name: str, version: str, path: Path, url: str) -> None:
    """Refuse a copy of an object that changed on the way: it may be half of each."""
    with store.open_input_file(name) as again:
        if _version(again) == version:
            return
    _forget(path)
    raise ManifestError(f"{url} changed while it was fetched: give the same command again")


def _version(file: pa.NativeFile) -> str:
    """Return what differs between two versions of an object: the ETag, where the store gives one."""
    told = {key.lower(): value.decode(errors="replace") for key, value in (file.metadata() or {}).items()}
    return told.get("etag") or repr(sorted(told.items()))


def _written(path: Path) -> list[int]:
    """Return what tells a file at a path from another one there; of none, nothing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _note(path: Path) -> Path:
    beside = home_of("versions") / path.relative_to(home_of("objects"))
    return beside.with_name(f"{beside.name}.json")


def _noted(path: Path) -> list[Any]:
    """Return the version that a copy is of, and what its file was; a note that cannot be read is none."""
    try:
        return list(read_json(_note(path))["copy"])
    except (OSError, ValueError, TypeError, KeyError):
        return []


# ---- the store ------------------------------------------------------------------------------------------


def _opened(url: str) -> tuple[pa.fs.FileSystem, str]:
    """Return where an object lies, and what it is called there."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    store, root = _store(scheme, bucket, endpoint, os.getpid())
    return store, f"{root.rstrip('/')}/{key}"


@lru_cache(maxsize=64)
def _store(scheme: str, bucket: str, endpoint: str, _process: int) -> tuple[pa.fs.FileSystem, str]:
    """Return a bucket of a store, and its name there; made anew in a process that was forked."""
    from pyarrow import fs

    if scheme == "s3":
        kind, _, host = endpoint.rstrip("/").rpartition("://")
        proxy = getproxies().get(kind or "https")
        if proxy and proxy_bypass(host or f"{bucket}.s3.amazonaws.com"):
            proxy = None
        # made by arguments, Arrow's client looks for no endpoint; made from a URI, for no proxy, and it has
        # three seconds of patience with a busy server
        return fs.S3FileSystem(
            region=None if host or proxy else fs.resolve_s3_region(bucket),
            endpoint_override=host or None, scheme=kind or "https", proxy_options=proxy,
            connect_timeout=_PATIENCE, request_timeout=_PATIENCE,
        ), bucket  # fmt: skip
    user, options = "", ""
    if scheme == "gs":
        user, options = "anonymous@" if _EMULATOR in os.environ else "", "?retry_limit_seconds=60"
    store, root = fs.FileSystem.from_uri(f"{scheme}://{user}{bucket}{options}")
    return store, str(root)


def _missing(url: str) -> str:
    """Return why there is no such object: it may be a folder, or the bucket may be missing."""
    from pyarrow import fs

    store, name = _opened(url)
    if store.get_file_info(name).type == fs.FileType.Directory:
        inside = store.get_file_info(fs.FileSelector(name))
        files = [one.base_name for one in inside if one.type == fs.FileType.File]
        return f"{url} is a folder: name one of its objects{f', {files[0]!r} for instance' if files else ''}"
    bucket = name.partition("/")[0]
    if store.get_file_info(bucket).type == fs.FileType.NotFound:
        return f"{url} cannot be read: there is no bucket {bucket!r}, or these credentials do not see it"
    return f"{url} cannot be read: there is no such object in the bucket; see that its key is right"


@contextmanager
def _explained(url: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except StorageError as error:
        told = f"{error} A copy of {url} is kept in {home_of('objects')}: SELFTRAIN_CACHE names another place"
        raise error if "SELFTRAIN_CACHE" in str(error) else StorageError(told) from error
    except (OSError, pa.ArrowException) as error:
        # a library that was built without this store says so itself
        advice = _ADVICE[url.partition(":")[0]]
        raise ManifestError(
            f"{url} cannot be read ({str(error)[:500]}): see that {advice} are right. What was finished is"
            " kept; the same command goes on"
        ) from error
