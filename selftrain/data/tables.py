"""Any table that people bring, as raw rows: CSV in its dialects, JSON lines or lists, Parquet, compressed.

The content says what a file is, its name only where the content leaves it open. No row is judged here, unless
it could not be read at all: then it comes with the reason. Rows in are rows out: a reader that cannot tell
rows apart any more stops. What a file makes of memory is bounded, see `MAX_ROW` and `MAX_RATIO`.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from selftrain._util.files import MAX_DEPTH, check_regular, is_deep, text_encoding
from selftrain._util.object_urls import local_path
from selftrain._util.printable import first_of, shorten
from selftrain._util.spreadsheet import ESCAPED, unescape
from selftrain.data.inline_pictures import is_picture
from selftrain.errors import ManifestError
from selftrain.store.objects import fetch_table

if TYPE_CHECKING:
    import _csv

    import pyarrow as pa
    import pyarrow.parquet as pq

JSON_LINES = (".jsonl", ".json", ".ndjson")
CSV = (".csv", ".tsv")
SUFFIXES = (*JSON_LINES, *CSV, ".parquet")
# marks Parquet columns whose values are JSON texts, because no one Arrow type holds them
JSON_MARK = {b"selftrain": b"json"}

LISTED = "one JSON list"

MAX_ROW = 1 << 24  # characters of a row; JSON of empty lists takes twenty times as much memory
MAX_COLUMNS = 100_000  # of a header
# a compressed or Parquet file may unpack to this many times its size; the smallest are given some room
MAX_RATIO, _ROOM, _ROWS = 100, 1 << 26, 100_000

_AHEAD = 1 << 16  # bytes of a file after which what was read says how far its rows are
_HEAD = 1 << 20  # bytes that are looked at to find out what a file is
_MOST_NOTES = 100
_LONG = 100  # lines of one CSV row from which on a lost quote is likelier than a long text
_COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open,
}  # fmt: skip
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV UTF-8",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it (unzstd)",
    b"ARROW1": "an Arrow or Feather file: write it as Parquet",
    b"SQLite format 3": "a SQLite database: export the table as CSV",
    b"%PDF": "a PDF document: give a table",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself (git lfs pull)",
    b"<!doctype html": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
    b"<": "an XML or HTML document: convert it to JSON lines or CSV",
    b"\xff\xff\xff\xff": "an Arrow stream, as Hugging Face's datasets keep: write it as Parquet (to_parquet)",
    b"\x93NUMPY": "a NumPy array: write a table with a header",
    b"\x89HDF": "an HDF5 file: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"Rar!": "a RAR archive: unpack it", b"7z\xbc\xaf": "a 7-Zip archive: unpack it",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a pickle, which may run code: write it as Parquet where it was made",
    ),
}  # fmt: skip
# what a broken compressed file raises beside OSError
_BROKEN = (EOFError, zlib.error, lzma.LZMAError)
_SURROGATE = re.compile("[\ud800-\udfff]")


class RawRow(NamedTuple):
    """A row as it stands in the file."""

    line: int  # 1-based line on which it begins; in Parquet the 1-based row
    fields: dict[str, Any] | None  # column -> value; None when the row could not be read
    reason: str = ""  # why it could not, else empty
    remedy: str = ""  # what to do then
    # column -> why its value cannot be read; whoever needs the column refuses the row
    unread: Mapping[str, str] = {}
    begun: bool = False  # whether it is the last line, no JSON and without an end: it may still be written


class Table(NamedTuple):
    """An opened table."""

    form: str  # "CSV", "JSON" or "Parquet"
    columns: tuple[str, ...] | None  # of the header; None for JSON, where every row has names of its own
    rows: Iterator[RawRow]  # read as they are asked for
    notes: list[str]  # what is unusual about the file and was understood; complete once the rows are read
    # the row read last -> how much of the file has been read, in [0, 1], 0 while that says too little; None:
    # that is not known (packed, a stream, a list of several lines)
    share: Callable[[RawRow], float] | None = None


def open_table(
    path: Path | str, *, header: Sequence[str] | None = None, delimiter: str = "", fallback: str = ""
) -> Table:
    """Open a table; a row at a time is in memory, of Parquet some thousand.

    Args:
        path: A regular file of any name, or the URL of an object.
        header: Column names of a CSV file that has none.
        delimiter: Of a CSV file; found out when empty.
        fallback: Encoding of a CSV file whose bytes are not UTF-8 throughout; without one those rows are bad.

    Raises:
        ManifestError: The file is missing, is no table, or has column names twice; its `rows` raise it too
            where the file is damaged, or holds a row beyond the limits.
        StorageError: The disk has no room for the copy of an object.
    """
    path = local_path(path)
    fetch_table(path)
    try:
        check_regular(path)
        if fallback and _is_utf8(path):
            fallback = ""
        return _open(path, header, delimiter, fallback)
    except (OSError, *_BROKEN) as error:
        if not isinstance(error, OSError) or error.errno is None:  # of a library that unpacks
            raise ManifestError(f"{path} is damaged: {error}; fetch it again") from error
        tables = {*SUFFIXES} - {".json"}  # which is what is told about a data set, as often as not
        inside = [one.name for one in islice(path.glob("*"), 1000) if _suffix(one) in tables]
        advice = (
            f"give one of its files, {inside[0]!r} for instance" if inside else "give the path of a manifest"
        )
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}; {advice}") from error


def read_text(path: Path, fallback: str = "") -> str:
    """Return a text file whole, in the encoding that it has a mark of, else UTF-8, else `fallback`.

    Lines end in a line feed, as Windows writes them too.

    Raises:
        ManifestError: It is no regular file, cannot be read, or is in none of these.
    """
    try:
        check_regular(path)
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}; give another") from error
    try:
        text = content.decode(text_encoding(content)).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        if not fallback:
            raise ManifestError(f"{path} is not UTF-8: {error.reason}; fetch it again") from error
        text = content.decode(fallback)
    return text.replace("\r\n", "\n")


def fold(name: str) -> str:
    """Reduce a name to what its spellings share: no case, odd spaces or invisible signs, one normal form."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    shown = "".join(mark for mark in plain if unicodedata.category(mark) not in ("Cf", "Cc"))
    return unicodedata.normalize("NFKC", " ".join(shown.split()))


