"""``selftrain predict``: a finished run labels other posts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

_LISTED = 10


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("predict", help="label other posts with a run's best model")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="JSON lines, CSV or Parquet")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines; - for standard output")
    parser.set_defaults(handler=run_predict)


def run_predict(args: argparse.Namespace) -> int:
    """Writes one record a post; what was left out is said on standard error, and written beside.

    Raises:
        SelftrainError, or an error of a leaf's tree: `--out` is as it was.
    """
    from selftrain import atomic
    from selftrain.prediction import Prediction
    from selftrain.run.folder import RunFolder

    prediction = Prediction(RunFolder(args.run), args.manifest, progress=sys.stderr.isatty())
    if args.out == "-":
        _write(sys.stdout, prediction.rows())
        _report(prediction.quarantine, None)
        return 0
    out = Path(args.out)
    with atomic.replacing(out) as part, part.open("w", encoding="utf-8") as file:
        count = _write(file, prediction.rows())
    beside = out.with_name(f"{out.name}.quarantine.jsonl")
    if prediction.quarantine:
        atomic.write_jsonl(beside, prediction.quarantine)
    else:
        beside.unlink(missing_ok=True)  # of an earlier time, when something was left out
    print(f"{count:,} posts labelled in {out}")
    _report(prediction.quarantine, beside)
    return 0


def _write(file: IO[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """One JSON object a line, in ASCII: an id may hold anything, and the file may be a terminal."""
    count = 0
    for row in rows:
        file.write(json.dumps(row, allow_nan=False).replace("\x7f", "\\u007f") + "\n")
        count += 1
    return count


def _report(quarantine: list[dict[str, Any]], beside: Path | None) -> None:
    if not quarantine:
        return
    from selftrain.printable import printable

    where = "" if beside is None else f", listed in {beside}"
    print(f"{len(quarantine):,} posts left out{where}:", file=sys.stderr)
    for one in quarantine[:_LISTED]:
        place = f"line {one['line']}, " if "line" in one else ""
        print(printable(f"  {place}id {one['id']!r}: {one['reason']}"), file=sys.stderr)
    if len(quarantine) > _LISTED:
        print(f"  and {len(quarantine) - _LISTED:,} more", file=sys.stderr)
