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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from agents.ask.annotator import AnnotationPrompts
from agents.ask.criticizer import Criticizer
from backbones.progress import ProgressBar
from selftrain._util.choices import Rule
from selftrain.data.context import RunContext
from selftrain.panels import ModelServers, brief_of
from selftrain.review.criticism import LoopCriticizer
from selftrain.review.ledger import opened_ledger
from selftrain.review.ledger_reader import LEDGER, is_begun
from selftrain.review.sampling import AUDIT, request_reviews, verdicts_among
from selftrain.store.run_dir import HumanLabel, RunFolder

Wait = Literal["end", "poll"]
Source = Literal["disagreement", "criticizer"]

RECIPE = "recipe"
"""Purpose in the ledger of what the recipe allows beyond the budget that the ledger was created with."""
POLL_SECONDS = 2.0


def batch_after(number: int) -> str:
    """Return the name of the batch that is drawn when round `number` is finished."""
    return f"round {number}"


class Waiting(NamedTuple):
    """Reviews that a run waits for."""

    ledger: Path  # the file
    posts: int  # posts that the loop sent to review, in all rounds so far
    open: int  # of them, those without a decision

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
        """Return labels of pool posts that no round has used yet.

        Args:
            used: Post id -> the label that earlier rounds used. A post in it is given again only when its
                label has changed since.
        """
        ...

    def close(self) -> None:
        """Let go of what was opened; safe to repeat."""
        ...


@dataclass(frozen=True, kw_only=True)
class HumanReview:
    """People who review in the run's ledger: on the review page, or by export and import.

    Args:
        budget: Most posts that the loop may ever send to review; 0: it sends none, and uses what others did.
        per_round: Most of them after one round.
        rule, floor: See `selftrain.act.budget.inclusion`.
        source: Where error estimates come from: the agents' "disagreement", or a "criticizer".
        strategy: How the criticizer is asked: a name of `agents.ask.criticizer.STRATEGIES`.
        servers, model: Of the criticizer; none: those of `served`.
        double_annotation_rate: Share of the posts that two people review; a ledger that is
            there keeps its own.
        wait: While reviews are missing, "end" the run in good order, or "poll" until they are there.
        poll_seconds: Between two looks.
        served: How pictures are sent to the criticizer, where its answers are kept and what it may cost.
    """

    budget: int = 0
    per_round: int = 50
    rule: Rule = "exponential"
    floor: float = 0.1
    source: Source = "disagreement"
    strategy: str = "devils_advocate"
    servers: Sequence[str] = ()
    model: str = ""
    double_annotation_rate: float = 0.0
    wait: Wait = "end"
    poll_seconds: float = POLL_SECONDS
    served: ModelServers = field(default_factory=ModelServers)

    def for_run(self, run: RunContext) -> LedgerReviewers | None:
        """Return the people who review for the run; None: nobody is asked, and nobody has reviewed it.

        Raises:
            PromptFileError, StoreError: A criticizer cannot be set up.
        """
        if not self.budget and not is_begun(run.folder.path / LEDGER):
            return None
        criticizer = None
        if (served := self.critic()) is not None:
            prompts = AnnotationPrompts(brief_of(run.task), text_chars=served.text_chars)
            asks = Criticizer(prompts, self.strategy, rationale_chars=served.rationale_chars, seed=run.seed)
            posts = {post.id: post for post in run.corpus.posts}
            criticizer = LoopCriticizer(served.runner_for(run), asks, posts, run.folder)
        return LedgerReviewers(run.folder, self, seed=run.seed, progress=run.progress, criticizer=criticizer)

    def critic(self) -> ModelServers | None:
        """Return the model that criticizes; None: none does."""
        if self.budget <= 0 or self.source != "criticizer":
            return None
        own = {"servers": tuple(self.servers), "model": self.model} if self.servers else {}
        return self.served.model_copy(update=own)


