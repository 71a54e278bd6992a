"""What was left out of a run or a training, as the macro `left_out` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selftrain.data.manifest import NOTE
from selftrain.store.run_dir import read_typed

QUARANTINED = 200
"""Rows that a page shows."""


class LeftOutRow(NamedTuple):
    """A row or a post that was left out, and why; empty where the file does not say."""

    kind: str = ""
    id: str = ""
    line: int | str = ""
    reason: str = ""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LeftOutRow:
        """Return the row of a record."""
        return cls(**{name: record[name] for name in cls._fields if record.get(name) is not None})

    def __str__(self) -> str:
        place = f"line {self.line}, " if self.line else ""
        return f"{place}id {self.id!r}: {self.reason}"


class Quarantine(NamedTuple):
    """What was left out: the first rows, how many there are in all, and how many of each kind.

    `notes` of `rows` are about how a manifest was read, and count as nothing left out.
    """

    rows: Sequence[LeftOutRow]
    total: int
    kinds: Mapping[str, int]
    notes: int = 0


def read_quarantine(file: Path) -> Quarantine:
    """Read the quarantine of a folder; empty without the file."""
    rows = list(read_typed(file, LeftOutRow.from_json))
    kinds = Counter(row.kind for row in rows)
    notes = kinds.pop(NOTE, 0)
    return Quarantine(rows[:QUARANTINED], kinds.total(), dict(kinds.most_common()), notes)
