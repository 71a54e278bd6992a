"""Files that a person names: judged before they are opened, for a FIFO would block and a device never end."""

from __future__ import annotations

import errno
import stat
import tomllib
from pathlib import Path
from typing import Any

MAX_TOML = 1_000_000  # bytes; tasks and recipes are written by hand

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def check_regular(path: Path, most: int | None = None) -> None:
    """Refuse what is no regular file, links followed, or holds more than `most` bytes.

    Raises:
        OSError: With a `strerror` that says what was found and expected.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"it holds {found.st_size:,} bytes, at most {most:,} are read", str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file in UTF-8, a byte order mark allowed.

    Raises:
        OSError: As `check_regular`, or it cannot be read.
        UnicodeDecodeError, TOMLDecodeError: It is no UTF-8, no TOML, or nested too deeply.
    """
    check_regular(path, MAX_TOML)
    text = path.read_bytes().decode("utf-8-sig")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError(
            "lists or tables stand too deep in each other; write them flatter"
        ) from None
