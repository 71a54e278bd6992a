"""Which column of a table is which field of a post: by its name, where that leaves no doubt, or as told.

What only may be meant is named with what to type, and never read.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from selftrain._util.printable import first_of
from selftrain.data.tables import fold
from selftrain.errors import ManifestError

COLUMNS = ("id", "text", "images", "label", "process", "video")
PROCESS_PREFIX = "process."
SPLIT = "split"


def _key(name: str) -> str:
    return fold(name).replace(" ", "").replace("_", "").replace("-", "")


# beside other spellings of the names themselves, what can mean nothing else
_SAME = {_key(name): name for name in (*COLUMNS, SPLIT)} | {"img": "images", "image": "images"}
# what often means one of ours, and as often something else: named, never read
_LIKE = {
    "id": "postid tweetid uid guid index key statusid commentid itemid docid no number rowid idstr imageid",
    "text": "tweet content body message caption sentence comment post title words fulltext description ocr"
    " sentence1 input document meme texttranscription utterance",
    "images": "imagepath imgpath picture pictures photo photos filename file filepath path imageurl media"
    " imagefile imgs attachments pixels",
    "label": "class category target y accept tag tags labels goldlabel annotation annotations sentiment"
    " labelname classlabel output answer hateful ishate toxic polarity verdict rating score",
}
_LIKE_KEYS = {field: frozenset(names.split()) for field, names in _LIKE.items()}


@lru_cache(maxsize=1024)  # of each row that is written the same names
def spelled(name: str) -> str | None:
    """Return the field that a column of this name is read as where none has the field's own name."""
    return _SAME.get(_key(name))


def resembling(field: str, names: Iterable[str]) -> str | None:
    """Return the name that may well be meant for a field that no column is called like."""
    return _resembling(field, tuple(islice(names, 1000)))


@lru_cache  # rows without the field, of which a file may have a million, have the same names as a rule
def _resembling(field: str, names: tuple[str, ...]) -> str | None:
    keys: dict[str, str] = {}
    for name in names:
        keys.setdefault(_key(name), name)
    near = [key for key in keys if key in _LIKE_KEYS.get(field, ())]
    others = {key: name for key, name in keys.items() if key not in _SAME}
    near = near or [key for key, name in others.items() if field in re.split(r"[\W_]+", fold(name))]
    near = near or difflib.get_close_matches(field, others, n=1, cutoff=0.75)
    return keys[near[0]] if near else None


def inner_names(row: Mapping[str, Any]) -> list[str]:
    """Return the names of a row, and of what stands in its objects: ``data.text``."""
    inner = [f"{name}.{key}" for name, value in row.items() if isinstance(value, dict) for key in value]
    return [*row, *inner]


@lru_cache
def column_option(field: str, column: str) -> str:
    """Return what to type so that a column is read as a field: in a command, and for a recipe."""
    told = shlex.quote(f"data.columns={{{field} = {json.dumps(column, ensure_ascii=False)}}}")
    return f"--column {shlex.quote(f'{field}={column}')}; of a recipe --set {told}"


class Columns:
    """Says which field of a post a column is.

    Args:
        path: Of the table, for messages.
        given: Field -> column, as the user says it; beats every name. ``data.text`` and ``labels.0`` reach
            into objects and lists.
        header: All columns, where they are known beforehand.

    Raises:
        ManifestError: A field that is none, one column for two fields, a column that the header lacks, or no
            column for the id.
    """

    def __init__(self, path: Path, given: Mapping[str, str], header: Sequence[str] | None) -> None:
        strange = [
            one for one in given if one not in (*COLUMNS, SPLIT) and not one.startswith(PROCESS_PREFIX)
        ]
        if strange:
            raise ManifestError(
                f"--column {strange[0]}={given[strange[0]]}: expected one of {[*COLUMNS, SPLIT]} before the"
                " equals sign, and the name of your column after it"
            )
        self._given = {column: field for field, column in given.items()}
        for field, column in given.items():
            if (other := self._given[column]) != field:
                raise ManifestError(
                    f"--column {field}={column} and {other}={column}: expected a column for each field, leave"
                    " one of the two out"
                )
        self._header = None if header is None else frozenset(header)
        self._known: dict[str, tuple[str | None, bool]] = {}
        self.missing = set(self._given)  # columns that were given, and not met so far
        self.renamed: dict[str, str] = {}  # column -> field, where another spelling was read
        if header is not None:
            self._check_header(path, header)

    def field(self, name: str) -> tuple[str | None, bool]:
        """Return the field, or None, and whether the name is the field's own: then it leaves no choice.

        None for such a name is that of a field which another column was given for.
        """
        found = self._known.get(name)
        if found is None:
            if len(self._known) > 10_000:  # rows whose keys are data
                self._known.clear()
            found = self._known[name] = self._find(name)
        return found

    def _find(self, name: str) -> tuple[str | None, bool]:
        if name in self._given:
            self.missing.discard(name)
            return self._given[name], True
        field, exact = name, name in COLUMNS or name == SPLIT or name.startswith(PROCESS_PREFIX)
        if not exact:
            field = spelled(name) or ""
        taken = field in self._given.values() or (not exact and field in (self._header or ()))
        return (None if taken or not field else field, exact)

    def reached(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with what the given columns reach in its objects and lists."""
        inner = {}
        for column in self._given:
            if column not in row and "." in column:
                value: Any = row
                for part in column.split("."):
                    if isinstance(value, list) and part.isdecimal():
                        value = value[int(part)] if int(part) < len(value) else None
                    else:
                        value = value.get(part) if isinstance(value, dict) else None
                if value is not None:
                    inner[column] = value
        return {**row, **inner} if inner else dict(row)

    def column_of(self, field: str) -> str:
        """Return the column that a field is read from, as far as is known: its own name else."""
        named = {**self.renamed, **self._given}
        return next((column for column, one in named.items() if one == field), field)

    def _check_header(self, path: Path, header: Sequence[str]) -> None:
        fields = {self.field(name)[0] for name in header} | set(self._given.values())
        shown = first_of(header)
        missing = sorted(one for one in self.missing if one.split(".")[0] not in header)
        if missing:
            raise ManifestError(f"{path} has no column {missing[0]!r}: it has {shown}; correct --column")
        if "id" not in fields:
            like = resembling("id", header)
            hint = (
                "add it" if like is None else f"add it, or read {like!r} as id ({column_option('id', like)})"
            )
            raise ManifestError(
                f"{path} has the columns {shown}; expected a header with 'id', and 'text' or 'images': {hint}"
            )
