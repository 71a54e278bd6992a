"""Texts folded, so that a copy is recognised in spite of case, punctuation, links and mentions."""

from __future__ import annotations

import html
import re
import unicodedata

_NOISE = re.compile(r"(?:https?://|www\.)\S+|(?<!\w)@\w+|(?<!\w)rt(?=\s*@)", re.IGNORECASE)


class _Fold(dict[int, str | None]):
    """Code point -> what stands for it; filled as characters are met, so that `str.translate` stays fast."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        folded: str | None
        if category == "Cf":
            folded = None  # invisible: joiners, direction marks, a stray BOM
        elif category[0] in "LMN":
            folded = character  # marks too: without them words of Indic scripts would run together
        else:
            folded = " "
        self[code] = folded
        return folded


_FOLD = _Fold()


def normalise_text(text: str) -> str:
    """Letters, marks and digits of `text`, NFKC and case-folded, words parted by single spaces.

    HTML entities are resolved; links, mentions and the RT of a retweet are left out. May be empty.
    """
    plain = _NOISE.sub(" ", unicodedata.normalize("NFKC", html.unescape(text)))
    return " ".join(unicodedata.normalize("NFKC", plain.casefold()).translate(_FOLD).split())
