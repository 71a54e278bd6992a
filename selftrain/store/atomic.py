"""Files that are there whole or not at all: temporary file, fsync, replace, fsync of the folder.

Everything that selftrain writes for keeps goes through here, but for the feature cache, which only appends.
A disk that is full or refuses is a `StorageError`, and what was there before is as it was.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selftrain._util.files import kind_of, plain_number
from selftrain.errors import StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_RUST = re.compile(r"\(os error (\d+)\)")
TEMPORARY = ".*.tmp"  # what a killed process may leave behind; safe to remove while nobody writes
_OURS = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
_SWEPT: set[Path] = set()


@contextmanager
def replacing(path: Path, size: int | None = None, mode: int = 0o666) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes the place of `path`, else it is removed.

    The folder is made if need be, and flushed after the move: a kill, a power cut or a full disk leaves the
    old file or the new one. `size` is said where the disk is full; `mode` is less the umask. A link is itself
    replaced: what it points to may be anyone's. `followed` is for a path that a person has named.

    Raises:
        StorageError: `path` is no regular file, or the disk refuses.
    """
    check_regular(path)
    with writing(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with _held(path, mode) as part:
            yield part
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            part.replace(path)
            sync_folder(path.parent)


def followed(path: Path) -> Path:
    """Return the path to write where a person has named one: what it points to, where it is a link.

    Raises:
        StorageError: Something is there that is no regular file, or the links go in a circle.
    """
    with writing(path):
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if target.is_symlink():  # links in a circle lead nowhere
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            path = target
        check_regular(path)
    return path


def check_regular(path: Path) -> None:
    """Refuse to replace, or to open, what is there and no regular file: it could not be put back.

    Opening a FIFO waits for a reader, and a device that became a file is missing to every program.
    """
    try:
        found = kind_of(path.lstat().st_mode)
    except OSError:  # nothing there; or nothing that may be seen: who writes there says so
        return
    if found is not None:
        raise StorageError(
            f"{path} is {found}; expected a file to write, or nothing yet: it is left as it is. Name another"
            ' one, or "-" where the command can print to standard output'
        )


def check_not_read(path: Path, *read: Path) -> None:
    """Refuse to write over one of the files that are read.

    Raises:
        StorageError: `path` is one of them.
    """
    if any(path.resolve() == one.resolve() or _is_same(path, one) for one in read):
        raise StorageError(f"{path} is a file that is read, and would be lost: name another for the output")


def _is_same(path: Path, other: Path) -> bool:
    with suppress(OSError):  # one of them is not there
        return path.samefile(other)
    return False


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`."""
    with replacing(path, len(data)) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` with one indented JSON object. NaN and infinity are refused: they are not JSON."""
    write_text(path, json_text(value))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` with one JSON object a line, keys in the order given."""
    write_text(path, jsonl_text(rows))


def json_text(value: Mapping[str, Any]) -> str:
    """Return one indented JSON object."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=plain_number) + "\n"


def jsonl_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one JSON object a line."""
    return "".join(
        json.dumps(row, ensure_ascii=False, allow_nan=False, default=plain_number) + "\n" for row in rows
    )


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing an older one in one step.

    Raises:
        StorageError: A folder is there, as in a copy that followed links; or the disk refuses.
    """
    if link.is_dir() and not link.is_symlink():
        raise StorageError(
            f"{link} is a folder, expected a link to one: a copy that followed links has made it. Remove it,"
            " and give the same command again"
        )
    part = _beside(link)
    try:
        with writing(link):
            part.symlink_to(target)
            part.replace(link)
            sync_folder(link.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Say what a full disk means, whoever meets it, in a `StorageError`.

    safetensors and tokenizers are written in Rust: an OSError's number stands in the text of their errors.
    """
    try:
        yield
    except StorageError:  # an OSError itself, and it has its words
        raise
    except OSError as error:
        raise storage_error(path, size, error) from error
    except Exception as error:
        told = _RUST.search(str(error))
        if told is None:
            raise
        number = int(told[1])
        raise storage_error(path, size, OSError(number, os.strerror(number))) from error


def storage_error(path: Path, size: int | None, error: OSError) -> StorageError:
    """Return the error to raise when `path` could not be written."""
    if error.errno in FULL:
        needed = "" if size is None else f" ({size:,} bytes)"
        return StorageError(
            f"the disk is full: {path}{needed} could not be written. Free some space and start the same"
            " command again; what was finished is kept"
        )
    advice = "Check the folder's permissions"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        advice = "What stands there is no folder: name another place, or move it"
    return StorageError(f"cannot write {path}: {error.strerror or error}. {advice}")


def _beside(path: Path) -> Path:
    """Return a new name in the folder of `path`; opened in the ordinary way, so that the umask applies.

    It tells whose it is, but for "tfevents": TensorBoard reads whatever has that in its name.
    """
    name = path.name.replace("tfevents", "events")
    return path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def _held(path: Path, mode: int) -> Iterator[Path]:
    """Give a new file beside `path`, locked as long as it is written; it is gone at the end."""
    part = _beside(path)
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        # a lock ends with its process, however that ends; not every file system has locks
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield part
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left in a folder; a process looks into each folder once."""
    if folder in _SWEPT:
        return
    _SWEPT.add(folder)
    remove_left(left for left in folder.glob(TEMPORARY) if _OURS.fullmatch(left.name))


def remove_left(files: Iterable[Path]) -> None:
    """Remove files whose writers, which held them locked, are gone."""
    for left in files:
        # held by whoever writes it, gone by now, or not ours to touch: it stays
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
