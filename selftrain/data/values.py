"""Values of a row, whatever the format writes them as: one set of rules for CSV, JSON and Parquet."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from selftrain._util.printable import shorten
from selftrain.data.inline_pictures import InlinePictureError, is_picture, read_picture
from selftrain.data.tables import RawRow, fold
from selftrain.data.task import Question

NOTHING = frozenset(
    (
        "na", "n/a", "#n/a", "nan", "none", "null", "nil", "<na>", "-", "?", "missing", "undefined",
        "unlabeled", "unlabelled", "#name?", "#value!", "#ref!", "#div/0!",
    )
)  # fmt: skip


class RowError(Exception):
    """Why a row cannot become a post, and what would mend it. Never leaves what reads manifests."""

    def __init__(self, reason: str, remedy: str, post_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.post_id = post_id


class Names(tuple[str, ...]):
    """Names that are found in another spelling too, as long as only one of them can be meant."""

    __slots__ = ()

    def find(self, value: object) -> str | None:
        """Return the name that a text, number or truth value stands for; None where it is open or none."""
        written = scalar(value)
        if not isinstance(written, str):
            return None
        if written in self:
            return written
        key = _spelling(written)
        alike = [name for name in self if _spelling(name) == key]
        return alike[0] if len(alike) == 1 else None


def _spelling(name: str) -> str:
    key = fold(name)
    return re.sub(r"\.0+$", "", key) if re.fullmatch(r"[+-]?\d+\.0+", key) else key


@lru_cache(maxsize=1024)  # of each row that is written the same names
def spelled_names(names: tuple[str, ...], wanted: tuple[str, ...]) -> Mapping[str, str]:
    """Return wanted name -> that of `names` which means it, whatever its case; the same to the letter first.

    Raises:
        RowError: Two others could be meant.
    """
    found: dict[str, str] = {}
    for name in names:
        key = fold(name)
        if key not in wanted or (key != name and key in names):
            continue
        if key in found:
            raise RowError(f"the columns {found[key]!r} and {name!r} could both be {key}", "keep one of them")
        found[key] = name
    return found


def named_values(row: RawRow, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what a row has under names that `spelled_names` found, None where it has nothing.

    Raises:
        RowError: One of them cannot be read.
    """
    for key, name in names.items():
        if name in row.unread:
            raise RowError(f"{key} cannot be read: {row.unread[name]}", "write it as a text")
    fields = row.fields or {}
    return {key: fields.get(name) for key, name in names.items()}


def scalar(value: object) -> object:
    """Return a number or a truth value as the text that CSV has for it; anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value) if isinstance(value, int | float | Decimal) else value


def odd_signs(value: object, names: Iterable[str]) -> str:
    """Name the signs of a text that no name holds and that may look like others, in brackets; or nothing."""
    if not isinstance(value, str) or value.isascii():
        return ""
    known = "".join(names)
    odd = [sign for sign in dict.fromkeys(value) if not sign.isascii() and sign not in known][:3]
    named = ", ".join(f"{sign!a}, {unicodedata.name(sign, 'without a name')}" for sign in odd)
    return f" (it holds {named})" if odd else ""


def only_one(value: object, names: tuple[str, ...]) -> object:
    """Return what a list holds that holds one thing or nothing, as some tools write a label.

    Raises:
        RowError: It holds several, or a text holds several of `names` with something between them.
    """
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        listed = _listed(value)
        value = listed if isinstance(listed, list) else value
    parts = re.split(r"\s*[;|,/]\s*", value.strip()) if isinstance(value, str) and value not in names else []
    if len(parts) > 1 and all(Names(names).find(one) for one in parts):
        value = parts
    if isinstance(value, list):
        if len(value) > 1:
            raise RowError(f"{len(value)} labels, {shorten(value)}", "keep one")
        return value[0] if value else None
    return value


def _listed(value: str) -> object:
    """Return the list or table that a text holds, as JSON or as Python prints it; None where it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
            return [*found] if isinstance(found, tuple) else found
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def text_of(value: object, what: str, part: str = "") -> str:
    """Return a text, empty where there is no value; `part`: what to do where an object stands there."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # as CSV has it
    if not isinstance(value, str):
        reason = f"{what} {shorten(value)} is a {type(value).__name__}, expected a text"
        raise RowError(reason, f"write it as a text{part}")
    if "\0" in value:
        raise RowError(f"{what} holds a NUL byte", "remove it")
    return value


def image_list(value: object, most: int) -> list[str | bytes]:
    """Return pictures, or their paths as written.

    They come as a list, a list in a text, a text separated by semicolons, or alone.
    """
    if value is None or _no_picture(value):
        return []
    if isinstance(value, str):
        listed = _listed(value) if value.lstrip()[:1] in ("[", "(") else None
        if not isinstance(listed, list):
            picture = _text_picture(value)
            listed = [one.strip() for one in value.split(";")] if picture is None else [picture]
        value = [one for one in listed if one != ""]
    found = [_picture(one) for one in (value if isinstance(value, list) else [value])]
    taken = [one for one in found if one and isinstance(one, str | bytes)]
    if len(taken) < len(found):
        raise RowError(f"images {shorten(value)} is no list of paths", "write the paths as a list of texts")
    if len(taken) > most:
        raise RowError(f"{len(taken)} images, at most {most}", f"keep the {most} that matter")
    return taken


def _no_picture(value: object) -> bool:
    """Tell whether a value is an object of Hugging Face's without a picture."""
    return isinstance(value, dict) and set(value) == {"bytes", "path"} and not any(value.values())


def _picture(one: object) -> object:
    """Return a picture or its path; Hugging Face's datasets write objects of bytes, path, or both."""
    if isinstance(one, dict) and one and set(one) <= {"bytes", "path"}:
        one = one.get("path") if one.get("bytes") is None else one["bytes"]
    if isinstance(one, str):
        return _text_picture(one) or one
    if isinstance(one, bytes) and not is_picture(one):
        remedy = "write it as JPEG, PNG, WebP, GIF or BMP, or take it out"
        raise RowError(f"images holds {len(one):,} bytes that begin like no picture that is read", remedy)
    return one if isinstance(one, bytes) else None


def _text_picture(written: str) -> bytes | None:
    """Return the picture that a text is; None where it may be a path."""
    try:
        return read_picture(written)
    except InlinePictureError as error:
        remedy = 'write all of it, as "data:image/...;base64,...", or the path of a file'
        raise RowError(f"images {shorten(written)} {error}", remedy) from error


def holds_picture(value: object) -> bool:
    """Return whether a value that nobody reads is a picture, which no manifest could carry along."""
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def process_table(value: object) -> dict[str, Any]:
    """Return question -> answer as written."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    found = _listed(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        fault = "not JSON" if found is None else "no table"
        raise RowError(f"process {shorten(value)} is {fault}", "write an object: question -> answer")
    return dict(found)


def count_answer(question: Question, value: object, images: int) -> str | None:
    """Return the answer that a number of pictures stands for, be it in digits; None where it is none."""
    value = scalar(value) if isinstance(value, float) else value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if question.counting is None or not isinstance(value, int) or isinstance(value, bool):
        return None
    if not 0 <= value <= images or images == 0:
        raise RowError(
            f"{value} for the counting question {question.name!r}, the post has {images} images",
            "count the post's images only",
        )
    return question.answer_for_count(value, images)
