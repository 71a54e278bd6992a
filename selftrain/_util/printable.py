"""Text that came from outside, made fit for a terminal or a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import islice

# controls (C0, C1, DEL), invisible formats (bidirectional overrides among them), lone surrogates, what has no
# meaning assigned, and the two Unicode line ends
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = frozenset("\u200c\u200d")  # hold emoji and some scripts together, and do no harm

_LISTED = 12
"""So many names, or faults, are told of a file that may have any number."""


def printable(text: str) -> str:
    """Write every character of `text` that could steer a terminal, or hide, as an escape.

    Posts, ids and rationales are data: one that holds an escape sequence is shown, never obeyed.
    """
    if text.isprintable():  # nearly always, and a hundred times as fast
        return text
    escaped = (mark.encode("unicode_escape").decode("ascii") if _steers(mark) else mark for mark in text)
    return "".join(escaped)


def _steers(mark: str) -> bool:
    return not mark.isprintable() and mark not in _JOINERS and unicodedata.category(mark) in _ESCAPED


def shorten(value: object) -> str:
    """Shorten `value` as a message can carry it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def first_of(names: Iterable[str]) -> str:
    """Show the first dozen names as a list, each shortened: a header may be as long as its file."""
    return f"[{', '.join(first_told(map(shorten, names)))}]"


def first_told(told: Iterable[str], more: str = "...") -> list[str]:
    """Return the first dozen, and `more` where there are others; no more than these are made."""
    rest = iter(told)
    return [*islice(rest, _LISTED), *islice((more for _ in rest), 1)]


def printable_lines(text: str) -> str:
    """Apply `printable`, line by line: what a person broke into lines stays so."""
    return "\n".join(map(printable, text.split("\n")))
