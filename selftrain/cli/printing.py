"""Output of the commands. Whatever comes from posts, agents or files goes through one of these functions."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from selftrain._util.deferred import deferred
from selftrain._util.printable import printable, printable_lines
from selftrain._util.spreadsheet import ESCAPED, escape
from selftrain.errors import DataError
from selftrain.store import atomic, checksums

with deferred():
    from selftrain.report import left_out as quarantined
    from selftrain.serving import row_source, row_stream, streams

if TYPE_CHECKING:
    from selftrain.serving.streams import ModelAtWork

NARROWEST, NARROWEST_SHOWN = 100, 80  # columns of output that goes into a file, and to a terminal
_LISTED, _SOME = 10, 20


def console() -> Console:
    """Return standard output as a console where square brackets and colons mean nothing but themselves.

    A narrower terminal folds lines itself: to fit it tables would leave digits out.
    """
    shown = Console(markup=False, highlight=False, emoji=False)
    shown.width = max(shown.width, NARROWEST_SHOWN if shown.is_terminal else NARROWEST)
    return shown


def table(*columns: str, left: int = 1, **style: Any) -> Table:  # noqa: ANN401 -- as rich takes it
    """Return an empty table without a frame; its first columns are texts, the others numbers."""
    made = _PlainTable(**{"show_edge": False, "pad_edge": False} | style)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place < left else "right")
    return made


class _PlainTable(Table):
    """A table whose cells steer no terminal."""

    def add_row(self, *cells: RenderableType | None, **style: Any) -> None:  # noqa: ANN401 -- as rich's
        super().add_row(*(Text(printable_lines(c)) if isinstance(c, str) else c for c in cells), **style)


def plain(text: object, style: str = "") -> Text:
    """Return text that is shown as it is: control characters escaped, markup not read."""
    return Text(printable(str(text)), style=style)


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure, or a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def echo(text: object) -> None:
    """Print a line, or several, at once."""
    print(printable_lines(str(text)), flush=True)


def quoted(path: Path | str) -> str:
    """Return a path or an id as it is typed into a shell."""
    return shlex.quote(str(path))


def print_some(lines: Sequence[str]) -> None:
    """Print the first lines, and how many more there are."""
    for line in lines[:_SOME]:
        print(printable(line))
    if len(lines) > _SOME:
        print(f"  and {len(lines) - _SOME:,} more")


def print_texts(lines: Iterable[Text]) -> None:
    """Print lines and leave it to the terminal to wrap them: what is piped stays one line each."""
    shown = console()
    for line in lines:
        shown.print(line, soft_wrap=True)


def print_hints(hints: Sequence[tuple[object, str]], indent: str = "") -> None:
    """Print commands or files, and beside each what it is good for."""
    width = max(len(str(what)) for what, _ in hints)
    for what, why in hints:
        print(printable(f"{indent}{what!s:<{width}}  {why}"))


def print_json(*records: Mapping[str, Any]) -> None:
    """Print one JSON object a line."""
    for record in records:
        print(_escaped(record))


def write_predictions(
    target: str, work: ModelAtWork, manifest: Path, *, done: str, rows: int | None = None
) -> None:
    """Write one record a post of a manifest of any length, and what failed beside it.

    Until all are done they lie in TARGET.part; killed, the same goes on with them. What comes out on standard
    output begins anew. Errors are those of `streams.stream_predictions` and `row_stream.Sink`.

    Args:
        target: A file, which is whole afterwards or as it was, CSV where it ends in .csv; or "-" for standard
            output. What was left out is listed on standard error, and kept beside a file.
        done: What happened to the posts that are in the file: "scored".
        rows: Posts of a file, where the target is a folder of files; see `row_stream.FolderSink`.
    """
    stream = partial(streams.stream_predictions, work, manifest, encode=encoder(target))
    if target == "-":
        printed = _Printed()
        stream(target=printed)
        list_left_out(printed.first_failed, printed.tally.failed)
        return
    out = Path(target)
    with streams.part_of(out, work.identity, rows).opened() as opened:
        if not opened.finished:
            stream(target=opened, remedy=opened.remedy, listed=f"they are listed in {opened.quarantine}; ")
        opened.publish(out)
    echo(f"{opened.tally.kept:,} posts {done} in {out}")
    if opened.tally.failed:
        beside = row_stream.quarantine_of(out)
        with beside.open(encoding="utf-8") as lines:
            list_left_out(map(json.loads, lines), opened.tally.failed, beside)


class _Printed:
    """Standard output as a `row_stream.RowTarget`."""

    def __init__(self) -> None:
        self.tally = row_source.Tally()
        self.first_failed: list[dict[str, Any]] = []

    def write(self, kept: Iterable[str], failed: Iterable[str]) -> None:
        for line in kept:
            print(line)
        room = _LISTED - len(self.first_failed)
        self.first_failed += map(json.loads, islice(failed, max(room, 0)))

    def commit(self, tally: row_source.Tally) -> None:
        sys.stdout.flush()
        self.tally = tally


def check_target(target: str, model: Path, manifest: Path, rows: int | None = None) -> None:
    """Refuse a file that `write_predictions` could not, or must not, write, before anything is computed."""
    out = Path(target)
    if rows is not None:
        _check_folder(out)
    atomic.check_not_read(out, manifest, model, *checksums.files_of(model))
    if out.suffix.lower() in (".parquet", ".xlsx", ".xls", ".tsv"):
        raise DataError(
            f"{out} ends in {out.suffix!r}; expected a file that ends in .jsonl or .csv: name one"
        )
    if target != "-":
        streams.part_of(out, {}, rows).check()


def _check_folder(out: Path) -> None:
    """Refuse what can be no folder of files of so many posts."""
    fault = (
        "is standard output" if str(out) == "-"
        else "is a file" if out.is_file()
        else "is no folder to fill" if not out.name
        else "is called as a file" if out.suffix.lower() == ".csv"
        else ""
    )  # fmt: skip
    if fault:
        raise DataError(
            f"--out {out} {fault}; with --rows-per-file it is a folder of files of JSON lines: name one that"
            " is new, or empty"
        )


def encoder(target: str) -> Callable[[Sequence[Mapping[str, Any]], bool], list[str]]:
    """Return what turns records into lines of `target`, CSV where it ends in .csv, else JSON.

    Of a CSV file the first line brings the names of the columns. Of a field that holds named values each
    becomes a column, FIELD.NAME; the first record tells the columns: records of one command are all alike.
    No cell begins like a formula; a last column says so to whoever reads the file here.
    """
    columns: list[str] = []

    def to_csv(records: Sequence[Mapping[str, Any]], first: bool) -> list[str]:
        lines = list[str]()
        for named in map(_flat, records):
            row = {
                escape(k): escape(value) if isinstance(value, str) else value for k, value in named.items()
            } | {ESCAPED: ""}
            columns.extend([] if columns else row)
            text = StringIO()
            writer = csv.DictWriter(text, columns, quoting=csv.QUOTE_ALL, lineterminator="\n")
            if first and not lines:
                writer.writeheader()
            writer.writerow(row)
            lines.append(text.getvalue()[:-1])
        return lines

    if Path(target).suffix.lower() == ".csv":
        return to_csv
    return lambda records, _first: [_escaped(record) for record in records]


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return flat


def _escaped(record: Mapping[str, Any]) -> str:
    """Return a line of JSON; DEL, the one control of ASCII that JSON leaves, is escaped too."""
    return json.dumps(record, allow_nan=False).replace("\x7f", "\\u007f")


def list_left_out(first: Iterable[Mapping[str, Any]], count: int, beside: Path | None = None) -> None:
    """Print on standard error what was left out: the first records of `count`, and the file that has all."""
    if count:
        where = "" if beside is None else f", listed in {beside}"
        print(printable(f"{count:,} posts left out{where}:"), file=sys.stderr)
        for record in islice(first, _LISTED):
            print(printable(f"  {quarantined.LeftOutRow.from_json(dict(record))}"), file=sys.stderr)
        if count > _LISTED:
            print(f"  and {count - _LISTED:,} more", file=sys.stderr)
