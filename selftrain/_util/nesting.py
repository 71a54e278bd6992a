"""Lists and tables within each other: what is read must be shown and written again, which recurses."""

from __future__ import annotations

MAX_DEPTH = 100


def is_deep(value: object) -> bool:
    """Return whether lists and mappings stand more than `MAX_DEPTH` deep in each other."""
    level = [value]
    for _ in range(MAX_DEPTH):
        outer = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in outer for inner in (one.values() if isinstance(one, dict) else one)]
    return bool(level)
