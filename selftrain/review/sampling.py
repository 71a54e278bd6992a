"""From suspected labels to what a ledger takes: entries with chances of review, and a sample in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from selftrain.act.budget import Rule, inclusion, systematic_sample
from selftrain.review.disagreement import MachineLabel
from selftrain.review.items import Entry

Order = Literal["sampled", "uncertain"]


def entries_of(
    suspected: Sequence[MachineLabel],
    parts: Sequence[str],
    *,
    count: int,
    rule: Rule,
    floor: float,
    seed: int,
) -> list[Entry]:
    """The posts as the ledger takes them: how likely each is wrong, and how likely it is drawn.

    Raises:
        BudgetError: As `selftrain.act.budget.inclusion`.
    """
    pi = inclusion([one.error for one in suspected], count, rule=rule, floor=floor, seed=seed)
    return [
        Entry(one.post_id, one.label, one.error, float(chance), part)
        for one, chance, part in zip(suspected, pi, parts, strict=True)
    ]


def sample_of(entries: Sequence[Entry], seed: int, order: Order = "sampled") -> list[str]:
    """Ids of the sample, in the order of review."""
    drawn = [entries[place] for place in systematic_sample([one.inclusion for one in entries], seed)]
    if order == "uncertain":
        drawn.sort(key=lambda one: -(one.error or 0.0))
    return [one.post_id for one in drawn]
