"""HSOL (Davidson et al. 2017): tweets, classes 0 hate, 1 offensive and 2 neither, here two classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selftrain._util.printable import first_of
from selftrain.data.importers.base import Importer, Record, Source, class_of, find_file, read_records
from selftrain.data.manifest import Problem
from selftrain.data.tables import open_table
from selftrain.data.task import load_task
from selftrain.errors import ManifestError

TASK = load_task(Path(__file__).with_suffix(".toml"))
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
    columns = open_table(path).columns or ()
    if not set(columns) >= _COLUMNS:
        raise ManifestError(
            f"{path} has the columns {first_of(columns)}; expected {sorted(_COLUMNS)} among them"
        )

    def record(line: int, fields: dict[str, Any]) -> Record | Problem:
        index = fields.pop("column 1", "") or str(line)
        label = class_of(fields.get("class"), _LABELS)
        if label is None:
            reason = f"class {fields.get('class')!r} is none of 0, 1, 2"
            return Problem(line, index, reason, "correct the file")
        return Record(path, line, f"hsol-{index}", fields.pop("tweet", ""), None, label, {}, fields)

    return read_records(path, record)


HSOL = Importer("hsol", "HSOL, tweets: offensive or inoffensive (labeled_data.csv)", read)
