"""A criticizer in the loop: it says how likely the machine's labels of divergent posts are wrong, and why.

What it said is kept in the run's `criticisms.jsonl`, one line a post and batch: the review page shows it, and
the error estimates in the ledger come from it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.ask.annotator import Annotation
from selftrain._util.types import Json
from selftrain.errors import BudgetError
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder, read_jsonl

if TYPE_CHECKING:
    from agents.ask.criticizer import Criticism, Criticizer
    from agents.ask.runner import Runner
    from agents.judgment import PostLike
    from selftrain.review.disagreement import Suspicion

logger = logging.getLogger(__name__)

FILE = "criticisms.jsonl"


class LoopCriticizer:
    """A model that criticizes what classifier and agents say together.

    Args:
        runner: The model at work; closed here, its cache too.
        criticizer: The way of asking.
        posts: Post id -> the post, of the whole pool.
        folder: The run.
    """

    def __init__(
        self,
        runner: Runner,
        criticizer: Criticizer,
        posts: Mapping[str, PostLike],
        folder: RunFolder,
    ) -> None:
        self._runner, self._criticizer, self._posts = runner, criticizer, posts
        self._file = folder.path / FILE

    def __call__(
        self, batch: str, verdicts: Sequence[Mapping[str, Any]], suspected: Sequence[Suspicion]
    ) -> list[float | None]:
        """An error estimate in [0, 1] for each post, None where the model gave none.

        Args:
            batch: What the posts may be drawn for; asked again, it replaces what was said before.
            verdicts: The last verdict on each post, as verdicts.jsonl has it.
            suspected: The label that is criticized, of the same posts in the same order.

        Raises:
            BudgetError: No post got an estimate: the model cannot do this work, and a draw would be blind.
            AgentError: Nobody can be asked, or the token cap is reached.
            StorageError: The disk is full or refuses.
        """
        annotations = [
            annotation(verdict, one.label) for verdict, one in zip(verdicts, suspected, strict=True)
        ]
        posts = [self._posts[one.post_id] for one in suspected]
        before = self._runner.usage()
        said = self._criticizer.criticize(self._runner, posts, annotations)
        paid = self._runner.usage().minus(before)
        logger.info(
            "%d labels criticized (%s): %d calls, %d answers stored, %d tokens, %d posts without an estimate",
            len(said), self._criticizer.strategy.name, paid.calls, paid.stored, paid.usage.total,
            sum(one.error is None for one in said),
        )  # fmt: skip
        if all(one.error is None for one in said):
            raise BudgetError(
                f"the criticizer gave no estimate for any of {len(said)} posts; of the first:"
                f" {said[0].fault}. Name another human.strategy or model, or set human.source ="
                ' "disagreement"'
            )
        others = [row for row in read_criticisms(self._file) if row["batch"] != batch]
        rows = [row_of(batch, a, c) for a, c in zip(annotations, said, strict=True)]
        atomic.write_jsonl(self._file, [*others, *rows])
        return [one.error for one in said]

    def close(self) -> None:
        """Let go of the server and of the cache; safe to repeat."""
        self._runner.close()
        self._runner.cache.close()


def annotation(verdict: Mapping[str, Any], label: str) -> Annotation:
    """The label with the reasons of the agents who gave it, in their last judgments."""
    last = {str(one["agent"]): one for one in sorted(verdict["judgments"], key=lambda one: int(one["step"]))}
    reasons = [str(one["rationale"]) for one in last.values() if one["label"] == label and one["rationale"]]
    return Annotation(
        str(verdict["post_id"]), label, None, " ".join(reasons), None, "", "classifier and agents"
    )


def row_of(batch: str, annotated: Annotation, said: Criticism) -> Json:
    """A line of criticisms.jsonl."""
    return {
        "batch": batch, "post_id": said.post_id, "label": annotated.label, "strategy": said.strategy,
        "error": said.error, "rationale": said.rationale, "fault": said.fault, "source": said.source,
    }  # fmt: skip


def read_criticisms(file: Path) -> list[Json]:
    """The lines of criticisms.jsonl; none where it is not there.

    Raises:
        RunStateError: A damaged file.
    """
    return list(read_jsonl(file)) if file.exists() else []
