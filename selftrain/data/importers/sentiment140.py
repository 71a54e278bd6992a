"""Sentiment140 (Go et al. 2009): tweets, positive or negative; the CSV, or one text file a class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selftrain.data.importers.base import Importer, Record, Source, class_of, find_file, read_records
from selftrain.data.manifest import Problem
from selftrain.data.tables import read_text
from selftrain.data.task import load_task
from selftrain.errors import ManifestError

TASK = load_task(Path(__file__).with_suffix(".toml"))
_FIELDS = ("polarity", "id", "date", "query", "user", "text")
_LABELS = {"0": "negative", "4": "positive"}
_NAMES = ("training.1600000.processed.noemoticon.csv", "testdata.manual.2009.06.14.csv")


def read(source: Path) -> Source:
    """Read the CSV (columns `_FIELDS`; UTF-8, else Latin-1), or ``positive.txt`` and ``negative.txt``."""
    files = (
        {label: find_file(source, f"{label}.txt") for label in _LABELS.values()} if source.is_dir() else {}
    )
    if files and all(files.values()):
        note = "one tweet a line; a tweet that stands in both files is kept with both labels"
        return Source(
            TASK, _lines({label: path for label, path in files.items() if path is not None}), (note,)
        )
    path = source if source.is_file() else find_file(source, *_NAMES, "*.csv")
    if path is None:
        raise ManifestError(f"{source} holds neither positive.txt and negative.txt nor the published CSV")
    return Source(
        TASK, _table(path), ("polarity 0 is 'negative', 4 is 'positive'; neutral tweets are left out",)
    )


def _lines(files: dict[str, Path]) -> Iterator[Record | Problem]:
    for label, path in sorted(files.items()):
        for number, line in enumerate(read_text(path, "latin-1").split("\n"), 1):
            if line.strip():
                yield Record(path, number, f"{label}-{number}", line, None, label, {}, {})


def _table(path: Path) -> Iterator[Record | Problem]:
    def record(line: int, fields: dict[str, Any]) -> Record | Problem:
        label = class_of(fields.get("polarity"), _LABELS)
        if label is None:
            reason = f"polarity {fields.get('polarity')!r} is neither 0 nor 4"
            return Problem(line, fields.get("id"), reason, "neutral tweets have no class here")
        text, tweet = fields.pop("text", ""), fields.pop("id", str(line))
        return Record(path, line, f"tweet-{tweet}", text, None, label, {}, fields)

    return read_records(path, record, header=_FIELDS, delimiter=",", fallback="latin-1")


SENTIMENT140 = Importer(
    "sentiment140", "Sentiment140, tweets: positive or negative (CSV, or two text files)", read
)
