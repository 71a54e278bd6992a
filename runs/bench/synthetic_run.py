"""A run folder of any size without a model: random posts, made-up judgments, written by the real writers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from agents.judgment import Judgment, State, Verdict
from selftrain._util.types import Json
from selftrain.data.corpus import Corpus
from selftrain.data.posts import Post
from selftrain.data.task import Task, TaskClass, dump_task
from selftrain.models.metrics import evaluate
from selftrain.rounds import (
    Cost,
    CurvePoint,
    GroupCounts,
    PseudoLabels,
    RoundResult,
    agent_counts,
    candidate_sets,
)
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import Scored, write_scores

POSITIVE, NEGATIVE = "harmful", "harmless"
LABELLED, MEASURED = 60, 400
_WORDS = [
    "bench", "garden", "lantern", "market", "river", "window", "bicycle", "orchard", "kettle", "ladder",
    "harbour", "meadow", "engine", "candle", "thunder", "pocket", "velvet", "bridge", "copper", "island",
    "pepper", "ribbon", "shadow", "turnip", "violin", "walnut", "yellow", "zipper",
]  # fmt: skip


def synthetic_run(
    place: Path, verdicts: int, *, rounds: int = 5, pictures: int = 1200, seed: int = 0
) -> RunFolder:
    """Make a finished run of `rounds` rounds with `verdicts` verdicts in all, in `place` / "run".

    Args:
        place: An empty folder; the posts lie in it beside the run.
        verdicts: At least one a round.
        rounds: After round 0; every second one is kept.
        pictures: Different pictures; the first so many posts have one each.
        seed: Of every draw.
    """
    random = np.random.default_rng(seed)
    corpus = _corpus(place, verdicts, pictures, random)
    folder = RunFolder(place / "run")
    with folder.locked():
        folder.begin(_recipe(place, rounds), _environment(corpus))
        atomic.write_json(folder.path / "trust.json", _trust())
        for number in range(rounds + 1):
            _round(folder, corpus, number, rounds, random)
    return folder


def _corpus(place: Path, pool: int, pictures: int, random: np.random.Generator) -> Corpus:
    sizes = (LABELLED, MEASURED, pool, MEASURED)
    total = sum(sizes)
    truth = random.integers(0, 2, total).astype(np.int16)
    bounds = np.cumsum((0, *sizes))
    labelled, validation, in_pool, test = (np.arange(a, b, dtype=np.int64) for a, b in pairwise(bounds))
    task = Task(
        "drawn-at-random", (TaskClass(POSITIVE, "one half"), TaskClass(NEGATIVE, "the other half")), POSITIVE,
        "The posts of this run are random words: nothing in it means anything.",
    )  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    dump_task(task, place / "task.toml")
    first = int(in_pool[0])
    images = {first + number: _picture(place, number, random) for number in range(min(pictures, pool))}
    names = (NEGATIVE, POSITIVE)
    posts = [
        Post(
            id=f"post-{number:06d}",
            text=_sentence(random, 24),
            images=(place / images[number],) if number in images else (),
            label=names[truth[number]],
        )
        for number in range(total)
    ]
    atomic.write_jsonl(
        place / "manifest.jsonl",
        (
            {"id": post.id, "text": post.text, "label": post.label}
            | ({"images": [images[number]]} if number in images else {})
            for number, post in enumerate(posts)
        ),
    )
    return Corpus(posts, None, labelled, validation, in_pool, test, truth.copy(), truth, names)


def _sentence(random: np.random.Generator, words: int) -> str:
    return " ".join(random.choice(_WORDS, words)).capitalize() + "."


def _picture(place: Path, number: int, random: np.random.Generator) -> str:
    """A few rectangles; like a photograph it is neither empty nor noise."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (640, 480), tuple(map(int, random.integers(0, 256, 3))))
    pen = ImageDraw.Draw(image)
    for _ in range(24):
        x, y = map(int, random.integers(0, 480, 2))
        width, height = map(int, random.integers(10, 200, 2))
        pen.rectangle((x, y, x + width, y + height), fill=tuple(map(int, random.integers(0, 256, 3))))
    name = f"images/{number:05d}.jpg"
    (place / "images").mkdir(exist_ok=True)
    image.save(place / name, quality=85)
    return name


def _recipe(place: Path, rounds: int) -> Json:
    return {
        "seed": 0,
        "data": {"manifest": str(place / "manifest.jsonl"), "task": str(place / "task.toml")},
        "selection": {"k": 0, "reselect_divergent": False},
        "rounds": {"max": rounds, "patience": rounds + 1},
    }


def _environment(corpus: Corpus) -> Json:
    splits = {name: len(getattr(corpus, name)) for name in ("labelled", "validation", "pool", "test")}
    return {
        "identity": {"posts": "0" * 64, "backbone": "0" * 64, "task": "drawn-at-random"},
        "simulated": True,
        "classes": {"positive": corpus.positive, "all": list(corpus.shown)},
        "splits": splits,
    }


