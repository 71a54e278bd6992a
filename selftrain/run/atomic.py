"""Files that are there whole or not at all: temp file, fsync, replace, fsync of the folder."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selftrain.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data` so that a kill or a full disk leaves the old file or the new one.

    Raises:
        StorageError: The disk is full or refuses; the temporary file is gone and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(path, len(data), error) from error


def storage_error(path: Path, size: int, error: OSError) -> StorageError:
    """The error to raise when `path` could not be written."""
    if error.errno in _FULL:
        remedy = "free some space and start the same command again; it goes on from the last finished round"
        return StorageError(f"the disk is full: {path} needs {size:,} bytes. {remedy}")
    return StorageError(f"cannot write {path}: {error.strerror or error}. Check the folder's permissions")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """One indented JSON object. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, keys in the order given."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing an older one in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
        temporary.replace(link)
        sync_folder(link.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(link, 0, error) from error
