"""The three file formats, read into raw rows: no row is judged here, unless it could not be read at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from selftrain.errors import ManifestError

JSON_LINES = (".jsonl", ".json", ".ndjson")
# marks Parquet columns whose values are JSON texts, because no one Arrow type holds them
JSON_MARK = {b"selftrain": b"json"}


class RawRow(NamedTuple):
    """A row as it stands in the file.

    Attributes:
        line: 1-based line on which it begins; in Parquet the 1-based row.
        fields: Column -> value; None when the row could not be read.
        reason: Why it could not, else empty.
        remedy: What to do then.
    """

    line: int
    fields: dict[str, Any] | None
    reason: str = ""
    remedy: str = ""


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a manifest, one after the other; only Parquet needs more memory than a row, a batch.

    Raises:
        ManifestError: The file is missing, has an unknown suffix, or has no ``id`` column.
    """
    readers = {**dict.fromkeys(JSON_LINES, _json_rows), ".csv": _csv_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ManifestError(
            f"{path} ends in {path.suffix!r}; expected one of {sorted(readers)}: rename or convert it"
        )
    try:
        yield from reader(path)
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: {error.strerror or error}; give the path of a manifest"
        ) from error


def _json_rows(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        yield from read_json_lines(file)


def read_json_lines(lines: Iterable[bytes]) -> Iterator[RawRow]:
    """The rows of JSON lines that come from anywhere, standard input for instance."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    for number, line in enumerate(lines, 1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.strip():
            continue
        yield _json_row(number, content, decoder)


def _json_row(number: int, content: bytes, decoder: json.JSONDecoder) -> RawRow:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return RawRow(
            number,
            None,
            f"not UTF-8: byte {content[error.start]:#04x} at {error.start}",
            "save the file as UTF-8",
        )
    try:
        fields = decoder.decode(text.strip())
    except (ValueError, RecursionError) as error:
        return RawRow(number, None, f"not JSON: {error}", "write one JSON object a line")
    if not isinstance(fields, dict):
        return RawRow(
            number, None, f"a JSON {type(fields).__name__}, expected an object", "write one object a line"
        )
    # an escaped half of a surrogate pair is legal JSON, but no text that could ever be written out again
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return RawRow(
                number, None, "half a surrogate pair (\\ud800-\\udfff)", "remove or complete the character"
            )
    return RawRow(number, fields)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _csv_rows(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        # undecodable bytes become lone surrogates here and are found again in the row that holds them
        reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in file), strict=True)
        try:
            header = [name.removeprefix("\ufeff").strip() for name in next(reader, [])]
        except csv.Error as error:
            raise ManifestError(
                f"{path} has no readable header: {error}; expected a line of column names"
            ) from error
        _require_columns(path, header)
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"not CSV, lines {start} to {reader.line_num}: {error}"
                yield RawRow(start, None, reason, "close every quote, and double those inside a cell")
                continue
            if cells:
                yield _csv_row(start, header, cells)


def _csv_row(line: int, header: list[str], cells: list[str]) -> RawRow:
    if len(cells) != len(header):
        reason = f"{len(cells)} cells, the header has {len(header)}"
        return RawRow(line, None, reason, "quote cells that hold a comma or a line break")
    if any("\udc80" <= mark <= "\udcff" for cell in cells if not cell.isascii() for mark in cell):
        return RawRow(line, None, "not UTF-8", "save the file as UTF-8")
    return RawRow(line, {name: cell for name, cell in zip(header, cells, strict=True) if cell})


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{path} is not a Parquet file: {error}; convert it or give another") from error
    with file:
        schema = file.schema_arrow
        _require_columns(path, schema.names)
        encoded = {field.name for field in schema if (field.metadata or {}).get(b"selftrain") == b"json"}
        number = 0
        try:
            for batch in file.iter_batches(batch_size=8192):
                for fields in batch.to_pylist():
                    number += 1
                    yield RawRow(number, _parquet_fields(fields, encoded))
        except pa.ArrowException as error:
            raise ManifestError(f"{path} is damaged after row {number}: {error}; write it again") from error


def _parquet_fields(fields: Mapping[str, Any], encoded: set[str]) -> dict[str, Any]:
    """Nulls are absent values, and so are NaNs, as pandas writes them; maps come as lists of pairs."""
    present = {name: value for name, value in fields.items() if value is not None and value == value}  # noqa: PLR0124
    for name in encoded & present.keys():
        present[name] = json.loads(present[name])
    process = present.get("process")
    if isinstance(process, list) and all(isinstance(pair, tuple) for pair in process):
        present["process"] = dict(process)
    elif isinstance(process, dict):
        present["process"] = {name: answer for name, answer in process.items() if answer is not None}
    return present


def _require_columns(path: Path, header: Iterable[str]) -> None:
    names = list(header)
    if any(not name.isprintable() for name in names):
        raise ManifestError(
            f"{path} has the columns {names[:12]}; expected readable names in UTF-8: correct the header"
        )
    if "id" not in names:
        raise ManifestError(
            f"{path} has the columns {names[:12]}; expected a header with 'id', and 'text' or "
            f"'images': add it"
        )
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ManifestError(
            f"{path} has the columns {double} more than once; expected each once: rename them"
        )
