"""Posts out, as a manifest of any of the three formats."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from selftrain._util.printable import first_of
from selftrain._util.spreadsheet import ESCAPED, escape
from selftrain.data.columns import COLUMNS, PROCESS_PREFIX, spelled
from selftrain.data.inline_pictures import is_kept
from selftrain.data.manifest import recorded_pictures
from selftrain.data.posts import Post
from selftrain.data.tables import JSON_LINES, JSON_MARK, column_name
from selftrain.errors import ManifestError
from selftrain.store.atomic import replacing, write_bytes


def write_manifest(posts: Iterable[Post], path: Path) -> None:
    """Write a manifest, whole or not at all; `read_manifest` gives equal posts back.

    CSV knows only text: there, extra values come back as text (numbers, lists and tables as JSON), and empty
    ones are absent. In Parquet a None is an absent value.

    Raises:
        ManifestError: Unknown suffix, an id twice, an image outside the manifest's folder, or an extra field
            called like a column, or as no column of that format can be.
        OSError: The disk refuses.
    """
    path = Path(path)
    writer, rows = _writer(path), _rows(posts, path)
    with replacing(path) as part:
        try:
            writer(rows, part)
        except UnicodeEncodeError as error:
            raise ManifestError(
                f"a post holds text that UTF-8 cannot: {error}; remove the character"
            ) from error


def check_writable(posts: Iterable[Post], path: Path) -> None:
    """Check that `write_manifest` takes these posts at this path; for those who have much to do before.

    They are written, into a file that is removed again: a number that JSON has no word for, or a folder that
    may not be written, is found in no other way.

    Raises:
        ManifestError, OSError: As `write_manifest`.
    """
    path = Path(path)
    write_manifest(posts, path.with_name(f".check-{path.name}"))
    path.with_name(f".check-{path.name}").unlink()


def _writer(path: Path) -> Callable[[Sequence[dict[str, Any]], Path], None]:
    writers = {**dict.fromkeys(JSON_LINES, _write_json), ".csv": _write_csv, ".parquet": _write_parquet}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise ManifestError(
            f"{path} ends in {path.suffix!r}; expected one of {sorted(writers)}: choose one of them"
        )
    return writer


def _rows(posts: Iterable[Post], file: Path) -> list[dict[str, Any]]:
    root, tables = os.path.realpath(file.parent), file.suffix.lower() != ".csv"
    ids: set[str] = set()
    rows = []
    for post in posts:
        if post.id in ids:
            raise ManifestError(f"id {post.id!r} stands in two posts; expected it once: rename one")
        ids.add(post.id)
        rows.append(_row(post, root, tables=tables))
    return rows


def _row(post: Post, root: str, *, tables: bool) -> dict[str, Any]:
    taken = [name for name in post.extra if name in COLUMNS or name.startswith(PROCESS_PREFIX)]
    if taken:
        raise ManifestError(
            f"post {post.id!r} has extra fields {taken}, which are columns of a manifest: rename them"
        )
    row: dict[str, Any] = {"id": post.id, "text": post.text}
    if post.images:
        # where a grown dataset tells where its pictures lie, and what is written can tell it too
        told = recorded_pictures(post.extra, len(post.images)) if tables else None
        recorded = None if told is None else os.path.realpath(told[0])
        row["images"] = [_relative(image, root, post.id, recorded) for image in post.images]
    if post.video is not None:
        row["video"] = _relative(post.video, root, post.id)
    if post.label is not None:
        row["label"] = post.label
    if post.process:
        row["process"] = dict(post.process)
    # an extra "IMG" would be read as the images of a post that has none: the field's own name goes before
    alike = [field for name in post.extra if (field := spelled(name)) in COLUMNS]
    return {**dict.fromkeys(alike), **row, **post.extra}


def _relative(picture: Path, root: str, post_id: str, recorded: str | None = None) -> str:
    if is_kept(picture):  # it stood in a table, and comes along
        beside = Path(root, "images", picture.name)
        if not beside.is_file():
            write_bytes(beside, picture.read_bytes())
        picture = beside
    relative = os.path.relpath(os.path.realpath(picture), root)
    if relative.startswith(os.pardir + os.sep):
        if recorded is not None and picture.is_relative_to(recorded):
            there = picture.relative_to(recorded)
            if not Path(root, there).exists():  # or that would be read
                return there.as_posix()
        raise ManifestError(
            f"image {picture} of post {post_id!r} lies outside the manifest's folder {root}; copy it "
            f"there first"
        )
    return Path(relative).as_posix()


def _write_json(rows: Sequence[dict[str, Any]], part: Path) -> None:
    with part.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(_json(row) + "\n")


def _write_csv(rows: Sequence[dict[str, Any]], part: Path) -> None:
    names = _columns(rows, lambda name: name.isprintable() and column_name(name, 0) == name != ESCAPED)
    cells = [names, *([_cell(name, row.get(name)) for name in names] for row in rows)]
    harmless = [[*map(escape, row)] for row in cells]
    if harmless != cells:  # a column that says so, or they could not be told from what was there before
        harmless = [[*row, "" if place else ESCAPED] for place, row in enumerate(harmless)]
    with part.open("w", encoding="utf-8", newline="") as file:
        # every cell in quotes: a bare carriage return or an empty row would not come back otherwise
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(harmless)


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if (
        name == "images"
        and isinstance(value, list)
        and not any(";" in one or one != one.strip() or one.startswith("[") for one in value)
    ):
        return ";".join(value)
    return _json(value)


def _write_parquet(rows: Sequence[dict[str, Any]], part: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    types = {
        "id": text,
        "text": text,
        "images": pa.list_(text),
        "label": text,
        "process": pa.map_(text, text),
        "video": text,
    }
    fields, arrays = [], []
    for name in _columns(rows, str.isprintable):
        values = [row.get(name) for row in rows]
        if name == "process":
            values = [None if value is None else list(value.items()) for value in values]
        field, array = _arrow(name, values, types.get(name))
        fields.append(field)
        arrays.append(array)
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), part)


def _arrow(name: str, values: list[Any], kind: object) -> tuple[Any, Any]:
    """Build a column in its own type where one holds all its values, else as JSON texts, marked as such."""
    import pyarrow as pa

    def typed() -> tuple[Any, Any]:
        array = pa.array(values, type=kind)
        return pa.field(name, array.type), array

    if kind is not None:
        return typed()
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) == 1 and kinds <= {str, int, float, bool}:
        with suppress(OverflowError, UnicodeError, pa.ArrowInvalid):
            return typed()
    try:
        encoded = [None if value is None else _json(value) for value in values]
    except ManifestError:
        # numbers that JSON has no word for, in lists or tables: Arrow's own types hold them
        with suppress(OverflowError, UnicodeError, TypeError, pa.ArrowException):
            return typed()
        raise
    return pa.field(name, pa.string(), metadata=JSON_MARK), pa.array(encoded, type=pa.string())


def _columns(rows: Sequence[dict[str, Any]], comes_back: Callable[[str], bool]) -> list[str]:
    """Order the usual columns first, then the others in the order they are met.

    Raises:
        ManifestError: A name that would be read as another, or refused, as `comes_back` has it.
    """
    met = dict.fromkeys(name for row in rows for name in row)
    others = [name for name in met if name not in COLUMNS]
    if lost := [name for name in others if not comes_back(name)]:
        raise ManifestError(
            f"the fields {first_of(lost)} cannot be columns of such a table, only keys of JSON lines: name a"
            " file that ends in .jsonl, or rename them"
        )
    return ["id", "text", *(name for name in COLUMNS[2:] if name in met), *others]


def _json(value: object) -> str:
    """Write as JSON: dates, decimals and the like, which Parquet may hold, are written as their text."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError as error:
        raise ManifestError(
            f"no JSON can be made of {str(value)[:200]!r}: {error}; expected finite numbers"
        ) from error
