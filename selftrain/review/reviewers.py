"""People in the loop: before a round, posts that the rounds before left divergent are sent to review.

A round begins when the posts sent to review have an answer; the answers that it uses are written into its
folder (`human.jsonl`) before anything is trained, so that the loop's state follows from finished rounds, and
not from what reviewers do afterwards. What is asked lies in the run's ledger of reviews, which the review
page, imports and audits share.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from selftrain.review.criticism import LoopCriticizer
from selftrain.review.ledger import opened_ledger
from selftrain.review.ledger_reader import Decision, ReviewItem
from selftrain.review.sampling import AUDIT, request_reviews, verdicts_among
from selftrain.store.run_dir import HumanLabel, RunFolder

Rule = Literal["normalised", "exponential", "threshold"]
Wait = Literal["end", "poll"]

RECIPE = "recipe"
"""Purpose in the ledger of what the recipe allows beyond the budget that the ledger was created with."""
POLL_SECONDS = 2.0


def batch_after(number: int) -> str:
    """Name of the batch that is drawn when round `number` is finished."""
    return f"round {number}"


class Waiting(NamedTuple):
    """Reviews that a run waits for.

    Attributes:
        ledger: The file.
        posts: Posts that the loop sent to review, in all rounds so far.
        open: Of them, those without a decision.
    """

    ledger: Path
    posts: int
    open: int

    def __str__(self) -> str:
        run = shlex.quote(str(self.ledger.parent))
        return (
            f"{self.open:,} of {self.posts:,} posts wait for review in {self.ledger}: review them with"
            f" `selftrain review serve {run}`, or `selftrain review export` and `import`; then the same"
            " command goes on"
        )


class Reviewers(Protocol):
    """What the loop needs of the people who review for it."""

    def ready(self, number: int) -> bool:
        """Ask what is to be asked before round `number` >= 1; False ends the run in good order.

        Called once before every round. The finished rounds lie in the run's folder; a round before which
        this is False is not begun, and the same run goes on from there when it is started again.
        """
        ...

    def answers(self, used: Mapping[str, str]) -> Sequence[HumanLabel]:
        """Labels of pool posts that no round has used yet.

        Args:
            used: Post id -> the label that earlier rounds used. A post in it is given again only when its
                label has changed since.
        """
        ...

    def close(self) -> None:
        """Let go of what was opened; safe to repeat."""
        ...


class HumanReview:
    """People who review in the run's ledger: on the review page, or by export and import.

    Args:
        folder: The run.
        budget: Most posts that the loop may ever send to review; 0: it sends none, and uses what others did.
        per_round: Most of them after one round.
        rule, floor: See `selftrain.act.budget.inclusion`.
        double_annotation_rate: Share of the posts that two people review; a ledger that is
            there keeps its own.
        wait: While reviews are missing, "end" the run in good order, or "poll" until they are there.
        seed: Of the draws; a ledger that is there keeps its own.
        progress: Whether polling shows how far the review is.
        poll_seconds: Between two looks.
        criticizer: Estimates which labels are wrong; None: the agents' disagreement does. Closed here.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        budget: int,
        per_round: int = 50,
        rule: Rule = "exponential",
        floor: float = 0.1,
        double_annotation_rate: float = 0.0,
        wait: Wait = "end",
        seed: int = 0,
        progress: bool = False,
        poll_seconds: float = POLL_SECONDS,
        criticizer: LoopCriticizer | None = None,
    ) -> None:
        self._criticizer = criticizer
        self._folder, self._budget, self._per_round = folder, budget, per_round
        self._rule, self._floor, self._double_annotation_rate = rule, floor, double_annotation_rate
        self._wait, self._seed, self._progress, self._poll_seconds = wait, seed, progress, poll_seconds

    def ready(self, number: int) -> bool:
        """Send posts to review before round `number`, and say whether all that were sent have a decision.

        The first round has no divergent posts before it. Safe to repeat: what was drawn stays drawn.

        Raises:
            BudgetError, LedgerError: The posts cannot be drawn, or the ledger cannot be used.
        """
        if number > 1 and self._budget:
            self._ask(number - 1)
        waiting = waiting_for(self._folder) if self._budget else None
        if waiting is None or not waiting.open:
            return True
        return self._wait == "poll" and self._until_reviewed(waiting)

    def answers(self, used: Mapping[str, str]) -> list[HumanLabel]:
        """Decisions on posts of the run that no round has used, in order of review.

        A post on which every reviewer was unsure has none; of a contested one the first label counts.

        Args:
            used: Post id -> the label that earlier rounds used. Another decision since counts anew.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with opened_ledger(self._folder) as ledger:
            if ledger is None:
                return []
            entries = {
                entry.post_id: (batch, entry)
                for batch in ledger.batches()
                for drawn in [frozenset(ledger.drawn(batch))]
                for entry in ledger.population(batch)
                if entry.post_id in drawn
            }
            return [
                _human_label(decision, decision.label, *entries[decision.post_id])
                for decision in ledger.decisions()
                if decision.label is not None and used.get(decision.post_id) != decision.label
            ]

    def close(self) -> None:
        """Let go of the criticizer; safe to repeat."""
        if self._criticizer is not None:
            self._criticizer.close()

    def _ask(self, number: int) -> None:
        """Draw the sample that follows round `number`, unless it was drawn or nothing may be spent."""
        with opened_ledger(self._folder) as ledger:
            drawn = {} if ledger is None else {batch: ledger.drawn(batch) for batch in ledger.batches()}
            if batch_after(number) in drawn:
                return
            base, rate, seed = self._budget, self._double_annotation_rate, self._seed
            if ledger is not None:
                base, seed = ledger.base_budget, ledger.seed
                rate = ledger.double_annotation_rate
                if base + ledger.allowed(RECIPE) < self._budget:
                    ledger.allow(RECIPE, self._budget - base)
        asked = {post_id for posts in drawn.values() for post_id in posts}
        spent = sum(len(posts) for batch, posts in drawn.items() if not batch.startswith(AUDIT))
        left = sum(post_id not in asked for post_id in verdicts_among(self._folder, "divergent"))
        sample = min(self._per_round, self._budget - spent, left)
        if sample < 1:
            return
        request_reviews(
            self._folder, budget=base, batch=batch_after(number), sample=sample, rule=self._rule,
            floor=self._floor, double_annotation_rate=rate, seed=seed, estimator=self._criticizer,
        )  # fmt: skip

    def _until_reviewed(self, waiting: Waiting) -> bool:
        """Look until every post has a decision; Ctrl-C ends the run in good order."""
        from tqdm import tqdm

        print(waiting, file=sys.stderr, flush=True)
        with tqdm(
            total=waiting.posts, initial=waiting.posts - waiting.open, unit="post", desc="reviews",
            disable=not self._progress,
        ) as bar:  # fmt: skip
            while waiting.open:
                time.sleep(self._poll_seconds)
                waiting = waiting_for(self._folder) or waiting
                bar.update(waiting.posts - waiting.open - bar.n)
        return True


def waiting_for(folder: RunFolder) -> Waiting | None:
    """What the loop has sent to review and how much of it is open; None where it has sent nothing.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    with opened_ledger(folder) as ledger:
        if ledger is None:
            return None
        own = [batch for batch in ledger.batches() if _OWN.fullmatch(batch)]
        posts = [post_id for batch in own for post_id in ledger.drawn(batch)]
        decided = {decision.post_id for decision in ledger.decisions()}
    return Waiting(ledger.path, len(posts), sum(one not in decided for one in posts)) if posts else None


_OWN = re.compile(r"round [0-9]+")


def _human_label(decision: Decision, label: str, batch: str, entry: ReviewItem) -> HumanLabel:
    return HumanLabel(
        decision.post_id, label, tuple(review.reviewer for review in decision.reviews), decision.contested,
        batch, round(entry.inclusion, 9), entry.machine_label,
    )  # fmt: skip
