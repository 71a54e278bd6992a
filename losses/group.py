"""The five groups of PNU learning; free of torch, so that whoever only counts posts may name them."""

from __future__ import annotations

from enum import IntEnum


class Group(IntEnum):
    """What is known of a post; the values of the `groups` tensor."""

    POSITIVE = 0
    NEGATIVE = 1
    AGREED_POSITIVE = 2
    AGREED_NEGATIVE = 3
    DIVERGENT = 4
