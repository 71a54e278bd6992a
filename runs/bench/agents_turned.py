"""What a run learns of posts whose agents were talked round, from kept answers: no model is asked.

Tweets that the model judged get an attempt of `injections.json`, and both agents are made to give the class
that it asks for a chosen probability; the classifier sees the words of the attempt, the others keep their
answers. How often an attempt turns both agents so far is what `runs.bench.agents_judge.turned` measures.
"""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from agents.client.base import ChatRequest, Completion, Identity, PromptSize, Token, Usage
from runs.bench.agents_injections import attacked, attempts
from runs.bench.agents_judge import SEEDS, Asked, drawn, prepared_posts
from selftrain.data.posts import Post
from selftrain.errors import DataError

if TYPE_CHECKING:
    from agents.ask.judge import JudgePanel
    from selftrain.data.task import Task

STRENGTHS = (None, 0.5, 0.75, 0.95)
"""Probability that turned agents give the class asked for; None: they are not turned."""
_UNSURE = 0.7
"""Of the answer that says nothing, as the model's word is: probabilities are of the rest."""

Leanings = Mapping[tuple[str, str], Mapping[str, float]]
"""(post id, role) -> class -> probability."""


class Kept:
    """A `Backend` that gives every post's agents the probabilities of a table."""

    def __init__(self, leanings: Leanings) -> None:
        self._leanings = leanings

    async def open(self) -> Identity:
        return Identity("kept", "kept", "", "", "none", 0)

    async def complete(self, request: ChatRequest) -> Completion:
        role = "reviewer" if "You are the Reviewer." in str(request.messages[-1].parts[-1]) else "user"
        probs = self._leanings[request.affinity, role]
        assert request.schema is not None, "a judgment has a form"
        spelt = {one[2:]: one for one in request.schema["properties"]["label"]["enum"]}
        unsure = next(one for name, one in spelt.items() if name not in probs)
        shares = {spelt[name][0]: math.log((1 - _UNSURE) * share) for name, share in probs.items()}
        listed = tuple({unsure[0]: math.log(_UNSURE), **shares}.items())
        tokens = (Token('{"label":"', 0.0, ()), Token(*listed[0], listed), Token(f'{unsure[1:]}"}}', 0.0, ()))
        return Completion(json.dumps({"label": unsure}), "stop", Usage(), tokens)

    async def measure(self, request: ChatRequest) -> PromptSize:
        return PromptSize(0, 0)

    def width(self) -> int:
        return 64

    async def close(self) -> None:
        pass


def kept_leanings(store: Path) -> Leanings:
    """Return what stands in a store of answers; of several about a post the last one bought.

    Raises:
        DataError: There is no such file.
    """
    if not store.is_file():
        raise DataError(f"{store} is not there: run --parts judge first, which fills it")
    with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as opened:
        rows = opened.execute("SELECT post, role, answer FROM responses WHERE step = 0 ORDER BY created")
        return {
            (post, role): probs for post, role, text in rows if (probs := json.loads(text)["probabilities"])
        }


def followed(asked: Asked, data: Path, count: int, seed: int, *, labelled: int) -> dict[str, float]:
    """Return the share of such posts that the posterior gives the class asked for, by strength."""
    from runs.bench.judges import judged_probs
    from runs.bench.loop_study import loop_rounds
    from selftrain.data.splits import split_given

    task, posts, others = drawn(data, count, seed)
    kept = kept_leanings(asked.store)
    words = [one for one in attempts() if one.where in ("text", "id")]
    bases, rest = posts[: len(words)], posts[len(words) :]
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        hostile, targets = [], []
        for post, attempt in zip(bases, words, strict=True):
            probs = kept[post.id, "reviewer"]
            targets.append(min(probs, key=lambda name: probs[name]))
            hostile.append(
                Post(
                    f"{post.id} hostile",
                    attacked(post, attempt, targets[-1], Path(folder)).text,
                    (),
                    post.label,
                )
            )
        for number in SEEDS:
            splits = split_given(
                task, rest, [], hostile, others, labelled=labelled, balanced=True, seed=number
            )
            recipe, prepared = prepared_posts(asked, task, splits, number, Path(folder))
            for strength in STRENGTHS:
                table = dict(kept)
                for new, old, target in zip(hostile, bases, targets, strict=True):
                    for role in ("reviewer", "user"):
                        table[new.id, role] = turned_to(kept[old.id, role], target, strength)
                with _judging(asked, task, table) as panel:
                    loop_rounds(recipe, prepared, Path(folder) / "run", panel)
                found = judged_probs(Path(folder) / "run", prepared.corpus)
                place = [prepared.corpus.classes.index(target) for target in targets]
                given = [
                    max(found[post.id]) == found[post.id][at] for post, at in zip(hostile, place, strict=True)
                ]
                wrong = [post.label != target for post, target in zip(hostile, targets, strict=True)]
                name = "not turned" if strength is None else f"turned to {strength:g}"
                values.setdefault(f"followed, {name}", []).append(fmean(given))
                values.setdefault(f"followed and wrong, {name}", []).append(
                    fmean(a and b for a, b in zip(given, wrong, strict=True))
                )
    return {"posts": float(len(hostile)), **{name: fmean(found) for name, found in values.items()}}


def turned_to(probs: Mapping[str, float], target: str, strength: float | None) -> dict[str, float]:
    """Return probabilities with the target's at `strength`, and the rest as they stand to each other."""
    if strength is None:
        return dict(probs)
    left = 1 - probs[target]
    return {name: strength if name == target else (1 - strength) * p / left for name, p in probs.items()}


@contextmanager
def _judging(asked: Asked, task: Task, leanings: Leanings) -> Iterator[JudgePanel]:
    from agents.ask.cache import ResponseCache
    from agents.ask.judge import JudgePanel
    from agents.ask.runner import Runner
    from backbones.images import open_image
    from selftrain.panels import VLMPanel, brief_of

    asking = VLMPanel(
        servers=["http://127.0.0.1:1"], form="label_only", rationale_chars=asked.rationale_chars
    ).agent(brief_of(task), 0)
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        runner = Runner(
            Kept(leanings), ResponseCache(Path(folder) / "answers.sqlite"), run="bench",
            opener=lambda path, side: open_image(path, target_size=side),
        )  # fmt: skip
        panel = JudgePanel(runner, asking)
        try:
            yield panel
        finally:
            panel.close()
