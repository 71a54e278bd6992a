"""The probability of each label, read from the log-probabilities of an answer's tokens: exact, or absent.

Labels are written so that no two begin with the same byte (`AnswerSchema.spelt`): the token that brings the
first character of the label decides, however a tokenizer cuts what follows, and each alternative to it leads
to one label alone. What the listed alternatives leave out is known too, because all of them add up to 1;
where it could shift a probability by more than `TOLERANCE`, there is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from agents.client.base import Token

TOLERANCE = 0.01
_END = len('":"')
_KEY = re.compile(r'(?<!\\)"label"\s*:\s*"')


def label_probs(
    tokens: Sequence[Token], spelt: Mapping[str, str], classes: Sequence[str]
) -> dict[str, float] | None:
    """Return class name -> probability; None where they are not known within `TOLERANCE`.

    Labels that are no classes (the answer of an agent that cannot tell) are left out and the rest scaled up
    to 1.

    Args:
        tokens: Of the whole answer, thoughts before it included.
        spelt: Label -> how it is written.
        classes: The labels that are counted.
    """
    heads = {written[:1]: name for name, written in spelt.items()}
    found = list(_KEY.finditer("".join(token.text for token in tokens)))
    if not found or len(heads) < len(spelt):
        return None
    # the last one: thoughts come before the answer, and inside a JSON string quotes are escaped
    key = found[-1]
    probs, missed = _followed(tokens, key.start(), key.group(), heads)
    known = sum(probs.get(name, 0.0) for name in classes)
    if known <= 0.0 or missed > TOLERANCE * (known + missed):
        return None
    return {name: probs.get(name, 0.0) / known for name in classes}


def _followed(
    tokens: Sequence[Token], start: int, key: str, heads: Mapping[str, str]
) -> tuple[dict[str, float], float]:
    """Return label -> probability, and the probability that no listed alternative accounts for.

    Args:
        tokens: Of the answer.
        start: The character at which `key`, the text up to the label's first character, begins in them.
        key: That text.
        heads: First character -> label.
    """
    probs: dict[str, float] = {}
    missed, mass, position = 0.0, 1.0, 0
    for token in tokens:
        begin, position = position, position + len(token.text)
        if position <= start:
            continue
        # of what the answer's text must be from here on, the key's rest; a token may begin before the key
        before, rest = max(start - begin, 0), key[max(begin - start, 0) :]
        decided: dict[str, float] = {}
        listed = going_on = 0.0
        for text, logprob in token.alternatives or ((token.text, token.logprob),):
            share = math.exp(logprob)
            listed += share
            if text[:before] != token.text[:before]:
                continue
            led = text[before:]
            if led.startswith(rest) and (name := heads.get(led[len(rest) : len(rest) + 1])):
                decided[name] = decided.get(name, 0.0) + share
            elif text == token.text and rest.startswith(led):
                going_on += share
        total = sum(decided.values()) + going_on
        if total <= 0.0:
            return {}, 1.0
        unlisted = max(0.0, 1.0 - listed)
        for name, share in decided.items():
            probs[name] = probs.get(name, 0.0) + mass * share / total
        # other ways to cut the key lead to the same text, and from there to the same labels
        decides = not rest.startswith(token.text[before:])
        if decides or len(rest) <= _END:
            # before that, what is not listed is another way for the rationale to go on
            missed += mass * unlisted / (total + unlisted)
        mass *= going_on / total
        if decides or mass <= 0.0:
            return probs, missed
    return probs, missed + mass
