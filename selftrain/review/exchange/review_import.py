"""Reviews that come back from your own tool: Label Studio's JSON, JSON-MIN or CSV export, or our table.

Good lines are taken into the ledger, others refused one by one, each with its reason: what is read is data,
and the ledger decides what of it is taken. The format is that of https://labelstud.io/guide/export.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from selftrain.errors import ExchangeError
from selftrain.review.exchange.review_export import CONTROL, FORMULA
from selftrain.review.ledger import OutsideDecision, Refusal, ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.store.run_dir import RunFolder

_DELIMITERS = ",;\t"


class ReadReviews(NamedTuple):
    """What a file holds."""

    decisions: tuple[OutsideDecision, ...]  # in order
    refused: tuple[Refusal, ...]  # lines that say nothing that could be a decision
    empty: int  # lines without a review: they wait still


class ImportedReviews(NamedTuple):
    """What became of a file. Lines are counted from 1: of a table its lines, else its items."""

    taken: int  # reviews that the ledger holds now and did not before
    known: int  # reviews that it held before
    empty: int  # lines without a review
    refused: tuple[Refusal, ...]  # by line
    nothing: bool  # whether nothing was taken because something was refused, as was asked for


def import_reviews(
    folder: RunFolder, file: Path, *, reviewer: str = "", all_or_nothing: bool = False
) -> ImportedReviews:
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
    with ReviewLedger(folder.path / LEDGER) as ledger:
        # what the ledger refuses of the rest is worth knowing, though nothing is taken
        stop = all_or_nothing and bool(read.refused)
        imported = ledger.import_decisions(read.decisions, all_or_nothing=all_or_nothing, dry=stop)
    refused = tuple(sorted((*read.refused, *imported.refused)))
    return ImportedReviews(
        len(imported.taken), len(imported.known), read.empty, refused, all_or_nothing and bool(refused)
    )


def read_reviews(file: Path, reviewer: str = "") -> ReadReviews:
    """Read a file of reviews, not yet held against any ledger.

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
    decisions = [row._replace(reviewer=row.reviewer or reviewer) for row in rows if row.label]
    return ReadReviews(tuple(decisions), (), len(rows) - len(decisions))


def _from_json(file: Path, text: str, reviewer: str) -> ReadReviews:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise ExchangeError(
            f"{file} is not JSON ({error}): expected Label Studio's export, JSON or JSON-MIN, or a CSV table"
        ) from error
    if not isinstance(items, list):
        raise ExchangeError(f"{file} holds one {type(items).__name__}: expected a list of tasks")
    decisions, refused, empty = list[OutsideDecision](), list[Refusal](), 0
    for line, item in enumerate(items, 1):
        try:
            if not isinstance(item, Mapping):
                raise ItemError(f"is a {type(item).__name__}: expected a task")  # noqa: TRY301 -- as any other
            found = list(answers_from_json(item))
        except ItemError as fault:
            refused.append(Refusal(line, _post_id(item), str(fault)))
            continue
        empty += not found
        for post_id, label, who, batch in found:
            decisions.append(OutsideDecision(line, post_id, label, who or reviewer, batch))
    return ReadReviews(tuple(decisions), tuple(refused), empty)


def _post_id(item: object) -> str:
    data = item.get("data", item) if isinstance(item, Mapping) else {}
    return str(data.get("post_id", "")) if isinstance(data, Mapping) else ""


# ---- a table -------------------------------------------------------------------------------------------


def read_csv(text: str) -> Iterator[OutsideDecision]:
    """Yield the lines of a table that came back; commas, semicolons or tabs between the cells.

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
            yield OutsideDecision(reader.line_num, post_id, label.strip(), who.strip(), batch)
    except csv.Error as error:
        raise ExchangeError(f"line {reader.line_num} is not CSV ({error}): save the table again") from error


def _plain(cell: str) -> str:
    """Return a cell as it was before `_harmless`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


# ---- Label Studio --------------------------------------------------------------------------------------


class ItemError(ValueError):
    """What is wrong with one item."""


def answers_from_json(item: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (post id, label, reviewer, batch) of every review in one item of an export, JSON or JSON-MIN.

    An item without a review gives nothing; what a reviewer skipped (cancelled) is no review.

    Raises:
        ItemError: An item that is none of ours, or a result that is not one choice.
    """
    data = item.get("data") if "annotations" in item or "completions" in item else item
    if not isinstance(data, Mapping) or not isinstance(data.get("post_id"), str):
        raise ItemError("has no data.post_id: expected a task that `selftrain review export` wrote")
    post_id, batch = data["post_id"], str(data.get("batch") or "")
    if data is item:
        if CONTROL in item:
            yield post_id, _choice(item[CONTROL]), reviewer_name(item.get("annotator")), batch
        return
    for annotation in item.get("annotations", item.get("completions")) or []:
        if not isinstance(annotation, Mapping):
            raise ItemError(f"has an annotation that is a {type(annotation).__name__}: expected an object")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        chosen = [
            _choice((one.get("value") or {}).get("choices"))
            for one in annotation.get("result") or []
            if isinstance(one, Mapping) and one.get("from_name") == CONTROL
        ]
        if len(chosen) != 1:
            raise ItemError(
                f"has an annotation with {len(chosen)} results for {CONTROL!r}: expected one choice"
            )
        yield post_id, chosen[0], reviewer_name(annotation.get("completed_by")), batch


def _choice(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("choices")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise ItemError(f"has the choice {value!r}: expected one class name")
    return value


def reviewer_name(annotator: object) -> str:
    """Return who has decided, by an export: the e-mail address, else the number, or nobody."""
    if isinstance(annotator, Mapping):
        email = annotator.get("email")
        return str(email) if email else reviewer_name(annotator.get("id"))
    if isinstance(annotator, int) or (isinstance(annotator, str) and annotator.isdecimal()):
        return f"label-studio {annotator}"
    return annotator if isinstance(annotator, str) else ""
