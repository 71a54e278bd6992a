"""Reviews that come back from your own tool: Label Studio's JSON, JSON-MIN or CSV export, or our table.

Good lines are taken into the ledger, others refused one by one, each with its reason: what is read is data,
and the ledger decides what of it is taken. The format is that of https://labelstud.io/guide/export.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from selftrain._util.printable import first_of, shorten
from selftrain._util.spreadsheet import NUMBER, unescape
from selftrain.data.tables import LISTED, RawRow, Table, open_table
from selftrain.data.values import Names, RowError, named_values, spelled_names
from selftrain.errors import ExchangeError, ManifestError
from selftrain.review.exchange.review_export import CONTROL
from selftrain.review.ledger import ImportedReviews, OutsideDecision, Refusal, ReviewLedger
from selftrain.review.ledger_reader import LEDGER, UNSURE
from selftrain.store.run_dir import RunFolder

NAMES = ("post_id", "batch", CONTROL, "reviewer", "annotator")
"""Fields of a review that is a line of its own; Label Studio's exports say `annotator` of who decided."""
DOUBLE = 308  # the largest exponent of ten of a spreadsheet's numbers


class ReadReviews(NamedTuple):
    """What a file holds."""

    decisions: tuple[OutsideDecision, ...]  # in order
    refused: tuple[Refusal, ...]  # lines that say nothing that could be a decision
    empty: int  # lines without a review: they wait still


def import_reviews(
    folder: RunFolder, file: Path, *, reviewer: str = "", all_or_nothing: bool = False
) -> ImportedReviews:
    """Enter a file of reviews into a run's ledger, in one change: a kill leaves all of it or none."""
    folder.recipe()  # no run folder: said before anything else
    read = read_reviews(file, reviewer)
    with ReviewLedger(folder.path / LEDGER) as ledger:
        ids, names = SpreadsheetIds(ledger.all_drawn().keys()), Names((*ledger.classes, UNSURE))
        decisions = [
            one._replace(
                post_id=ids.find(one.post_id) or one.post_id, label=names.find(one.label) or one.label
            )
            for one in read.decisions
        ]
        return ledger.import_decisions(
            decisions, refused=read.refused, empty=read.empty, all_or_nothing=all_or_nothing
        )


def read_reviews(file: Path, reviewer: str = "") -> ReadReviews:
    """Read a file of reviews, not yet held against any ledger."""
    try:
        table = open_table(file)
        found = list(_json_rows(table) if table.form == "JSON" else _table_rows(table))
    except ManifestError as error:
        raise ExchangeError(
            f"{error}. Expected Label Studio's export, JSON or JSON-MIN, or a CSV table"
        ) from error
    given = [one for one in found if isinstance(one, OutsideDecision)]
    if table.form == "JSON" and not given and LISTED not in table.notes:
        raise ExchangeError(f"{file} holds no task, as Label Studio exports them, nor post_id and label")
    return ReadReviews(
        tuple(one._replace(reviewer=(one.reviewer or reviewer).strip()) for one in given if one.label),
        tuple(one for one in found if isinstance(one, Refusal)),
        sum(not one.label for one in given),
    )


class SpreadsheetIds:
    """Ids, found again by what a spreadsheet may have turned them into: ``0084`` into 84, or 8.4E+1."""

    def __init__(self, ids: Collection[str]) -> None:
        self._ids = frozenset(ids)
        self._written: dict[int, Mapping[Decimal, Sequence[str]]] = {}

    def find(self, written: str) -> str | None:
        """Return the one id that this stands for; blanks around it are no part of it.

        None where it is an id as it stands, stands for none, or for several.
        """
        if written not in self._ids and written.strip() in self._ids:
            return written.strip()
        number = None if written in self._ids else _number(written)
        if number is None:
            return None
        digits = len(number.as_tuple().digits) if "e" in written.lower() else 0
        if digits not in self._written:
            self._written[digits] = self._by_number(digits)
        alike = self._written[digits].get(number, ())
        return alike[0] if len(alike) == 1 else None

    def _by_number(self, digits: int) -> Mapping[Decimal, Sequence[str]]:
        """Return the ids by the numbers that they are written as: with so many digits before an exponent, 0
        without one."""
        found: dict[Decimal, list[str]] = defaultdict(list)
        for one in self._ids:
            if (exact := _number(one)) is None:
                continue
            if digits:
                found[Context(prec=digits, rounding=ROUND_HALF_UP).plus(exact)].append(one)
                continue
            # beyond fifteen digits a spreadsheet writes zeros
            for number in {exact, Context(prec=15, rounding=ROUND_DOWN).plus(exact)}:
                found[number].append(one)
        return found


def _number(written: str) -> Decimal | None:
    """Return what a spreadsheet reads; None of 1.000,5 and the like, a number in no one country's writing."""
    try:
        number = Decimal(written) if NUMBER.fullmatch(written) else None
    except InvalidOperation:
        return None
    # where a double has no such number, it stays text
    return number if number is not None and abs(number.adjusted()) <= DOUBLE else None


# ---- line by line; without a label: nobody has reviewed it -------------------------------------------------