def _round(
    folder: RunFolder, corpus: Corpus, number: int, rounds: int, random: np.random.Generator
) -> None:  # fmt: skip
    path = folder.open_round(number)
    positions = np.array_split(corpus.pool, rounds)[number - 1].tolist() if number else []
    verdicts = [_verdict(corpus, position, random) for position in positions]
    if number:
        atomic.write_jsonl(path / "verdicts.jsonl", (verdict.to_json() for verdict in verdicts))
    sharpness = 0.8 + 0.1 * number
    scored = {
        name: _scored(corpus, getattr(corpus, name), sharpness, random) for name in ("validation", "test")
    }
    write_scores(path, scored, corpus.classes)
    sets = candidate_sets(corpus, verdicts)
    validation = evaluate(scored["validation"].labels, scored["validation"].logits)
    result = RoundResult(
        number=number, kept=number % 2 == 0, score=validation.macro_f1, simulated=True,
        validation=validation,
        test=evaluate(scored["test"].labels, scored["test"].logits),
        sets=sets, flipped=(), agents=agent_counts(corpus, verdicts),
        training=GroupCounts(
            dict.fromkeys(corpus.shown, LABELLED // 2), sets.consistent.by_class, sets.divergent.posts
        ),
        theta={}, best_epoch=2, curve=_curve(), human=None, trust=None, gains={},
        cost=_cost(len(positions)),
        grown=LABELLED + sets.consistent.posts,
        pseudo_labels=PseudoLabels(sets.consistent.posts, 0, sets.consistent.precision), seconds=1.5,
    )  # fmt: skip
    folder.close_round(number, result.to_json())


def _curve() -> tuple[CurvePoint, ...]:
    losses = ({"loss": 1.0 / epoch, "pn": 0.7 / epoch, "soft": 0.2, "unlabelled": 0.1} for epoch in (1, 2, 3))
    return tuple(CurvePoint(epoch, 0.5, loss) for epoch, loss in enumerate(losses, 1))


def _cost(posts: int) -> Cost:
    return Cost(
        calls=3 * posts, failed=posts // 50, prompt=900 * posts, cached=500 * posts, image=200 * posts,
        completion=60 * posts, seconds=0.02 * posts,
    )  # fmt: skip


def _scored(
    corpus: Corpus, positions: Sequence[int], sharpness: float, random: np.random.Generator
) -> Scored:  # fmt: skip
    labels = corpus.truth[positions]
    logits = (2.0 * labels - 1) * sharpness + random.normal(0, 1, len(labels))
    both = np.stack([np.zeros_like(logits), logits], axis=1).astype(np.float32)
    return Scored([corpus.posts[p].id for p in positions], labels, both)


def _verdict(corpus: Corpus, position: int, random: np.random.Generator) -> Verdict:
    """Two agents who abstain now and then, seldom fail, and judge again where they differ."""
    truth = int(corpus.truth[position])
    said = truth if random.random() < 0.9 else 1 - truth
    judgments = [_judgment(role, 0, truth, corpus, random) for role in ("reviewer", "user")]
    if len({one.label for one in judgments} | {corpus.classes[said]}) > 1:
        judgments += [_judgment(role, 1, truth, corpus, random) for role in ("reviewer", "user")]
    post_id = corpus.posts[position].id
    probability = float(random.uniform(0.5, 1))
    return Verdict(post_id, corpus.classes[said], probability, tuple(judgments))


def _judgment(
    role: str, step: int, truth: int, corpus: Corpus, random: np.random.Generator
) -> Judgment:  # fmt: skip
    draw = random.random()
    rationale = _sentence(random, 28)
    if draw < 0.02:
        return Judgment(role, step, State.FAILED, None, None, rationale, "made up")
    if draw < 0.1:
        return Judgment(role, step, State.ABSTAIN, None, None, rationale, "made up")
    label = corpus.classes[truth if draw < 0.88 else 1 - truth]
    return Judgment(role, step, State.LABEL, label, float(random.uniform(0.5, 1)), rationale, "made up")


def _trust() -> Json:
    agent = {
        "confusion": {
            POSITIVE: {POSITIVE: 27, NEGATIVE: 2, "(abstain)": 1, "(failed)": 0},
            NEGATIVE: {POSITIVE: 4, NEGATIVE: 24, "(abstain)": 1, "(failed)": 1},
        },
        "answered": 57,
        "accuracy": {"value": 0.894737, "low": 0.788, "high": 0.951},
        "balanced_accuracy": {"value": 0.894089, "low": 0.785, "high": 0.943},
        "near_chance": False,
        "calibration": {
            "brier": 0.09, "ece": 0.04,
            "bins": [
                {"low": 0.5, "high": 0.6, "count": 9, "confidence": 0.55, "accuracy": 0.5},
                {"low": 0.9, "high": 1.0, "count": 48, "confidence": 0.95, "accuracy": 0.96},
            ],
        },
    }  # fmt: skip
    return {"simulated": True, "agents": {"reviewer": agent, "user": agent}, "kappa": {"reviewer/user": 0.79}}
