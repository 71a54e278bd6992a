"""Any table that people bring, as raw rows: CSV in its dialects, JSON lines or lists, Parquet, compressed.

The content says what a file is, its name only where the content leaves it open. No row is judged here, unless
it could not be read at all: then it comes with the reason. Rows in are rows out: where a reader cannot tell
rows apart any more, it says how many lines that concerns, or stops.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from selftrain.errors import ManifestError

if TYPE_CHECKING:
    import _csv

    import pyarrow as pa
    import pyarrow.parquet as pq

JSON_LINES = (".jsonl", ".json", ".ndjson")
CSV = (".csv", ".tsv")
SUFFIXES = (*JSON_LINES, *CSV, ".parquet")
# marks Parquet columns whose values are JSON texts, because no one Arrow type holds them
JSON_MARK = {b"selftrain": b"json"}

_HEAD = 1 << 20  # bytes that are looked at to find out what a file is
LISTED = "one JSON list"
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
    b"<?xml": "an XML document: convert it to JSON lines or CSV",
}
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"),
)  # fmt: skip
# what a broken compressed file raises beside OSError
_BROKEN = (EOFError, zlib.error, lzma.LZMAError)


class RawRow(NamedTuple):
    """A row as it stands in the file.

    Attributes:
        line: 1-based line on which it begins; in Parquet the 1-based row.
        fields: Column -> value; None when the row could not be read.
        reason: Why it could not, else empty.
        remedy: What to do then.
        rows: How many rows it may stand for, above 1 where a quote that is not closed swallowed others.
        unread: Column -> why its value cannot be read; whoever needs the column refuses the row.
    """

    line: int
    fields: dict[str, Any] | None
    reason: str = ""
    remedy: str = ""
    rows: int = 1
    unread: Mapping[str, str] = {}


class Table(NamedTuple):
    """An opened table.

    Attributes:
        form: "CSV", "JSON" or "Parquet".
        columns: Of the header; None for JSON, where every row has names of its own.
        rows: Read as they are asked for.
        notes: What is unusual about the file and was understood; complete once the rows are read.
    """

    form: str
    columns: tuple[str, ...] | None
    rows: Iterator[RawRow]
    notes: list[str]


def open_table(
    path: Path,
    *,
    header: Sequence[str] | None = None,
    delimiter: str = "",
    fallback: str = "",
    named: bool = True,
) -> Table:
    """Open a table; only Parquet, and JSON that is one list, need more memory than a row.

    Args:
        path: Its suffix is one of `SUFFIXES`, `.txt` where a delimiter is given, or one of them compressed.
        header: Column names of a CSV file that has none.
        delimiter: Of a CSV file; found out when empty.
        named: Whether the suffix has to be one of `SUFFIXES`; the content alone tells what it is else.
        fallback: Encoding of a CSV file whose bytes are not UTF-8 throughout; without one those rows are bad.

    Raises:
        ManifestError: The file is missing, is no table, or has column names twice; its `rows` raise it too
            where the file is damaged.
    """
    path = Path(path)
    if named and not delimiter:
        _check_suffix(path)
    try:
        if fallback and _is_utf8(path):
            fallback = ""
        return _open(path, header, delimiter, fallback)
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: {error.strerror or error}; give the path of a manifest"
        ) from error
    except _BROKEN as error:
        raise ManifestError(f"{path} is damaged: {error}; fetch it again") from error


def read_rows(path: Path) -> Iterator[RawRow]:
    """Read the rows of a table, one after the other.

    Raises:
        ManifestError: As `open_table`.
    """
    yield from open_table(path).rows


def fold(name: str) -> str:
    """Reduce a name to what its spellings share: no case, odd spaces or invisible signs, one normal form."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    shown = "".join(mark for mark in plain if unicodedata.category(mark) not in ("Cf", "Cc"))
    return unicodedata.normalize("NFKC", " ".join(shown.split()))