def _json_rows(table: Table) -> Iterator[OutsideDecision | Refusal]:
    for item, row in enumerate(table.rows, 1):
        # exports are one list in one line: there the items count
        line = item if LISTED in table.notes else row.line
        if row.fields is None:
            yield Refusal(line, "", f"is {row.reason}: expected a task")
            continue
        try:
            answers = list(answers_from_json(_as_named(row)))
        except ItemError as fault:
            yield Refusal(line, _post_id(row.fields), str(fault))
            continue
        yield from (OutsideDecision(line, *one) for one in answers or [("", "", "", "")])


def _as_named(row: RawRow) -> dict[str, Any]:
    """Return a row whose own fields are called as ours are, whatever case they are written in."""
    fields = row.fields or {}
    try:
        names = spelled_names(tuple(fields), NAMES)
    except RowError as error:
        raise ItemError(f"is not clear: {error.reason}: {error.remedy}") from error
    return fields | named_values(row, names)


def _post_id(item: object) -> str:
    data = item.get("data", item) if isinstance(item, Mapping) else {}
    return str(data.get("post_id", "")) if isinstance(data, Mapping) else ""


def _table_rows(table: Table) -> Iterator[OutsideDecision | Refusal]:
    """Yield the lines of a table that came back.

    Label Studio's own CSV export is read as well: its column of who decided is `annotator`.
    """
    columns = table.columns or ()
    try:
        names = spelled_names(columns, NAMES)
    except RowError as error:
        raise ExchangeError(f"{error.reason}: {error.remedy}") from error
    if not {"post_id", "label"} <= set(names):
        raise ExchangeError(
            f"the table has the columns {first_of(columns)}: expected post_id and label among them, as"
            " `selftrain review export --to csv` writes them"
        )
    for row in table.rows:
        if row.fields is None:
            yield Refusal(row.line, "", f"{row.reason}: {row.remedy}")
            continue
        try:
            found = named_values(row, names)
        except RowError as error:
            yield Refusal(row.line, "", f"{error.reason}: {error.remedy}")
            continue
        cells = {key: "" if value is None else str(value) for key, value in found.items()}
        reviewer = cells.get("reviewer") or reviewer_name(cells.get("annotator", ""))
        told = (cells.get("post_id", ""), cells.get("batch", ""), cells.get("label", ""), reviewer)
        post_id, batch, label, who = map(_plain, told)
        yield OutsideDecision(row.line, post_id, label.strip(), who, batch)


def _plain(cell: str) -> str:
    """Return a cell as it was before the export put an apostrophe in front."""
    return cell[1:] if cell.startswith("'") and NUMBER.fullmatch(cell.lstrip("'")) else unescape(cell)


# ---- Label Studio --------------------------------------------------------------------------------------


class ItemError(ValueError):
    """What is wrong with one item."""


def answers_from_json(item: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (post id, label, reviewer, batch) of every review in one item of an export, JSON or JSON-MIN.

    An item without a review gives nothing; what a reviewer skipped (cancelled) is no review.
    """
    data = item.get("data", item)  # of a task without annotations too: it waits still
    post_id = data.get("post_id") if isinstance(data, Mapping) else None
    if isinstance(post_id, int | float) and not isinstance(post_id, bool):
        post_id = str(post_id)  # a spreadsheet, or a tool that guesses types, was between
    if not isinstance(data, Mapping) or not isinstance(post_id, str):
        raise ItemError("has no data.post_id: expected a task that `selftrain review export` wrote")
    batch = str(data.get("batch") or "")
    if data is item:
        if item.get(CONTROL) is not None:  # pandas writes null where nobody has reviewed
            who = reviewer_name(item.get("annotator") or item.get("reviewer"))
            yield post_id, _choice(item[CONTROL]), who, batch
        return
    for annotation in _list(item.get("annotations", item.get("completions"))):
        if not isinstance(annotation, Mapping):
            raise ItemError(f"has an annotation that is a {type(annotation).__name__}: expected an object")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        chosen = [
            _choice(one.get("value"))
            for one in _list(annotation.get("result"))
            if isinstance(one, Mapping) and one.get("from_name") == CONTROL
        ]
        if len(chosen) != 1:
            raise ItemError(
                f"has an annotation with {len(chosen)} results for {CONTROL!r}: expected one choice"
            )
        yield post_id, chosen[0], reviewer_name(annotation.get("completed_by")), batch


def _list(value: object) -> list[Any]:
    if not isinstance(value, list | None):
        raise ItemError(f"has {shorten(value)} where a list is expected")
    return value or []


def _choice(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("choices")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise ItemError(f"has the choice {shorten(value)}: expected one class name")
    return value


def reviewer_name(annotator: object) -> str:
    """Return who has decided, by an export: the e-mail address, else the number, or nobody."""
    if isinstance(annotator, Mapping):
        email = annotator.get("email")
        return email if isinstance(email, str) and email else reviewer_name(annotator.get("id"))
    if isinstance(annotator, int) or (isinstance(annotator, str) and annotator.isdecimal()):
        return f"label-studio {annotator}"
    return annotator if isinstance(annotator, str) else ""
