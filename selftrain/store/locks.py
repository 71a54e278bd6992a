"""Locks of folders and files that one process at a time may write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from selftrain.errors import RunBusyError
from selftrain.store import atomic

ASKED_SECONDS = 0.2


def take(file: Path, busy: str) -> FileLock:
    """Take the lock that is this file, and return it to be released.

    Raises:
        RunBusyError: Another process holds it; `busy` says so, and what to do.
        StorageError: The file cannot be made.
    """
    lock = FileLock(file)
    try:
        # not at once: whoever asks whether it is held (`selftrain status`) holds it for that moment
        lock.acquire(timeout=ASKED_SECONDS, poll_interval=ASKED_SECONDS / 10)
    except Timeout as error:  # an OSError itself: it comes first
        if file.exists():
            raise RunBusyError(busy) from error
        # in /proc, where no file can be made, the system says that there is none: filelock takes it for gone
        refused = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise atomic.storage_error(file, None, refused) from error
    except OSError as error:
        raise atomic.storage_error(file, None, error) from error
    return lock
