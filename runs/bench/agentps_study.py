"""One training and its figures on posts that it has not seen: the cells of the AgentPS study."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from selftrain._util.types import FloatArray
from selftrain.agentps.checkpoint import WEIGHTS, load_weights
from selftrain.agentps.dataset import example
from selftrain.agentps.evaluate import QuestionScores, headline, question_scores, score
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import build
from selftrain.agentps.recipe import Divisor, ModelSettings, TrainingSettings
from selftrain.agentps.train import train
from selftrain.data.importers import hateful_memes as memes
from selftrain.data.importers import hsol
from selftrain.data.importers.base import Record
from selftrain.data.manifest import read_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass
from selftrain.models.metrics import curve, threshold_intervals, threshold_metrics
from selftrain.models.train_loop import best_epoch

# as published but for the rank: 128 of 576 dimensions would be a fifth of the model
RANK, ALPHA = 16, 32
RATE = 3e-4
VALIDATION = 300
HARMEME = Task(
    name="harmful-memes",
    classes=(
        TaskClass("harmful", "harms a person, a group or society"),
        TaskClass("harmless", "harms nobody"),
    ),
    positive="harmful",
    policy="A meme is harmful when it abuses, threatens or misleads to somebody's damage.",
)


def hateful_memes(
    variant: str, n: int, seed: int, *, flipped: float, data: Path, work: Path, epochs: int, cpu: bool
) -> dict[str, float]:
    """Words of n training posts drawn by the seed; measured on the seen development posts.

    Args:
        variant: "vanilla", "multitask" or "agentps".
        n: Training posts.
        seed: Of the draw, of first weights and of the order.
        flipped: Share of the process labels of the training posts turned round, in [0, 1].
        data: Folder that holds fhm_text/.
        work: Where the training stands.
        epochs: Passes; the best of them by AUC on other training posts is measured.
        cpu: Even where there is a GPU.

    Returns:
        Figures of the final question: those of `metrics.figures`, and F1 at the threshold that is best on
        the validation posts; mean AUC of the process questions, where they are asked.
    """
    found: dict[str, list[Post]] = {"train": [], "test": []}
    for record in memes.read(data / "fhm_text").records:
        if isinstance(record, Record):
            post = Post(record.id, record.text, (), record.label, record.process)
            found[str(record.extra["split"])].append(post)
    order = np.random.default_rng(seed).permutation(len(found["train"]))
    drawn = [found["train"][place] for place in order[: n + VALIDATION]]
    posts = _flip(drawn[:n], flipped, seed)
    made = ModelSettings(variant=variant, rank=RANK, alpha=ALPHA, seed=seed)
    name = f"memes-{variant}-{n}-{flipped:g}-{seed}"
    settings = TrainingSettings(epochs=epochs, learning_rate=RATE, metric="auc")
    return _cell(
        made, memes.TASK, posts, drawn[n:], found["test"], settings=settings, folder=work / name, cpu=cpu
    )


def harmeme(
    n: int, seed: int, *, images: bool, data: Path, work: Path, epochs: int, cpu: bool
) -> dict[str, float]:
    """HarMeme, vanilla: n posts to train on, 300 to validate, a tenth of all to test; no copies between them.

    Args and returns as `hateful_memes`, with 95 % intervals of AUC and macro-F1.
    """
    posts = [p for name in ("train", "val") for p in _harmeme_posts(data / "harmeme" / f"{name}.jsonl")]
    order = np.random.default_rng(seed).permutation(len(posts))
    shuffled = [posts[place] for place in order]
    tenth = len(posts) // 10
    test, rest = shuffled[:tenth], shuffled[tenth:]
    seen = {key for post in test for key in _contents(post)}
    rest = [post for post in rest if not seen & set(_contents(post))]
    frames = Frames(count=1, width=224, height=224, repeat=False) if images else None
    made = ModelSettings(variant="vanilla", rank=RANK, alpha=ALPHA, frames=frames, seed=seed)
    settings = TrainingSettings(epochs=epochs, learning_rate=RATE, metric="auc")
    name = work / f"harmeme-{'image' if images else 'text'}-{n}-{seed}"
    return _cell(
        made,
        HARMEME,
        rest[:n],
        rest[n : n + VALIDATION],
        test,
        settings=settings,
        folder=name,
        cpu=cpu,
        wide=True,
    )


COMPOSED = Task(
    name="composed",
    classes=(
        TaskClass("one", "exactly one of the two tweets is offensive"),
        TaskClass("other", "both are, or neither is"),
    ),
    positive="one",
    policy="Of two tweets exactly one is offensive.",
    questions=(
        Question("first", "Is the first tweet offensive?", ("yes", "no")),
        Question("second", "Is the second tweet offensive?", ("yes", "no")),
    ),
)
_LONGEST = 60  # characters of a tweet: pairs of long ones would say no more, and cost twice as much


def composed(
    variant: str,
    n: int,
    seed: int,
    *,
    divisor: Divisor = "posts",
    answered: float = 1.0,
    data: Path,
    work: Path,
    epochs: int,
    cpu: bool,
) -> dict[str, float]:
    """Pairs of HSOL's tweets: "exactly one is offensive" is a function of the two process answers.

    n pairs to train on, n // 3 to validate and n to test; no tweet is in two pairs. Args and returns as
    `hateful_memes`; `answered` is the share of the training pairs with process answers, `divisor` as in
    `TrainingSettings`.
    """
    generator = np.random.default_rng([seed, 3])
    tweets: dict[str | None, list[str]] = {"offensive": [], "inoffensive": []}
    for record in hsol.read(data / "hsol").records:
        if isinstance(record, Record) and len(record.text) <= _LONGEST:
            tweets[record.label].append(record.text)
    drawn = {label: iter(generator.permutation(sorted(set(texts)))) for label, texts in tweets.items()}
    posts = []
    for i in range(n + n // 3 + n):
        offensive = [bool(one) for one in ((i >> 1) & 1, i & 1)]  # the four kinds of pairs, one after another
        texts = [str(next(drawn["offensive" if one else "inoffensive"])) for one in offensive]
        told = i >= n or generator.random() < answered
        answers = dict(zip(("first", "second"), ("yes" if one else "no" for one in offensive), strict=True))
        label = "one" if offensive[0] != offensive[1] else "other"
        text = f"First tweet: {texts[0]}\nSecond tweet: {texts[1]}"
        posts.append(Post(f"pair-{i}", text, (), label, answers if told else {}))
    made = ModelSettings(variant=variant, rank=RANK, alpha=ALPHA, seed=seed)
    settings = TrainingSettings(epochs=epochs, learning_rate=RATE, metric="auc", divisor=divisor)
    return _cell(
        made, COMPOSED, posts[:n], posts[n : n + n // 3], posts[n + n // 3 :], settings=settings,
        folder=work / f"composed-{variant}-{divisor}-{answered:g}-{n}-{seed}", cpu=cpu,
    )  # fmt: skip


def _harmeme_posts(manifest: Path) -> list[Post]:
    return [post for post in read_manifest(manifest).posts if post.label is not None]


def _contents(post: Post) -> list[str]:
    """What makes two posts copies: the same words, or the same picture."""
    pictures = [hashlib.sha256(path.read_bytes()).hexdigest() for path in post.images]
    return [*pictures, *([post.text.strip().lower()] if post.text.strip() else [])]


def _flip(posts: Sequence[Post], share: float, seed: int) -> list[Post]:
    generator = np.random.default_rng([seed, 2])
    other = {"yes": "no", "no": "yes"}

    def noisy(process: Any) -> dict[str, str]:  # noqa: ANN401 -- a mapping
        return {k: other[v] if generator.random() < share else v for k, v in sorted(process.items())}

    return [replace(post, process=noisy(post.process)) for post in posts] if share else list(posts)


def _cell(
    made: ModelSettings,
    task: Task,
    posts: Sequence[Post],
    validation: Sequence[Post],
    test: Sequence[Post],
    *,
    settings: TrainingSettings,
    folder: Path,
    cpu: bool,
    wide: bool = False,
) -> dict[str, float]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=cpu)
    built = build(made, task)
    chosen = [example(post, built.questions) for post in validation]

    def scored(which: Any) -> list[Any]:  # noqa: ANN401
        return list(score(built.model, built.collator, which, batch_size=32, device=accelerator.device))

    folder.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(json.dumps([made.model_dump(), settings.model_dump()]).encode()).hexdigest()
    results = train(
        built, [example(post, built.questions) for post in posts], settings=settings, seed=made.seed,
        folder=folder, identity=identity, accelerator=accelerator,
        validate=lambda _: headline(built.questions, scored(chosen)),
    )  # fmt: skip
    load_weights(built.model, folder / WEIGHTS)
    tested = scored([example(post, built.questions) for post in test])
    *process, final = question_scores(built.questions, tested)
    tuned = _best_threshold(question_scores(built.questions, scored(chosen))[-1])
    result = threshold_metrics(final.found, final.scores)
    result["f1_tuned"] = threshold_metrics(final.found, (final.scores >= tuned).astype(np.float64))["f1"]
    result["best_epoch"] = float(best_epoch(results, "auc").epoch)
    if process:
        result["process_auc"] = float(
            np.mean([threshold_metrics(one.found, one.scores)["auc"] for one in process])
        )
    if wide:
        for metric, value in threshold_intervals(final.found, final.scores).items():
            if metric in ("auc", "macro_f1"):
                result |= {f"{metric}_low": value.low, f"{metric}_high": value.high}
    shutil.rmtree(folder)
    return result


def _best_threshold(one: QuestionScores) -> float:
    """The threshold of the largest F1."""
    shape = curve(one.found, one.scores)
    f1: FloatArray = 2 * shape.precision * shape.recall / (shape.precision + shape.recall + 1e-12)
    return float(shape.thresholds[int(f1.argmax())])
