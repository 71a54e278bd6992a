"""A small model as Reviewer and User on published tweets, and what the loop gains from it.

As many tweets of each class are drawn once and judged once, by both roles; every seed draws its labelled
posts out of them and has the rest as pool, so that all seeds share the answers in the store. Others are test.
Stopped at any moment, the same command asks for nothing twice.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runs.bench.agents_data import drawn_posts
from runs.bench.judges import ours
from selftrain.config import load_recipe

if TYPE_CHECKING:
    from agents.ask.judge import JudgePanel
    from agents.judgment import Judgment
    from runs.bench.agents_injections import Said, Trial
    from selftrain.config import Recipe
    from selftrain.data.posts import Post
    from selftrain.data.preparation import PreparedData
    from selftrain.data.splits import Splits
    from selftrain.data.task import Task

DRAWN = 6_000
"""Tweets among which those of each class are drawn: one in six is of the rarer one."""
TEST = 600
SEEDS = range(5)
PULLED = 40
"""Tweets on which agents are asked again."""
CONCURRENCY = 32
TIMEOUT = 600.0
"""Seconds of one call: two cores answer thirty at once."""


class Asked(NamedTuple):
    """The recipe's [vlm], as far as it is not the usual one."""

    servers: tuple[str, ...]
    store: Path
    form: str
    rationale_chars: int
    label_apart: bool

    def overrides(self) -> list[str]:
        """Return section.key=value each."""
        servers = json.dumps(list(self.servers))
        return [
            "agents.kind=vlm", "agents.on_near_chance=continue", f"vlm.servers={servers}",
            f"vlm.form={self.form}", f"vlm.rationale_chars={self.rationale_chars}",
            f"vlm.label_apart={json.dumps(self.label_apart)}", f"vlm.store={self.store.resolve()}",
            f"vlm.concurrency={CONCURRENCY}", f"vlm.timeout={TIMEOUT}",
        ]  # fmt: skip


def judged(asked: Asked, data: Path, count: int, seed: int) -> dict[str, float]:
    """Return how well each role judges `count` tweets, by its word and by its probability; and the cost."""
    task, posts, _ = drawn(data, count, seed)
    return dict(_judge(asked, task, posts))


def gained(asked: Asked, data: Path, count: int, seed: int, *, labelled: int) -> dict[str, float]:
    """Return macro-F1 on test of the labels alone and of the loop, seed by seed, and the mean difference."""
    from selftrain.data.splits import split_given

    task, posts, others = drawn(data, count, seed)
    gains: dict[str, list[float]] = {}
    values: dict[str, float] = {}
    for number in SEEDS:
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
            splits = split_given(task, posts, [], [], others, labelled=labelled, balanced=True, seed=number)
            found = _one_seed(asked, task, splits, number, Path(folder))
        reached = found.pop("macro_f1")
        for name, value in found.items():
            values[f"{name}, seed {number}"] = value
            if name.startswith("macro_f1"):
                gains.setdefault(name.removeprefix("macro_f1 of "), []).append(100 * (reached - value))
        values[f"macro_f1 of the loop, seed {number}"] = reached
    for name, points in gains.items():
        values |= {f"points over {name}": fmean(points), f"sd of points over {name}": stdev(points)}
    return values


def turned(asked: Asked, data: Path, count: int, seed: int, *, labelled: int) -> dict[str, float]:
    """Return how many leanings posts that give orders turn, and what a run then learns of these posts.

    The first tweets get an attempt in words each. The others are labelled posts and pool, seed by seed; the
    pool also has those with orders and those with harmless words in their place. A flip is unseen where both
    agents lean to the class that is asked for, and the posterior gives the post that class.
    """
    from runs.bench.agents_injections import asked_about, attempts, shares, trials
    from runs.bench.judges import judged_probs
    from runs.bench.loop_study import loop_rounds
    from selftrain.data.splits import split_given

    task, posts, others = drawn(data, count, seed)
    tried = sum(one.where in ("text", "id") for one in attempts())
    learned: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        with _judges(asked, task) as judges:
            base = judges.predict_out_of_fold(posts[:tried])["reviewer"]
            made = trials(posts[:tried], base, task.names, Path(folder), pictures=False)
            said = asked_about(judges, made)
        pool = [post for one in made for post in (one.hostile, one.harmless)]
        for number in SEEDS:
            splits = split_given(
                task, posts[tried:], [], pool, others, labelled=labelled, balanced=True, seed=number
            )
            recipe, prepared = prepared_posts(asked, task, splits, number, Path(folder))
            loop_rounds(recipe, prepared, Path(folder) / "run")
            probs = judged_probs(Path(folder) / "run", prepared.corpus)
            for name, value in seen_by_nobody(made, said, probs, prepared.corpus.classes).items():
                learned.setdefault(name, []).append(value)
    means = {name: fmean(values) for name, values in learned.items()}
    return {"posts": float(len(made)), **shares(made, said), **means}


