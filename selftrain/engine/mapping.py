"""One stage over many blocks: in this process here, on a Ray cluster in `on_ray`, with the same results."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

Block = TypeVar("Block")
Result = TypeVar("Result")

Source = Callable[[], Iterator[Block]]
"""Begins to read blocks, in their order."""
Stage = Callable[[], Callable[[Block], Result]]
"""Makes what turns a block into its result, once for every worker: a model is loaded there."""


class Rescue(NamedTuple, Generic[Block, Result]):
    """What becomes of a block that ends every worker which gets it: its items are tried one by one."""

    split: Callable[[Block], Sequence[Block]]  # into blocks of one item, in their order
    lost: Callable[
        [Block, str], Result
    ]  # the result of an item that still ends them, and why it has no better
    join: Callable[[Sequence[Result]], Result]  # of the items, in their order


class Engine(Protocol):
    """Something that runs a stage over blocks."""

    def map(
        self,
        source: Source[Block],
        stage: Stage[Block, Result],
        rescue: Rescue[Block, Result] | None = None,
    ) -> AbstractContextManager[Iterator[Result]]:
        """Run `stage` over the blocks of `source`; on leaving, what is still under way is given up.

        Before an error of the source or of a block is raised, the blocks under way come to their end. What no
        worker survives is an EngineError, or left to `rescue`.

        The source is read once, a few blocks ahead of the results at most; it, its blocks, the stage and the
        results can be pickled where the engine is not this process. The stage depends on nothing but the
        block that it is given, so that it does not matter who works on which, in which order, and how often.
        Results come in the blocks' order, and what is raised behind those of the blocks before.
        """
        ...


class InProcess:
    """One block after the other, where the call is made."""

    @contextmanager
    def map(
        self,
        source: Source[Block],
        stage: Stage[Block, Result],
        rescue: Rescue[Block, Result] | None = None,
    ) -> Iterator[Iterator[Result]]:
        """See `Engine.map`."""
        yield map(stage(), source())


# ---- what ran where -----------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where something was computed."""

    host: str  # name of the machine
    process: int

    @classmethod
    def here(cls) -> Self:
        """Return that of this process."""
        return cls(platform.node(), os.getpid())


class StageRun(NamedTuple):
    """A stage of a run that is over: who did it, and how fast."""

    stage: str
    posts: int
    seconds: float
    workers: Mapping[str, int]  # machine -> processes that worked on it; empty: the run's own process

    @classmethod
    def at(cls, stage: str, posts: int, seconds: float, places: Iterable[Place]) -> Self:
        """Return what was done at these places."""
        others = set(places) - {Place.here()}
        return cls(stage, posts, round(seconds, 3), dict(sorted(Counter(one.host for one in others).items())))

    @property
    def per_second(self) -> float:
        """Posts a second."""
        return round(self.posts / self.seconds, 1) if self.seconds else 0.0

    @property
    def where(self) -> str:
        """In words."""
        told = [f"{count} worker{'s' * (count > 1)} on {host}" for host, count in self.workers.items()]
        return ", ".join(told) or "in process"

    def to_json(self) -> dict[str, Any]:
        """Return a record of JSON values."""
        return {**self._asdict(), "per_second": self.per_second}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the stage of a record; KeyError: one that is incomplete."""
        return cls(*(record[name] for name in cls._fields))
