"""One stage over many blocks: in this process here, on a Ray cluster in `on_ray`, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

Block = TypeVar("Block")
Result = TypeVar("Result")

Source = Callable[[], Iterator[Block]]
"""Begins to read blocks, in their order."""
Stage = Callable[[], Callable[[Block], Result]]
"""Makes what turns a block into its result, once for every worker: a model is loaded there."""


class Engine(Protocol):
    """Something that runs a stage over blocks."""

    def map(
        self, source: Source[Block], stage: Stage[Block, Result]
    ) -> AbstractContextManager[Iterator[Result]]:
        """Run `stage` over the blocks of `source`; on leaving, what is still under way is given up.

        The source is read once, a few blocks ahead of the results at most; it, its blocks, the stage and the
        results can be pickled where the engine is not this process. The stage depends on nothing but the
        block that it is given, so that it does not matter who works on which, in which order, and how often.
        Results come in the blocks' order, and what is raised behind those of the blocks before.
        """
        ...


class InProcess:
    """One block after the other, where the call is made."""

    @contextmanager
    def map(self, source: Source[Block], stage: Stage[Block, Result]) -> Iterator[Iterator[Result]]:
        """See `Engine.map`."""
        yield map(stage(), source())
