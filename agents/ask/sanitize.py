"""Posts and other agents' words inside a prompt: material, marked as such, that cannot leave its place.

Three things keep it there. Characters that no reader sees, or that make a line out of one, are gone or made
plain. Whatever a tokenizer could take for one of its special strings (turn ends, image placeholders) is
broken: angle brackets become typographic ones, and the brackets of ``[INST]`` and its kind become ``⟦``. And
every line is quoted with a mark that the material itself can no longer contain.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

QUOTE = "> "
"""Begins every line of material; after `sanitize` no line can contain a ``>`` of its own."""

# < and > and their full-width and small forms, which a normalising tokenizer would turn into them
_ANGLES = {ord(c): "\u2039" for c in "<\uff1c\ufe64"} | {ord(c): "\u203a" for c in ">\uff1e\ufe65"}
# [INST], [/INST], [IMG], [gMASK]: an opening bracket, letters, a closing one; full-width brackets too
_BRACKETED = re.compile(r"[\[\uff3b](?=/?[A-Za-z_]{2,24}[\]\uff3d])")
_LINE_ENDS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# categories that show nothing: control, format (bidi overrides, zero widths, tags), surrogates, private use
_UNSEEN = ("Cc", "Cf", "Cs", "Co")
# joins emoji and letters of several scripts; a text without it would show something else
_KEPT = "\n\t\u200d\u200c"


class Cut(NamedTuple):
    """A text that fits, and how many characters it had."""

    text: str
    total: int

    @property
    def shortened(self) -> bool:
        return len(self.text) < self.total


def sanitize(text: str) -> str:
    """Return `text` without anything that a tokenizer or a reader could take for more than text."""
    plain = _LINE_ENDS.sub("\n", text)
    if not plain.replace("\n", "").isprintable():
        plain = "".join(c for c in plain if c in _KEPT or unicodedata.category(c) not in _UNSEEN)
    return _BRACKETED.sub("⟦", plain.translate(_ANGLES))


def cut(text: str, limit: int) -> Cut:
    """Return the first `limit` characters, cut at a word's end where one is near."""
    if len(text) <= limit:
        return Cut(text, len(text))
    head = text[:limit]
    space = head.rfind(" ", limit - 40)
    return Cut((head[:space] if space > 0 else head).rstrip(), len(text))


def quoted(text: str) -> str:
    """Return sanitized text, every line behind the mark."""
    return "\n".join(QUOTE + line for line in text.split("\n"))
