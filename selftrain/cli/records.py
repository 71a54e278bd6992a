"""Records of a command: to a file that is whole or not there, or to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

_LISTED = 10


def write_records(
    target: str, rows: Iterable[Mapping[str, Any]], left_out: list[dict[str, Any]], done: str
) -> None:
    """Write one record a post, and say what was left out.

    Args:
        target: A file, or "-" for standard output.
        rows: The records; they may fill `left_out` as they come.
        left_out: What was left out, each with its reason; beside a file it is kept as NAME.quarantine.jsonl.
        done: What happened to the posts that are in the file: "scored".

    Raises:
        SelftrainError, or an error of a leaf's tree: of `rows`; the file is as it was.
        StorageError: The disk is full or refuses.
    """
    from selftrain.store import atomic

    if target == "-":
        _write(sys.stdout, rows)
        _tell(left_out, None)
        return
    out = Path(target)
    with atomic.replacing(out) as part, part.open("w", encoding="utf-8") as file:
        count = _write(file, rows)
    beside = out.with_name(f"{out.name}.quarantine.jsonl")
    keep_left_out(beside, left_out)
    print(f"{count:,} posts {done} in {out}")
    _tell(left_out, beside)


def keep_left_out(file: Path, left_out: list[dict[str, Any]]) -> None:
    """What was left out into `file`; where nothing was, one of an earlier time goes.

    Raises:
        StorageError: The disk is full or refuses.
    """
    from selftrain.store import atomic

    if left_out:
        atomic.write_jsonl(file, left_out)
    else:
        file.unlink(missing_ok=True)


def _write(file: IO[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """One JSON object a line, in ASCII: an id may hold anything, and the file may be a terminal."""
    count = 0
    for row in rows:
        file.write(json.dumps(row, allow_nan=False).replace("\x7f", "\\u007f") + "\n")
        count += 1
    return count


def _tell(left_out: list[dict[str, Any]], beside: Path | None) -> None:
    if not left_out:
        return
    from selftrain._util.printable import printable

    where = "" if beside is None else f", listed in {beside}"
    print(f"{len(left_out):,} posts left out{where}:", file=sys.stderr)
    for one in left_out[:_LISTED]:
        place = f"line {one['line']}, " if "line" in one else ""
        print(printable(f"  {place}id {one['id']!r}: {one['reason']}"), file=sys.stderr)
    if len(left_out) > _LISTED:
        print(f"  and {len(left_out) - _LISTED:,} more", file=sys.stderr)
