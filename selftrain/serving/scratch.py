"""A private folder for the pictures of requests under way: nothing of it outlives the request.

A server that was killed leaves its folder behind; the next one to start on the machine removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from itertools import count
from pathlib import Path

from selftrain.store import atomic

_PREFIX, _LOCK = "selftrain-serve-", "in-use"


class Scratch:
    """A folder that only this user can read, held until `close`.

    Args:
        root: Where to make it; None: the system's temporary folder (TMPDIR).

    Raises:
        StorageError: It cannot be made.
    """

    def __init__(self, root: Path | None = None) -> None:
        root = Path(tempfile.gettempdir()) if root is None else root
        _remove_leftovers(root)
        with atomic.writing(root):
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))  # mode 0700
            self._lock = (self.path / _LOCK).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._numbers = count()

    def folder(self) -> Path:
        """Return where one request's pictures go; the folder is made by whoever has one."""
        return self.path / f"{next(self._numbers)}"

    def remove(self, folder: Path) -> None:
        """Remove one request's folder, if it is still there."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_leftovers(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            # the folder is shared: others may have put a pipe there, or a link to what is not theirs
            found = os.open(folder / _LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with os.fdopen(found, "rb") as lock:
                about, around = os.fstat(found), folder.lstat()
                if not (stat.S_ISREG(about.st_mode) and stat.S_ISDIR(around.st_mode)):
                    continue
                if {about.st_uid, around.st_uid} != {os.getuid()}:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:  # it is in use, just being made, another user's, or gone by now
            continue