def shorten(value: object) -> str:
    """Shorten `value` as a message can carry it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


# ---- what a file is -------------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    """Return the suffix that names the form, that of a compression left out."""
    suffixes = [one.lower() for one in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".xz"):
        suffixes.pop()
    return suffixes[-1] if suffixes else path.suffix


def _check_suffix(path: Path) -> None:
    found = _suffix(path)
    if found not in SUFFIXES:
        hint = "save the sheet as CSV UTF-8" if found.startswith(".xls") else "rename or convert it"
        raise ManifestError(f"{path} ends in {found!r}; expected one of {sorted(SUFFIXES)}: {hint}")


def _open(path: Path, header: Sequence[str] | None, delimiter: str, fallback: str) -> Table:
    file: Any = path.open("rb", buffering=_HEAD)
    source: Path | IO[bytes] = path
    head, notes = file.peek(), list[str]()
    for magic, opener in _COMPRESSED.items():
        if head.startswith(magic):
            file.close()
            file = source = io.BufferedReader(opener(path), _HEAD)
            head = file.peek()
            notes.append(f"compressed with {opener.__module__.removeprefix('_')}")
            break
    for magic, what in _FOREIGN.items():
        if head[:100].lstrip().lower().startswith(magic.lower()):
            raise ManifestError(f"{path} is {what}")
    if head.startswith(b"PAR1") or _suffix(path) == ".parquet":
        return _parquet_table(path, file, source, notes)
    encoding = fallback or _encoding(head)
    if encoding not in ("utf-8", "utf-8-sig"):
        notes.append(f"text in {encoding.upper()}")
    start = head.decode(encoding, "replace").lstrip("\ufeff")
    # a lone carriage return ends lines on old Macs; elsewhere it is a character of a row
    newline = "\r" if re.match(r"[^\r\n]*\r(?!\n)", start) and "\n" not in start.partition("\r")[0] else "\n"
    if newline == "\r":
        notes.append("lines end in a carriage return")
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    lines = io.TextIOWrapper(file, encoding, errors if encoding.startswith("utf") else None, newline)
    if header is None and not delimiter and _is_json(path, start):
        scanned = _spans_lines(start)
        if scanned:
            notes.append(LISTED if start.lstrip().startswith("[") else "JSON objects of several lines")
        rows = _scanned_rows(path, lines, notes) if scanned else _json_rows(lines, notes)
        return Table("JSON", None, _guarded(path, rows, lines), notes)
    return _csv_table(path, lines, start, header=header, delimiter=delimiter, notes=notes)


def _encoding(head: bytes) -> str:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    # no mark, but every other byte of what must be plain letters is zero
    if len(head) > 3 and head[0] and not head[1] and head[2] and not head[3]:
        return "utf-16-le"
    return "utf-16-be" if len(head) > 3 and not head[0] and head[1] and not head[2] and head[3] else "utf-8"


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


# ---- JSON -----------------------------------------------------------------------------------------------


class _Decoder:
    """Decodes JSON and says which key stands twice: the last one would win without a word otherwise."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._double: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._pairs)

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self._double += sorted({name for name in names if names.count(name) > 1})
        return found

    def value(self, text: str, start: int = 0) -> tuple[Any, int]:
        """Return the value that begins at `start`, and where it ends."""
        self._double.clear()
        return self._decoder.raw_decode(text, start)

    def row(self, line: int, fields: object, text: str) -> RawRow:
        """Return the row of the value decoded last; `text` is what it was decoded from."""
        if not isinstance(fields, dict):
            reason = f"a JSON {type(fields).__name__}, expected an object"
            return RawRow(line, None, reason, "write one object a line")
        if self._double:
            return RawRow(line, None, f"the keys {self._double} stand twice", "keep each key once")
        # an escaped half of a surrogate pair is legal JSON, but no text that could ever be written out again
        if ("\\ud" in text or "\\uD" in text) and not _encodable(json.dumps(fields, ensure_ascii=False)):
            reason = "half a surrogate pair (\\ud800-\\udfff)"
            return RawRow(line, None, reason, "remove or complete the character")
        return RawRow(line, _present(fields, self._notes))