class LedgerReviewers:
    """The people of `HumanReview` at work in a run; implements `Reviewers`.

    `seed` is of the draws, where the ledger has none of its own. `criticizer` estimates which labels are
    wrong, and is closed here; None: the agents' disagreement does.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: HumanReview,
        *,
        seed: int = 0,
        progress: bool = False,
        criticizer: LoopCriticizer | None = None,
    ) -> None:
        self._folder, self._settings = folder, settings
        self._seed, self._progress, self._criticizer = seed, progress, criticizer

    def ready(self, number: int) -> bool:
        """Send posts to review before round `number`, and say whether all that were sent have a decision.

        The first round has no divergent posts before it. Safe to repeat: what was drawn stays drawn.
        """
        if number > 1 and self._settings.budget:
            self._ask(number - 1)
        waiting = waiting_for(self._folder) if self._settings.budget else None
        if waiting is None or not waiting.open:
            return True
        return self._settings.wait == "poll" and self._until_reviewed(waiting)

    def answers(self, used: Mapping[str, str]) -> list[HumanLabel]:
        """See `Reviewers.answers`."""
        return unused_labels(self._folder, used)

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
            base, rate, seed = self._settings.budget, self._settings.double_annotation_rate, self._seed
            if ledger is not None:
                base, seed = ledger.base_budget, ledger.seed
                rate = ledger.double_annotation_rate
                if base + ledger.allowed(RECIPE) < self._settings.budget:
                    ledger.allow(RECIPE, self._settings.budget - base)
        asked = {post_id for posts in drawn.values() for post_id in posts}
        spent = sum(len(posts) for batch, posts in drawn.items() if not batch.startswith(AUDIT))
        left = sum(post_id not in asked for post_id in verdicts_among(self._folder, "divergent"))
        sample = min(self._settings.per_round, self._settings.budget - spent, left)
        if sample < 1:
            return
        request_reviews(
            self._folder, budget=base, batch=batch_after(number), sample=sample, rule=self._settings.rule,
            floor=self._settings.floor, double_annotation_rate=rate, seed=seed, estimator=self._criticizer,
        )  # fmt: skip

    def _until_reviewed(self, waiting: Waiting) -> bool:
        """Look until every post has a decision; Ctrl-C ends the run in good order."""
        print(waiting, file=sys.stderr, flush=True)
        with ProgressBar(
            total=waiting.posts, initial=waiting.posts - waiting.open, desc="reviews",
            disable=not self._progress,
        ) as bar:  # fmt: skip
            while waiting.open:
                time.sleep(self._settings.poll_seconds)
                waiting = waiting_for(self._folder) or waiting
                bar.update(waiting.posts - waiting.open - bar.n)
        return True


def waiting_for(folder: RunFolder) -> Waiting | None:
    """Return what the loop has sent to review and how much is open; None where it has sent nothing."""
    with opened_ledger(folder) as ledger:
        if ledger is None:
            return None
        own = [batch for batch in ledger.batches() if _OWN.fullmatch(batch)]
        posts = [post_id for batch in own for post_id in ledger.drawn(batch)]
        decided = {decision.post_id for decision in ledger.decisions()}
    return Waiting(ledger.path, len(posts), sum(one not in decided for one in posts)) if posts else None


def unused_labels(folder: RunFolder, used: Mapping[str, str]) -> list[HumanLabel]:
    """Return decisions on posts of the run that no round has used, or used otherwise, in order of review.

    A post on which every reviewer was unsure has none; of a contested one the first label counts. For `used`
    see `Reviewers.answers`.
    """
    with opened_ledger(folder) as ledger:
        if ledger is None:
            return []
        drawn = ledger.all_drawn()
        return [
            HumanLabel(
                one.post_id, one.label, tuple(review.reviewer for review in one.reviews), one.contested,
                batch, round(entry.inclusion, 9), entry.machine_label,
            )
            for one in ledger.decisions()
            for batch, entry in [drawn[one.post_id]]
            if one.label is not None and used.get(one.post_id) != one.label
        ]  # fmt: skip


_OWN = re.compile(r"round [0-9]+")
