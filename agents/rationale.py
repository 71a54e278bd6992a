"""The evidence of an offline agent, as a sentence or two that a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.judgment import Candidate, Judgment


def first_words(label: str | None, probability: float | None, details: Mapping[str, Any]) -> str:
    """What an agent says when it judges alone; `details` holds words and nearest posts."""
    if not details["known"]:
        return "No opinion: its views know nothing of this post."
    if label is None or probability is None:
        opening = "Undecided: the evidence lies within the margin"
    else:
        opening = f"{label} ({probability:.2f})"
    parts = [_direction(details["words"], 1, "for it"), _direction(details["words"], -1, "against")]
    told = ", ".join(part for part in parts if part)
    near = _nearest(details["nearest"])
    return opening + (f": {told}" if told else "") + (f". Nearest labelled posts: {near}." if near else ".")


def second_words(
    label: str | None, probability: float | None, candidate: Candidate, own: Judgment, other: Judgment
) -> str:
    """What an agent says after it saw the others."""
    seen = f"the classifier says {candidate.label} ({candidate.probability:.2f}), {_answer(other)}"
    before = own.label or "no label"
    if label is None or probability is None:
        return f"Undecided after {before}: {seen}, and together they lie within the margin."
    if label == own.label:
        return f"Stays with {label} ({probability:.2f}): {seen}; its own evidence holds."
    return f"Changes from {before} to {label} ({probability:.2f}): {seen}, which outweighs its own evidence."


def _answer(judgment: Judgment) -> str:
    if judgment.label is None:
        return f"{judgment.agent} gives no label"
    certain = "" if judgment.probability is None else f" ({judgment.probability:.2f})"
    return f"{judgment.agent} says {judgment.label}{certain}"


def _direction(words: list[dict[str, Any]], sign: int, how: str) -> str:
    told = [f"'{word['word']}'" for word in words if word["weight"] * sign > 0]
    return f"{' and '.join(told)} {'speaks' if len(told) == 1 else 'speak'} {how}" if told else ""


def _nearest(posts: list[dict[str, Any]]) -> str:
    return ", ".join(f"{post['id']} ({post['label']}, {post['similarity']:.2f})" for post in posts)
