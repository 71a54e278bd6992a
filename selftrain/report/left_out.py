"""What was left out of a run or a training, as the macro `left_out` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.data.manifest import NOTE
from selftrain.store.run_dir import read_jsonl

QUARANTINED = 200
"""Rows that a page shows."""


class Quarantine(NamedTuple):
    """What was left out: the first rows, how many there are in all, and how many of each kind.

    `notes` of `rows` are about how a manifest was read, and count as nothing left out.
    """

    rows: Sequence[Json]
    total: int
    kinds: Mapping[str, int]
    notes: int = 0


def read_quarantine(file: Path) -> Quarantine:
    """Read the quarantine of a folder; empty without the file.

    Raises:
        RunStateError: A line is not JSON.
    """
    if not file.exists():
        return Quarantine([], 0, {})
    rows = read_jsonl(file)
    first = list(islice(rows, QUARANTINED))
    kinds = Counter(str(row.get("kind", "")) for row in first)
    kinds.update(str(row.get("kind", "")) for row in rows)
    notes = kinds.pop(NOTE, 0)
    return Quarantine(first, kinds.total(), dict(kinds.most_common()), notes)
