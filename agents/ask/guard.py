"""Guard models: they know a policy of their own, and answer no question but in a template of their own.

Llama Guard writes "safe", or "unsafe" and the codes of its categories; ShieldGemma "Yes" or "No"; a
moderation classifier is put into the words "safe", or "flagged" and its categories. A table maps words and
codes to the task's classes. A guard neither reads another agent's words nor gives reasons: what it wrote is
its rationale, and asked again it says the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.ask.label_probs import TOLERANCE
from agents.client.base import Token
from agents.errors import ReviewError

_WORD = re.compile(r"[^\s,;:.!\"'()\[\]{}]+")
FLAGGED = "flagged"
"""What a moderation classifier is said to write before its categories."""
_CODE = re.compile(r"[A-Za-z]{1,4}-?\d{1,3}")


@dataclass(frozen=True, slots=True)
class GuardWords:
    """What a guard may write, and what it means."""

    classes: tuple[str, ...]  # class names
    unsure: str  # as in `AnswerSchema`
    words: Mapping[str, str]  # a word or a category's code, in any case -> a class, or `unsure`

    max_tokens = 60
    top_logprobs = 20

    def to_json(self) -> dict[str, Any] | None:
        """Return no schema: the template decides what is written."""
        return None

    def keyed(self) -> dict[str, str]:
        """Return what an answer is read by, which is part of its cache key."""
        return {"words": json.dumps(dict(self.words), sort_keys=True)}

    @property
    def table(self) -> dict[str, str]:
        """The words in small letters."""
        return {word.lower(): label for word, label in self.words.items()}

    def label(self, text: str) -> str | None:
        """Return what an answer means; None: nothing that the table knows.

        A code of a category that is mapped counts more than the word before it.
        """
        table = self.table
        first, *others = _WORD.findall(text.lower()) or [""]
        named = (one for one in others if first == FLAGGED or _CODE.fullmatch(one))
        codes = [table[one] for one in named if one in table]
        return codes[0] if codes else table.get(first)

    def probabilities(self, tokens: tuple[Token, ...], label: str | None) -> dict[str, float] | None:
        """Return class name -> probability, of the first word; None where too much of it is not listed."""
        first = next((token for token in tokens if token.text.strip()), None)
        if first is None or label not in self.classes:
            return None
        shares, listed = dict.fromkeys(self.classes, 0.0), 0.0
        table, written = self.table, first.text.strip().lower()
        for text, logprob in first.alternatives or ((first.text, first.logprob),):
            share, began = math.exp(logprob), text.strip().lower()
            meant = {table[word] for word in table if began and word.startswith(began)}
            named = label if began == written else meant.pop() if len(meant) == 1 else None
            if named is not None:
                listed += share
                shares[named] = shares.get(named, 0.0) + share
        known = sum(shares[name] for name in self.classes)
        if known <= 0.0 or 1.0 - listed > TOLERANCE:
            return None
        return {name: shares[name] / known for name in self.classes}


def guard_words(classes: tuple[str, ...], unsure: str, words: Mapping[str, str]) -> GuardWords:
    """Return the table of a guard.

    Raises:
        ReviewError: It maps nothing, or to what is no class.
    """
    strangers = sorted(set(words.values()) - {*classes, unsure})
    if strangers or not words:
        raise ReviewError(
            f"a guard's words map to {strangers or 'nothing'}: expected classes of the task, {list(classes)},"
            f' or "{unsure}", for instance words = {{ safe = "{classes[0]}", unsafe = "{classes[-1]}" }}'
        )
    return GuardWords(classes, unsure, dict(words))
