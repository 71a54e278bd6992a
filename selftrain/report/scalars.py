"""A finished round as flat numbers by name, for tools that draw curves over rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from selftrain.rounds import RoundResult


def scalars(finished: RoundResult) -> Iterator[tuple[str, float]]:
    """Yield tag and value of all that is a number and known in this round."""
    yield from _numbers("validation", finished.validation._asdict())
    if finished.test is not None:
        yield from _numbers("test", finished.test._asdict())
    for name, counts in finished.sets._asdict().items():
        yield from _numbers(name, {"posts": counts.posts, "precision": counts.precision})
    yield from _numbers("pseudo_labels", finished.pseudo_labels._asdict())
    for role, agent in finished.agents.items():
        yield from _numbers(f"agents/{role}", agent._asdict())
    if finished.cost is not None:
        yield from _numbers("cost", finished.cost._asdict())
    about = {"kept": finished.kept, "theta": finished.theta}
    yield from _numbers("round", about | {"grown": finished.grown, "seconds": finished.seconds})
    if finished.curve:
        yield from _numbers("loss", finished.curve[-1].loss)


def _numbers(group: str, values: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if value is not None:  # None: not known, or not of this round
            yield f"{group}/{key}", float(value)
