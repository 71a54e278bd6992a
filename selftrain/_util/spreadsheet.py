"""Cells that a spreadsheet does not run: what strangers wrote may begin like a formula."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[+-]?\d[\d.,]*([eE][+-]?\d+)?")
"""What a spreadsheet takes for a number: it would drop zeros in front, and digits after the fifteenth."""

ESCAPED = "selftrain.escaped"
"""A column of CSV files of ours whose cells are written as `escape` does."""

# a cell begins where the text does, and within it for whoever opens the file with another separator
_BEGINS, _FORMULA = r"(^|[;|\t\r\n])", r"(?=[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20])"
_OPEN, _CLOSED = re.compile(_BEGINS + _FORMULA), re.compile(f"{_BEGINS}'{_FORMULA}")


def escape(cell: str) -> str:
    """Put an apostrophe before whatever a spreadsheet would run; a number, -1 for instance, stays one."""
    return cell if NUMBER.fullmatch(cell) else _OPEN.sub(r"\1'", cell)


def unescape(cell: str) -> str:
    """Return what `escape` was given."""
    return _CLOSED.sub(r"\1", cell)
