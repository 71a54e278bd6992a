"""What people said, on its way into the loop: into a round's folder first, then into the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selftrain import atomic
from selftrain.corpus import Corpus
from selftrain.history import placed, pool_positions
from selftrain.ledger import Ledger
from selftrain.people import People
from selftrain.run.folder import HUMAN, RunFolder


def hear(
    people: People | None, folder: RunFolder, corpus: Corpus, ledger: Ledger, path: Path | None = None
) -> Ledger:
    """The ledger with the decisions that no round has used yet; the same one where there are none.

    Args:
        people: Who decides; None: nobody.
        folder: The run.
        corpus: Its posts.
        ledger: After the rounds so far.
        path: The open folder of the round that uses them, where they are written; None: no round does.

    Raises:
        LedgerError: The reviews cannot be read.
        RunStateError: A decision on a post that is not in the pool.
    """
    if people is None:
        return ledger
    used = {corpus.posts[p].id: corpus.class_name(human.value) for p, human in ledger.human.items()}
    said = people.answers(used)
    if not said:
        return ledger
    decisions = placed(said, pool_positions(corpus), folder)
    if path is not None:
        atomic.write_jsonl(path / HUMAN, said)
    return ledger.decided(decisions, {corpus.positive: 1, corpus.negative: 0})


def human_figures(people: People | None, ledger: Ledger, number: int) -> dict[str, Any]:
    """People's labels in round `number`: all, and those that it was the first to use."""
    if people is None:
        return {}
    new = sum(human.round == number for human in ledger.human.values())
    return {"human": {"posts": len(ledger.human), "new": new}}
