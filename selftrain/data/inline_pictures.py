"""Pictures that stand in the data itself, as bytes, base64 or data URIs; those of tables are kept as files.

A kept file is called by its SHA-256, so that one picture is kept once, and read again under the same path.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from selftrain._util.files import cache_home
from selftrain._util.printable import shorten
from selftrain.store import atomic

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes of the second header, by which the versions differ
_HEAD = 24  # characters of base64 whose 18 bytes show what a picture is
_BASE64 = re.compile(r"[\w+/=\s-]{40,}", re.ASCII)


class InlinePictureError(ValueError):
    """What is wrong with a text that can only be a picture; continues a sentence: "is not base64"."""


class DataUri(NamedTuple):
    """A data URI, taken apart after RFC 2397."""

    media_type: str  # in lower case, without its parameters
    in_base64: bool  # else every byte stands for itself, or is written as %XX
    data: str  # as written

    @property
    def size(self) -> int:
        """About how many bytes it holds; nothing is decoded for it."""
        return encoded_size(self.data) if self.in_base64 else len(self.data) - 2 * self.data.count("%")

    def decode(self) -> bytes:
        """Return what it holds.

        Raises:
            InlinePictureError: That cannot be read, or is nothing.
        """
        if not self.in_base64:
            content = unquote_to_bytes(self.data)
        else:
            content = decode_base64(unquote(self.data) if "%" in self.data else self.data)
        if not content:
            raise InlinePictureError("is a data URI with nothing in it")
        return content


def is_data_uri(written: str) -> bool:
    """Tell whether a text can only be meant as a data URI."""
    return written[:100].lstrip()[:5].lower() == "data:"


def split_data_uri(written: str) -> DataUri:
    """Take a data URI apart: the scheme, the type and ``base64`` are written in any case.

    Raises:
        InlinePictureError: Nothing says where its data begins.
    """
    head, comma, data = written.strip()[5:].partition(",")
    if not comma:
        raise InlinePictureError("is a data URI without a comma before its data")
    media_type, *parameters = (part.strip().lower() for part in head.split(";"))
    return DataUri(media_type or "text/plain", "base64" in parameters, data)


def encoded_size(encoded: str) -> int:
    """Return about how many bytes a base64 text holds; nothing is decoded for it."""
    return len(encoded) * 3 // 4


def decode_base64(encoded: str) -> bytes:
    """Decode base64 in either alphabet, in one line or several.

    Raises:
        InlinePictureError: It is cut, or no base64.
    """
    joined = "".join(encoded.split())
    try:
        return base64.b64decode(joined, b"-_" if re.search("[-_]", joined) else None, validate=True)
    except ValueError as error:
        raise InlinePictureError(f"is not base64, or not all of it ({error})") from error


def is_picture(value: object) -> bool:
    """Tell whether bytes begin like one of the pictures that are read."""
    return isinstance(value, bytes) and (value.startswith(_SIGNATURES) or _is_bitmap(value))


def _is_bitmap(content: bytes) -> bool:
    """Tell whether bytes begin like a BMP: "BM" begins texts too, so that what follows has to fit.

    The size of the file, which some write as 0, says nothing: a file that is cut is to be told as such.
    """
    if len(content) < 18 or not content.startswith(b"BM"):
        return False
    pixels_at, header = struct.unpack_from("<II", content, 10)
    return header in _BITMAP_HEADERS and 14 + header <= pixels_at < 1 << 16


def read_picture(written: str) -> bytes | None:
    """Return the picture that a text is, as base64 or as a data URI; None where it may be a path.

    Raises:
        InlinePictureError: It is a data URI without a picture, or a picture of which something is missing.
    """
    if is_data_uri(written):
        uri = split_data_uri(written)
        content = uri.decode()
        if not is_picture(content):
            raise InlinePictureError(f"is a data URI of {shorten(uri.media_type)} that holds no picture")
        return content
    head = "".join(written[: 4 * _HEAD].split())[:_HEAD]
    if len(head) < _HEAD or "=" in head or _BASE64.fullmatch(written) is None:
        return None
    return decode_base64(written) if is_picture(decode_base64(head)) else None


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
