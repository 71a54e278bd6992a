"""A finished round's figures as flat numbers by name, for tools that draw curves over rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selftrain._util.types import Json

_ROUND = ("kept", "theta", "grown", "seconds")


def scalars(figures: Json) -> Iterator[tuple[str, float]]:
    """Tag and value of all that is a number and known in this round.

    Args:
        figures: The content of the round's metrics.json.
    """
    for split in ("validation", "test"):
        yield from _numbers(split, figures.get(split) or {})
    for name in ("candidates", "consistent", "divergent"):
        chosen = {key: figures[name].get(key) for key in ("posts", "precision")}
        yield from _numbers(name, chosen)
    yield from _numbers("pseudo_labels", figures.get("pseudo_labels") or {})
    for role, counts in (figures.get("agents") or {}).items():
        yield from _numbers(f"agents/{role}", counts)
    yield from _numbers("cost", figures.get("cost") or {})
    yield from _numbers("round", {key: figures.get(key) for key in _ROUND})
    curve = figures.get("curve") or [{}]
    yield from _numbers("loss", curve[-1].get("loss") or {})


def _numbers(group: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, int | float):  # None: not known, or not of this round
            yield f"{group}/{key}", float(value)