def _present(fields: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Drop NaN, by which pandas writes an absent value, in every format."""
    absent = [name for name, value in fields.items() if isinstance(value, float) and value != value]  # noqa: PLR0124
    for name in absent:
        del fields[name]
        note = f"NaN in column {name!r} is read as no value"
        if note not in notes and len(notes) < _MOST_NOTES:
            notes.append(note)
    return fields


def read_json_lines(lines: Iterable[bytes]) -> Iterator[RawRow]:
    """Read the rows of JSON lines that come from anywhere, standard input for instance."""
    return _json_rows((line.decode("utf-8", "surrogateescape") for line in lines), [])


def _json_rows(lines: Iterable[str], notes: list[str]) -> Iterator[RawRow]:
    decoder = _Decoder(notes)
    for number, line in enumerate(lines, 1):
        content = (line.lstrip("\ufeff") if number == 1 else line).strip()
        if content:
            yield _json_row(number, content, line, decoder)


def _json_row(number: int, content: str, line: str, decoder: _Decoder) -> RawRow:
    if not content.isascii() and (wrong := re.search("[\udc80-\udcff]", line)):
        at = len(line[: wrong.start()].encode())
        reason = f"not UTF-8: byte {ord(wrong[0]) - 0xDC00:#04x} at {at}"
        return RawRow(number, None, reason, "save the file as UTF-8")
    try:
        fields, end = decoder.value(content)
        if content[end:].strip():
            raise json.JSONDecodeError("Extra data", content, end)
    except (ValueError, RecursionError) as error:
        return RawRow(number, None, f"not JSON: {error}", "write one JSON object a line")
    return decoder.row(number, fields, content)


def _scanned_rows(path: Path, lines: Iterable[str], notes: list[str]) -> Iterator[RawRow]:
    """Read objects wherever they begin and end: in one list, or one after the other over several lines."""
    text, decoder = "".join(lines).lstrip("\ufeff"), _Decoder(notes)
    skipped = re.compile(r"[\s,]*")
    at = re.compile(r"\s*\[?").match(text).end()  # type: ignore[union-attr]
    line, counted = 1, 0
    while True:
        at = skipped.match(text, at).end()  # type: ignore[union-attr]
        if at >= len(text) or text[at] == "]":
            break
        line, counted = line + text.count("\n", counted, at), at
        try:
            fields, end = decoder.value(text, at)
        except (ValueError, RecursionError) as error:
            place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
            raise ManifestError(
                f"{path} is no JSON from line {line} on: {error}{place}; where the rows after it begin cannot"
                " be told. Correct it there, or write one JSON object a line"
            ) from error
        yield decoder.row(line, fields, text[at:end])
        at = end
    if text[at + 1 :].strip():
        raise ManifestError(f"{path} goes on after its list ends: expected one list, or one object a line")
    if text.lstrip().startswith("[") and at >= len(text):
        raise ManifestError(f"{path} breaks off: its list has no end (']'); fetch or write it again")


# ---- CSV ------------------------------------------------------------------------------------------------


class _Lines:
    """Lines of a file, those of the row under way remembered."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.row.append(line)
        return line


# names that tell a header of ours from a line of words
_USUAL = frozenset(
    (
        "id",
        "text",
        "images",
        "label",
        "image",
        "img",
        "class",
        "tweet",
        "process",
        "video",
        "split",
        "post_id",
    )
)


def _names_in(line: str, delimiter: str) -> set[str]:
    return {fold(one.strip().strip('"')) for one in line.split(delimiter)} & _USUAL


def _delimiter(line: str) -> str:
    """Return the separator under which a header has most of the usual names; the comma where it is open."""
    return max(",;\t|", key=lambda one: (len(_names_in(line, one)), line.count(one) if one != "|" else 0))


def _csv_table(
    path: Path, lines: IO[str], start: str, *, header: Sequence[str] | None, delimiter: str, notes: list[str]
) -> Table:
    skipped = 0
    first = re.split("[\r\n]", start, maxsplit=1)[0]
    told = re.fullmatch(r'"?sep=(.)"?', first.strip("\ufeff "), re.IGNORECASE)
    if told is not None and header is None:
        next(lines)
        skipped, delimiter = 1, told[1]
        first = "".join(re.split("\r\n|\r|\n", start, maxsplit=2)[1:2])
    if not delimiter:
        delimiter = _delimiter(first)
    if delimiter != ",":
        notes.append(f"cells are separated by {delimiter!r}")
    spaced = first.count(delimiter) > 0 and all(one.startswith(" ") for one in first.split(delimiter)[1:])
    numbered = _Lines(iter(lines))
    csv.field_size_limit(2**31 - 1)  # a long text is a text; by default the reader gives up at 131,072
    reader = csv.reader(numbered, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    try:
        names = list(header) if header is not None else next(reader, [])
    except csv.Error as error:
        raise ManifestError(
            f"{path} has no readable header: {error}; expected a line of column names"
        ) from error
    columns = [_column_name(name, place) for place, name in enumerate(names, 1)]
    check_names(path, columns)
    rows = _csv_rows(reader, numbered, columns, skipped=skipped, notes=notes)
    return Table("CSV", tuple(columns), _guarded(path, rows, lines), notes)


def _column_name(name: str, place: int) -> str:
    return "".join(mark for mark in name if unicodedata.category(mark) != "Cf").strip() or f"column {place}"


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse column names that cannot be read, or told apart.

    Raises:
        ManifestError: Which, and what to do.
    """
    if any(not name.isprintable() for name in names):
        raise ManifestError(
            f"{path} has the columns {list(names)[:12]}; expected readable names in UTF-8: correct the header"
        )
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ManifestError(
            f"{path} has the columns {double} more than once; expected each once: rename them"
        )


def _csv_rows(
    reader: _csv.Reader, lines: _Lines, columns: Sequence[str], *, skipped: int, notes: list[str]
) -> Iterator[RawRow]:
    while True:
        lines.row.clear()
        start = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = skipped + reader.line_num
            opened = f", a quote that line {start} opens is not closed" if end > start else ""
            reason = f"not CSV, lines {start} to {end}: {error}{opened}"
            remedy = "close every quote, and double those inside a cell"
            yield RawRow(start, None, reason, remedy, rows=end - start + 1)
            continue
        if not cells:
            continue
        if len(lines.row) > _LONG:
            notes.append(
                f"the row of line {start} has {len(lines.row):,} lines: else a quote is not closed there"
            )
        yield _csv_row(start, columns, cells, lines.row, reader.dialect.delimiter)


def _csv_row(
    line: int, columns: Sequence[str], cells: list[str], lines: Sequence[str], delimiter: str
) -> RawRow:
    while len(cells) > len(columns) and not cells[-1]:
        cells.pop()  # separators at the end of a line, as spreadsheets leave them
    if len(cells) != len(columns):
        reason = f"{len(cells)} cells, the header has {len(columns)}"
        # a quote that is not closed takes the rows after it along: each of their lines looks like a row
        rows = sum(one.count(delimiter) >= len(columns) - 1 for one in lines) if len(lines) > 1 else 1
        remedy = f"quote cells that hold {delimiter!r} or a line break"
        return RawRow(line, None, reason, remedy, rows=max(rows, 1))
    if not all(cell.isascii() or _encodable(cell) for cell in cells):
        return RawRow(line, None, "not UTF-8", "save the file as UTF-8")
    return RawRow(line, {name: cell for name, cell in zip(columns, cells, strict=True) if cell})


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
            f"{path} is not a Parquet file that can be read: {error}; convert it or give another"
        ) from error
    check_names(path, schema.names)
    encoded = {field.name for field in schema if (field.metadata or {}).get(b"selftrain") == b"json"}
    return Table("Parquet", tuple(schema.names), _parquet_rows(path, opened, file, encoded, notes), notes)


def _parquet_rows(
    path: Path, opened: pq.ParquetFile, file: IO[bytes], encoded: set[str], notes: list[str]
) -> Iterator[RawRow]:
    import pyarrow as pa

    number = 0
    with file, opened:
        try:
            for batch in opened.iter_batches(batch_size=8192):
                columns = [_values(batch.column(place)) for place in range(batch.num_columns)]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield _parquet_row(
                        number, dict(zip(batch.schema.names, values, strict=True)), encoded, notes
                    )
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{path} is damaged after row {number}: {error}; write it again") from error


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
    try:
        text = value.decode() if isinstance(value, bytes) else value
        return json.loads(text) if encoded and isinstance(text, str) else text
    except UnicodeDecodeError:
        return _Unreadable("bytes that are no text")
    except ValueError as error:
        return _Unreadable(f"not JSON: {error}")
