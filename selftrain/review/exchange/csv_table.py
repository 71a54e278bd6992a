"""CSV: a table for whoever reviews in a spreadsheet; `label` and `reviewer` are filled in and read back.

Posts are written by strangers: a cell that a spreadsheet would run as a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from selftrain.errors import ExchangeError
from selftrain.review.exchange.exchange_tasks import Task
from selftrain.review.exchange.label_studio import reviewer_name

FILLED = ("label", "reviewer")
COLUMNS = ("post_id", "batch", *FILLED, "text", "images", "opinions")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_DELIMITERS = ",;\t"


class Row(NamedTuple):
    """A line that came back: line number in the file, and the cells that count."""

    line: int
    post_id: str
    batch: str
    label: str
    reviewer: str


def to_csv(tasks: Sequence[Task]) -> str:
    """The table, with a byte order mark so that spreadsheets read it as UTF-8."""
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(COLUMNS)
    for task in tasks:
        opinions = "; ".join(f"{one.who}: {one.label or 'no label'}" for one in task.opinions)
        cells = (task.post_id, task.batch, "", "", task.text, " | ".join(task.names), opinions)
        writer.writerow([_harmless(cell) for cell in cells])
    return "\ufeff" + written.getvalue()


def read_csv(text: str) -> Iterator[Row]:
    """The lines of a table that came back; commas, semicolons or tabs between the cells.

    Label Studio's own CSV export is read as well: its column of who decided is `annotator`.

    Raises:
        ExchangeError: No column `post_id` or `label`, or no CSV at all.
    """
    text = text.removeprefix("\ufeff")
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    found = [name for name in reader.fieldnames or [] if name]
    if not {"post_id", "label"} <= set(found):
        raise ExchangeError(
            f"the table has the columns {found}: expected post_id and label among them, as `selftrain review"
            " export --to csv` writes them"
        )
    try:
        for row in reader:
            reviewer = row.get("reviewer") or reviewer_name(row.get("annotator") or "")
            cells = (row.get("post_id"), row.get("batch"), row.get("label"), reviewer)
            post_id, batch, label, who = (_plain(cell or "") for cell in cells)
            yield Row(reader.line_num, post_id, batch, label.strip(), who.strip())
    except csv.Error as error:
        raise ExchangeError(f"line {reader.line_num} is not CSV ({error}): save the table again") from error


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _plain(cell: str) -> str:
    """A cell as it was before `_harmless`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
