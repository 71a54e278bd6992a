"""A criticizer in the loop: how likely the machine's labels of divergent posts are wrong, and why.

What it gave is kept in the run's `criticisms.jsonl`, one line a post and batch: the review page shows it, and
the error estimates in the ledger come from it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agents.ask.annotator import Annotation
from agents.ask.criticizer import Criticism, Criticizer
from agents.ask.runner import Runner
from agents.judgment import PostLike, Verdict
from selftrain.errors import BudgetError
from selftrain.review.sampling import MachineLabel
from selftrain.store import checksums
from selftrain.store.run_dir import RunFolder, read_typed

logger = logging.getLogger(__name__)

CRITICISMS = "criticisms.jsonl"


class LabelCriticism(NamedTuple):
    """A line of criticisms.jsonl: how likely a label is wrong, and why."""

    batch: str  # what the post might be drawn for
    post_id: str
    label: str | None  # the label that was criticized
    strategy: str  # how it was asked for
    error: float | None  # e in [0, 1]; None where it is missing, see `fault`
    rationale: str  # the criticizer's reasons; may be empty
    fault: str  # why there is no estimate
    source: str  # what answered


class LoopCriticizer:
    """A model that criticizes what classifier and agents say together; `close` lets it and its cache go."""

    def __init__(
        self, runner: Runner, criticizer: Criticizer, posts: Mapping[str, PostLike], folder: RunFolder
    ) -> None:
        self._runner, self._criticizer, self._posts = runner, criticizer, posts
        self._file = folder.path / CRITICISMS

    def __call__(
        self, batch: str, verdicts: Sequence[Verdict], labels: Sequence[MachineLabel]
    ) -> list[float | None]:
        """Return an error estimate in [0, 1] for each post, None where the model gave none.

        A batch that is asked for again replaces what was kept of it.

        Raises:
            BudgetError: No post got an estimate: the model cannot do this work, and a draw would be blind.
            AgentError: Nobody can be asked, or the token cap is reached.
        """
        annotations = [_annotation(verdict, one.label) for verdict, one in zip(verdicts, labels, strict=True)]
        posts = [self._posts[one.post_id] for one in labels]
        before = self._runner.usage()
        given = self._criticizer.criticize(self._runner, posts, annotations)
        paid = self._runner.usage().minus(before)
        logger.info(
            "%d labels criticized (%s): %d calls, %d answers stored, %d tokens, %d posts without an estimate",
            len(given), self._criticizer.strategy.name, paid.calls, paid.stored, paid.usage.total,
            sum(one.error is None for one in given),
        )  # fmt: skip
        remedy = 'Name another human.strategy or model, or set human.source = "disagreement"'
        errors = estimates_of(given, remedy)
        others = [one for one in read_criticisms(self._file) if one.batch != batch]
        write_criticisms(self._file, batch, annotations, given, others)
        return errors

    def close(self) -> None:
        """Let go of the server and of the cache; safe to repeat."""
        self._runner.close()
        self._runner.cache.close()


def _annotation(verdict: Verdict, label: str) -> Annotation:
    """Return the label with the reasons of the agents who gave it, in their last judgments."""
    last = [judgments[-1] for judgments in verdict.by_agent().values()]
    reasons = [judgment.rationale for judgment in last if judgment.label == label and judgment.rationale]
    return Annotation(verdict.post_id, label, None, " ".join(reasons), None, "", "classifier and agents")


def estimates_of(given: Sequence[Criticism], remedy: str) -> list[float | None]:
    """Return the error estimate of each label, None where there is none; a BudgetError if none has one."""
    if all(one.error is None for one in given):
        raise BudgetError(
            f"the criticizer gave no estimate for any of {len(given):,} labels; of the first:"
            f" {given[0].fault}. {remedy}"
        )
    return [one.error for one in given]


def write_criticisms(
    file: Path,
    batch: str,
    annotations: Sequence[Annotation],
    given: Sequence[Criticism],
    others: Sequence[LabelCriticism] = (),
) -> None:
    """Replace criticisms.jsonl with others, and with what a criticizer gave for the labels of a batch."""
    new = [
        LabelCriticism(batch, label=annotated.label, **one._asdict())
        for annotated, one in zip(annotations, given, strict=True)
    ]
    checksums.write_jsonl(file, [one._asdict() for one in (*others, *new)])


def read_criticisms(file: Path) -> list[LabelCriticism]:
    """Read criticisms.jsonl; none where it is not there."""
    return list(read_typed(file, lambda record: LabelCriticism(**record)))
