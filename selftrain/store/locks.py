"""Locks of folders and files that one process at a time may write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from selftrain.errors import RunBusyError
from selftrain.store import atomic


def take(file: Path, busy: str) -> FileLock:
    """Take the lock that is this file, at once, and return it to be released.

    Raises:
        RunBusyError: Another process holds it; `busy` says so, and what to do.
        StorageError: The file cannot be made.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:  # an OSError itself: it comes first
        if file.exists():
            raise RunBusyError(busy) from error
        # in /proc, where no file can be made, the system says that there is none: filelock takes it for gone
        refused = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise atomic.storage_error(file, None, refused) from error
    except OSError as error:
        raise atomic.storage_error(file, None, error) from error
    return lock