def pulled(asked: Asked, data: Path, count: int, seed: int) -> dict[str, float]:
    """Return how often the classifier's word pulls an agent over, on labelled posts.

    Each post is verified as if the classifier gave it the class that its Reviewer does not lean to; every
    agent is asked again, having seen that word and the other's, and leans to that class then or does not.
    """
    from agents.judgment import Candidate
    from runs.bench.agents_injections import leaning

    task, posts, _ = drawn(data, count, seed)
    with _judges(asked, task) as judges:
        base = judges.predict_out_of_fold(posts[:PULLED])["reviewer"]
        own = [leaning(one) for one in base]
        others = [next(name for name in task.names if name != one) for one in own]
        verdicts = judges.verify(
            [Candidate(post, name, 0.9) for post, name in zip(posts, others, strict=False)]
        )
    found: dict[str, list[tuple[bool, bool]]] = {}
    for post, name, verdict in zip(posts, others, verdicts, strict=False):
        for role, (first, *_, last) in verdict.by_agent().items():
            if leaning(first) != name:  # who is of the classifier's mind cannot be pulled over
                found.setdefault(role, []).append((leaning(last) == name, name == post.label))
    values = {"posts": float(len(verdicts))}
    for role, rows in found.items():
        values[f"of another mind, {role}"] = float(len(rows))
        values[f"pulled over, {role}"] = fmean(over for over, _ in rows)
        values[f"pulled over to the wrong class, {role}"] = fmean(over and not right for over, right in rows)
    return values


def seen_by_nobody(
    made: Sequence[Trial], said: Said, probs: Mapping[str, Sequence[float]], classes: Sequence[str]
) -> dict[str, float]:
    """Return the shares of posts that are learned as they ask: by the posterior's word, and by all parties'.

    Of the latter also those whose label the class asked for is not: where it is, nothing wrong is learned.
    """
    from runs.bench.agents_injections import as_asked

    targets = [one.target for one in made]
    sides = {"": ([one.hostile for one in made], said.hostile)}
    sides["control_"] = ([one.harmless for one in made], said.harmless)
    found: dict[str, float] = {}
    for prefix, (posts, answers) in sides.items():
        given = [classes[int(np.argmax(probs[post.id]))] for post in posts]
        learned = [label == target for label, target in zip(given, targets, strict=True)]
        unseen = np.logical_and(as_asked(targets, *answers.values()), learned)
        wrong = [post.label != target for post, target in zip(posts, targets, strict=True)]
        found |= {
            f"{prefix}flip_rate_posterior": fmean(learned),
            f"{prefix}flip_rate_unseen": float(unseen.mean()),
            f"{prefix}flip_rate_unseen_and_wrong": float((unseen & wrong).mean()),
        }
    return found


def drawn(data: Path, count: int, seed: int) -> tuple[Task, list[Post], list[Post]]:
    """Return the task, the tweets to judge, half of each class, and test tweets, likewise."""
    task, found = drawn_posts("hsol", data, DRAWN, seed)
    sides = [[post for post in found if post.label == name] for name in task.names]
    half, test = count // len(sides), TEST // len(sides)
    judge = [post for side in sides for post in side[:half]]
    random.Random(seed).shuffle(judge)
    return task, judge, [post for side in sides for post in side[half : half + test]]


@contextmanager
def _judges(asked: Asked, task: Task) -> Iterator[JudgePanel]:
    """Yield Reviewer and User, whose answers stay in the store."""
    from agents.ask.judge import JudgePanel
    from selftrain.panels import VLMPanel, brief_of, cache_beside

    panel = VLMPanel(
        servers=asked.servers, form=asked.form, rationale_chars=asked.rationale_chars,
        label_apart=asked.label_apart, concurrency=CONCURRENCY, timeout=TIMEOUT,
    )  # fmt: skip
    runner = panel.runner(cache_beside(asked.store, asked.store), run="bench", max_pixels=1)
    judges = JudgePanel(runner, panel.agent(brief_of(task), 0), always_cross_review=True)
    try:
        yield judges
    finally:
        judges.close()


