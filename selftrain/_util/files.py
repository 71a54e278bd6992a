"""Files that a person names: judged before they are opened, for a FIFO would block and a device never end."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from numbers import Integral, Real
from pathlib import Path
from typing import Any

MAX_TOML = 1_000_000  # bytes; tasks and recipes are written by hand
MAX_DEPTH = 100  # lists and tables within each other: what is read is shown and written again, which recurses

# a.b.c and so on: the time that these take grows with the square of their number
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){50}""")
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip

_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"),
)  # fmt: skip


def cache_home() -> Path:
    """Return where features, pictures and copies of objects are: $SELFTRAIN_CACHE, else the user's cache."""
    home = os.environ.get("SELFTRAIN_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "selftrain"


def plain_number(value: object) -> int | float:
    """Return a number, one of NumPy's say, as Python and JSON have it; TypeError: it is none."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"a {type(value).__name__} is no value of JSON: {value!r}")


def kind_of(mode: int) -> str | None:
    """Return what a mode says that something is: "a FIFO"; None where it is a regular file, or a link."""
    return _KINDS.get(stat.S_IFMT(mode))


def check_regular(path: Path, most: int | None = None) -> None:
    """Refuse what is no regular file, links followed, or holds more than `most` bytes.

    Raises:
        OSError: With a `strerror` that says what was found and expected.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = kind_of(found.st_mode) or "no file"
        raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"it holds {found.st_size:,} bytes, at most {most:,} are read", str(path))


def text_encoding(head: bytes) -> str:
    """Return the encoding that the beginning of a text shows, by its mark or by its zeros; else UTF-8."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    # no mark, but every other byte of what must be plain letters is zero
    if len(head) > 3 and head[0] and not head[1] and head[2] and not head[3]:
        return "utf-16-le"
    return "utf-16-be" if len(head) > 3 and not head[0] and head[1] and not head[2] and head[3] else "utf-8"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file in UTF-8, or in what its byte order mark says.

    Raises:
        OSError: As `check_regular`, or it cannot be read.
        TOMLDecodeError: It is no text, no TOML, or nested too deeply.
    """
    check_regular(path, MAX_TOML)
    content = path.read_bytes()
    try:
        text = content.decode(text_encoding(content)).lstrip("\ufeff")
        found = None if _LONG_KEY.search(text) else tomllib.loads(text)
    except UnicodeDecodeError as error:
        reason = f"byte {content[error.start]:#04x} at {error.start} is no {error.encoding.upper()}"
        raise tomllib.TOMLDecodeError(f"{reason}: save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        if "hex value" in str(error) or "scape" in str(error):
            advice = "in double quotes a backslash begins an escape: write paths with / or in single quotes"
            raise tomllib.TOMLDecodeError(f"{error}; {advice}") from error
        raise
    except RecursionError:
        found = None
    if found is None or is_deep(found):
        raise tomllib.TOMLDecodeError(f"lists or tables stand more than {MAX_DEPTH} deep in each other")
    return found


def read_json(path: Path) -> Any:  # noqa: ANN401 -- whatever stands there
    """Read one JSON value, in UTF-8.

    Raises:
        OSError: As `check_regular`, or it cannot be read.
        ValueError: It is no text, no JSON, or nested too deeply.
    """
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("lists or objects stand too deep in each other") from error


def is_deep(value: object) -> bool:
    """Return whether lists and mappings stand more than `MAX_DEPTH` deep in each other."""
    level = [value]
    for _ in range(MAX_DEPTH):
        outer = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in outer for inner in (one.values() if isinstance(one, dict) else one)]
    return bool(level)
