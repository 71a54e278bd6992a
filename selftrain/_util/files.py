"""Files that a person names: judged before they are opened, for a FIFO would block and a device never end."""

from __future__ import annotations

import errno
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from selftrain._util.nesting import MAX_DEPTH, is_deep

MAX_TOML = 1_000_000  # bytes; tasks and recipes are written by hand

# a.b.c and so on: the time that these take grows with the square of their number
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){50}""")
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
        found = None if _LONG_KEY.search(text) else tomllib.loads(text)
    except RecursionError:
        found = None
    if found is None or is_deep(found):
        raise tomllib.TOMLDecodeError(f"lists or tables stand more than {MAX_DEPTH} deep in each other")
    return found
