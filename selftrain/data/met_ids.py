"""The ids of a stream, to find the one that comes again: sixteen bytes each, however long they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selftrain.data.post_store import id_key

_RECENT = 1 << 16  # ids that are kept in a dictionary before they are sorted in
_Run = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]


class MetIds:
    """Ids, and the line that each was first met in.

    An id is kept as `id_key`. New ones are collected, then sorted into runs that double in length, so that
    there are few to look through.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._runs: list[_Run] = []

    def meet(self, post_id: str, line: int) -> int | None:
        """Return the line that an id was met in before; of a new one None, and remember `line`."""
        key = id_key(post_id)
        found = self._recent.get(key)
        if found is not None:
            return found
        wanted = np.uint64(key)
        for keys, lines in self._runs:
            place = int(keys.searchsorted(wanted))
            if place < len(keys) and keys[place] == wanted:
                return int(lines[place])
        self._recent[key] = line
        if len(self._recent) >= _RECENT:
            self._sort_in()
        return None

    def _sort_in(self) -> None:
        keys = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        lines = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        self._recent.clear()
        while self._runs and len(self._runs[-1][0]) <= len(keys):
            longer = self._runs.pop()
            keys, lines = np.concatenate([longer[0], keys]), np.concatenate([longer[1], lines])
        order = keys.argsort()
        self._runs.append((keys[order], lines[order]))
