"""Progress bars, and their numbers for whoever does not see them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


@dataclass
class StageProgress:
    """How far something is."""

    unit: str  # what is counted
    total: int | None  # how many there are; None: not known before the end
    initial: int  # how many an earlier start has done
    done: int  # with those
    began: float  # on the monotonic clock
    seconds: float = 0.0  # that it took, once it is over

    @property
    def per_second(self) -> float:
        """How many were done in a second, from the beginning until now, or until the end."""
        seconds = self.seconds or time.monotonic() - self.began
        return (self.done - self.initial) / seconds if seconds else 0.0


LATEST: dict[str, StageProgress] = {}
"""Name -> how far the last bar of that name in this process is, or was when it was closed."""


class ProgressBar:
    """A bar of tqdm's whose numbers are kept, drawn or not.

    It is without the thread that watches over tqdm's bars: where memory ends, a thread may never begin, and
    Python waits for it for ever.

    Args:
        desc: What is done.
        total: How many there are; None: not known before the end.
        initial: How many an earlier start has done.
        unit: What is counted.
        disable: Draw nothing.
    """

    def __init__(
        self,
        *,
        desc: str,
        total: int | None = None,
        initial: int = 0,
        unit: str = "post",
        disable: bool = False,
    ) -> None:
        tqdm.monitor_interval = 0
        self._bar = tqdm(total=total, initial=initial, desc=desc, unit=f" {unit}s", disable=disable)
        self._progress = LATEST[desc] = StageProgress(unit, total, initial, initial, time.monotonic())

    @property
    def n(self) -> int:
        """How many are done, those of earlier starts too."""
        return self._progress.done

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each counted once whoever takes it asks for the next."""
        with self:
            for item in items:
                yield item
                self.update()

    def expect(self, total: int | None) -> None:
        """Say how many there will be, as far as is known by now; None: that is not known."""
        self._progress.total = self._bar.total = total

    def update(self, count: int = 1) -> None:
        """Count some more as done."""
        done, total = self._progress.done + count, self._progress.total
        if total is not None and done > total:  # more than were expected
            self.expect(None)
        self._progress.done = done
        self._bar.update(count)

    def set_postfix(self, **shown: object) -> None:
        """Show figures behind the bar when it is drawn next."""
        self._bar.set_postfix(refresh=False, **shown)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text)

    def close(self) -> None:
        """Stop the clock and leave the bar as it is."""
        self._progress.seconds = self._progress.seconds or time.monotonic() - self._progress.began
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