def _judge(asked: Asked, task: Task, posts: Sequence[Post]) -> Iterator[tuple[str, float]]:
    from agents.trust import trust

    with _judges(asked, task) as judges:
        figures, answers = trust(judges, posts)
        spent = judges.usage()
    truth = [post.label for post in posts]
    for role, agent in figures.agents.items():
        yield f"answered by the {role}", float(agent.answered)
        yield f"accuracy of the {role}'s word", agent.accuracy.value
        yield from ((f"{name}, {role}", value) for name, value in _by_probs(truth, answers[role], task.names))
        if agent.reliability is not None:
            yield f"ece of the {role}'s word", agent.reliability.ece
    for pair, kappa in figures.kappa.items():
        if kappa is not None:
            yield f"kappa of {pair}", kappa
    yield "posts", float(len(posts))
    yield "calls", float(spent.calls)
    yield "calls from the store", float(spent.stored)
    yield "tokens a call", spent.usage.total / max(spent.calls, 1)
    yield "answer tokens a call", spent.usage.completion / max(spent.calls, 1)


def _by_probs(
    truth: Sequence[str | None], answers: Sequence[Judgment], names: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Yield what a role's probability is worth, as it comes and as it is fitted on the other posts."""
    from sklearn.metrics import cohen_kappa_score, roc_auc_score

    known = [(t, one.details) for t, one in zip(truth, answers, strict=True) if "uncalibrated" in one.details]
    yield "without probabilities", float(len(truth) - len(known))
    if len({t for t, _ in known}) < 2:
        return
    positive = np.array([t == names[0] for t, _ in known])
    raw, fitted = (
        np.array([details[key][names[0]] for _, details in known])
        for key in ("uncalibrated", "probabilities")
    )
    yield "auc", float(roc_auc_score(positive, raw))
    yield "accuracy by raw probability", float(np.mean((raw > 0.5) == positive))
    yield "accuracy by fitted probability", float(np.mean((fitted > 0.5) == positive))
    yield "kappa with the truth, fitted", float(cohen_kappa_score(positive, fitted > 0.5))
    bins = np.minimum((fitted * 10).astype(int), 9)
    gaps = [np.sum(bins == b) * abs(fitted[bins == b].mean() - positive[bins == b].mean()) for b in set(bins)]
    yield "ece, fitted", float(sum(gaps) / len(known))


def prepared_posts(
    asked: Asked, task: Task, splits: Splits, seed: int, folder: Path
) -> tuple[Recipe, PreparedData]:
    """Return the recipe that judges the whole pool in one round, and its posts with their features."""
    from backbones import load_backbone
    from selftrain.data.preparation import SplitPosts, prepare_split

    recipe_file = folder / "recipe.toml"
    recipe_file.write_text(
        f'seed = {seed}\n[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\nduplicates = "off"\n',
        encoding="utf-8",
    )
    pool = len(splits.pool)
    recipe = load_recipe(recipe_file, [*asked.overrides(), *ours(pool, pool)])
    split = SplitPosts(task, splits, recipe.data, seed, [])
    return recipe, prepare_split(recipe, split, load_backbone("minilm_efficientnet"))


def _one_seed(asked: Asked, task: Task, splits: Splits, seed: int, folder: Path) -> dict[str, float]:
    """Return macro-F1 of the loop, of its round 0, and of logistic regression on the labels."""
    from runs.bench import baselines
    from runs.bench.loop_study import loop_rounds, summarise

    recipe, prepared = prepared_posts(asked, task, splits, seed, folder)
    found = summarise(loop_rounds(recipe, prepared, folder / "run"))
    plain = baselines.labels_only(prepared.corpus, 10.0)
    return {
        "macro_f1": found["macro_f1"], "calls of the loop": found["calls"],
        "macro_f1 of the labels alone": plain["macro_f1"],
        "macro_f1 of its round 0": found["macro_f1_round_0"],
        "precision of what it learned": found["precision_consistent"],
        "learned": found["grown"] - len(splits.labelled),
    }  # fmt: skip
