"""Estimate what vision-language agents would cost, before anything of a pool is spent on.

Prompts are measured exactly, on a sample of the pool, by the server's own tokenizer. How long answers are and
how fast they come is taken from a short probe on labelled posts, whose answers the run needs anyway and finds
in its store. How often agents disagree is not known before they are asked: calls are given as a range.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from agents.ask.judge import JudgePanel
from agents.judgment import Judgment, State
from selftrain.config import Recipe
from selftrain.data.corpus import Corpus

SAMPLE, PROBE = 16, 8
"""Pool posts whose prompts are measured; labelled posts that are judged to see the speed."""


class Range(NamedTuple):
    """From nobody disagreeing to everybody being asked again."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = (f"{round(value):,}" for value in self)
        return low if low == high else f"{low} to {high}"


class RunCost(NamedTuple):
    """The cost of a whole run."""

    labelled: int  # labelled posts, judged once
    candidates: int  # most candidates over all rounds
    posts: int  # most different posts among them
    calls: Range  # answers asked of the model
    prompt: Range  # tokens; `image` is part of `prompt`
    image: Range
    completion: Range
    seconds: Range | None  # at the speed of the probe; None when the probe found all its answers in the store
    probe_calls: int  # what the probe took
    probe_seconds: float
    agents: int  # how many there are
    alone: int  # calls that the first of them would take without the others

    def lines(self, cap: int | None = None) -> Iterator[str]:
        """Yield the estimate for people to read; `cap` is the most tokens that the run may take."""
        yield f"labelled       {self.labelled:,} posts, judged once"
        yield f"candidates     at most {self.candidates:,}, on {self.posts:,} posts"
        yield f"calls          {self.calls}"
        yield f"prompt tokens  {self.prompt}, of which pictures {self.image}"
        yield f"answer tokens  {self.completion}"
        if self.seconds is None:
            yield "time           not known: the probe's answers were all in the store"
        else:
            low, high = map(_clock, self.seconds)
            speed = self.probe_calls / self.probe_seconds
            yield f"time           {low} to {high}, at the probe's {speed:.2g} calls a second"
        yield "The lower figures hold if all agree at once, the higher if everybody is asked again each time."
        if self.agents > 1:
            yield (
                f"{self.agents} agents are asked; what each adds to the others is told once they judged the"
                f" labelled posts, in round 1. agents.count = 1 would take {self.alone:,} calls."
            )
        if cap is not None:
            least, most = (p + c for p, c in zip(self.prompt, self.completion, strict=True))
            verdict = (
                "is enough" if most <= cap else "may end the run early" if least <= cap else "is too low"
            )
            yield f"The token cap of {cap:,} {verdict}."


def estimate_cost(recipe: Recipe, corpus: Corpus, panel: JudgePanel) -> RunCost:
    """Estimate the cost of a run, by measuring and by a probe, whose answers are paid for and kept."""
    labelled = [corpus.posts[i] for i in corpus.labelled]
    before, began = panel.usage(), time.monotonic()
    panel.fit(labelled[:PROBE])
    seconds, paid = time.monotonic() - began, panel.usage().minus(before)
    # a rationale as long as they may be: rather an estimate too high than too low
    words = "words of a usual length " * (recipe.vlm.rationale_chars // 24)
    said = Judgment("reviewer", 0, State.LABEL, corpus.positive, None, words, "estimate")
    rng = np.random.default_rng(recipe.seed)
    chosen = rng.choice(corpus.pool, size=min(SAMPLE, len(corpus.pool)), replace=False)
    sizes = panel.measure([corpus.posts[i] for i in chosen], said, corpus.shown[1])

    candidates = most_candidates(recipe)
    posts = min(candidates, len(corpus.pool))
    alone, again = (len(labelled) + posts) * sizes.first_calls, candidates * sizes.review_calls

    def span(first: float, review: float) -> Range:
        return Range(alone * first, alone * first + again * review)

    # tokens of an answer where none was seen: as many characters as allowed, four to a token, and thoughts
    usual = recipe.vlm.rationale_chars / 4 + 16 + recipe.vlm.thinking_tokens
    written = paid.usage.completion / paid.calls if paid.calls else usual
    return RunCost(
        len(labelled),
        candidates,
        posts,
        calls=Range(alone, alone + again),
        prompt=span(sizes.first[0], sizes.review[0]),
        image=span(sizes.first[1], sizes.review[1]),
        completion=span(written, written),
        seconds=span(seconds / paid.calls, seconds / paid.calls) if paid.calls else None,
        probe_calls=paid.calls,
        probe_seconds=seconds,
        agents=sizes.first_calls,
        alone=len(labelled) + posts,
    )


def most_candidates(recipe: Recipe) -> int:
    """Return the most candidates over all rounds."""
    candidates = recipe.selection.k * recipe.rounds.max
    return candidates if recipe.rounds.budget is None else min(candidates, recipe.rounds.budget)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )
