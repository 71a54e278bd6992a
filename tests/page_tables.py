"""Tables of a page that are written from the tests' own output: `make cases`."""

from __future__ import annotations

import os
from pathlib import Path

from runs.bench.page import filled


def write_table(name, head, counts):
    """Write a table between its marks on the page that SELFTRAIN_CASES_TABLE names; nothing without it.

    Args:
        name: Of the table: `<!-- NAME: written by ... -->` and `<!-- end of NAME -->` stand around it.
        head: The outcomes, in order.
        counts: (kind, outcome) -> how many.
    """
    page = os.environ.get("SELFTRAIN_CASES_TABLE")
    if not page or not counts:
        return
    table = [f"| kind | tried | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for one in [*sorted({kind for kind, _ in counts}), "all"]:
        row = [
            sum(n for (kind, what), n in counts.items() if one in (kind, "all") and what == outcome)
            for outcome in head
        ]
        table.append(f"| {one} | {' | '.join(map(str, [sum(row), *row]))} |")
    Path(page).write_text(filled(Path(page).read_text(), name, table))
