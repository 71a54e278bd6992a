"""HSOL (Davidson et al. 2017): tweets, classes 0 hate, 1 offensive and 2 neither, here two classes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from selftrain.data.importers.base import Importer, Record, Source, find_file
from selftrain.data.manifest import Problem
from selftrain.data.task import Task, TaskClass
from selftrain.errors import ManifestError

TASK = Task(
    name="hsol",
    classes=(
        TaskClass("offensive", "insults, slurs, or hatred against people or groups"),
        TaskClass("inoffensive", "language that a stranger would not take as an attack or as vulgar abuse"),
    ),
    positive="offensive",
    policy=(
        "A tweet is offensive when it degrades, insults or threatens a person or a group, or when it uses"
        " slurs or vulgar abuse, be it aimed at somebody or not. Jokes and song lines that do so count as"
        " well. A tweet is inoffensive when it does none of this: everyday talk, news, criticism in civil"
        " words, or an odd word used with no insulting sense, such as trash for rubbish or a bird for a "
        "bird."
    ),
)
_LABELS = {"0": "offensive", "1": "offensive", "2": "inoffensive"}
_COLUMNS = {"class", "tweet"}


def read(source: Path) -> Source:
    """Read ``labeled_data.csv``, columns: an index without a name, vote counts, class, tweet."""
    path = find_file(source, "labeled_data.csv") or (source if source.is_file() else None)
    if path is None:
        raise ManifestError(f"{source} holds no labeled_data.csv; give its folder or the file itself")
    return Source(
        TASK, _records(path), ("class 0 (hate) and 1 (offensive) are both 'offensive', 2 is 'inoffensive'",)
    )


def _records(path: Path) -> Iterator[Record | Problem]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not set(rows.fieldnames or ()) >= _COLUMNS:
            raise ManifestError(
                f"{path} has the columns {rows.fieldnames}; expected {sorted(_COLUMNS)} among them"
            )
        for row in rows:
            index = row.pop("", "") or str(rows.line_num)
            label = _LABELS.get(row["class"])
            if label is None:
                yield Problem(
                    rows.line_num, index, f"class {row['class']!r} is none of 0, 1, 2", "correct the file"
                )
                continue
            tweet = row.pop("tweet")
            yield Record(path, rows.line_num, f"hsol-{index}", tweet, None, label, {}, row)


HSOL = Importer("hsol", "HSOL, tweets: offensive or inoffensive (labeled_data.csv)", read)
