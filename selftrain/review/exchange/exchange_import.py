"""A file of reviews, from whatever tool, into the ledger: good lines are taken, others refused one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from selftrain.errors import ExchangeError
from selftrain.review.exchange.csv_table import read_csv
from selftrain.review.exchange.label_studio import ItemError, answers
from selftrain.review.import_decisions import Outside, Refusal
from selftrain.review.ledger import LEDGER, ReviewLedger
from selftrain.store.run_dir import RunFolder


class Read(NamedTuple):
    """What a file holds.

    Attributes:
        decisions: In order.
        refused: Lines that say nothing that could be a decision.
        empty: Lines without a review: they wait still.
    """

    decisions: tuple[Outside, ...]
    refused: tuple[Refusal, ...]
    empty: int


class Imported(NamedTuple):
    """What became of a file. Lines are counted from 1: of a table its lines, else its items.

    Attributes:
        taken: Reviews that the ledger holds now and did not before.
        known: Reviews that it held before.
        empty: Lines without a review.
        refused: By line.
        nothing: Whether nothing was taken because something was refused, as was asked for.
    """

    taken: int
    known: int
    empty: int
    refused: tuple[Refusal, ...]
    nothing: bool


def import_reviews(
    folder: RunFolder, file: Path, *, reviewer: str = "", all_or_nothing: bool = False
) -> Imported:
    """Enter a file of reviews into a run's ledger, in one change: a kill leaves all of it or none.

    Args:
        folder: The run.
        file: Label Studio's JSON, JSON-MIN or CSV export, or our table with `label` filled in.
        reviewer: Who decided, where a line does not say.
        all_or_nothing: Take nothing where a line is refused.

    Raises:
        ExchangeError: The file cannot be read as any of these.
        RunStateError: No run folder.
        LedgerError: The run has no ledger, or it cannot be written.
    """
    folder.recipe()  # no run folder: said before anything else
    read = read_reviews(file, reviewer)
    ledger = ReviewLedger(folder.path / LEDGER)
    try:
        stop = all_or_nothing and bool(read.refused)
        # whatever the ledger would say of the rest is worth telling, though nothing is taken
        entered = ledger.enter(read.decisions, all_or_nothing=all_or_nothing, dry=stop)
    finally:
        ledger.close()
    refused = tuple(sorted((*read.refused, *entered.refused)))
    return Imported(
        len(entered.taken), len(entered.known), read.empty, refused, all_or_nothing and bool(refused)
    )


def read_reviews(file: Path, reviewer: str = "") -> Read:
    """What a file of reviews says, not yet held against any ledger.

    Raises:
        ExchangeError: It is neither JSON nor a table.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExchangeError(f"{file} cannot be read as UTF-8 text: {error}") from error
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(file, text, reviewer)
    rows = list(read_csv(text))
    decisions = [
        Outside(row.line, row.post_id, row.label, row.reviewer or reviewer, row.batch)
        for row in rows
        if row.label
    ]
    return Read(tuple(decisions), (), len(rows) - len(decisions))


def _from_json(file: Path, text: str, reviewer: str) -> Read:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise ExchangeError(
            f"{file} is not JSON ({error}): expected Label Studio's export, JSON or JSON-MIN, or a CSV table"
        ) from error
    if not isinstance(items, list):
        raise ExchangeError(f"{file} holds one {type(items).__name__}: expected a list of tasks")
    decisions, refused, empty = list[Outside](), list[Refusal](), 0
    for line, item in enumerate(items, 1):
        try:
            if not isinstance(item, Mapping):
                raise ItemError(f"is a {type(item).__name__}: expected a task")  # noqa: TRY301 -- as any other
            found = list(answers(item))
        except ItemError as fault:
            refused.append(Refusal(line, _post_id(item), str(fault)))
            continue
        empty += not found
        for post_id, label, who, batch in found:
            decisions.append(Outside(line, post_id, label, who or reviewer, batch))
    return Read(tuple(decisions), tuple(refused), empty)


def _post_id(item: object) -> str:
    data = item.get("data", item) if isinstance(item, Mapping) else {}
    return str(data.get("post_id", "")) if isinstance(data, Mapping) else ""
