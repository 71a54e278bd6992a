"""Records of JSON values: exact keys, checked types, floats that are the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agents.errors import JudgmentError

DECIMALS = 6
"""Decimal places of every float in a record."""


def checked(record: Mapping[str, Any], types: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the fields of `record`, exactly those of `types`, each of its type; a bool is no number."""
    if not isinstance(record, Mapping):
        raise JudgmentError(f"a {what} is a JSON object, not {type(record).__name__}")
    if set(record) != set(types):
        missing, unknown = sorted(set(types) - set(record)), sorted(set(record) - set(types))
        raise JudgmentError(f"a {what} record with missing keys {missing} and unknown keys {unknown}")
    for key, value in record.items():
        if not isinstance(value, types[key]) or (isinstance(value, bool) and types[key] is not bool):
            raise JudgmentError(f"{what}: {key} is a {type(value).__name__}: {value!r}")
    return dict(record)


def rounded(value: object) -> object:
    """Return `value` as JSON values: floats rounded to `DECIMALS` places, tuples as lists, keys as texts.

    Raises:
        JudgmentError: A value that JSON does not have (NaN and infinity included).
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise JudgmentError(f"{value!r} is not a JSON number")
        return round(float(value), DECIMALS) + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    raise JudgmentError(f"a {type(value).__name__} is not a JSON value: {value!r}")
