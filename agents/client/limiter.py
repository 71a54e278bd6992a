"""How many calls one address may hold at once: additive increase, multiplicative decrease."""

from __future__ import annotations


class Limiter:
    """A limit on calls in flight that halves when the server is overloaded and grows back with successes.

    A full round of successes (as many as the limit) adds one. Calls that were sent before the last cut say
    nothing new when they fail too: a round of 64 refusals halves the limit once, not down to the floor.

    Args:
        maximum: Where the limit starts and what it never passes, >= 1. The floor is 1.
    """

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError(f"a limit of {maximum} calls in flight: expected 1 or more")
        self._maximum = maximum
        self._limit = float(maximum)
        self._last_cut = float("-inf")
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """Most calls in flight now."""
        return int(self._limit)

    @property
    def has_room(self) -> bool:
        """Whether one more call may be sent."""
        return self.in_flight < self.limit

    @property
    def load(self) -> float:
        """Calls in flight as a share of the limit; above 1 after a cut."""
        return self.in_flight / self.limit

    def succeeded(self) -> bool:
        """Grow; whether `limit` changed."""
        before = self.limit
        self._limit = min(float(self._maximum), self._limit + 1.0 / self._limit)
        return self.limit != before

    def overloaded(self, sent: float, now: float) -> bool:
        """Halve, unless the call that met the overload was sent before the last cut.

        Args:
            sent: When that call was sent, in seconds of some clock.
            now: On the same clock.

        Returns:
            Whether `limit` changed.
        """
        if sent < self._last_cut:
            return False
        before = self.limit
        self._last_cut = now
        self._limit = max(1.0, self._limit / 2.0)
        return self.limit != before
