"""Pictures that stand in the table itself, as bytes, base64 or data URIs: kept as files in the user's cache.

A file is called by its SHA-256, so that one picture is kept once, and read again under the same path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from pathlib import Path

from selftrain._util.files import cache_home
from selftrain.store import atomic

_BASE64 = re.compile(
    r"(?:data:image/[\w.+-]+;base64,)?\s*((?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[\w+/=\s-]{40,})", re.ASCII
)


def decode_picture(written: str) -> bytes | None:
    """Return the picture that a text is, as base64 or as a data URI; None where it is something else."""
    found = _BASE64.fullmatch(written)
    if found is None:
        return None
    try:
        return base64.b64decode(found[1], altchars=b"-_" if re.search("[-_]", found[1]) else None)
    except binascii.Error:
        return None


def keep_picture(content: bytes) -> Path:
    """Write a picture into the cache, unless it is there, undamaged.

    Raises:
        StorageError: The disk is full or refuses.
    """
    path = cache_home() / "pictures" / hashlib.sha256(content).hexdigest()
    if not path.is_file() or path.read_bytes() != content:
        atomic.write_bytes(path, content)
    return path


def is_kept(path: Path) -> bool:
    """Return whether a path is of a picture that `keep_picture` wrote."""
    return path.resolve().parent == (cache_home() / "pictures").resolve()