def is_odd(text: str) -> bool:
    """Tell whether a text is not what it looks like: blanks at an end, the apostrophe by which spreadsheets
    know a text, invisible signs, letters in pieces.
    """
    if text != text.strip() or text.startswith("'"):
        return True
    if text.isascii():
        return False
    hidden = any(unicodedata.category(mark) in ("Cf", "Cc") for mark in text)
    return hidden or not unicodedata.is_normalized("NFC", text)


# ---- what a file is -------------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    """Return the suffix that names the form, that of a compression left out."""
    suffixes = [one.lower() for one in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".xz"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _check_unpacked(path: Path, opener: Callable[[Path], Any]) -> None:
    """Unpack once, and forget it: a bomb is refused before a row of it is judged."""
    left = _most_unpacked(path)
    with opener(path) as file:
        while part := file.read(_HEAD):
            left -= len(part)
            if left < 0:
                raise _bomb(path)


def _most_unpacked(path: Path) -> int:
    """Return how many bytes may come out of a file."""
    return max(_ROOM, MAX_RATIO * path.stat().st_size)


def _bomb(path: Path) -> ManifestError:
    return ManifestError(
        f"{path} unpacks to more than {MAX_RATIO} times its size ({path.stat().st_size:,} bytes), the most"
        " that is read: give it unpacked, as JSON lines for instance, if you trust it"
    )


def _open(path: Path, header: Sequence[str] | None, delimiter: str, fallback: str) -> Table:
    file: Any = path.open("rb", buffering=_HEAD)
    head, notes, packed = file.peek(), list[str](), False
    for magic, opener in _COMPRESSED.items():
        if head.startswith(magic):
            file.close()
            _check_unpacked(path, opener)
            file = io.BufferedReader(opener(path), _HEAD)
            head = file.peek()
            packed = True
            notes.append(f"compressed with {opener.__module__.removeprefix('_')}")
            break
    _check_foreign(path, head, packed=packed)
    if head.startswith(b"PAR1") or _suffix(path) == ".parquet":
        return _parquet_table(path, file, io.BytesIO(file.read()) if packed else path, notes)
    encoding = fallback or text_encoding(head)
    if encoding not in ("utf-8", "utf-8-sig"):
        notes.append(f"text in {encoding.upper()}")
    start = head.decode(encoding, "replace").lstrip("\ufeff")
    if "\0" in re.split("[\r\n]", start, maxsplit=1)[0]:
        raise ManifestError(
            f"{path} begins with NUL bytes or has them in its first line: no text, or text in UTF-32; save it"
            " as UTF-8"
        )
    # a lone carriage return ends lines on old Macs; elsewhere it is a character of a row
    ends = re.sub('"[^"]*"', "", start)  # those within cells end no line
    alone = re.match(r"[^\r\n]*\r(?!\n)", ends) and len(re.findall(r"\r(?!\n)", ends)) > ends.count("\n")
    newline = "\r" if alone else "\n"
    if newline == "\r":
        notes.append("lines end in a carriage return")
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    text = io.TextIOWrapper(file, encoding, errors if encoding.startswith("utf") else None, newline)
    if header is None and not delimiter and _is_json(path, start):
        listed = start.lstrip().startswith("[")
        if _spans_lines(start):
            notes.append(LISTED if listed else "JSON objects of several lines")
            rows = _scanned_rows(path, text, notes, listed=listed)  # read in large parts
            return Table("JSON", None, _guarded(path, rows, text), notes)
        table = Table("JSON", None, _guarded(path, _json_rows(path, text, notes), text), notes)
    else:
        table = _csv_table(path, text, start, header=header, delimiter=delimiter, notes=notes)
    return table if packed else table._replace(share=partial(_share, file, path.stat().st_size))


def _share(file: IO[bytes], size: int, _row: RawRow) -> float:
    place = size if file.closed else file.tell()
    # lines are read ahead, some KiB; and a file that is written to meanwhile may have grown
    return min(place / size, 1.0) if place > _AHEAD else 0.0


def _check_foreign(path: Path, head: bytes, *, packed: bool) -> None:
    begins = head[:100].lstrip().lower()
    if is_picture(head):
        raise ManifestError(f"{path} is a picture: give a table that names it")
    for magic, what in _FOREIGN.items():
        if begins.startswith(magic.lower()):
            raise ManifestError(f"{path} is {what}")
    if packed and head.startswith(tuple(_COMPRESSED)):
        raise ManifestError(f"{path} is compressed twice: decompress it once")
    if head[257:262] == b"ustar":
        raise ManifestError(f"{path} is a tar archive: unpack it, and give the table in it")


def _is_utf8(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return all(True for _ in iter(lambda: file.read(_HEAD), ""))
    except UnicodeDecodeError:
        return False


def _is_json(path: Path, start: str) -> bool:
    first = start.lstrip().partition("\n")[0].strip()
    json_named = _suffix(path) in JSON_LINES
    if first[:1] in ("{", "["):
        return json_named or first in ("{", "[") or _complete(first) or first.startswith(('{"', '[{"'))
    return json_named and len(_names_in(first, _delimiter(first))) < 2


def _spans_lines(start: str) -> bool:
    """Tell whether JSON is one list, or objects over several lines, instead of one object a line."""
    first, _, rest = start.lstrip().partition("\n")
    first = first.strip()
    if first.startswith("["):
        return not (_complete(first) and rest.strip())
    if first == "{":
        return True
    return first.startswith("{") and not _complete(first) and _complete(start.lstrip(), alone=False)


def _complete(text: str, *, alone: bool = True) -> bool:
    """Tell whether a text is a JSON value, or begins with one that ends before the text does."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return not text[end:].strip() if alone else "\n" in text[:end]


def _guarded(path: Path, rows: Iterator[RawRow], file: IO[Any]) -> Iterator[RawRow]:
    """Give the rows, close the file after them, and put what breaks on the way into our words."""
    count = 0
    with file:
        try:
            for row in rows:
                yield row
                count += 1
        except (OSError, *_BROKEN) as error:
            raise ManifestError(
                f"{path} is damaged after row {count:,}: {error}; fetch or write it again"
            ) from error
        except UnicodeDecodeError as error:
            raise ManifestError(
                f"{path} is damaged after row {count:,}: {error.reason} in {error.encoding}; save it as UTF-8"
            ) from error


class _Lines:
    """Lines of a file; those of the row under way are remembered, and bounded."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file, self._size = path, file, 0
        self.number = 0
        self.row: list[str] = []

    def begin_row(self) -> None:
        self.row.clear()
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._size += len(line)
        if self._size > MAX_ROW:
            raise _too_long(self._path, self.number - len(self.row))
        self.row.append(line)
        return line


def _too_long(path: Path, line: int) -> ManifestError:
    return ManifestError(
        f"{path}: the row of line {line} has more than {MAX_ROW:,} characters, the most of one row; shorten"
        " it, or close its quotes"
    )


# ---- JSON -----------------------------------------------------------------------------------------------

_BETWEEN = re.compile("[\\s,\ufeff]*")  # a byte order mark stands between files that were put together
_TYPES = {type(None): "null", str: "text", list: "list", bool: "truth value", int: "number", float: "number"}


class _Decoder:
    """Decodes JSON and says which key stands twice: the last one would win without a word otherwise."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._double: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._pairs)

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            self._double += sorted(name for name, count in counts.items() if count > 1)
        return found

    def value(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value that begins at `start`, and where it ends."""
        self._double.clear()
        return self._decoder.raw_decode(text, start)

    def row(self, line: int, fields: object, text: str) -> RawRow:
        """Return the row of the value decoded last; `text` is what it was decoded from."""
        if not isinstance(fields, dict):
            twice = isinstance(fields, str) and fields.lstrip()[:1] in ("{", "[")
            remedy = "encode it once: it is JSON in a text" if twice else "write one object a line"
            reason = f"a JSON {_TYPES[type(fields)]}, {shorten(fields)}, expected an object"
            return RawRow(line, None, reason, remedy)
        if self._double:
            return RawRow(line, None, f"the keys {self._double} stand twice", "keep each key once")
        if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(fields):
            reason = f"lists or objects stand more than {MAX_DEPTH} deep in each other"
            return RawRow(line, None, reason, "write them flatter, or leave that column out")
        # an escaped half of a surrogate pair is legal JSON, but no text that could ever be written out again
        escaped = "\\ud" in text or "\\uD" in text
        fault = _no_text(text) or (_no_text(json.dumps(fields, ensure_ascii=False)) if escaped else None)
        return RawRow(line, None, *fault) if fault else RawRow(line, _present(fields, self._notes))


def _no_text(text: str) -> tuple[str, str] | None:
    """Return why a text cannot be written again, and the remedy; None where all is well."""
    wrong = None if text.isascii() else _SURROGATE.search(text)
    if wrong is None:
        return None
    if "\udc80" <= wrong[0] <= "\udcff":  # a byte that was none of UTF-8
        reason = f"not UTF-8: byte {ord(wrong[0]) - 0xDC00:#04x} after {text[: wrong.start()][-20:]!r}"
        return reason, "save the file as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8, if it is of that encoding)"
    return "half a surrogate pair (\\ud800-\\udfff)", "remove or complete the character"


def _present(fields: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Drop NaN, by which pandas writes an absent value, in every format."""
    absent = [name for name, value in fields.items() if isinstance(value, float) and value != value]  # noqa: PLR0124
    for name in absent:
        del fields[name]
        note = f"NaN in column {name!r} is read as no value"
        if note not in notes and len(notes) < _MOST_NOTES:
            notes.append(note)
    return fields


def json_table(stream: IO[bytes]) -> Table:
    """Return the table of JSON lines that come from anywhere, standard input for instance."""
    text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", "\n")
    return Table("JSON", None, _json_rows(Path("-"), text, []), [])


def _json_rows(path: Path, file: IO[str], notes: list[str]) -> Iterator[RawRow]:
    decoder, lines = _Decoder(notes), _Lines(path, file)
    for line in lines:
        lines.begin_row()
        content = line.strip()
        at = _BETWEEN.match(content).end()  # type: ignore[union-attr]
        while at < len(content):  # several objects of a line, or commas between lines, leave no doubt
            try:
                fields, end = decoder.value(content, at)
            except (ValueError, RecursionError) as error:
                begun = not line.endswith("\n")
                yield RawRow(lines.number, None, *_no_json(error, content), begun=begun)
                break
            yield decoder.row(lines.number, fields, content[at:end])
            at = _BETWEEN.match(content, end).end()  # type: ignore[union-attr]


def _no_json(error: Exception, content: str) -> tuple[str, str]:
    """Return what is wrong with a line, and the remedy."""
    if isinstance(error, RecursionError):
        return f"lists or objects stand more than {MAX_DEPTH} deep in each other", "write them flatter"
    remedy = "write one JSON object a line"
    if content.startswith("{'"):
        remedy += " (json.dumps, instead of Python's str)"
    if not isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}", remedy
    found = shorten(content[error.pos :][:30])
    return f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}, {found}", remedy


def _scanned_rows(path: Path, file: IO[str], notes: list[str], *, listed: bool) -> Iterator[RawRow]:
    """Read objects wherever they begin and end: in one list, or one after the other over several lines.

    The text at hand begins with the row under way; it grows until that row is whole.
    """
    decoder = _Decoder(notes)
    text = file.read(_HEAD).lstrip("\ufeff")
    at, line, counted, ended = re.match(r"\s*\[?", text).end(), 1, 0, False  # type: ignore[union-attr]
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        fault: Exception | None = None
        if at < len(text) and text[at] != "]":
            try:
                fields, end = decoder.value(text, at)
            except (ValueError, RecursionError) as error:
                fault = error
            else:
                if end < len(text) or ended:
                    yield decoder.row(line, fields, text[at:end])
                    at = end
                    continue
        if not ended and len(text) - at <= MAX_ROW:
            more = file.read(max(_HEAD, len(text) - at))
            text, at, counted, ended = text[at:] + more, 0, 0, not more
        elif fault is None:
            break
        elif not ended:
            raise _too_long(path, line) from fault
        else:
            place = f" (line {line + text.count(chr(10), at, getattr(fault, 'pos', at))})"
            raise ManifestError(
                f"{path} is no JSON from line {line} on: {fault}{place}; where the rows after it begin cannot"
                " be told. Correct it there, or write one JSON object a line"
            ) from fault
    if text[at + 1 :].strip():
        raise ManifestError(f"{path} goes on after its list ends: expected one list, or one object a line")
    if listed and at >= len(text):
        raise ManifestError(f"{path} breaks off: its list has no end (']'); fetch or write it again")


# ---- CSV ------------------------------------------------------------------------------------------------

# names that tell a header of ours from a line of words
_USUAL = {
    "id", "text", "images", "label", "image", "img", "class", "tweet", "process", "video", "split", "post_id",
}  # fmt: skip
_SEPARATORS = ",;\t|:^~\x01\x1f"
_QUOTES = "'`\\\"\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
_RULE = re.compile(r"\s*:?-+:?\s*")  # a cell of the line under the header of a table in Markdown
_FORMULA = re.compile(r'="([^"]*)"')  # a text that Excel keeps its hands off


def _names_in(line: str, delimiter: str) -> set[str]:
    cells = {one.strip().strip('"') for one in line.split(delimiter) if len(one) < 100}
    return {fold(one) for one in cells} & _USUAL


def _delimiter(line: str) -> str:
    """Return the separator under which a header has most of the usual names; the comma where it is open."""
    return max(
        _SEPARATORS, key=lambda one: (len(_names_in(line, one)), line.count(one) if one in ",;\t" else 0)
    )


def _csv_table(
    path: Path, file: IO[str], start: str, *, header: Sequence[str] | None, delimiter: str, notes: list[str]
) -> Table:
    lines, starts = _Lines(path, file), re.split("\r\n|\r|\n", start)
    told = re.fullmatch(r'"?sep=(.)"?', starts[0].strip("\ufeff "), re.IGNORECASE)
    if header is None:
        if told is not None:
            delimiter = told[1]
        for one in starts[:-1]:  # blank lines before the header, or a line that names the separator
            if one.strip("\ufeff \t,;") and (told is None or lines.number):
                break
            next(lines, "")
    first = starts[min(lines.number, len(starts) - 1)]
    delimiter = delimiter or _delimiter(first)
    if delimiter != ",":
        notes.append(f"cells are separated by {delimiter!r}")
    parts = first.split(delimiter)
    spaced = len(parts) > 1 and all(one.startswith(" ") for one in parts[1:] if one)
    padded = spaced and all(one.endswith(" ") for one in parts[:-1] if one)
    if padded:
        notes.append("cells are padded with blanks, which are taken away")
    csv.field_size_limit(2**31 - 1)  # a row is bounded already
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    lines.begin_row()
    try:
        names = list(header) if header is not None else next(reader, [])
    except csv.Error as error:
        raise ManifestError(
            f"{path} has no readable header: {error}; expected a line of column names"
        ) from error
    if not names:
        raise ManifestError(f"{path} is empty; expected a line of column names, and a row for every post")
    _check_count(path, len(names))
    columns = [column_name(name, place) for place, name in enumerate(names, 1)]
    if ESCAPED in columns:
        columns = [*map(unescape, columns)]
    check_names(path, columns)
    _check_one_table(path, columns, starts)
    # separators at the end of lines, as spreadsheets leave them, stand for nothing; but where some rows fill
    # the cell that no column has, the header is one short, and every row would be read one column off
    ahead = csv.reader(starts[:50], delimiter=delimiter, skipinitialspace=spaced)
    trimmed = not any(len(cells) > len(columns) and cells[-1] for cells in ahead)
    rows = _csv_rows(path, reader, lines, columns, notes, padded=padded, trimmed=trimmed)
    return Table("CSV", tuple(columns), _guarded(path, rows, file), notes)


def column_name(name: str, place: int) -> str:
    """Return a name on one line, as spreadsheets wrap them, without invisible signs."""
    shown = re.sub(r"\s*[\r\n]+\s*", " ", name.strip())
    return "".join(mark for mark in shown if unicodedata.category(mark) != "Cf").strip() or f"column {place}"


def _check_count(path: Path, count: int) -> None:
    if count > MAX_COLUMNS:
        raise ManifestError(
            f"{path} has {count:,} columns; at most {MAX_COLUMNS:,} are read: leave out what no post needs"
        )


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse column names that cannot be read, or told apart."""
    if any(not name.isprintable() for name in names):
        raise ManifestError(
            f"{path} has the columns {first_of(names)}; expected readable names in UTF-8: correct the header"
        )
    double = sorted(name for name, count in Counter(names).items() if count > 1)
    if double:
        raise ManifestError(
            f"{path} has the columns {first_of(double)} more than once; expected each once: rename them"
        )


def _check_one_table(path: Path, columns: Sequence[str], starts: Sequence[str]) -> None:
    """Say where the header seems to stand, or what seems to separate cells, if the first line is none."""
    quoted = [name for name in columns if name[:1] in _QUOTES and name[-1:] in _QUOTES]
    if _USUAL & {fold(name.strip(_QUOTES)) for name in quoted}:
        raise ManifestError(
            f"{path} has the columns {first_of(columns)}: cells are quoted by signs that are none of CSV's;"
            " write double quotes around them, or nothing"
        )
    if _USUAL & {fold(name) for name in columns}:
        return
    if len(columns) == 1 and len(_names_in(columns[0], _delimiter(columns[0]))) > 1:
        raise ManifestError(
            f"{path} has one column, {shorten(columns[0])}: whole lines stand in quotes; take these away"
        )
    words = [fold(one) for one in re.split(r"\W+", " ".join(columns))]
    if len(columns) == 1 and len(_USUAL.intersection(words)) > 1:
        raise ManifestError(
            f"{path} has one column, {shorten(columns[0])}: separate cells by a comma, semicolon, tab or bar"
        )
    for number, line in enumerate(starts[1:10], 2):
        if len(_names_in(line, _delimiter(line))) > 1:
            raise ManifestError(
                f"{path} has the columns {first_of(columns)}, and line {number} looks like the header:"
                " remove what stands before it"
            )


def _csv_rows(
    path: Path,
    reader: _csv.Reader,
    lines: _Lines,
    columns: Sequence[str],
    notes: list[str],
    *,
    padded: bool,
    trimmed: bool,
) -> Iterator[RawRow]:
    while True:
        lines.begin_row()
        start = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.number > start or lines.row[0].count('"') % 2:
                raise _lost(path, start, lines.number, str(error)) from error
            yield from _no_csv(start, lines.row[0], error)
            continue
        if not cells:
            continue
        while trimmed and len(cells) > len(columns) and not cells[-1]:
            cells.pop()
        if padded:
            cells = [cell.strip() for cell in cells]
        if len(lines.row) > 1 and _swallowed(lines.row, columns, reader.dialect.delimiter, len(cells)):
            raise _lost(path, start, lines.number, "the lines in it look like rows")
        if cells[-1] == columns[-1] and [*map(column_name, cells, range(1, len(cells) + 1))] == [*columns]:
            yield RawRow(start, None, "the header stands here again", "remove it: files were put together")
            continue
        if len(cells) > 1 and any(cells) and all(_RULE.fullmatch(cell) for cell in cells if cell):
            yield RawRow(start, None, f"a line of dashes, {shorten(lines.row[0].strip())}", "remove it")
            continue
        if len(lines.row) > _LONG:
            notes.append(
                f"the row of line {start} has {len(lines.row):,} lines: else a quote is not closed there"
            )
        yield _csv_row(start, columns, cells, reader.dialect.delimiter, notes)


def _no_csv(line: int, content: str, error: csv.Error) -> Iterator[RawRow]:
    """Give a line that cannot be read, as several where carriage returns part it: so many may be lost."""
    parts = content.strip("\r\n").split("\r")
    doubled = ", not written with a backslash" if '\\"' in content else ""
    reason, remedy = f"not CSV: {error}", f"close every quote, and double those inside a cell{doubled}"
    if len(parts) > 1 or "new-line" in str(error):
        reason = f"a carriage return stands in it, outside quotes: one row, or {max(2, len(parts))}"
        remedy = "quote cells that hold it, or end every line alike"
    for _ in parts:
        yield RawRow(line, None, reason, remedy)


def _lost(path: Path, start: int, end: int, why: str) -> ManifestError:
    return ManifestError(
        f"{path}: a quote that line {start} opens is not closed as it should be (lines {start} to {end}:"
        f" {why}); where the rows after it begin cannot be told. Close it, and double quotes inside a cell"
    )


def _swallowed(lines: Sequence[str], columns: Sequence[str], delimiter: str, found: int) -> bool:
    """Tell whether a cell of several lines took rows along, each with an id of the form of this row's."""
    fits, place = found == len(columns), [*map(fold, columns), "id"].index("id") % len(columns)

    def form(line: str) -> str:
        cells = line.split(delimiter)
        whole = len(cells) == len(columns) if fits else len(cells) >= len(columns)
        return re.sub(r"\d+", "0", cells[place]) if whole else ""

    own = re.sub(r"\d+", "0", [*lines[0].split(delimiter), *columns][place])
    if len(columns) < 2 or not own.strip() or '"' in own:
        return False
    return (all if fits else any)(form(line) == own for line in lines[1:])


def _csv_row(line: int, columns: Sequence[str], cells: list[str], delimiter: str, notes: list[str]) -> RawRow:
    if len(cells) != len(columns):
        reason, remedy = f"{len(cells)} cells, the header has {len(columns)}", "quote cells that hold"
        if len(cells) == 1:
            remedy = "part cells as the header does, and quote those that hold"
        elif len(cells) == len(columns) + 1:
            remedy = "name every column in the header, and quote cells that hold"
        return RawRow(line, None, reason, f"{remedy} {delimiter!r} or a line break")
    if fault := next(filter(None, map(_no_text, cells)), None):
        return RawRow(line, None, *fault)
    if ESCAPED in columns:
        cells = [*map(unescape, cells)]
    elif formulas := [cell for cell in cells if cell.startswith('="') and _FORMULA.fullmatch(cell)]:
        cells = [_FORMULA.sub(r"\1", cell) if cell in formulas else cell for cell in cells]
        note = 'cells that hold a text as a formula, ="...", are read as that text'
        if note not in notes:
            notes.append(note)
    return RawRow(line, {name: cell for name, cell in zip(columns, cells, strict=True) if cell})


# ---- Parquet --------------------------------------------------------------------------------------------


class _Unreadable(NamedTuple):
    """A value that no Python value stands for."""

    reason: str


def _parquet_table(path: Path, file: IO[bytes], source: Path | IO[bytes], notes: list[str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(source)
        schema = opened.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{path} is not a Parquet file that can be read: {_line(error)}; convert it or give another"
        ) from error
    _check_count(path, len(schema.names))
    check_names(path, schema.names)
    encoded = {field.name for field in schema if (field.metadata or {}).get(b"selftrain") == b"json"}
    rows, count = _parquet_rows(path, opened, file, encoded, notes), opened.metadata.num_rows
    return Table("Parquet", tuple(schema.names), rows, notes, lambda row: row.line / count)


def _parquet_rows(
    path: Path, opened: pq.ParquetFile, file: IO[bytes], encoded: set[str], notes: list[str]
) -> Iterator[RawRow]:
    import pyarrow as pa

    number = 0
    with file, opened:
        rows_at_once = _check_parquet(path, opened)
        try:
            for batch in _bounded(path, opened, rows_at_once):
                columns = [_values(batch.column(place)) for place in range(batch.num_columns)]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield _parquet_row(
                        number, dict(zip(batch.schema.names, values, strict=True)), encoded, notes
                    )
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(
                f"{path} is damaged after row {number}: {_line(error)}; write it again"
            ) from error


def _line(error: Exception) -> str:
    """Return in one line what Arrow writes in several."""
    return " ".join(str(error).split())


def _check_parquet(path: Path, opened: pq.ParquetFile) -> int:
    """Refuse a bomb before a row of it is judged; return how many rows are read at once.

    The metadata tells how large dictionaries are, not how often their largest value stands in rows: a file
    that is soon read is decoded once and forgotten, a larger one is stopped on the way.
    """
    import pyarrow as pa

    metadata, size = opened.metadata, path.stat().st_size
    groups = [metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups)]
    if sum(groups) > _most_unpacked(path) or metadata.num_rows > max(_ROWS, MAX_RATIO * size):
        raise _bomb(path)
    largest: int = max([1, *groups])
    rows = min(max((1 << 28) // largest, 4), 8192)
    if size <= _ROOM:
        with suppress(pa.ArrowException, OSError):  # damage is told when its rows are read
            for _ in _bounded(path, opened, rows):
                pass
    return rows


def _bounded(path: Path, opened: pq.ParquetFile, rows: int) -> Iterator[pa.RecordBatch]:
    """Give so many rows at once, until what they take is too many times the file."""
    left = _most_unpacked(path)
    for batch in opened.iter_batches(batch_size=rows):
        left -= sum(map(_size, batch.columns))
        if left < 0:
            raise _bomb(path)
        yield batch


def _size(column: pa.Array) -> int:
    """Return the bytes of a column's values, each counted where it stands: a dictionary holds it once."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return _size(column.dictionary_decode())
    if pa.types.is_struct(column.type):
        return sum(_size(column.field(place)) for place in range(column.type.num_fields))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return 8 * len(column) + _size(column.flatten())
    size: int = column.nbytes
    return size


# what pyarrow raises for values that Python has no type for
_NO_VALUE = (ValueError, OverflowError, LookupError, ArithmeticError, ImportError, TypeError)


def _values(column: pa.Array) -> list[Any]:
    """Return Python values; of a column that holds some without one, each value by itself."""
    try:
        return list(column.to_pylist())
    except _NO_VALUE:
        return [_value(one) for one in column]


def _value(scalar: pa.Scalar) -> object:
    """Return the value of one Arrow scalar: times that Python cannot hold become texts."""
    import pyarrow as pa

    try:
        return scalar.as_py()
    except _NO_VALUE as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    if pa.types.is_temporal(scalar.type):
        try:
            if pa.types.is_timestamp(scalar.type):
                scalar = scalar.cast(pa.timestamp(scalar.type.unit))  # without a time zone that nobody knows
            return scalar.cast(pa.string()).as_py()
        except (*_NO_VALUE, pa.ArrowException) as error:
            reason = str(error)
    return _Unreadable(reason)


def _parquet_row(number: int, fields: dict[str, Any], encoded: set[str], notes: list[str]) -> RawRow:
    """Drop nulls; maps come as lists of pairs, texts of some writers as bytes."""
    present = {name: _decoded(value, name in encoded) for name, value in fields.items() if value is not None}
    unread = {name: value.reason for name, value in present.items() if isinstance(value, _Unreadable)}
    for name in unread:
        del present[name]
    process = present.get("process")
    if isinstance(process, list) and all(isinstance(pair, tuple) for pair in process):
        present["process"] = dict(process)
    elif isinstance(process, dict):
        present["process"] = {name: answer for name, answer in process.items() if answer is not None}
    return RawRow(number, _present(present, notes), unread=unread)


def _decoded(value: object, encoded: bool) -> object:
    if isinstance(value, bytes) and b"\0" in value and is_picture(value):
        return value  # though it be UTF-8, as a dark BMP is; no text holds a NUL
    try:
        text = value.decode() if isinstance(value, bytes) else value
        return json.loads(text) if encoded and isinstance(text, str) else text
    except UnicodeDecodeError:
        return value if is_picture(value) else _Unreadable("bytes that are neither a text nor a picture")
    except ValueError as error:
        return _Unreadable(f"not JSON: {error}")
