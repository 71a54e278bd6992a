"""Answers of any model about posts, a file a model, in any form that a manifest may have::

    {"id": "tweet-7", "label": "hateful", "probability": 0.93, "rationale": "a slur"}
    {"id": "tweet-8", "label": null}

The rules of manifests hold. Nothing is set aside: a line that cannot be used is refused, because a post
without its answer is another thing than one that the model failed on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from agents.errors import ReplayError
from agents.judgment import Judgment, State
from agents.replayed import source_of
from selftrain._util.printable import first_of, shorten
from selftrain.data.tables import fold, open_table
from selftrain.data.values import (
    Names,
    RowError,
    named_values,
    odd_signs,
    only_one,
    spelled_names,
    text_of,
)
from selftrain.errors import ManifestError

_EXPECTED = 'expected answers, a line each: {"id": "...", "label": "..." or null}'
_FIELDS = ("id", "label", "probability", "rationale")
_LOG = logging.getLogger(__name__)


def read_answers(path: Path, classes: Collection[str]) -> dict[str, Judgment]:
    """Read a file of answers: post id -> judgment of step 0. The file's stem is the agent's role.

    Args:
        path: A table of any form, see `tables.open_table`.
        classes: The class names that a label may be.

    Raises:
        ReplayError: The file cannot be read or is empty, or a line is no answer, names an unknown label or an
            id that an earlier line has; the message names file and line, what was found and is expected.
    """
    try:
        return _read(path, Names(classes))
    except ManifestError as error:
        raise ReplayError(f"{error}; {_EXPECTED}") from error


def _read(path: Path, names: Names) -> dict[str, Judgment]:
    table = open_table(path)
    columns = table.columns
    if columns is not None and not {"id", "label"} <= {*map(fold, columns)}:
        raise ReplayError(f"{path} has the columns {first_of(columns)}; {_EXPECTED}")
    found: dict[str, Judgment] = {}
    lines: dict[str, int] = {}
    for row in table.rows:
        place = f"{path}, line {row.line}"
        if row.fields is None:
            raise ReplayError(f"{place}: {row.reason}; {row.remedy}")
        try:
            fields = named_values(row, spelled_names(columns or tuple(row.fields), _FIELDS))
            post_id, judgment = _answer(path, fields, names)
        except RowError as error:
            raise ReplayError(f"{place}: {error.reason}: {error.remedy}") from error
        if post_id in lines:
            raise ReplayError(
                f"{place}: id {post_id!r} stands in line {lines[post_id]} already: expected one answer a"
                " post, remove one of the two"
            )
        found[post_id], lines[post_id] = judgment, row.line
    if not found:
        raise ReplayError(f"{path} holds no answer: {_EXPECTED}")
    for note in table.notes:
        _LOG.warning("%s: %s", path, note)
    return found


def _answer(path: Path, fields: Mapping[str, Any], names: Names) -> tuple[str, Judgment]:
    """Return post id and judgment of a row.

    Raises:
        RowError: What is wrong, and what is expected.
    """
    for key in ("id", "label"):
        if key not in fields:
            raise RowError(f'no "{key}"', _EXPECTED)
    post_id, written = text_of(fields["id"], "id"), only_one(fields["label"], names)
    if not post_id.strip():
        raise RowError(f"id is {shorten(fields['id'])}", "expected a text")
    blank = written is None or (isinstance(written, str) and not written.strip())
    label = None if blank else names.find(written)
    if label is None and not blank:
        raise RowError(
            f"label is {shorten(written)}{odd_signs(written, names)}",
            f"expected one of {', '.join(map(repr, names))}, or null where the model gave no usable answer",
        )
    probability = _probability(fields.get("probability"))
    if label is None and probability is not None:
        raise RowError(f"probability is {probability} but label is null", "expected a label with it")
    state = State.ABSTAIN if label is None else State.LABEL
    rationale = text_of(fields.get("rationale"), "rationale")
    return post_id, Judgment(path.stem, 0, state, label, probability, rationale, source_of(path))


def _probability(value: object) -> float | None:
    """Return a probability in [0, 1], written as a number or a text; None where there is none."""
    if value is None or value == "":
        return None
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        found = -1.0
    if not 0 <= found <= 1:
        raise RowError(f"probability is {shorten(value)}", "expected a number from 0 to 1")
    return found
